//! Where a graph's weights come from: a model file, or memory for graphs made by hand.

use super::types::Dims;
use crate::model::{Format, Model};
use std::collections::BTreeMap;

/// Named tensors. The builder asks for types; a session that loads a program asks for bytes.
pub trait Weights {
    /// Format and dimensions (slowest first) of a tensor; `None` when there is no such tensor.
    fn find(&self, name: &str) -> Option<(Format, Dims)>;
    /// The tensor's bytes, in its format.
    fn bytes(&self, name: &str) -> Option<&[u8]>;
}

impl Weights for Model {
    fn find(&self, name: &str) -> Option<(Format, Dims)> {
        self.tensor(name).map(|t| (t.format, t.dims.iter().copied().collect()))
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensor(name).map(|t| Model::bytes(self, t))
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
    fn find(&self, name: &str) -> Option<(Format, Dims)> {
        self.tensors.get(name).map(|(format, dims, _)| (*format, dims.clone()))
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|(_, _, bytes)| bytes.as_slice())
    }
}
