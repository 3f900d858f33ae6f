//! Routines over spans of f32: norms, elementwise functions, rope, conversions, argmax.
//!
//! Each is written once over [`Lanes`] and stands in a table an instruction set,
//! [`SpanKernels`]; a program looks its table up once. The rest of a span that fills no vector is
//! copied into one, so an element's bits depend neither on where a span was cut nor on the
//! instruction set. Reductions keep sixteen partial sums, one a lane, whatever the registers.
//!
//! # Safety of every kernel
//! The processor has the table's instruction set. Pointers are valid for `n` elements, aligned as
//! their type. `out` is either exactly one of the inputs or overlaps none of them.

use super::lanes::{LANES, Lanes, exp, tanh};
use super::simd::Isa;
use crate::graph::op::NORMAL_TAIL;
use crate::graph::{RopeLayout, UnaryKind};
use simba::simd::AutoF32x16;

/// What [`SpanKernels::argmax`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Argmax {
    /// The greatest element, the lowest index of equals. Means nothing unless all are finite.
    pub index: usize,
    /// Whether every element is finite.
    pub finite: bool,
}

/// Declares the table's type and, for an instruction set, its functions and the table.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {
        /// The kernels of one instruction set. What must hold of pointers is said at the
        /// [module](self).
        pub struct SpanKernels {
            /// Which one, or the one without integer dot products, which add nothing to floats.
            pub isa: Isa,
            $($(#[$doc])* pub $name: unsafe fn($($arg: $ty),*) $(-> $out)?,)*
        }

        static SCALAR: SpanKernels =
            SpanKernels { isa: Isa::Scalar, $($name: $name::<AutoF32x16>),* };

        #[cfg(target_arch = "x86_64")]
        static AVX2: SpanKernels = {
            $(#[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { super::span::$name::<super::lanes::x86::Avx2>($($arg),*) }
            })*
            SpanKernels { isa: Isa::Avx2, $($name),* }
        };

        #[cfg(target_arch = "x86_64")]
        static AVX512: SpanKernels = {
            $(#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { super::span::$name::<super::lanes::x86::Avx512>($($arg),*) }
            })*
            SpanKernels { isa: Isa::Avx512, $($name),* }
        };

        #[cfg(target_arch = "aarch64")]
        static NEON: SpanKernels = {
            $(#[target_feature(enable = "neon")]
            unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { super::span::$name::<super::lanes::neon::Neon>($($arg),*) }
            })*
            SpanKernels { isa: Isa::Neon, $($name),* }
        };
    };
}

kernels! {
    /// `x / sqrt(mean(x²) + eps) * w` over one row; without a `w` if it is null.
    rms_norm(x: *const f32, w: *const f32, eps: f32, out: *mut f32, n: usize);
    /// `(x - mean(x)) / sqrt(var(x) + eps) * w + b` over one row; without `w` or `b` if null.
    layer_norm(x: *const f32, w: *const f32, b: *const f32, eps: f32, out: *mut f32, n: usize);
    /// `a + b`.
    add(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// `a * b`.
    mul(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// `a - b`.
    sub(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// `a / b`.
    div(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// The sum of `count` spans of `n`, each times its weight, in their order; `out` is apart.
    mix(x: *const f32, w: *const f32, count: usize, out: *mut f32, n: usize);
    /// `x / Σ x` over one row.
    normalize(x: *const f32, out: *mut f32, n: usize);
    /// `c * x`.
    scale(x: *const f32, c: f32, out: *mut f32, n: usize);
    /// `x`.
    copy(x: *const f32, out: *mut f32, n: usize);
    /// The function at each element.
    unary(kind: UnaryKind, x: *const f32, out: *mut f32, n: usize);
    /// The function at each element of `a`, times that of `b`.
    gated(kind: UnaryKind, a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// Turns the first `dim` elements of each of `heads` heads that lie one after another; the
    /// rest is copied. `turn` is the row of a [`RopeTable`](super::rope::RopeTable).
    rope(x: *const f32, out: *mut f32, turn: *const f32, heads: usize, head_dim: usize, dim: usize,
        layout: RopeLayout);
    /// To the nearest half, ties to even; infinity where a half cannot reach.
    to_f16(x: *const f32, out: *mut u16, n: usize);
    /// From half precision.
    from_f16(x: *const u16, out: *mut f32, n: usize);
    /// `e^(x - max) / Σ e^(x - max)` over one row.
    softmax(x: *const f32, out: *mut f32, n: usize);
    /// The greatest of `n > 0` elements.
    argmax(x: *const f32, n: usize) -> Argmax;
}

impl SpanKernels {
    /// The table of an instruction set.
    pub fn of(isa: Isa) -> &'static SpanKernels {
        match isa {
            Isa::Scalar => &SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => &AVX512,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::Dotprod | Isa::I8mm => &NEON,
        }
    }
}

/// A function of two elements. What has one argument ignores the second.
trait Map: Copy {
    /// # Safety
    /// The processor has the instruction set of `L`.
    unsafe fn at<L: Lanes>(self, a: L, b: L) -> L;
}

macro_rules! maps {
    ($($name:ident $(($c:ident: $ty:ty))? = |$a:ident, $b:tt| $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name$(($ty))?;
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

/// The `n < 16` elements at `p`, then zeros.
///
/// # Safety
/// `p` is valid for `n` elements; the processor has the instruction set of `L`.
#[inline(always)]
unsafe fn load_rest<L: Lanes>(p: *const f32, n: usize) -> L {
    let mut rest = [0.0f32; LANES];
    // SAFETY: the caller's promise; the array has sixteen elements.
    unsafe {
        std::ptr::copy_nonoverlapping(p, rest.as_mut_ptr(), n.min(LANES));
        L::load(rest.as_ptr())
    }
}

/// Stores the first `n < 16` lanes.
///
/// # Safety
/// `p` is valid for `n` elements; the processor has the instruction set of `L`.
#[inline(always)]
unsafe fn store_rest<L: Lanes>(x: L, p: *mut f32, n: usize) {
    let mut rest = [0.0f32; LANES];
    // SAFETY: as in `load_rest`.
    unsafe {
        x.store(rest.as_mut_ptr());
        std::ptr::copy_nonoverlapping(rest.as_ptr(), p, n.min(LANES));
    }
}

#[inline(always)]
unsafe fn map<L: Lanes, F: Map>(f: F, a: *const f32, b: *const f32, out: *mut f32, n: usize) {
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
unsafe fn add<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Add, a, b, out, n) }
}

#[inline(always)]
unsafe fn mul<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Mul, a, b, out, n) }
}

#[inline(always)]
unsafe fn sub<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Sub, a, b, out, n) }
}

#[inline(always)]
unsafe fn div<L: Lanes>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Div, a, b, out, n) }
}

#[inline(always)]
unsafe fn mix<L: Lanes>(x: *const f32, w: *const f32, count: usize, out: *mut f32, n: usize) {
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
unsafe fn normalize<L: Lanes>(x: *const f32, out: *mut f32, n: usize) {
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
unsafe fn layer_norm<L: Lanes>(
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
unsafe fn scale<L: Lanes>(x: *const f32, c: f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { map::<L, _>(Times(c), x, x, out, n) }
}

#[inline(always)]
unsafe fn copy<L: Lanes>(x: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise; `copy` allows the same span.
    unsafe { std::ptr::copy(x, out, n) }
}

#[inline(always)]
unsafe fn unary<L: Lanes>(kind: UnaryKind, x: *const f32, out: *mut f32, n: usize) {
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
            UnaryKind::Shift(c) => map::<L, _>(Shift(c), x, x, out, n),
            UnaryKind::Clamp(low, high) => {
                map::<L, _>(Low(low), x, x, out, n);
                map::<L, _>(High(high), out, out, out, n);
            }
        }
    }
}

#[inline(always)]
unsafe fn gated<L: Lanes>(kind: UnaryKind, a: *const f32, b: *const f32, out: *mut f32, n: usize) {
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
            UnaryKind::Shift(c) => map::<L, _>(Gated(Shift(c)), a, b, out, n),
            UnaryKind::Clamp(low, high) => map::<L, _>(Gated(Within(low, high)), a, b, out, n),
        }
    }
}

#[inline(always)]
unsafe fn rms_norm<L: Lanes>(x: *const f32, w: *const f32, eps: f32, out: *mut f32, n: usize) {
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

/// Plain loops: products and sums are rounded one by one as in the op's meaning, so the result is
/// the same to the bit, and the compiler finds the vectors.
#[inline(always)]
unsafe fn rope<L: Lanes>(
    x: *const f32,
    out: *mut f32,
    turn: *const f32,
    heads: usize,
    head_dim: usize,
    dim: usize,
    layout: RopeLayout,
) {
    let half = dim / 2;
    let (stride, apart) = match layout {
        RopeLayout::Neighbour => (2, 1),
        RopeLayout::Half => (1, half),
    };
    // SAFETY: the caller's promise: indices stay inside heads * head_dim, those of `turn` inside
    // dim; both elements of a pair are read before either is written.
    unsafe {
        for head in 0..heads {
            let (x, out) = (x.add(head * head_dim), out.add(head * head_dim));
            for i in 0..half {
                let (cos, sin) = (*turn.add(i), *turn.add(half + i));
                let (a, b) = (*x.add(i * stride), *x.add(i * stride + apart));
                *out.add(i * stride) = a * cos - b * sin;
                *out.add(i * stride + apart) = a * sin + b * cos;
            }
            for i in dim..head_dim {
                *out.add(i) = *x.add(i);
            }
        }
    }
}

#[inline(always)]
unsafe fn to_f16<L: Lanes>(x: *const f32, out: *mut u16, n: usize) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            L::load(x.add(i)).store_half(out.add(i));
        }
        if whole < n {
            let mut rest = [0u16; LANES];
            load_rest::<L>(x.add(whole), n - whole).store_half(rest.as_mut_ptr());
            std::ptr::copy_nonoverlapping(rest.as_ptr(), out.add(whole), n - whole);
        }
    }
}

#[inline(always)]
unsafe fn from_f16<L: Lanes>(x: *const u16, out: *mut f32, n: usize) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            L::load_half(x.add(i)).store(out.add(i));
        }
        if whole < n {
            let mut rest = [0u16; LANES];
            std::ptr::copy_nonoverlapping(x.add(whole), rest.as_mut_ptr(), n - whole);
            store_rest(L::load_half(rest.as_ptr()), out.add(whole), n - whole);
        }
    }
}

#[inline(always)]
unsafe fn softmax<L: Lanes>(x: *const f32, out: *mut f32, n: usize) {
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
unsafe fn argmax<L: Lanes>(x: *const f32, n: usize) -> Argmax {
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

#[cfg(test)]
mod tests;
