//! Backend number 0: runs a graph node by node in plain f32, and is the oracle of every test.
//!
//! It is slow on purpose where speed would cost clarity: every weight is decoded to f32 when the
//! reference is made, every value of a step is kept until the next so that a test can look at it,
//! and caches hold f32, rounded as a backend's are only where that is asked for. A row's result depends on no other row and on no number of threads.

use super::op::{Op, Sampler};
use super::{Graph, NodeId, TensorType, Weights};
use crate::error::{Error, Result, quoted};

/// The rows of one step.
#[derive(Clone, Copy, Default, Debug)]
pub struct StepInput<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence, from 0.
    pub positions: &'a [u32],
    /// Sequence of each row, from 0.
    pub slots: &'a [u32],
    /// Rows whose logits are wanted, ascending.
    pub outs: &'a [u32],
    /// How each of `outs` picks its token; where there is none, the likeliest.
    pub sampling: &'a [Sampling<'a>],
}

/// How one row picks its token.
#[derive(Clone, Copy, Debug)]
pub struct Sampling<'a> {
    /// The parameters.
    pub sampler: &'a Sampler,
    /// Tokens of the sequence so far, the latest last.
    pub recent: &'a [u32],
    /// The draw's number.
    pub step: u64,
}

/// What a node has after a step.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Value {
    /// Nothing: a weight, a cache, or no step yet.
    #[default]
    None,
    /// Activations, row after row.
    F32(Vec<f32>),
    /// Tokens, positions or slots.
    U32(Vec<u32>),
}

/// A graph with its weights in f32 and its caches.
#[derive(Debug)]
pub struct Reference {
    graph: Graph,
    context: usize,
    slots: usize,
    /// Whether what goes into caches of f16 is rounded to that.
    rounds: bool,
    /// What stays between steps, by node: decoded weights and caches.
    kept: Vec<Vec<f32>>,
    values: Vec<Value>,
}

impl Reference {
    /// Reads all weights and makes empty caches of `context` positions for each of `slots`.
    ///
    /// # Errors
    /// When a weight is missing or is not what the graph was built on, or memory does not suffice.
    pub fn new(
        graph: &Graph,
        weights: &dyn Weights,
        context: usize,
        slots: usize,
    ) -> Result<Reference> {
        let mut kept = Vec::new();
        for (_, node) in graph.iter() {
            kept.push(match &node.op {
                Op::Weight(weight) => read(weights, &weight.name, &node.ty)?,
                Op::Cache(_) => {
                    let rows = context.checked_mul(slots);
                    zeros(rows.and_then(|rows| rows.checked_mul(node.ty.width())))?
                }
                _ => Vec::new(),
            });
        }
        let values = vec![Value::None; kept.len()];
        Ok(Reference { graph: graph.clone(), context, slots, rounds: false, kept, values })
    }

    /// The same with caches of f16 that hold what a backend's do: what is left between the two is
    /// arithmetic alone.
    pub fn rounding_caches(self) -> Reference {
        Reference { rounds: true, ..self }
    }

    /// Computes every node for these rows.
    ///
    /// # Errors
    /// When the rows do not fit the context or each other, a token is outside the vocabulary, or a
    /// logit is not finite.
    pub fn step(&mut self, input: &StepInput<'_>) -> Result<()> {
        self.check(input)?;
        for value in &mut self.values {
            *value = Value::None;
        }
        let Reference { graph, context, rounds, kept, values, .. } = self;
        let mut env = Env { step: *input, context: *context, rounds: *rounds, graph, kept, values };
        for (id, node) in graph.iter() {
            node.op.eval(id, &mut env)?;
        }
        Ok(())
    }

    /// The f32 value of a node after a step; a decoded weight; the whole of a cache,
    /// `[slots, context, heads, dim]`.
    pub fn value(&self, id: NodeId) -> Option<&[f32]> {
        match self.values.get(id.index())? {
            Value::F32(values) => Some(values),
            Value::U32(_) => None,
            Value::None => self.kept.get(id.index()).filter(|k| !k.is_empty()).map(Vec::as_slice),
        }
    }

    /// The u32 value of a node after a step, such as the sampled tokens.
    pub fn ids(&self, id: NodeId) -> Option<&[u32]> {
        match self.values.get(id.index())? {
            Value::U32(ids) => Some(ids),
            _ => None,
        }
    }

    fn check(&self, input: &StepInput<'_>) -> Result<()> {
        let rows = input.tokens.len();
        let invalid = |what: String| Err(Error::Invalid(format!("step: {what}")));
        if input.positions.len() != rows || input.slots.len() != rows {
            return invalid(format!(
                "{rows} tokens, {} positions and {} slots",
                input.positions.len(),
                input.slots.len()
            ));
        }
        if let Some(p) = input.positions.iter().find(|&&p| p as usize >= self.context) {
            return invalid(format!("position {p} is outside the context of {}", self.context));
        }
        if let Some(s) = input.slots.iter().find(|&&s| s as usize >= self.slots) {
            return invalid(format!("slot {s} of {}", self.slots));
        }
        if let Some(o) = input.outs.iter().find(|&&o| o as usize >= rows) {
            return invalid(format!("logits of row {o} of {rows}"));
        }
        Ok(())
    }
}

/// What ops compute with.
pub struct Env<'a> {
    /// The rows of the step.
    pub step: StepInput<'a>,
    /// Positions of a slot in each cache.
    pub context: usize,
    /// Whether caches of f16 are rounded to that.
    pub rounds: bool,
    graph: &'a Graph,
    kept: &'a mut [Vec<f32>],
    values: &'a mut [Value],
}

impl Env<'_> {
    /// Number of arguments of `id`.
    pub fn arg_count(&self, id: NodeId) -> usize {
        self.graph.node(id).args.len()
    }

    /// Type of `id`.
    pub fn ty(&self, id: NodeId) -> &TensorType {
        self.graph.ty(id)
    }

    /// Type of argument `i` of `id`.
    pub fn arg_ty(&self, id: NodeId, i: usize) -> &TensorType {
        self.graph.ty(self.arg(id, i))
    }

    /// Argument `i` of `id` as f32; a weight is decoded.
    pub fn arg_f32(&self, id: NodeId, i: usize) -> &[f32] {
        let arg = self.arg(id, i);
        match &self.values[arg.index()] {
            Value::F32(values) => values,
            _ => &self.kept[arg.index()],
        }
    }

    /// Argument `i` of `id` as u32.
    pub fn arg_u32(&self, id: NodeId, i: usize) -> &[u32] {
        match &self.values[self.arg(id, i).index()] {
            Value::U32(values) => values,
            _ => &[],
        }
    }

    /// The cache that argument `i` of `id` is, after the stores before `id`.
    pub fn arg_cache(&self, id: NodeId, i: usize) -> &[f32] {
        &self.kept[self.root(self.arg(id, i)).index()]
    }

    /// The cache that the store `id` writes.
    pub fn cache_of(&self, id: NodeId) -> NodeId {
        self.root(id)
    }

    /// Takes a cache out, to write it while arguments are read.
    pub fn take_cache(&mut self, cache: NodeId) -> Vec<f32> {
        std::mem::take(&mut self.kept[cache.index()])
    }

    /// Puts a cache back.
    pub fn put_cache(&mut self, cache: NodeId, values: Vec<f32>) {
        self.kept[cache.index()] = values;
    }

    /// Sets the value of `id`.
    pub fn set(&mut self, id: NodeId, value: Value) {
        self.values[id.index()] = value;
    }

    fn arg(&self, id: NodeId, i: usize) -> NodeId {
        self.graph.node(id).args[i]
    }

    /// A store's value is the cache it writes, and stores may follow each other.
    fn root(&self, mut id: NodeId) -> NodeId {
        while let Op::Store(_) = self.graph.node(id).op {
            id = self.arg(id, 0);
        }
        id
    }
}

/// A weight in f32, if it is what the graph says.
fn read(weights: &dyn Weights, name: &str, ty: &TensorType) -> Result<Vec<f32>> {
    let found = weights.find(name).zip(weights.bytes(name));
    let Some(((format, dims), bytes)) = found else {
        return Err(Error::Invalid(format!("there is no tensor {}", quoted(name))));
    };
    // A graph may see a tensor as one vector.
    let flat = ty.dims.as_slice() == [dims.iter().product::<usize>()];
    if super::DType::Weight(format) != ty.dtype || (dims != ty.dims && !flat) {
        return Err(Error::Invalid(format!(
            "tensor {} is {} of {dims:?}, the graph was built on {ty}",
            quoted(name),
            format.name()
        )));
    }
    let mut values = zeros(Some(ty.width()))?;
    format.decode(&bytes, &mut values)?;
    Ok(values)
}

/// `count` zeros, or an error when there is no such number or no such memory.
fn zeros(count: Option<usize>) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    match count.map(|n| (n, values.try_reserve_exact(n))) {
        Some((n, Ok(()))) => {
            values.resize(n, 0.0);
            Ok(values)
        }
        _ => Err(Error::Memory {
            what: "the reference backend".to_string(),
            needs: count.map_or(u64::MAX, |n| (n as u64).saturating_mul(4)),
            has: 0,
            hint: "the memory could not be had; try a smaller context".to_string(),
        }),
    }
}
