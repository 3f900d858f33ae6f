//! Where a graph's weights come from: a model file, or memory for graphs made by hand.
//!
//! A name may be one that is made of others, where families of files store the same numbers in
//! other ways: `transpose(NAME)` swaps the last two dimensions, `plus1(NAME)` adds 1 to each element,
//! `row(NAME)` sees a vector as a matrix of one row,
//! `stack(NAME)` puts the tensors whose names have 0, 1, 2, … for the `*` one after another. They
//! take floats, nest, and are made when they are read.

use super::near;
use super::types::Dims;
use crate::model::{Format, Model};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Named tensors. The builder asks for types; a session that loads a program asks for bytes.
pub trait Weights {
    /// Format and dimensions (slowest first) of a tensor; `None` when there is no such tensor.
    fn find(&self, name: &str) -> Option<(Format, Dims)>;
    /// Names of tensors that are there, for messages about one that is not; none if that is not known.
    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
    /// The tensor's bytes, in its format.
    fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>>;
}

/// Tensors that a tensor is stacked of, at most.
const MAX_STACK: usize = 4096;

/// A name that is made of others.
enum Made<'n> {
    Transpose(&'n str),
    PlusOne(&'n str),
    Row(&'n str),
    Stack(&'n str, &'n str),
}

impl<'n> Made<'n> {
    fn of(name: &'n str) -> Option<Made<'n>> {
        let (how, rest) = name.split_once('(')?;
        let inner = rest.strip_suffix(')')?;
        // Each level takes a few bytes, and sound names take no more than two.
        if name.len() > 512 || inner.matches('(').count() > 3 {
            return None;
        }
        match how {
            "transpose" => Some(Made::Transpose(inner)),
            "row" => Some(Made::Row(inner)),
            "plus1" => Some(Made::PlusOne(inner)),
            "stack" => inner.split_once('*').map(|(a, b)| Made::Stack(a, b)),
            _ => None,
        }
    }
}

/// Format and dimensions of a made tensor.
pub(super) fn find_made(weights: &dyn Weights, name: &str) -> Option<(Format, Dims)> {
    let float = |f: Format| matches!(f, Format::F32 | Format::F16 | Format::BF16);
    match Made::of(name)? {
        Made::Transpose(inner) => {
            let (format, mut dims) = weights.find(inner).filter(|(f, _)| float(*f))?;
            if let [.., a, b] = dims.as_mut_slice() {
                std::mem::swap(a, b);
            }
            Some((format, dims))
        }
        Made::Row(inner) => {
            let (format, mut dims) = weights.find(inner).filter(|(_, d)| d.len() == 1)?;
            dims.insert(0, 1);
            Some((format, dims))
        }
        Made::PlusOne(inner) => {
            let (_, dims) = weights.find(inner).filter(|(f, _)| float(*f))?;
            Some((Format::F32, dims))
        }
        Made::Stack(before, after) => {
            let first = weights.find(&format!("{before}0{after}"))?;
            let same =
                |i: &usize| weights.find(&format!("{before}{i}{after}")).as_ref() == Some(&first);
            let count = (0..MAX_STACK).take_while(same).count();
            let (format, mut dims) = first;
            dims.insert(0, count);
            Some((format, dims))
        }
    }
}

/// What a message adds about `name`, which is not there: names that are near, and that a name is made
/// in a way that there is not.
pub(super) fn missing(weights: &dyn Weights, name: &str) -> String {
    let mut inner = name;
    while let Some((how, rest)) = inner.strip_suffix(')').and_then(|n| n.split_once('(')) {
        if Made::of(inner).is_none() {
            return format!("; there is no {} of a name", near::shown(how));
        }
        inner = rest;
    }
    if weights.find(inner).is_some() {
        return "; the tensor is there, but it is not of floats".to_string();
    }
    // Where a name says that any number may stand, 0 must be there.
    near::hint(&inner.replacen('*', "0", 1), weights.names())
}

/// Bytes of a made tensor.
fn make<'w>(weights: &'w dyn Weights, name: &str) -> Option<Cow<'w, [u8]>> {
    let (format, dims) = find_made(weights, name)?;
    match Made::of(name)? {
        Made::Transpose(inner) => {
            let bytes = weights.bytes(inner)?;
            let &[.., rows, cols] = dims.as_slice() else { return Some(bytes) };
            // Of the result; the source has as many columns as it has rows.
            let size = format.row_bytes(1)?;
            let mut out = Vec::new();
            out.try_reserve_exact(bytes.len()).ok()?;
            for matrix in bytes.chunks_exact(rows.checked_mul(cols)?.checked_mul(size)?) {
                for row in 0..rows {
                    let column = matrix.chunks_exact(size).skip(row).step_by(rows);
                    column.for_each(|element| out.extend_from_slice(element));
                }
            }
            Some(Cow::Owned(out))
        }
        Made::Row(inner) => weights.bytes(inner),
        Made::PlusOne(inner) => {
            let (format, dims) = weights.find(inner)?;
            let mut values = vec![0.0f32; dims.iter().product()];
            format.decode(&weights.bytes(inner)?, &mut values).ok()?;
            Some(Cow::Owned(values.iter().flat_map(|v| (v + 1.0).to_le_bytes()).collect()))
        }
        Made::Stack(before, after) => {
            let mut out = Vec::new();
            for i in 0..dims.first().copied().unwrap_or(0) {
                let bytes = weights.bytes(&format!("{before}{i}{after}"))?;
                out.try_reserve(bytes.len()).ok()?;
                out.extend_from_slice(&bytes);
            }
            Some(Cow::Owned(out))
        }
    }
}

impl Weights for Model {
    fn names(&self) -> Vec<&str> {
        let packed = self.packed().iter().map(|p| p.name.as_str());
        self.tensors().iter().map(|t| t.name.as_str()).chain(packed).collect()
    }

    fn find(&self, name: &str) -> Option<(Format, Dims)> {
        let found = self.tensor(name).map(|t| (t.format, t.dims.iter().copied().collect()));
        let packed = || self.packed_weight(name).map(|p| (p.format, Dims::from_slice(&p.dims)));
        found.or_else(packed).or_else(|| find_made(self, name))
    }

    fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let found = self.tensor(name).map(|t| Cow::Borrowed(Model::bytes(self, t)));
        let packed = || self.packed_bytes(self.packed_weight(name)?).map(Cow::Owned);
        found.or_else(packed).or_else(|| make(self, name))
    }
}

/// Tensors in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryWeights {
    tensors: BTreeMap<String, (Format, Dims, Vec<u8>)>,
}

impl MemoryWeights {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an f32 tensor of shape `dims`, slowest dimension first.
    ///
    /// # Errors
    /// When the number of values is not the product of `dims`.
    pub fn insert(&mut self, name: &str, dims: &[usize], values: &[f32]) -> crate::Result<()> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.insert_bytes(name, Format::F32, dims, bytes)
    }

    /// Adds a tensor as its format stores it.
    ///
    /// # Errors
    /// When the bytes are not what `format` and `dims` ask for.
    pub fn insert_bytes(
        &mut self,
        name: &str,
        format: Format,
        dims: &[usize],
        bytes: Vec<u8>,
    ) -> crate::Result<()> {
        let wants = dims.split_last().and_then(|(&cols, rest)| {
            let rows = rest.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
            format.row_bytes(cols)?.checked_mul(rows)
        });
        if wants != Some(bytes.len()) {
            return Err(crate::Error::Invalid(format!(
                "tensor {}: {} bytes do not make {} of {dims:?}",
                crate::error::quoted(name),
                bytes.len(),
                format.name()
            )));
        }
        self.tensors.insert(name.to_string(), (format, Dims::from_slice(dims), bytes));
        Ok(())
    }
}

impl Weights for MemoryWeights {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn find(&self, name: &str) -> Option<(Format, Dims)> {
        let found = self.tensors.get(name).map(|(format, dims, _)| (*format, dims.clone()));
        found.or_else(|| find_made(self, name))
    }

    fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let found = self.tensors.get(name).map(|(_, _, bytes)| Cow::Borrowed(bytes.as_slice()));
        found.or_else(|| make(self, name))
    }
}
