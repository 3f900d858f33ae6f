//! AVX-512: a tile's 16 rows are the 16 lanes of one register, and `vpdpbusd` multiplies four
//! codes of each by four activations that it broadcasts from memory itself.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Kernels, Simd, float_kernels, kernels, ops, word_kernels};
use crate::cpu::float::{FloatArgs, PAIRS, floats};
use crate::cpu::matmul::words::Words;

#[derive(Clone, Copy)]
struct Avx512;

kernels! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    BYTE_KERNELS, Avx512, [8 4 2 1]
}

word_kernels! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    WORD_KERNELS, Avx512, 4 of 2, 4
}

float_kernels! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    FLOAT_KERNELS, Avx512, [1 2] by 8 of 1
}

pub(in crate::cpu) static KERNELS: Kernels =
    Kernels { words: Some(&WORD_KERNELS), floats: Some(&FLOAT_KERNELS), ..BYTE_KERNELS };

/// With `vdpbf16ps` for BF16, and all else as without.
pub(in crate::cpu) static BF16_KERNELS: Kernels = {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn pairs<const ROWS: usize>(args: &FloatArgs) {
        // SAFETY: the caller's promise; this function has the target features.
        unsafe { floats::<Avx512, PAIRS, ROWS>(args) }
    }
    Kernels { pairs: Some(&[pairs::<8>, pairs::<4>, pairs::<2>, pairs::<1>]), ..KERNELS }
};

impl Words for Avx512 {
    ops! {
        fn words(x: __m512i, zero: i32) -> [__m512i; 2] {
            let low = _mm512_set1_epi16(0xff);
            let zero = _mm512_set1_epi16(zero as i16);
            let (even, odd) = (_mm512_and_si512(x, low), _mm512_srli_epi16::<8>(x));
            [_mm512_sub_epi16(even, zero), _mm512_sub_epi16(odd, zero)]
        }
        fn both(at: *const u8) -> __m512i {
            let x = _mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()));
            _mm512_mask_blend_epi16(0xaaaa_aaaa, x, _mm512_slli_epi32::<16>(x))
        }
        fn mul_words(x: __m512i, y: __m512i) -> __m512i { _mm512_mullo_epi16(x, y) }
        fn store_words(at: *mut u8, x: __m512i) { _mm512_storeu_si512(at.cast(), x) }
        fn dot_words(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
            _mm512_dpwssd_epi32(acc, w, x)
        }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const BIAS: i32 = 0;
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(mut acc: __m512i, codes: [__m512i; 4], x: *const u8) -> __m512i {
        let x = x.cast::<i32>();
        for (i, codes) in codes.into_iter().enumerate() {
            // SAFETY: the caller has the target features, and 16 bytes are at `x`.
            acc = unsafe {
                _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x.add(i).read_unaligned()))
            };
        }
        acc
    }

    ops! {
        fn set(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn load(at: *const u8) -> __m512i { _mm512_loadu_si512(at.cast()) }
        fn shift(x: __m512i, right: i32) -> __m512i {
            match right {
                -4 => _mm512_slli_epi32::<4>(x),
                -3 => _mm512_slli_epi32::<3>(x),
                -2 => _mm512_slli_epi32::<2>(x),
                -1 => _mm512_slli_epi32::<1>(x),
                1 => _mm512_srli_epi32::<1>(x),
                2 => _mm512_srli_epi32::<2>(x),
                3 => _mm512_srli_epi32::<3>(x),
                4 => _mm512_srli_epi32::<4>(x),
                5 => _mm512_srli_epi32::<5>(x),
                6 => _mm512_srli_epi32::<6>(x),
                7 => _mm512_srli_epi32::<7>(x),
                _ => x,
            }
        }
        fn mask(x: __m512i, byte: u8) -> __m512i {
            _mm512_and_si512(x, _mm512_set1_epi8(byte.cast_signed()))
        }
        fn or(x: __m512i, y: __m512i) -> __m512i { _mm512_or_si512(x, y) }
        fn table(at: *const u8) -> __m512i { _mm512_broadcast_i32x4(_mm_loadu_si128(at.cast())) }
        fn lookup(table: __m512i, x: __m512i) -> __m512i { _mm512_shuffle_epi8(table, x) }
        fn join(high: __m512i, low: __m512i) -> __m512i {
            let high = _mm512_sub_epi32(_mm512_slli_epi32::<8>(high), high);
            _mm512_add_epi32(high, low)
        }
        fn mul_i8(x: __m512i, at: *const u8) -> __m512i {
            _mm512_mullo_epi32(x, _mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
        }
        fn float(x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load_f32(at: *const f32) -> __m512 { _mm512_loadu_ps(at) }
        fn load_f16(at: *const u8) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
        fn even(x: __m512i) -> __m512 { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)) }
        fn odd(x: __m512i) -> __m512 {
            _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(!0xffff)))
        }
        fn dot_pair(acc: __m512, w: __m512i, x: *const u8) -> __m512 {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            // SAFETY: vectors of bits either way.
            _mm512_dpbf16_ps(acc, transmute::<__m512i, __m512bh>(w), transmute::<__m512i, __m512bh>(x))
        }
        fn load_i8(at: *const u8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
        }
        fn load_u8(at: *const u8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
        }
        fn load_nibbles(at: *const u8) -> (__m512, __m512) {
            let x = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            let low = _mm512_and_si512(x, _mm512_set1_epi32(15));
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(x)))
        }
        fn load_e8m0(at: *const u8) -> __m512 {
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            let one = _mm512_set1_epi32(1);
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, one));
            // Where that is no normal number, only the fraction's highest bit or the next is set.
            let small = _mm512_slli_epi32::<21>(_mm512_add_epi32(_mm512_min_epi32(e, one), one));
            _mm512_castsi512_ps(_mm512_max_epi32(normal, small))
        }
        fn store(at: *mut f32, x: __m512) { _mm512_storeu_ps(at, x) }
        fn add(x: __m512, y: __m512) -> __m512 { _mm512_add_ps(x, y) }
        fn mul(x: __m512, y: __m512) -> __m512 { _mm512_mul_ps(x, y) }
        fn fma(x: __m512, y: __m512, z: __m512) -> __m512 { _mm512_fmadd_ps(x, y, z) }
        fn max_bits(max: __m512i, x: __m512) -> __m512i {
            let bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
            _mm512_max_epi32(max, bits)
        }
        fn max_across(x: __m512i) -> i32 { _mm512_reduce_max_epi32(x) }
        fn store_i8(at: *mut u8, x: __m512) -> i32 {
            let rounded = _mm512_cvtps_epi32(x);
            _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(rounded));
            _mm512_reduce_add_epi32(rounded)
        }
        fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
