//! The steps of a computation, a method each.

use super::{AttendExtras, AttendOptions, Builder, RopeOptions, fail};
use crate::error::Result;
use crate::graph::op::{
    Attend, Binary, CachePart, Concat, Embed, Experts, InputKind, LayerNorm, Linear, Mix,
    Normalize, Pick, Reshape, RmsNorm, Rope, Sample, Select, Slice, Softmax, TopK, Unary,
};
use crate::graph::{BinaryKind, Dims, NodeId, UnaryKind};

impl Builder<'_> {
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
}
