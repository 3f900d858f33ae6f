//! What looks at a whole row: norms, softmax, argmax. What must hold of pointers is said at
//! [the module above](super).

use super::maps::{Add, Shift, Times, map};
use super::{Argmax, load_rest, store_rest};
use crate::cpu::lanes::{LANES, Lanes, exp};

#[inline(always)]
pub(super) unsafe fn normalize<L: Lanes>(x: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise; the row is summed before any of it is written.
    unsafe {
        let total = sum::<L>(x, n);
        for i in 0..n {
            *out.add(i) = *x.add(i) / total;
        }
    }
}

/// The sum of a row, in sixteen parts.
#[inline(always)]
unsafe fn sum<L: Lanes>(x: *const f32, n: usize) -> f32 {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            sum = sum.add(L::load(x.add(i)));
        }
        if whole < n {
            sum = sum.add(load_rest::<L>(x.add(whole), n - whole));
        }
        sum.sum()
    }
}

#[inline(always)]
pub(super) unsafe fn layer_norm<L: Lanes>(
    x: *const f32,
    w: *const f32,
    b: *const f32,
    eps: f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise. `out` may be `x`: the mean is taken before anything is written,
    // then all of the row is.
    unsafe {
        let mean = sum::<L>(x, n) / n as f32;
        map::<L, _>(Shift(-mean), x, x, out, n);
        rms_norm::<L>(out, w, eps, out, n);
        if !b.is_null() {
            map::<L, _>(Add, out, b, out, n);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn rms_norm<L: Lanes>(
    x: *const f32,
    w: *const f32,
    eps: f32,
    out: *mut f32,
    n: usize,
) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`, and the row is summed before any
    // of it is written.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let x = L::load(x.add(i));
            sum = x.fma(x, sum);
        }
        if whole < n {
            let x = load_rest::<L>(x.add(whole), n - whole);
            sum = x.fma(x, sum);
        }
        let mean = sum.sum() / n as f32;
        let factor = L::splat(1.0 / (mean + eps).sqrt());
        if w.is_null() {
            map::<L, _>(Times(1.0 / (mean + eps).sqrt()), x, x, out, n);
            return;
        }
        for i in (0..whole).step_by(LANES) {
            L::load(x.add(i)).mul(factor).mul(L::load(w.add(i))).store(out.add(i));
        }
        if whole < n {
            let (x, w) = (x.add(whole), w.add(whole));
            let y = load_rest::<L>(x, n - whole).mul(factor).mul(load_rest::<L>(w, n - whole));
            store_rest(y, out.add(whole), n - whole);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn softmax<L: Lanes>(x: *const f32, out: *mut f32, n: usize) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(LANES) {
            top = L::load(x.add(i)).max(top);
        }
        let mut top = top.greatest();
        for i in whole..n {
            top = if *x.add(i) > top { *x.add(i) } else { top };
        }
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let e = exp(L::load(x.add(i)).sub(L::splat(top)));
            e.store(out.add(i));
            sum = sum.add(e);
        }
        if whole < n {
            let e = exp(load_rest::<L>(x.add(whole), n - whole).sub(L::splat(top)));
            store_rest(e, out.add(whole), n - whole);
            // Only what belongs to the row counts; the other lanes add nothing.
            sum = sum.add(load_rest::<L>(out.add(whole), n - whole));
        }
        let total = sum.sum();
        for i in (0..whole).step_by(LANES) {
            L::load(out.add(i)).div(L::splat(total)).store(out.add(i));
        }
        for i in whole..n {
            *out.add(i) /= total;
        }
    }
}

/// Two passes: the greatest value and whether `x * 0` is 0 everywhere (it is NaN for infinities
/// and NaNs), then the first place where it stands.
#[inline(always)]
pub(super) unsafe fn argmax<L: Lanes>(x: *const f32, n: usize) -> Argmax {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        let mut wrong = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let x = L::load(x.add(i));
            top = x.max(top);
            wrong = wrong.add(x.sub(x));
        }
        let (mut top, mut wrong) = (top.greatest(), wrong.sum());
        for i in whole..n {
            let x = *x.add(i);
            top = if x > top { x } else { top };
            wrong += x * 0.0;
        }
        let mut index = 0;
        // By groups first, so that the search runs at the speed of vectors.
        const GROUP: usize = 16 * LANES;
        while index + GROUP <= n {
            let mut of_group = L::load(x.add(index));
            for i in (LANES..GROUP).step_by(LANES) {
                of_group = L::load(x.add(index + i)).max(of_group);
            }
            if of_group.greatest() == top {
                break;
            }
            index += GROUP;
        }
        while index + 1 < n && *x.add(index) != top {
            index += 1;
        }
        Argmax { index, finite: wrong == 0.0 }
    }
}
