//! Weights and tables on their way up to the device.

use super::{CudaSession, too_large};
use crate::cuda::driver::{Pinned, Stream};
use crate::cuda::layout::Layout;
use crate::cuda::lower::tensor_kind;
use crate::cuda::program::{RopeTable, Tensor, TensorKind};
use crate::error::quoted;
use crate::graph::{DType, Lead, TensorType, Weights};
use crate::plan::Progress;
use crate::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

impl CudaSession {
    /// Repacks every tensor and sends it up: workers repack pieces side by side, each into pinned
    /// memory of its own, and the copy of one runs under the repacking of the others. What is told
    /// counts bytes as they are repacked.
    pub(super) fn fill(
        &self,
        tensors: &[Tensor],
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<()> {
        const PIECE: usize = 8 << 20;
        let gone = |name: &str| Error::Invalid(format!("the tensor {} is gone", quoted(name)));
        let mut sources = Vec::new();
        for tensor in tensors {
            sources.push(weights.bytes(&tensor.name).ok_or_else(|| gone(&tensor.name))?);
        }
        let mut pieces: Vec<Piece<'_>> = Vec::new();
        for (tensor, src) in tensors.iter().zip(&sources) {
            let (name, src): (_, &[u8]) = (&tensor.name, src);
            let missing = || gone(name);
            let (format, dims) = weights.find(name).ok_or_else(missing)?;
            let ty = TensorType { dtype: DType::Weight(format), lead: Lead::Fixed, dims };
            // A graph may see a tensor as one vector.
            let flat = matches!(tensor.kind, TensorKind::Vector(len) if len == ty.width());
            let wants = tensor_kind(&ty).map(|k| k.bytes());
            if !flat && wants != Some(tensor.kind.bytes()) {
                let what = format!("the tensor {} is {ty}, which was not planned", quoted(name));
                return Err(Error::Invalid(what));
            }
            let to = self.weights.address + tensor.offset;
            let end = (tensor.offset as usize).checked_add(tensor.kind.bytes());
            if end.is_none_or(|end| end > self.weights.bytes) {
                return Err(missing());
            }
            match tensor.kind {
                TensorKind::Vector(len) => {
                    let mut values = vec![0.0f32; len];
                    format.decode(src, &mut values)?;
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    // SAFETY: the range was just seen to be within the allocation.
                    unsafe { self.stream.upload(to, &bytes)? };
                    self.stream.wait()?;
                }
                TensorKind::Matrix(layout) => cut(&mut pieces, src, layout, PIECE, to),
                TensorKind::Experts(layout, count) => {
                    let one = src.len() / count.max(1);
                    if one * count != src.len() || one == 0 {
                        return Err(missing());
                    }
                    for (i, src) in src.chunks_exact(one).enumerate() {
                        let to = to + (i * layout.bytes()) as u64;
                        cut(&mut pieces, src, layout, PIECE, to);
                    }
                }
            }
        }
        let largest = pieces.iter().map(|p| p.bytes).max().unwrap_or(0);
        let total = pieces.iter().map(|p| p.bytes as u64).sum();
        let done = AtomicU64::new(0);
        let go_on = |bytes: usize| {
            let bytes = bytes as u64;
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if progress(done, total) { Ok(()) } else { Err(Error::Stopped) }
        };
        go_on(0)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = cores.min(16).min(pieces.len());
        let queue = Mutex::new(pieces.into_iter());
        let next = || queue.lock().ok().and_then(|mut q| q.next());
        let device = &self.device;
        std::thread::scope(|scope| {
            let worker = || -> Result<()> {
                let mut pinned = Pinned::new(device, largest)?;
                let stream = Stream::new(device)?;
                while let Some(piece) = next() {
                    stream.wait()?;
                    let room = pinned.bytes_mut().get_mut(..piece.bytes).ok_or_else(too_large)?;
                    piece.layout.repack(piece.src, piece.first, room)?;
                    // SAFETY: whole panels of a matrix that is within the allocation.
                    unsafe { stream.upload(piece.to, room)? };
                    if let Err(stopped) = go_on(piece.bytes) {
                        stream.wait()?;
                        return Err(stopped);
                    }
                }
                stream.wait()
            };
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
            let mut result = Ok(());
            for handle in handles {
                let done = handle.join().unwrap_or_else(|_| {
                    Err(Error::Invalid("a worker panicked while loading".to_string()))
                });
                result = result.and(done);
            }
            result
        })
    }

    /// Sends up the sines and cosines of rotary angles.
    pub(super) fn tabulate(
        &self,
        ropes: &[RopeTable],
        context: usize,
        weights: &dyn Weights,
    ) -> Result<()> {
        for table in ropes {
            let rope = &table.rope;
            let mut factors = vec![1.0f32; rope.dim / 2];
            if let Some((_, name)) = &table.factors {
                let gone = || Error::Invalid(format!("the tensor {} is gone", quoted(name)));
                let (format, _) = weights.find(name).ok_or_else(gone)?;
                format.decode(&weights.bytes(name).ok_or_else(gone)?, &mut factors)?;
            }
            let mut bytes = Vec::new();
            let room = context.checked_mul(rope.dim).and_then(|n| n.checked_mul(4));
            let room = room.ok_or_else(too_large)?;
            bytes.try_reserve_exact(room).map_err(|_| too_large())?;
            for position in 0..context {
                for (pair, &factor) in factors.iter().enumerate() {
                    let (sin, cos) = rope.angle(position as u32, pair, factor).sin_cos();
                    // What turns is scaled as well, all at once.
                    let gain = f64::from(rope.gain);
                    bytes.extend_from_slice(&((cos * gain) as f32).to_le_bytes());
                    bytes.extend_from_slice(&((sin * gain) as f32).to_le_bytes());
                }
            }
            if table.offset + bytes.len() > self.tables.bytes {
                return Err(too_large());
            }
            // SAFETY: within the allocation.
            unsafe { self.stream.upload(self.tables.address + table.offset as u64, &bytes)? };
            self.stream.wait()?;
        }
        Ok(())
    }
}

/// Appends the pieces of a matrix, each of about so many bytes.
fn cut<'a>(pieces: &mut Vec<Piece<'a>>, src: &'a [u8], layout: Layout, most: usize, to: u64) {
    let panels = (most / layout.panel_bytes).max(1);
    for first in (0..layout.panels).step_by(panels) {
        let n = panels.min(layout.panels - first);
        let to = to + (first * layout.panel_bytes) as u64;
        pieces.push(Piece { src, layout, first, bytes: n * layout.panel_bytes, to });
    }
}

/// Pieces of matrices on their way up.
struct Piece<'a> {
    src: &'a [u8],
    layout: Layout,
    first: usize,
    bytes: usize,
    to: u64,
}
