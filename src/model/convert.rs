//! A model file again, with its tensors in other formats: row by row, never a whole model at once.
//!
//! Keys and values are those of the file, bit for bit, but for the two that say how it is
//! quantized. What becomes of each tensor is the caller's choice. A tensor that keeps its format
//! keeps its bytes; any other is decoded, encoded and decoded once more, so that what is said of
//! the error is what a reader of the new file will find.

use std::sync::{Mutex, PoisonError};

use super::format::Format;
use super::value::Value;
use super::write::GgufWriter;
use super::{Model, Tensor};
use crate::error::{Error, Result, quoted};

/// Elements that are in memory at a time.
const SLAB: usize = 2 << 20;

/// Elements that a thread takes at a time.
const PIECE: usize = 64 << 10;

/// A file to be made of a model.
pub struct Conversion<'m> {
    model: &'m Model,
    formats: Vec<Format>,
    header: Vec<u8>,
    alignment: usize,
    bytes: u64,
}

/// Where a file goes.
pub trait Sink {
    /// Takes the next bytes. Gives `false` to end early.
    ///
    /// # Errors
    /// When they could not be taken.
    fn put(&mut self, bytes: &[u8]) -> Result<bool>;

    /// Hears of a tensor that has been put: its format in the new file and, where that is another,
    /// how near it is.
    fn done(&mut self, tensor: &Tensor, format: Format, near: Option<Nearness>);
}

/// How near what was written is to what was read, as sums over elements.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Nearness {
    /// Of the squares of the values.
    pub squares: f64,
    /// Of the squares of the errors.
    pub errors: f64,
}

impl Nearness {
    /// The root of the mean squared error, relative to that of the squares.
    pub fn relative(&self) -> f64 {
        if self.errors > 0.0 { (self.errors / self.squares).sqrt() } else { 0.0 }
    }

    /// Adds the sums of other elements.
    pub fn add(&mut self, other: Nearness) {
        self.squares += other.squares;
        self.errors += other.errors;
    }
}

impl<'m> Conversion<'m> {
    /// A file of the same tensors, each in its format of `formats`, which says of itself that it is
    /// mostly of the format `main`.
    ///
    /// # Errors
    /// When the rows of a tensor are not whole blocks of its format, or a size overflows.
    pub fn new(model: &'m Model, formats: Vec<Format>, main: Format) -> Result<Self> {
        let tensors = model.tensors();
        if tensors.len() != formats.len() {
            let what = format!("{} formats for {} tensors", formats.len(), tensors.len());
            return Err(Error::Invalid(what));
        }
        let mut writer = GgufWriter::new();
        let mut ours = [
            ("general.file_type", Some(main.file_type())),
            // Of the block formats themselves: it has been 2 since 2023.
            ("general.quantization_version", Some(2)),
        ];
        for (key, value) in model.meta().iter() {
            let new = ours.iter_mut().find(|(name, _)| *name == key).and_then(|(_, v)| v.take());
            writer = writer.meta(key, new.map_or_else(|| value.clone(), Value::U32));
        }
        for (key, value) in ours {
            if let Some(value) = value {
                writer = writer.meta(key, Value::U32(value));
            }
        }
        let alignment = writer.alignment();
        let mut end = 0usize;
        for (tensor, &format) in tensors.iter().zip(&formats) {
            let (rows, cols) = shape(tensor);
            let size = format.row_bytes(cols).and_then(|row| row.checked_mul(rows));
            let start = end.checked_next_multiple_of(alignment);
            let Some((start, next)) =
                start.zip(size).and_then(|(s, n)| Some((s, s.checked_add(n)?)))
            else {
                let (name, format) = (quoted(&tensor.name), format.name());
                let what = format!("tensor {name}: rows of {cols} are not stored in {format}");
                return Err(Error::Invalid(what));
            };
            writer = writer.info(&tensor.name, format.ggml(), &tensor.dims, start as u64);
            end = next;
        }
        let header = writer.finish();
        let bytes = header.len() as u64 + end as u64;
        Ok(Conversion { model, formats, header, alignment, bytes })
    }

    /// How long the file will be.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the file. Gives `false` when the sink ended it early. The bytes do not depend on the
    /// number of threads.
    ///
    /// # Errors
    /// Those of the sink, and a weight that is not finite or too large for its format.
    pub fn run(&self, threads: usize, sink: &mut dyn Sink) -> Result<bool> {
        if !sink.put(&self.header)? {
            return Ok(false);
        }
        let mut written = 0usize;
        let mut out = Vec::new();
        for (tensor, &format) in self.model.tensors().iter().zip(&self.formats) {
            let pad = written.next_multiple_of(self.alignment) - written;
            if !sink.put(&vec![0; pad])? {
                return Ok(false);
            }
            written += pad;
            let (rows, cols) = shape(tensor);
            let bytes = self.model.bytes(tensor);
            let (from_row, to_row) = (bytes.len() / rows, format.row_bytes(cols).unwrap_or(0));
            let slab = (SLAB / cols).max(1);
            let mut nearness = Nearness::default();
            for (first, bytes) in (0..).step_by(slab).zip(bytes.chunks(slab * from_row)) {
                let kept = tensor.format == format;
                if !kept {
                    out.resize(bytes.len() / from_row * to_row, 0);
                    let rows = Rows { from: tensor.format, to: format, cols, from_row, to_row };
                    let near = rows.convert(bytes, &mut out, threads).map_err(|(row, e)| {
                        let (name, row) = (quoted(&tensor.name), first + row);
                        Error::Invalid(format!("tensor {name}, row {row}: {e}"))
                    })?;
                    nearness.add(near);
                }
                let bytes = if kept { bytes } else { &out };
                if !sink.put(bytes)? {
                    return Ok(false);
                }
                written += bytes.len();
            }
            sink.done(tensor, format, (tensor.format != format).then_some(nearness));
        }
        Ok(true)
    }
}

/// Rows and columns of a tensor of any number of dimensions.
fn shape(tensor: &Tensor) -> (usize, usize) {
    let (cols, rows) = tensor.dims.split_last().unwrap_or((&1, &[]));
    // Checked when the header was read.
    (rows.iter().product(), *cols)
}

/// Rows of `cols` elements in another format: the bytes that a conversion would write.
///
/// # Errors
/// When a weight is not finite or too large; the error comes with its row.
pub(crate) fn encode_rows(
    from: Format,
    to: Format,
    cols: usize,
    bytes: &[u8],
    threads: usize,
) -> Result<Vec<u8>, (usize, Error)> {
    let misfit = || (0, Error::Invalid(format!("rows of {cols} are not stored in {}", to.name())));
    let widths = from.row_bytes(cols).zip(to.row_bytes(cols)).filter(|w| w.0 > 0);
    let (from_row, to_row) = widths.ok_or_else(misfit)?;
    let mut out = Vec::new();
    let size = bytes.len() / from_row * to_row;
    out.try_reserve_exact(size).map_err(|_| (0, Error::Invalid("no memory".to_string())))?;
    out.resize(size, 0);
    Rows { from, to, cols, from_row, to_row }.convert(bytes, &mut out, threads)?;
    Ok(out)
}

/// Rows to convert.
struct Rows {
    from: Format,
    to: Format,
    cols: usize,
    /// Bytes of a row.
    from_row: usize,
    to_row: usize,
}

impl Rows {
    /// Converts rows, shared out among threads. An error comes with its row, the first of them.
    fn convert(
        &self,
        bytes: &[u8],
        out: &mut [u8],
        threads: usize,
    ) -> Result<Nearness, (usize, Error)> {
        let rows = (PIECE / self.cols).max(1);
        let pieces = bytes.chunks(rows * self.from_row).zip(out.chunks_mut(rows * self.to_row));
        let mut results: Vec<_> = (0..pieces.len()).map(|_| None).collect();
        let work = Mutex::new(pieces.zip(&mut results));
        let worker = || {
            let mut values = vec![0.0; self.cols];
            let mut again = vec![0.0; self.cols];
            loop {
                let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(((bytes, out), result)) = next else { break };
                *result = Some(self.piece(bytes, out, &mut values, &mut again));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(worker);
            }
            worker();
        });
        let mut sum = Nearness::default();
        for (i, result) in results.into_iter().enumerate() {
            match result {
                Some(Ok(nearness)) => sum.add(nearness),
                Some(Err((row, e))) => return Err((i * rows + row, e)),
                None => {}
            }
        }
        Ok(sum)
    }

    fn piece(
        &self,
        bytes: &[u8],
        out: &mut [u8],
        values: &mut [f32],
        again: &mut [f32],
    ) -> Result<Nearness, (usize, Error)> {
        let mut sum = Nearness::default();
        let rows = bytes.chunks_exact(self.from_row).zip(out.chunks_exact_mut(self.to_row));
        for (row, (bytes, out)) in rows.enumerate() {
            let mut convert = || {
                self.from.decode(bytes, values)?;
                self.to.encode(values, out)?;
                self.to.decode(out, again)
            };
            convert().map_err(|e| (row, e))?;
            for (x, y) in values.iter().zip(&*again) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                sum.squares += x * x;
                sum.errors += (x - y) * (x - y);
            }
            if !sum.errors.is_finite() {
                let what = format!("values are too large for {}", self.to.name());
                return Err((row, Error::Invalid(what)));
            }
        }
        Ok(sum)
    }
}
