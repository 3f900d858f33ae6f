//! Whole graphs: small models in every format, and graphs at random.

use crate::common::{
    Noise, SMALL, Shape, bits, cuda, llama, llama_weights, nmse, random, reference, run,
    run_in_chunks,
};
use gllm_kernels::graph::{
    AttendOptions, BinaryKind, Builder, Graph, MemoryWeights, NodeId, RopeLayout, RopeOptions,
    UnaryKind,
};
use gllm_kernels::model::Format;
use gllm_kernels::plan::{Backend, Limits, Plan, Session, StepInput};

/// What is left between a backend and the reference is numbers that caches round the other way.
const NMSE: f64 = 1e-6;

fn tokens(n: usize, vocabulary: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 71 % vocabulary) as u32).collect()
}

/// A model in every format, over so many positions in chunks of each size.
fn check_formats(s: &Shape, positions: usize, chunks: &[usize]) {
    let backend = cuda();
    let (tokens, context) = (tokens(positions, s.vocabulary), positions + 10);
    let mut failed = Vec::new();
    for &format in Format::all() {
        let w = llama_weights(s, format);
        let g = llama(s, &w);
        let want = reference(&g, &w, context, &tokens);
        let error = |&chunk| nmse(&run(&g, &w, &backend, true, chunk, context, &tokens), &want);
        let errors: Vec<f64> = chunks.iter().map(error).collect();
        let shown: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
        println!("{:<8} chunks of {chunks:?}: {}", format.name(), shown.join(" "));
        if errors.iter().any(|&e| e > NMSE) {
            failed.push(format!("{} {errors:?}", format.name()));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_small_model_in_every_format() {
    check_formats(&SMALL, 150, &[1, 50, 150]);
}

/// Rows that warps go through in several passes, the last one short.
#[test]
#[ignore = "needs a CUDA device"]
fn long_rows_in_every_format() {
    check_formats(&Shape { ffn: 4352, ..SMALL }, 9, &[1]);
}

/// Rows that gates leave as integers to products of planes; of others they are rows of several passes, too.
#[test]
#[ignore = "needs a CUDA device"]
fn gates_that_leave_integers_in_every_format() {
    check_formats(&Shape { ffn: 7936, ..SMALL }, 5, &[1]);
}

/// Heads, heads of keys, width, window, whether heads have norms, positions. Of the last two, several
/// blocks add up a head.
const HEADS: [(usize, usize, usize, Option<usize>, bool, usize); 7] = [
    (4, 4, 32, None, false, 333),
    (8, 1, 128, Some(70), true, 333),
    (4, 1, 256, Some(5), true, 333),
    (9, 3, 64, Some(64), false, 333),
    (6, 2, 80, None, true, 333),
    (20, 2, 64, None, false, 1100),
    (4, 4, 32, Some(700), false, 1100),
];

/// The errors of all of `HEADS`, over so many positions at most, each in the chunks that are made of
/// the number of positions.
fn check_heads(most: usize, chunks: &[fn(usize) -> Vec<usize>]) {
    let backend = cuda();
    let (mut failed, mut worst) = (Vec::new(), 0.0f64);
    for (heads, kv, head, window, head_norm, n) in HEADS {
        let s = Shape { heads, kv, head, window, head_norm, ..SMALL };
        let (w, n) = (llama_weights(&s, Format::BF16), n.min(most));
        let g = llama(&s, &w);
        let tokens = tokens(n, s.vocabulary);
        let want = reference(&g, &w, n + 67, &tokens);
        for chunks in chunks {
            let got = run_in_chunks(&g, &w, &backend, true, &chunks(n), n + 67, &tokens);
            let error = nmse(&got, &want);
            worst = worst.max(error);
            if error > NMSE {
                failed.push(format!("{heads} {kv} {head} {window:?}: {error:.1e}"));
            }
        }
    }
    println!("NMSE {worst:.1e}");
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn heads_of_every_width_windows_and_long_contexts() {
    let few = |n: usize| {
        let before = n / 200 * 200;
        let sizes = [5, 20, 2].into_iter().cycle();
        let mut left = n - before;
        let rest = sizes.map_while(|size| {
            let rows = size.min(left);
            left -= rows;
            (rows > 0).then_some(rows)
        });
        vec![200; before / 200].into_iter().chain(rest).collect()
    };
    check_heads(1100, &[|n| vec![1; n], |n| vec![200; n.div_ceil(200)], few]);
}

/// Few steps, for tools that take a second for each.
#[test]
#[ignore = "needs a CUDA device"]
fn a_few_tokens_after_a_prompt() {
    let chunks = |n| [vec![200; n / 200], vec![n % 200 - 3, 1, 1, 1]].concat();
    check_heads(533, &[chunks]);
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_same_bits_again_and_whatever_stands_beside() {
    let backend = cuda();
    for (format, head_norm) in [(Format::BF16, false), (Format::Q4_0, false), (Format::Q4_0, true)]
    {
        let s = Shape { head_norm, ..SMALL };
        let w = llama_weights(&s, format);
        let g = llama(&s, &w);
        let all = tokens(130, SMALL.vocabulary);
        let want = bits(&run(&g, &w, &backend, true, 130, 140, &all));
        assert!(want == bits(&run(&g, &w, &backend, true, 130, 140, &all)), "run again");
        assert!(want == bits(&run(&g, &w, &backend, false, 130, 140, &all)), "without reuse");
        for chunk in [2, 20, 37, 64] {
            assert!(
                want == bits(&run(&g, &w, &backend, true, chunk, 140, &all)),
                "chunks of {chunk}"
            );
        }
        let one = bits(&run(&g, &w, &backend, true, 1, 140, &all));
        assert!(one == bits(&run(&g, &w, &backend, true, 1, 140, &all)), "one row again");
        assert!(one == bits(&run(&g, &w, &backend, false, 1, 140, &all)), "one row without reuse");
    }
}

/// Steps of two to eight rows are chains of products: of one stretch of inputs, of two, four and eight, in pages of
/// their own and shared ones, gone through once and in passes. Their number changes from step to step. Of more than
/// 128 rows a block has several stretches in a row.
#[test]
#[ignore = "needs a CUDA device"]
fn few_rows_have_the_bits_of_many_in_every_format() {
    let backend = cuda();
    let mut failed = Vec::new();
    for (dim, ffn, rows) in [(256, 4352, 37), (512, 8192, 37), (2048, 1280, 160)] {
        let all = tokens(rows, SMALL.vocabulary);
        let s = Shape { dim, ffn, ..SMALL };
        for &format in Format::all() {
            let w = llama_weights(&s, format);
            let g = llama(&s, &w);
            let limits = Limits { rows, outs: rows, slots: 2, context: rows };
            let plan = Plan::new(&g, &backend, limits).unwrap();
            let mut session = backend.load(vec![backend.lower(&plan).unwrap()], &w).unwrap();
            let mut logits = |slot, chunks: &[usize]| {
                let (mut found, mut at) = (Vec::new(), 0);
                for &n in chunks {
                    let ids: Vec<u32> = (at..at + n as u32).collect();
                    let outs: Vec<u32> = (0..n as u32).collect();
                    let tokens = &all[at as usize..at as usize + n];
                    let slots = vec![slot; n];
                    let input = StepInput { tokens, positions: &ids, slots: &slots, outs: &outs };
                    session.run(&input).unwrap();
                    found.extend(bits(&session.peek(0).unwrap()));
                    at += n as u32;
                }
                found
            };
            let want = logits(0, &[rows]);
            let mut chunks = vec![8, 3, 16, 2, 8];
            chunks.extend((rows > 37).then(|| rows - 37));
            if want != logits(1, &chunks) {
                failed.push(format!("{} {dim} {ffn}", format.name()));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Rows of several sequences in one step: short and long ones, in runs that begin anywhere.
#[test]
#[ignore = "needs a CUDA device"]
fn a_step_of_several_sequences_is_each_of_them() {
    // Rows of each sequence, by its slot, in the order of the step; the third step is a row or two each, and in the last
    // ones some come again behind others.
    let steps: [&[(u32, usize)]; 5] = [
        &[(2, 3), (0, 37), (1, 90), (3, 2)],
        &[(1, 2), (3, 70), (0, 21), (2, 4)],
        &[(0, 1), (1, 1), (2, 2), (3, 1)],
        &[(0, 1), (1, 2), (0, 2), (1, 1), (2, 1)],
        &[(3, 5), (0, 3), (3, 4), (2, 6), (0, 2), (1, 3)],
    ];
    let backend = cuda();
    for window in [None, Some(40)] {
        let s = Shape { window, ..SMALL };
        let w = llama_weights(&s, Format::Q4_0);
        let g = llama(&s, &w);
        let open = || {
            let limits = Limits { rows: 140, outs: 140, slots: 4, context: 128 };
            let plan = Plan::new(&g, &backend, limits).unwrap();
            backend.load(vec![backend.lower(&plan).unwrap()], &w).unwrap()
        };
        // All sequences, or one alone; the logits of each row by its slot.
        let logits = |only: Option<u32>| {
            let mut session = open();
            let (mut at, mut found) = ([0; 4], vec![Vec::new(); 4]);
            for step in steps {
                let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
                for &(slot, rows) in step.iter().filter(|r| only.is_none_or(|o| o == r.0)) {
                    for position in at[slot as usize]..at[slot as usize] + rows as u32 {
                        tokens.push((position * 71 + slot * 13) % s.vocabulary as u32);
                        positions.push(position);
                        slots.push(slot);
                    }
                    at[slot as usize] += rows as u32;
                }
                if tokens.is_empty() {
                    continue;
                }
                let outs: Vec<u32> = (0..tokens.len() as u32).collect();
                let (tokens, positions) = (&tokens[..], &positions[..]);
                let input = StepInput { tokens, positions, slots: &slots, outs: &outs };
                session.run(&input).unwrap();
                let all = session.peek(0).unwrap();
                for (row, slot) in all.chunks(s.vocabulary).zip(&slots) {
                    found[*slot as usize].extend(bits(row));
                }
            }
            found
        };
        let together = logits(None);
        for slot in 0..4 {
            let alone = &logits(Some(slot))[slot as usize];
            assert!(*alone == together[slot as usize], "slot {slot}, window {window:?}");
        }
    }
}

const WIDTHS: [usize; 3] = [32, 64, 96];
const HEAD: usize = 16;
const VOCABULARY: usize = 50;

/// Every tensor that a random graph may ask for.
fn weights(format: Format) -> MemoryWeights {
    let mut w = MemoryWeights::new();
    let mut seed = 1;
    let mut matrix = |w: &mut MemoryWeights, name: String, rows: usize, cols: usize| {
        seed += 1;
        let bytes = random(format, seed, rows * cols, 0.1);
        w.insert_bytes(&name, format, &[rows, cols], bytes).unwrap();
    };
    for inputs in WIDTHS {
        for outputs in WIDTHS {
            for copy in 0..3 {
                matrix(&mut w, format!("m.{inputs}.{outputs}.{copy}.weight"), outputs, inputs);
            }
        }
        matrix(&mut w, format!("head.{inputs}.weight"), VOCABULARY, inputs);
        let norm: Vec<f32> =
            Noise::new(inputs as u64).take(inputs).iter().map(|v| 1.0 + v / 4.0).collect();
        w.insert(&format!("norm.{inputs}.weight"), &[inputs], &norm).unwrap();
        w.insert(&format!("bias.{inputs}.weight"), &[inputs], &Noise::new(7).take(inputs)).unwrap();
    }
    let norm: Vec<f32> = Noise::new(3).take(HEAD).iter().map(|v| 1.0 + v / 4.0).collect();
    w.insert(&format!("norm.{HEAD}.weight"), &[HEAD], &norm).unwrap();
    matrix(&mut w, "embed.weight".into(), VOCABULARY, WIDTHS[1]);
    w
}

/// A graph of ops that `noise` picks, over values that it picks.
fn random_graph(w: &MemoryWeights, noise: &mut Noise) -> Graph {
    let mut b = Builder::new(w);
    let mut values: Vec<NodeId> = vec![b.embed("embed").unwrap()];
    let mut layer = 0;
    for _ in 0..2 + noise.bits() % 12 {
        let mut pick = |n: usize| (noise.bits() >> 33) as usize % n;
        let a = values[values.len() - 1 - pick(values.len().min(5))];
        let (width, to, y) = (b.dims(a)[0], WIDTHS[pick(3)], pick(30));
        let made = match pick(16) {
            0..=2 => b.linear(a, &format!("m.{width}.{to}.{}", y % 3)).unwrap(),
            3 => b.rms_norm(a, &format!("norm.{width}"), 1e-5).unwrap(),
            4 | 5 => {
                let other = values.iter().rev().find(|&&v| v != a && b.dims(v)[0] == width);
                let sum = b.add(a, other.copied().unwrap_or(a)).unwrap();
                b.scale(sum, 0.7).unwrap()
            }
            6 => {
                let kinds =
                    [UnaryKind::Silu, UnaryKind::Gelu, UnaryKind::Tanh, UnaryKind::Scale(0.5)];
                b.unary(a, kinds[y % 4]).unwrap()
            }
            7 => {
                let gate = b.linear(a, &format!("m.{width}.{to}.0")).unwrap();
                let up = b.linear(a, &format!("m.{width}.{to}.1")).unwrap();
                let gate = b.silu(gate).unwrap();
                b.mul(gate, up).unwrap()
            }
            8 | 9 => {
                let q = b.linear(a, &format!("m.{width}.96.0")).unwrap();
                let k = b.linear(a, &format!("m.{width}.32.1")).unwrap();
                let v = b.linear(a, &format!("m.{width}.32.2")).unwrap();
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
                let options = AttendOptions {
                    layer,
                    scale: 0.25,
                    window: (y % 5 == 0).then_some(5),
                    softcap: (y % 7 == 0).then_some(3.0),
                };
                layer += 1;
                let a = b.attend(q, k, v, options).unwrap();
                b.merge(a).unwrap()
            }
            10 => {
                let bias = b.weight(&format!("bias.{width}")).unwrap();
                b.add(a, bias).unwrap()
            }
            11 => b.layer_norm(a, Some(&format!("norm.{width}")), 1e-3).unwrap(),
            12 => {
                let other = values.iter().rev().find(|&&v| v != a).copied().unwrap_or(a);
                let all = b.concat(&[a, other, a]).unwrap();
                b.slice(all, 8, width).unwrap()
            }
            13 => {
                let heads = b.heads(a, width / HEAD).unwrap();
                let shares = b.softmax(heads).unwrap();
                let both = b.binary(BinaryKind::Sub, heads, shares).unwrap();
                b.merge(both).unwrap()
            }
            14 => {
                let k = b.heads(a, width / HEAD).unwrap();
                // No picks: what is nearly equal might change places.
                let shares = b.slice(a, 3, width / HEAD).unwrap();
                let mixed = b.mix(k, shares).unwrap();
                let rows = vec![mixed; width / HEAD];
                b.concat(&rows).unwrap()
            }
            _ if width > 32 => b.slice(a, 16, width - 32).unwrap(),
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

#[test]
#[ignore = "needs a CUDA device"]
fn random_graphs() {
    let backend = cuda();
    let tokens: Vec<u32> = (0..13).map(|i| i * 17 % VOCABULARY as u32).collect();
    let (mut failed, mut worst) = (Vec::new(), 0.0f64);
    for format in [Format::F32, Format::Q4_1, Format::Q8_0] {
        let w = weights(format);
        for case in 0..40 {
            let g = random_graph(&w, &mut Noise::new(case + 1));
            let want = reference(&g, &w, 24, &tokens);
            for (chunk, reuse) in [(13, true), (13, false), (1, true), (5, true)] {
                let error = nmse(&run(&g, &w, &backend, reuse, chunk, 24, &tokens), &want);
                worst = worst.max(error);
                if error > NMSE {
                    failed.push(format!(
                        "{} case {case}, chunk {chunk}, reuse {reuse}: {error:.1e}",
                        format.name()
                    ));
                }
            }
        }
    }
    println!("NMSE {worst:.1e}");
    assert!(failed.is_empty(), "{failed:#?}");
}
