//! The step as a graph: what is computed, not how.
//!
//! A [`Graph`] is an append-only list of [`Node`]s; the order of the list is an order in which they
//! can run. It describes **one step over rows**: every row carries a token, a position and a slot
//! (which sequence it belongs to). Decode of one sequence has one row, a batch has a row a slot,
//! prefill has many rows of one slot: one graph serves them all, and a [`TensorType`] says only
//! *that* it has a row a token ([`Lead::Rows`]), not how many.
//!
//! [`Builder`] is the only way to make a node: it checks shapes as the node is made and remembers
//! the line that made it. Each op has one file under `op/` with its shape rule and its meaning in
//! plain f32; those meanings together are [`reference::Reference`], backend number 0 and the
//! oracle of every test.
//!
//! **Invariant:** a node's arguments precede it. Cycles cannot be written down.
//! **Invariant:** nothing here knows of plans, backends, or how many rows a step will have.

pub mod arch;
mod builder;
mod dot;
mod encoded;
mod names;
mod near;
pub mod op;
pub mod reference;
mod sketch;
pub mod star;
mod text;
mod types;
mod weights;

pub use builder::{AttendExtras, AttendOptions, Builder, RopeOptions};
pub use encoded::Encoded;
pub use names::Names;
pub use op::{BinaryKind, Op, RopeLayout, UnaryKind};
pub use sketch::Sketch;
pub use types::{DType, Dims, Lead, TensorType};
pub use weights::{MemoryWeights, Weights};

use smallvec::SmallVec;
use std::fmt;
use std::sync::Arc;

/// The index of a node in its graph.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// The source line that made a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// File name, as short as it is clear.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Arguments of a node, in order.
pub type Args = SmallVec<[NodeId; 4]>;

/// One value of a step.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// What computes it.
    pub op: Op,
    /// From which values.
    pub args: Args,
    /// What it is.
    pub ty: TensorType,
    /// Who asked for it.
    pub origin: Origin,
}

/// The computation of one step.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    outputs: Vec<NodeId>,
}

impl Graph {
    /// All nodes; arguments precede their users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node `id`.
    ///
    /// # Panics
    /// When `id` comes from another, larger graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The type of the node `id`.
    pub fn ty(&self, id: NodeId) -> &TensorType {
        &self.node(id).ty
    }

    /// Nodes with their ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    /// The values that must survive the step, such as the logits and the sampled tokens.
    pub fn outputs(&self) -> &[NodeId] {
        &self.outputs
    }

    /// For every node, the nodes that read it, in list order.
    pub fn users(&self) -> Vec<SmallVec<[NodeId; 4]>> {
        let mut users = vec![SmallVec::new(); self.nodes.len()];
        for (id, node) in self.iter() {
            for arg in &node.args {
                let list: &mut SmallVec<[NodeId; 4]> = &mut users[arg.index()];
                if list.last() != Some(&id) {
                    list.push(id);
                }
            }
        }
        users
    }

    /// Appends a node after checking it; the one door through which nodes enter a graph.
    pub(crate) fn push(
        &mut self,
        op: Op,
        args: Args,
        declared: Option<TensorType>,
        origin: Origin,
    ) -> crate::Result<NodeId> {
        let fail =
            |what: String| crate::Error::Graph { origin: origin.to_string(), op: op.name(), what };
        if self.nodes.len() >= MAX_NODES {
            return Err(fail(format!("more than {MAX_NODES} nodes")));
        }
        if let Some(bad) = args.iter().find(|a| a.index() >= self.nodes.len()) {
            return Err(fail(format!("argument {bad} does not exist yet")));
        }
        let ty = {
            let types: SmallVec<[&TensorType; 4]> = args.iter().map(|&a| self.ty(a)).collect();
            op.infer(&types, declared.as_ref()).and_then(|ty| ty.check().map(|()| ty))
        };
        let ty = ty.map_err(fail)?;
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { op, args, ty, origin });
        Ok(id)
    }

    /// The same computation with caches kept as `dtype` says of each: [`DType::F16`], what the
    /// builder makes, or [`DType::Q8_0`].
    ///
    /// # Errors
    /// When it says something else, or keys and values of a layer differ.
    pub fn with_caches(&self, dtype: impl Fn(&op::Cache) -> DType) -> crate::Result<Graph> {
        let mut graph = Graph { outputs: self.outputs.clone(), ..Graph::default() };
        for node in &self.nodes {
            let mut ty = node.ty.clone();
            if let Op::Cache(cache) = &node.op {
                ty.dtype = dtype(cache);
            }
            graph.push(node.op.clone(), node.args.clone(), Some(ty), node.origin.clone())?;
        }
        Ok(graph)
    }

    /// The same computation with other outputs.
    ///
    /// # Errors
    /// When one of them is not a node of this graph.
    pub fn with_outputs(&self, outputs: &[NodeId]) -> crate::Result<Graph> {
        if let Some(bad) = outputs.iter().find(|o| o.index() >= self.nodes.len()) {
            return Err(crate::Error::Invalid(format!("the graph has no node {bad}")));
        }
        let mut graph = Graph { nodes: self.nodes.clone(), outputs: Vec::new() };
        outputs.iter().for_each(|&o| graph.mark_output(o));
        Ok(graph)
    }

    pub(crate) fn mark_output(&mut self, id: NodeId) {
        if !self.outputs.contains(&id) {
            self.outputs.push(id);
        }
    }
}

/// A graph larger than this is a mistake: a model of 1,000 layers has about 30,000 nodes.
pub const MAX_NODES: usize = 1 << 20;
