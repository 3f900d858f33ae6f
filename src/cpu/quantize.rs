//! Activations as the kernels read them: integers of two int8 digits in groups of 32 with a scale
//! each, f32, or BF16.
//!
//! A group is `q[i] = round(x[i] * 32512 / max|x|)`, ties to even, with the scale `max|x| / 32512`,
//! and `q = 255 * high + low` with both digits in -127..=127. One digit would do for most purposes
//! and is what others use; it costs 3e-3 nats of KL divergence on SmolLM2, a thousand times what is
//! left with two. Decode waits for weights in the meantime, and their codes are taken apart once for
//! both digits. Only Q2_K's codes meet the high digit alone, for the sake of speed.
//!
//! The sums of the integers ride along: weights whose codes have a zero `z` need `z * sum`, and
//! weights with a minimum need `min * scale * sum`. Together they are two cache lines, a *record*:
//!
//! ```text
//! bytes   0                 32                64      68        76      80             88          92
//!         |h0 h1 …      h31 |l0 l1 …      l31 |scale  |sum16 x 2|sum32  |scale*sum16 x2|scale*sum32|
//!                                             92                                                   120 128
//!                                             |the same of the high digit alone                    |   |
//! ```
//!
//! After the records, where there are blocks of 8 rows and where a processor multiplies 16 bits, are the integers themselves, for
//! [`super::matmul::words`], block by block: `[groups][16 pairs][8 rows]` of two i16 each, those of a pair two columns apart, as
//! they come out of a quad of codes: columns 0 and 2, 1 and 3, 4 and 6, …; then `[8 rows]` of their scales,
//! and `[8 rows]` of scale times sum.
//!
//! Several rows are stored together, in *blocks* of as many rows as there are, up to 8: the
//! records of a block go group by group, `[groups][rows]`, so a kernel that takes several rows
//! at once finds them at constant distances from one pointer. For float weights it is the same
//! with `[columns][rows]` of f32.
//!
//! A row with an infinity or a NaN gets NaN as the scale of that group, and so only NaN comes of
//! it; a group of zeros, or of numbers too small to divide by, gets the scale 0.

use std::ops::Range;

use super::repack::GROUP;
use super::simd::{Isa, Simd};

/// Bytes of a record.
pub(super) const RECORD: usize = 128;

/// Where in a record the numbers are that belong to some of the digits.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// The scale.
    pub(super) scale: usize,
    /// The sums: of the first 16, of the second 16, of all.
    pub(super) sums: usize,
    /// The products of scale and sum, in the same order.
    pub(super) scaled: usize,
}

/// Those of both digits.
pub(super) const BOTH: Places = Places { scale: 64, sums: 68, scaled: 80 };
/// Those of the high digit alone.
pub(super) const HIGH: Places = Places { scale: 92, sums: 96, scaled: 108 };

/// The most rows of a block.
pub(super) const BLOCK: usize = 8;

/// Bytes of a block's group in 16 bits.
pub(super) const WORDS: usize = SUMS + 4 * BLOCK;
/// Where in them the scales are,
pub(super) const SCALES: usize = GROUP * 2 * BLOCK;
/// and where the products of scale and sum.
pub(super) const SUMS: usize = SCALES + 4 * BLOCK;

/// What a matmul takes its activations as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Precision {
    /// Integers with a scale every 32: for weights in blocks.
    Int8,
    /// f32: for F32 and F16 weights.
    F32,
    /// f32 rounded to BF16, in pairs of two bytes each where the processor multiplies those: for BF16
    /// weights.
    Bf16,
}

/// Bytes that [`Activations`] of `rows` rows need. `None` when they cannot be counted.
pub fn activation_bytes(precision: Precision, cols: usize, rows: usize) -> Option<usize> {
    let row = match precision {
        Precision::Int8 => {
            let words = if block_rows(rows) == BLOCK { WORDS / BLOCK } else { 0 };
            cols.div_ceil(GROUP).checked_mul(RECORD + words)?
        }
        Precision::F32 => cols.checked_mul(4)?,
        Precision::Bf16 => cols.checked_next_multiple_of(2)?.checked_mul(4)?,
    };
    rows.checked_next_multiple_of(block_rows(rows))?.checked_mul(row)
}

/// Rows of a block when there are `rows` in all.
fn block_rows(rows: usize) -> usize {
    rows.min(BLOCK).next_power_of_two()
}

/// Activations in memory of the caller's. A copy is the same activations.
#[derive(Clone, Copy, Debug)]
pub struct Activations {
    data: *mut u8,
    /// The integers of 16 bits, where there are any.
    words: *mut u8,
    pub(super) precision: Precision,
    pub(super) cols: usize,
    pub(super) rows: usize,
    /// Rows of a block.
    pub(super) block: usize,
}

// SAFETY: the pointer is only followed by functions whose callers promise that no other thread
// interferes.
unsafe impl Send for Activations {}
// SAFETY: as above.
unsafe impl Sync for Activations {}

impl Activations {
    /// Activations of `rows` rows at `data`, which still have to be written.
    ///
    /// # Safety
    /// As long as this or a copy is used, `data` must be valid for reads and writes of
    /// [`activation_bytes`] bytes. It should lie at a multiple of 64.
    pub unsafe fn new(data: *mut u8, precision: Precision, cols: usize, rows: usize) -> Self {
        let acts =
            Activations { data, words: data, precision, cols, rows, block: block_rows(rows) };
        Activations { words: acts.at(rows.next_multiple_of(acts.block)), ..acts }
    }

    /// Rows `first .. first + rows` alone. `first` must be a multiple of [`BLOCK`].
    pub(super) fn part(&self, first: usize, rows: usize) -> Self {
        debug_assert!(first.is_multiple_of(self.block) && first + rows <= self.rows);
        Activations { data: self.at(first), words: self.words_at(first), rows, ..*self }
    }

    /// How many rows kernels for many of them take, if there are `enough`: whole blocks, and a last one that
    /// is more than half full.
    pub(super) fn many(&self, enough: usize) -> usize {
        let rows = match self.rows % BLOCK {
            rest if rest > BLOCK / 2 => self.rows,
            rest => self.rows - rest,
        };
        if self.block == BLOCK && rows >= enough { rows } else { 0 }
    }

    /// Groups of 32 columns, the last of them perhaps shorter: what [`quantize`](Self::quantize)
    /// can be split by.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// Writes `groups` of row `row`, from `x`, the whole row.
    ///
    /// # Safety
    /// `isa` must be available, and nobody else may touch these groups of this row meanwhile.
    ///
    /// # Panics
    /// When `x` is not as long as a row, or the row or the groups do not exist.
    pub unsafe fn quantize(&self, isa: Isa, row: usize, x: &[f32], groups: Range<usize>) {
        assert!(x.len() == self.cols && row < self.rows, "row {row} of {self:?}");
        assert!(groups.start <= groups.end && groups.end <= self.groups(), "{groups:?}, {self:?}");
        let at = self.at(row);
        match self.precision {
            Precision::Int8 => {
                assert!(self.cols.is_multiple_of(GROUP), "{self:?}");
                let step = self.step();
                let x = &x[groups.start * GROUP..groups.end * GROUP];
                // SAFETY: the assertions keep the records inside the memory that `new` was
                // promised, and the caller has them to itself.
                unsafe {
                    let to = at.add(groups.start * step);
                    let words = (isa.kernels().words.is_some() && self.block == BLOCK)
                        .then(|| self.words_at(row).add(groups.start * WORDS));
                    (isa.kernels().quantize)(&QuantizeArgs { x, to, words, step });
                }
            }
            Precision::Bf16 => {
                let start = groups.start * GROUP;
                let x = &x[start..self.cols.min(groups.end * GROUP)];
                let pairs = isa.kernels().pairs.is_some();
                // SAFETY: as above.
                unsafe { self.write_bf16(pairs, at, start, x) };
            }
            Precision::F32 => {
                let start = groups.start * GROUP;
                let x = &x[start..self.cols.min(groups.end * GROUP)];
                for (i, &x) in (start..).zip(x) {
                    // SAFETY: as above.
                    unsafe { at.cast::<f32>().add(i * self.block).write_unaligned(x) };
                }
            }
        }
    }

    /// Writes the f32 of columns `start..` of a row, those of a pair together if it is to be so.
    ///
    /// # Safety
    /// As [`quantize`](Self::quantize), with precision [`Precision::Bf16`].
    unsafe fn write_bf16(&self, pairs: bool, at: *mut u8, start: usize, x: &[f32]) {
        let (whole, rest) = x.as_chunks();
        let last = rest.first().map(|&x| [x, 0.0]);
        for (pair, x) in (start / 2..).zip(whole.iter().chain(&last)) {
            let [even, odd] = x.map(bf16);
            // SAFETY: the caller's promise; a row has whole pairs.
            unsafe {
                if pairs {
                    let word = u32::from(even) | u32::from(odd) << 16;
                    at.cast::<u32>().add(pair * self.block).write_unaligned(word);
                } else {
                    let to = at.cast::<u32>().add(2 * pair * self.block);
                    to.write_unaligned(u32::from(even) << 16);
                    to.add(self.block).write_unaligned(u32::from(odd) << 16);
                }
            }
        }
    }

    /// The first record of a row, or its first f32.
    pub(super) fn at(&self, row: usize) -> *mut u8 {
        let (record, records) = match self.precision {
            Precision::Int8 => (RECORD, self.groups()),
            Precision::F32 => (4, self.cols),
            Precision::Bf16 => (4, self.cols.next_multiple_of(2)),
        };
        let (block, row) = (row / self.block, row % self.block);
        self.data.wrapping_add(block * records * self.step() + row * record)
    }

    /// Bytes from a group's records, or a column's, to the next one's.
    pub(super) fn step(&self) -> usize {
        match self.precision {
            Precision::Int8 => self.block * RECORD,
            Precision::F32 | Precision::Bf16 => self.block * 4,
        }
    }

    /// Where the 16 bits of a row's first group are.
    pub(super) fn words_at(&self, row: usize) -> *mut u8 {
        let blocks = row / BLOCK * self.groups();
        self.words.wrapping_add(blocks * WORDS + 4 * (row % BLOCK))
    }
}

/// The nearest BF16, ties to even; 0 for what is below the normal numbers. Without a branch: which way a
/// number is rounded, no processor can guess.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // A NaN stays one.
    let bits = if x.is_nan() { bits | 1 << 22 } else { rounded };
    let kept = if x.is_subnormal() { 0 } else { bits };
    (kept >> 16) as u16
}

/// Groups to quantize.
pub(super) struct QuantizeArgs<'a> {
    /// Whole groups.
    x: &'a [f32],
    /// The record of the first.
    to: *mut u8,
    /// Where the row's 16 bits go, if there are such.
    words: Option<*mut u8>,
    /// Bytes from one record to the next.
    step: usize,
}

/// What the high digit counts: with it both digits of every number up to [`MOST`] are in -127..=127.
const BASE: f32 = 255.0;

/// The greatest number of two digits.
const MOST: f32 = 127.0 * BASE + 127.0;

/// 1.5 * 2²³: beyond it an f32 has no fraction, so that what is added to it is rounded to a whole number, ties to even, whose
/// lowest 22 bits in two's complement are those of the sum.
const ROUND: f32 = 12_582_912.0;

/// Each lane rounded to a whole number, ties to even; all are far below 2²².
///
/// # Safety
/// The target features of `S` must be on.
#[inline(always)]
unsafe fn whole<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::add(S::add(x, S::splat(ROUND)), S::splat(-ROUND)) }
}

/// Writes a group's integers, added to [`ROUND`], in pairs, [`BLOCK`] pairs apart.
///
/// # Safety
/// `to` must be valid for writes of 16 pairs.
#[inline(always)]
unsafe fn store_pairs(to: *mut u8, x: &[f32; GROUP]) {
    for (i, [a, b, c, d]) in x.as_chunks().0.iter().enumerate() {
        for (pair, (even, odd)) in (2 * i..).zip([(a, c), (b, d)]) {
            let word = even.to_bits() & 0xffff | odd.to_bits() << 16;
            // SAFETY: the caller's promise.
            unsafe { to.add(4 * BLOCK * pair).cast::<u32>().write_unaligned(word) };
        }
    }
}

pub(super) type QuantizeFn = unsafe fn(&QuantizeArgs);

/// Quantizes whole groups.
///
/// # Safety
/// The target features of `S` must be on, and the records valid for writes.
#[inline(always)]
pub(super) unsafe fn groups<S: Simd>(args: &QuantizeArgs) {
    for (g, x) in args.x.chunks_exact(GROUP).enumerate() {
        // SAFETY: `x` has 32 elements, and a record has room for what is written here.
        unsafe {
            let to = args.to.add(g * args.step);
            let mut max = S::set(0);
            for at in (0..GROUP).step_by(S::LANES) {
                max = S::max_bits(max, S::load_f32(x.as_ptr().add(at)));
            }
            let max = f32::from_bits(S::max_across(max).cast_unsigned());
            let inverse = MOST / max;
            let (scale, inverse) = match (max.is_finite(), inverse.is_finite()) {
                (true, true) => (max / MOST, inverse),
                (true, false) => (0.0, 0.0),
                (false, _) => (f32::NAN, 0.0),
            };
            let (mut highs, mut sums) = ([0, 0], [0, 0]);
            let mut all = [0.0f32; GROUP];
            for at in (0..GROUP).step_by(S::LANES) {
                // A product with NaN would not convert alike everywhere.
                let x = if max.is_finite() {
                    S::mul(S::load_f32(x.as_ptr().add(at)), S::splat(inverse))
                } else {
                    S::splat(0.0)
                };
                let rounded = S::add(x, S::splat(ROUND));
                S::store(all.as_mut_ptr().add(at), rounded);
                let x = S::add(rounded, S::splat(-ROUND));
                let high = whole::<S>(S::mul(x, S::splat(1.0 / BASE)));
                let low = S::fma(high, S::splat(-BASE), x);
                let half = 2 * at / GROUP;
                let high = S::store_i8(to.add(at), high);
                highs[half] += high;
                sums[half] += BASE as i32 * high + S::store_i8(to.add(GROUP + at), low);
            }
            if let Some(words) = args.words {
                let to = words.add(g * WORDS);
                store_pairs(to, &all);
                to.add(SCALES).cast::<f32>().write_unaligned(scale);
                let scaled = (sums[0] + sums[1]) as f32 * scale;
                to.add(SUMS).cast::<f32>().write_unaligned(scaled);
            }
            for (places, sums, scale) in [(BOTH, sums, scale), (HIGH, highs, scale * BASE)] {
                let sums = [sums[0], sums[1], sums[0] + sums[1]];
                let scaled = sums.map(|sum| sum as f32 * scale);
                to.add(places.scale).cast::<f32>().write_unaligned(scale);
                to.add(places.sums).cast::<[i32; 3]>().write_unaligned(sums);
                to.add(places.scaled).cast::<[f32; 3]>().write_unaligned(scaled);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bf16_is_rounded_as_by_half() {
        let patterns = (0..1 << 16).flat_map(|high: u32| {
            [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(high << 16 | low))
        });
        for x in patterns.filter(|x| !x.is_subnormal()) {
            assert_eq!(super::bf16(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
        }
    }
}
