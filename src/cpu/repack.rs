//! Weights as the kernels read them: tiles of 16 output rows, codes and scales of a tile together,
//! in the order in which a matmul goes through them.
//!
//! A kernel's lanes are 16 rows of the weights. So one load brings four codes (a *quad*) of each
//! row, meets four activations that are the same for all, and no lane is ever added to another.
//! A tile of a block format is a string of *spans* of 256 columns, the last one perhaps shorter:
//!
//! ```text
//! span    header, padded to 64 bytes              8 groups of 32 columns
//!         |d     |m     |scales      |mins      | |group 0 |group 1 | … |group 7 |
//!
//! header  d, m: f16 [blocks of the span][16 rows]
//!         scales, mins: 8 bits [8 or 16 groups][16 rows], for two levels and for exponents;
//!         where both are below 16 they share a byte, scale | min << 4
//!         (what a format lacks is not here either)
//!
//! group   the low plane, then the high one. A plane of b bits is b loads of 64 bytes; a load
//!         holds 8 / b quads, and byte 4 r + j of it element j of each of them for row r:
//!
//!         b = 2   load 0                    load 1
//!         byte    |q3 |q2 |q1 |q0 |         |q7 |q6 |q5 |q4 |        2 bits each
//! ```
//!
//! A tile of floats is `[columns][16 rows]` in the format's own bytes, of BF16
//! `[pairs of columns][16 rows][2]`. The last tile's missing
//! rows are zeros. All sizes follow from format, rows and columns alone.

mod pack;
#[cfg(test)]
mod tests;

use std::ops::Range;

use half::f16;

use super::matmul::shape_index;
use super::quantize::Precision;
use crate::error::{Error, Result};
use crate::model::format::{Block, Format, Min, Quant, Scale};

/// Output rows of a tile.
pub const TILE: usize = 16;

/// Columns of a group: what shares a scale of the activations.
pub(super) const GROUP: usize = 32;

/// Groups of a span.
pub(super) const SPAN: usize = 8;

/// Tiles, and the parts of a tile that a kernel loads whole, are multiples of this.
pub(super) const LINE: usize = 64;

/// How a weight matrix of some format and shape is stored for the kernels.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    format: Format,
    rows: usize,
    cols: usize,
    tile_bytes: usize,
    bytes: usize,
    pub(super) store: Store,
}

/// What a tile consists of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Store {
    /// Planes of codes, and the index of their kernel.
    Planes(&'static Quant, usize),
    /// Floats.
    Floats(Width),
}

/// The float formats, by the index of their kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Width {
    F32 = 0,
    F16 = 1,
    Bf16 = 2,
}

/// Where the parts of a span begin, counted from its own beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) m: usize,
    pub(super) scales: usize,
    pub(super) mins: usize,
    pub(super) codes: usize,
    /// Bytes of one group's planes.
    pub(super) group: usize,
    pub(super) bytes: usize,
}

impl Span {
    /// The span of `groups` groups.
    #[inline(always)]
    pub(super) fn of(quant: &Quant, groups: usize) -> Span {
        let per_group = TILE * groups * (GROUP / quant.group);
        let per_block = 2 * TILE * (groups * GROUP / quant.block);
        let d = if quant.scale == Scale::Exponent { 0 } else { per_block };
        let m = if matches!(quant.min, Min::Zero(_)) { 0 } else { d };
        let scales = if quant.scale == Scale::One { 0 } else { per_group };
        let apart = quant.min == Min::TwoLevel && quant.scale != Scale::Nibbles;
        let mins = if apart { scales } else { 0 };
        let codes = (d + m + scales + mins).next_multiple_of(LINE);
        let group = LINE * (quant.lo + quant.hi) as usize;
        let bytes = codes + groups * group;
        Span { m: d, scales: d + m, mins: d + m + scales, codes, group, bytes }
    }
}

// The store follows from the format.
impl PartialEq for Layout {
    fn eq(&self, other: &Self) -> bool {
        (self.format, self.rows, self.cols) == (other.format, other.rows, other.cols)
    }
}

impl Layout {
    /// The layout of a matrix of `rows` outputs and `cols` inputs. `None` for an empty one, for
    /// columns that do not fill whole blocks, for a size that cannot be counted, and for a format
    /// without a kernel.
    pub fn of(format: Format, rows: usize, cols: usize) -> Option<Layout> {
        let store = match (format, format.quant()) {
            (Format::F32, _) => Store::Floats(Width::F32),
            (Format::F16, _) => Store::Floats(Width::F16),
            (Format::BF16, _) => Store::Floats(Width::Bf16),
            (_, quant) => planes(quant?)?,
        };
        format.row_bytes(cols)?.checked_mul(rows)?;
        if rows == 0 || cols == 0 {
            return None;
        }
        let tile_bytes = match store {
            Store::Planes(quant, _) => {
                let groups = cols / GROUP;
                let whole = Span::of(quant, SPAN).bytes.checked_mul(groups / SPAN)?;
                match groups % SPAN {
                    0 => whole,
                    rest => whole.checked_add(Span::of(quant, rest).bytes)?,
                }
            }
            Store::Floats(width) => {
                let cols = cols.checked_next_multiple_of(width.columns())?;
                cols.checked_mul(TILE * width.bytes())?.checked_next_multiple_of(LINE)?
            }
        };
        let bytes = tile_bytes.checked_mul(rows.div_ceil(TILE))?;
        Some(Layout { format, rows, cols, tile_bytes, bytes, store })
    }

    /// The format of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tiles of [`TILE`] rows, the last of them padded.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Bytes of a tile, a multiple of 64.
    pub fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    /// Bytes of all tiles. They are read fastest from a multiple of 64 on.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a matmul with these weights wants its activations to be.
    pub fn precision(&self) -> Precision {
        match self.store {
            Store::Planes(..) => Precision::Int8,
            Store::Floats(Width::Bf16) => Precision::Bf16,
            Store::Floats(_) => Precision::F32,
        }
    }

    /// The spans of the tile's columns: where each begins, and how many groups it has.
    fn spans(&self, quant: &Quant) -> impl Iterator<Item = (usize, usize)> + use<> {
        let groups = self.cols / GROUP;
        let whole = Span::of(quant, SPAN).bytes;
        (0..groups.div_ceil(SPAN)).map(move |i| (i * whole, SPAN.min(groups - i * SPAN)))
    }
}

/// How a block format is stored, if the kernels can.
fn planes(quant: &'static Quant) -> Option<Store> {
    // Blocks do not cross spans.
    let shared = quant.group == GROUP
        && quant.block.is_power_of_two()
        && (GROUP..=GROUP * SPAN).contains(&quant.block);
    let one = (quant.block, quant.group) == (GROUP, GROUP);
    let two = quant.block == GROUP * SPAN && (quant.group == GROUP || 2 * quant.group == GROUP);
    let fits = match (quant.scale, quant.min) {
        (Scale::One, Min::Zero(_)) => shared,
        (Scale::One, Min::One) | (Scale::Exponent, Min::Zero(_)) => one,
        (Scale::TwoLevel, Min::Zero(_) | Min::TwoLevel) => two,
        (Scale::Nibbles, Min::TwoLevel) => two,
        _ => false,
    };
    if fits { Some(Store::Planes(quant, shape_index(quant)?)) } else { None }
}

impl Width {
    /// Columns that lie together.
    fn columns(self) -> usize {
        if self == Width::Bf16 { 2 } else { 1 }
    }

    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Width::F32 => 4,
            Width::F16 | Width::Bf16 => 2,
        }
    }
}

/// Writes `tiles` of the weights `src`, the bytes of the whole tensor, into `dst`, which holds
/// these tiles and no others.
pub fn repack_tiles(
    layout: &Layout,
    src: &[u8],
    dst: &mut [u8],
    tiles: Range<usize>,
) -> Result<()> {
    let row_bytes = layout.row_bytes();
    let fits = tiles.start <= tiles.end
        && tiles.end <= layout.tiles()
        && row_bytes.checked_mul(layout.rows) == Some(src.len())
        && tiles.len().checked_mul(layout.tile_bytes) == Some(dst.len());
    if !fits {
        return Err(Error::Invalid(format!(
            "tiles {tiles:?} of {} x {} {}: {} bytes do not go into {}",
            layout.rows,
            layout.cols,
            layout.format.name(),
            src.len(),
            dst.len()
        )));
    }
    let src = &src[row_bytes * TILE * tiles.start..];
    let tiles = dst.chunks_exact_mut(layout.tile_bytes);
    pack::tiles(layout, src.chunks(row_bytes * TILE), tiles);
    Ok(())
}

impl Layout {
    /// Bytes of a row as the file has it.
    pub(super) fn row_bytes(&self) -> usize {
        match self.store {
            Store::Planes(quant, _) => self.cols / quant.block * quant.bytes,
            Store::Floats(width) => self.cols * width.bytes(),
        }
    }
}

/// Adds `bits` bits of a group's codes, from bit `from` on, to codes of zeros: one lane of a plane.
fn gather_plane(plane: &[u8], codes: &mut [u8], bits: u32, from: u32, lane: usize) {
    let Some(quads) = 8u32.checked_div(bits) else { return };
    let loads = codes.chunks_exact_mut(4 * quads as usize).zip(plane.chunks_exact(LINE));
    for (codes, load) in loads {
        for (i, quad) in (0..).zip(codes.chunks_exact_mut(4)) {
            for (code, byte) in quad.iter_mut().zip(&load[4 * lane..]) {
                *code |= (byte >> (i * bits) & mask(bits)) << from;
            }
        }
    }
}

/// The lowest `bits` bits of a byte, at most 8.
fn mask(bits: u32) -> u8 {
    (0xffu32 >> (8 - bits)) as u8
}

/// Row `row` of the packed weights as f32: what [`Format::decode`] makes of it, bit for bit.
pub fn row_f32(layout: &Layout, packed: &[u8], row: usize, out: &mut [f32]) -> Result<()> {
    if packed.len() != layout.bytes || row >= layout.rows || out.len() != layout.cols {
        return Err(Error::Invalid(format!(
            "row {row} of {} x {} {}: {} elements from {} bytes",
            layout.rows,
            layout.cols,
            layout.format.name(),
            out.len(),
            packed.len()
        )));
    }
    let lane = row % TILE;
    let tile = &packed[row / TILE * layout.tile_bytes..][..layout.tile_bytes];
    match layout.store {
        Store::Planes(quant, _) => {
            gather(layout, quant, tile, lane, out);
            Ok(())
        }
        Store::Floats(width) => {
            let bytes = width.bytes() * width.columns();
            let numbers = tile.chunks_exact(bytes).skip(lane).step_by(TILE);
            out.chunks_mut(width.columns())
                .zip(numbers)
                .try_for_each(|(o, n)| layout.format.decode(&n[..o.len() * width.bytes()], o))
        }
    }
}

/// The values of one lane of a tile of blocks.
fn gather(layout: &Layout, quant: &Quant, tile: &[u8], lane: usize, out: &mut [f32]) {
    let mut block = Block::default();
    let per_block = quant.block / GROUP;
    let mut out = out.chunks_exact_mut(quant.block);
    for (at, groups) in layout.spans(quant) {
        let span = Span::of(quant, groups);
        let tile = &tile[at..at + span.bytes];
        let f16_at = |at: usize| f16::from_le_bytes([tile[at], tile[at + 1]]);
        for (i, out) in out.by_ref().take(groups / per_block).enumerate() {
            block.codes.fill(0);
            if quant.scale != Scale::Exponent {
                block.d = f16_at(2 * (TILE * i + lane));
            }
            if !matches!(quant.min, Min::Zero(_)) {
                block.m = f16_at(span.m + 2 * (TILE * i + lane));
            }
            if quant.scale != Scale::One {
                let scales = &mut block.scales[..quant.block / quant.group];
                for (g, scale) in (i * scales.len()..).zip(scales) {
                    let byte = tile[span.scales + TILE * g + lane];
                    *scale = byte.cast_signed();
                    if quant.scale == Scale::Nibbles {
                        (*scale, block.mins[g]) = ((byte & 15).cast_signed(), byte >> 4);
                    }
                }
            }
            if quant.min == Min::TwoLevel && quant.scale != Scale::Nibbles {
                for (g, min) in block.mins[..quant.block / quant.group].iter_mut().enumerate() {
                    *min = tile[span.mins + TILE * g + lane];
                }
            }
            let planes = tile[span.codes + i * per_block * span.group..].chunks_exact(span.group);
            for (planes, codes) in planes.zip(block.codes.chunks_exact_mut(GROUP)).take(per_block) {
                let (lo, hi) = planes.split_at(LINE * quant.lo as usize);
                gather_plane(lo, codes, quant.lo, 0, lane);
                gather_plane(hi, codes, quant.hi, quant.lo, lane);
            }
            quant.values(&block, out);
        }
    }
}
