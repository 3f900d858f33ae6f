//! What a launch moves: bytes that must come from memory or go there, as the plan counts them.

use crate::graph::{NodeId, Op};
use crate::plan::{Plan, Role, is_source, origin};
use std::iter::Sum;
use std::ops::Add;

/// Bytes by what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Weights that are read: of tables a row, of experts those that are picked.
    pub weights: u64,
    /// Keys and values: what attention sees, and the row that is written.
    pub cache: u64,
    /// Values that come from other groups and go to them.
    pub values: u64,
}

impl Moved {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.values)
    }
}

impl Add for Moved {
    type Output = Moved;

    fn add(self, o: Moved) -> Moved {
        Moved {
            weights: self.weights.saturating_add(o.weights),
            cache: self.cache.saturating_add(o.cache),
            values: self.values.saturating_add(o.values),
        }
    }
}

impl Sum for Moved {
    fn sum<I: Iterator<Item = Moved>>(all: I) -> Moved {
        all.fold(Moved::default(), Moved::add)
    }
}

/// Bytes of the weight `w` that a step over one row reads when `users` use it.
pub(super) fn weight(plan: &Plan, users: &[NodeId], w: NodeId) -> u64 {
    let (graph, Some(buffer)) = (plan.graph(), plan.place(w)) else { return 0 };
    let rows = graph.ty(w).dims.first().copied().unwrap_or(1).max(1) as u64;
    let one = buffer.bytes / rows;
    let users = users.iter().map(|&u| graph.node(u)).filter(|n| n.args.contains(&w));
    let read = users.map(|user| match &user.op {
        // A table is looked into; whoever else reads one reads all of it.
        Op::Embed(_) if user.args.first() == Some(&w) => one,
        Op::Experts(_) => one * (user.ty.dims.first().copied().unwrap_or(1) as u64).min(rows),
        _ => buffer.bytes,
    });
    read.max().unwrap_or(0)
}

/// Bytes of caches that a node reads or writes at `position`.
pub(super) fn cache(plan: &Plan, id: NodeId, position: usize) -> u64 {
    let (graph, limits) = (plan.graph(), plan.limits());
    let positions = (limits.slots as u64).saturating_mul(limits.context as u64).max(1);
    let row = |id: NodeId| match plan.place(origin(graph, id)) {
        Some(b) if b.role == Role::KvCache => b.bytes / positions,
        _ => 0,
    };
    let node = graph.node(id);
    match &node.op {
        Op::Attend(op) => {
            let seen = position.saturating_add(1).min(op.window.unwrap_or(usize::MAX)) as u64;
            node.args.iter().skip(1).take(2).fold(0, |n, &c| row(c).saturating_mul(seen) + n)
        }
        Op::Store(_) => row(id),
        _ => 0,
    }
}

/// Bytes of a row of the values that a group takes from others and leaves to them.
pub(super) fn values(plan: &Plan, nodes: &[NodeId]) -> u64 {
    let graph = plan.graph();
    let bytes = |id: NodeId| match plan.place(id) {
        Some(b) if matches!(b.role, Role::Scratch | Role::Logits) => {
            (graph.ty(b.value).width() as u64).saturating_mul(4)
        }
        _ => 0,
    };
    let mut ids: Vec<NodeId> = Vec::new();
    for &node in nodes {
        for &arg in &graph.node(node).args {
            let arg = origin(graph, arg);
            if !nodes.contains(&arg) && !is_source(&graph.node(arg).op) {
                ids.push(arg);
            }
        }
        if plan.buffers().iter().any(|b| b.value == node) {
            ids.push(node);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().fold(0, |sum, id| sum.saturating_add(bytes(id)))
}
