//! Random graphs, run in many ways.

use gllm_kernels::cpu::{CpuBackend, simd::Isa};
use gllm_kernels::graph::reference::{self, Reference};
use gllm_kernels::graph::{AttendExtras, AttendOptions, BinaryKind, Builder, DType, Graph};
use gllm_kernels::graph::{MemoryWeights, NodeId, RopeLayout, RopeOptions, UnaryKind, op::Cache};
use gllm_kernels::model::Format;
use gllm_kernels::plan::{Backend, Limits, Options, Plan, Session, StepInput};
use proptest::prelude::*;

const WIDTHS: [usize; 3] = [32, 64, 96];
const HEAD: usize = 16;
const VOCABULARY: usize = 50;
const CONTEXT: usize = 24;

/// Numbers from -1 to 1 that look random.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Q8_0 or Q4_1 blocks of small numbers.
fn blocks(format: Format, seed: u64, n: usize) -> Vec<u8> {
    let bytes = n / 32 * format.block_bytes();
    let mut out: Vec<u8> = noise(seed, bytes).iter().map(|v| (v * 1000.0) as i32 as u8).collect();
    for block in out.chunks_exact_mut(format.block_bytes()) {
        // Weights of about 0.1, so that a product keeps the size of its rows: caches are f16.
        let (d, m) = if format == Format::Q4_1 { (0.025, -0.1875) } else { (0.0015, 0.0) };
        block[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
        if format == Format::Q4_1 {
            block[2..4].copy_from_slice(&half::f16::from_f32(m).to_le_bytes());
        }
    }
    out
}

/// Every tensor that a random graph may ask for.
fn weights(format: Format) -> MemoryWeights {
    let mut w = MemoryWeights::new();
    let (mut seed, mut seed_of) = (1, 1000);
    let mut matrix = |w: &mut MemoryWeights, name: String, rows: usize, cols: usize| {
        seed += 1;
        let bytes = if format == Format::F32 {
            noise(seed, rows * cols).iter().flat_map(|v| (v * 0.2).to_le_bytes()).collect()
        } else {
            blocks(format, seed, rows * cols)
        };
        w.insert_bytes(&name, format, &[rows, cols], bytes).unwrap();
    };
    for inputs in WIDTHS {
        for outputs in WIDTHS {
            for copy in 0..3 {
                matrix(&mut w, format!("m.{inputs}.{outputs}.{copy}.weight"), outputs, inputs);
            }
        }
        matrix(&mut w, format!("head.{inputs}.weight"), VOCABULARY, inputs);
        // The router is f32, as files have it; its logits must lie apart from one another.
        let router: Vec<f32> = noise(inputs as u64 + 9, 5 * inputs);
        w.insert(&format!("router.{inputs}.weight"), &[5, inputs], &router).unwrap();
        for (name, rows, cols) in [("gate", 40, inputs), ("up", 40, inputs), ("down", inputs, 40)] {
            // 40 inputs are no whole blocks: those stay floats.
            let blocks_fit = format == Format::F32 || cols % 32 == 0;
            let format = if blocks_fit { format } else { Format::F32 };
            seed_of += 1;
            let bytes = if format == Format::F32 {
                noise(seed_of, 5 * rows * cols)
                    .iter()
                    .flat_map(|v| (v * 0.2).to_le_bytes())
                    .collect()
            } else {
                blocks(format, seed_of, 5 * rows * cols)
            };
            w.insert_bytes(&format!("{name}.{inputs}.weight"), format, &[5, rows, cols], bytes)
                .unwrap();
        }
        w.insert(&format!("down.{inputs}.bias"), &[5, inputs], &noise(11, 5 * inputs)).unwrap();
        let norm: Vec<f32> = noise(inputs as u64, inputs).iter().map(|v| 1.0 + v / 4.0).collect();
        w.insert(&format!("norm.{inputs}.weight"), &[inputs], &norm).unwrap();
        w.insert(&format!("bias.{inputs}.weight"), &[inputs], &noise(7, inputs)).unwrap();
    }
    let norm: Vec<f32> = noise(3, HEAD).iter().map(|v| 1.0 + v / 4.0).collect();
    w.insert(&format!("norm.{HEAD}.weight"), &[HEAD], &norm).unwrap();
    matrix(&mut w, "embed.weight".into(), VOCABULARY, WIDTHS[1]);
    matrix(&mut w, "positions.weight".into(), CONTEXT, WIDTHS[1]);
    let ramp: Vec<f32> = (0..6).map(|i| i as f32 - 2.0).collect();
    w.insert("sinks.weight", &[6], &ramp).unwrap();
    let norm: Vec<f32> = noise(5, 2 * HEAD).iter().map(|v| 1.0 + v / 4.0).collect();
    w.insert("heads.norm.weight", &[2, HEAD], &norm).unwrap();
    w
}

/// A choice for a node: what, and of what.
type Choice = (u8, u8, u8);

/// What a cache keeps of a row. Products of products may shrink it below what f16 can hold; the
/// bias brings it back.
fn kept(b: &mut Builder<'_>, row: NodeId, copy: usize) -> NodeId {
    let width = b.dims(row)[0];
    let row = b.linear(row, &format!("m.{width}.32.{copy}")).unwrap();
    let bias = b.weight("bias.32").unwrap();
    b.add(row, bias).unwrap()
}

/// Makes a graph by appending what the choices say to the values so far.
fn graph(w: &MemoryWeights, choices: &[Choice]) -> Graph {
    let mut b = Builder::new(w);
    let tokens = b.embed("embed").unwrap();
    let places = b.embed_positions("positions").unwrap();
    let mut values: Vec<NodeId> = vec![b.add(tokens, places).unwrap()];
    let mut layer = 0;
    for &(what, x, y) in choices {
        let pick = |i: u8| values[values.len() - 1 - i as usize % values.len().min(5)];
        let a = pick(x);
        let width = b.dims(a)[0];
        let to = WIDTHS[y as usize % 3];
        let made = match what % 18 {
            0..=2 => b.linear(a, &format!("m.{width}.{to}.{}", y % 3)).unwrap(),
            3 => b.rms_norm(a, &format!("norm.{width}"), 1e-5).unwrap(),
            4 | 5 => {
                let other = values.iter().rev().find(|&&v| v != a && b.dims(v)[0] == width);
                let other = other.copied().unwrap_or(a);
                let sum = b.add(a, other).unwrap();
                b.scale(sum, 0.7).unwrap()
            }
            6 => {
                let kinds =
                    [UnaryKind::Silu, UnaryKind::Gelu, UnaryKind::Tanh, UnaryKind::Scale(0.5)];
                b.unary(a, kinds[y as usize % 4]).unwrap()
            }
            7 => {
                let gate = b.linear(a, &format!("m.{width}.{to}.0")).unwrap();
                let up = b.linear(a, &format!("m.{width}.{to}.1")).unwrap();
                let gate = b.silu(gate).unwrap();
                b.mul(gate, up).unwrap()
            }
            8 | 9 => {
                let q = b.linear(a, &format!("m.{width}.96.0")).unwrap();
                let (k, v) = (kept(&mut b, a, 1), kept(&mut b, a, 2));
                let (q, k) = (b.heads(q, 96 / HEAD).unwrap(), b.heads(k, 2).unwrap());
                let v = b.heads(v, 2).unwrap();
                let q = if y % 2 == 0 {
                    b.rms_norm(q, &format!("norm.{HEAD}"), 1e-5).unwrap()
                } else {
                    q
                };
                let layout = if y % 3 == 0 { RopeLayout::Half } else { RopeLayout::Neighbour };
                let rope = RopeOptions { layout, ..RopeOptions::default() };
                let (q, k) = (b.rope(q, rope).unwrap(), b.rope(k, rope).unwrap());
                let window = (y % 5 == 0).then_some(5);
                let options = AttendOptions { layer, scale: 0.25, window, softcap: None };
                layer += 1;
                b.attend(q, k, v, options).unwrap()
            }
            12 => {
                // A mixture of 5 experts of which 2 are picked, by one of the ways there are.
                let logits = b.linear(a, &format!("router.{width}")).unwrap();
                let picks = b.top_k(logits, 2).unwrap();
                let picked = b.pick(logits, picks).unwrap();
                let share = if y % 2 == 0 {
                    b.softmax(picked).unwrap()
                } else {
                    let picked = b.sigmoid(picked).unwrap();
                    b.normalize(picked).unwrap()
                };
                let gate = b.experts(a, picks, &format!("gate.{width}")).unwrap();
                let up = b.experts(a, picks, &format!("up.{width}")).unwrap();
                let gate = b.silu(gate).unwrap();
                let h = b.mul(gate, up).unwrap();
                let h = b.experts(h, picks, &format!("down.{width}")).unwrap();
                b.mix(h, share).unwrap()
            }
            13 => match y % 3 {
                0 => b.layer_norm(a, None, 1e-5).unwrap(),
                1 => b.layer_norm(a, Some(&format!("norm.{width}")), 1e-5).unwrap(),
                _ => b.rms_norm_plain(a, 1e-5).unwrap(),
            },
            14 => {
                let kinds = [
                    UnaryKind::GeluErf,
                    UnaryKind::GeluQuick,
                    UnaryKind::Shift(0.25),
                    UnaryKind::Clamp(-0.5, 0.75),
                    UnaryKind::Softplus,
                ];
                b.unary(a, kinds[y as usize % 5]).unwrap()
            }
            15 => {
                let (x, z) = (b.slice(a, 0, 16).unwrap(), b.slice(a, width - 16, 16).unwrap());
                b.concat(&[z, x]).unwrap()
            }
            16 => {
                let other = values.iter().rev().find(|&&v| v != a && b.dims(v)[0] == width);
                let x = b.scale(a, 0.5).unwrap();
                b.binary(BinaryKind::Sub, x, other.copied().unwrap_or(a)).unwrap()
            }
            17 => {
                // Norms of whole rows, heads with weights of their own, slopes and sinks.
                let q = b.linear(a, &format!("m.{width}.96.0")).unwrap();
                let k = kept(&mut b, a, 1);
                let q = b.layer_norm(q, Some("norm.96"), 1e-5).unwrap();
                let (q, k) = (b.heads(q, 96 / HEAD).unwrap(), b.heads(k, 2).unwrap());
                let k = b.rms_norm(k, "heads.norm", 1e-5).unwrap();
                let rope = RopeOptions {
                    dim: Some(8),
                    gain: 1.25,
                    divide: &[1.0, 2.0, 3.0, 4.0],
                    ..RopeOptions::default()
                };
                let (q, v) = (b.rope(q, rope).unwrap(), k);
                let options = AttendOptions { layer, scale: 0.25, window: None, softcap: None };
                layer += 1;
                let extras = AttendExtras {
                    sinks: (y % 2 == 0).then_some("sinks"),
                    alibi: (y % 3 == 0).then_some(8.0),
                };
                b.attend_with(q, k, v, options, extras).unwrap()
            }
            10 => {
                let bias = b.weight(&format!("bias.{width}")).unwrap();
                b.add(a, bias).unwrap()
            }
            11 if width > 32 => b.slice(a, 16, width - 32).unwrap(),
            _ => b.mul(a, a).unwrap(),
        };
        values.push(made);
    }
    let x = values.last().copied().unwrap();
    let width = b.dims(x)[0];
    let x = b.select(x).unwrap();
    let x = b.rms_norm(x, &format!("norm.{width}"), 1e-5).unwrap();
    let logits = b.linear(x, &format!("head.{width}")).unwrap();
    let token = b.sample(logits).unwrap();
    b.output(logits);
    b.output(token);
    b.finish()
}

/// Logits of all tokens, fed in chunks.
fn run(
    graph: &Graph,
    w: &MemoryWeights,
    backend: CpuBackend,
    reuse: bool,
    chunk: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let rows = chunk.min(tokens.len());
    let limits = Limits { rows, outs: rows, slots: 2, context: CONTEXT };
    let plan = Plan::with_options(graph, &backend, limits, Options { reuse }).unwrap();
    let program = backend.lower(&plan).unwrap();
    let mut session = backend.load(vec![program], w).unwrap();
    let mut all = Vec::new();
    let (mut position, slots) = (0, vec![1; chunk]);
    for chunk in tokens.chunks(chunk) {
        let n = chunk.len() as u32;
        let positions: Vec<u32> = (position..position + n).collect();
        let outs: Vec<u32> = (0..n).collect();
        let slots = &slots[..chunk.len()];
        let input = StepInput { tokens: chunk, positions: &positions, slots, outs: &outs };
        session.run(&input).unwrap();
        all.extend(session.peek(0).unwrap());
        position += n;
    }
    all
}

/// Logits of the last tokens of all, which are fed at once: others need not be computed to the end.
fn of_last(
    graph: &Graph,
    w: &MemoryWeights,
    backend: CpuBackend,
    outs: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let n = tokens.len();
    let limits = Limits { rows: n, outs, slots: 2, context: CONTEXT };
    let plan = Plan::new(graph, &backend, limits).unwrap();
    let mut session = backend.load(vec![backend.lower(&plan).unwrap()], w).unwrap();
    let positions: Vec<u32> = (0..n as u32).collect();
    let outs = &positions[n - outs..];
    let input = StepInput { tokens, positions: &positions, slots: &vec![1; n], outs };
    session.run(&input).unwrap();
    session.peek(0).unwrap().to_vec()
}

fn reference(graph: &Graph, w: &MemoryWeights, tokens: &[u32]) -> Vec<f32> {
    let mut reference = Reference::new(graph, w, CONTEXT, 2).unwrap();
    let n = tokens.len() as u32;
    let (positions, slots): (Vec<u32>, Vec<u32>) = ((0..n).collect(), vec![1; tokens.len()]);
    let input = StepInput { tokens, positions: &positions, slots: &slots, outs: &positions };
    let step = reference::StepInput {
        tokens: input.tokens,
        positions: input.positions,
        slots: input.slots,
        outs: input.outs,
        ..reference::StepInput::default()
    };
    reference.step(&step).unwrap();
    reference.value(graph.outputs()[0]).unwrap().to_vec()
}

/// Mean square error relative to the mean square of `want`, or to 1e-5 squared if that is more: a
/// graph of products of products may shrink its rows until nothing but rounding is left.
fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    let power: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
    error / power.max(1e-10 * want.len() as f64)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// What is left between a backend and the reference is the f16 of the caches, and codes of 8 bits
/// that round the other way, about 1e-7, which a random graph may amplify: squares, norms of small
/// rows, one after the other.
const NMSE: f64 = 1e-4;

fn check(format: Format, choices: &[Choice]) {
    let w = weights(format);
    // Every other layer keeps its cache in 8 bits.
    let kept = |cache: &Cache| if cache.layer.is_multiple_of(2) { DType::Q8_0 } else { DType::F16 };
    let graph = graph(&w, choices).with_caches(kept).unwrap();
    let tokens: Vec<u32> = (0..13).map(|i| i * 17 % VOCABULARY as u32).collect();
    let backend = CpuBackend::detect().with_threads(1).unwrap();
    let scalar = backend.with_isa(Isa::Scalar).unwrap();
    let want = run(&graph, &w, backend, true, 13, &tokens);
    let close = nmse(&want, &reference(&graph, &w, &tokens));
    assert!(close <= NMSE, "NMSE against the reference is {close}");
    let want = bits(&want);
    for (what, backend, reuse, chunk) in [
        ("without reuse", backend, false, 13),
        ("two threads", backend.with_threads(2).unwrap(), true, 13),
        ("three threads, chunks of 1", backend.with_threads(3).unwrap(), true, 1),
        ("scalar", scalar, true, 13),
        ("chunks of 1", backend, true, 1),
        ("chunks of 5", backend, true, 5),
        ("chunks of 5 without reuse", backend, false, 5),
    ] {
        let got = bits(&run(&graph, &w, backend, reuse, chunk, &tokens));
        assert!(got == want, "{what}: other bits");
    }
    for few in [1, 2] {
        let got = bits(&of_last(&graph, &w, backend, few, &tokens));
        assert!(got == want[want.len() - few * VOCABULARY..], "the last {few} alone: other bits");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn float_graphs(choices in prop::collection::vec(any::<Choice>(), 1..14)) {
        check(Format::F32, &choices);
    }

    #[test]
    fn block_graphs(choices in prop::collection::vec(any::<Choice>(), 1..14)) {
        check(Format::Q4_1, &choices);
    }

    #[test]
    fn eight_bit_graphs(choices in prop::collection::vec(any::<Choice>(), 1..14)) {
        check(Format::Q8_0, &choices);
    }
}
