//! The one way to make a graph: a method a step of the computation, checked as it is called.
//!
//! Every node remembers the line that asked for it, through `#[track_caller]`: an error about a
//! shape names the line of the architecture, not a line of the builder. A reader of graph files
//! gives lines of its own with [`Builder::at`].
//!
//! Tensors are named as files name them, without their last part: `blk.0.attn_q` is the matrix
//! `blk.0.attn_q.weight` and, if the file has one, the bias `blk.0.attn_q.bias`.

mod ops;

use super::near::shown;
use super::op::{Cache, CachePart, Input, InputKind, Reshape, Store, Weight};
use super::weights::missing;
use super::{
    Args, DType, Dims, Graph, Lead, Names, NodeId, Op, Origin, RopeLayout, TensorType, Weights,
};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::panic::Location;

/// How [`Builder::rope`] turns heads.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RopeOptions<'a> {
    /// Base of the frequencies.
    pub base: f32,
    /// Elements of a head that turn; the whole head if `None`.
    pub dim: Option<usize>,
    /// Factor on positions.
    pub scale: f32,
    /// Which elements form a pair.
    pub layout: RopeLayout,
    /// The tensor that divides the frequency of each pair.
    pub factors: Option<&'a str>,
    /// Numbers that divide the frequency of each pair; none if empty.
    pub divide: &'a [f32],
    /// Factor on what has turned.
    pub gain: f32,
}

impl Default for RopeOptions<'_> {
    fn default() -> Self {
        let layout = RopeLayout::Neighbour;
        let (base, dim, scale, factors) = (10_000.0, None, 1.0, None);
        RopeOptions { base, dim, scale, layout, factors, divide: &[], gain: 1.0 }
    }
}

/// How [`Builder::attend`] attends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AttendOptions {
    /// The layer, which names the cache.
    pub layer: usize,
    /// Factor on the dot products.
    pub scale: f32,
    /// How many positions are seen, the own one included; all of them if `None`.
    pub window: Option<usize>,
    /// Bound on the scores.
    pub softcap: Option<f32>,
}

/// What few models add to attention.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct AttendExtras<'a> {
    /// The tensor of a score for each head that takes part in the softmax and has no value.
    pub sinks: Option<&'a str>,
    /// Greatest exponent of ALiBi's slopes, which make far positions count less.
    pub alibi: Option<f32>,
}

/// Makes a [`Graph`], node by node.
pub struct Builder<'w> {
    weights: &'w dyn Weights,
    names: Names,
    graph: Graph,
    made: BTreeMap<String, NodeId>,
    given: Option<Origin>,
}

impl<'w> Builder<'w> {
    /// An empty graph over these weights. Only their names and shapes are read.
    pub fn new(weights: &'w dyn Weights) -> Self {
        let names = Names::default();
        Builder { weights, names, graph: Graph::default(), made: BTreeMap::new(), given: None }
    }

    /// Tensors are called by other names in these weights.
    #[must_use]
    pub fn with_names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Dimensions of a row of `x`.
    pub fn dims(&self, x: NodeId) -> &[usize] {
        &self.graph.ty(x).dims
    }

    /// Nodes made in `make` come from `origin` instead of from the calling line.
    pub fn at<T>(&mut self, origin: Origin, make: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.given.replace(origin);
        let made = make(self);
        self.given = outer;
        made
    }

    /// Whether there is a tensor of that whole name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.weights.find(&self.names.resolve(name)).is_some()
    }

    /// Whether there is a tensor `name.weight`.
    pub fn has(&self, name: &str) -> bool {
        self.has_tensor(&format!("{name}.weight"))
    }

    /// Keeps the value of `x` after the step.
    pub fn output(&mut self, x: NodeId) {
        self.graph.mark_output(x);
    }

    /// An error about an op at the calling line, for what the builder cannot know.
    #[track_caller]
    pub fn error(&self, op: &'static str, what: impl Into<String>) -> Error {
        fail(&self.here(), op, what.into())
    }

    #[track_caller]
    fn here(&self) -> Origin {
        let caller = Location::caller();
        self.given.clone().unwrap_or_else(|| {
            let file = caller.file();
            let short = file.rsplit(['/', '\\']).next().unwrap_or(file);
            Origin { file: short.into(), line: caller.line() }
        })
    }

    fn push(&mut self, here: &Origin, op: impl Into<Op>, args: &[NodeId]) -> Result<NodeId> {
        self.graph.push(op.into(), Args::from_slice(args), None, here.clone())
    }

    /// A source, of which one node serves all: made at its first use, with the type `ty`.
    fn source(
        &mut self,
        here: &Origin,
        key: &str,
        op: impl Into<Op>,
        ty: Option<TensorType>,
    ) -> Result<NodeId> {
        if let Some(&id) = self.made.get(key) {
            return Ok(id);
        }
        let id = self.graph.push(op.into(), Args::new(), ty, here.clone())?;
        self.made.insert(key.to_string(), id);
        Ok(id)
    }

    fn input(&mut self, here: &Origin, kind: InputKind) -> Result<NodeId> {
        self.source(here, &format!("input {kind:?}"), Input { kind }, None)
    }

    fn tensor(&mut self, here: &Origin, op: &'static str, name: &str) -> Result<NodeId> {
        let unmapped = self.names.unmapped(name);
        let name = &self.names.resolve(name);
        let Some((format, dims)) = self.weights.find(name) else {
            let hint = unmapped.unwrap_or_else(|| missing(self.weights, name));
            return Err(fail(here, op, format!("there is no tensor {}{hint}", shown(name))));
        };
        let ty = TensorType::new(DType::Weight(format), Lead::Fixed, &dims);
        let weight = Weight { name: name.to_string() };
        self.named(name, |b| b.source(here, &format!("weight {name}"), weight, Some(ty)))
    }

    /// A tensor as one vector, whatever its dimensions.
    fn vector(&mut self, here: &Origin, op: &'static str, name: &str) -> Result<NodeId> {
        let file_name = &self.names.resolve(name);
        let Some((format, dims)) = self.weights.find(file_name).filter(|(_, d)| d.len() > 1) else {
            return self.tensor(here, op, name);
        };
        let name = file_name;
        let ty = TensorType::new(DType::Weight(format), Lead::Fixed, &[dims.iter().product()]);
        let weight = Weight { name: name.to_string() };
        self.named(name, |b| b.source(here, &format!("vector {name}"), weight, Some(ty)))
    }

    fn store(&mut self, here: &Origin, x: NodeId, layer: usize, part: CachePart) -> Result<NodeId> {
        let key = format!("cache {layer} {part:?}");
        if self.made.contains_key(&key) {
            return Err(fail(here, "cache", format!("layer {layer} has one already")));
        }
        let ty = TensorType::new(DType::F16, Lead::Cache, &self.graph.ty(x).dims);
        let cache = self.source(here, &key, Cache { layer, part }, Some(ty))?;
        let positions = self.input(here, InputKind::Positions)?;
        let slots = self.input(here, InputKind::Slots)?;
        self.push(here, Store, &[cache, x, positions, slots])
    }

    fn flat(&mut self, here: &Origin, x: NodeId) -> Result<NodeId> {
        let width = self.graph.ty(x).width();
        self.push(here, Reshape { dims: Dims::from_slice(&[width]) }, &[x])
    }

    /// Puts the tensor's name before what went wrong with it.
    fn named<T>(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        make(self).map_err(|e| match e {
            Error::Graph { origin, op, what } => {
                Error::Graph { origin, op, what: format!("{}: {what}", shown(name)) }
            }
            other => other,
        })
    }
}

fn fail(here: &Origin, op: &'static str, what: String) -> Error {
    Error::Graph { origin: here.to_string(), op, what }
}
