//! Products of every format at every kind of shape, and what may follow a product.

use crate::cases;
use crate::common::{Noise, cuda, nmse, nmse_of, random, reference, run, run_in_chunks};
use gllm_kernels::graph::{Builder, Graph, MemoryWeights, NodeId, UnaryKind};
use gllm_kernels::model::Format;

/// Rows of about 1 through an f32 table, then what `build` makes of them.
fn graph(w: &MemoryWeights, build: impl Fn(&mut Builder<'_>, NodeId) -> NodeId) -> Graph {
    let mut b = Builder::new(w);
    let x = b.embed("x").unwrap();
    let y = build(&mut b, x);
    b.output(y);
    b.finish()
}

const TOKENS: usize = 150;

fn table(cols: usize) -> MemoryWeights {
    let mut w = MemoryWeights::new();
    w.insert("x.weight", &[TOKENS, cols], &Noise::new(3).take(TOKENS * cols)).unwrap();
    w
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 37 % TOKENS) as u32).collect()
}

/// The mean square of products of a matrix with rows of `table`, which few of them may miss by far.
fn usual_power(format: Format, bytes: &[u8], weights: usize, cols: usize) -> f64 {
    let mut values = vec![0.0; weights];
    format.decode(bytes, &mut values).unwrap();
    let power: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    power / weights as f64 * cols as f64 / 3.0
}

/// What SPEC/accuracy.md allows products with block weights; floats are held to it as well.
const NMSE: f64 = 2e-9;

#[test]
#[ignore = "needs a CUDA device"]
fn products_of_every_format_and_shape() {
    let backend = cuda();
    let mut failed = Vec::new();
    for &format in Format::all() {
        let mut worst = 0.0f64;
        for (outputs, cols) in [(1, 256), (5, 256), (64, 512), (129, 1280), (300, 2304), (74, 8192)]
        {
            let mut w = table(cols);
            let bytes = random(format, 7, outputs * cols, 0.1);
            let usual = usual_power(format, &bytes, outputs * cols, cols);
            w.insert_bytes("w.weight", format, &[outputs, cols], bytes).unwrap();
            let g = graph(&w, |b, x| b.linear(x, "w").unwrap());
            for rows in [1, 3, 130] {
                let tokens = tokens(if rows == 1 { 2 } else { rows });
                let want = reference(&g, &w, TOKENS, &tokens);
                let got = run(&g, &w, &backend, true, rows, TOKENS, &tokens);
                let error = nmse_of(&got, &want, usual);
                worst = worst.max(error);
                if error > NMSE {
                    failed.push(format!(
                        "{} {outputs} x {cols}, {rows} rows: {error:.1e}",
                        format.name()
                    ));
                }
            }
        }
        println!("{:<8} {worst:.1e}", format.name());
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// So many outputs that products of one row count bits: alone and in a chain, over rows that fill a span and a warp's share
/// and over such that do not.
#[test]
#[ignore = "needs a CUDA device"]
fn wide_products_of_one_and_two_bits() {
    const WIDE: usize = 8704;
    let backend = cuda();
    let mut failed = Vec::new();
    for format in [Format::TQ1_0, Format::TQ2_0, Format::Q1_0] {
        let of_blocks = if format == Format::Q1_0 { [384, 2432] } else { [512, 2304] };
        for cols in [of_blocks[0], 2048, of_blocks[1]] {
            let mut w = table(cols);
            w.insert("norm.weight", &[cols], &Noise::new(5).take(cols)).unwrap();
            let mut matrix = |name: &str, outputs: usize, cols: usize| {
                let bytes = random(format, 7, outputs * cols, 0.1);
                let usual = usual_power(format, &bytes, outputs * cols, cols);
                w.insert_bytes(&format!("{name}.weight"), format, &[outputs, cols], bytes).unwrap();
                usual
            };
            let usual = matrix("odd", WIDE + 5, cols);
            matrix("gate", WIDE, cols);
            matrix("up", WIDE, cols);
            matrix("down", cols, WIDE);
            let alone = graph(&w, |b, x| b.linear(x, "odd").unwrap());
            let chain = graph(&w, |b, x| {
                let mut x = x;
                for _ in 0..3 {
                    let n = b.rms_norm(x, "norm", 1e-5).unwrap();
                    let gate = b.linear(n, "gate").unwrap();
                    let gate = b.silu(gate).unwrap();
                    let up = b.linear(n, "up").unwrap();
                    let y = b.mul(gate, up).unwrap();
                    let y = b.linear(y, "down").unwrap();
                    x = b.add(x, y).unwrap();
                }
                x
            });
            let tokens = tokens(2);
            let both = |g: &Graph| {
                let want = reference(g, &w, TOKENS, &tokens);
                (run(g, &w, &backend, true, 1, TOKENS, &tokens), want)
            };
            let ((got, want), (chained, wanted)) = (both(&alone), both(&chain));
            let errors = [nmse_of(&got, &want, usual), nmse(&chained, &wanted)];
            println!(
                "{:<8} of {cols}: {:.1e}, in a chain {:.1e}",
                format.name(),
                errors[0],
                errors[1]
            );
            if errors[0] > NMSE || errors[1] > 4.0 * NMSE {
                failed.push(format!("{} of {cols}: {errors:?}", format.name()));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn float_products_of_odd_shapes() {
    let backend = cuda();
    for format in [Format::F32, Format::F16, Format::BF16] {
        for (outputs, cols) in [(3, 1), (7, 50), (64, 63), (130, 1031)] {
            let mut w = table(cols);
            let bytes = random(format, 7, outputs * cols, 0.1);
            w.insert_bytes("w.weight", format, &[outputs, cols], bytes).unwrap();
            let g = graph(&w, |b, x| b.linear(x, "w").unwrap());
            for rows in [1, 65] {
                let tokens = tokens(rows.max(2));
                let want = reference(&g, &w, TOKENS, &tokens);
                let got = run(&g, &w, &backend, true, rows, TOKENS, &tokens);
                let error = nmse(&got, &want);
                assert!(
                    error <= NMSE,
                    "{} {outputs} x {cols}, {rows} rows: {error:.1e}",
                    format.name()
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn embeddings_are_bit_for_bit() {
    let backend = cuda();
    for &format in Format::all() {
        let mut w = MemoryWeights::new();
        let bytes = random(format, 5, 9 * 768, 1.0);
        w.insert_bytes("x.weight", format, &[9, 768], bytes).unwrap();
        let g = graph(&w, |_, x| x);
        let tokens: Vec<u32> = (0..9).rev().collect();
        let want = reference(&g, &w, 16, &tokens);
        for rows in [1, 9] {
            assert_eq!(run(&g, &w, &backend, true, rows, 16, &tokens), want, "{}", format.name());
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn what_follows_a_product() {
    let backend = cuda();
    let (cols, outputs) = (512, 260);
    let mut failed = Vec::new();
    for (first, second) in [
        (Format::BF16, Format::BF16),
        (Format::F32, Format::F16),
        (Format::Q4_0, Format::Q4_0),
        (Format::Q4_K, Format::Q6_K),
    ] {
        let mut w = table(cols);
        for (name, format, seed) in [("a", first, 1), ("b", second, 2), ("c", first, 3)] {
            let bytes = random(format, seed, outputs * cols, 0.1);
            w.insert_bytes(&format!("{name}.weight"), format, &[outputs, cols], bytes).unwrap();
        }
        w.insert("bias.weight", &[outputs], &Noise::new(9).take(outputs)).unwrap();
        w.insert("norm.weight", &[cols], &Noise::new(4).take(cols)).unwrap();
        w.insert("short.weight", &[26], &Noise::new(5).take(26)).unwrap();
        type Build = fn(&mut Builder<'_>, NodeId) -> NodeId;
        let cases: [(&str, Build); 9] = [
            ("bias", |b, x| {
                let (y, w) = (b.linear(x, "a").unwrap(), b.weight("bias").unwrap());
                b.add(y, w).unwrap()
            }),
            ("gated", |b, x| {
                let (g, u) = (b.linear(x, "a").unwrap(), b.linear(x, "b").unwrap());
                let g = b.gelu(g).unwrap();
                b.mul(g, u).unwrap()
            }),
            ("gated, the other way round", |b, x| {
                let (u, g) = (b.linear(x, "a").unwrap(), b.linear(x, "b").unwrap());
                let g = b.silu(g).unwrap();
                b.mul(u, g).unwrap()
            }),
            ("sum of products", |b, x| {
                let (y, z) = (b.linear(x, "a").unwrap(), b.linear(x, "b").unwrap());
                let y = b.tanh(y).unwrap();
                let y = b.add(y, z).unwrap();
                let y = b.scale(y, 0.3).unwrap();
                b.softcap(y, 2.0).unwrap()
            }),
            ("three products", |b, x| {
                let (y, z) = (b.linear(x, "a").unwrap(), b.linear(x, "b").unwrap());
                let u = b.linear(x, "c").unwrap();
                let y = b.mul(y, z).unwrap();
                b.add(y, u).unwrap()
            }),
            ("doubled", |b, x| {
                let y = b.linear(x, "a").unwrap();
                b.add(y, y).unwrap()
            }),
            ("normed heads", |b, x| {
                let y = b.linear(x, "a").unwrap();
                let y = b.heads(y, 10).unwrap();
                b.rms_norm(y, "short", 1e-5).unwrap()
            }),
            ("norm before", |b, x| {
                let x = b.rms_norm(x, "norm", 1e-5).unwrap();
                let y = b.linear(x, "a").unwrap();
                b.relu(y).unwrap()
            }),
            ("slices", |b, x| {
                let y = b.linear(x, "a").unwrap();
                let (u, v) = (b.slice(y, 3, 100).unwrap(), b.slice(y, 120, 100).unwrap());
                let u = b.unary(u, UnaryKind::Sigmoid).unwrap();
                b.mul(u, v).unwrap()
            }),
        ];
        for (what, build) in cases {
            let g = graph(&w, build);
            for rows in [1, 70] {
                let tokens = tokens(rows.max(2));
                let want = reference(&g, &w, TOKENS, &tokens);
                let got = run(&g, &w, &backend, true, rows, TOKENS, &tokens);
                let error = nmse(&got, &want);
                if error > 4.0 * NMSE {
                    failed.push(format!(
                        "{what}, {} {}, {rows} rows: {error:.1e}",
                        first.name(),
                        second.name()
                    ));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn every_op() {
    let backend = cuda();
    let w = cases::weights(&random);
    let (mut failed, mut worst) = (Vec::new(), [0.0f64; 2]);
    let cases = cases::cases();
    // One row into empty caches, many rows, one row again: few steps, for tools that take a second for
    // each.
    let chunks = [1, 70, 67, 1, 1];
    let tokens: Vec<u32> = (0..140).map(|i| (i * 37 % cases::TOKENS) as u32).collect();
    for case in &cases {
        let g = case.graph(&w);
        let want = reference(&g, &w, 150, &tokens);
        let run = || run_in_chunks(&g, &w, &backend, true, &chunks, 150, &tokens);
        let error = std::panic::catch_unwind(run).map_or(f64::INFINITY, |got| nmse(&got, &want));
        let worst = &mut worst[usize::from(case.caches)];
        *worst = worst.max(error);
        // Numbers that caches round the other way.
        if error > if case.caches { 2e-7 } else { 4.0 * NMSE } {
            failed.push(format!("{}: {error:.1e}", case.name));
        }
    }
    println!("{} cases, NMSE {:.1e}, through caches {:.1e}", cases.len(), worst[0], worst[1]);
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Rows that picked the same expert meet its weights together, in tiles that follow from how many they are.
#[test]
#[ignore = "needs a CUDA device"]
fn rows_with_experts_have_the_bits_of_any_step() {
    let backend = cuda();
    let w = cases::weights(&random);
    let tokens: Vec<u32> = (0..130).map(|i| (i * 37 % cases::TOKENS) as u32).collect();
    let cases = cases::cases();
    let with: Vec<_> = cases.iter().filter(|case| case.name.contains("experts")).collect();
    assert!(with.len() > 4);
    for case in with {
        let g = case.graph(&w);
        let bits = |chunk| -> Vec<u32> {
            let made = run(&g, &w, &backend, true, chunk, 140, &tokens);
            made.iter().map(|v| v.to_bits()).collect()
        };
        let want = bits(130);
        for chunk in [2, 20, 37, 64] {
            assert!(bits(chunk) == want, "{}, chunks of {chunk}", case.name);
        }
    }
}
