//! Sixteen f32 at once: the vocabulary of the float routines, and the functions made from it.
//!
//! Every routine that is not a matmul (spans, attention) is written once over [`Lanes`] and
//! inlined into `#[target_feature]` functions. Sixteen lanes are one AVX-512 register, two AVX
//! registers, four NEON registers, or an array (simba's `AutoF32x16`, the portable one). Because the count is the same
//! everywhere, so are the partial sums of a reduction; because multiplication and addition fuse
//! where [`Lanes::fma`] says so and nowhere else, all instruction sets give the same bits.
//!
//! [`exp`] and [`tanh`] are our own: reduce by powers of two, then a polynomial in fused steps.
//! [`expm1_parts`] holds both. Only NaNs may differ between instruction sets, in their payload.

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// How many.
pub(super) const LANES: usize = 16;

/// Adding and taking away this rounds to whole numbers and leaves them in the low bits: 1.5 · 2²³.
pub(super) const ROUND: f32 = 12_582_912.0;

/// Work in a function of its own.
pub(super) trait Work {
    /// # Safety
    /// The processor has the instruction set of `L`, and what the work itself asks for holds.
    unsafe fn run<L: Lanes>(self);
}

/// Sixteen f32.
///
/// # Safety
/// Of every function: the processor has the instruction set of the implementation, and pointers
/// are valid for sixteen elements (aligned as their type, no more).
pub(super) trait Lanes: Copy {
    /// How many sums there are registers for, beside their operands.
    const SUMS: usize;
    /// Runs the work in a function that has the target features and is not inlined.
    unsafe fn outline(work: impl Work);
    unsafe fn load(p: *const f32) -> Self;
    /// From IEEE half precision.
    unsafe fn load_half(p: *const u16) -> Self;
    unsafe fn load_i8(p: *const i8) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Asks for the cache line there, which need not exist.
    unsafe fn prefetch(p: *const u8);
    /// To the nearest half, ties to even.
    unsafe fn store_half(self, p: *mut u16);
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// `if self > b { self } else { b }`.
    unsafe fn max(self, b: Self) -> Self;
    /// `if self < b { self } else { b }`.
    unsafe fn min(self, b: Self) -> Self;
    /// `if self < b { yes } else { no }`.
    unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `b`, for a `self` that is not negative.
    unsafe fn with_sign(self, b: Self) -> Self;
    /// `self * 2^k` for a whole `k` in -254..=252, given as `k + ROUND`; in two steps, so that
    /// neither factor leaves the range.
    unsafe fn times_power(self, k: Self) -> Self;

    /// Each lane and the one `N` away, a power of two up to 8, change places.
    unsafe fn swap<const N: usize>(self) -> Self;
    /// The first lane.
    unsafe fn first(self) -> f32;

    /// The sum of the lanes, each half onto the other.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.add(self.swap::<8>());
            let x = x.add(x.swap::<4>());
            let x = x.add(x.swap::<2>());
            x.add(x.swap::<1>()).first()
        }
    }

    /// The greatest lane.
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.max(self.swap::<8>());
            let x = x.max(x.swap::<4>());
            let x = x.max(x.swap::<2>());
            x.max(x.swap::<1>()).first()
        }
    }
}

/// `e^r - 1` and `k + ROUND` where `x = k ln 2 + r`: `e^x = 2^k (1 + e^r - 1)`.
#[inline(always)]
unsafe fn expm1_parts<L: Lanes>(x: L) -> (L, L) {
    // ln 2 in two parts, the first with so few digits that its product with k is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller's promise.
    unsafe {
        let k = x.fma(L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
        let whole = k.sub(L::splat(ROUND));
        let r = whole.fma(L::splat(-LN2_HIGH), x);
        let r = whole.fma(L::splat(-LN2_LOW), r);
        // Taylor's series to the seventh power: |r| <= ln 2 / 2, where the rest is 5e-9.
        let mut p = L::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
            p = p.fma(r, L::splat(c));
        }
        (p.fma(r.mul(r), r), k)
    }
}

/// `e^x`, to 2 units in the last place; 0 where that is hardly a normal number or less (processors
/// take a hundred times as long for the numbers below), infinity above the greatest.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (L::splat(-87.0), L::splat(89.0));
        // Written so that NaN passes.
        let (p, k) = expm1_parts(high.min(low.max(x)));
        x.if_less(low, L::splat(0.0), p.add(L::splat(1.0)).times_power(k))
    }
}

/// `tanh x`, to 4 units in the last place: `m / (m + 2)` with `m = e^2|x| - 1`, which keeps all
/// digits near 0.
#[inline(always)]
pub(super) unsafe fn tanh<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let a = x.abs();
        // From here on the result is 1.
        let far = L::splat(10.0);
        let a = far.min(a);
        let (p, k) = expm1_parts(a.add(a));
        let power = L::splat(1.0).times_power(k);
        let m = power.fma(p, power.sub(L::splat(1.0)));
        m.div(m.add(L::splat(2.0))).with_sign(x)
    }
}

/// Puts a function generic over [`Lanes`] into a function with the target features of each
/// instruction set, and calls the one of an [`Isa`](super::simd::Isa), in an unsafe block.
macro_rules! by_isa {
    ($isa:expr, $body:ident($($arg:ident: $ty:ty),*) with ($($value:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: the caller's promise; this function has the target features.
            unsafe { $body::<$crate::cpu::lanes::x86::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn avx512($($arg: $ty),*) {
            // SAFETY: the caller's promise; this function has the target features.
            unsafe { $body::<$crate::cpu::lanes::x86::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon")]
        unsafe fn neon($($arg: $ty),*) {
            // SAFETY: the caller's promise; this function has the target features.
            unsafe { $body::<$crate::cpu::lanes::neon::Neon>($($arg),*) }
        }
        match $isa {
            $crate::cpu::simd::Isa::Scalar => {
                $body::<simba::simd::AutoF32x16>($($value),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx2 | $crate::cpu::simd::Isa::AvxVnni => avx2($($value),*),
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx512 | $crate::cpu::simd::Isa::Avx512Bf16 => avx512($($value),*),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::Neon
            | $crate::cpu::simd::Isa::Dotprod
            | $crate::cpu::simd::Isa::I8mm => neon($($value),*),
        }
    }};
}
pub(super) use by_isa;
