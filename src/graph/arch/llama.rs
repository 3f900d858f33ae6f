//! Llama and what shares its shape: Mistral, SmolLM, TinyLlama.

use super::Config;
use crate::error::Result;
use crate::graph::{AttendOptions, Builder, NodeId, RopeOptions};

pub(super) fn build(b: &mut Builder<'_>, c: &Config<'_>) -> Result<NodeId> {
    let mut x = b.embed("token_embd")?;
    for i in 0..c.layers {
        let h = b.rms_norm(x, &format!("blk.{i}.attn_norm"), c.eps)?;
        let h = attention(b, c, h, i)?;
        x = b.add(x, h)?;
        let h = b.rms_norm(x, &format!("blk.{i}.ffn_norm"), c.eps)?;
        let h = mlp(b, h, i)?;
        x = b.add(x, h)?;
    }
    let x = b.select(x)?;
    let x = b.rms_norm(x, "output_norm", c.eps)?;
    let head = if b.has("output") { "output" } else { "token_embd" };
    b.linear(x, head)
}

fn attention(b: &mut Builder<'_>, c: &Config<'_>, x: NodeId, layer: usize) -> Result<NodeId> {
    let p = format!("blk.{layer}.");
    let rope = RopeOptions {
        base: c.rope_base.unwrap_or(10_000.0),
        dim: Some(c.rope_dim),
        scale: c.rope_scale,
        factors: b.has("rope_freqs").then_some("rope_freqs"),
        ..RopeOptions::default()
    };
    let q = b.linear(x, &format!("{p}attn_q"))?;
    let k = b.linear(x, &format!("{p}attn_k"))?;
    let v = b.linear(x, &format!("{p}attn_v"))?;
    let q = b.reshape(q, &[c.heads, c.head_dim])?;
    let k = b.reshape(k, &[c.kv_heads, c.head_dim])?;
    let v = b.reshape(v, &[c.kv_heads, c.head_dim])?;
    let q = b.rope(q, rope)?;
    let k = b.rope(k, rope)?;
    let scale = c.positive("attention.scale")?.unwrap_or(1.0 / (c.head_dim as f32).sqrt());
    let y = b.attend(q, k, v, AttendOptions { layer, scale, window: None, softcap: None })?;
    b.linear(y, &format!("{p}attn_output"))
}

fn mlp(b: &mut Builder<'_>, x: NodeId, layer: usize) -> Result<NodeId> {
    let p = format!("blk.{layer}.");
    let gate = b.linear(x, &format!("{p}ffn_gate"))?;
    let up = b.linear(x, &format!("{p}ffn_up"))?;
    let gate = b.silu(gate)?;
    let h = b.mul(gate, up)?;
    b.linear(h, &format!("{p}ffn_down"))
}
