//! Products of many rows with floats: a span of one tile or two is opened to f32 once for all of them.
//!
//! [`floats`](super::floats) takes a number of a row from memory for each multiplication, and what
//! widens weights takes the place of multiplications. Here a span of as many tiles as make two vectors is
//! brought into the first-level cache as f32, and what is broadcast of a row meets both. With both of a span's
//! chains there would be registers for half as many rows; so the even columns of all come first, then the odd
//! ones. The chains are the same, and so are the bits.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::cpu::matmul::Outputs;
use crate::cpu::quantize::{Activations, BLOCK};
use crate::cpu::repack::{GROUP, Layout, SPAN, Store, TILE, Width};
use crate::cpu::simd::{Simd, ask_meanwhile};

/// So many rows are worth opening a span for.
const ENOUGH: usize = 16;

/// Tiles that meet a row at once, at most.
const TILES: usize = 2;

/// Columns of a span.
const COLUMNS: usize = GROUP * SPAN;

/// A span of two tiles, or of one: column by column.
#[repr(C, align(64))]
pub(in crate::cpu) struct Opened([f32; COLUMNS * TILES * TILE]);

/// A span of one tile to open, and where to.
pub(in crate::cpu) struct OpenArgs {
    /// Where the span begins in the tile.
    from: *const u8,
    columns: usize,
    /// Where its first column goes, and numbers to the next one.
    to: *mut f32,
    width: usize,
}

pub(in crate::cpu) type OpenFn = unsafe fn(&OpenArgs);

/// Blocks of activation rows to multiply with an opened span.
pub(in crate::cpu) struct RowsArgs {
    opened: *const f32,
    columns: usize,
    /// The first block's f32 of the span's first column.
    x: *const f32,
    /// Bytes to the next block.
    next: usize,
    /// Where the sums of even columns wait for the others: of this function's making, the compiler would
    /// keep them in registers and others in memory.
    even: *mut [[f32; TILES * TILE]; BLOCK],
    /// Outputs of each row.
    y: Outputs,
    /// Whether the outputs begin with this span.
    first: bool,
}

pub(in crate::cpu) type RowsFn = unsafe fn(&RowsArgs);

/// The kernels: those that open a span, by [`Width`], and those that multiply so many blocks of rows, the most first and last
/// one: one column at a time or a pair (BF16), with one tile or as many as meet a row at once.
pub(in crate::cpu) struct FloatKernels {
    pub(in crate::cpu) open: [OpenFn; 3],
    pub(in crate::cpu) rows: &'static [(usize, [&'static [RowsFn]; 2])],
}

/// Opens a span of one tile.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(in crate::cpu) unsafe fn open<S: Simd, const WIDTH: u8>(args: &OpenArgs) {
    for lane in (0..TILE).step_by(S::LANES) {
        // SAFETY: a span of a tile, and an opened one to write, which the caller promised.
        unsafe {
            let to = |column: usize| args.to.add(column * args.width + lane);
            if WIDTH == Width::Bf16 as u8 {
                for column in (0..args.columns).step_by(2) {
                    let pair = S::load(args.from.add(2 * TILE * column + 4 * lane));
                    S::store(to(column), S::even(pair));
                    S::store(to(column + 1), S::odd(pair));
                }
                continue;
            }
            for column in 0..args.columns {
                let at = TILE * column + lane;
                let w = if WIDTH == Width::F32 as u8 {
                    S::load_f32(args.from.add(4 * at).cast())
                } else {
                    S::load_f16(args.from.add(2 * at))
                };
                S::store(to(column), w);
            }
        }
    }
}

/// Adds the products of `BLOCKS` blocks of rows, `ROWS` rows at a time, with `N` vectors of opened tiles.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(in crate::cpu) unsafe fn rows<
    S: Simd,
    const PAIR: bool,
    const N: usize,
    const ROWS: usize,
    const BLOCKS: usize,
>(
    args: &RowsArgs,
) {
    for row in (0..BLOCKS * BLOCK).step_by(ROWS) {
        // SAFETY: an opened span, activations of its columns, and outputs of its tiles for each row, all
        // of which the caller promised.
        unsafe {
            let even = |r: usize, n: usize| (&raw mut (*args.even)[r][n * S::LANES]);
            let sums = chain::<S, PAIR, N, ROWS>(args, row, 0);
            for (r, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    S::store(even(r, n), *sum);
                }
            }
            let sums = chain::<S, PAIR, N, ROWS>(args, row, if PAIR { 2 } else { 1 });
            for (r, sums) in sums.into_iter().enumerate() {
                for (n, odd) in sums.into_iter().enumerate() {
                    let y = args.y.of(row + r).add(n * S::LANES);
                    let mut sum = S::add(S::load_f32(even(r, n)), odd);
                    if !args.first {
                        sum = S::add(S::load_f32(y), sum);
                    }
                    S::store(y, sum);
                }
            }
        }
    }
}

/// The sums of every other column, or pair of columns, from `start` on, of rows from `row` on.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn chain<S: Simd, const PAIR: bool, const N: usize, const ROWS: usize>(
    args: &RowsArgs,
    row: usize,
    start: usize,
) -> [[S::F; N]; ROWS] {
    let step = if PAIR { 2 } else { 1 };
    // Rows that are not of one block are found one by one.
    let place =
        |row: usize| args.x.wrapping_byte_add(row / BLOCK * args.next).wrapping_add(row % BLOCK);
    let first = place(row);
    let apart: [*const f32; ROWS] = std::array::from_fn(|r| place(row + r));
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; ROWS];
        for at in (start..args.columns).step_by(2 * step) {
            S::prefetch(first.wrapping_add(BLOCK * at).cast::<u8>().wrapping_add(args.next));
            for i in 0..step {
                // Of a pair, the second first.
                let column = at + step - 1 - i;
                let w: [S::F; N] = std::array::from_fn(|n| {
                    S::load_f32(args.opened.add((column * N + n) * S::LANES))
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x =
                        if BLOCK.is_multiple_of(ROWS) { first.wrapping_add(r) } else { apart[r] };
                    let x = S::splat(*x.add(BLOCK * column));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = S::fma(w, x, *sum);
                    }
                }
            }
        }
        sums
    }
}

/// Computes what of a product these kernels are for, as [`matmul`](crate::cpu::matmul::matmul) says it: whole
/// tiles of `tiles`, and of the activations whole blocks and a last one more than half full. Returns how many
/// rows and where the tiles end.
///
/// # Safety
/// As `matmul`.
pub(in crate::cpu) unsafe fn product(
    kernels: &FloatKernels,
    layout: &Layout,
    packed: &[u8],
    acts: &Activations,
    tiles: Range<usize>,
    out: *mut f32,
    stride: usize,
) -> (usize, usize) {
    let nothing = (0, tiles.start);
    let Store::Floats(width) = layout.store else { return nothing };
    let end = tiles.end.min(layout.rows() / TILE);
    let rows = acts.many(ENOUGH);
    if rows == 0 || end <= tiles.start {
        return nothing;
    }
    let Some(open) = kernels.open.get(width as usize) else { return nothing };
    let paired = usize::from(width == Width::Bf16);
    let Some((_, of_block)) = kernels.rows.last() else { return nothing };
    let at_once = of_block[paired].len().min(TILES);
    let cols = layout.cols().next_multiple_of(1 + paired);
    let mut opened = MaybeUninit::<Opened>::uninit();
    let mut even = [[0.0f32; TILES * TILE]; BLOCK];
    let even = &raw mut even;
    // Outputs of rows that there are not.
    let mut nobody = [0.0f32; TILES * TILE];
    let outputs = Outputs { first: out, stride, rows, nobody: nobody.as_mut_ptr() };
    // Where a span of a tile begins, and its bytes.
    let place = |tile: usize, from: usize| {
        let at = tile * layout.tile_bytes() + from * TILE * width.bytes();
        packed.as_ptr().wrapping_add(at)
    };
    let firsts = || (tiles.start..end).step_by(at_once);
    let mut all = (0..cols).step_by(COLUMNS).flat_map(|from| firsts().map(move |t| (t, from)));
    let mut now = all.next();
    while let Some((tile, from)) = now {
        now = all.next();
        let (columns, n) = (COLUMNS.min(cols - from), at_once.min(end - tile));
        let to = opened.as_mut_ptr().cast::<f32>();
        for index in 0..n {
            let (from, to) = (place(tile + index, from), to.wrapping_add(index * TILE));
            // SAFETY: a span of a whole tile, and room for as many columns of `n` of them; the caller has the
            // instruction set.
            unsafe { open(&OpenArgs { from, columns, to, width: n * TILE }) };
        }
        // What is opened next: perhaps of the tiles behind these.
        let (tile_next, from_next) = now.unwrap_or((end, 0));
        let bytes = columns * TILE * width.bytes();
        let opens = |index| place(tile_next + index, from_next);
        let (mut block, all_blocks) = (0, rows.div_ceil(BLOCK));
        while let Some((blocks, by_tiles)) =
            kernels.rows.iter().find(|(blocks, _)| (1..=all_blocks - block).contains(blocks))
        {
            for i in block..block + blocks {
                ask_meanwhile((0..at_once).map(opens), bytes, i, all_blocks);
            }
            let row = block * BLOCK;
            block += blocks;
            let x = acts.at(row).cast::<f32>().wrapping_add(from * BLOCK);
            let y = outputs.at(row, tile);
            let (opened, first, next) = (to.cast_const(), from == 0, cols * BLOCK * 4);
            let args = RowsArgs { opened, columns, x, next, even, y, first };
            // SAFETY: the span was opened; a block has numbers of 8 rows whatever they are; outputs
            // of whole tiles, as the caller promised. It has the instruction set.
            unsafe { by_tiles[paired][n - 1](&args) };
        }
    }
    (rows, end)
}
