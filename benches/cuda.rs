//! Decode and prefill of known shapes with random weights, on a CUDA device.
//!
//! `cargo bench --bench cuda -- [SHAPE] [FORMAT…]`, by default a Llama of 1B (`1b`) in six formats; `8b`, and with experts
//! `30b-a3b` (as Qwen3's) and `20b-a4b` (as gpt-oss').
//! With `where` among them, it says instead where a step's time goes, launch by launch; `pages=DIR`
//! puts drawings there. Milliseconds are a token's, wall clock, sampling and the token's way to the host
//! included, a step in the stream behind the one whose token is read: medians of 5. Batches are sequences
//! of 96 tokens, or of 4,000, that go on a token a step each, sampled on the device.

#![allow(clippy::unwrap_used, missing_docs)]

use gllm_kernels::cuda::{CudaBackend, CudaSession};
use gllm_kernels::graph::{AttendOptions, Builder, Graph, RopeOptions, Weights};
use gllm_kernels::model::Format;
use gllm_kernels::plan::{Limits, Session, StepInput};
use gllm_kernels::replay::profile::{ProfilePage, profile};
use gllm_kernels::replay::{Generator, Plans};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    dim: usize,
    ffn: usize,
    heads: usize,
    kv: usize,
    head: usize,
    vocabulary: usize,
    /// Experts of a layer, and how many a row picks; none where there are none.
    experts: [usize; 2],
}

/// A shape by its name: layers, columns, those of a gate, heads, key heads, columns of a head, vocabulary, experts.
fn shape(name: &str) -> Option<Shape> {
    let (layers, dim, ffn, heads, kv, head, vocabulary, experts) = match name {
        "1b" => (16, 2048, 8192, 32, 8, 64, 128_256, [0, 0]),
        "8b" => (32, 4096, 14_336, 32, 8, 128, 128_256, [0, 0]),
        "30b-a3b" => (48, 2048, 768, 32, 4, 128, 151_936, [128, 8]),
        "20b-a4b" => (24, 2880, 2880, 64, 8, 64, 201_088, [32, 4]),
        _ => return None,
    };
    Some(Shape { layers, dim, ffn, heads, kv, head, vocabulary, experts })
}

/// Tensors that all look into one stretch of random bytes.
struct Random {
    bytes: Vec<u8>,
    ones: Vec<u8>,
    tensors: BTreeMap<String, (Format, Vec<usize>)>,
}

/// Bytes of a tensor.
fn size(format: Format, dims: &[usize]) -> usize {
    let (cols, rows) = dims.split_last().unwrap();
    rows.iter().product::<usize>() * format.row_bytes(*cols).unwrap()
}

/// Where a block's f16 scale is; others are left as they are.
fn scale_at(format: Format) -> Option<usize> {
    match format {
        Format::Q4_K | Format::Q5_K | Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => Some(0),
        Format::Q5_0 | Format::Q5_1 | Format::IQ4_NL | Format::Q1_0 | Format::Q2_0 => Some(0),
        Format::Q6_K => Some(208),
        Format::Q3_K => Some(108),
        Format::Q2_K => Some(80),
        Format::TQ2_0 => Some(64),
        Format::TQ1_0 => Some(52),
        _ => None,
    }
}

impl Random {
    fn new(s: &Shape, format: Format) -> Random {
        let mut tensors = BTreeMap::new();
        let mut matrix = |name: String, rows: usize, cols: usize| {
            // Only a gate's products are those of experts.
            let mut dims = vec![rows, cols];
            if s.experts[0] > 0 && [".gate", ".up", ".down"].iter().any(|end| name.ends_with(end)) {
                dims.insert(0, s.experts[0]);
            }
            tensors.insert(name + ".weight", (format, dims));
        };
        matrix("embed".into(), s.vocabulary, s.dim);
        for i in 0..s.layers {
            matrix(format!("{i}.q"), s.heads * s.head, s.dim);
            matrix(format!("{i}.k"), s.kv * s.head, s.dim);
            matrix(format!("{i}.v"), s.kv * s.head, s.dim);
            matrix(format!("{i}.o"), s.dim, s.heads * s.head);
            matrix(format!("{i}.gate"), s.ffn, s.dim);
            matrix(format!("{i}.up"), s.ffn, s.dim);
            matrix(format!("{i}.down"), s.dim, s.ffn);
            if s.experts[0] > 0 {
                matrix(format!("{i}.router"), s.experts[0], s.dim);
            }
        }
        tensors.insert("norm.weight".into(), (Format::F32, vec![s.dim]));
        let largest = tensors.values().map(|(f, dims)| size(*f, dims)).max().unwrap();
        let (mut x, mut bytes) = (1u64, Vec::with_capacity(largest));
        let mut bits = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        let small = |v: u64| half::f16::from_f32((v >> 40) as f32 / (1 << 24) as f32 * 0.004);
        while bytes.len() < largest {
            match format {
                Format::F32 => {
                    bytes.extend((((bits() >> 40) as f32 / 8e6 - 1.0) * 0.04).to_le_bytes())
                }
                Format::F16 | Format::BF16 => {
                    // A sign, exponents of about 2^-5, any fraction: four at a time.
                    let keep = if format == Format::BF16 { 0x80ff } else { 0x8fff };
                    let add = if format == Format::BF16 { 0x3c00 } else { 0x2000 };
                    for i in 0..4 {
                        let v = (bits() >> (8 * i)) as u16 & keep | add;
                        bytes.extend(v.to_le_bytes());
                    }
                }
                _ => {
                    let at = bytes.len();
                    for _ in 0..format.block_bytes().div_ceil(8) {
                        bytes.extend(bits().to_le_bytes());
                    }
                    bytes.truncate(at + format.block_bytes());
                    if let Some(scale) = scale_at(format) {
                        bytes[at + scale..at + scale + 2]
                            .copy_from_slice(&small(bits()).to_le_bytes());
                        if matches!(
                            format,
                            Format::Q4_K
                                | Format::Q5_K
                                | Format::Q2_K
                                | Format::Q4_1
                                | Format::Q5_1
                        ) {
                            let m = half::f16::ZERO.to_le_bytes();
                            bytes[at + scale + 2..at + scale + 4].copy_from_slice(&m);
                        }
                    } else {
                        bytes[at] = 118;
                    }
                }
            }
        }
        let ones = (0..s.dim).flat_map(|_| 1f32.to_le_bytes()).collect();
        Random { bytes, ones, tensors }
    }
}

impl Weights for Random {
    fn find(&self, name: &str) -> Option<(Format, SmallVec<[usize; 4]>)> {
        let (format, dims) = self.tensors.get(name)?;
        Some((*format, dims.as_slice().into()))
    }

    fn bytes(&self, name: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        let (format, dims) = self.tensors.get(name)?;
        if name == "norm.weight" {
            return Some(self.ones.as_slice().into());
        }
        // Not all from the same place, on whole blocks.
        let (len, block) = (size(*format, dims), format.block_bytes());
        let room = (self.bytes.len() - len) / block;
        let start = name.bytes().fold(7usize, |h, b| h.wrapping_mul(31) ^ b as usize) % (room + 1);
        self.bytes.get(start * block..start * block + len).map(Into::into)
    }
}

fn graph(s: &Shape, w: &Random) -> Graph {
    let mut b = Builder::new(w);
    let mut x = b.embed("embed").unwrap();
    for i in 0..s.layers {
        let n = b.rms_norm(x, "norm", 1e-5).unwrap();
        let q = b.linear(n, &format!("{i}.q")).unwrap();
        let k = b.linear(n, &format!("{i}.k")).unwrap();
        let v = b.linear(n, &format!("{i}.v")).unwrap();
        let (q, k) = (b.heads(q, s.heads).unwrap(), b.heads(k, s.kv).unwrap());
        let v = b.heads(v, s.kv).unwrap();
        let rope = RopeOptions { base: 5e5, ..RopeOptions::default() };
        let (q, k) = (b.rope(q, rope).unwrap(), b.rope(k, rope).unwrap());
        let scale = 1.0 / (s.head as f32).sqrt();
        let options = AttendOptions { layer: i, scale, window: None, softcap: None };
        let a = b.attend(q, k, v, options).unwrap();
        let a = b.merge(a).unwrap();
        let o = b.linear(a, &format!("{i}.o")).unwrap();
        x = b.add(x, o).unwrap();
        let n = b.rms_norm(x, "norm", 1e-5).unwrap();
        let name = |of: &str| format!("{i}.{of}");
        let y = if s.experts[0] > 0 {
            let logits = b.linear(n, &name("router")).unwrap();
            let picks = b.top_k(logits, s.experts[1]).unwrap();
            let shares = b.pick(logits, picks).unwrap();
            let shares = b.softmax(shares).unwrap();
            let gate = b.experts(n, picks, &name("gate")).unwrap();
            let up = b.experts(n, picks, &name("up")).unwrap();
            let gate = b.silu(gate).unwrap();
            let y = b.mul(gate, up).unwrap();
            let y = b.experts(y, picks, &name("down")).unwrap();
            b.mix(y, shares).unwrap()
        } else {
            let gate = b.linear(n, &name("gate")).unwrap();
            let up = b.linear(n, &name("up")).unwrap();
            let gate = b.silu(gate).unwrap();
            let y = b.mul(gate, up).unwrap();
            b.linear(y, &name("down")).unwrap()
        };
        x = b.add(x, y).unwrap();
    }
    let x = b.select(x).unwrap();
    let x = b.rms_norm(x, "norm", 1e-5).unwrap();
    let logits = b.linear(x, "embed").unwrap();
    let token = b.sample(logits).unwrap();
    b.output(logits);
    b.output(token);
    b.finish()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Steps a second of `rows` sequences, each behind so many tokens: the median of 5.
fn batch(session: &mut CudaSession, rows: u32, before: u32, steps: u32) -> f64 {
    for slot in 0..rows {
        for first in (0..before).step_by(500) {
            let positions: Vec<u32> = (first..before.min(first + 500)).collect();
            let tokens: Vec<u32> = positions.iter().map(|i| i * 7919 % 128_000).collect();
            let (slots, outs): (_, &[u32]) = (vec![slot; tokens.len()], &[]);
            let input = StepInput { tokens: &tokens, positions: &positions, slots: &slots, outs };
            session.run(&input).unwrap();
        }
    }
    let slots: Vec<u32> = (0..rows).collect();
    let times = (0..5).map(|_| {
        let mut tokens: Vec<u32> = slots.iter().map(|s| s * 7919 % 128_000).collect();
        let mut start = Instant::now();
        for position in before..before + 8 + steps {
            if position == before + 8 {
                start = Instant::now();
            }
            let positions = vec![position; rows as usize];
            session
                .run(&StepInput {
                    tokens: &tokens,
                    positions: &positions,
                    slots: &slots,
                    outs: &slots,
                })
                .unwrap();
            tokens.copy_from_slice(session.sampled());
        }
        start.elapsed().as_secs_f64() / f64::from(steps)
    });
    1.0 / median(times.collect())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let backend = match CudaBackend::open() {
        Ok(backend) => backend,
        Err(e) => return println!("nothing measured: {e}"),
    };
    let device = backend.device();
    println!("{}, driver {}, kernels sm_{}", device.name, device.driver, backend.kernels());
    let (model, shape) = args
        .iter()
        .find_map(|a| Some((a.as_str(), shape(a)?)))
        .unwrap_or(("1b", shape("1b").unwrap()));
    let named: Vec<Format> = args.iter().filter_map(|a| Format::from_name(a)).collect();
    let usual =
        vec![Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_K, Format::TQ2_0, Format::Q1_0];
    for format in if named.is_empty() { usual } else { named } {
        let w = Random::new(&shape, format);
        let limits = Limits { rows: 512, outs: 32, slots: 32, context: 4608 };
        let g = graph(&shape, &w);
        let plans = Plans::new(&g, &backend, limits).unwrap();
        let start = Instant::now();
        let session = plans.load(&backend, &w).unwrap();
        let load = start.elapsed().as_secs_f64();
        let weights = plans.one.bytes().weights as f64;
        let mut generator = Generator::new(session);
        if args.iter().any(|a| a == "profile") {
            // A chunk, two steps and two batches, launch by launch: for a profiler to look at.
            let tokens: Vec<u32> = (0..512).collect();
            generator.prefill(&tokens[..], || true).unwrap();
            let s = generator.session();
            for position in 140..142 {
                let positions = [position];
                s.run(&StepInput { tokens: &[5], positions: &positions, slots: &[0], outs: &[0] })
                    .unwrap();
            }
            for rows in [8u32, 32] {
                let slots: Vec<u32> = (0..rows).collect();
                let positions = vec![140; rows as usize];
                s.run(&StepInput {
                    tokens: &slots,
                    positions: &positions,
                    slots: &slots,
                    outs: &slots,
                })
                .unwrap();
            }
            continue;
        }
        if args.iter().any(|a| a == "where") {
            for context in [128, 4096] {
                let measured = profile(&mut generator, &plans.one, context, 5, || true);
                let measured = measured.unwrap().unwrap();
                println!("{} {measured}", format.name());
                if let Some(warning) = measured.warning() {
                    println!("WARNING: {warning}");
                }
                if let Some(folder) = args.iter().find_map(|a| a.strip_prefix("pages=")) {
                    let (name, about) = (format.name(), &device.name);
                    let title =
                        format!("A step of {} in {name}, context {context}", model.to_uppercase());
                    let page =
                        ProfilePage { profile: &measured, plan: &plans.one, title: &title, about };
                    std::fs::write(format!("{folder}/{name}-{context}.html"), page.to_string())
                        .unwrap();
                }
            }
            continue;
        }
        let mut decode = Vec::new();
        for context in [128usize, 4096] {
            let prompt: Vec<u32> = (0..context as u32 - 32).map(|i| i * 7919 % 128_000).collect();
            let mut times = Vec::new();
            for _ in 0..5 {
                generator.reset();
                generator.prefill(&prompt, || true).unwrap();
                generator.tokens(8, |_| true).unwrap();
                let start = Instant::now();
                generator.tokens(48, |_| true).unwrap();
                times.push(start.elapsed().as_secs_f64() / 48.0);
            }
            decode.push(median(times));
        }
        let tokens: Vec<u32> = (0..512).map(|i| i * 7919 % 128_000).collect();
        let positions: Vec<u32> = (0..512).collect();
        let slots = vec![0; 512];
        let mut times = Vec::new();
        for _ in 0..6 {
            let start = Instant::now();
            let input =
                StepInput { tokens: &tokens, positions: &positions, slots: &slots, outs: &[511] };
            generator.session().run(&input).unwrap();
            times.push(start.elapsed().as_secs_f64());
        }
        let batches = [(8, 96), (8, 4000), (32, 96), (32, 4000)]
            .map(|(n, before)| f64::from(n) * batch(generator.session(), n, before, 48));
        let token = plans.one.weight_bytes_per_token() as f64;
        println!(
            "{:<6} load {:.2} s ({:.1} GB/s)  ctx 128: {:.3} ms ({:.0} GB/s)  ctx 4096: {:.3} ms  pp512: {:.0} tokens/s  batch 8: {:.0}  behind 4000: {:.0}  batch 32: {:.0}  behind 4000: {:.0} tokens/s",
            format.name(),
            load,
            weights / load / 1e9,
            decode[0] * 1e3,
            token / decode[0] / 1e9,
            decode[1] * 1e3,
            512.0 / median(times),
            batches[0],
            batches[1],
            batches[2],
            batches[3]
        );
    }
}
