//! The GGUF header: every field is checked before anything follows from it.
//!
//! The file is, all little-endian:
//!
//! ```text
//! "GGUF"  version: u32  tensors: u64  keys: u64
//! keys x     key: string  type: u32  value
//! tensors x  name: string  dims: u32  dims x u64, fastest first  type: u32  offset: u64
//! zeros up to a multiple of general.alignment (32 unless the key says otherwise)
//! data       each tensor at its offset from here, itself a multiple of the alignment
//!
//! string     length: u64, bytes             array   type: u32  count: u64  elements
//! ```
//!
//! Two rules keep a hostile file harmless. **A count is believed only as far as the file could
//! hold it**: the least that many things can take must still be left, and only then is memory
//! reserved, fallibly; so a header costs memory in proportion to its file. **Bytes are copied out
//! before they are checked**, and the copy is what is used: the file may change while it is read,
//! and what was valid once need not be so at a second look.

use std::fmt::Display;

use smallvec::SmallVec;

use super::Tensor;
use super::format::{self, Format};
use super::meta::{Entry, Metadata};
use super::value::{Array, Strings, Value, quoted_bytes};
use crate::error::{Error, Result, quoted};

/// The longest key, as the format's description has it.
const KEY_BYTES: usize = 65_535;
/// The longest tensor name. The format's description says 64, some writers pass it.
const NAME_BYTES: usize = 255;
/// Arrays within arrays within arrays: no writer nests them at all.
const ARRAY_DEPTH: usize = 3;
/// The most dimensions of a tensor.
const DIMS: usize = 4;
/// The least a key can take: its length, one byte, a type, a one-byte value.
const KEY_MIN: usize = 8 + 1 + 4 + 1;
/// The least a tensor can take: its name's length, one byte, one dimension, type and offset.
const TENSOR_MIN: usize = 8 + 1 + 4 + 8 + 4 + 8;
/// The least an array can take: its type and a count of zero.
const ARRAY_MIN: usize = 4 + 8;

/// What the header of a sound file says.
pub(super) struct Header {
    pub(super) meta: Metadata,
    pub(super) tensors: Vec<Tensor>,
    /// Indices of `tensors`, sorted by name.
    pub(super) sorted: Vec<usize>,
}

/// Reads the header of the file whose bytes these are; `path` is for messages.
pub(super) fn read(path: &str, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { bytes, at: 0 };
    let (tensor_count, key_count) = head(&mut cursor).map_err(|f| f.at_place(path, "header"))?;

    let keys = |f: Fault| f.at_place(path, "keys");
    let mut entries = reserved(key_count, cursor.at).map_err(keys)?;
    for i in 0..key_count {
        let at = cursor.at;
        let key = cursor
            .text(KEY_BYTES, "key")
            .map_err(|f| f.at_place(path, &format!("key {} of {key_count}", i + 1)))?;
        let value =
            cursor.value().map_err(|f| f.at_place(path, &format!("key {}", quoted(&key))))?;
        entries.push(Entry { key, at, value });
    }
    let sorted = indices(entries.len(), cursor.at).map_err(keys)?;
    let meta = Metadata::new(path, entries, sorted).map_err(|(key, first, second)| {
        Fault::new(second, format!("the same key as at byte {first}"))
            .at_place(path, &format!("key {}", quoted(&key)))
    })?;

    refuse_parts(&meta)?;
    let alignment = alignment(&meta)?;
    let mut tensors = reserved(tensor_count, cursor.at).map_err(|f| f.at_place(path, "tensors"))?;
    for i in 0..tensor_count {
        let at = cursor.at;
        let name = cursor
            .text(NAME_BYTES, "tensor name")
            .map_err(|f| f.at_place(path, &format!("tensor {} of {tensor_count}", i + 1)))?;
        let tensor = match tensor(&mut cursor, alignment) {
            Ok((format, dims, start, size)) => {
                Tensor { name, format, dims, at, start, size, shard: 0 }
            }
            Err(f) => return Err(f.at_place(path, &format!("tensor {}", quoted(&name)))),
        };
        tensors.push(tensor);
    }
    let sorted = place(path, &mut tensors, cursor.at, alignment, bytes.len())?;
    Ok(Header { meta, tensors, sorted })
}

/// Magic, version and counts. Other formats that come by mistake are called by their names.
fn head(cursor: &mut Cursor<'_>) -> Result<(usize, usize), Fault> {
    let magic = cursor.array::<4>("magic")?;
    if magic != *b"GGUF" {
        let known = match &magic {
            b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => " (a GGML file from before GGUF)",
            b"PK\x03\x04" => " (a zip archive, perhaps of pickles, which are never opened)",
            [0x80, 2..=5, ..] => " (a pickle, which is never opened)",
            _ => "",
        };
        let what = format!("magic {}{known}, expected \"GGUF\"", quoted_bytes(&magic));
        return Err(Fault::new(0, what));
    }
    let at = cursor.at;
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => {}
        1 => {
            return Err(Fault::unsupported(at, "GGUF version 1; versions 2 and 3 are read".into()));
        }
        v if (1..=0xffff).contains(&v.swap_bytes()) => {
            let what = format!("big-endian GGUF (version {}), only little-endian", v.swap_bytes());
            return Err(Fault::unsupported(at, format!("{what} is read")));
        }
        v => {
            let what = format!("GGUF version {v}; versions 2 and 3 are read");
            return Err(Fault::unsupported(at, what));
        }
    }
    let tensors = cursor.count(TENSOR_MIN, "tensors")?;
    let keys = cursor.count(KEY_MIN, "keys")?;
    Ok((tensors, keys))
}

/// A model in several files is not read, and is not half read either.
fn refuse_parts(meta: &Metadata) -> Result<()> {
    const KEY: &str = "split.count";
    match meta.get_u64(KEY)? {
        None | Some(0 | 1) => Ok(()),
        Some(n) => {
            let what = format!("one of {n} parts of a model; merge them into one file first");
            Err(Error::Unsupported(meta.error(KEY, what).to_string()))
        }
    }
}

fn alignment(meta: &Metadata) -> Result<usize> {
    const KEY: &str = "general.alignment";
    let Some(value) = meta.get_u64(KEY)? else { return Ok(32) };
    match usize::try_from(value) {
        Ok(a) if a.is_power_of_two() && (8..=65_536).contains(&a) => Ok(a),
        _ => Err(meta.error(KEY, format!("{value} is not a power of two from 8 to 65536"))),
    }
}

/// Format, dimensions, offset in the data, and size.
type Described = (Format, SmallVec<[usize; DIMS]>, usize, usize);

/// A tensor's description after its name.
fn tensor(cursor: &mut Cursor<'_>, alignment: usize) -> Result<Described, Fault> {
    let at = cursor.at;
    let count = cursor.u32("number of dimensions")? as usize;
    if !(1..=DIMS).contains(&count) {
        return Err(Fault::new(at, format!("{count} dimensions, expected 1 to {DIMS}")));
    }
    let dims_at = cursor.at;
    let mut dims = SmallVec::new();
    for _ in 0..count {
        let at = cursor.at;
        let dim = cursor.u64("dimension")?;
        match usize::try_from(dim) {
            Ok(0) => return Err(Fault::new(at, "a dimension of 0".into())),
            Ok(dim) => dims.push(dim),
            Err(_) => return Err(too_large(at, dim)),
        }
    }
    dims.reverse();

    let at = cursor.at;
    let id = cursor.u32("type")?;
    let Some(format) = Format::from_ggml(id) else {
        return Err(match format::foreign_name(id) {
            Some(name) => Fault::unsupported(at, format!("type {name} is not supported")),
            None => Fault::new(at, format!("type {id} is not known")),
        });
    };
    let (rows, cols) = match dims.split_last() {
        Some((&cols, rows)) => (rows.iter().try_fold(1usize, |n, &d| n.checked_mul(d)), cols),
        None => (None, 0),
    };
    if !cols.is_multiple_of(format.block_len()) {
        let (name, block) = (format.name(), format.block_len());
        let what = format!("rows of {cols} elements, {name} has blocks of {block}");
        return Err(Fault::new(dims_at, what));
    }
    let size = rows.zip(format.row_bytes(cols)).and_then(|(rows, row)| rows.checked_mul(row));
    let size =
        size.ok_or_else(|| Fault::new(dims_at, format!("the size of {dims:?} overflows")))?;

    let at = cursor.at;
    let offset = cursor.u64("offset")?;
    let start = usize::try_from(offset).map_err(|_| too_large(at, offset))?;
    if !start.is_multiple_of(alignment) {
        let what = format!("offset {start} is not a multiple of the alignment, {alignment}");
        return Err(Fault::new(at, what));
    }
    Ok((format, dims, start, size))
}

/// Turns offsets in the data into offsets in the file; each tensor must lie in the file, alone,
/// under a name of its own. Gives the order by name.
fn place(
    path: &str,
    tensors: &mut [Tensor],
    header: usize,
    alignment: usize,
    len: usize,
) -> Result<Vec<usize>> {
    let fault = |t: &Tensor, what| {
        Fault::new(t.at, what).at_place(path, &format!("tensor {}", quoted(&t.name)))
    };
    let data = header.checked_next_multiple_of(alignment);
    for t in tensors.iter_mut() {
        let start = data.and_then(|data| data.checked_add(t.start));
        match start.and_then(|start| Some((start, start.checked_add(t.size)?))) {
            Some((start, end)) if end <= len => t.start = start,
            Some((start, end)) => {
                let what = format!("bytes {start} to {end} of a file of {len}");
                return Err(fault(t, what));
            }
            None => return Err(fault(t, format!("offset {} and size overflow", t.start))),
        }
    }
    let tensor = |i: usize| tensors.get(i);
    let mut sorted = indices(tensors.len(), header).map_err(|f| f.at_place(path, "tensors"))?;
    sorted.sort_unstable_by_key(|&i| tensor(i).map(|t| t.start));
    for (a, b) in pairs(&sorted, tensor) {
        if a.start + a.size > b.start {
            let what = format!("shares bytes with tensor {}", quoted(&a.name));
            return Err(fault(b, what));
        }
    }
    sorted.sort_unstable_by_key(|&i| tensor(i).map(|t| (t.name.as_str(), t.at)));
    for (a, b) in pairs(&sorted, tensor) {
        if a.name == b.name {
            return Err(fault(b, format!("the same name as at byte {}", a.at)));
        }
    }
    Ok(sorted)
}

/// Neighbours in an order.
fn pairs<'a>(
    order: &[usize],
    tensor: impl Fn(usize) -> Option<&'a Tensor>,
) -> impl Iterator<Item = (&'a Tensor, &'a Tensor)> {
    order.windows(2).filter_map(move |pair| match *pair {
        [a, b] => tensor(a).zip(tensor(b)),
        _ => None,
    })
}

/// Something wrong at a byte of the file.
struct Fault {
    at: usize,
    what: String,
    /// Nothing wrong with the file: this build lacks what it asks for.
    unsupported: bool,
}

impl Fault {
    fn new(at: usize, what: String) -> Self {
        Fault { at, what, unsupported: false }
    }

    fn unsupported(at: usize, what: String) -> Self {
        Fault { at, what, unsupported: true }
    }

    fn at_place(self, path: &str, place: &str) -> Error {
        let error = Error::file(path, format!("{place}, byte {}", self.at), self.what);
        if self.unsupported { Error::Unsupported(error.to_string()) } else { error }
    }
}

fn too_large(at: usize, value: u64) -> Fault {
    Fault::new(at, format!("{value} is too large for this machine"))
}

fn no_memory(at: usize, why: impl Display) -> Fault {
    Fault::new(at, format!("no memory to read it: {why}"))
}

/// An empty vector with room for `count`.
fn reserved<T>(count: usize, at: usize) -> Result<Vec<T>, Fault> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(count).map_err(|e| no_memory(at, e))?;
    Ok(vec)
}

/// `0..count`, to be sorted.
fn indices(count: usize, at: usize) -> Result<Vec<usize>, Fault> {
    let mut vec = reserved(count, at)?;
    vec.extend(0..count);
    Ok(vec)
}

/// A place in the file, and what is left from there.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Scalars, little-endian.
macro_rules! scalars {
    ($($t:ident)*) => {
        $(fn $t(&mut self, what: &str) -> Result<$t, Fault> {
            self.array(what).map($t::from_le_bytes)
        })*
    };
}

impl<'a> Cursor<'a> {
    scalars! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, bytes)) => {
                self.at = end;
                Ok(bytes)
            }
            None => {
                let left = self.left();
                Err(Fault::new(self.at, format!("{what} of {count} bytes, {left} are left")))
            }
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        let (at, bytes) = (self.at, self.take(N, what)?);
        bytes.try_into().map_err(|_| Fault::new(at, format!("{what} of {N} bytes is short")))
    }

    /// A count of things that take at least `min` bytes each.
    fn count(&mut self, min: usize, what: &str) -> Result<usize, Fault> {
        let at = self.at;
        let count = self.u64("count")?;
        let left = self.left();
        match usize::try_from(count) {
            Ok(n) if n.checked_mul(min).is_some_and(|bytes| bytes <= left) => Ok(n),
            _ => {
                let what = format!("{count} {what} of {min} bytes or more, {left} bytes are left");
                Err(Fault::new(at, what))
            }
        }
    }

    fn string(&mut self) -> Result<&'a [u8], Fault> {
        let at = self.at;
        let len = self.u64("length")?;
        match usize::try_from(len) {
            Ok(n) => self.take(n, "string"),
            Err(_) => Err(too_large(at, len)),
        }
    }

    /// A copy of `bytes`, which end where the cursor is.
    fn owned(&self, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut copy = reserved(bytes.len(), self.at)?;
        copy.extend_from_slice(bytes);
        Ok(copy)
    }

    /// A key or a name: UTF-8, and not too long to be one.
    fn text(&mut self, limit: usize, what: &str) -> Result<String, Fault> {
        let at = self.at;
        let len = self.u64("length")?;
        match usize::try_from(len) {
            Ok(n) if (1..=limit).contains(&n) => {
                let bytes = self.take(n, what)?;
                String::from_utf8(self.owned(bytes)?).map_err(|e| {
                    let byte = at + 8 + e.utf8_error().valid_up_to();
                    Fault::new(byte, format!("{what} is not UTF-8"))
                })
            }
            _ => Err(Fault::new(at, format!("{what} of {len} bytes, expected 1 to {limit}"))),
        }
    }

    fn bool(&mut self) -> Result<bool, Fault> {
        let at = self.at;
        match self.u8("bool")? {
            0 => Ok(false),
            1 => Ok(true),
            v => Err(Fault::new(at, format!("{v} is not a bool"))),
        }
    }

    fn value(&mut self) -> Result<Value, Fault> {
        let at = self.at;
        Ok(match self.u32("type")? {
            0 => Value::U8(self.u8("u8")?),
            1 => Value::I8(self.i8("i8")?),
            2 => Value::U16(self.u16("u16")?),
            3 => Value::I16(self.i16("i16")?),
            4 => Value::U32(self.u32("u32")?),
            5 => Value::I32(self.i32("i32")?),
            6 => Value::F32(self.f32("f32")?),
            7 => Value::Bool(self.bool()?),
            8 => {
                let bytes = self.string()?;
                Value::Str(self.owned(bytes)?)
            }
            9 => Value::Array(self.values(1)?),
            10 => Value::U64(self.u64("u64")?),
            11 => Value::I64(self.i64("i64")?),
            12 => Value::F64(self.f64("f64")?),
            v => return Err(Fault::new(at, format!("value type {v} is not known"))),
        })
    }

    /// An array, itself `depth` arrays deep.
    fn values(&mut self, depth: usize) -> Result<Array, Fault> {
        let at = self.at;
        Ok(match self.u32("element type")? {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let count = self.count(1, "elements")?;
                let mut array = reserved(count, self.at)?;
                for _ in 0..count {
                    array.push(self.bool()?);
                }
                Array::Bool(array)
            }
            8 => {
                let count = self.count(8, "strings")?;
                let mut array = Strings::new();
                array.try_reserve(count).map_err(|e| no_memory(at, e))?;
                for _ in 0..count {
                    let string = self.string()?;
                    array.try_push(string).map_err(|e| no_memory(self.at, e))?;
                }
                Array::Str(array)
            }
            9 if depth == ARRAY_DEPTH => {
                let what = format!("arrays nested more than {ARRAY_DEPTH} deep");
                return Err(Fault::new(at, what));
            }
            9 => {
                let count = self.count(ARRAY_MIN, "arrays")?;
                // Grown as they come: a count at each depth could otherwise reserve the file anew.
                let mut array = Vec::new();
                for _ in 0..count {
                    array.try_reserve(1).map_err(|e| no_memory(self.at, e))?;
                    array.push(self.values(depth + 1)?);
                }
                Array::Array(array)
            }
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            v => return Err(Fault::new(at, format!("element type {v} is not known"))),
        })
    }

    fn numbers<T, const N: usize>(&mut self, read: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
        let count = self.count(N, "elements")?;
        let mut array = reserved(count, self.at)?;
        // No overflow: `count` made sure that so many bytes are left.
        let bytes = self.take(count.saturating_mul(N), "elements")?;
        array.extend(bytes.as_chunks().0.iter().map(|b| read(*b)));
        Ok(array)
    }
}
