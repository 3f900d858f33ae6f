//! The registers of x86-64.

use std::arch::x86_64::*;

use super::{Lanes, ROUND, Work};

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
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(k, _mm256_set1_epi32(127))))
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
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let b = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            Avx2(_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b))
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
    unsafe fn min(self, b: Self) -> Self {
        both!(_mm256_min_ps, self, b)
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
    #[inline(always)]
    unsafe fn swap<const N: usize>(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match N {
                8 => Avx2(self.1, self.0),
                4 => {
                    let halves = |x| _mm256_permute2f128_ps::<1>(x, x);
                    Avx2(halves(self.0), halves(self.1))
                }
                2 => Avx2(_mm256_permute_ps::<0x4e>(self.0), _mm256_permute_ps::<0x4e>(self.1)),
                _ => Avx2(_mm256_permute_ps::<0xb1>(self.0), _mm256_permute_ps::<0xb1>(self.1)),
            }
        }
    }
    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtss_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
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
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
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
    unsafe fn min(self, b: Self) -> Self {
        one!(_mm512_min_ps, self, b)
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
            // The instruction rounds once; of two steps the first is exact.
            let k = _mm512_sub_ps(k.0, _mm512_set1_ps(ROUND));
            Avx512(_mm512_scalef_ps(self.0, k))
        }
    }
    #[inline(always)]
    unsafe fn swap<const N: usize>(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.0;
            Avx512(match N {
                8 => _mm512_shuffle_f32x4::<0x4e>(x, x),
                4 => _mm512_shuffle_f32x4::<0xb1>(x, x),
                2 => _mm512_permute_ps::<0x4e>(x),
                _ => _mm512_permute_ps::<0xb1>(x),
            })
        }
    }
    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtss_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
