//! The matmul kernel for weights stored as floats: one body for F32, F16 and BF16.
//!
//! A lane is an output row, as everywhere (see [`super::repack`]). The order of the additions is
//! fixed: within a span of 256 columns the even and the odd ones go into an accumulator each by
//! fused multiply-add, and the sum of the two is added to the output. Two chains hide the
//! instruction's latency, and short chains keep the rounding errors small.
//!
//! With BF16 weights the activations are rounded to BF16 too, as is usual, so that processors which
//! multiply pairs of BF16 (AVX-512 BF16) can. There a pair of columns takes the place of a column:
//! its odd column is added first, then the even one, as those instructions do. Products of BF16 are
//! exact in f32, so fused multiply-adds give the same bits elsewhere (as long as no number is below
//! the normal ones, which the instructions take for 0).

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has it"))]
pub(super) mod many;

use std::ops::Range;

use super::repack::{GROUP, LINE, SPAN, TILE, Width};
use super::simd::Simd;

/// One tile of float weights and the activation rows to multiply it with.
pub(super) struct FloatArgs {
    pub(super) tile: *const u8,
    /// The columns to add: from the beginning of a span to the end of one, or of all.
    pub(super) cols: Range<usize>,
    /// The first activation of the first row; the other rows' follow it.
    pub(super) x: *const f32,
    /// Activations from one column to the next.
    pub(super) step: usize,
    /// Where the first row's outputs go, 16 of them.
    pub(super) y: *mut f32,
    /// Outputs from one row's to the next's.
    pub(super) stride: usize,
    /// As [`super::simd::ahead`].
    pub(super) ahead: usize,
}

pub(super) type FloatFn = unsafe fn(&FloatArgs);

/// Writes the products of `ROWS` activation rows with one tile, or adds those of later columns.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(super) unsafe fn floats<S: Simd, const WIDTH: u8, const ROWS: usize>(args: &FloatArgs) {
    let bytes = if WIDTH == Width::F32 as u8 { 4 } else { 2 };
    // Columns of one step of a chain, and how far apart lanes are.
    let pair = WIDTH == Width::Bf16 as u8 || WIDTH == PAIRS;
    let columns = if pair { 2 } else { 1 };
    let cols = args.cols.end.next_multiple_of(columns);
    let mut from = args.cols.start;
    while from < cols {
        let to = cols.min(from + GROUP * SPAN);
        for lane in (0..TILE).step_by(S::LANES) {
            // SAFETY: columns below `cols` of a tile, and rows that the caller promised.
            unsafe {
                let mut even = [S::splat(0.0); ROWS];
                let mut odd = even;
                let w = args.tile.add(lane * columns * bytes);
                let mut k = from;
                while k + columns < to {
                    if ROWS == 1 && args.ahead > 0 && lane == 0 {
                        let next = args.tile.wrapping_add(k * TILE * bytes + args.ahead);
                        for line in (0..2 * columns * TILE * bytes).step_by(LINE) {
                            S::prefetch(next.wrapping_add(line));
                        }
                    }
                    column::<S, WIDTH, ROWS>(args, w, k, &mut even);
                    column::<S, WIDTH, ROWS>(args, w, k + columns, &mut odd);
                    k += 2 * columns;
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

/// The index of kernels that multiply BF16 in pairs: weights as [`Width::Bf16`], activations likewise.
pub(super) const PAIRS: u8 = 3;

/// Adds the products of column `k`, or of the pair that begins there. `w` is the first column of these lanes.
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
        if WIDTH == PAIRS {
            let w = S::load(w.add(k * TILE * 2));
            let x = args.x.add(k / 2 * args.step);
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = S::dot_pair(*acc, w, x.add(r).cast());
            }
            return;
        }
        if WIDTH == Width::Bf16 as u8 {
            let w = S::load(w.add(k * TILE * 2));
            let (even, odd) = (S::even(w), S::odd(w));
            let x = args.x.add(k * args.step);
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = |i: usize| S::splat(x.add(r + i * args.step).read_unaligned());
                *acc = S::fma(even, at(0), S::fma(odd, at(1), *acc));
            }
            return;
        }
        let w = if WIDTH == Width::F32 as u8 {
            S::load_f32(w.add(k * TILE * 4).cast())
        } else {
            S::load_f16(w.add(k * TILE * 2))
        };
        let x = args.x.add(k * args.step);
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = S::fma(w, S::splat(x.add(r).read_unaligned()), *acc);
        }
    }
}
