//! Architectures: what a model family computes, written against the [`Builder`].
//!
//! An architecture is a function from [`Config`], the checked hyper-parameters of the file, to
//! nodes. Adding one is its file and its line in [`ARCHITECTURES`].
//!
//! The file is hostile: [`Config`] checks every number that is used, the builder checks every
//! shape, and a missing tensor is named when it is asked for.

mod config;
mod gemma3;
mod llama;

pub use config::Config;

use super::{Builder, Graph, NodeId, Weights};
use crate::error::{Error, Result, quoted};
use crate::model::{Metadata, Model};

/// A model family.
#[derive(Debug)]
pub struct Architecture {
    /// Values of `general.architecture` that it serves.
    pub serves: &'static [&'static str],
    /// Makes the nodes of one step and gives the logits.
    pub build: fn(&mut Builder<'_>, &Config<'_>) -> Result<NodeId>,
}

/// All there are.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { serves: &["llama", "mistral"], build: llama::build },
    Architecture { serves: &["gemma3"], build: gemma3::build },
];

/// The graph of one step of a model. Its outputs are the logits and the sampled tokens.
///
/// # Errors
/// When the architecture is unknown, a hyper-parameter is missing or unfit, or a tensor is missing
/// or of another shape than the architecture needs.
pub fn build(model: &Model) -> Result<Graph> {
    build_from(model.meta(), model)
}

/// [`build`] from metadata and weights that come from different places.
///
/// # Errors
/// As for [`build`].
pub fn build_from(meta: &Metadata, weights: &dyn Weights) -> Result<Graph> {
    let name = meta.require_str("general.architecture")?;
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.serves.contains(&name)) else {
        let known: Vec<&str> = ARCHITECTURES.iter().flat_map(|a| a.serves).copied().collect();
        return Err(Error::Unsupported(format!(
            "architecture {} is unknown, there are {}",
            quoted(name),
            known.join(", ")
        )));
    };
    let config = Config::read(meta, name)?;
    config.check_tensors(weights)?;
    let mut b = Builder::new(weights);
    let logits = (architecture.build)(&mut b, &config)?;
    let token = b.sample(logits)?;
    b.output(logits);
    b.output(token);
    Ok(b.finish())
}
