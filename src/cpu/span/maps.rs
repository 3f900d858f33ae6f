//! Functions of each element. What must hold of pointers is said at [the module above](super).

use super::{load_rest, store_rest};
use crate::cpu::lanes::{LANES, Lanes, exp, tanh};
use crate::graph::UnaryKind;
use crate::graph::op::NORMAL_TAIL;

/// A function of two elements. What has one argument ignores the second.
pub(super) trait Map: Copy {
    /// # Safety
    /// The processor has the instruction set of `L`.
    unsafe fn at<L: Lanes>(self, a: L, b: L) -> L;
}

macro_rules! maps {
    ($($name:ident $(($c:ident: $ty:ty))? = |$a:ident, $b:tt| $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        pub(super) struct $name$((pub(super) $ty))?;
        impl Map for $name {
            #[inline(always)]
            unsafe fn at<L: Lanes>(self, $a: L, $b: L) -> L {
                $(let $name($c) = self;)?
                // SAFETY: the caller's promise.
                unsafe { $body }
            }
        }
    )*};
}

/// √(2/π).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

maps! {
    Add = |a, b| a.add(b);
    Mul = |a, b| a.mul(b);
    Sub = |a, b| a.sub(b);
    Div = |a, b| a.div(b);
    Fma(c: f32) = |a, b| a.fma(L::splat(c), b);
    GeluErf = |a, _| {
        let t = L::splat(1.0).div(a.abs().fma(L::splat(0.25), L::splat(1.0)));
        let mut q = L::splat(NORMAL_TAIL[8]);
        for c in [7, 6, 5, 4, 3, 2, 1, 0] {
            q = q.fma(t, L::splat(NORMAL_TAIL[c]));
        }
        let tail = exp(a.mul(a).mul(L::splat(-0.5))).mul(q.mul(t));
        a.mul(a.if_less(L::splat(0.0), tail, L::splat(1.0).sub(tail)))
    };
    GeluQuick = |a, _| a.div(exp(a.mul(L::splat(-1.702))).add(L::splat(1.0)));
    ReluSquared = |a, _| {
        let a = a.if_less(L::splat(0.0), L::splat(0.0), a);
        a.mul(a)
    };
    Shift(c: f32) = |a, _| a.add(L::splat(c));
    Low(c: f32) = |a, _| a.if_less(L::splat(c), L::splat(c), a);
    High(c: f32) = |a, _| L::splat(c).if_less(a, L::splat(c), a);
    Times(c: f32) = |a, _| L::splat(c).mul(a);
    Silu = |a, _| a.div(exp(L::splat(0.0).sub(a)).add(L::splat(1.0)));
    Sigmoid = |a, _| L::splat(1.0).div(exp(L::splat(0.0).sub(a)).add(L::splat(1.0)));
    // (1 + tanh u) / 2 is 1 / (1 + e^-2u), which keeps its digits where tanh comes near -1.
    Gelu = |a, _| {
        let cubic = a.mul(a).fma(L::splat(0.044_715), L::splat(1.0)).mul(a);
        a.div(exp(cubic.mul(L::splat(-2.0 * SQRT_2_OVER_PI))).add(L::splat(1.0)))
    };
    Relu = |a, _| a.if_less(L::splat(0.0), L::splat(0.0), a);
    Tanh = |a, _| tanh(a);
    Exp = |a, _| exp(a);
    // max(a, 0) + ln(1 + u) with u = e^-|a|; ln(1 + u) is 2 atanh(s), s = u / (2 + u) <= 1/3, whose
    // series ends after the power of 15 with a rest of 2e-9.
    Softplus = |a, _| {
        let u = exp(L::splat(0.0).sub(a.abs()));
        let s = u.div(u.add(L::splat(2.0)));
        let square = s.mul(s);
        let mut p = L::splat(1.0 / 15.0);
        for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0] {
            p = p.fma(square, L::splat(c));
        }
        let positive = a.if_less(L::splat(0.0), L::splat(0.0), a);
        s.add(s).fma(p, positive)
    };
    Over(c: f32) = |a, _| L::splat(c).div(a);
    Softcap(c: f32) = |a, _| L::splat(c).mul(tanh(a.div(L::splat(c))));
}

/// A number between two others.
#[derive(Clone, Copy)]
struct Within(f32, f32);

impl Map for Within {
    #[inline(always)]
    unsafe fn at<L: Lanes>(self, a: L, b: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { High(self.1).at(Low(self.0).at(a, b), b) }
    }
}

/// A function of the first element, times the second.
#[derive(Clone, Copy)]
struct Gated<F>(F);

impl<F: Map> Map for Gated<F> {
    #[inline(always)]
    unsafe fn at<L: Lanes>(self, a: L, b: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { self.0.at(a, b).mul(b) }
    }
}

#[inline(always)]
pub(super) unsafe fn map<L: Lanes, F: Map>(
    f: F,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`, and each vector is read before it
    // is written.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            f.at(L::load(a.add(i)), L::load(b.add(i))).store(out.add(i));
        }
        if whole < n {
            let (a, b) = (load_rest::<L>(a.add(whole), n - whole), b.add(whole));
            store_rest(f.at(a, load_rest::<L>(b, n - whole)), out.add(whole), n - whole);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn add<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Add, a, b, out, n) }
}

#[inline(always)]
pub(super) unsafe fn mul<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Mul, a, b, out, n) }
}

#[inline(always)]
pub(super) unsafe fn sub<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Sub, a, b, out, n) }
}

#[inline(always)]
pub(super) unsafe fn div<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Div, a, b, out, n) }
}

#[inline(always)]
pub(super) unsafe fn mix<L: Lanes>(
    x: *const f32,
    w: *const f32,
    count: usize,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise: `count` spans and weights.
    unsafe {
        for i in 0..count {
            let (x, w) = (x.add(i * n), *w.add(i));
            if i == 0 {
                map::<L, _>(Times(w), x, x, out, n);
            } else {
                map::<L, _>(Fma(w), x, out, out, n);
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn scale<L: Lanes>(x: *const f32, c: f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Times(c), x, x, out, n) }
}

#[inline(always)]
pub(super) unsafe fn copy<L: Lanes>(x: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise; `copy` allows the same span.
    unsafe { std::ptr::copy(x, out, n) }
}

#[inline(always)]
pub(super) unsafe fn unary<L: Lanes>(kind: UnaryKind, x: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            UnaryKind::Silu => map::<L, _>(Silu, x, x, out, n),
            UnaryKind::Gelu => map::<L, _>(Gelu, x, x, out, n),
            UnaryKind::GeluErf => map::<L, _>(GeluErf, x, x, out, n),
            UnaryKind::GeluQuick => map::<L, _>(GeluQuick, x, x, out, n),
            UnaryKind::Relu => map::<L, _>(Relu, x, x, out, n),
            UnaryKind::ReluSquared => map::<L, _>(ReluSquared, x, x, out, n),
            UnaryKind::Sigmoid => map::<L, _>(Sigmoid, x, x, out, n),
            UnaryKind::Tanh => map::<L, _>(Tanh, x, x, out, n),
            UnaryKind::Scale(c) => map::<L, _>(Times(c), x, x, out, n),
            UnaryKind::Softcap(c) => map::<L, _>(Softcap(c), x, x, out, n),
            UnaryKind::Exp => map::<L, _>(Exp, x, x, out, n),
            UnaryKind::Softplus => map::<L, _>(Softplus, x, x, out, n),
            UnaryKind::Over(c) => map::<L, _>(Over(c), x, x, out, n),
            UnaryKind::Shift(c) => map::<L, _>(Shift(c), x, x, out, n),
            UnaryKind::Clamp(low, high) => {
                map::<L, _>(Low(low), x, x, out, n);
                map::<L, _>(High(high), out, out, out, n);
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn gated<L: Lanes>(
    kind: UnaryKind,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            UnaryKind::Silu => map::<L, _>(Gated(Silu), a, b, out, n),
            UnaryKind::Gelu => map::<L, _>(Gated(Gelu), a, b, out, n),
            UnaryKind::GeluErf => map::<L, _>(Gated(GeluErf), a, b, out, n),
            UnaryKind::GeluQuick => map::<L, _>(Gated(GeluQuick), a, b, out, n),
            UnaryKind::Relu => map::<L, _>(Gated(Relu), a, b, out, n),
            UnaryKind::ReluSquared => map::<L, _>(Gated(ReluSquared), a, b, out, n),
            UnaryKind::Sigmoid => map::<L, _>(Gated(Sigmoid), a, b, out, n),
            UnaryKind::Tanh => map::<L, _>(Gated(Tanh), a, b, out, n),
            UnaryKind::Scale(c) => map::<L, _>(Gated(Times(c)), a, b, out, n),
            UnaryKind::Softcap(c) => map::<L, _>(Gated(Softcap(c)), a, b, out, n),
            UnaryKind::Exp => map::<L, _>(Gated(Exp), a, b, out, n),
            UnaryKind::Softplus => map::<L, _>(Gated(Softplus), a, b, out, n),
            UnaryKind::Over(c) => map::<L, _>(Gated(Over(c)), a, b, out, n),
            UnaryKind::Shift(c) => map::<L, _>(Gated(Shift(c)), a, b, out, n),
            UnaryKind::Clamp(low, high) => map::<L, _>(Gated(Within(low, high)), a, b, out, n),
        }
    }
}
