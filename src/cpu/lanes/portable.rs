//! An array of sixteen, of simba's: what every other instruction set is tested against.

use simba::simd::{AutoF32x16, SimdPartialOrd, SimdValue};

use super::{Lanes, ROUND, Work};

/// Lane by lane.
#[inline(always)]
fn each(a: AutoF32x16, b: AutoF32x16, f: impl Fn(f32, f32) -> f32) -> AutoF32x16 {
    let mut out = a;
    for (out, b) in out.0.iter_mut().zip(b.0) {
        *out = f(*out, b);
    }
    out
}

// Out of line wherever sixteen lanes take more than a few instructions: without a fused multiply-add
// of the processor's each lane is a call, and inlined into every routine they take minutes to compile.
impl Lanes for AutoF32x16 {
    const SUMS: usize = 1;
    unsafe fn outline(work: impl Work) {
        #[inline(never)]
        unsafe fn run(work: impl Work) {
            // SAFETY: the caller's promise.
            unsafe { work.run::<AutoF32x16>() }
        }
        // SAFETY: the caller's promise.
        unsafe { run(work) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise; `AutoSimd` is a transparent wrapper of an array.
        unsafe { p.cast::<AutoF32x16>().read_unaligned() }
    }
    #[inline(never)]
    unsafe fn load_half(p: *const u16) -> Self {
        let mut out = <Self as SimdValue>::splat(0.0);
        for (i, out) in out.0.iter_mut().enumerate() {
            // SAFETY: sixteen elements are valid.
            *out = half::f16::from_bits(unsafe { *p.add(i) }).to_f32();
        }
        out
    }
    #[inline(never)]
    unsafe fn load_i8(p: *const i8) -> Self {
        let mut out = <Self as SimdValue>::splat(0.0);
        for (i, out) in out.0.iter_mut().enumerate() {
            // SAFETY: sixteen elements are valid.
            *out = f32::from(unsafe { *p.add(i) });
        }
        out
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { p.cast::<AutoF32x16>().write_unaligned(self) }
    }
    #[inline(never)]
    unsafe fn store_half(self, p: *mut u16) {
        for (i, x) in self.0.into_iter().enumerate() {
            // SAFETY: sixteen elements are valid.
            unsafe { *p.add(i) = half::f16::from_f32(x).to_bits() };
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        <Self as SimdValue>::splat(x)
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self + b
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self - b
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self * b
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self / b
    }
    #[inline(never)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        let mut out = self;
        for (out, (b, c)) in out.0.iter_mut().zip(b.0.into_iter().zip(c.0)) {
            *out = out.mul_add(b, c);
        }
        out
    }
    #[inline(never)]
    unsafe fn max(self, b: Self) -> Self {
        each(self, b, |a, b| if a > b { a } else { b })
    }
    #[inline(never)]
    unsafe fn min(self, b: Self) -> Self {
        each(self, b, |a, b| if a < b { a } else { b })
    }
    #[inline(never)]
    unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self {
        yes.select(self.simd_lt(b), no)
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        each(self, self, |a, _| a.abs())
    }
    #[inline(never)]
    unsafe fn with_sign(self, b: Self) -> Self {
        each(self, b, f32::copysign)
    }
    #[inline(never)]
    unsafe fn times_power(self, k: Self) -> Self {
        each(self, k, |x, k| {
            let k = (k.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            let half = k >> 1;
            let power = |k: i32| f32::from_bits((k.wrapping_add(127) << 23) as u32);
            x * power(half) * power(k.wrapping_sub(half))
        })
    }
    #[inline(always)]
    unsafe fn swap<const N: usize>(self) -> Self {
        let mut out = self;
        for (i, &x) in self.0.iter().enumerate() {
            out.0[i ^ N] = x;
        }
        out
    }
    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self.0[0]
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
