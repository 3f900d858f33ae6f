//! Each op's meaning against values computed by hand.

use gllm_kernels::Result;
use gllm_kernels::graph::reference::{Reference, StepInput};
use gllm_kernels::graph::{
    AttendExtras, AttendOptions, BinaryKind, Builder, MemoryWeights, NodeId, RopeLayout,
    RopeOptions, UnaryKind,
};

/// What `build` computes of rows `x`, one token each, in one slot.
fn run(
    x: &[&[f32]],
    weights: &[(&str, &[usize], &[f32])],
    build: impl Fn(&mut Builder<'_>, NodeId) -> Result<NodeId>,
) -> Vec<f32> {
    let mut memory = MemoryWeights::new();
    memory.insert("x.weight", &[x.len(), x[0].len()], &x.concat()).unwrap();
    for (name, dims, values) in weights {
        memory.insert(name, dims, values).unwrap();
    }
    let mut b = Builder::new(&memory);
    let rows = b.embed("x").unwrap();
    let y = build(&mut b, rows).unwrap();
    let ids: Vec<u32> = (0..x.len() as u32).collect();
    let mut reference = Reference::new(&b.finish(), &memory, x.len(), 1).unwrap();
    let slots = vec![0; x.len()];
    let last = [x.len() as u32 - 1];
    let step = StepInput {
        tokens: &ids,
        positions: &ids,
        slots: &slots,
        outs: &last,
        ..StepInput::default()
    };
    reference.step(&step).unwrap();
    reference.value(y).unwrap().to_vec()
}

#[track_caller]
fn close(got: &[f32], wanted: &[f32]) {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-6 * b.abs().max(1.0);
    assert!(
        got.len() == wanted.len() && got.iter().zip(wanted).all(near),
        "got {got:?}, wanted {wanted:?}"
    );
}

#[test]
fn linear() {
    let w: (&str, &[usize], &[f32]) = ("w.weight", &[2, 3], &[1.0, 2.0, 3.0, 0.0, -1.0, 0.5]);
    let x: &[&[f32]] = &[&[1.0, 1.0, 2.0], &[0.0, 3.0, -2.0]];
    close(&run(x, &[w], |b, x| b.linear(x, "w")), &[9.0, 0.0, 0.0, -4.0]);
    let bias: (&str, &[usize], &[f32]) = ("w.bias", &[2], &[10.0, 20.0]);
    close(&run(x, &[w, bias], |b, x| b.linear(x, "w")), &[19.0, 20.0, 10.0, 16.0]);
}

#[test]
fn linear_long_and_wide_enough_for_threads() {
    let (inputs, outputs) = (1031, 1100);
    let w: Vec<f32> = (0..inputs * outputs).map(|i| (i / inputs) as f32).collect();
    let x = vec![0.25; inputs];
    let y = run(&[&x, &x], &[("w.weight", &[outputs, inputs], &w)], |b, x| b.linear(x, "w"));
    let wanted: Vec<f32> = (0..outputs).map(|o| o as f32 * 0.25 * inputs as f32).collect();
    assert_eq!(y, [&wanted[..], &wanted[..]].concat());
}

#[test]
fn rms_norm_of_rows_and_of_heads() {
    let w: (&str, &[usize], &[f32]) = ("n.weight", &[2], &[1.0, 2.0]);
    // The mean square of 3 and 4 is 12.5.
    let row = [3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt()];
    close(&run(&[&[3.0, 4.0]], &[w], |b, x| b.rms_norm(x, "n", 0.0)), &row);
    let eps = [3.0 / 4.0, 8.0 / 4.0];
    close(&run(&[&[3.0, 4.0]], &[w], |b, x| b.rms_norm(x, "n", 3.5)), &eps);
    let heads = run(&[&[3.0, 4.0, 30.0, 40.0]], &[w], |b, x| {
        let x = b.heads(x, 2)?;
        b.rms_norm(x, "n", 0.0)
    });
    close(&heads, &[row, row].concat());
}

#[test]
fn rope() {
    let (sin, cos) = 1f32.sin_cos();
    let (s2, c2) = 0.1f32.sin_cos();
    let rows: &[&[f32]] = &[&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0]];
    let turn = |options: RopeOptions<'static>| {
        run(rows, &[("f.weight", &[2], &[2.0, 0.5])], move |b, x| {
            let x = b.heads(x, 1)?;
            b.rope(x, options)
        })
    };
    // Base 100 and four elements: the second pair turns by 1/10 a position.
    let neighbour = RopeOptions { base: 100.0, ..RopeOptions::default() };
    let y = [cos - 2.0 * sin, sin + 2.0 * cos, 3.0 * c2 - 4.0 * s2, 3.0 * s2 + 4.0 * c2];
    close(&turn(neighbour), &[&[1.0, 2.0, 3.0, 4.0], &y[..]].concat());
    let half = RopeOptions { layout: RopeLayout::Half, ..neighbour };
    let y = [cos - 3.0 * sin, 2.0 * c2 - 4.0 * s2, sin + 3.0 * cos, 2.0 * s2 + 4.0 * c2];
    close(&turn(half)[4..], &y);
    let part = RopeOptions { dim: Some(2), ..neighbour };
    close(&turn(part)[4..], &[cos - 2.0 * sin, sin + 2.0 * cos, 3.0, 4.0]);
    // Factors divide: 1/2 and 0.1/0.5 = 1/5.
    let factors = RopeOptions { factors: Some("f"), scale: 2.0, ..neighbour };
    let (s2, c2) = 0.4f32.sin_cos();
    let y = [cos - 2.0 * sin, sin + 2.0 * cos, 3.0 * c2 - 4.0 * s2, 3.0 * s2 + 4.0 * c2];
    close(&turn(factors)[4..], &y);
}

#[test]
fn unary() {
    for (kind, at_one, at_minus_two) in [
        (UnaryKind::Silu, 0.731_058_6, -0.238_405_84),
        (UnaryKind::Gelu, 0.841_192, -0.045_402_306),
        (UnaryKind::Relu, 1.0, 0.0),
        (UnaryKind::Sigmoid, 0.731_058_6, 0.119_202_92),
        (UnaryKind::Tanh, 0.761_594_2, -0.964_027_6),
        (UnaryKind::Exp, std::f32::consts::E, 0.135_335_28),
        (UnaryKind::Softplus, 1.313_261_7, 0.126_928),
        (UnaryKind::Over(3.0), 3.0, -1.5),
        (UnaryKind::Scale(-3.0), -3.0, 6.0),
        (UnaryKind::Softcap(2.0), 0.924_234_3, -1.523_188_4),
        // Φ(1) = 0.8413447, Φ(-2) = 0.0227501.
        (UnaryKind::GeluErf, 0.841_344_7, -0.045_500_26),
        (UnaryKind::GeluQuick, 0.845_795_6, -0.064_341_4),
        (UnaryKind::ReluSquared, 1.0, 0.0),
        (UnaryKind::Shift(0.5), 1.5, -1.5),
        (UnaryKind::Clamp(-1.5, 0.5), 0.5, -1.5),
    ] {
        close(&run(&[&[1.0, -2.0]], &[], |b, x| b.unary(x, kind)), &[at_one, at_minus_two]);
    }
}

#[test]
fn arithmetic_and_shapes() {
    let x: &[&[f32]] = &[&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]];
    close(&run(x, &[], |b, x| b.add(x, x)), &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
    close(&run(x, &[], |b, x| b.mul(x, x)), &[1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0, 64.0]);
    let bias: (&str, &[usize], &[f32]) = ("b.weight", &[4], &[1.0, 0.0, 2.0, 0.0]);
    let y = run(x, &[bias], |b, x| {
        let w = b.weight("b")?;
        b.mul(x, w)
    });
    close(&y, &[1.0, 0.0, 6.0, 0.0, 5.0, 0.0, 14.0, 0.0]);
    close(&run(x, &[], |b, x| b.slice(x, 1, 2)), &[2.0, 3.0, 6.0, 7.0]);
    close(&run(x, &[], |b, x| b.select(x)), &[5.0, 6.0, 7.0, 8.0]);
    let y = run(x, &[], |b, x| {
        let x = b.reshape(x, &[2, 2])?;
        b.slice(x, 1, 1)
    });
    close(&y, &[2.0, 4.0, 6.0, 8.0]);
}

/// Two query heads on one key head, of one element: rows are q0, q1, k, v.
fn attend(rows: &[&[f32]], window: Option<usize>, softcap: Option<f32>) -> Vec<f32> {
    run(rows, &[], |b, x| {
        let (q, k, v) = (b.slice(x, 0, 2)?, b.slice(x, 2, 1)?, b.slice(x, 3, 1)?);
        let (q, k, v) = (b.heads(q, 2)?, b.heads(k, 1)?, b.heads(v, 1)?);
        b.attend(q, k, v, AttendOptions { layer: 0, scale: 0.5, window, softcap })
    })
}

#[test]
fn attention() {
    let k = 2.0 * 3f32.ln();
    let rows: &[&[f32]] = &[&[1.0, 2.0, 0.0, 1.0], &[1.0, 2.0, k, 2.0], &[0.0, 1.0, k, 7.0]];
    // Weights 1:3 for q = 1, 1:9 for q = 2; with q = 0 the mean; then 1:3:3.
    let wanted = [1.0, 1.0, 1.75, 1.9, 10.0 / 3.0, 4.0];
    close(&attend(rows, None, None), &wanted);
    // The own position and one before it: 1:3 is within, then k, k.
    close(&attend(rows, Some(2), None), &[1.0, 1.0, 1.75, 1.9, 4.5, 4.5]);
    close(&attend(rows, Some(1), None), &[1.0, 1.0, 2.0, 2.0, 7.0, 7.0]);
    // A cap of 1 on ln 3: weights 1 : e^tanh(ln 3) = e^0.8.
    let w = 0.8f32.exp();
    close(&attend(rows, None, Some(1.0))[2..3], &[(1.0 + 2.0 * w) / (1.0 + w)]);
}

#[test]
fn layer_norm_with_and_without_parameters() {
    // Mean 2, variance 1.
    let x: &[&[f32]] = &[&[1.0, 3.0]];
    close(&run(x, &[], |b, x| b.layer_norm(x, None, 0.0)), &[-1.0, 1.0]);
    close(&run(x, &[], |b, x| b.layer_norm(x, None, 3.0)), &[-0.5, 0.5]);
    let w: (&str, &[usize], &[f32]) = ("n.weight", &[2], &[2.0, 3.0]);
    close(&run(x, &[w], |b, x| b.layer_norm(x, Some("n"), 0.0)), &[-2.0, 3.0]);
    let bias: (&str, &[usize], &[f32]) = ("n.bias", &[2], &[10.0, 20.0]);
    close(&run(x, &[w, bias], |b, x| b.layer_norm(x, Some("n"), 0.0)), &[8.0, 23.0]);
    // A matrix of weights: each head has its own.
    let w: (&str, &[usize], &[f32]) = ("n.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let heads = |x: &[&[f32]]| {
        run(x, &[w], |b, x| {
            let x = b.heads(x, 2)?;
            b.layer_norm(x, Some("n"), 0.0)
        })
    };
    close(&heads(&[&[1.0, 3.0, 5.0, 9.0]]), &[-1.0, 2.0, -3.0, 4.0]);
    close(
        &run(&[&[3.0, 4.0]], &[], |b, x| b.rms_norm_plain(x, 0.0)),
        &[3.0 / 12.5f32.sqrt(), 4.0 / 12.5f32.sqrt()],
    );
}

#[test]
fn shares_picks_and_sums() {
    let l3 = 3f32.ln();
    close(&run(&[&[0.0, l3, 0.0]], &[], |b, x| b.softmax(x)), &[0.2, 0.6, 0.2]);
    close(&run(&[&[1.0, 3.0]], &[], |b, x| b.normalize(x)), &[0.25, 0.75]);
    // The greatest first; of equals the first.
    let pick = |k| {
        run(&[&[1.0, 5.0, -2.0, 5.0]], &[], move |b, x| {
            let picks = b.top_k(x, k)?;
            b.pick(x, picks)
        })
    };
    close(&pick(3), &[5.0, 5.0, 1.0]);
    close(&pick(4), &[5.0, 5.0, 1.0, -2.0]);
    let y = run(&[&[1.0, 2.0, 3.0, 4.0, 10.0, 100.0]], &[], |b, x| {
        let (rows, weights) = (b.slice(x, 0, 4)?, b.slice(x, 4, 2)?);
        let rows = b.heads(rows, 2)?;
        b.mix(rows, weights)
    });
    close(&y, &[310.0, 420.0]);
    let x: &[&[f32]] = &[&[1.0, 2.0, 3.0]];
    let y = run(x, &[], |b, x| {
        let (a, z) = (b.slice(x, 0, 1)?, b.slice(x, 1, 2)?);
        b.concat(&[z, a, z])
    });
    close(&y, &[2.0, 3.0, 1.0, 2.0, 3.0]);
    close(&run(x, &[], |b, x| b.binary(BinaryKind::Sub, x, x)), &[0.0; 3]);
    close(&run(x, &[], |b, x| b.binary(BinaryKind::Div, x, x)), &[1.0; 3]);
}

#[test]
fn experts() {
    // Three experts of one output: 1, 10 and 100 times the sum of a row.
    let w: (&str, &[usize], &[f32]) =
        ("e.weight", &[3, 1, 3], &[1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 100.0, 100.0, 100.0]);
    let bias: (&str, &[usize], &[f32]) = ("e.bias", &[3, 1], &[0.5, 0.25, 0.125]);
    let rows: &[&[f32]] = &[&[3.0, 1.0, 2.0], &[0.0, 1.0, 5.0]];
    let run = |weights: &[(&str, &[usize], &[f32])]| {
        run(rows, weights, |b, x| {
            let picks = b.top_k(x, 2)?;
            b.experts(x, picks, "e")
        })
    };
    // Picks are 0, 2 and 2, 1; both sums are 6.
    close(&run(&[w]), &[6.0, 600.0, 600.0, 60.0]);
    close(&run(&[w, bias]), &[6.5, 600.125, 600.125, 60.25]);
}

#[test]
fn sinks_take_their_share_and_slopes_forget() {
    let rows: &[&[f32]] = &[&[0.0, 0.0, 0.0, 1.0], &[0.0, 0.0, 0.0, 4.0]];
    let attend = |extras: AttendExtras<'static>| {
        run(rows, &[("s.weight", &[2], &[0.0, 2f32.ln()])], move |b, x| {
            let (q, k, v) = (b.slice(x, 0, 2)?, b.slice(x, 2, 1)?, b.slice(x, 3, 1)?);
            let (q, k, v) = (b.heads(q, 2)?, b.heads(k, 1)?, b.heads(v, 1)?);
            let options = AttendOptions { layer: 0, scale: 1.0, window: None, softcap: None };
            b.attend_with(q, k, v, options, extras)
        })
    };
    let sinks = AttendExtras { sinks: Some("s"), alibi: None };
    close(&attend(sinks), &[0.5, 1.0 / 3.0, 5.0 / 3.0, 5.0 / 4.0]);
    // Two heads: slopes of 2^-1 and 2^-2 for a greatest exponent of 2.
    let (a, z) = ((-0.5f32).exp(), (-0.25f32).exp());
    let wanted = [1.0, 1.0, (4.0 + a) / (1.0 + a), (4.0 + z) / (1.0 + z)];
    close(&attend(AttendExtras { sinks: None, alibi: Some(2.0) }), &wanted);
}
