//! Products of many rows: codes are opened to 16 bits once for all of them.
//!
//! Where a block of activations has 8 rows, one digit's instruction would be repeated for the
//! other, and every row would broadcast its activations anew for every tile. Here an activation
//! is one integer of 16 bits, and so is a code less its zero: a span of two tiles is opened into
//! the first-level cache, with its scales as f32, and then meets all rows. What is broadcast is
//! multiplied with both tiles, so that loads do not outnumber multiplications.
//!
//! The integers are the ones that [`planes`](super::planes) has, the sums are as exact, and the
//! floats are added in the same order: the outputs are the same to the last bit.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::kernel::{Scales, quad, table};
use super::{Outputs, SHAPES};
use crate::cpu::quantize::{Activations, BLOCK, SCALES, SUMS, WORDS};
use crate::cpu::repack::{GROUP, LINE, Layout, SPAN, Span, Store, TILE};
use crate::cpu::simd::{Simd, ask_meanwhile};
use crate::model::format::{Min, Quant};

/// An instruction set that multiplies pairs of 16-bit integers.
///
/// # Safety
/// As [`Simd`].
pub(in crate::cpu) trait Words: Simd {
    /// The even bytes, and the odd ones, less `zero`, as 16 bits each.
    unsafe fn words(x: Self::I, zero: i32) -> [Self::I; 2];
    /// `LANES` i8, each in both halves of its lane.
    unsafe fn both(at: *const u8) -> Self::I;
    /// The products of halves of lanes. None is more than 16 bits.
    unsafe fn mul_words(x: Self::I, y: Self::I) -> Self::I;
    unsafe fn store_words(at: *mut u8, x: Self::I);
    /// Adds to each lane the products of its two pairs of 16 bits. Wraps.
    unsafe fn dot_words(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
}

/// So many rows are worth opening a span for.
const ENOUGH: usize = 16;

/// Tiles that meet an activation at once.
const TILES: usize = 2;

/// Pairs of columns of a group.
const PAIRS: usize = GROUP / 2;

/// A span of two tiles.
#[repr(C, align(64))]
pub(in crate::cpu) struct Opened {
    words: [[[i32; TILE]; TILES]; PAIRS * SPAN],
    /// One a group of 32; where 16 columns have an integer, words are multiplied with that, and there is one for all.
    scales: [[[f32; TILE]; TILES]; SPAN],
    mins: [[[f32; TILE]; TILES]; SPAN],
}

/// A span of one tile to open, and where to.
pub(in crate::cpu) struct OpenArgs {
    quant: &'static Quant,
    tile: *const u8,
    groups: usize,
    to: *mut Opened,
    /// Which of the two it becomes.
    index: usize,
}

pub(in crate::cpu) type OpenFn = unsafe fn(&OpenArgs);

/// A block of activation rows to multiply with an opened span.
pub(in crate::cpu) struct RowsArgs {
    opened: *const Opened,
    groups: usize,
    /// The block's integers of the span's first group.
    x: *const u8,
    /// Bytes to the next block.
    next: usize,
    /// Pairs of columns that share a scale. The kernel could know it, but then all of them would be
    /// unrolled and the multiplications taken apart, to shorten chains that are short enough.
    pairs: usize,
    /// Outputs of each row.
    y: Outputs,
    /// Whether the outputs begin with this span.
    first: bool,
}

pub(in crate::cpu) type RowsFn = unsafe fn(&RowsArgs);

/// The kernels: those that open a span, by shape, where there are any (those with a scale for several groups have none); and
/// those that multiply, for one tile and for two, by [`rows_index`].
pub(in crate::cpu) struct WordKernels {
    pub(in crate::cpu) open: [Option<OpenFn>; SHAPES],
    pub(in crate::cpu) rows: [[RowsFn; TILES]; 3],
}

/// Whether a scale is shared by 16 columns, or there are minimums: no format of two digits has both.
fn rows_index(quant: &Quant) -> usize {
    match (quant.group != GROUP, quant.min) {
        (true, _) => 1,
        (false, Min::Zero(_)) => 0,
        _ => 2,
    }
}

/// Opens a span of one tile.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(in crate::cpu) unsafe fn open<
    S: Words,
    const LO: u32,
    const HI: u32,
    const HALVES: bool,
    const MIN: bool,
    const SCALES: u8,
    const TABLE: u32,
>(
    args: &OpenArgs,
) {
    // SAFETY: the caller's promise.
    let table = unsafe { table::<S, TABLE>(args.quant) };
    let span = Span::of(args.quant, args.groups);
    let zero = if let Min::Zero(zero) = args.quant.min { zero } else { 0 };
    for lane in (0..TILE).step_by(S::LANES) {
        // SAFETY: a span of a tile, and an opened one to write, which the caller promised.
        unsafe {
            let to = &raw mut (*args.to).words;
            let to = to.cast::<u8>().add(4 * (TILE * args.index + lane));
            let scales = Scales::<S>::of::<SCALES, MIN>(args.tile, &span, lane);
            let scale_at = |i: usize| &raw mut (*args.to).scales[i][args.index][lane];
            let mut w = args.tile.add(span.codes + 4 * lane);
            if HALVES {
                S::store(scale_at(0), scales.of_block::<SCALES>(0).0);
            }
            for group in 0..args.groups {
                // Of each half.
                let by: [_; 2] = std::array::from_fn(|half| {
                    if HALVES { S::both(scales.integers(2 * group + half)) } else { table }
                });
                macro_rules! quads {
                    ($($i:literal)*) => { $(
                        let words = S::words(quad::<S, LO, HI, TABLE>(w, $i, table), zero);
                        for (i, mut words) in words.into_iter().enumerate() {
                            let pair = PAIRS * group + 2 * $i + i;
                            if HALVES {
                                words = S::mul_words(words, by[$i / 4]);
                            }
                            S::store_words(to.add(4 * TILE * TILES * pair), words);
                        }
                    )* };
                }
                quads! { 0 1 2 3 4 5 6 7 }
                w = w.add(LINE * (LO + HI) as usize);
                if !HALVES {
                    let (scale, min) = scales.at::<SCALES, MIN>(group);
                    S::store(scale_at(group), scale);
                    if MIN {
                        S::store(&raw mut (*args.to).mins[group][args.index][lane], min);
                    }
                }
            }
        }
    }
}

/// Adds to outputs what `K` parts from `part` on come to, of rows from `first` and lanes from `lane` on.
///
/// # Safety
/// As [`rows`]; there are as many parts.
#[inline(always)]
unsafe fn parts<
    S: Words,
    const HALVES: bool,
    const MIN: bool,
    const N: usize,
    const ROWS: usize,
    const K: usize,
>(
    args: &RowsArgs,
    (first, lane): (usize, usize),
    part: usize,
    y: &mut [[S::F; N]; ROWS],
) {
    let parts = if HALVES { 2 } else { 1 };
    let pairs = PAIRS / parts;
    // SAFETY: an opened span, and records of its groups, which the caller promised.
    unsafe {
        let record = |k: usize| args.x.add((part + k) / parts * WORDS);
        let words = (&raw const (*args.opened).words).cast::<u8>();
        let w: [_; K] =
            std::array::from_fn(|k| words.add(4 * lane + 4 * TILE * TILES * pairs * (part + k)));
        let x: [_; K] =
            std::array::from_fn(|k| record(k).add((part + k) % parts * (SCALES / 2) + 4 * first));
        let mut acc = [[[S::set(0); N]; ROWS]; K];
        for pair in 0..args.pairs {
            // The next block's lines of all parts, or nearly so.
            S::prefetch(record(0).wrapping_add(args.next + LINE * pair));
            for (acc, (w, x)) in acc.iter_mut().zip(w.iter().zip(x)) {
                let (w, x) = (w.add(4 * TILE * TILES * pair), x.add(4 * BLOCK * pair));
                let mut tiles = [S::set(0); N];
                for (n, tile) in tiles.iter_mut().enumerate() {
                    *tile = S::load(w.add(4 * TILE * n));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = S::set(x.add(4 * r).cast::<i32>().read_unaligned());
                    for (acc, tile) in acc.iter_mut().zip(tiles) {
                        *acc = S::dot_words(*acc, tile, x);
                    }
                }
            }
        }
        for k in 0..K / parts {
            let group = (part / parts) + k;
            let record = args.x.add(group * WORDS);
            let number = |at: usize, r: usize| {
                let at = record.add(at + 4 * (first + r)).cast::<f32>();
                S::splat(at.read_unaligned())
            };
            for (r, y) in y.iter_mut().enumerate() {
                let a = number(SCALES, r);
                for (n, y) in y.iter_mut().enumerate() {
                    let dot = |p: usize| S::float(acc[parts * k + p][r][n]);
                    *y = if HALVES {
                        // Both halves of a group meet the activations' scale together, and the block's later.
                        S::fma(S::add(dot(0), dot(1)), a, *y)
                    } else {
                        let scale = S::load_f32(&raw const (*args.opened).scales[group][n][lane]);
                        S::fma(S::mul(dot(0), a), scale, *y)
                    };
                    if MIN {
                        let min = S::load_f32(&raw const (*args.opened).mins[group][n][lane]);
                        *y = S::fma(number(SUMS, r), min, *y);
                    }
                }
            }
        }
    }
}

/// Adds the products of a block of rows, `ROWS` of them at a time, with `N` opened tiles. Sums of `PARTS` parts (16 columns
/// that share a scale, of which two go together, or a group) are made at once.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(in crate::cpu) unsafe fn rows<
    S: Words,
    const HALVES: bool,
    const MIN: bool,
    const N: usize,
    const ROWS: usize,
    const PARTS: usize,
>(
    args: &RowsArgs,
) {
    let parts = args.groups * if HALVES { 2 } else { 1 };
    for (first, lane) in
        (0..BLOCK).step_by(ROWS).flat_map(|r| (0..TILE).step_by(S::LANES).map(move |l| (r, l)))
    {
        // SAFETY: an opened span, records of its groups, and 16 outputs a tile of each row, all
        // of which the caller promised.
        unsafe {
            let mut y = [[S::splat(0.0); N]; ROWS];
            let at = |r: usize, n: usize| args.y.of(first + r).add(TILE * n + lane);
            if !args.first && !HALVES {
                for (r, y) in y.iter_mut().enumerate() {
                    for (n, y) in y.iter_mut().enumerate() {
                        *y = S::load_f32(at(r, n));
                    }
                }
            }
            let mut part = 0;
            while part + PARTS <= parts {
                self::parts::<S, HALVES, MIN, N, ROWS, PARTS>(args, (first, lane), part, &mut y);
                part += PARTS;
            }
            while !HALVES && part < parts {
                self::parts::<S, HALVES, MIN, N, ROWS, 1>(args, (first, lane), part, &mut y);
                part += 1;
            }
            for (r, y) in y.iter().enumerate() {
                for (n, &y) in y.iter().enumerate() {
                    let y = if HALVES {
                        let scale = S::load_f32(&raw const (*args.opened).scales[0][n][lane]);
                        let before = if args.first { S::splat(0.0) } else { S::load_f32(at(r, n)) };
                        S::fma(y, scale, before)
                    } else {
                        y
                    };
                    S::store(at(r, n), y);
                }
            }
        }
    }
}

/// Computes what of a product these kernels are for, as [`super::matmul`] says it: whole tiles of
/// `tiles`, and of the activations whole blocks and a last one more than half full. Returns how many rows and where the
/// tiles end.
///
/// # Safety
/// As [`super::matmul`].
pub(super) unsafe fn product(
    kernels: &WordKernels,
    layout: &Layout,
    packed: &[u8],
    acts: &Activations,
    tiles: Range<usize>,
    out: *mut f32,
    stride: usize,
) -> (usize, usize) {
    let nothing = (0, tiles.start);
    let Store::Planes(quant, shape) = layout.store else { return nothing };
    let Some(open) = kernels.open.get(shape).copied().flatten() else { return nothing };
    let end = tiles.end.min(layout.rows() / TILE);
    let rows = acts.many(ENOUGH);
    if rows == 0 || end <= tiles.start {
        return nothing;
    }
    let by_tiles = &kernels.rows[rows_index(quant)];
    let mut opened = MaybeUninit::<Opened>::uninit();
    // Outputs of rows that there are not.
    let mut nobody = [0.0f32; TILES * TILE];
    let outputs = Outputs { first: out, stride, rows, nobody: nobody.as_mut_ptr() };
    let (groups, pairs) = (layout.cols() / GROUP, quant.group.min(GROUP) / 2);
    let mut at = 0;
    for span in (0..groups).step_by(SPAN) {
        let groups = SPAN.min(groups - span);
        let bytes = Span::of(quant, groups).bytes;
        for tile in (tiles.start..end).step_by(TILES) {
            let n = TILES.min(end - tile);
            // What is opened next: of the tiles behind these, or of the first ones the span behind this.
            let (next, from) =
                if tile + TILES < end { (tile + TILES, at) } else { (tiles.start, at + bytes) };
            let place =
                |index| packed.as_ptr().wrapping_add((next + index) * layout.tile_bytes() + from);
            for index in 0..n {
                let tile = packed[(tile + index) * layout.tile_bytes()..][at..].as_ptr();
                let to = opened.as_mut_ptr();
                // SAFETY: a span of a whole tile; the caller has the instruction set.
                unsafe { open(&OpenArgs { quant, tile, groups, to, index }) };
            }
            for row in (0..rows).step_by(BLOCK) {
                ask_meanwhile((0..TILES).map(place), bytes, row / BLOCK, rows.div_ceil(BLOCK));
                let x = acts.words_at(row).wrapping_add(span * WORDS);
                let y = outputs.at(row, tile);
                let (opened, first) = (opened.as_ptr(), span == 0);
                let args =
                    RowsArgs { opened, groups, x, next: acts.groups() * WORDS, pairs, y, first };
                // SAFETY: the span was opened; a block has integers of 8 rows whatever is in
                // them; outputs of whole tiles, as the caller promised. It has the instruction
                // set.
                unsafe { by_tiles[n - 1](&args) };
            }
        }
        at += bytes;
    }
    (rows, end)
}
