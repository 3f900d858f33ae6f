//! The kernel over one tile of codes.
//!
//! With `c` what a weight's code stands for, `s` and `m` its group's scale and minimum (`w = s (c - z) + m`), and
//! an activation `x = a q`, a group of columns adds to an output
//!
//! ```text
//! y += (a * (sum(c q) - z * sum(q))) * s  +  (a * sum(q)) * m
//! ```
//!
//! Where several groups share one scale, the terms of a block are added up first and meet it once.
//! So it is where 16 columns have an integer for a scale and codes a zero: sums meet that integer as integers, which fits
//! (`16 * 32512 * 32 * 128 < 2^31`), and as f32 both halves of a group are added up before they meet the activations' scale.
//! Sums are exact integers. Each product that is added is added by
//! one fused multiply-add, group after group in the columns' order, so an output's bits depend on
//! its own row of weights and activations and on nothing else.

use super::shape::{EXPONENT, NIBBLES, ONE, SHARED, TWO};
use crate::cpu::quantize::{BOTH, HIGH, RECORD};
use crate::cpu::repack::{GROUP, LINE, SPAN, Span, TILE};
use crate::cpu::simd::Simd;
use crate::model::format::{Codes, Min, Quant};

/// Whether codes meet one digit of the activations, which others have two of: Q2_K's, whose many scales
/// and minimums with 2.6 bits a weight leave the processor behind the memory already.
const fn one_digit(scales: u8) -> bool {
    scales == NIBBLES
}

/// One tile of codes and the activation rows to multiply it with.
pub(in crate::cpu) struct PlanesArgs {
    pub(super) quant: &'static Quant,
    pub(super) tile: *const u8,
    /// Groups of columns.
    pub(super) groups: usize,
    /// The first record of the first row; the other rows' follow it.
    pub(super) x: *const u8,
    /// Bytes from a group's records to the next group's.
    pub(super) step: usize,
    /// Where the first row's outputs go, 16 of them.
    pub(super) y: *mut f32,
    /// Outputs from one row's to the next's.
    pub(super) stride: usize,
    /// As [`ahead`](crate::cpu::simd::ahead).
    pub(super) ahead: usize,
}

pub(in crate::cpu) type PlanesFn = unsafe fn(&PlanesArgs);

/// Writes the products of `ROWS` activation rows with one tile.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(in crate::cpu) unsafe fn planes<
    S: Simd,
    const LO: u32,
    const HI: u32,
    const HALVES: bool,
    const MIN: bool,
    const SCALES: u8,
    const TABLE: u32,
    const ROWS: usize,
>(
    args: &PlanesArgs,
) {
    // Whether the terms of a block are added up before they meet its scale, and its groups: a power
    // of two.
    let blocked = SCALES == SHARED || HALVES;
    let shared = if blocked { args.quant.block / GROUP } else { 1 };
    let bias = if TABLE.max(LO + HI) == 8 { S::BIAS } else { 0 };
    let zero = if let Min::Zero(z) = args.quant.min { bias - z } else { bias };
    // SAFETY: the caller's promise.
    let table = unsafe { table::<S, TABLE>(args.quant) };
    let whole = Span::of(args.quant, SPAN);
    let (mut tile, mut x, mut left) = (args.tile, args.x, args.groups);
    while left > 0 {
        let groups = left.min(SPAN);
        let span = if groups == SPAN { whole } else { Span::of(args.quant, groups) };
        // SAFETY: a span of a tile, records of its groups, and 16 outputs of each row, all of
        // which the caller promised.
        unsafe {
            for lane in (0..TILE).step_by(S::LANES) {
                let to = args.y.add(lane);
                // The outputs so far or what is yet to meet a block's scale, and its minimums'.
                let mut y = [S::splat(0.0); ROWS];
                let mut m = y;
                if left < args.groups && !blocked {
                    for (r, y) in y.iter_mut().enumerate() {
                        *y = S::load_f32(to.add(r * args.stride));
                    }
                }
                let scales = Scales::<S>::of::<SCALES, MIN>(tile, &span, lane);
                let mut w = tile.add(span.codes + 4 * lane);
                let mut x = x;
                for group in 0..groups {
                    if ROWS == 1 && lane == 0 {
                        if group == 0 {
                            ask::<S>(tile.wrapping_add(args.ahead), span.codes / LINE);
                        }
                        ask::<S>(w.wrapping_add(args.ahead), (LO + HI) as usize);
                    }
                    if HALVES {
                        let mut acc = start::<S, MIN, 0, ROWS>(x, zero);
                        half::<S, LO, HI, SCALES, TABLE, 0, ROWS>(w, x, table, &mut acc);
                        fold::<S, SCALES, MIN, 0, ROWS>(
                            x,
                            &scales,
                            2 * group,
                            &acc,
                            &mut y,
                            &mut m,
                        );
                        let mut acc = start::<S, MIN, 1, ROWS>(x, zero);
                        half::<S, LO, HI, SCALES, TABLE, 1, ROWS>(w, x, table, &mut acc);
                        fold::<S, SCALES, MIN, 1, ROWS>(
                            x,
                            &scales,
                            2 * group + 1,
                            &acc,
                            &mut y,
                            &mut m,
                        );
                    } else {
                        let mut acc = start::<S, MIN, 2, ROWS>(x, zero);
                        half::<S, LO, HI, SCALES, TABLE, 0, ROWS>(w, x, table, &mut acc);
                        half::<S, LO, HI, SCALES, TABLE, 1, ROWS>(w, x, table, &mut acc);
                        fold::<S, SCALES, MIN, 2, ROWS>(x, &scales, group, &acc, &mut y, &mut m);
                    }
                    w = w.add(LINE * (LO + HI) as usize);
                    x = x.add(args.step);
                    if blocked && (group + 1) & (shared - 1) == 0 {
                        let (scale, min) =
                            scales.of_block::<SCALES>(group >> shared.trailing_zeros());
                        let first = left == args.groups && group + 1 == shared;
                        for (r, (y, m)) in y.iter_mut().zip(&mut m).enumerate() {
                            let to = to.add(r * args.stride);
                            let before = if first { S::splat(0.0) } else { S::load_f32(to) };
                            let mut sum = S::fma(*y, scale, before);
                            if MIN {
                                sum = S::fma(*m, min, sum);
                            }
                            S::store(to, sum);
                            (*y, *m) = (S::splat(0.0), S::splat(0.0));
                        }
                    }
                }
                if blocked {
                    continue;
                }
                for (r, y) in y.iter().enumerate() {
                    S::store(to.add(r * args.stride), *y);
                }
            }
            tile = tile.add(span.bytes);
            x = x.add(groups * args.step);
        }
        left -= groups;
    }
}

/// The entries that codes name, if they do.
///
/// # Safety
/// The target features of `S` must be on.
#[inline(always)]
pub(super) unsafe fn table<S: Simd, const TABLE: u32>(quant: &Quant) -> S::I {
    match &quant.codes {
        // SAFETY: the table has 16 bytes.
        Codes::Table(table) if TABLE > 0 => unsafe { S::table(table.as_ptr()) },
        // SAFETY: the caller's promise.
        _ => unsafe { S::set(0) },
    }
}

/// Asks for so many lines, in the order in which they lie: what follows reads a span's header and the
/// planes of a group here and there, which no prefetcher of a processor takes for a stream.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn ask<S: Simd>(from: *const u8, lines: usize) {
    for line in 0..lines {
        // SAFETY: the caller's promise; what is asked for need not exist.
        unsafe { S::prefetch(from.wrapping_add(line * LINE)) };
    }
}

/// Where the scales and minimums of some lanes of a span are, and those of its block.
pub(super) struct Scales<S: Simd> {
    d: *const u8,
    scales: *const u8,
    mins: *const u8,
    block: (S::F, S::F),
}

impl<S: Simd> Scales<S> {
    /// # Safety
    /// As [`planes`].
    #[inline(always)]
    pub(super) unsafe fn of<const SCALES: u8, const MIN: bool>(
        tile: *const u8,
        span: &Span,
        lane: usize,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let (d, m) = (tile.add(2 * lane), tile.add(span.m + 2 * lane));
            let none = S::splat(0.0);
            let mut of = Scales { d, scales: d, mins: m, block: (none, none) };
            if SCALES == TWO || SCALES == NIBBLES || SCALES == EXPONENT {
                of.scales = tile.add(span.scales + lane);
            }
            if SCALES == TWO || SCALES == NIBBLES {
                of.block.0 = S::load_f16(d);
                of.mins = tile.add(span.mins + lane);
            }
            if MIN && (SCALES == TWO || SCALES == NIBBLES) {
                of.block.1 = S::mul(S::load_f16(m), S::splat(-1.0));
            }
            of
        }
    }

    /// The scale of group `i` of 16 or 32 columns, and what is added where there are minimums;
    /// what they are before they meet the block's where that comes later.
    ///
    /// # Safety
    /// As [`planes`].
    #[inline(always)]
    pub(super) unsafe fn at<const SCALES: u8, const MIN: bool>(&self, i: usize) -> (S::F, S::F) {
        let bytes = if SCALES == ONE { 2 * TILE * i } else { TILE * i };
        // SAFETY: the caller's promise.
        unsafe {
            let (scale, min) = (self.scales.add(bytes), self.mins.wrapping_add(bytes));
            let (d, m) = self.block;
            match SCALES {
                ONE if MIN => (S::load_f16(scale), S::load_f16(min)),
                ONE => (S::load_f16(scale), d),
                EXPONENT => (S::load_e8m0(scale), d),
                NIBBLES => S::load_nibbles(scale),
                TWO if MIN => (S::mul(d, S::load_i8(scale)), S::mul(m, S::load_u8(min))),
                // Sums meet the block's alone, or integers of 16 columns before it.
                _ => (d, d),
            }
        }
    }

    /// Where the integers are that are the scales of group `i` of 16 columns.
    #[inline(always)]
    pub(super) fn integers(&self, i: usize) -> *const u8 {
        self.scales.wrapping_add(TILE * i)
    }

    /// What the terms of block `i` meet when they are added up.
    ///
    /// # Safety
    /// As [`planes`].
    #[inline(always)]
    pub(super) unsafe fn of_block<const SCALES: u8>(&self, i: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            match SCALES {
                SHARED => (S::load_f16(self.d.add(2 * TILE * i)), self.block.1),
                _ => self.block,
            }
        }
    }
}

/// The f32 at `at` of the record of row `r`, in all lanes.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn number<S: Simd>(x: *const u8, r: usize, at: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::splat(x.add(r * RECORD + at).cast::<f32>().read_unaligned()) }
}

/// What sums of products begin with: what takes the codes off their zero. In integers, since as f32
/// the sums of 8-bit codes would lose their last bits. `SUM` picks the activations' sum: of the first
/// 16, the second 16, or all 32.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn start<S: Simd, const MIN: bool, const SUM: usize, const ROWS: usize>(
    x: *const u8,
    zero: i32,
) -> [[S::I; 2]; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::set(0); 2]; ROWS];
        if !MIN {
            for (r, [_, low]) in acc.iter_mut().enumerate() {
                let sum = x.add(r * RECORD + BOTH.sums + 4 * SUM).cast::<i32>().read_unaligned();
                *low = S::set(zero * sum);
            }
        }
        acc
    }
}

/// Adds the products of half a group: four quads of codes, taken apart once for all rows.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn half<
    S: Simd,
    const LO: u32,
    const HI: u32,
    const SCALES: u8,
    const TABLE: u32,
    const HALF: u32,
    const ROWS: usize,
>(
    w: *const u8,
    x: *const u8,
    table: S::I,
    acc: &mut [[S::I; 2]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = [
            quad::<S, LO, HI, TABLE>(w, 4 * HALF, table),
            quad::<S, LO, HI, TABLE>(w, 4 * HALF + 1, table),
            quad::<S, LO, HI, TABLE>(w, 4 * HALF + 2, table),
            quad::<S, LO, HI, TABLE>(w, 4 * HALF + 3, table),
        ];
        let x = x.add(4 * 4 * HALF as usize);
        for (r, acc) in acc.iter_mut().enumerate() {
            let digits = if one_digit(SCALES) { 1 } else { 2 };
            for (digit, acc) in acc.iter_mut().enumerate().take(digits) {
                let x = x.add(r * RECORD + digit * GROUP);
                *acc = match TABLE.max(LO + HI) {
                    1..=5 => S::dot::<5>(*acc, codes, x),
                    6 => S::dot::<6>(*acc, codes, x),
                    _ => S::dot::<8>(*acc, codes, x),
                };
            }
        }
    }
}

/// What the codes of quad `i` of a group stand for.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
pub(super) unsafe fn quad<S: Simd, const LO: u32, const HI: u32, const TABLE: u32>(
    w: *const u8,
    i: u32,
    table: S::I,
) -> S::I {
    // Where a quad of a plane is: its load, and the bit it starts at.
    let place = |bits: u32| (i * bits / 8, (i * bits % 8).cast_signed());
    // SAFETY: the caller's promise.
    unsafe {
        let (load, bit) = place(LO);
        let lo = S::load(w.add(LINE * load as usize));
        if LO == 8 {
            return lo;
        }
        if LO == 1 && HI == 0 {
            return S::mask(S::shift(lo, bit - 1), 2);
        }
        let lo = S::mask(S::shift(lo, bit), (1u8 << LO) - 1);
        if TABLE > 0 {
            return S::lookup(table, lo);
        }
        if HI == 0 {
            return lo;
        }
        let (load, bit) = place(HI);
        let hi = S::load(w.add(LINE * (LO + load) as usize));
        let hi = S::shift(hi, bit - LO.cast_signed());
        S::or(lo, S::mask(hi, ((1u8 << HI) - 1) << LO))
    }
}

/// Adds what the sums of products of the `i`th to have a scale come to, to `y`, and what its minimums come to, to `m` where
/// they have yet to meet the block's. Where there are none, the first half of a group waits there for the second.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn fold<S: Simd, const SCALES: u8, const MIN: bool, const SUM: usize, const ROWS: usize>(
    x: *const u8,
    scales: &Scales<S>,
    i: usize,
    acc: &[[S::I; 2]; ROWS],
    y: &mut [S::F; ROWS],
    m: &mut [S::F; ROWS],
) {
    let one = one_digit(SCALES);
    let places = if one { HIGH } else { BOTH };
    let halves = SCALES == TWO && SUM < 2;
    // SAFETY: the caller's promise.
    let (scale, min) = unsafe { scales.at::<SCALES, MIN>(i) };
    for r in 0..ROWS {
        // SAFETY: the caller's promise.
        unsafe {
            let [high, low] = acc[r];
            let dot = if one { high } else { S::join(high, low) };
            let dot = if halves { S::mul_i8(dot, scales.integers(i)) } else { dot };
            let dot = S::float(dot);
            let a = number::<S>(x, r, places.scale);
            match SCALES {
                SHARED => y[r] = S::fma(dot, a, y[r]),
                // Both halves of a group meet the activations' scale together.
                TWO if SUM == 0 => m[r] = dot,
                TWO if SUM == 1 => y[r] = S::fma(S::add(m[r], dot), a, y[r]),
                _ => y[r] = S::fma(S::mul(dot, a), scale, y[r]),
            }
            if MIN {
                let to = if SCALES == NIBBLES { &mut m[r] } else { &mut y[r] };
                *to = S::fma(number::<S>(x, r, places.scaled + 4 * SUM), min, *to);
            }
        }
    }
}
