//! The matmul kernel for weights stored as floats: one body for F32, F16 and BF16.
//!
//! A lane is an output row, as everywhere (see [`super::repack`]). The order of the additions is
//! fixed: within a span of 256 columns the even and the odd ones go into an accumulator each by
//! fused multiply-add, and the sum of the two is added to the output. Two chains hide the
//! instruction's latency, and short chains keep the rounding errors small.

use super::repack::{GROUP, SPAN, TILE, Width};
use super::simd::Simd;

/// One tile of float weights and the activation rows to multiply it with.
pub(super) struct FloatArgs {
    pub(super) tile: *const u8,
    pub(super) cols: usize,
    /// The first activation of the first row; the other rows' follow it.
    pub(super) x: *const f32,
    /// Activations from one column to the next.
    pub(super) step: usize,
    /// Where the first row's outputs go, 16 of them.
    pub(super) y: *mut f32,
    /// Outputs from one row's to the next's.
    pub(super) stride: usize,
}

pub(super) type FloatFn = unsafe fn(&FloatArgs);

/// Writes the products of `ROWS` activation rows with one tile.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(super) unsafe fn floats<S: Simd, const WIDTH: u8, const ROWS: usize>(args: &FloatArgs) {
    let bytes = if WIDTH == Width::F32 as u8 { 4 } else { 2 };
    let mut from = 0;
    while from < args.cols {
        let to = args.cols.min(from + GROUP * SPAN);
        for lane in (0..TILE).step_by(S::LANES) {
            // SAFETY: columns below `cols` of a tile, and rows that the caller promised.
            unsafe {
                let mut even = [S::splat(0.0); ROWS];
                let mut odd = even;
                let w = args.tile.add(lane * bytes);
                let mut k = from;
                while k + 1 < to {
                    column::<S, WIDTH, ROWS>(args, w, k, &mut even);
                    column::<S, WIDTH, ROWS>(args, w, k + 1, &mut odd);
                    k += 2;
                }
                if k < to {
                    column::<S, WIDTH, ROWS>(args, w, k, &mut even);
                }
                for r in 0..ROWS {
                    let y = args.y.add(r * args.stride + lane);
                    let mut sum = S::add(even[r], odd[r]);
                    if from > 0 {
                        sum = S::add(S::load_f32(y), sum);
                    }
                    S::store(y, sum);
                }
            }
        }
        from = to;
    }
}

/// Adds the products of column `k`. `w` is the first column of these lanes.
///
/// # Safety
/// As [`floats`].
#[inline(always)]
unsafe fn column<S: Simd, const WIDTH: u8, const ROWS: usize>(
    args: &FloatArgs,
    w: *const u8,
    k: usize,
    acc: &mut [S::F; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let w = if WIDTH == Width::F32 as u8 {
            S::load_f32(w.add(k * TILE * 4).cast())
        } else if WIDTH == Width::F16 as u8 {
            S::load_f16(w.add(k * TILE * 2))
        } else {
            S::load_bf16(w.add(k * TILE * 2))
        };
        let x = args.x.add(k * args.step);
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = S::fma(w, S::splat(x.add(r).read_unaligned()), *acc);
        }
    }
}
