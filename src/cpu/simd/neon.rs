//! NEON: a tile's 16 rows are four registers of four lanes.
//!
//! So a span's weights are read once, in order, and eight chains of sums run beside one another
//! (four registers, two digits), which hides the instructions' latency. With `sdot` a group of 32
//! columns of 4 bits takes about 150 instructions for one row of activations, 64 of them `sdot`,
//! and all its sums stay in registers; four passes, each over one register's lanes, would take half
//! as many again. Of several rows each fetches its sums, multiplies them and puts them back: 32 `sdot`
//! of 47 instructions, while the 16 registers of codes stay. Products with floats have no codes to
//! take apart and keep the sums of several rows in registers instead: 4 rows of two registers'
//! lanes, or 8 rows of one's.
//!
//! How four codes a lane meet four activations is [`Products`]: by widening multiplications where
//! there is nothing else, by the dot product of signed bytes (`sdot`), or of unsigned by signed
//! ones (`usdot`). The last two are assembly, since Rust has no stable name for them.
//!
//! (`smmla`, which comes with `usdot`, does twice the multiplications of `sdot`, for several rows.
//! Codes, digits and sums must be rearranged for it; what is left by count is a fifth fewer vector
//! instructions where it is as fast as `sdot`, and more work where it takes twice as long.)

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;
use std::marker::PhantomData;

use super::{Simd, kernels, ops};

kernels! {
    #[target_feature(enable = "neon")]
    KERNELS, Neon<4, Widened>,
    8 Neon<1, Widened>, 4 Neon<2, Widened>, 2 Neon<4, Widened>, 1 Neon<4, Widened>
}

kernels! {
    #[target_feature(enable = "neon,dotprod")]
    DOTPROD_KERNELS, Neon<4, Dotprod>,
    8 Neon<1, Dotprod>, 4 Neon<2, Dotprod>, 2 Neon<4, Dotprod>, 1 Neon<4, Dotprod>
}

kernels! {
    #[target_feature(enable = "neon,dotprod,i8mm")]
    I8MM_KERNELS, Neon<4, I8mm>,
    8 Neon<1, I8mm>, 4 Neon<2, I8mm>, 2 Neon<4, I8mm>, 1 Neon<4, I8mm>
}

/// `N` registers, multiplied by `P`.
#[derive(Clone, Copy)]
struct Neon<const N: usize, P>(PhantomData<P>);

/// How codes and activations are multiplied, a register at a time.
trait Products: Copy {
    /// See [`Simd::BIAS`].
    const BIAS: i32;
    /// See [`Simd::dot`].
    unsafe fn dot<const BITS: u32>(
        acc: int32x4_t,
        codes: [uint8x16_t; 4],
        x: int8x16_t,
    ) -> int32x4_t;
}

/// Codes of 8 bits as signed bytes, 128 less; others as they are.
#[inline(always)]
unsafe fn signed<const BITS: u32>(codes: uint8x16_t) -> int8x16_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let codes = if BITS == 8 { veorq_u8(codes, vdupq_n_u8(0x80)) } else { codes };
        vreinterpretq_s8_u8(codes)
    }
}

/// `smull` and `smlal`: products of signed bytes in i16. So that nothing ever wraps, the number of
/// them added there follows from the codes' width:
///
/// ```text
/// bits   greatest sum              so
/// 1-5    8 *  31 * 127 = 31496     four quads are added, and neighbours
/// 6      4 *  63 * 127 = 32004     four quads
/// 8      2 * 128 * 127 = 32512     two quads
/// ```
#[derive(Clone, Copy)]
struct Widened;

impl Products for Widened {
    const BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(
        acc: int32x4_t,
        codes: [uint8x16_t; 4],
        x: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: the caller has NEON.
        unsafe {
            let x = vreinterpretq_s32_s8(x);
            let x = [
                vreinterpretq_s8_s32(vdupq_laneq_s32::<0>(x)),
                vreinterpretq_s8_s32(vdupq_laneq_s32::<1>(x)),
                vreinterpretq_s8_s32(vdupq_laneq_s32::<2>(x)),
                vreinterpretq_s8_s32(vdupq_laneq_s32::<3>(x)),
            ];
            let w = codes.map(|w| signed::<BITS>(w));
            // The products of the first two lanes, and of the last two.
            let low = |i: usize| vmull_s8(vget_low_s8(w[i]), vget_low_s8(x[i]));
            let more_low = |sum, i: usize| vmlal_s8(sum, vget_low_s8(w[i]), vget_low_s8(x[i]));
            let high = |i: usize| vmull_high_s8(w[i], x[i]);
            let more_high = |sum, i: usize| vmlal_high_s8(sum, w[i], x[i]);
            let (a, b) = (more_low(low(0), 1), more_high(high(0), 1));
            if BITS == 8 {
                let (c, d) = (more_low(low(2), 3), more_high(high(2), 3));
                let low = vpadalq_s16(vpaddlq_s16(a), c);
                let high = vpadalq_s16(vpaddlq_s16(b), d);
                return vaddq_s32(acc, vpaddq_s32(low, high));
            }
            let low = more_low(more_low(a, 2), 3);
            let high = more_high(more_high(b, 2), 3);
            if BITS <= 5 {
                return vpadalq_s16(acc, vpaddq_s16(low, high));
            }
            vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        }
    }
}

/// Adds the products of four bytes a lane and the four at quad `$i` of `$x`.
macro_rules! dot {
    ($instruction:literal, $acc:ident, $codes:expr, $x:ident[$i:literal]) => {
        asm!(
            concat!($instruction, " {acc:v}.4s, {codes:v}.16b, {x:v}.4b[", $i, "]"),
            acc = inout(vreg) $acc,
            codes = in(vreg) $codes,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

/// `sdot`.
#[derive(Clone, Copy)]
struct Dotprod;

impl Products for Dotprod {
    const BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(
        mut acc: int32x4_t,
        codes: [uint8x16_t; 4],
        x: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: the caller has the target features.
        unsafe {
            let [a, b, c, d] = codes.map(|w| signed::<BITS>(w));
            dot!("sdot", acc, a, x[0]);
            dot!("sdot", acc, b, x[1]);
            dot!("sdot", acc, c, x[2]);
            dot!("sdot", acc, d, x[3]);
        }
        acc
    }
}

/// `usdot`, which takes codes of 8 bits as they are.
#[derive(Clone, Copy)]
struct I8mm;

impl Products for I8mm {
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(
        mut acc: int32x4_t,
        codes: [uint8x16_t; 4],
        x: int8x16_t,
    ) -> int32x4_t {
        let [a, b, c, d] = codes;
        // SAFETY: the caller has the target features.
        unsafe {
            dot!("usdot", acc, a, x[0]);
            dot!("usdot", acc, b, x[1]);
            dot!("usdot", acc, c, x[2]);
            dot!("usdot", acc, d, x[3]);
        }
        acc
    }
}

/// `4 N` bytes and zeros.
#[inline(always)]
unsafe fn bytes<const N: usize>(at: *const u8) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        match N {
            1 => {
                let four = at.cast::<u32>().read_unaligned();
                vreinterpretq_u8_u32(vsetq_lane_u32::<0>(four, vdupq_n_u32(0)))
            }
            2 => vcombine_u8(vld1_u8(at), vdup_n_u8(0)),
            _ => vld1q_u8(at),
        }
    }
}

/// Each of 16 bytes in a lane of its own.
#[inline(always)]
unsafe fn spread(x: uint8x16_t) -> [uint32x4_t; 4] {
    // SAFETY: the caller has NEON.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
        [
            vmovl_u16(vget_low_u16(low)),
            vmovl_high_u16(low),
            vmovl_u16(vget_low_u16(high)),
            vmovl_high_u16(high),
        ]
    }
}

/// The same with signs.
#[inline(always)]
unsafe fn spread_signed(x: int8x16_t) -> [int32x4_t; 4] {
    // SAFETY: the caller has NEON.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
        [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]
    }
}

impl<const N: usize, P: Products> Simd for Neon<N, P> {
    const LANES: usize = 4 * N;
    const BIAS: i32 = P::BIAS;
    type I = [uint8x16_t; N];
    type F = [float32x4_t; N];

    ops! {
        fn dot[const BITS: u32](acc: Self::I, codes: [Self::I; 4], x: *const u8) -> Self::I {
            let [a, b, c, d] = codes;
            let x = vld1q_s8(x.cast());
            let mut sums = acc;
            // No closure, which would lack the target features wherever it is not inlined, and no
            // loop, which the compiler leaves one where it is long.
            macro_rules! register {
                ($i:literal) => {
                    if $i < N {
                        let acc = vreinterpretq_s32_u8(acc[$i]);
                        let acc = P::dot::<BITS>(acc, [a[$i], b[$i], c[$i], d[$i]], x);
                        sums[$i] = vreinterpretq_u8_s32(acc);
                    }
                };
            }
            register!(0);
            register!(1);
            register!(2);
            register!(3);
            sums
        }
        fn set(x: i32) -> Self::I { [vreinterpretq_u8_s32(vdupq_n_s32(x)); N] }
        fn load(at: *const u8) -> Self::I { from_fn(|i| vld1q_u8(at.add(16 * i))) }
        fn shift(x: Self::I, right: i32) -> Self::I {
            // By bytes: nothing crosses into a neighbour, so that where all that comes in is zeros
            // a mask falls away.
            match right {
                -4 => x.map(|x| vshlq_n_u8::<4>(x)),
                -3 => x.map(|x| vshlq_n_u8::<3>(x)),
                -2 => x.map(|x| vshlq_n_u8::<2>(x)),
                -1 => x.map(|x| vshlq_n_u8::<1>(x)),
                1 => x.map(|x| vshrq_n_u8::<1>(x)),
                2 => x.map(|x| vshrq_n_u8::<2>(x)),
                3 => x.map(|x| vshrq_n_u8::<3>(x)),
                4 => x.map(|x| vshrq_n_u8::<4>(x)),
                5 => x.map(|x| vshrq_n_u8::<5>(x)),
                6 => x.map(|x| vshrq_n_u8::<6>(x)),
                7 => x.map(|x| vshrq_n_u8::<7>(x)),
                _ => x,
            }
        }
        fn mask(x: Self::I, byte: u8) -> Self::I { x.map(|x| vandq_u8(x, vdupq_n_u8(byte))) }
        fn or(x: Self::I, y: Self::I) -> Self::I { from_fn(|i| vorrq_u8(x[i], y[i])) }
        fn table(at: *const u8) -> Self::I { [vld1q_u8(at); N] }
        fn lookup(table: Self::I, x: Self::I) -> Self::I {
            from_fn(|i| vqtbl1q_u8(table[i], x[i]))
        }
        fn join(high: Self::I, low: Self::I) -> Self::I {
            from_fn(|i| {
                let low = vreinterpretq_s32_u8(low[i]);
                let high = vreinterpretq_s32_u8(high[i]);
                vreinterpretq_u8_s32(vmlaq_s32(low, high, vdupq_n_s32(255)))
            })
        }
        fn mul_i8(x: Self::I, at: *const u8) -> Self::I {
            let y = spread_signed(vreinterpretq_s8_u8(bytes::<N>(at)));
            from_fn(|i| vreinterpretq_u8_s32(vmulq_s32(vreinterpretq_s32_u8(x[i]), y[i])))
        }
        fn float(x: Self::I) -> Self::F { x.map(|x| vcvtq_f32_s32(vreinterpretq_s32_u8(x))) }
        fn splat(x: f32) -> Self::F { [vdupq_n_f32(x); N] }
        fn load_f32(at: *const f32) -> Self::F { from_fn(|i| vld1q_f32(at.add(4 * i))) }
        fn load_f16(at: *const u8) -> Self::F {
            from_fn(|i| vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at.add(8 * i)))))
        }
        fn even(x: Self::I) -> Self::F {
            x.map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u8(x))))
        }
        fn odd(x: Self::I) -> Self::F {
            let upper = vdupq_n_u32(!0xffff);
            x.map(|x| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(x), upper)))
        }
        fn load_i8(at: *const u8) -> Self::F {
            let x = spread_signed(vreinterpretq_s8_u8(bytes::<N>(at)));
            from_fn(|i| vcvtq_f32_s32(x[i]))
        }
        fn load_u8(at: *const u8) -> Self::F {
            let x = spread(bytes::<N>(at));
            from_fn(|i| vcvtq_f32_u32(x[i]))
        }
        fn load_nibbles(at: *const u8) -> (Self::F, Self::F) {
            let x = bytes::<N>(at);
            let (low, high) = (spread(vandq_u8(x, vdupq_n_u8(15))), spread(vshrq_n_u8::<4>(x)));
            (from_fn(|i| vcvtq_f32_u32(low[i])), from_fn(|i| vcvtq_f32_u32(high[i])))
        }
        fn load_e8m0(at: *const u8) -> Self::F {
            let (e, one) = (spread(bytes::<N>(at)), vdupq_n_u32(1));
            from_fn(|i| {
                let normal = vshlq_n_u32::<23>(vqsubq_u32(e[i], one));
                // Where that is no normal number, only the fraction's highest bit or the next is
                // set.
                let small = vshlq_n_u32::<21>(vaddq_u32(vminq_u32(e[i], one), one));
                vreinterpretq_f32_u32(vmaxq_u32(normal, small))
            })
        }
        fn store(at: *mut f32, x: Self::F) {
            for (i, x) in x.into_iter().enumerate() {
                vst1q_f32(at.add(4 * i), x);
            }
        }
        fn add(x: Self::F, y: Self::F) -> Self::F { from_fn(|i| vaddq_f32(x[i], y[i])) }
        fn mul(x: Self::F, y: Self::F) -> Self::F { from_fn(|i| vmulq_f32(x[i], y[i])) }
        fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F {
            from_fn(|i| vfmaq_f32(z[i], x[i], y[i]))
        }
        fn max_bits(max: Self::I, x: Self::F) -> Self::I {
            from_fn(|i| {
                let bits = vreinterpretq_s32_f32(vabsq_f32(x[i]));
                vreinterpretq_u8_s32(vmaxq_s32(vreinterpretq_s32_u8(max[i]), bits))
            })
        }
        fn max_across(x: Self::I) -> i32 {
            let lanes = |x| vmaxvq_s32(vreinterpretq_s32_u8(x));
            x.into_iter().fold(0, |max, x| max.max(lanes(x)))
        }
        fn store_i8(at: *mut u8, x: Self::F) -> i32 {
            let mut sum = vdupq_n_s32(0);
            for (i, x) in x.into_iter().enumerate() {
                let x = vcvtnq_s32_f32(x);
                sum = vaddq_s32(sum, x);
                let words = vmovn_s32(x);
                let bytes = vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words)));
                at.add(4 * i).cast::<i32>().write_unaligned(vget_lane_s32::<0>(bytes));
            }
            vaddvq_s32(sum)
        }
        fn prefetch(at: *const u8) {
            // A hint: it neither faults nor touches what the compiler knows of.
            asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nomem, nostack, preserves_flags));
        }
    }
}
