//! Products of many rows with floats: a span of two tiles is opened to f32 once for all of them.
//!
//! [`floats`](super::floats) takes a number of a row from memory for each multiplication, and what
//! widens weights takes the place of multiplications. Here a span of two tiles is brought into the
//! first-level cache as f32, and what is broadcast of a row meets both. For two tiles of eight rows both of
//! a span's chains do not fit into the registers; so the even columns of all come first, then the odd ones.
//! The chains are the same, and so are the bits.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::cpu::matmul::Outputs;
use crate::cpu::quantize::{Activations, BLOCK};
use crate::cpu::repack::{GROUP, Layout, SPAN, Store, TILE, Width};
use crate::cpu::simd::{Simd, ask_meanwhile};

/// So many rows are worth opening a span for.
const ENOUGH: usize = 16;

/// Tiles that meet a row at once.
const TILES: usize = 2;

/// Columns of a span.
const COLUMNS: usize = GROUP * SPAN;

/// A span of two tiles.
#[repr(C, align(64))]
pub(in crate::cpu) struct Opened([[[f32; TILE]; TILES]; COLUMNS]);

/// A span of one tile to open, and where to.
pub(in crate::cpu) struct OpenArgs {
    /// Where the span begins in the tile.
    from: *const u8,
    columns: usize,
    to: *mut Opened,
    /// Which of the two it becomes.
    index: usize,
}

pub(in crate::cpu) type OpenFn = unsafe fn(&OpenArgs);

/// A block of activation rows to multiply with an opened span.
pub(in crate::cpu) struct RowsArgs {
    opened: *const Opened,
    columns: usize,
    /// The block's f32 of the span's first column.
    x: *const f32,
    /// Bytes to the next block.
    next: usize,
    /// Where the sums of even columns wait for the others: of this function's making, the compiler would
    /// keep them in registers and others in memory.
    even: *mut [[[f32; TILE]; TILES]; BLOCK],
    /// Outputs of each row.
    y: Outputs,
    /// Whether the outputs begin with this span.
    first: bool,
}

pub(in crate::cpu) type RowsFn = unsafe fn(&RowsArgs);

/// The kernels: those that open a span, by [`Width`], and those that multiply, one column at a time or a pair
/// (BF16), with one tile or two.
pub(in crate::cpu) struct FloatKernels {
    pub(in crate::cpu) open: [OpenFn; 3],
    pub(in crate::cpu) rows: [[RowsFn; TILES]; 2],
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
            let to = |column: usize| &raw mut (*args.to).0[column][args.index][lane];
            if WIDTH == Width::Bf16 as u8 {
                for column in (0..args.columns).step_by(2) {
                    let pair = S::load(args.from.add(2 * TILE * column + 4 * lane));
                    S::store(to(column).cast(), S::even(pair));
                    S::store(to(column + 1).cast(), S::odd(pair));
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
                S::store(to(column).cast(), w);
            }
        }
    }
}

/// Adds the products of a block of rows with `N` opened tiles.
///
/// # Safety
/// The target features of `S` must be on, and the arguments' pointers valid.
#[inline(always)]
pub(in crate::cpu) unsafe fn rows<S: Simd, const PAIR: bool, const N: usize>(args: &RowsArgs) {
    for lane in (0..TILE).step_by(S::LANES) {
        // SAFETY: an opened span, activations of its columns, and 16 outputs a tile of each row, all
        // of which the caller promised.
        unsafe {
            let even = |r: usize, n: usize| (&raw mut (*args.even)[r][n][lane]).cast();
            let sums = chain::<S, PAIR, N>(args, lane, 0);
            for (r, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    S::store(even(r, n), *sum);
                }
            }
            let sums = chain::<S, PAIR, N>(args, lane, if PAIR { 2 } else { 1 });
            for (r, sums) in sums.into_iter().enumerate() {
                for (n, odd) in sums.into_iter().enumerate() {
                    let y = args.y.of(r).add(TILE * n + lane);
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

/// The sums of every other column, or pair of columns, from `start` on.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn chain<S: Simd, const PAIR: bool, const N: usize>(
    args: &RowsArgs,
    lane: usize,
    start: usize,
) -> [[S::F; N]; BLOCK] {
    let step = if PAIR { 2 } else { 1 };
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; BLOCK];
        for at in (start..args.columns).step_by(2 * step) {
            S::prefetch(args.x.add(BLOCK * at).cast::<u8>().wrapping_add(args.next));
            for i in 0..step {
                // Of a pair, the second first.
                let column = at + step - 1 - i;
                let w: [S::F; N] = std::array::from_fn(|n| {
                    S::load_f32((&raw const (*args.opened).0[column][n][lane]).cast())
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*args.x.add(BLOCK * column + r));
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
    let [columns, pairs] = &kernels.rows;
    let by_tiles = if width == Width::Bf16 { pairs } else { columns };
    let cols = layout.cols().next_multiple_of(if width == Width::Bf16 { 2 } else { 1 });
    let mut opened = MaybeUninit::<Opened>::uninit();
    let mut even = [[[0.0f32; TILE]; TILES]; BLOCK];
    let even = &raw mut even;
    // Outputs of rows that there are not.
    let mut nobody = [0.0f32; TILES * TILE];
    let outputs = Outputs { first: out, stride, rows, nobody: nobody.as_mut_ptr() };
    // Where a span of a tile begins, and its bytes.
    let place = |tile: usize, from: usize| {
        let at = tile * layout.tile_bytes() + from * TILE * width.bytes();
        packed.as_ptr().wrapping_add(at)
    };
    let pairs = || (tiles.start..end).step_by(TILES);
    let mut all = (0..cols).step_by(COLUMNS).flat_map(|from| pairs().map(move |t| (t, from)));
    let mut now = all.next();
    while let Some((tile, from)) = now {
        now = all.next();
        let (columns, n) = (COLUMNS.min(cols - from), TILES.min(end - tile));
        for index in 0..n {
            let (from, to) = (place(tile + index, from), opened.as_mut_ptr());
            // SAFETY: a span of a whole tile; the caller has the instruction set.
            unsafe { open(&OpenArgs { from, columns, to, index }) };
        }
        // What is opened next: perhaps of the tiles behind these.
        let (tile_next, from_next) = now.unwrap_or((end, 0));
        let bytes = columns * TILE * width.bytes();
        let opens = |index| place(tile_next + index, from_next);
        for row in (0..rows).step_by(BLOCK) {
            ask_meanwhile((0..TILES).map(opens), bytes, row / BLOCK, rows.div_ceil(BLOCK));
            let x = acts.at(row).cast::<f32>().wrapping_add(from * BLOCK);
            let y = outputs.at(row, tile);
            let (opened, first, next) = (opened.as_ptr(), from == 0, cols * BLOCK * 4);
            let args = RowsArgs { opened, columns, x, next, even, y, first };
            // SAFETY: the span was opened; a block has numbers of 8 rows whatever they are; outputs
            // of whole tiles, as the caller promised. It has the instruction set.
            unsafe { by_tiles[n - 1](&args) };
        }
    }
    (rows, end)
}
