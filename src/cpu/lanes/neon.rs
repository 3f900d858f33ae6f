//! The registers of AArch64.

use std::arch::aarch64::*;

use super::{Lanes, ROUND, Work};

/// Four NEON registers.
#[derive(Clone, Copy)]
pub struct Neon([float32x4_t; 4]);

/// A function at each register.
macro_rules! each {
    ($f:expr, $($x:expr),*) => {
        // SAFETY: the caller's promise that the processor has NEON.
        unsafe { Neon([$f($($x.0[0]),*), $f($($x.0[1]),*), $f($($x.0[2]),*), $f($($x.0[3]),*)]) }
    };
}

/// `yes` where `a < b`, else `no`: where either is NaN as well.
#[inline(always)]
unsafe fn if_less(
    a: float32x4_t,
    b: float32x4_t,
    yes: float32x4_t,
    no: float32x4_t,
) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vbslq_f32(vcltq_f32(a, b), yes, no) }
}

#[inline(always)]
unsafe fn power(k: int32x4_t) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(k, vdupq_n_s32(127)))) }
}

#[inline(always)]
unsafe fn times_power(x: float32x4_t, k: float32x4_t) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let bias = vdupq_n_s32(ROUND.to_bits() as i32);
        let k = vsubq_s32(vreinterpretq_s32_f32(k), bias);
        let half = vshrq_n_s32::<1>(k);
        let x = vmulq_f32(x, power(half));
        vmulq_f32(x, power(vsubq_s32(k, half)))
    }
}

impl Lanes for Neon {
    // Four registers each: 24, with eight left for operands.
    const SUMS: usize = 6;
    unsafe fn outline(work: impl Work) {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        unsafe fn run(work: impl Work) {
            // SAFETY: the caller's promise.
            unsafe { work.run::<Neon>() }
        }
        // SAFETY: the caller's promise.
        unsafe { run(work) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Neon([vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))])
        }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let a = vreinterpretq_f16_u16(vld1q_u16(p));
            let b = vreinterpretq_f16_u16(vld1q_u16(p.add(8)));
            Neon([
                vcvt_f32_f16(vget_low_f16(a)),
                vcvt_high_f32_f16(a),
                vcvt_f32_f16(vget_low_f16(b)),
                vcvt_high_f32_f16(b),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let x = vld1q_s8(p);
            let (a, b) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            Neon([
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))),
                vcvtq_f32_s32(vmovl_high_s16(a)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))),
                vcvtq_f32_s32(vmovl_high_s16(b)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        let [a, b, c, d] = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            vst1q_f32(p, a);
            vst1q_f32(p.add(4), b);
            vst1q_f32(p.add(8), c);
            vst1q_f32(p.add(12), d);
        }
    }
    #[inline(always)]
    unsafe fn store_half(self, p: *mut u16) {
        let [a, b, c, d] = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            let low = vcvt_high_f16_f32(vcvt_f16_f32(a), b);
            let high = vcvt_high_f16_f32(vcvt_f16_f32(c), d);
            vst1q_u16(p, vreinterpretq_u16_f16(low));
            vst1q_u16(p.add(8), vreinterpretq_u16_f16(high));
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise.
        Neon([unsafe { vdupq_n_f32(x) }; 4])
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        each!(vaddq_f32, self, b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        each!(vsubq_f32, self, b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        each!(vmulq_f32, self, b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        each!(vdivq_f32, self, b)
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // The instruction's sum comes first.
        each!(vfmaq_f32, c, self, b)
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // `fmax` has another answer for NaN.
        each!(|a, b| if_less(b, a, a, b), self, b)
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        each!(|a, b| if_less(a, b, a, b), self, b)
    }
    #[inline(always)]
    unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self {
        each!(if_less, self, b, yes, no)
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        each!(vabsq_f32, self)
    }
    #[inline(always)]
    unsafe fn with_sign(self, b: Self) -> Self {
        each!(|a, b| vbslq_f32(vdupq_n_u32(1 << 31), b, a), self, b)
    }
    #[inline(always)]
    unsafe fn times_power(self, k: Self) -> Self {
        each!(times_power, self, k)
    }
    #[inline(always)]
    unsafe fn swap<const N: usize>(self) -> Self {
        let [a, b, c, d] = self.0;
        match N {
            8 => Neon([c, d, a, b]),
            4 => Neon([b, a, d, c]),
            2 => each!(|x| vextq_f32::<2>(x, x), self),
            _ => each!(vrev64q_f32, self),
        }
    }
    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { vgetq_lane_f32::<0>(self.0[0]) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
