//! Sixteen f32 at once: the vocabulary of the float routines, and the functions made from it.
//!
//! Every routine that is not a matmul (spans, attention) is written once over [`Lanes`] and
//! inlined into `#[target_feature]` functions. Sixteen lanes are one AVX-512 register, two AVX
//! registers, or an array (simba's `AutoF32x16`, the portable one). Because the count is the same
//! everywhere, so are the partial sums of a reduction; because multiplication and addition fuse
//! where [`Lanes::fma`] says so and nowhere else, all instruction sets give the same bits.
//!
//! [`exp`] and [`tanh`] are our own: reduce by powers of two, then a polynomial in fused steps.
//! [`expm1_parts`] holds both. Only NaNs may differ between instruction sets, in their payload.

use simba::simd::{AutoF32x16, SimdPartialOrd, SimdValue};

/// How many.
pub(super) const LANES: usize = 16;

/// Adding and taking away this rounds to whole numbers and leaves them in the low bits: 1.5 · 2²³.
const ROUND: f32 = 12_582_912.0;

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
    unsafe fn store(self, p: *mut f32);
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
    /// `if self < b { yes } else { no }`.
    unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `b`, for a `self` that is not negative.
    unsafe fn with_sign(self, b: Self) -> Self;
    /// `self * 2^k` for a whole `k` in -254..=252, given as `k + ROUND`; in two steps, so that
    /// neither factor leaves the range.
    unsafe fn times_power(self, k: Self) -> Self;

    /// The sum of the lanes, each half onto the other.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.fold(|a, b| a + b) }
    }

    /// The greatest lane.
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.fold(|a, b| if a > b { a } else { b }) }
    }

    #[inline(always)]
    unsafe fn fold(self, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut x = [0.0f32; LANES];
        // SAFETY: the array has sixteen elements.
        unsafe { self.store(x.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] = join(x[i], x[i + half]);
            }
        }
        x[0]
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

/// `e^x`, to 2 units in the last place; 0 below the smallest number, infinity above the greatest.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (L::splat(-104.5), L::splat(89.0));
        // Written so that NaN passes.
        let x = x.if_less(low, low, x);
        let x = high.if_less(x, high, x);
        let (p, k) = expm1_parts(x);
        p.add(L::splat(1.0)).times_power(k)
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
        let a = far.if_less(a, far, a);
        let (p, k) = expm1_parts(a.add(a));
        let power = L::splat(1.0).times_power(k);
        let m = power.fma(p, power.sub(L::splat(1.0)));
        m.div(m.add(L::splat(2.0))).with_sign(x)
    }
}

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
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    //! The registers of x86-64.

    use super::{Lanes, ROUND, Work};
    use std::arch::x86_64::*;

    /// Two AVX registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    macro_rules! both {
        ($f:ident, $($x:expr),*) => {
            // SAFETY: the caller's promise that the processor has AVX2, FMA and F16C.
            unsafe { Avx2($f($($x.0),*), $f($($x.1),*)) }
        };
    }

    #[inline(always)]
    unsafe fn power(k: __m256i) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                k,
                _mm256_set1_epi32(127),
            )))
        }
    }

    #[inline(always)]
    unsafe fn times_power(x: __m256, k: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let bias = _mm256_set1_epi32(ROUND.to_bits() as i32);
            let k = _mm256_sub_epi32(_mm256_castps_si256(k), bias);
            let half = _mm256_srai_epi32::<1>(k);
            let x = _mm256_mul_ps(x, power(half));
            _mm256_mul_ps(x, power(_mm256_sub_epi32(k, half)))
        }
    }

    #[inline(always)]
    unsafe fn if_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    unsafe fn with_sign(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0), b)) }
    }

    impl Lanes for Avx2 {
        const SUMS: usize = 6;
        unsafe fn outline(work: impl Work) {
            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline(never)]
            unsafe fn run(work: impl Work) {
                // SAFETY: the caller's promise.
                unsafe { work.run::<Avx2>() }
            }
            // SAFETY: the caller's promise.
            unsafe { run(work) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_half(p: *const u16) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let (a, b) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast()));
                Avx2(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b))
            }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_half(self, p: *mut u16) {
            // SAFETY: the caller's promise.
            unsafe {
                _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
                let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
                _mm_storeu_si128(p.add(8).cast(), high);
            }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            both!(_mm256_add_ps, self, b)
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            both!(_mm256_sub_ps, self, b)
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            both!(_mm256_mul_ps, self, b)
        }
        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            both!(_mm256_div_ps, self, b)
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            both!(_mm256_fmadd_ps, self, b, c)
        }
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            both!(_mm256_max_ps, self, b)
        }
        #[inline(always)]
        unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self {
            both!(if_less, self, b, yes, no)
        }
        #[inline(always)]
        unsafe fn abs(self) -> Self {
            both!(abs, self)
        }
        #[inline(always)]
        unsafe fn with_sign(self, b: Self) -> Self {
            both!(with_sign, self, b)
        }
        #[inline(always)]
        unsafe fn times_power(self, k: Self) -> Self {
            both!(times_power, self, k)
        }
    }

    /// One AVX-512 register. Needs AVX-512 F alone.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    macro_rules! one {
        ($f:ident, $($x:expr),*) => {
            // SAFETY: the caller's promise that the processor has AVX-512 F.
            unsafe { Avx512($f($($x.0),*)) }
        };
    }

    #[inline(always)]
    unsafe fn power_512(k: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
                k,
                _mm512_set1_epi32(127),
            )))
        }
    }

    impl Lanes for Avx512 {
        const SUMS: usize = 16;
        unsafe fn outline(work: impl Work) {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            #[inline(never)]
            unsafe fn run(work: impl Work) {
                // SAFETY: the caller's promise.
                unsafe { work.run::<Avx512>() }
            }
            // SAFETY: the caller's promise.
            unsafe { run(work) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Avx512(_mm512_loadu_ps(p)) }
        }
        #[inline(always)]
        unsafe fn load_half(p: *const u16) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn store_half(self, p: *mut u16) {
            // SAFETY: the caller's promise.
            unsafe {
                let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
                _mm256_storeu_si256(p.cast(), halves);
            }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Avx512(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            one!(_mm512_add_ps, self, b)
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            one!(_mm512_sub_ps, self, b)
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            one!(_mm512_mul_ps, self, b)
        }
        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            one!(_mm512_div_ps, self, b)
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            one!(_mm512_fmadd_ps, self, b, c)
        }
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            one!(_mm512_max_ps, self, b)
        }
        #[inline(always)]
        unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0);
                Avx512(_mm512_mask_blend_ps(less, no.0, yes.0))
            }
        }
        #[inline(always)]
        unsafe fn abs(self) -> Self {
            one!(_mm512_abs_ps, self)
        }
        #[inline(always)]
        unsafe fn with_sign(self, b: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let sign = _mm512_castps_si512(_mm512_set1_ps(-0.0));
                let sign = _mm512_and_si512(sign, _mm512_castps_si512(b.0));
                let bits = _mm512_or_si512(sign, _mm512_castps_si512(self.0));
                Avx512(_mm512_castsi512_ps(bits))
            }
        }
        #[inline(always)]
        unsafe fn times_power(self, k: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let bias = _mm512_set1_epi32(ROUND.to_bits() as i32);
                let k = _mm512_sub_epi32(_mm512_castps_si512(k.0), bias);
                let half = _mm512_srai_epi32::<1>(k);
                let x = _mm512_mul_ps(self.0, power_512(half));
                Avx512(_mm512_mul_ps(x, power_512(_mm512_sub_epi32(k, half))))
            }
        }
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
        match $isa {
            $crate::cpu::simd::Isa::Scalar => {
                $body::<simba::simd::AutoF32x16>($($value),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx2 | $crate::cpu::simd::Isa::AvxVnni => avx2($($value),*),
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx512 => avx512($($value),*),
        }
    }};
}
pub(super) use by_isa;
