#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const LENGTHS: [usize; 12] = [1, 2, 7, 15, 16, 17, 31, 63, 64, 65, 576, 1536];

const KINDS: [UnaryKind; 16] = [
    UnaryKind::Exp,
    UnaryKind::Softplus,
    UnaryKind::Over(-1.5),
    UnaryKind::GeluErf,
    UnaryKind::GeluQuick,
    UnaryKind::ReluSquared,
    UnaryKind::Shift(0.75),
    UnaryKind::Clamp(-7.0, 3.5),
    UnaryKind::Silu,
    UnaryKind::Gelu,
    UnaryKind::Relu,
    UnaryKind::Sigmoid,
    UnaryKind::Tanh,
    UnaryKind::Scale(-0.3),
    UnaryKind::Softcap(30.0),
    UnaryKind::Softcap(0.7),
];

/// Relative error of one function of the machine's own arithmetic, in units of 2⁻²³.
const FUNCTION_ULP: f64 = 8.0;
/// Relative error of a sum of squares in f32.
const NORM_ERROR: f64 = 2e-6;

/// Numbers of both signs and many sizes, the same on every run.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let size = |x: u32| [1e-6, 0.01, 1.0, 1.0, 4.0, 12.0, 60.0, 300.0][x as usize % 8];
    (0..n).map(|_| (next() as f32 / u32::MAX as f32 * 2.0 - 1.0) * size(next() >> 8)).collect()
}

/// Equal to the bit; NaNs are all one.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// The function in f64.
fn exact(kind: UnaryKind, x: f32) -> f64 {
    let x = f64::from(x);
    match kind {
        UnaryKind::Silu => x / (1.0 + (-x).exp()),
        UnaryKind::Gelu => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        }
        UnaryKind::GeluErf => f64::from(UnaryKind::GeluErf.apply(x as f32)),
        UnaryKind::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
        UnaryKind::ReluSquared => x.max(0.0).powi(2),
        UnaryKind::Shift(c) => x + f64::from(c),
        UnaryKind::Clamp(low, high) => x.clamp(f64::from(low), f64::from(high)),
        UnaryKind::Relu => x.max(0.0),
        UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryKind::Tanh => x.tanh(),
        UnaryKind::Exp => x.exp(),
        UnaryKind::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        UnaryKind::Over(c) => f64::from(c) / x,
        UnaryKind::Scale(c) => f64::from(c) * x,
        UnaryKind::Softcap(c) => f64::from(c) * (x / f64::from(c)).tanh(),
    }
}

/// How the rounding of an exponent of `x` grows with it.
fn grown(kind: UnaryKind, x: f32) -> f64 {
    match kind {
        UnaryKind::Gelu | UnaryKind::GeluErf => 1.0 + f64::from(x * x),
        UnaryKind::GeluQuick => 1.0 + f64::from(x.abs()),
        _ => 1.0,
    }
}

/// Runs `f` for each table on a fresh output and, where `alias` is given, on a copy of it in
/// place; all must agree to the bit. Returns the result.
fn on_all(
    n: usize,
    alias: Option<&[f32]>,
    f: impl Fn(&SpanKernels, Option<*const f32>, *mut f32),
) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let k = SpanKernels::of(isa);
        let mut out = vec![7.0; n + 1];
        f(k, None, out.as_mut_ptr());
        assert_eq!(out.pop(), Some(7.0), "{isa:?} wrote past the end");
        let first = first.get_or_insert_with(|| out.clone());
        assert!(same(first, &out), "{isa:?} differs from scalar");
        if let Some(alias) = alias {
            let mut out = alias.to_vec();
            let p = out.as_mut_ptr();
            f(k, Some(p), p);
            assert!(same(first, &out), "{isa:?} differs in place");
        }
    }
    first.unwrap()
}

#[test]
fn functions_match_their_meaning_and_one_another() {
    for n in LENGTHS {
        let (x, b) = (noise(n, n as u32), noise(n, n as u32 + 77));
        for kind in KINDS {
            let y = on_all(n, Some(&x), |k, alias, out| {
                // SAFETY: spans of n.
                unsafe { (k.unary)(kind, alias.unwrap_or(x.as_ptr()), out, n) }
            });
            for (&x, &y) in x.iter().zip(&y) {
                let want = exact(kind, x);
                if want > f64::from(f32::MAX) {
                    assert_eq!(y, f32::INFINITY, "{kind:?} {x}");
                    continue;
                }
                // The exponent of a function of a large x carries the rounding of x itself.
                let grown = grown(kind, x);
                let ulp = want.abs().max(1e-30) * 2f64.powi(-23);
                let error = (f64::from(y) - want).abs() / ulp;
                assert!(error <= FUNCTION_ULP * grown, "{kind:?} {x}: {y} {want}, {error} ulp");
            }
            let gated = on_all(n, Some(&x), |k, alias, out| {
                // SAFETY: spans of n.
                unsafe { (k.gated)(kind, alias.unwrap_or(x.as_ptr()), b.as_ptr(), out, n) }
            });
            let want: Vec<f32> = y.iter().zip(&b).map(|(y, b)| y * b).collect();
            assert!(same(&gated, &want), "{kind:?} gated");
        }
    }
}

#[test]
fn functions_at_the_edges() {
    let edges = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN];
    let mut x: Vec<f32> = edges.to_vec();
    x.extend([
        1e-45, -1e-45, 1e-38, 87.0, 88.72, 88.73, -87.3, -103.9, -104.0, -200.0, 9.01, -10.1,
    ]);
    for kind in KINDS {
        let y = on_all(x.len(), None, |k, _, out| {
            // SAFETY: spans of x's length.
            unsafe { (k.unary)(kind, x.as_ptr(), out, x.len()) }
        });
        for (&x, &y) in x.iter().zip(&y) {
            let want = kind.apply(x);
            if want.is_nan() || y.is_nan() {
                assert_eq!(want.is_nan(), y.is_nan(), "{kind:?} {x}: {y} {want}");
            } else if want.is_infinite() || y.is_infinite() {
                assert_eq!(want, y, "{kind:?} {x}");
            } else {
                let most = 1e-6 * want.abs() * grown(kind, x.clamp(-1e4, 1e4)) as f32 + 1e-37;
                assert!((want - y).abs() <= most, "{kind:?} {x}: {y} {want}");
            }
        }
    }
}

#[test]
fn cuts_do_not_matter() {
    let x = noise(100, 5);
    for isa in Isa::available() {
        let k = SpanKernels::of(isa);
        let (mut whole, mut parts) = (vec![0.0; 100], vec![0.0; 100]);
        // SAFETY: spans of 100, cut inside.
        unsafe {
            (k.unary)(UnaryKind::Silu, x.as_ptr(), whole.as_mut_ptr(), 100);
            for (start, end) in [(0, 3), (3, 20), (20, 83), (83, 100)] {
                let out = parts.as_mut_ptr().add(start);
                (k.unary)(UnaryKind::Silu, x.as_ptr().add(start), out, end - start);
            }
        }
        assert!(same(&whole, &parts), "{isa:?}");
    }
}

#[test]
fn arithmetic_is_exact() {
    for n in LENGTHS {
        let (a, b) = (noise(n, 1), noise(n, 2));
        let check = |name: &str, f: &dyn Fn(&SpanKernels, *const f32, *mut f32), want: Vec<f32>| {
            let y = on_all(n, Some(&a), |k, alias, out| f(k, alias.unwrap_or(a.as_ptr()), out));
            assert!(same(&y, &want), "{name} {n}");
        };
        let pairs = || a.iter().zip(&b);
        let (p, c) = (b.as_ptr(), 0.37f32);
        // SAFETY: all spans are of n.
        unsafe {
            check("add", &|k, a, o| (k.add)(a, p, o, n), pairs().map(|(a, b)| a + b).collect());
            check("mul", &|k, a, o| (k.mul)(a, p, o, n), pairs().map(|(a, b)| a * b).collect());
            check("scale", &|k, a, o| (k.scale)(a, c, o, n), a.iter().map(|a| c * a).collect());
            check("copy", &|k, a, o| (k.copy)(a, o, n), a.clone());
        }
    }
}

#[test]
fn rms_norm_matches_its_meaning() {
    for n in LENGTHS {
        let (x, w) = (noise(n, 3), noise(n, 4));
        let y = on_all(n, Some(&x), |k, alias, out| {
            // SAFETY: spans of n.
            unsafe { (k.rms_norm)(alias.unwrap_or(x.as_ptr()), w.as_ptr(), 1e-5, out, n) }
        });
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64;
        for ((&x, &w), &y) in x.iter().zip(&w).zip(&y) {
            let want = f64::from(x) / (mean + 1e-5).sqrt() * f64::from(w);
            assert!((f64::from(y) - want).abs() <= NORM_ERROR * want.abs(), "{n}: {y} {want}");
        }
    }
}

#[test]
fn softmax_matches_its_meaning() {
    for n in LENGTHS {
        let x = noise(n, 9);
        let y = on_all(n, Some(&x), |k, alias, out| {
            // SAFETY: spans of n.
            unsafe { (k.softmax)(alias.unwrap_or(x.as_ptr()), out, n) }
        });
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e = |x: f32| (f64::from(x) - f64::from(top)).exp();
        let total: f64 = x.iter().map(|&x| e(x)).sum();
        for (&x, &y) in x.iter().zip(&y) {
            // The difference from the greatest is rounded before the exponential is taken.
            let tolerance = (1e-6 + 1.2e-7 * f64::from(top - x)) * e(x) / total + 1e-37;
            assert!((f64::from(y) - e(x) / total).abs() <= tolerance, "{n} {x}: {y}");
        }
    }
}

#[test]
fn halves_convert_as_the_format_says() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let want: Vec<f32> = all.iter().map(|&h| half::f16::from_bits(h).to_f32()).collect();
    let wide = on_all(all.len(), None, |k, _, out| {
        // SAFETY: spans of all's length.
        unsafe { (k.from_f16)(all.as_ptr(), out, all.len()) }
    });
    assert!(same(&wide, &want));
    for n in LENGTHS {
        let mut x = noise(n, 11);
        let edges = [1e-8, 5.96e-8, 65504.0, 65519.9, 65520.0, 1e9, -1e9, 1.000_488_3, -0.0];
        x.iter_mut().zip(edges).for_each(|(x, e)| *x = e);
        let want: Vec<u16> = x.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect();
        for isa in Isa::available() {
            let mut out = vec![0u16; n];
            // SAFETY: spans of n.
            unsafe { (SpanKernels::of(isa).to_f16)(x.as_ptr(), out.as_mut_ptr(), n) };
            assert_eq!(out, want, "{isa:?} {n}");
        }
    }
}

#[test]
fn argmax_finds_the_first_and_what_is_not_finite() {
    let run = |x: &[f32]| {
        let mut found = Isa::available().map(|isa| {
            // SAFETY: a span of x's length, which is not 0.
            unsafe { (SpanKernels::of(isa).argmax)(x.as_ptr(), x.len()) }
        });
        let first = found.next().unwrap();
        assert!(found.all(|other| other == first));
        first
    };
    for n in LENGTHS {
        let x = noise(n, 13);
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let want = x.iter().position(|&v| v == top).unwrap();
        assert_eq!(run(&x), Argmax { index: want, finite: true }, "{n}");
        for at in [0, n / 3, n / 2, n - 1] {
            let mut y = x.clone();
            y[at] = 1e9;
            y[n - 1] = 1e9;
            assert_eq!(run(&y), Argmax { index: at, finite: true }, "{n} {at}");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                y[at] = bad;
                assert!(!run(&y).finite && run(&y).index < n, "{n} {at} {bad}");
            }
        }
    }
    assert_eq!(run(&[-1.0; 40]), Argmax { index: 0, finite: true });
}
