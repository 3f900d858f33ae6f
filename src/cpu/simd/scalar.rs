//! Plain Rust: what every other instruction set is tested against.

use half::f16;

use super::{Simd, kernels};
use crate::model::format::exponent;

#[derive(Clone, Copy)]
struct Scalar;

kernels! {
    KERNELS, Scalar, [4 1]
}

const LANES: usize = 16;

/// `N` elements from a pointer that the caller of an operation promised.
unsafe fn read<T: Copy, const N: usize>(at: *const u8) -> [T; N] {
    // SAFETY: the caller's promise; arrays of numbers have no invalid bits.
    unsafe { at.cast::<[T; N]>().read_unaligned() }
}

// Operations of more than a few instructions are out of line: sixteen lanes of them inlined into
// every kernel take the compiler minutes, and plain Rust need not be fast.
impl Simd for Scalar {
    const LANES: usize = LANES;
    const BIAS: i32 = 0;
    type I = [i32; LANES];
    type F = [f32; LANES];

    unsafe fn set(x: i32) -> Self::I {
        [x; LANES]
    }

    unsafe fn load(at: *const u8) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { read(at) }
    }

    #[inline(never)]
    unsafe fn shift(x: Self::I, right: i32) -> Self::I {
        x.map(|x| {
            let bits = x.cast_unsigned();
            (if right < 0 { bits << -right } else { bits >> right }).cast_signed()
        })
    }

    #[inline(never)]
    unsafe fn mask(x: Self::I, byte: u8) -> Self::I {
        x.map(|x| x & i32::from_ne_bytes([byte; 4]))
    }

    #[inline(never)]
    unsafe fn or(x: Self::I, y: Self::I) -> Self::I {
        std::array::from_fn(|i| x[i] | y[i])
    }

    unsafe fn table(at: *const u8) -> Self::I {
        // SAFETY: the caller's promise.
        let table: [i32; 4] = unsafe { read(at) };
        std::array::from_fn(|i| table[i % 4])
    }

    #[inline(never)]
    unsafe fn lookup(table: Self::I, x: Self::I) -> Self::I {
        let entry = |x: u8| table[usize::from(x / 4)].to_le_bytes()[usize::from(x % 4)];
        x.map(|x| i32::from_le_bytes(x.to_le_bytes().map(entry)))
    }

    #[inline(never)]
    unsafe fn dot<const BITS: u32>(mut acc: Self::I, codes: [Self::I; 4], x: *const u8) -> Self::I {
        // SAFETY: the caller's promise.
        let quads: [[i8; 4]; 4] = unsafe { read(x) };
        for (codes, quad) in codes.iter().zip(quads) {
            for (acc, codes) in acc.iter_mut().zip(codes) {
                let products = codes.to_le_bytes().into_iter().zip(quad);
                *acc += products.map(|(c, x)| i32::from(c) * i32::from(x)).sum::<i32>();
            }
        }
        acc
    }

    unsafe fn join(high: Self::I, low: Self::I) -> Self::I {
        std::array::from_fn(|i| 255 * high[i] + low[i])
    }

    unsafe fn mul_i8(x: Self::I, at: *const u8) -> Self::I {
        // SAFETY: the caller's promise.
        let y = unsafe { read::<i8, LANES>(at) };
        std::array::from_fn(|i| x[i] * i32::from(y[i]))
    }

    unsafe fn float(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }

    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }

    unsafe fn load_f32(at: *const f32) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read(at.cast()) }
    }

    #[inline(never)]
    unsafe fn load_f16(at: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read::<u16, LANES>(at) }.map(|x| f16::from_bits(x).to_f32())
    }

    unsafe fn even(x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x.cast_unsigned() << 16))
    }

    unsafe fn odd(x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x.cast_unsigned() & !0xffff))
    }

    unsafe fn load_i8(at: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read::<i8, LANES>(at) }.map(f32::from)
    }

    unsafe fn load_u8(at: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read::<u8, LANES>(at) }.map(f32::from)
    }

    unsafe fn load_nibbles(at: *const u8) -> (Self::F, Self::F) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { read::<u8, LANES>(at) };
        (bytes.map(|x| f32::from(x & 15)), bytes.map(|x| f32::from(x >> 4)))
    }

    #[inline(never)]
    unsafe fn load_e8m0(at: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read::<u8, LANES>(at) }.map(exponent)
    }

    unsafe fn store(at: *mut f32, x: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self::F>().write_unaligned(x) }
    }

    unsafe fn add(x: Self::F, y: Self::F) -> Self::F {
        std::array::from_fn(|i| x[i] + y[i])
    }

    #[inline(never)]
    unsafe fn mul(x: Self::F, y: Self::F) -> Self::F {
        std::array::from_fn(|i| x[i] * y[i])
    }

    #[inline(never)]
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F {
        std::array::from_fn(|i| x[i].mul_add(y[i], z[i]))
    }

    unsafe fn max_bits(max: Self::I, x: Self::F) -> Self::I {
        std::array::from_fn(|i| max[i].max(x[i].abs().to_bits().cast_signed()))
    }

    unsafe fn max_across(x: Self::I) -> i32 {
        x.into_iter().fold(0, i32::max)
    }

    #[inline(never)]
    unsafe fn store_i8(at: *mut u8, x: Self::F) -> i32 {
        let rounded = x.map(|x| x.round_ties_even() as i8);
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[i8; LANES]>().write_unaligned(rounded) };
        rounded.into_iter().map(i32::from).sum()
    }

    unsafe fn prefetch(_: *const u8) {}
}
