//! The hyper-parameters of a model file, checked.

use crate::error::{Error, Result};
use crate::graph::weights::missing;
use crate::graph::{Names, Weights, near};
use crate::model::{Metadata, Value};
use std::collections::BTreeMap;

/// Hyper-parameters that architectures share. Whatever only one of them has is read with
/// [`Config::count`] and [`Config::positive`].
#[derive(Clone, Debug)]
pub struct Config<'m> {
    meta: &'m Metadata,
    name: &'m str,
    /// What keys are called in a `config.json`, the first that is there; `None` for GGUF.
    keys: Option<BTreeMap<String, Vec<String>>>,
    /// Number of layers.
    pub layers: usize,
    /// Elements of a token's row between layers.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that rope turns; even, at most `head_dim`.
    pub rope_dim: usize,
    /// Base of rope's frequencies; `None` where the file leaves it to the architecture.
    pub rope_base: Option<f32>,
    /// Factor on positions in rope.
    pub rope_scale: f32,
    /// Added to the mean square in norms, if the file has it.
    pub eps: Option<f32>,
    /// Positions that sequences may have; 0 where that is not known. It is the caller's, not the file's.
    pub context: usize,
}

/// The usual key of [`Config::eps`].
pub(crate) const EPS: &str = "attention.layer_norm_rms_epsilon";

/// Larger than anything sound, small enough that products of two stay far from overflow.
const MAX_COUNT: u64 = 1 << 24;

impl<'m> Config<'m> {
    /// Reads and checks the hyper-parameters under `name`.
    ///
    /// # Errors
    /// The key that is missing or does not fit.
    pub fn read(
        meta: &'m Metadata,
        name: &'m str,
        keys: Option<BTreeMap<String, Vec<String>>>,
    ) -> Result<Self> {
        let mut c = Config {
            meta,
            name,
            keys,
            layers: 0,
            dim: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            rope_dim: 0,
            rope_base: None,
            rope_scale: 1.0,
            eps: None,
            context: 0,
        };
        c.layers = c.required("block_count", c.count("block_count")?)?;
        c.dim = c.required("embedding_length", c.count("embedding_length")?)?;
        c.heads = c.required("attention.head_count", c.count("attention.head_count")?)?;
        c.kv_heads = c.count("attention.head_count_kv")?.unwrap_or(c.heads);
        if !c.heads.is_multiple_of(c.kv_heads) {
            let what = format!("{} heads are not a multiple of {}", c.heads, c.kv_heads);
            return Err(c.error("attention.head_count_kv", what));
        }
        c.head_dim = match c.count("attention.key_length")? {
            Some(length) => length,
            None if c.dim.is_multiple_of(c.heads) => c.dim / c.heads,
            None => {
                let what = format!("{} elements do not divide among {}", c.dim, c.heads);
                return Err(c.error("attention.head_count", what));
            }
        };
        if let Some(length) = c.count("attention.value_length")?
            && length != c.head_dim
        {
            let what = format!("{length}, but heads have {} elements", c.head_dim);
            return Err(c.error("attention.value_length", what));
        }
        // Some files give the share of a head that turns.
        let share = c.positive("rope.partial")?.map(|p| (p * c.head_dim as f32) as usize);
        c.rope_dim = c.count("rope.dimension_count")?.or(share).unwrap_or(c.head_dim);
        if !c.rope_dim.is_multiple_of(2) || c.rope_dim > c.head_dim {
            let what = format!("{} of {} elements cannot turn in pairs", c.rope_dim, c.head_dim);
            return Err(c.error("rope.dimension_count", what));
        }
        c.rope_base = c.positive("rope.freq_base")?;
        c.rope_scale = c.scaling()?;
        let other = c.positive("attention.layer_norm_epsilon")?;
        c.eps = c.positive(EPS)?.or(other);
        Ok(c)
    }

    /// Checks what is known of the tensors before the graph is built: the embedding against
    /// vocabulary and dimension, and that no layer is left over.
    ///
    /// # Errors
    /// What does not fit.
    pub(super) fn check_tensors(&self, weights: &dyn Weights, names: &Names) -> Result<()> {
        let embedding = names.resolve("token_embd.weight");
        let Some((_, dims)) = weights.find(&embedding) else {
            let unmapped = names.unmapped("token_embd.weight");
            let hint = unmapped.unwrap_or_else(|| missing(weights, &embedding));
            return Err(Error::Invalid(format!("there is no tensor {embedding}{hint}")));
        };
        let &[rows, dim] = dims.as_slice() else {
            return Err(Error::Invalid(format!("{embedding} is no matrix but {dims:?}")));
        };
        if dim != self.dim {
            let what = format!("{}, but {embedding} has rows of {dim}", self.dim);
            return Err(self.error("embedding_length", what));
        }
        if let Some(vocabulary) = self.count("vocab_size")?
            && vocabulary != rows
        {
            let what = format!("{vocabulary}, but {embedding} has {rows} rows");
            return Err(self.error("vocab_size", what));
        }
        let tokens = "tokenizer.ggml.tokens";
        if let Some(list) = self.meta.get_strs(tokens)?
            && list.len() != rows
        {
            let what = format!("{} tokens, but {embedding} has {rows} rows", list.len());
            return Err(self.meta.error(tokens, what));
        }
        let next = names.resolve(&format!("blk.{}.attn_norm.weight", self.layers));
        if weights.find(&next).is_some() {
            let what = format!("{} layers, but there is a tensor {next}", self.layers);
            return Err(self.error("block_count", what));
        }
        Ok(())
    }

    /// A count from 1, if the file has it.
    ///
    /// # Errors
    /// When it is there and is not one.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.count_or_zero(key)? {
            0 if self.meta.has(&self.key(key)) => Err(self.error(key, "0 is too few")),
            0 => Ok(None),
            n => Ok(Some(n)),
        }
    }

    /// A finite number above 0, if the file has it.
    ///
    /// # Errors
    /// When it is there and is not one.
    pub fn positive(&self, key: &str) -> Result<Option<f32>> {
        let value = self.float(key)?;
        if let Some(v) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
            return Err(self.error(key, format!("{v} is not a positive number")));
        }
        Ok(value)
    }

    /// An error about a key that must be there: what it is called in a folder and what is near.
    pub fn missing(&self, key: &str) -> Error {
        let called = self.key(key);
        let hint = near::hint(&called, self.meta.iter().map(|(k, _)| k));
        let mapped = match &self.keys {
            Some(keys) => match keys.get(key) {
                Some(names) if names.len() > 1 => {
                    let all: Vec<String> = names.iter().skip(1).map(|n| near::shown(n)).collect();
                    format!("; KEYS looks for {key} there, and at {}", all.join(", "))
                }
                Some(_) => format!("; KEYS looks for {key} there"),
                None if keys.is_empty() => "; the graph file has no KEYS for folders".to_string(),
                None => format!("; KEYS does not say what {key} is called"),
            },
            None => String::new(),
        };
        self.error(key, format!("missing{mapped}{hint}"))
    }

    /// An error about a key of this architecture.
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        self.meta.error(&self.key(key), what)
    }

    /// A number, if the file has it.
    ///
    /// # Errors
    /// When it is there and is not one, or not finite.
    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        let key = self.key(key);
        // JSON knows no difference between 10000 and 10000.0, and writers of GGUF disagree.
        let integer = self.meta.get(&key).and_then(Value::as_integer);
        let value = match integer {
            Some(integer) => Some(integer as f32),
            None => self.meta.get_f32(&key)?,
        };
        match value {
            Some(v) if !v.is_finite() && self.keys.is_some() => {
                Err(self.meta.error(&key, format!("{v} is not finite")))
            }
            value => Ok(value),
        }
    }

    /// A yes or no, if the file has it.
    ///
    /// # Errors
    /// When it is there and is neither.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.meta.get_bool(&self.key(key))
    }

    /// Text, if the file has it.
    ///
    /// # Errors
    /// When it is there and is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.meta.get_str(&self.key(key))
    }

    /// A value of any kind, if the file has it.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.meta.get(&self.key(key))
    }

    /// Whether the hyper-parameters are those of a Hugging Face folder.
    pub fn is_hf(&self) -> bool {
        self.keys.is_some()
    }

    /// The architecture, as the file names it.
    pub fn name(&self) -> &str {
        self.name
    }

    fn key(&self, key: &str) -> String {
        let Some(keys) = &self.keys else { return format!("{}.{key}", self.name) };
        let called = keys.get(key).map_or(&[][..], Vec::as_slice);
        let there = called.iter().find(|k| self.meta.has(k)).or(called.first());
        there.map_or_else(|| key.to_string(), Clone::clone)
    }

    fn required<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.missing(key))
    }

    /// A count; 0 when it is absent.
    fn count_or_zero(&self, key: &str) -> Result<usize> {
        let value = self.meta.get_u64(&self.key(key))?.unwrap_or(0);
        let fits = usize::try_from(value).ok().filter(|_| value <= MAX_COUNT);
        fits.ok_or_else(|| self.error(key, format!("{value} is more than {MAX_COUNT}")))
    }

    /// Rope's factor on positions: files give its inverse.
    fn scaling(&self) -> Result<f32> {
        let kind = self.meta.get_str(&self.key("rope.scaling.type"))?;
        let factor = match kind {
            None => self.positive("rope.scale_linear")?,
            Some("linear") => self.positive("rope.scaling.factor")?,
            // All others are the graph file's to know.
            Some(_) => None,
        };
        Ok(1.0 / factor.unwrap_or(1.0))
    }
}
