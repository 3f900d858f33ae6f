//! Tiny models with random weights, as whole files.

use gllm_kernels::model::{Format, GgufWriter, Model};

/// Sizes of the tiny models.
pub const VOCABULARY: usize = 40;
const DIM: usize = 16;
const HIDDEN: usize = 24;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// Numbers from -1 to 1 that look random and are the same on each machine.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        ((self.0 >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }

    fn bytes(&mut self, count: usize, size: f32, middle: f32) -> Vec<u8> {
        (0..count).flat_map(|_| (middle + size * self.next()).to_le_bytes()).collect()
    }
}

pub struct Tiny {
    pub writer: GgufWriter,
    noise: Noise,
}

impl Tiny {
    pub fn tensor(&mut self, name: &str, dims: &[usize]) {
        let count = dims.iter().product();
        let norm = dims.len() == 1 && !name.ends_with("bias");
        let (size, middle) = if norm { (0.5, 1.0) } else { (0.5, 0.0) };
        let bytes = self.noise.bytes(count, size, middle);
        self.writer = std::mem::take(&mut self.writer).tensor(name, Format::F32, dims, &bytes);
    }

    pub fn model(self) -> Model {
        Model::from_static("tiny", self.writer.finish().leak()).unwrap()
    }
}

fn common(name: &str, layers: u32, head_dim: usize) -> Tiny {
    let key = |k: &str| format!("{name}.{k}");
    let writer = GgufWriter::new()
        .meta("general.architecture", name)
        .meta(&key("block_count"), layers)
        .meta(&key("embedding_length"), DIM as u32)
        .meta(&key("attention.head_count"), HEADS as u32)
        .meta(&key("attention.head_count_kv"), KV_HEADS as u32)
        .meta(&key("attention.layer_norm_rms_epsilon"), 1e-5f32)
        .meta(&key("attention.key_length"), head_dim as u32);
    let mut tiny = Tiny { writer, noise: Noise(7) };
    tiny.tensor("token_embd.weight", &[VOCABULARY, DIM]);
    tiny.tensor("output_norm.weight", &[DIM]);
    for i in 0..layers {
        let mut add = |name: &str, dims: &[usize]| tiny.tensor(&format!("blk.{i}.{name}"), dims);
        add("attn_norm.weight", &[DIM]);
        add("attn_q.weight", &[HEADS * head_dim, DIM]);
        add("attn_k.weight", &[KV_HEADS * head_dim, DIM]);
        add("attn_v.weight", &[KV_HEADS * head_dim, DIM]);
        add("attn_output.weight", &[DIM, HEADS * head_dim]);
        add("ffn_norm.weight", &[DIM]);
        add("ffn_gate.weight", &[HIDDEN, DIM]);
        add("ffn_up.weight", &[HIDDEN, DIM]);
        add("ffn_down.weight", &[DIM, HIDDEN]);
    }
    tiny
}

/// Two layers, with a head of its own, a bias and rope factors.
pub fn llama() -> Tiny {
    llama_of(2)
}

/// As [`llama`], of so many layers.
pub fn llama_of(layers: u32) -> Tiny {
    let mut tiny = common("llama", layers, 4);
    tiny.tensor("output.weight", &[VOCABULARY, DIM]);
    tiny.tensor("blk.1.attn_q.bias", &[HEADS * 4]);
    tiny.tensor("rope_freqs.weight", &[2]);
    tiny
}

/// Seven layers, the sixth of which sees everything, and a window of 4.
pub fn gemma3() -> Tiny {
    let mut tiny = common("gemma3", 7, 8);
    tiny.writer = tiny.writer.meta("gemma3.attention.sliding_window", 4u32);
    for i in 0..7 {
        for (name, width) in [
            ("attn_q_norm", 8),
            ("attn_k_norm", 8),
            ("post_attention_norm", DIM),
            ("post_ffw_norm", DIM),
        ] {
            tiny.tensor(&format!("blk.{i}.{name}.weight"), &[width]);
        }
    }
    tiny
}
