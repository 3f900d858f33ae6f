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
//! outputs are kept in a few registers or a few cache lines.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::float::FloatArgs;
use super::quantize::{Activations, BLOCK, RECORD, SCALE, SCALED, SUMS};
use super::repack::{GROUP, LINE, Layout, SPAN, Span, Store, TILE};
use super::simd::{Isa, Simd};
use crate::model::format::{Codes, Min, Quant, Scale};

/// The kernels' shapes: bits of the low and the high plane, whether a scale is shared by 16
/// instead of 32, whether there are minimums, whether several groups share a scale, and the bits of
/// what codes stand for where that is in a table. Codes of one bit alone count double.
const SHAPE: [(u32, u32, bool, bool, bool, u32); SHAPES] = [
    (1, 0, false, false, true, 0),
    (2, 0, false, false, true, 0),
    (2, 0, true, true, false, 0),
    (2, 1, true, false, false, 0),
    (4, 0, false, false, false, 0),
    (4, 0, false, false, false, 5),
    (4, 0, false, false, false, 8),
    (4, 0, false, true, false, 0),
    (4, 1, false, false, false, 0),
    (4, 1, false, true, false, 0),
    (4, 2, true, false, false, 0),
    (8, 0, false, false, false, 0),
];

/// How many shapes there are.
pub(super) const SHAPES: usize = 12;

/// The index of a format's kernels, if it has any.
pub(super) fn shape_index(quant: &Quant) -> Option<usize> {
    let min = !matches!(quant.min, Min::Zero(_));
    let shared = quant.scale == Scale::One && quant.block > GROUP;
    let table = match quant.codes {
        Codes::Table(table) if table.iter().all(|value| *value < 1 << 5) => 5,
        Codes::Table(_) => 8,
        _ => 0,
    };
    let double = (quant.lo, quant.hi) == (1, 0);
    let shape = (quant.lo, quant.hi, quant.group != GROUP, min, shared, table);
    let fits = double == (quant.codes == Codes::Double);
    SHAPE.iter().position(|s| fits && *s == shape)
}

/// How far ahead of the codes the next ones are asked for when there is one row of activations, so
/// that memory is what bounds a kernel.
const AHEAD: usize = 2048;

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
    const SHARED: bool,
    const TABLE: u32,
    const ROWS: usize,
>(
    args: &PlanesArgs,
) {
    let mut scales = MaybeUninit::<Scales>::uninit();
    let mut mins = MaybeUninit::<Scales>::uninit();
    let scales = scales.as_mut_ptr().cast::<f32>();
    let mins = mins.as_mut_ptr().cast::<f32>();
    // Scales of a group, and groups of a scale: powers of two.
    let per_group = if HALVES { 2 } else { 1 };
    let shared = if SHARED { args.quant.block / GROUP } else { 1 };
    let bias = if TABLE.max(LO + HI) == 8 { S::BIAS } else { 0 };
    let zero = if let Min::Zero(z) = args.quant.min { bias - z } else { bias };
    let table = match args.quant.codes {
        // SAFETY: the table has 16 bytes.
        Codes::Table(table) if TABLE > 0 => unsafe { S::table(table.as_ptr()) },
        // SAFETY: the caller's promise.
        _ => unsafe { S::zero() },
    };
    let whole = Span::of(args.quant, SPAN);
    let (mut tile, mut x, mut left) = (args.tile, args.x, args.groups);
    while left > 0 {
        let groups = left.min(SPAN);
        let span = if groups == SPAN { whole } else { Span::of(args.quant, groups) };
        // SAFETY: a span of a tile, records of its groups, and 16 outputs of each row, all of
        // which the caller promised; as many scales as a span has groups are written before
        // they are read.
        unsafe {
            let count = (groups * per_group) >> shared.trailing_zeros();
            header::<S, MIN>(args.quant, tile, &span, count, scales, mins);
            for lane in (0..TILE).step_by(S::LANES) {
                let to = args.y.add(lane);
                // The outputs so far or, of blocks with one scale, what is yet to meet it.
                let mut y = [S::splat(0.0); ROWS];
                if left < args.groups && !SHARED {
                    for (r, y) in y.iter_mut().enumerate() {
                        *y = S::load_f32(to.add(r * args.stride));
                    }
                }
                let mut w = tile.add(span.codes + 4 * lane);
                let (mut x, mut at) = (x, lane);
                for group in 1..=groups {
                    if ROWS == 1 {
                        for line in (0..LINE * (LO + HI) as usize).step_by(LINE) {
                            S::prefetch(w.wrapping_add(AHEAD + line));
                        }
                    }
                    let mut acc = [[S::zero(); 2]; ROWS];
                    half::<S, LO, HI, TABLE, 0, ROWS>(w, x, table, &mut acc);
                    if HALVES {
                        let (s, m) = (scales.add(at), mins.add(at));
                        fold::<S, MIN, SHARED, 0, ROWS>(x, zero, s, m, &acc, &mut y);
                        acc = [[S::zero(); 2]; ROWS];
                        half::<S, LO, HI, TABLE, 1, ROWS>(w, x, table, &mut acc);
                        let (s, m) = (s.add(TILE), m.add(TILE));
                        fold::<S, MIN, SHARED, 1, ROWS>(x, zero, s, m, &acc, &mut y);
                    } else {
                        half::<S, LO, HI, TABLE, 1, ROWS>(w, x, table, &mut acc);
                        let (s, m) = (scales.add(at), mins.add(at));
                        fold::<S, MIN, SHARED, 2, ROWS>(x, zero, s, m, &acc, &mut y);
                    }
                    w = w.add(LINE * (LO + HI) as usize);
                    x = x.add(args.step);
                    if !SHARED {
                        at += per_group * TILE;
                    } else if group & (shared - 1) == 0 {
                        let scale = S::load_f32(scales.add(at));
                        let first = left == args.groups && group == shared;
                        for (r, y) in y.iter_mut().enumerate() {
                            let to = to.add(r * args.stride);
                            let before = if first { S::splat(0.0) } else { S::load_f32(to) };
                            S::store(to, S::fma(*y, scale, before));
                            *y = S::splat(0.0);
                        }
                        at += TILE;
                    }
                }
                if SHARED {
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

/// Scales of a span's groups of 16 or 32 columns, for 16 rows.
#[repr(align(64))]
struct Scales(#[expect(dead_code, reason = "written and read by lanes")] [[f32; TILE]; 2 * SPAN]);

/// Writes the scales of a span's `groups` groups as f32, and what is added where there are
/// minimums.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn header<S: Simd, const MIN: bool>(
    quant: &Quant,
    tile: *const u8,
    span: &Span,
    groups: usize,
    scales: *mut f32,
    mins: *mut f32,
) {
    for lane in (0..TILE).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let (d, m) = (tile.add(2 * lane), tile.add(span.m + 2 * lane));
            match quant.scale {
                Scale::One => {
                    for at in (0..groups * TILE).step_by(TILE) {
                        S::store(scales.add(at + lane), S::load_f16(d.add(2 * at)));
                        if MIN {
                            S::store(mins.add(at + lane), S::load_f16(m.add(2 * at)));
                        }
                    }
                }
                Scale::Exponent => {
                    let e = tile.add(span.scales + lane);
                    for at in (0..groups * TILE).step_by(TILE) {
                        S::store(scales.add(at + lane), S::load_e8m0(e.add(at)));
                    }
                }
                Scale::TwoLevel => {
                    let (d, m) = (S::load_f16(d), S::load_f16(m));
                    let m = S::mul(m, S::splat(-1.0));
                    let (s8, m8) = (tile.add(span.scales + lane), tile.add(span.mins + lane));
                    for at in (0..groups * TILE).step_by(TILE) {
                        S::store(scales.add(at + lane), S::mul(d, S::load_i8(s8.add(at))));
                        if MIN {
                            S::store(mins.add(at + lane), S::mul(m, S::load_u8(m8.add(at))));
                        }
                    }
                }
            }
        }
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
            for (digit, acc) in acc.iter_mut().enumerate() {
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

/// Adds what a group's sums of products come to, to the outputs or, before their scale is `SHARED`,
/// to the block's sums. `SUM` picks the activations' sum: of the first 16, the second 16, or all 32.
///
/// # Safety
/// As [`planes`].
#[inline(always)]
unsafe fn fold<
    S: Simd,
    const MIN: bool,
    const SHARED: bool,
    const SUM: usize,
    const ROWS: usize,
>(
    x: *const u8,
    zero: i32,
    scales: *const f32,
    mins: *const f32,
    acc: &[[S::I; 2]; ROWS],
    y: &mut [S::F; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = if SHARED { S::splat(1.0) } else { S::load_f32(scales) };
        for r in 0..ROWS {
            let number =
                |at: usize| S::splat(x.add(r * RECORD + at).cast::<f32>().read_unaligned());
            // Off zero in integers: as f32 the sums of 8-bit codes would lose their last bits.
            let sum = x.add(r * RECORD + SUMS + 4 * SUM).cast::<i32>().read_unaligned();
            let offset = if MIN { 0 } else { zero * sum };
            let dot = S::float(S::join(acc[r][0], acc[r][1], offset));
            if SHARED {
                y[r] = S::fma(dot, number(SCALE), y[r]);
                continue;
            }
            y[r] = S::fma(S::mul(dot, number(SCALE)), scale, y[r]);
            if MIN {
                y[r] = S::fma(number(SCALED + 4 * SUM), S::load_f32(mins), y[r]);
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
    // Where the last tile's outputs go when it is not whole.
    let mut rest = [[0.0; TILE]; BLOCK];
    let row_bytes = layout.cols() * if matches!(layout.store, Store::Floats(_)) { 4 } else { 2 };
    let chunk = (CHUNK_BYTES / row_bytes).next_multiple_of(BLOCK);
    for chunk in (0..acts.rows).step_by(chunk).map(|r| r..acts.rows.min(r + chunk)) {
        for tile in tiles.clone() {
            let first = tile * TILE;
            let outputs = TILE.min(layout.rows() - first);
            let tile = packed[tile * layout.tile_bytes()..].as_ptr();
            let mut row = chunk.start;
            while row < chunk.end {
                // The rows up to the end of the block of activations that this row is in.
                let most = acts.block - row % acts.block;
                let most = most.min(chunk.end - row);
                let Some((rows, by_rows)) = kernels.by_rows.iter().find(|(n, _)| *n <= most) else {
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
                            let (groups, step) = (layout.cols() / GROUP, acts.block * RECORD);
                            let args = PlanesArgs { quant, tile, groups, x, step, y, stride };
                            by_rows.planes[shape](&args);
                        }
                        Store::Floats(width) => {
                            let (cols, x, step) = (layout.cols(), x.cast(), acts.block);
                            let args = FloatArgs { tile, cols, x, step, y, stride };
                            by_rows.floats[width as usize](&args);
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
