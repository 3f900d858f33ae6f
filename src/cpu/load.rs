//! Weights into the memory of a session: one list of pieces over all tensors, of which workers take
//! one after another, so that nobody waits between tensors and large ones are shared.

use super::lower::tensor_kind;
use super::pool::Pool;
use super::program::{Tensor, TensorKind};
use super::repack::{Layout, repack_tiles};
use super::session::panicked;
use crate::error::quoted;
use crate::graph::{DType, Lead, TensorType, Weights};
use crate::model::Format;
use crate::plan::Progress;
use crate::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of weights that a worker takes at a time, or a tile where that has more. Between pieces
/// progress is told, and whoever wants to stop is heard.
const PIECE: usize = 1 << 20;

/// Numbers of a vector that are decoded at a time: whole blocks of any format.
const STRETCH: usize = 1024;

/// A part of a tensor, and its place.
struct Piece<'a> {
    part: Part,
    /// All bytes of the matrix that it is a part of, or its own.
    src: &'a [u8],
    dst: &'a mut [u8],
    /// Bytes of `src` that it takes.
    bytes: usize,
}

enum Part {
    Tiles(Layout, Range<usize>),
    Vector(Format),
}

impl Piece<'_> {
    fn load(self) -> Result<()> {
        let format = match self.part {
            Part::Tiles(layout, tiles) => return repack_tiles(&layout, self.src, self.dst, tiles),
            Part::Vector(format) => format,
        };
        let mut values = [0.0; STRETCH];
        let step = format.row_bytes(STRETCH).unwrap_or(1);
        for (src, dst) in self.src.chunks(step).zip(self.dst.chunks_mut(4 * STRETCH)) {
            let values = &mut values[..dst.len() / 4];
            format.decode(src, values)?;
            for (dst, value) in dst.as_chunks_mut().0.iter_mut().zip(values) {
                *dst = value.to_ne_bytes();
            }
        }
        Ok(())
    }
}

/// Brings every tensor to its place in `memory`.
pub(super) fn fill(
    pool: &mut Pool,
    memory: &mut [u8],
    tensors: &[Tensor],
    weights: &dyn Weights,
    progress: &Progress<'_>,
) -> Result<()> {
    let mut total = 0;
    let mut formats = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let format = check(tensor, weights)?;
        total += source_bytes(tensor, format) as u64;
        formats.push(format);
    }
    let watch = Watch { progress, done: AtomicU64::new(0), total };
    let mut places: Vec<_> = tensors.iter().zip(formats).collect();
    places.sort_by_key(|(tensor, _)| tensor.offset);
    let (mut rest, mut at) = (memory, 0);
    let mut pieces = Vec::new();
    for (tensor, format) in places {
        let place = tensor.offset.checked_sub(at).and_then(|gap| {
            let (dst, after) = std::mem::take(&mut rest)
                .get_mut(gap..)?
                .split_at_mut_checked(tensor.kind.bytes())?;
            (rest, at) = (after, tensor.offset + dst.len());
            Some(dst)
        });
        let leaves = || Error::Invalid("a tensor leaves its memory".to_string());
        let dst = place.ok_or_else(leaves)?;
        match weights.bytes(&tensor.name).ok_or_else(|| gone(tensor))? {
            Cow::Borrowed(src) => cut(tensor, format, src, dst, &mut pieces)?,
            // Made of others just now: not kept while the next is made.
            Cow::Owned(src) => {
                let mut pieces = Vec::new();
                cut(tensor, format, &src, dst, &mut pieces)?;
                watch.load(pool, pieces)?;
            }
        }
    }
    // In the order of the file, which is read fastest so.
    pieces.sort_by_key(|piece| piece.src.as_ptr());
    watch.load(pool, pieces)
}

/// The format of a tensor, if it is still what was planned.
fn check(tensor: &Tensor, weights: &dyn Weights) -> Result<Format> {
    let (format, dims) = weights.find(&tensor.name).ok_or_else(|| gone(tensor))?;
    let ty = TensorType { dtype: DType::Weight(format), lead: Lead::Fixed, dims };
    // A graph may see a tensor as one vector.
    let flat = TensorKind::Vector(ty.width()) == tensor.kind;
    if flat || tensor_kind(&ty) == Some(tensor.kind) {
        return Ok(format);
    }
    let name = quoted(&tensor.name);
    Err(Error::Invalid(format!("the tensor {name} is {ty}, which was not planned")))
}

fn gone(tensor: &Tensor) -> Error {
    Error::Invalid(format!("the tensor {} is gone", quoted(&tensor.name)))
}

/// Bytes of a tensor as the file has it.
fn source_bytes(tensor: &Tensor, format: Format) -> usize {
    match tensor.kind {
        TensorKind::Matrix(layout) => layout.rows() * layout.row_bytes(),
        TensorKind::Experts(layout, count) => count * layout.rows() * layout.row_bytes(),
        TensorKind::Vector(len) => format.row_bytes(len).unwrap_or(0),
    }
}

/// Appends the pieces of a tensor.
fn cut<'a>(
    tensor: &Tensor,
    format: Format,
    src: &'a [u8],
    dst: &'a mut [u8],
    pieces: &mut Vec<Piece<'a>>,
) -> Result<()> {
    if src.len() != source_bytes(tensor, format) {
        return Err(gone(tensor));
    }
    let layout = match tensor.kind {
        TensorKind::Matrix(layout) | TensorKind::Experts(layout, _) => layout,
        TensorKind::Vector(_) => {
            pieces.push(Piece { part: Part::Vector(format), src, dst, bytes: src.len() });
            return Ok(());
        }
    };
    let step = (PIECE / layout.tile_bytes()).max(1);
    let matrices = src.chunks_exact(layout.rows() * layout.row_bytes());
    for (src, dst) in matrices.zip(dst.chunks_exact_mut(layout.bytes())) {
        let mut rows = src.len() / layout.row_bytes();
        for (i, dst) in dst.chunks_mut(step * layout.tile_bytes()).enumerate() {
            let tiles = i * step..i * step + dst.len() / layout.tile_bytes();
            let taken = rows.min(tiles.len() * super::repack::TILE);
            rows -= taken;
            let bytes = taken * layout.row_bytes();
            pieces.push(Piece { part: Part::Tiles(layout, tiles), src, dst, bytes });
        }
    }
    Ok(())
}

/// What is told, and asked, between pieces.
struct Watch<'a> {
    progress: &'a Progress<'a>,
    done: AtomicU64,
    total: u64,
}

impl Watch<'_> {
    /// Loads pieces, in their order.
    fn load(&self, pool: &mut Pool, pieces: Vec<Piece<'_>>) -> Result<()> {
        let queue = Mutex::new((pieces.into_iter(), Ok(())));
        let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        let go_on = |bytes: usize| {
            let bytes = bytes as u64;
            let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if (self.progress)(done, self.total) { Ok(()) } else { Err(Error::Stopped) }
        };
        let ran = pool.run(&|_| {
            let mut result = go_on(0);
            loop {
                let piece = {
                    let (pieces, first) = &mut *queue();
                    if let (Err(e), Ok(())) = (result, &first) {
                        *first = Err(e);
                    }
                    if first.is_ok() { pieces.next() } else { None }
                };
                let Some(piece) = piece else { return };
                let bytes = piece.bytes;
                result = piece.load().and_then(|()| go_on(bytes));
            }
        });
        ran.map_err(panicked)?;
        std::mem::replace(&mut queue().1, Ok(()))
    }
}
