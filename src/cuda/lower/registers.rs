//! Registers of a list: stretches of a block's shared memory, each free again after its value's
//! last use; and how a list may be cut before it needs any.

use super::rows::table_of;
use crate::cuda::abi::FOUR;
use crate::graph::{Graph, Lead, NodeId, Op, TensorType};
use crate::plan::origin;
use std::collections::BTreeMap;

/// Whether a node of a list makes a value of its rows: floats, or the indices of picks.
pub(super) fn makes(ty: &TensorType) -> bool {
    matches!(ty.lead, Lead::Rows | Lead::Outs)
}

/// Whether the node does nothing but name some columns of a value in memory, which are read where
/// they are. `fold` rows of the list are a row of the value.
pub(super) fn names_columns(graph: &Graph, nodes: &[NodeId], id: NodeId, fold: usize) -> bool {
    let node = graph.node(id);
    let (Op::Slice(_), Some(&arg)) = (&node.op, node.args.first()) else { return false };
    let ty = graph.ty(arg);
    let from = origin(graph, arg);
    ty.last().checked_mul(fold) == Some(ty.width())
        && (!nodes.contains(&from) || names_columns(graph, nodes, from, fold))
}

/// How many rows a row of the step falls into where every op of a list stays within its part: the
/// first dimension of all of them, such as the picks of experts; else 1. Each part is then a block's.
pub(super) fn fold(graph: &Graph, nodes: &[NodeId]) -> usize {
    let first = |id: NodeId| graph.ty(id).dims.first().copied().unwrap_or(1);
    let k = nodes.first().map_or(1, |&id| first(id));
    let within = |&id: &NodeId| {
        let node = graph.node(id);
        let weight = |i: usize| node.args.get(i).is_some_and(|&w| graph.ty(w).lead == Lead::Fixed);
        let stays = match &node.op {
            Op::Unary(_) | Op::Slice(_) | Op::Concat(_) | Op::Softmax(_) | Op::Normalize(_) => true,
            Op::Binary(_) => !weight(1),
            Op::RmsNorm(_) | Op::LayerNorm(_) => {
                node.args.iter().skip(1).all(|&w| graph.ty(w).width() == node.ty.last())
            }
            Op::Embed(_) => node.args.get(1).is_some_and(|&ids| graph.ty(ids).dims.len() == 1),
            _ => false,
        };
        node.ty.dims.len() > 1 && first(id) == k && stays
    };
    if nodes.iter().all(within) { k } else { 1 }
}

/// Consecutive fours of elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stretch {
    at: usize,
    len: usize,
}

/// A list's registers. A register's number is where it begins, in fours of elements.
pub(super) struct Registers<'a> {
    graph: &'a Graph,
    nodes: &'a [NodeId],
    /// Read after the list.
    keep: &'a [NodeId],
    /// Columns of all values, or 0 for whole rows, of which a row of the step has `fold`.
    len: usize,
    fold: usize,
    of: BTreeMap<NodeId, Stretch>,
    /// In order, none beside another.
    free: Vec<Stretch>,
    /// Fours in all.
    pub end: usize,
}

impl<'a> Registers<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        nodes: &'a [NodeId],
        keep: &'a [NodeId],
        len: usize,
        fold: usize,
    ) -> Self {
        let (of, free) = (BTreeMap::new(), Vec::new());
        Registers { graph, nodes, keep, len, fold: fold.max(1), of, free, end: 0 }
    }

    fn take(&mut self, elements: usize) -> Stretch {
        let len = elements.div_ceil(FOUR).max(1);
        let fits = self.free.iter().enumerate().filter(|(_, s)| s.len >= len);
        if let Some((i, _)) = fits.min_by_key(|(_, s)| s.len) {
            let s = &mut self.free[i];
            let taken = Stretch { at: s.at, len };
            (s.at, s.len) = (s.at + len, s.len - len);
            if s.len == 0 {
                self.free.remove(i);
            }
            return taken;
        }
        // What is free at the end is the beginning of it.
        let at = match self.free.last() {
            Some(&s) if s.at + s.len == self.end => {
                self.free.pop();
                s.at
            }
            _ => self.end,
        };
        self.end = at.saturating_add(len);
        Stretch { at, len }
    }

    fn give(&mut self, s: Stretch) {
        let i = self.free.partition_point(|f| f.at < s.at);
        self.free.insert(i, s);
        let mut merged: Vec<Stretch> = Vec::with_capacity(self.free.len());
        for &s in &self.free {
            match merged.last_mut() {
                Some(last) if last.at + last.len == s.at => last.len += s.len,
                _ => merged.push(s),
            }
        }
        self.free = merged;
    }

    /// Registers of node `i` of the list: of its value, and of a table that it reads. What dies here
    /// gives its place to the value if the operation reads an element before it writes it and looks
    /// at no other.
    pub(super) fn make(&mut self, i: usize) -> (usize, usize) {
        let id = self.nodes[i];
        let node = self.graph.node(id);
        let later = |value: NodeId| {
            self.nodes[i + 1..]
                .iter()
                .any(|&n| self.graph.node(n).args.iter().any(|&a| origin(self.graph, a) == value))
        };
        let args = node.args.iter().map(|&a| origin(self.graph, a));
        let dying: Vec<NodeId> =
            args.filter(|a| !later(*a) && !self.keep.contains(a) && *a != id).collect();
        let mut dying: Vec<Stretch> = dying.iter().filter_map(|a| self.of.remove(a)).collect();
        let in_memory = self.len == 0 && names_columns(self.graph, self.nodes, id, self.fold);
        let mut made = (0, 0);
        if makes(&node.ty) && !in_memory {
            let elements = if self.len == 0 { node.ty.width() / self.fold } else { self.len };
            let in_place = matches!(
                node.op,
                Op::Unary(_)
                    | Op::Binary(_)
                    | Op::RmsNorm(_)
                    | Op::LayerNorm(_)
                    | Op::Softmax(_)
                    | Op::Normalize(_)
            );
            let as_long = |s: &Stretch| in_place && s.len == elements.div_ceil(FOUR).max(1);
            let to = match dying.iter().position(as_long) {
                Some(i) => dying.swap_remove(i),
                None => self.take(elements),
            };
            made.0 = to.at;
            if table_of(self.graph, id).is_some() {
                let table = self.take(elements);
                made.1 = table.at;
                dying.push(table);
            }
            self.of.insert(id, to);
        }
        dying.into_iter().for_each(|s| self.give(s));
        made
    }

    /// Bytes of the registers of a list.
    pub(super) fn bytes(
        graph: &Graph,
        nodes: &[NodeId],
        keep: &[NodeId],
        len: usize,
        fold: usize,
    ) -> usize {
        let mut registers = Registers::new(graph, nodes, keep, len, fold);
        for i in 0..nodes.len() {
            registers.make(i);
        }
        registers.end.saturating_mul(4 * FOUR)
    }
}
