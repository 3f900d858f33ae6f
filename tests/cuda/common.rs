//! Weights, graphs and runs that the tests share.

use gllm_kernels::cuda::CudaBackend;
use gllm_kernels::graph::reference::{self, Reference};
use gllm_kernels::graph::{AttendOptions, Builder, Graph, MemoryWeights, RopeOptions};
use gllm_kernels::model::Format;
use gllm_kernels::plan::{Backend, Limits, Options, Plan, Session, StepInput};
use half::f16;

pub const NEEDS: &str = "needs a CUDA device";

pub fn cuda() -> CudaBackend {
    CudaBackend::open().expect(NEEDS)
}

/// Numbers from -1 to 1 that look random.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Where a block's f16 scales are.
fn scales(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        Format::TQ1_0 => &[52],
        Format::TQ2_0 => &[64],
        Format::MXFP4 => &[],
        _ => &[0],
    }
}

/// `n` weights of about `size`, random in every bit that may be.
pub fn random(format: Format, seed: u64, n: usize, size: f32) -> Vec<u8> {
    let mut noise = Noise::new(seed);
    match format {
        Format::F32 => noise.take(n).iter().flat_map(|v| (v * size).to_le_bytes()).collect(),
        Format::F16 => {
            noise.take(n).iter().flat_map(|v| f16::from_f32(v * size).to_le_bytes()).collect()
        }
        Format::BF16 => {
            let high = |v: f32| ((v * size).to_bits() >> 16) as u16;
            noise.take(n).iter().flat_map(|&v| high(v).to_le_bytes()).collect()
        }
        _ => {
            let mut out = Vec::new();
            let mut values = vec![0.0; format.block_len()];
            for _ in 0..n / format.block_len() {
                let mut block: Vec<u8> =
                    (0..format.block_bytes()).map(|_| (noise.bits() >> 32) as u8).collect();
                for &at in scales(format) {
                    block[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
                }
                if format == Format::MXFP4 {
                    // A power of two; numbers before it have a mean square of 9.
                    block[0] = (126.0 + (size / 3.0).log2()) as u8 + (noise.bits() >> 63) as u8;
                } else {
                    format.decode(&block, &mut values).unwrap();
                    let power: f32 = values.iter().map(|v| v * v).sum();
                    let rms = (power / values.len() as f32).sqrt().max(1e-3);
                    for &at in scales(format) {
                        let d = size / rms * (1.0 + noise.next() / 2.0);
                        block[at..at + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                    }
                }
                out.extend(block);
            }
            out
        }
    }
}

/// The shape of a small Llama.
#[derive(Clone, Copy)]
pub struct Shape {
    pub layers: usize,
    pub dim: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv: usize,
    pub head: usize,
    pub vocabulary: usize,
    pub window: Option<usize>,
    pub head_norm: bool,
}

pub const SMALL: Shape = Shape {
    layers: 2,
    dim: 256,
    ffn: 512,
    heads: 4,
    kv: 2,
    head: 64,
    vocabulary: 300,
    window: None,
    head_norm: false,
};

/// Its weights, in one format but for the norms.
pub fn llama_weights(s: &Shape, format: Format) -> MemoryWeights {
    let mut w = MemoryWeights::new();
    let mut seed = 1;
    let mut matrix = |w: &mut MemoryWeights, name: &str, rows: usize, cols: usize| {
        seed += 1;
        let size = 1.5 / (cols as f32).sqrt();
        let bytes = random(format, seed, rows * cols, size);
        w.insert_bytes(&format!("{name}.weight"), format, &[rows, cols], bytes).unwrap();
    };
    matrix(&mut w, "embed", s.vocabulary, s.dim);
    for i in 0..s.layers {
        matrix(&mut w, &format!("{i}.q"), s.heads * s.head, s.dim);
        matrix(&mut w, &format!("{i}.k"), s.kv * s.head, s.dim);
        matrix(&mut w, &format!("{i}.v"), s.kv * s.head, s.dim);
        matrix(&mut w, &format!("{i}.o"), s.dim, s.heads * s.head);
        matrix(&mut w, &format!("{i}.gate"), s.ffn, s.dim);
        matrix(&mut w, &format!("{i}.up"), s.ffn, s.dim);
        matrix(&mut w, &format!("{i}.down"), s.dim, s.ffn);
    }
    let norm = |seed: u64, n: usize| -> Vec<f32> {
        Noise::new(seed).take(n).iter().map(|v| 1.0 + v / 4.0).collect()
    };
    for i in 0..=s.layers {
        w.insert(&format!("{i}.a.weight"), &[s.dim], &norm(90 + i as u64, s.dim)).unwrap();
        w.insert(&format!("{i}.f.weight"), &[s.dim], &norm(190 + i as u64, s.dim)).unwrap();
    }
    w.insert("head_norm.weight", &[s.head], &norm(77, s.head)).unwrap();
    w
}

/// The graph of a Llama with tied head; with head norms and windows that of its relatives.
pub fn llama(s: &Shape, w: &MemoryWeights) -> Graph {
    let mut b = Builder::new(w);
    let mut x = b.embed("embed").unwrap();
    for i in 0..s.layers {
        let n = b.rms_norm(x, &format!("{i}.a"), 1e-5).unwrap();
        let q = b.linear(n, &format!("{i}.q")).unwrap();
        let k = b.linear(n, &format!("{i}.k")).unwrap();
        let v = b.linear(n, &format!("{i}.v")).unwrap();
        let (mut q, mut k) = (b.heads(q, s.heads).unwrap(), b.heads(k, s.kv).unwrap());
        let v = b.heads(v, s.kv).unwrap();
        if s.head_norm {
            q = b.rms_norm(q, "head_norm", 1e-6).unwrap();
            k = b.rms_norm(k, "head_norm", 1e-6).unwrap();
        }
        let rope = RopeOptions { base: 5e5, ..RopeOptions::default() };
        let (q, k) = (b.rope(q, rope).unwrap(), b.rope(k, rope).unwrap());
        let scale = 1.0 / (s.head as f32).sqrt();
        let window = if i % 2 == 0 { s.window } else { None };
        let options = AttendOptions { layer: i, scale, window, softcap: None };
        let a = b.attend(q, k, v, options).unwrap();
        let a = b.merge(a).unwrap();
        let o = b.linear(a, &format!("{i}.o")).unwrap();
        x = b.add(x, o).unwrap();
        let n = b.rms_norm(x, &format!("{i}.f"), 1e-5).unwrap();
        let gate = b.linear(n, &format!("{i}.gate")).unwrap();
        let up = b.linear(n, &format!("{i}.up")).unwrap();
        let gate = b.silu(gate).unwrap();
        let y = b.mul(gate, up).unwrap();
        let y = b.linear(y, &format!("{i}.down")).unwrap();
        x = b.add(x, y).unwrap();
    }
    let x = b.select(x).unwrap();
    let x = b.rms_norm(x, &format!("{}.a", s.layers), 1e-5).unwrap();
    let logits = b.linear(x, "embed").unwrap();
    let token = b.sample(logits).unwrap();
    b.output(logits);
    b.output(token);
    b.finish()
}

/// The first output's rows for all tokens, fed in chunks of so many, in slot 1 of 2.
pub fn run<B: Backend>(
    graph: &Graph,
    w: &MemoryWeights,
    backend: &B,
    reuse: bool,
    chunk: usize,
    context: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let chunks = vec![chunk; tokens.len().div_ceil(chunk)];
    run_in_chunks(graph, w, backend, reuse, &chunks, context, tokens)
}

/// The same, in chunks of these sizes, with a program for each size.
pub fn run_in_chunks<B: Backend>(
    graph: &Graph,
    w: &MemoryWeights,
    backend: &B,
    reuse: bool,
    chunks: &[usize],
    context: usize,
    mut tokens: &[u32],
) -> Vec<f32> {
    let mut sizes: Vec<usize> = chunks.iter().map(|&n| n.min(tokens.len())).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let program = |&rows: &usize| {
        let limits = Limits { rows, outs: rows, slots: 2, context };
        let plan = Plan::with_options(graph, backend, limits, Options { reuse }).unwrap();
        backend.lower(&plan).unwrap()
    };
    let mut session = backend.load(sizes.iter().map(program).collect(), w).unwrap();
    let (mut all, mut position) = (Vec::new(), 0);
    for &chunk in chunks {
        let (chunk, rest) = tokens.split_at(chunk.min(tokens.len()));
        let n = chunk.len() as u32;
        let positions: Vec<u32> = (position..position + n).collect();
        let (outs, slots): (Vec<u32>, _) = ((0..n).collect(), vec![1; chunk.len()]);
        let input = StepInput { tokens: chunk, positions: &positions, slots: &slots, outs: &outs };
        session.run(&input).unwrap();
        all.extend(session.peek(0).unwrap());
        (tokens, position) = (rest, position + n);
    }
    all
}

/// What the reference makes of them in one step, with caches that round as a backend's do.
pub fn reference(graph: &Graph, w: &MemoryWeights, context: usize, tokens: &[u32]) -> Vec<f32> {
    let mut reference = Reference::new(graph, w, context, 2).unwrap().rounding_caches();
    let n = tokens.len() as u32;
    let (positions, slots): (Vec<u32>, Vec<u32>) = ((0..n).collect(), vec![1; tokens.len()]);
    let step = reference::StepInput {
        tokens,
        positions: &positions,
        slots: &slots,
        outs: &positions,
        ..reference::StepInput::default()
    };
    reference.step(&step).unwrap();
    reference.value(graph.outputs()[0]).unwrap().to_vec()
}

/// Mean square error relative to the mean square of `want`; infinite where lengths or NaNs differ.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    nmse_of(got, want, 1e-10)
}

/// The same, relative to `least` where the mean square of `want` is less.
pub fn nmse_of(got: &[f32], want: &[f32], least: f64) -> f64 {
    if got.len() != want.len() || got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let error: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    let power: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
    error / power.max(least * want.len() as f64)
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
