//! AVX2: a tile's rows are two halves of eight lanes, and with AVX-VNNI they meet the activations
//! in one instruction, as in AVX-512.
//!
//! Without it, `vpmaddubsw` multiplies u8 codes by i8 activations and adds neighbouring pairs in
//! i16, where it saturates, and `vpmaddwd` by ones adds the pairs in i32. So that nothing ever
//! saturates, the number of products added in i16 follows from the codes' width:
//!
//! ```text
//! bits   greatest pair         fits     so
//! 1-5    2 *  31 * 127 =  7874  4 times  four quads are added in i16, then widened
//! 6      2 *  63 * 127 = 16002  twice    two quads
//! 8      2 * 128 * 127 = 32512  once     codes count as code - 128; their sign goes to the
//!                                        activation, as |w| * (sign(w) * x)
//! ```

use std::arch::x86_64::*;

use super::{Kernels, Simd, float_kernels, kernels, ops, word_kernels};
use crate::cpu::matmul::words::Words;

/// AVX2, `VNNI` with the dot product of AVX-VNNI.
#[derive(Clone, Copy)]
struct Avx2<const VNNI: bool>;

kernels! {
    #[target_feature(enable = "avx2,fma,f16c")]
    BYTE_KERNELS, Avx2<false>, [4 2 1]
}

word_kernels! {
    #[target_feature(enable = "avx2,fma,f16c")]
    WORD_KERNELS, Avx2<false>, 4 of 1, 2
}

float_kernels! {
    #[target_feature(enable = "avx2,fma,f16c")]
    FLOAT_KERNELS, Avx2<false>, [2] by 6 of 3, [2] by 4 of 1
}

pub(in crate::cpu) static KERNELS: Kernels =
    Kernels { words: Some(&WORD_KERNELS), floats: Some(&FLOAT_KERNELS), ..BYTE_KERNELS };

kernels! {
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    VNNI_BYTE_KERNELS, Avx2<true>, [4 2 1]
}

word_kernels! {
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    VNNI_WORD_KERNELS, Avx2<true>, 4 of 1, 2
}

pub(in crate::cpu) static VNNI_KERNELS: Kernels =
    Kernels { words: Some(&VNNI_WORD_KERNELS), floats: Some(&FLOAT_KERNELS), ..VNNI_BYTE_KERNELS };

impl<const VNNI: bool> Words for Avx2<VNNI> {
    ops! {
        fn words(x: __m256i, zero: i32) -> [__m256i; 2] {
            let low = _mm256_set1_epi16(0xff);
            let zero = _mm256_set1_epi16(zero as i16);
            let (even, odd) = (_mm256_and_si256(x, low), _mm256_srli_epi16::<8>(x));
            [_mm256_sub_epi16(even, zero), _mm256_sub_epi16(odd, zero)]
        }
        fn both(at: *const u8) -> __m256i {
            let x = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()));
            _mm256_blend_epi16::<0b1010_1010>(x, _mm256_slli_epi32::<16>(x))
        }
        fn mul_words(x: __m256i, y: __m256i) -> __m256i { _mm256_mullo_epi16(x, y) }
        fn store_words(at: *mut u8, x: __m256i) { _mm256_storeu_si256(at.cast(), x) }
        fn dot_words(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            if VNNI {
                _mm256_dpwssd_avx_epi32(acc, w, x)
            } else {
                _mm256_add_epi32(acc, _mm256_madd_epi16(w, x))
            }
        }
    }
}

/// The four bytes at quad `i` of `x` in every lane.
#[inline(always)]
unsafe fn quad(x: *const u8, i: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().add(i).read_unaligned()) }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const LANES: usize = 8;
    const BIAS: i32 = if VNNI { 0 } else { 128 };
    type I = __m256i;
    type F = __m256;

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(mut acc: __m256i, codes: [__m256i; 4], x: *const u8) -> __m256i {
        // SAFETY: the caller has the target features, and 16 bytes are at `x`.
        unsafe {
            if VNNI {
                for (i, codes) in codes.into_iter().enumerate() {
                    acc = _mm256_dpbusd_avx_epi32(acc, codes, quad(x, i));
                }
                return acc;
            }
            let ones = _mm256_set1_epi16(1);
            let [a, b, c, d] = if BITS == 8 {
                let mut pairs = codes;
                for (i, w) in pairs.iter_mut().enumerate() {
                    let signed = _mm256_xor_si256(*w, _mm256_set1_epi8(-128));
                    let x = _mm256_sign_epi8(quad(x, i), signed);
                    *w = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(signed), x), ones);
                }
                let [a, b, c, d] = pairs;
                let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
                return _mm256_add_epi32(acc, sum);
            } else {
                let mut pairs = codes;
                for (i, w) in pairs.iter_mut().enumerate() {
                    *w = _mm256_maddubs_epi16(*w, quad(x, i));
                }
                pairs
            };
            let (low, high) = (_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
            if BITS <= 5 {
                let sum = _mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
                _mm256_add_epi32(acc, sum)
            } else {
                let (low, high) = (_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
                _mm256_add_epi32(acc, _mm256_add_epi32(low, high))
            }
        }
    }

    ops! {
        fn set(x: i32) -> __m256i { _mm256_set1_epi32(x) }
        fn load(at: *const u8) -> __m256i { _mm256_loadu_si256(at.cast()) }
        fn shift(x: __m256i, right: i32) -> __m256i {
            match right {
                -4 => _mm256_slli_epi32::<4>(x),
                -3 => _mm256_slli_epi32::<3>(x),
                -2 => _mm256_slli_epi32::<2>(x),
                -1 => _mm256_slli_epi32::<1>(x),
                1 => _mm256_srli_epi32::<1>(x),
                2 => _mm256_srli_epi32::<2>(x),
                3 => _mm256_srli_epi32::<3>(x),
                4 => _mm256_srli_epi32::<4>(x),
                5 => _mm256_srli_epi32::<5>(x),
                6 => _mm256_srli_epi32::<6>(x),
                7 => _mm256_srli_epi32::<7>(x),
                _ => x,
            }
        }
        fn mask(x: __m256i, byte: u8) -> __m256i {
            _mm256_and_si256(x, _mm256_set1_epi8(byte.cast_signed()))
        }
        fn or(x: __m256i, y: __m256i) -> __m256i { _mm256_or_si256(x, y) }
        fn table(at: *const u8) -> __m256i { _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast())) }
        fn lookup(table: __m256i, x: __m256i) -> __m256i { _mm256_shuffle_epi8(table, x) }
        fn join(high: __m256i, low: __m256i) -> __m256i {
            let high = _mm256_sub_epi32(_mm256_slli_epi32::<8>(high), high);
            _mm256_add_epi32(high, low)
        }
        fn mul_i8(x: __m256i, at: *const u8) -> __m256i {
            _mm256_mullo_epi32(x, _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
        }
        fn float(x: __m256i) -> __m256 { _mm256_cvtepi32_ps(x) }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load_f32(at: *const f32) -> __m256 { _mm256_loadu_ps(at) }
        fn load_f16(at: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
        fn even(x: __m256i) -> __m256 { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)) }
        fn odd(x: __m256i) -> __m256 {
            _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(!0xffff)))
        }
        fn load_i8(at: *const u8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
        }
        fn load_u8(at: *const u8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
        }
        fn load_nibbles(at: *const u8) -> (__m256, __m256) {
            let x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            let low = _mm256_and_si256(x, _mm256_set1_epi32(15));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(x)))
        }
        fn load_e8m0(at: *const u8) -> __m256 {
            let e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            let one = _mm256_set1_epi32(1);
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, one));
            // Where that is no normal number, only the fraction's highest bit or the next is set.
            let small = _mm256_slli_epi32::<21>(_mm256_add_epi32(_mm256_min_epi32(e, one), one));
            _mm256_castsi256_ps(_mm256_max_epi32(normal, small))
        }
        fn store(at: *mut f32, x: __m256) { _mm256_storeu_ps(at, x) }
        fn add(x: __m256, y: __m256) -> __m256 { _mm256_add_ps(x, y) }
        fn mul(x: __m256, y: __m256) -> __m256 { _mm256_mul_ps(x, y) }
        fn fma(x: __m256, y: __m256, z: __m256) -> __m256 { _mm256_fmadd_ps(x, y, z) }
        fn max_bits(max: __m256i, x: __m256) -> __m256i {
            let bits = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX));
            _mm256_max_epi32(max, bits)
        }
        fn max_across(x: __m256i) -> i32 {
            let x = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_max_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
            _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
        }
        fn store_i8(at: *mut u8, x: __m256) -> i32 {
            let x = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let words = _mm_packs_epi32(low, high);
            _mm_storel_epi64(at.cast(), _mm_packs_epi16(words, words));
            let sum = _mm_add_epi32(low, high);
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
            _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
        }
        fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
