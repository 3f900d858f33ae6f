//! The matmul over repacked weights: one kernel for codes of 1, 2, 4 and 8 bits, their sums, and
//! any number of activation rows.
//!
//! With `c` what a weight's code stands for, `s` and `m` its group's scale and minimum (`w = s (c - z) + m`), and
//! an activation `x = a q`, a group of columns adds to an output
//!
//! ```text
//! y += (a * (sum(c q) - z * sum(q))) * s  +  (a * sum(q)) * m
//! ```
//!
//! Where several groups share one scale, the terms of a block are added up first and meet it once.
//! The sums are exact integers, in f32 too (at most 2^21). Each product that is added is added by
//! one fused multiply-add, group after group in the columns' order, so an output's bits depend on
//! its own row of weights and activations and on nothing else.
//!
//! [`planes`] takes up to 8 rows of activations at once, so that the work of taking codes apart
//! is shared; the scales of a span become f32 once and are shared likewise. In between, a tile's
//! outputs are kept in a few registers or a few cache lines. Where there are many rows, [`words`] do the
//! same with other instructions.

use std::ops::Range;

use super::float::FloatArgs;
use super::quantize::{Activations, BLOCK, BOTH, HIGH, RECORD};
use super::repack::{GROUP, LINE, Layout, SPAN, Span, Store, TILE, Width};
use super::simd::{Isa, Kernels, Simd, ahead};
use crate::model::format::{Codes, Min, Quant, Scale};

/// Where a kernel finds its scales: one a group,
const ONE: u8 = 0;
/// one for several groups,
const SHARED: u8 = 1;
/// an integer a group, times the block's,
const TWO: u8 = 2;
/// the same with minimums in the upper halves of the bytes,
const NIBBLES: u8 = 3;
/// or a power of two a group.
const EXPONENT: u8 = 4;

/// The kernels' shapes: bits of the low and the high plane, whether a scale is shared by 16
/// instead of 32, whether there are minimums, where the scales are, and the bits of what codes
/// stand for where that is in a table. Codes of one bit alone count double.
const SHAPE: [(u32, u32, bool, bool, u8, u32); SHAPES] = [
    (1, 0, false, false, SHARED, 0),
    (2, 0, false, false, SHARED, 0),
    (2, 0, true, true, NIBBLES, 0),
    (2, 1, true, false, TWO, 0),
    (4, 0, false, false, ONE, 0),
    (4, 0, false, false, EXPONENT, 5),
    (4, 0, false, false, ONE, 8),
    (4, 0, false, true, ONE, 0),
    (4, 0, false, true, TWO, 0),
    (4, 1, false, false, ONE, 0),
    (4, 1, false, true, ONE, 0),
    (4, 1, false, true, TWO, 0),
    (4, 2, true, false, TWO, 0),
    (8, 0, false, false, ONE, 0),
];

/// How many shapes there are.
pub(super) const SHAPES: usize = 14;

/// The index of a format's kernels, if it has any.
pub(super) fn shape_index(quant: &Quant) -> Option<usize> {
    let min = !matches!(quant.min, Min::Zero(_));
    let scale = match quant.scale {
        Scale::One if quant.block > GROUP => SHARED,
        Scale::One => ONE,
        Scale::TwoLevel => TWO,
        Scale::Nibbles => NIBBLES,
        Scale::Exponent => EXPONENT,
    };
    let table = match quant.codes {
        Codes::Table(table) if table.iter().all(|value| *value < 1 << 5) => 5,
        Codes::Table(_) => 8,
        _ => 0,
    };
    let double = (quant.lo, quant.hi) == (1, 0);
    let shape = (quant.lo, quant.hi, quant.group != GROUP, min, scale, table);
    let fits = double == (quant.codes == Codes::Double);
    SHAPE.iter().position(|s| fits && *s == shape)
}

/// Codes of up to so many bits meet one digit of the activations, which others have two of: their
/// own error is so much larger than that of a second digit left out, and they are so short that the
/// multiplications, not the memory, would bound them.
const ONE_DIGIT: u32 = 2;

/// One tile of codes and the activation rows to multiply it with.
pub(super) struct PlanesArgs {
    quant: &'static Quant,
    tile: *const u8,
    /// Groups of columns.
    groups: usize,
    /// The first record of the first row; the other rows' follow it.
    x: *const u8,
    /// Bytes from a group's records to the next group's.
    step: usize,
    /// Where the first row's outputs go, 16 of them.
    y: *mut f32,
    /// Outputs from one row's to the next's.
    stride: usize,
    /// As [`ahead`].
    ahead: usize,
}

pub(super) type PlanesFn = unsafe fn(&PlanesArgs);

/// Writes the products of `ROWS` activation rows with one tile.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(super) unsafe fn planes<
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
    let blocked = SCALES == SHARED || SCALES == NIBBLES;
    let shared = if blocked { args.quant.block / GROUP } else { 1 };
    let bias = if TABLE.max(LO + HI) == 8 { S::BIAS } else { 0 };
    let zero = if let Min::Zero(z) = args.quant.min { bias - z } else { bias };
    let table = match args.quant.codes {
        // SAFETY: the table has 16 bytes.
        Codes::Table(table) if TABLE > 0 => unsafe { S::table(table.as_ptr()) },
        // SAFETY: the caller's promise.
        _ => unsafe { S::set(0) },
    };
    let whole = Span::of(args.quant, SPAN);
    let (mut tile, mut x, mut left) = (args.tile, args.x, args.groups);
    while left > 0 {
        let groups = left.min(SPAN);
        let span = if groups == SPAN { whole } else { Span::of(args.quant, groups) };
        let lines = span.bytes.div_ceil(LINE * SPAN);
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
                    if ROWS == 1 && args.ahead > 0 && lane == 0 {
                        let next = tile.wrapping_add(args.ahead + group * lines * LINE);
                        for line in 0..lines {
                            S::prefetch(next.wrapping_add(line * LINE));
                        }
                    }
                    if HALVES {
                        let mut acc = start::<S, LO, HI, MIN, 0, ROWS>(x, zero);
                        half::<S, LO, HI, TABLE, 0, ROWS>(w, x, table, &mut acc);
                        let pair = scales.at::<SCALES, MIN>(2 * group);
                        fold::<S, LO, HI, SCALES, MIN, 0, ROWS>(x, pair, &acc, &mut y, &mut m);
                        let mut acc = start::<S, LO, HI, MIN, 1, ROWS>(x, zero);
                        half::<S, LO, HI, TABLE, 1, ROWS>(w, x, table, &mut acc);
                        let pair = scales.at::<SCALES, MIN>(2 * group + 1);
                        fold::<S, LO, HI, SCALES, MIN, 1, ROWS>(x, pair, &acc, &mut y, &mut m);
                    } else {
                        let mut acc = start::<S, LO, HI, MIN, 2, ROWS>(x, zero);
                        half::<S, LO, HI, TABLE, 0, ROWS>(w, x, table, &mut acc);
                        half::<S, LO, HI, TABLE, 1, ROWS>(w, x, table, &mut acc);
                        let pair = scales.at::<SCALES, MIN>(group);
                        fold::<S, LO, HI, SCALES, MIN, 2, ROWS>(x, pair, &acc, &mut y, &mut m);
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

/// Where the scales and minimums of some lanes of a span are, and those of its block.
struct Scales<S: Simd> {
    d: *const u8,
    scales: *const u8,
    mins: *const u8,
    block: (S::F, S::F),
}

impl<S: Simd> Scales<S> {
    /// # Safety
    /// As [`planes`].
    #[inline(always)]
    unsafe fn of<const SCALES: u8, const MIN: bool>(
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
    unsafe fn at<const SCALES: u8, const MIN: bool>(&self, i: usize) -> (S::F, S::F) {
        let bytes = if SCALES == ONE { 2 * TILE * i } else { TILE * i };
        // SAFETY: the caller's promise.
        unsafe {
            let (scale, min) = (self.scales.add(bytes), self.mins.wrapping_add(bytes));
            let (d, m) = self.block;
            match SCALES {
                ONE if MIN => (S::load_f16(scale), S::load_f16(min)),
                ONE => (S::load_f16(scale), d),
                SHARED => (d, d),
                EXPONENT => (S::load_e8m0(scale), d),
                NIBBLES => S::load_nibbles(scale),
                _ if MIN => (S::mul(d, S::load_i8(scale)), S::mul(m, S::load_u8(min))),
                _ => (S::mul(d, S::load_i8(scale)), d),
            }
        }
    }

    /// What the terms of block `i` meet when they are added up.
    ///
    /// # Safety
    /// As [`planes`].
    #[inline(always)]
    unsafe fn of_block<const SCALES: u8>(&self, i: usize) -> (S::F, S::F) {
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
unsafe fn start<
    S: Simd,
    const LO: u32,
    const HI: u32,
    const MIN: bool,
    const SUM: usize,
    const ROWS: usize,
>(
    x: *const u8,
    zero: i32,
) -> [[S::I; 2]; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::set(0); 2]; ROWS];
        if !MIN {
            let (sums, last) = if LO + HI <= ONE_DIGIT { (HIGH.sums, 0) } else { (BOTH.sums, 1) };
            for (r, acc) in acc.iter_mut().enumerate() {
                let sum = x.add(r * RECORD + sums + 4 * SUM).cast::<i32>().read_unaligned();
                acc[last] = S::set(zero * sum);
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
            let digits = if LO + HI <= ONE_DIGIT { 1 } else { 2 };
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
unsafe fn quad<S: Simd, const LO: u32, const HI: u32, const TABLE: u32>(
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

/// Adds what a group's sums of products come to, to `y`, and what its minimums come to, to `m` where
/// they have yet to meet the block's.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn fold<
    S: Simd,
    const LO: u32,
    const HI: u32,
    const SCALES: u8,
    const MIN: bool,
    const SUM: usize,
    const ROWS: usize,
>(
    x: *const u8,
    (scale, min): (S::F, S::F),
    acc: &[[S::I; 2]; ROWS],
    y: &mut [S::F; ROWS],
    m: &mut [S::F; ROWS],
) {
    let one = LO + HI <= ONE_DIGIT;
    let places = if one { HIGH } else { BOTH };
    for r in 0..ROWS {
        // SAFETY: the caller's promise.
        unsafe {
            let [high, low] = acc[r];
            let dot = S::float(if one { high } else { S::join(high, low) });
            let a = number::<S>(x, r, places.scale);
            y[r] = match SCALES {
                SHARED => S::fma(dot, a, y[r]),
                _ => S::fma(S::mul(dot, a), scale, y[r]),
            };
            if MIN {
                let to = if SCALES == NIBBLES { &mut m[r] } else { &mut y[r] };
                *to = S::fma(number::<S>(x, r, places.scaled + 4 * SUM), min, *to);
            }
        }
    }
}

/// The activations that a tile is multiplied with before the next tile's turn, so that they stay
/// in the second-level cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Writes `out[r * stride + o]`, the product of row `r` of the activations and row `o` of the
/// weights, for every `r` and for the rows `o` of `tiles`.
///
/// # Safety
/// `isa` must be available, the activations written, and `out` valid for writes of these outputs,
/// which nobody else may touch meanwhile.
///
/// # Panics
/// When the activations are not the layout's in columns and precision, when `packed` is not as
/// long as the layout says, or when the tiles do not exist.
pub unsafe fn matmul(
    isa: Isa,
    layout: &Layout,
    packed: &[u8],
    acts: &Activations,
    tiles: Range<usize>,
    out: *mut f32,
    stride: usize,
) {
    assert!(
        packed.len() == layout.bytes()
            && tiles.end <= layout.tiles()
            && acts.cols == layout.cols()
            && acts.precision == layout.precision(),
        "{layout:?}, {acts:?}, {} bytes, {tiles:?}",
        packed.len()
    );
    let kernels = isa.kernels();
    let (rows, end) = match kernels.words {
        // SAFETY: the caller's promise.
        Some(words) => unsafe {
            words::product(words, layout, packed, acts, tiles.clone(), out, stride)
        },
        None => (0, tiles.start),
    };
    // SAFETY: the caller's promise.
    unsafe {
        some_rows(kernels, layout, packed, acts, rows..acts.rows, tiles.start..end, out, stride);
        some_rows(kernels, layout, packed, acts, 0..acts.rows, end..tiles.end, out, stride);
    }
}

/// [`matmul`] for some of the rows, up to 8 of them at a time.
///
/// # Safety
/// As [`matmul`].
#[expect(clippy::too_many_arguments, reason = "a product and what part of it")]
unsafe fn some_rows(
    kernels: &Kernels,
    layout: &Layout,
    packed: &[u8],
    acts: &Activations,
    rows: Range<usize>,
    tiles: Range<usize>,
    out: *mut f32,
    stride: usize,
) {
    let ahead = ahead();
    // Where the last tile's outputs go when it is not whole.
    let mut rest = [[0.0; TILE]; BLOCK];
    let row_bytes = layout.cols() * if matches!(layout.store, Store::Floats(_)) { 4 } else { 2 };
    let chunk = (CHUNK_BYTES / row_bytes).next_multiple_of(BLOCK);
    for chunk in rows.clone().step_by(chunk).map(|r| r..rows.end.min(r + chunk)) {
        for tile in tiles.clone() {
            let first = tile * TILE;
            let outputs = TILE.min(layout.rows() - first);
            let tile = packed[tile * layout.tile_bytes()..].as_ptr();
            let mut row = chunk.start;
            while row < chunk.end {
                // The rows up to the end of the block of activations that this row is in.
                let most = acts.block - row % acts.block;
                let most = most.min(chunk.end - row);
                let kernel = kernels.by_rows.iter().position(|(n, _)| *n <= most);
                let found = kernel.and_then(|i| Some((i, kernels.by_rows.get(i)?)));
                let Some((kernel, (rows, by_rows))) = found else {
                    return;
                };
                let x = acts.at(row).cast_const();
                let whole = outputs == TILE;
                // SAFETY: a whole tile; `rows` rows of activations of as many columns, in one
                // block; 16 outputs a row, in `out`, as the caller promised, or in a buffer for
                // `BLOCK` rows. The caller has the instruction set.
                unsafe {
                    let to = out.add(row * stride + first);
                    let buffer = rest.as_mut_ptr().cast();
                    let (y, stride) = if whole { (to, stride) } else { (buffer, TILE) };
                    match layout.store {
                        Store::Planes(quant, shape) => {
                            let (groups, step) = (layout.cols() / GROUP, acts.step());
                            let args =
                                PlanesArgs { quant, tile, groups, x, step, y, stride, ahead };
                            by_rows.planes[shape](&args);
                        }
                        Store::Floats(width) => {
                            let (cols, x, step) = (layout.cols(), x.cast(), acts.block);
                            let args = FloatArgs { tile, cols, x, step, y, stride, ahead };
                            let pairs = kernels.pairs.filter(|_| width == Width::Bf16);
                            match pairs.and_then(|pairs| pairs.get(kernel)) {
                                Some(pairs) => pairs(&args),
                                None => by_rows.floats[width as usize](&args),
                            }
                        }
                    }
                }
                if !whole {
                    for (r, y) in (row..).zip(&rest[..*rows]) {
                        // SAFETY: the caller's promise about `out`.
                        unsafe {
                            let to = out.add(r * stride + first);
                            to.copy_from_nonoverlapping(y.as_ptr(), outputs);
                        }
                    }
                }
                row += rows;
            }
        }
    }
}

/// [`matmul`] over all tiles, into rows of as many outputs as the weights have.
///
/// # Panics
/// As [`matmul`], when `isa` is not available, and when `out` is not exactly as long.
pub fn matmul_all(isa: Isa, layout: &Layout, packed: &[u8], acts: &Activations, out: &mut [f32]) {
    assert!(isa.is_available(), "{isa:?}");
    assert!(layout.rows().checked_mul(acts.rows) == Some(out.len()), "{layout:?}, {acts:?}");
    let tiles = 0..layout.tiles();
    // SAFETY: just checked.
    unsafe { matmul(isa, layout, packed, acts, tiles, out.as_mut_ptr(), layout.rows()) }
}

#[cfg(test)]
mod tests;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 gains by them"))]
pub(super) mod words;
