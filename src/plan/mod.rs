//! From a graph to a plan: what runs together, and where every byte lies.
//!
//! The passes are pure functions over data and run in this order:
//!
//! | pass | turns | into |
//! |---|---|---|
//! | [`lift`] | a graph, for steps with more rows than logits | the same with rows selected as early as can be |
//! | [`merge`] | that | what its outputs need of it, with a single linear for all matrices that read the same rows |
//! | [`fuse`] | that graph | [`Group`]s: what one launch computes, in run order |
//! | [`live`] | groups | the values that leave their group, and until when each is needed |
//! | [`assign`] | those | an offset for each: in place where that is safe, else the best-fitting gap |
//! | [`verify`] | the whole plan | a refusal, if a value would be read after it was overwritten |
//!
//! `verify` shares no code with the passes it judges and runs for every plan. [`Plan`]'s `Display`
//! is the report that `gllm plan` prints.
//!
//! **Invariant:** a plan needs the types of the weights, never their bytes: what a model will take
//! is known, to the byte, before anything is read or allocated.
//! **Invariant:** the same graph, limits and target give the same plan, on every machine.

mod assign;
mod backend;
mod draw;
mod fuse;
mod lift;
mod live;
mod merge;
mod report;
mod times;
mod verify;

pub use backend::{Backend, Progress, Session, StepInput, Target, Traffic};
pub use draw::Page;
pub(crate) use draw::{HEAD, STYLE, cut, esc, segments, starred, title};
pub(crate) use fuse::weight_ranges;
pub(crate) use live::live as live_values;
pub(crate) use merge::inputs;
pub use times::{Part, Rate, Timed, Times, median};

use crate::graph::{Graph, Lead, Node, NodeId, Op, TensorType};
use crate::{Error, Result};

/// How much one step may hold, and how much is kept between steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Tokens of a step, at most.
    pub rows: usize,
    /// Rows of a step whose logits are wanted, at most.
    pub outs: usize,
    /// Sequences side by side.
    pub slots: usize,
    /// Positions of a sequence.
    pub context: usize,
}

impl Limits {
    /// How many steps a sequence whose last row is at `position` can go on.
    ///
    /// # Errors
    /// [`Error::Context`] if none.
    pub fn left(&self, position: u32) -> Result<usize> {
        let (context, next) = (self.context, u64::from(position) + 1);
        match context.saturating_sub(position as usize + 1) {
            0 => {
                let (what, wants) = (format!("position {next}"), context.saturating_mul(2));
                Err(Error::Context { context, what, wants })
            }
            left => Ok(left),
        }
    }
}

/// What one launch computes.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Its parts.
    pub kind: GroupKind,
    /// Whether it runs over the rows of the step or over those whose logits are wanted.
    pub lead: Lead,
}

/// The parts of a group.
#[derive(Clone, PartialEq, Debug)]
pub enum GroupKind {
    /// A matrix product with what makes its input and what becomes of its output.
    Linear {
        /// Row by row, before: a norm, a residual sum.
        prologue: Vec<NodeId>,
        /// The product.
        linear: NodeId,
        /// Column range by column range, after: activation, rotation, residual sum, cache write.
        epilogue: Vec<NodeId>,
    },
    /// Attention.
    Attend(NodeId),
    /// Row-local ops that no product took along.
    Rows(Vec<NodeId>),
    /// Sampling.
    Sample(NodeId),
}

impl Group {
    /// All nodes of the group, in run order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let (a, b, c): (&[NodeId], &[NodeId], &[NodeId]) = match &self.kind {
            GroupKind::Linear { prologue, linear, epilogue } => {
                (prologue, std::slice::from_ref(linear), epilogue)
            }
            GroupKind::Attend(n) | GroupKind::Sample(n) => (&[], std::slice::from_ref(n), &[]),
            GroupKind::Rows(nodes) => (nodes, &[], &[]),
        };
        a.iter().chain(b).chain(c).copied()
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Read-only, filled at load.
    Weight,
    /// Kept between steps.
    KvCache,
    /// Overwritten within a step.
    Scratch,
    /// What a step leaves behind.
    Logits,
    /// Tokens, positions, slots: the few words that change from step to step.
    Step,
}

/// A range of memory and the value in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    /// The node whose value this is.
    pub value: NodeId,
    /// What it is for.
    pub role: Role,
    /// First byte, within the memory of its role.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// First and last group that need it.
    pub live: (usize, usize),
    /// The value whose place it took over, if that was one.
    pub in_place_of: Option<NodeId>,
}

/// Bytes by purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bytes {
    /// Weights, as the backend keeps them.
    pub weights: u64,
    /// Keys and values.
    pub kv: u64,
    /// Values between groups.
    pub scratch: u64,
    /// What a group needs while it runs.
    pub workspace: u64,
    /// Derived tables.
    pub tables: u64,
    /// Logits.
    pub logits: u64,
    /// Step state.
    pub step: u64,
}

impl Bytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        let parts = [self.kv, self.scratch, self.workspace, self.tables, self.logits, self.step];
        parts.iter().fold(self.weights, |a, &b| a.saturating_add(b))
    }
}

/// A graph with its launches and its memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    graph: Graph,
    limits: Limits,
    target: &'static str,
    groups: Vec<Group>,
    buffers: Vec<Buffer>,
    /// For each node, the index of its buffer.
    places: Vec<Option<usize>>,
    bytes: Bytes,
}

/// How to plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whether values may share memory. Without it each has its own, for a comparison bit by bit.
    pub reuse: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { reuse: true }
    }
}

impl Plan {
    /// Plans `graph` for `target` within `limits`.
    ///
    /// # Errors
    /// When the target refuses a group, a size overflows, or the verifier finds a fault.
    pub fn new(graph: &Graph, target: &dyn Target, limits: Limits) -> Result<Plan> {
        Plan::with_options(graph, target, limits, Options::default())
    }

    /// [`Plan::new`] with a say in how.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with_options(
        graph: &Graph,
        target: &dyn Target,
        limits: Limits,
        options: Options,
    ) -> Result<Plan> {
        let _span = tracing::info_span!("plan", rows = limits.rows).entered();
        check_limits(&limits)?;
        let graph = if limits.outs < limits.rows {
            merge::merge(&lift::lift(graph)?)?
        } else {
            merge::merge(graph)?
        };
        let groups = fuse::fuse(&graph);
        for (i, group) in groups.iter().enumerate() {
            if let Some(why) = target.refuses(&graph, group) {
                return Err(Error::Plan(format!("{} refuses group {i}: {why}", target.name())));
            }
        }
        let values = live::live(&graph, &groups);
        let mut buffers = assign::assign(&graph, &groups, &values, &limits, options.reuse)?;
        sources(&graph, target, &limits, groups.len(), &mut buffers)?;
        let mut places = vec![None; graph.nodes().len()];
        for (i, buffer) in buffers.iter().enumerate() {
            places[buffer.value.index()] = Some(i);
        }
        // A view or a store has no memory of its own: it is where its origin is.
        for (id, _) in graph.iter() {
            places[id.index()] = places[origin(&graph, id).index()];
        }
        let too_large = || Error::Plan("its sizes overflow".to_string());
        let mut bytes = Bytes::default();
        for b in &buffers {
            let end = b.offset.saturating_add(b.bytes);
            match b.role {
                Role::Weight => bytes.weights = bytes.weights.max(end),
                Role::KvCache => bytes.kv = bytes.kv.max(end),
                Role::Scratch => bytes.scratch = bytes.scratch.max(end),
                Role::Logits => bytes.logits = bytes.logits.max(end),
                Role::Step => bytes.step = bytes.step.max(end),
            }
        }
        bytes.workspace = target.workspace_bytes(&graph, &groups, &limits).ok_or_else(too_large)?;
        bytes.tables = target.table_bytes(&graph, &limits).ok_or_else(too_large)?;
        let plan = Plan { graph, limits, target: target.name(), groups, buffers, places, bytes };
        verify::verify(&plan)?;
        Ok(plan)
    }

    /// The graph that is run: the caller's, with linears merged.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What it was planned for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The launches, in order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// All memory, by role.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Where the value of `id` lies; `None` when it never leaves its group.
    pub fn place(&self, id: NodeId) -> Option<&Buffer> {
        self.places.get(id.index()).copied().flatten().and_then(|i| self.buffers.get(i))
    }

    /// Bytes by purpose.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of weights that a step over one row reads: all but the rows of embedding tables that
    /// its token does not name.
    pub fn weight_bytes_per_token(&self) -> u64 {
        let mut read = 0u64;
        for b in self.buffers.iter().filter(|b| b.role == Role::Weight) {
            let users = self.graph.nodes().iter().filter(|n| n.args.contains(&b.value));
            let whole = users.clone().any(|n| !matches!(n.op, Op::Embed(_)));
            let rows = self.graph.ty(b.value).dims.first().copied().unwrap_or(1).max(1) as u64;
            // Of experts, those that one row picks.
            let experts = |n: &Node| matches!(n.op, Op::Experts(_)).then(|| n.ty.dims[0] as u64);
            let picked = users.clone().try_fold(0, |most, n| experts(n).map(|k| most.max(k)));
            let bytes = match picked {
                Some(k) if k > 0 => b.bytes / rows * k.min(rows),
                _ if whole => b.bytes,
                _ => b.bytes / rows,
            };
            read = read.saturating_add(bytes);
        }
        read
    }

    /// Bytes of caches that a step over one row at `position` reads: keys and values of what it
    /// sees, which a window bounds.
    pub fn cache_bytes_per_token(&self, position: usize) -> u64 {
        let positions = (self.limits.slots as u64).saturating_mul(self.limits.context as u64);
        let mut read = 0u64;
        for node in self.graph.nodes() {
            let Op::Attend(attend) = &node.op else { continue };
            let seen = position.saturating_add(1).min(attend.window.unwrap_or(usize::MAX)) as u64;
            for cache in node.args.iter().skip(1).take(2).filter_map(|&cache| self.place(cache)) {
                read = read.saturating_add((cache.bytes / positions.max(1)).saturating_mul(seen));
            }
        }
        read
    }
}

/// A multiple of this many bytes is where every buffer begins: a cache line, a widest vector.
pub const ALIGN: u64 = 64;

/// Bytes of an activation buffer for all rows that `ty` can have.
pub(crate) fn value_bytes(ty: &TensorType, limits: &Limits) -> Result<u64> {
    let rows = match ty.lead {
        Lead::Outs => limits.outs,
        _ => limits.rows,
    };
    let bytes = (ty.width() as u64).checked_mul(rows as u64).and_then(|n| n.checked_mul(4));
    let aligned = bytes.and_then(|n| n.checked_next_multiple_of(ALIGN));
    aligned.ok_or_else(|| Error::Plan(format!("{ty} with {rows} rows is too large")))
}

/// Follows views and cache writes back to the node that owns the memory.
pub fn origin(graph: &Graph, mut id: NodeId) -> NodeId {
    loop {
        let node = graph.node(id);
        id = match (&node.op, node.args.first()) {
            (Op::Reshape(_) | Op::Store(_), Some(&arg)) => arg,
            _ => return id,
        };
    }
}

/// Sources are there before the first group and have no value to compute.
pub(crate) fn is_source(op: &Op) -> bool {
    matches!(op, Op::Input(_) | Op::Weight(_) | Op::Cache(_))
}

fn check_limits(limits: &Limits) -> Result<()> {
    let Limits { rows, outs, slots, context } = *limits;
    let small = |n: usize| n > 0 && n <= 1 << 24;
    // Positions are counted in u32.
    let counted = context > 0 && u32::try_from(context).is_ok();
    if small(rows) && outs <= rows && outs > 0 && small(slots) && counted {
        return Ok(());
    }
    Err(Error::Plan(format!(
        "limits are out of range: {rows} rows, {outs} of them with logits, {slots} slots of \
         {context} positions"
    )))
}

/// Places weights, caches and step inputs one after the other, each in the memory of its role.
fn sources(
    graph: &Graph,
    target: &dyn Target,
    limits: &Limits,
    groups: usize,
    buffers: &mut Vec<Buffer>,
) -> Result<()> {
    let mut ends = [0u64; 3];
    for (value, node) in graph.iter() {
        let (role, end, bytes) = match &node.op {
            Op::Weight(_) => (Role::Weight, &mut ends[0], target.weight_bytes(&node.ty)),
            Op::Cache(cache) => {
                (Role::KvCache, &mut ends[1], target.cache_bytes(cache, &node.ty, limits))
            }
            Op::Input(_) => {
                let bytes = value_bytes(&node.ty, limits)?;
                (Role::Step, &mut ends[2], Some(bytes))
            }
            _ => continue,
        };
        let too_large =
            || Error::Plan(format!("{} cannot keep {} ({value})", target.name(), node.ty));
        let bytes = bytes.and_then(|b| b.checked_next_multiple_of(ALIGN)).ok_or_else(too_large)?;
        let offset = *end;
        *end = offset.checked_add(bytes).ok_or_else(too_large)?;
        let live = (0, groups);
        buffers.push(Buffer { value, role, offset, bytes, live, in_place_of: None });
    }
    Ok(())
}
