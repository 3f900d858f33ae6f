//! Architectures: what a model family computes, as graph files.
//!
//! An architecture is a file of `graphs/` (see [`star`](super::star)): a function from the model's
//! hyper-parameters to nodes. It says itself which models it serves; no name of one is written in
//! Rust.
//!
//! The model's file is hostile: [`Config`] checks every number that is used, the builder checks
//! every shape, and a missing tensor is named when it is asked for.

mod config;

pub use super::star::Library;
pub use config::Config;

use super::{Builder, Graph, Weights};
use crate::error::Result;
use crate::model::{Metadata, Model};

/// The graph of one step of a model. Its outputs are the logits and the sampled tokens.
///
/// # Errors
/// When the architecture is unknown, a hyper-parameter is missing or unfit, or a tensor is missing
/// or of another shape than the architecture needs.
pub fn build(model: &Model) -> Result<Graph> {
    build_with(model.meta(), model, &Library::embedded())
}

/// [`build`] from metadata and weights that come from different places, with the graph files of
/// `library`.
///
/// # Errors
/// As for [`build`], and when the graph file does not run.
pub fn build_with(meta: &Metadata, weights: &dyn Weights, library: &Library) -> Result<Graph> {
    let name = meta.require_str("general.architecture")?;
    let file = library.serving(name)?;
    let config = Config::read(meta, name)?;
    config.check_tensors(weights)?;
    let mut b = Builder::new(weights);
    let logits = file.build(&mut b, &config)?;
    let token = b.sample(logits)?;
    b.output(logits);
    b.output(token);
    Ok(b.finish())
}
