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
pub(super) use config::EPS;

use super::star::Loaded;
use super::{Builder, Graph, Names, Weights};
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

/// What a model's tensors are called by its graph file, and how many layers it has. A GGUF file has no
/// other names.
///
/// # Errors
/// As for [`build_with`].
pub fn names(meta: &Metadata, library: &Library) -> Result<(Names, usize)> {
    let (_, names, config) = read(meta, library)?;
    Ok((names, config.layers))
}

/// The graph file of a model, the names of its tensors, its hyper-parameters.
fn read<'m, 'a, 'w>(
    meta: &'m Metadata,
    library: &Library,
) -> Result<(Loaded<'a, 'w>, Names, Config<'m>)> {
    let name = meta.require_str("general.architecture")?;
    let file = library.serving(name)?;
    let hf = meta.get_str("general.source")? == Some("huggingface");
    let names = Names::new(if hf { file.pairs("NAMES")? } else { Vec::new() });
    let config = Config::read(meta, name, if hf { Some(file.lists("KEYS")?) } else { None })?;
    Ok((file, names, config))
}

/// [`build`] from metadata and weights that come from different places, with the graph files of
/// `library`.
///
/// # Errors
/// As for [`build`], and when the graph file does not run.
pub fn build_with(meta: &Metadata, weights: &dyn Weights, library: &Library) -> Result<Graph> {
    build_for(meta, weights, library, 0)
}

/// [`build_with`] for sequences of at most `context` positions; 0 for as many as the model was first
/// trained for. Some rotate otherwise where sequences may become longer than that.
///
/// # Errors
/// As for [`build_with`].
pub fn build_for(
    meta: &Metadata,
    weights: &dyn Weights,
    library: &Library,
    context: usize,
) -> Result<Graph> {
    let (file, names, mut config) = read(meta, library)?;
    config.context = context;
    config.check_tensors(weights, &names)?;
    let mut b = Builder::new(weights).with_names(names);
    let logits = file.build(&mut b, &config)?;
    let token = b.sample(logits)?;
    b.output(logits);
    b.output(token);
    Ok(b.finish())
}
