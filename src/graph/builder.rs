//! The one way to make a graph: a method a step of the computation, checked as it is called.
//!
//! Every node remembers the line that asked for it, through `#[track_caller]`: an error about a
//! shape names the line of the architecture, not a line of this file. A reader of graph files
//! gives lines of its own with [`Builder::at`].
//!
//! Tensors are named as files name them, without their last part: `blk.0.attn_q` is the matrix
//! `blk.0.attn_q.weight` and, if the file has one, the bias `blk.0.attn_q.bias`.

use super::op::{
    Attend, Binary, Cache, CachePart, Concat, Embed, Experts, Input, InputKind, LayerNorm, Linear,
    Mix, Normalize, Pick, Reshape, RmsNorm, Rope, Sample, Select, Slice, Softmax, Store, TopK,
    Unary, Weight,
};
use super::{
    Args, BinaryKind, DType, Dims, Graph, Lead, Names, NodeId, Op, Origin, RopeLayout, TensorType,
    UnaryKind, Weights,
};
use crate::error::{Error, Result, quoted};
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

    /// Tokens of the step, `u32[R]`.
    #[track_caller]
    pub fn tokens(&mut self) -> Result<NodeId> {
        let here = self.here();
        self.input(&here, InputKind::Tokens)
    }

    /// Positions of the step's rows, `u32[R]`.
    #[track_caller]
    pub fn positions(&mut self) -> Result<NodeId> {
        let here = self.here();
        self.input(&here, InputKind::Positions)
    }

    /// Slots of the step's rows, `u32[R]`.
    #[track_caller]
    pub fn slots(&mut self) -> Result<NodeId> {
        let here = self.here();
        self.input(&here, InputKind::Slots)
    }

    /// Rows whose logits are wanted, `u32[O]`.
    #[track_caller]
    pub fn outs(&mut self) -> Result<NodeId> {
        let here = self.here();
        self.input(&here, InputKind::Outs)
    }

    /// Whether there is a tensor of that whole name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.weights.find(&self.names.resolve(name)).is_some()
    }

    /// Whether there is a tensor `name.weight`.
    pub fn has(&self, name: &str) -> bool {
        self.has_tensor(&format!("{name}.weight"))
    }

    /// The tensor `name.weight`.
    #[track_caller]
    pub fn weight(&mut self, name: &str) -> Result<NodeId> {
        let here = self.here();
        self.tensor(&here, "weight", &format!("{name}.weight"))
    }

    /// The rows of `name.weight` that the step's tokens name.
    #[track_caller]
    pub fn embed(&mut self, name: &str) -> Result<NodeId> {
        let here = self.here();
        let tokens = self.input(&here, InputKind::Tokens)?;
        let table = self.tensor(&here, "embed", &format!("{name}.weight"))?;
        self.named(name, |b| b.push(&here, Embed, &[table, tokens]))
    }

    /// The rows of `name.weight` that the positions of the step's rows name.
    #[track_caller]
    pub fn embed_positions(&mut self, name: &str) -> Result<NodeId> {
        let here = self.here();
        let positions = self.input(&here, InputKind::Positions)?;
        let table = self.tensor(&here, "embed", &format!("{name}.weight"))?;
        self.named(name, |b| b.push(&here, Embed, &[table, positions]))
    }

    /// `x` times the transpose of `name.weight`, plus `name.bias` if there is one.
    #[track_caller]
    pub fn linear(&mut self, x: NodeId, name: &str) -> Result<NodeId> {
        let here = self.here();
        let full = format!("{name}.weight");
        // A vector is a matrix of one output.
        let file_name = self.names.resolve(&full);
        let is_vector = self.weights.find(&file_name).is_some_and(|(_, dims)| dims.len() == 1);
        let w = if is_vector { format!("row({file_name})") } else { full.clone() };
        let w = self.tensor(&here, "linear", &w)?;
        let y = self.named(&full, |b| b.push(&here, Linear, &[x, w]))?;
        let bias = format!("{name}.bias");
        if !self.has_tensor(&bias) {
            return Ok(y);
        }
        let b = self.tensor(&here, "linear", &bias)?;
        let kind = BinaryKind::Add;
        self.named(&bias, |builder| builder.push(&here, Binary { kind }, &[y, b]))
    }

    /// Rows of `n` heads: `[R, n * dim]` becomes `[R, n, dim]`.
    #[track_caller]
    pub fn heads(&mut self, x: NodeId, n: usize) -> Result<NodeId> {
        let here = self.here();
        let ty = self.graph.ty(x);
        let Some(dim) = ty.width().checked_div(n).filter(|dim| dim * n == ty.width()) else {
            return Err(fail(&here, "reshape", format!("{ty} does not fall into {n} heads")));
        };
        self.push(&here, Reshape { dims: Dims::from_slice(&[n, dim]) }, &[x])
    }

    /// Rows of one dimension: the inverse of [`Builder::heads`].
    #[track_caller]
    pub fn merge(&mut self, x: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.flat(&here, x)
    }

    /// The same elements of each row under other dimensions.
    #[track_caller]
    pub fn reshape(&mut self, x: NodeId, dims: &[usize]) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Reshape { dims: Dims::from_slice(dims) }, &[x])
    }

    /// Root-mean-square normalization of the last dimension (so of each head, if `x` has heads),
    /// times `name.weight`.
    #[track_caller]
    pub fn rms_norm(&mut self, x: NodeId, name: &str, eps: f32) -> Result<NodeId> {
        let here = self.here();
        let full = format!("{name}.weight");
        let w = self.vector(&here, "rms_norm", &full)?;
        self.named(&full, |b| b.push(&here, RmsNorm { eps }, &[x, w]))
    }

    /// Root-mean-square normalization of the last dimension, without a weight.
    #[track_caller]
    pub fn rms_norm_plain(&mut self, x: NodeId, eps: f32) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, RmsNorm { eps }, &[x])
    }

    /// Normalization of the last dimension to mean 0 and variance 1, times `name.weight`, plus
    /// `name.bias` if there is one; without a name, neither.
    #[track_caller]
    pub fn layer_norm(&mut self, x: NodeId, name: Option<&str>, eps: f32) -> Result<NodeId> {
        let here = self.here();
        let Some(name) = name else { return self.push(&here, LayerNorm { eps }, &[x]) };
        let full = format!("{name}.weight");
        let mut args = vec![x, self.vector(&here, "layer_norm", &full)?];
        let bias = format!("{name}.bias");
        if self.has_tensor(&bias) {
            args.push(self.vector(&here, "layer_norm", &bias)?);
        }
        self.named(&full, |b| b.push(&here, LayerNorm { eps }, &args))
    }

    /// Values side by side in the last dimension.
    #[track_caller]
    pub fn concat(&mut self, values: &[NodeId]) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Concat, values)
    }

    /// Shares of e^x over the last dimension.
    #[track_caller]
    pub fn softmax(&mut self, x: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Softmax, &[x])
    }

    /// `x / Σ x` over the last dimension.
    #[track_caller]
    pub fn normalize(&mut self, x: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Normalize, &[x])
    }

    /// Indices of the `k` greatest elements of each row.
    #[track_caller]
    pub fn top_k(&mut self, x: NodeId, k: usize) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, TopK { k }, &[x])
    }

    /// The elements of each row that were picked.
    #[track_caller]
    pub fn pick(&mut self, x: NodeId, picks: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Pick, &[x, picks])
    }

    /// `x` times the transposes of the matrices of `name.weight` that were picked, plus their rows
    /// of `name.bias` if there is one: `[R, k, outputs]`.
    #[track_caller]
    pub fn experts(&mut self, x: NodeId, picks: NodeId, name: &str) -> Result<NodeId> {
        let here = self.here();
        let full = format!("{name}.weight");
        let w = self.tensor(&here, "experts", &full)?;
        let y = self.named(&full, |b| b.push(&here, Experts, &[x, picks, w]))?;
        let bias = format!("{name}.bias");
        if !self.has_tensor(&bias) {
            return Ok(y);
        }
        let table = self.tensor(&here, "experts", &bias)?;
        self.named(&bias, |b| {
            let rows = b.push(&here, Embed, &[table, picks])?;
            b.push(&here, Binary { kind: BinaryKind::Add }, &[y, rows])
        })
    }

    /// `Σ w[j] x[j]` over the first dimension of each row.
    #[track_caller]
    pub fn mix(&mut self, x: NodeId, w: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Mix, &[x, w])
    }

    /// Arithmetic, element by element; `b` may be a weight.
    #[track_caller]
    pub fn binary(&mut self, kind: BinaryKind, a: NodeId, b: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Binary { kind }, &[a, b])
    }

    /// Rotary position embedding of `x[R, heads, dim]`.
    #[track_caller]
    pub fn rope(&mut self, x: NodeId, options: RopeOptions<'_>) -> Result<NodeId> {
        let here = self.here();
        let RopeOptions { base, dim, scale, layout, factors, divide, gain } = options;
        let dim = dim.unwrap_or_else(|| self.graph.ty(x).last());
        let op = Rope { dim, base, scale, layout, gain, factors: divide.to_vec() };
        let positions = self.input(&here, InputKind::Positions)?;
        let Some(name) = factors else {
            return self.push(&here, op, &[x, positions]);
        };
        let full = format!("{name}.weight");
        let factors = self.tensor(&here, "rope", &full)?;
        self.named(&full, |b| b.push(&here, op, &[x, positions, factors]))
    }

    /// Stores keys and values `[R, kv heads, dim]` in the layer's cache, attends to it with
    /// `q[R, heads, dim]`, and gives rows of one dimension.
    #[track_caller]
    pub fn attend(
        &mut self,
        q: NodeId,
        k: NodeId,
        v: NodeId,
        options: AttendOptions,
    ) -> Result<NodeId> {
        self.attend_with(q, k, v, options, AttendExtras::default())
    }

    /// [`Builder::attend`] with what few models add.
    #[track_caller]
    pub fn attend_with(
        &mut self,
        q: NodeId,
        k: NodeId,
        v: NodeId,
        options: AttendOptions,
        extras: AttendExtras<'_>,
    ) -> Result<NodeId> {
        let here = self.here();
        let AttendOptions { layer, scale, window, softcap } = options;
        let keys = self.store(&here, k, layer, CachePart::Key)?;
        let values = self.store(&here, v, layer, CachePart::Value)?;
        let positions = self.input(&here, InputKind::Positions)?;
        let slots = self.input(&here, InputKind::Slots)?;
        let op = Attend { scale, window, softcap, alibi: extras.alibi };
        let mut args = vec![q, keys, values, positions, slots];
        if let Some(name) = extras.sinks {
            args.push(self.tensor(&here, "attend", &format!("{name}.weight"))?);
        }
        let y = self.push(&here, op, &args)?;
        self.flat(&here, y)
    }

    /// `a + b`; `b` may be a weight that is added to each row.
    #[track_caller]
    pub fn add(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Binary { kind: BinaryKind::Add }, &[a, b])
    }

    /// `a * b`, element by element; `b` may be a weight.
    #[track_caller]
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Binary { kind: BinaryKind::Mul }, &[a, b])
    }

    /// A function of each element.
    #[track_caller]
    pub fn unary(&mut self, x: NodeId, kind: UnaryKind) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Unary { kind }, &[x])
    }

    /// `c * x`.
    #[track_caller]
    pub fn scale(&mut self, x: NodeId, c: f32) -> Result<NodeId> {
        self.unary(x, UnaryKind::Scale(c))
    }

    /// `c * tanh(x / c)`.
    #[track_caller]
    pub fn softcap(&mut self, x: NodeId, c: f32) -> Result<NodeId> {
        self.unary(x, UnaryKind::Softcap(c))
    }

    /// `x / (1 + e^-x)`.
    #[track_caller]
    pub fn silu(&mut self, x: NodeId) -> Result<NodeId> {
        self.unary(x, UnaryKind::Silu)
    }

    /// The tanh form of GELU.
    #[track_caller]
    pub fn gelu(&mut self, x: NodeId) -> Result<NodeId> {
        self.unary(x, UnaryKind::Gelu)
    }

    /// `max(x, 0)`.
    #[track_caller]
    pub fn relu(&mut self, x: NodeId) -> Result<NodeId> {
        self.unary(x, UnaryKind::Relu)
    }

    /// `1 / (1 + e^-x)`.
    #[track_caller]
    pub fn sigmoid(&mut self, x: NodeId) -> Result<NodeId> {
        self.unary(x, UnaryKind::Sigmoid)
    }

    /// `tanh x`.
    #[track_caller]
    pub fn tanh(&mut self, x: NodeId) -> Result<NodeId> {
        self.unary(x, UnaryKind::Tanh)
    }

    /// Elements `start .. start + len` of the last dimension.
    #[track_caller]
    pub fn slice(&mut self, x: NodeId, start: usize, len: usize) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Slice { start, len }, &[x])
    }

    /// The rows whose logits are wanted.
    #[track_caller]
    pub fn select(&mut self, x: NodeId) -> Result<NodeId> {
        let here = self.here();
        let outs = self.input(&here, InputKind::Outs)?;
        self.push(&here, Select, &[x, outs])
    }

    /// A token from each row of logits.
    #[track_caller]
    pub fn sample(&mut self, logits: NodeId) -> Result<NodeId> {
        let here = self.here();
        self.push(&here, Sample, &[logits])
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
        let name = &self.names.resolve(name);
        let Some((format, dims)) = self.weights.find(name) else {
            return Err(fail(here, op, format!("there is no tensor {}", shown(name))));
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

/// A tensor's name as it stands if it is plain, else escaped and cut.
fn shown(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-()*".contains(&b);
    if name.len() <= 64 && name.bytes().all(plain) { name.to_string() } else { quoted(name) }
}
