//! The matmul over repacked weights: one kernel for codes of 1, 2, 4 and 8 bits, their sums, and
//! any number of activation rows.
//!
//! | file | holds |
//! |---|---|
//! | `shape` | which kernels there are, and a format's own |
//! | `kernel` | the kernel, one tile at a time |
//! | `words` | the same for many rows |
//!
//! [`planes`] takes up to 8 rows of activations at once, so that the work of taking codes apart
//! is shared; the scales of a span become f32 once and are shared likewise. In between, a tile's
//! outputs are kept in a few registers or a few cache lines. Where there are many rows, [`words`] do the
//! same with other instructions.

mod kernel;
mod shape;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 gains by them"))]
pub(super) mod words;

pub(super) use kernel::{PlanesArgs, PlanesFn, planes};
pub(super) use shape::{SHAPES, shape_index};

use std::ops::Range;

use super::float::{FloatArgs, many};
use super::quantize::{Activations, BLOCK, Precision};
use super::repack::{GROUP, Layout, SPAN, Store, TILE, Width};
use super::simd::{Isa, Kernels, ahead};

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
    let pairs = kernels.pairs.is_some() && acts.precision == Precision::Bf16;
    let by_spans = kernels.floats.filter(|_| !pairs);
    // SAFETY: the caller's promise.
    let (rows, end) = unsafe {
        match (layout.store, kernels.words, by_spans) {
            (Store::Planes(..), Some(words), _) => {
                words::product(words, layout, packed, acts, tiles.clone(), out, stride)
            }
            (Store::Floats(_), _, Some(floats)) => {
                many::product(floats, layout, packed, acts, tiles.clone(), out, stride)
            }
            _ => (0, tiles.start),
        }
    };
    // SAFETY: the caller's promise.
    unsafe {
        some_rows(kernels, layout, packed, acts, rows..acts.rows, tiles.start..end, out, stride);
        some_rows(kernels, layout, packed, acts, 0..acts.rows, end..tiles.end, out, stride);
    }
}

/// Where the rows of a block leave their outputs.
#[derive(Clone, Copy)]
pub(super) struct Outputs {
    /// The first row's, and from each to the next.
    pub(super) first: *mut f32,
    pub(super) stride: usize,
    /// How many rows there are.
    pub(super) rows: usize,
    /// Where those that there are not leave theirs.
    pub(super) nobody: *mut f32,
}

impl Outputs {
    /// Those of rows from `row` on and tiles from `tile` on, of outputs of so many rows from the first tile on.
    pub(super) fn at(self, row: usize, tile: usize) -> Outputs {
        let first = self.first.wrapping_add(row * self.stride + tile * TILE);
        Outputs { first, rows: self.rows - row, ..self }
    }

    #[inline(always)]
    pub(super) fn of(&self, row: usize) -> *mut f32 {
        if row < self.rows { self.first.wrapping_add(row * self.stride) } else { self.nobody }
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
    // Many rows meet floats a span of columns at a time, which stays in the first-level cache for all
    // rows, as the rows' columns do in the second-level one for all tiles.
    let floats = matches!(layout.store, Store::Floats(_));
    let by_spans = floats && rows.len() > BLOCK;
    let span = if by_spans { SPAN * GROUP } else { layout.cols() };
    let chunk = (CHUNK_BYTES / (span * if floats { 4 } else { 2 })).next_multiple_of(BLOCK);
    let spans = (0..layout.cols()).step_by(span);
    let chunks = || rows.clone().step_by(chunk).map(|r| r..rows.end.min(r + chunk));
    for (from, chunk) in spans.flat_map(|from| chunks().map(move |chunk| (from, chunk))) {
        for tile in tiles.clone() {
            let first = tile * TILE;
            let outputs = TILE.min(layout.rows() - first);
            let cols = match outputs {
                TILE => from..layout.cols().min(from + span),
                // What goes through the buffer goes at once.
                _ if from == 0 => 0..layout.cols(),
                _ => continue,
            };
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
                            let (cols, x, step) = (cols.clone(), x.cast(), acts.block);
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
