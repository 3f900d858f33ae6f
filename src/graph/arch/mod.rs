//! Architectures: what a model family computes, as graph files.
//!
//! An architecture is a file of `graphs/` (see [`star`](super::star)): a function from the model's
//! hyper-parameters to nodes. It says itself which models it serves; no name of one is written in
//! Rust.
//!
//! The model's file is hostile: [`Config`] checks every number that is used, the builder checks
//! every shape, and a missing tensor is named when it is asked for.

mod config;

pub use super::star::{Library, Loaded};
pub use config::Config;
pub(super) use config::EPS;

use super::{Builder, Graph, Names, NodeId, Op, Sketch, Weights};
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
    let names = if hf { Names::new(file.pairs("NAMES")?) } else { Names::default() };
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
    finish(b, logits)
}

/// A graph of the first layers of a model, for a look at it.
///
/// # Errors
/// As for [`build_with`].
pub fn build_layers(
    meta: &Metadata,
    weights: &dyn Weights,
    library: &Library,
    layers: usize,
) -> Result<Graph> {
    let (file, names, mut config) = read(meta, library)?;
    config.layers = config.layers.min(layers);
    let mut b = Builder::new(weights).with_names(names);
    let logits = file.build(&mut b, &config)?;
    finish(b, logits)
}

/// A small model in the likeness of a large one, without weights.
#[derive(Clone, Debug)]
pub struct Likeness {
    /// Its graph; tensors have the graph file's own names.
    pub graph: Graph,
    /// Its tensors.
    pub sketch: Sketch,
    /// What was cut, such as `8 of 32 heads`; empty when nothing was.
    pub cut: Vec<String>,
    /// Each tensor that the graph reads, and what it is called in a folder of the hub.
    pub names: Vec<(String, String)>,
}

/// Key heads of a likeness that was cut.
const MOST_KV_HEADS: usize = 2;
/// Elements of a row beyond which heads are cut.
const WIDE: usize = 1024;
/// Weights of a likeness beyond which layers are cut: 256 MiB of f32.
const MOST_WEIGHTS: usize = 64 << 20;

/// A graph from hyper-parameters alone: the graph file's `tensors(c)`, or else that of
/// `shapes.star`, says which tensors there are. Rows wider than 1024 lose heads, in groups that
/// share a key head; models of more than 64 Mi weights lose layers. What a kernel sees stays: the
/// length of a head, how many heads share a key.
///
/// # Errors
/// As for [`build_with`].
pub fn sketch(meta: &Metadata, library: &Library, layers: Option<usize>) -> Result<Likeness> {
    let (file, names, mut config) = read(meta, library)?;
    let mut cut = Vec::new();
    config.layers = config.layers.min(layers.unwrap_or(usize::MAX));
    if config.dim > WIDE && config.kv_heads > MOST_KV_HEADS {
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.dim);
        config.kv_heads = MOST_KV_HEADS;
        config.heads = heads / kv_heads * MOST_KV_HEADS;
        config.dim = if dim == heads * config.head_dim {
            config.heads * config.head_dim
        } else {
            // Not what heads make up: in proportion, in steps that halves and blocks divide.
            (dim * config.heads / heads).next_multiple_of(64).min(dim)
        };
        cut.push(format!("{} of {heads} heads", config.heads));
        cut.push(format!("{MOST_KV_HEADS} of {kv_heads} key heads"));
        cut.push(format!("rows of {} instead of {dim}", config.dim));
    }
    let tensors = match file.tensors(&config)? {
        Some(tensors) => Some(tensors),
        None => library.named("shapes.star")?.tensors(&config)?,
    };
    let sketch = Sketch::new(tensors.unwrap_or_default());
    let build = |config: &Config<'_>| {
        let mut b = Builder::new(&sketch);
        let logits = library.serving(config.name())?.build(&mut b, config)?;
        finish(b, logits)
    };
    let mut graph = build(&config)?;
    let count = weights_of(&graph);
    if count > MOST_WEIGHTS {
        let layers = (config.layers * MOST_WEIGHTS / count).max(1);
        cut.push(format!("{layers} of {} layers", config.layers));
        config.layers = layers;
        graph = build(&config)?;
    }
    let weights = graph.nodes().iter().filter_map(|n| match &n.op {
        Op::Weight(w) => Some((w.name.clone(), names.resolve(&w.name))),
        _ => None,
    });
    let names = weights.collect();
    Ok(Likeness { graph, sketch, cut, names })
}

/// Elements of all weights of a graph.
pub fn weights_of(graph: &Graph) -> usize {
    let weights = graph.nodes().iter().filter(|n| matches!(n.op, Op::Weight(_)));
    weights.fold(0, |sum: usize, n| sum.saturating_add(n.ty.width()))
}

/// The finished graph: the logits and the tokens sampled from them are its outputs.
fn finish(mut b: Builder<'_>, logits: NodeId) -> Result<Graph> {
    let token = b.sample(logits)?;
    b.output(logits);
    b.output(token);
    Ok(b.finish())
}
