//! Weights that are brought to fewer bits while they are read.
//!
//! Each is what [`Conversion`](crate::model::Conversion) would write, bit for bit: the same policy by the
//! same names, the same encoder. A folder's tensors have other names; those that its graph file gives
//! say which is which.

use super::types::Dims;
use super::{Names, Weights};
use crate::error::{Error, Result, quoted};
use crate::model::{Format, Model, Policy, encode_rows};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A model whose weights have other formats than its files.
#[derive(Debug)]
pub struct Encoded<'m> {
    model: &'m Model,
    policy: Policy,
    /// What graph files call a folder's tensors.
    names: BTreeMap<String, String>,
    threads: usize,
    failed: Mutex<Option<Error>>,
}

impl<'m> Encoded<'m> {
    /// The model's weights, most of them as `main`, encoded by so many threads. `names` are those of
    /// its graph file, for as many layers; of a GGUF file there are none.
    pub fn new(
        model: &'m Model,
        main: Format,
        names: &Names,
        layers: usize,
        threads: usize,
    ) -> Self {
        let tied = model.find(&names.resolve("output.weight")).is_none();
        let policy = Policy { main, pure: false, tied };
        // A file may say that it has more layers than it has tensors.
        let layers = layers.min(model.tensors().len() + model.packed().len());
        let names = names.all(layers).into_iter().map(|(name, there)| (there, name)).collect();
        Encoded { model, policy, names, threads, failed: Mutex::new(None) }
    }

    /// The format in the file, and that to be.
    fn formats(&self, name: &str) -> Option<(Format, Format, Dims)> {
        let (from, dims) = self.model.find(name)?;
        let ours = self.names.get(name).map_or(name, String::as_str);
        Some((from, self.policy.format(ours, from, &dims), dims))
    }

    /// Why the last weight that was not there could not be encoded: to be asked when loading fails.
    pub fn failure(&self) -> Option<Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn encode(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        let Some((from, to, dims)) = self.formats(name) else { return Ok(None) };
        let Some(bytes) = self.model_bytes(name) else { return Ok(None) };
        if from == to {
            return Ok(Some(bytes));
        }
        let cols = dims.last().copied().unwrap_or(1);
        let out = encode_rows(from, to, cols, &bytes, self.threads).map_err(|(row, e)| {
            Error::Invalid(format!("tensor {}, row {row}: {e}", quoted(name)))
        })?;
        Ok(Some(Cow::Owned(out)))
    }

    fn model_bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        Weights::bytes(self.model, name)
    }
}

impl Weights for Encoded<'_> {
    fn names(&self) -> Vec<&str> {
        Weights::names(self.model)
    }

    fn find(&self, name: &str) -> Option<(Format, Dims)> {
        self.formats(name).map(|(_, to, dims)| (to, dims))
    }

    fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.encode(name).unwrap_or_else(|e| {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
            None
        })
    }
}
