//! Writes GGUF files: random models for tests, the raw material of broken ones, and headers.
//!
//! It writes what it is told, whether or not it makes sense, so that a test can say something
//! false to the reader. Everything lies in memory; of a large file, only the header does.

use super::format::Format;
use super::value::{Array, Value};

/// Builds the bytes of one file.
///
/// ```
/// use gllm_kernels::model::{Format, GgufWriter, Model};
///
/// let file = GgufWriter::new()
///     .meta("general.architecture", "llama")
///     .tensor("output.weight", Format::F32, &[1, 2], &[0; 8])
///     .finish();
/// let model = Model::from_static("example", file.leak())?;
/// assert_eq!(model.tensors()[0].dims[..], [1, 2]);
/// # Ok::<(), gllm_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GgufWriter {
    version: u32,
    alignment: u64,
    keys: u64,
    meta: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// An empty file of version 3.
    pub fn new() -> Self {
        GgufWriter {
            version: 3,
            alignment: 32,
            keys: 0,
            meta: Vec::new(),
            tensors: 0,
            infos: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Writes another version number.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// What the places of tensors are multiples of.
    pub(super) fn alignment(&self) -> usize {
        usize::try_from(self.alignment).unwrap_or(usize::MAX)
    }

    /// Adds a key. `general.alignment` counts for the tensors that follow.
    #[must_use]
    pub fn meta(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        if key == "general.alignment"
            && let Some(alignment) = value.as_integer().and_then(|a| u64::try_from(a).ok())
        {
            self.alignment = alignment.max(1);
        }
        put_bytes(&mut self.meta, key.as_bytes());
        self.meta.extend(value_type(&value).to_le_bytes());
        put_value(&mut self.meta, &value);
        self.keys += 1;
        self
    }

    /// Adds a tensor, `dims` slowest first, at the next aligned place.
    #[must_use]
    pub fn tensor(mut self, name: &str, format: Format, dims: &[usize], bytes: &[u8]) -> Self {
        pad(&mut self.data, self.alignment);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        self.info(name, format.ggml(), dims, offset)
    }

    /// Adds the description of a tensor and none of its bytes, for files that are to be refused.
    #[must_use]
    pub fn info(mut self, name: &str, format: u32, dims: &[usize], offset: u64) -> Self {
        put_bytes(&mut self.infos, name.as_bytes());
        self.infos.extend((dims.len() as u32).to_le_bytes());
        for &dim in dims.iter().rev() {
            self.infos.extend((dim as u64).to_le_bytes());
        }
        self.infos.extend(format.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensors += 1;
        self
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(self.meta);
        file.extend(self.infos);
        pad(&mut file, self.alignment);
        file.extend(self.data);
        file
    }
}

/// Zeros up to the next multiple of `alignment`.
fn pad(bytes: &mut Vec<u8>, alignment: u64) {
    let over = bytes.len() as u64 % alignment;
    if over != 0 {
        bytes.extend((over..alignment).map(|_| 0));
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The number of a value's type in the file.
fn value_type(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::Str(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_bytes(out, v),
        Value::Array(v) => put_array(out, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    /// The head, then each element.
    macro_rules! put {
        ($kind:expr, $v:expr, $put:expr) => {{
            let kind: u32 = $kind;
            out.extend(kind.to_le_bytes());
            out.extend(($v.len() as u64).to_le_bytes());
            $v.iter().for_each($put);
        }};
    }
    match array {
        Array::U8(v) => put!(0, v, |e| out.push(*e)),
        Array::I8(v) => put!(1, v, |e| out.extend(e.to_le_bytes())),
        Array::U16(v) => put!(2, v, |e| out.extend(e.to_le_bytes())),
        Array::I16(v) => put!(3, v, |e| out.extend(e.to_le_bytes())),
        Array::U32(v) => put!(4, v, |e| out.extend(e.to_le_bytes())),
        Array::I32(v) => put!(5, v, |e| out.extend(e.to_le_bytes())),
        Array::F32(v) => put!(6, v, |e| out.extend(e.to_le_bytes())),
        Array::Bool(v) => put!(7, v, |e| out.push(u8::from(*e))),
        Array::Str(v) => put!(8, v, |e| put_bytes(out, e)),
        Array::Array(v) => put!(9, v, |e| put_array(out, e)),
        Array::U64(v) => put!(10, v, |e| out.extend(e.to_le_bytes())),
        Array::I64(v) => put!(11, v, |e| out.extend(e.to_le_bytes())),
        Array::F64(v) => put!(12, v, |e| out.extend(e.to_le_bytes())),
    }
}
