//! Gemma 3: norms on both sides of each half layer and on each head of queries and keys; five
//! layers that see a window, then one that sees everything.

use super::Config;
use crate::error::Result;
use crate::graph::{AttendOptions, Builder, NodeId, RopeLayout, RopeOptions};

pub(super) fn build(b: &mut Builder<'_>, c: &Config<'_>) -> Result<NodeId> {
    let x = b.embed("token_embd")?;
    let mut x = b.scale(x, (c.dim as f32).sqrt())?;
    for i in 0..c.layers {
        let h = b.rms_norm(x, &format!("blk.{i}.attn_norm"), c.eps)?;
        let h = attention(b, c, h, i)?;
        let h = b.rms_norm(h, &format!("blk.{i}.post_attention_norm"), c.eps)?;
        x = b.add(x, h)?;
        let h = b.rms_norm(x, &format!("blk.{i}.ffn_norm"), c.eps)?;
        let h = mlp(b, h, i)?;
        let h = b.rms_norm(h, &format!("blk.{i}.post_ffw_norm"), c.eps)?;
        x = b.add(x, h)?;
    }
    let x = b.select(x)?;
    let x = b.rms_norm(x, "output_norm", c.eps)?;
    let head = if b.has("output") { "output" } else { "token_embd" };
    let logits = b.linear(x, head)?;
    match c.positive("final_logit_softcapping")? {
        Some(cap) => b.softcap(logits, cap),
        None => Ok(logits),
    }
}

fn attention(b: &mut Builder<'_>, c: &Config<'_>, x: NodeId, layer: usize) -> Result<NodeId> {
    let p = format!("blk.{layer}.");
    let full = (layer + 1).is_multiple_of(6);
    let window = c.count("attention.sliding_window")?.unwrap_or(512);
    let local = c.positive("rope.freq_base_swa")?.unwrap_or(10_000.0);
    // Only layers that see everything were stretched to a longer context.
    let rope = RopeOptions {
        base: if full { c.rope_base.unwrap_or(1e6) } else { local },
        dim: Some(c.rope_dim),
        scale: if full { c.rope_scale } else { 1.0 },
        layout: RopeLayout::Half,
        factors: None,
    };
    let q = b.linear(x, &format!("{p}attn_q"))?;
    let k = b.linear(x, &format!("{p}attn_k"))?;
    let v = b.linear(x, &format!("{p}attn_v"))?;
    let q = b.reshape(q, &[c.heads, c.head_dim])?;
    let k = b.reshape(k, &[c.kv_heads, c.head_dim])?;
    let v = b.reshape(v, &[c.kv_heads, c.head_dim])?;
    let q = b.rms_norm(q, &format!("{p}attn_q_norm"), c.eps)?;
    let k = b.rms_norm(k, &format!("{p}attn_k_norm"), c.eps)?;
    let q = b.rope(q, rope)?;
    let k = b.rope(k, rope)?;
    // The 27B model, which alone has 62 layers, divides by its row's share of a head instead; no
    // file says so.
    let divisor = if c.layers == 62 { c.dim as f32 / c.heads as f32 } else { c.head_dim as f32 };
    let scale = 1.0 / divisor.sqrt();
    let window = (!full).then_some(window);
    let y = b.attend(q, k, v, AttendOptions { layer, scale, window, softcap: None })?;
    b.linear(y, &format!("{p}attn_output"))
}

fn mlp(b: &mut Builder<'_>, x: NodeId, layer: usize) -> Result<NodeId> {
    let p = format!("blk.{layer}.");
    let gate = b.linear(x, &format!("{p}ffn_gate"))?;
    let up = b.linear(x, &format!("{p}ffn_up"))?;
    let gate = b.gelu(gate)?;
    let h = b.mul(gate, up)?;
    b.linear(h, &format!("{p}ffn_down"))
}
