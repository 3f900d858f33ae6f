//! What a plan takes of memory: weights, caches, and the workspace that its groups share.

use super::linear::{grain_of, lcm, linear_precision};
use crate::cpu::attend::{Attention, KvLayout};
use crate::cpu::experts::experts_work;
use crate::cpu::program::{TensorKind, Work, span, strip_len};
use crate::cpu::quantize::activation_bytes;
use crate::cpu::repack::{Layout, TILE};
use crate::graph::{DType, Graph, Lead, NodeId, Op, TensorType};
use crate::plan::{ALIGN, Group, GroupKind, Limits};

/// How a weight of this type is kept.
pub(in crate::cpu) fn tensor_kind(ty: &TensorType) -> Option<TensorKind> {
    let DType::Weight(format) = ty.dtype else { return None };
    match *ty.dims.as_slice() {
        [rows, cols] => Layout::of(format, rows, cols).map(TensorKind::Matrix),
        [count, rows, cols] => {
            let layout = Layout::of(format, rows, cols)?;
            layout.bytes().checked_mul(count)?;
            Some(TensorKind::Experts(layout, count))
        }
        _ => Some(TensorKind::Vector(ty.width())),
    }
}

impl TensorKind {
    pub(in crate::cpu) fn bytes(&self) -> usize {
        match self {
            TensorKind::Matrix(layout) => layout.bytes(),
            TensorKind::Experts(layout, count) => layout.bytes() * count,
            TensorKind::Vector(len) => len * 4,
        }
    }
}

/// The workspace of all groups: they take turns in it.
pub(in crate::cpu) fn work(
    graph: &Graph,
    groups: &[Group],
    limits: &Limits,
    threads: usize,
) -> Option<Work> {
    let mut work = Work::default();
    for group in groups {
        let w = group_work(graph, group, limits, threads)?;
        work.shared = work.shared.max(w.shared);
        work.attention = work.attention.max(w.attention);
        work.private = work.private.max(w.private);
    }
    Some(work)
}

impl Work {
    /// Bytes for so many workers.
    pub(in crate::cpu) fn bytes(&self, threads: usize) -> Option<usize> {
        let private = self.private.checked_mul(threads)?;
        self.shared.checked_add(self.attention)?.checked_add(private)
    }
}

fn group_work(graph: &Graph, group: &Group, limits: &Limits, threads: usize) -> Option<Work> {
    let rows = if group.lead == Lead::Outs { limits.outs } else { limits.rows };
    match &group.kind {
        GroupKind::Sample(_) => Some(Work::default()),
        GroupKind::Rows(nodes) => {
            Some(Work { private: list_bytes(graph, nodes)?, ..Work::default() })
        }
        GroupKind::Attend(id) => {
            let bytes = attention(graph, *id, limits.context)?.scratch_bytes(rows, threads)?;
            Some(Work { attention: aligned(bytes)?, ..Work::default() })
        }
        GroupKind::Linear { prologue, linear, .. }
            if matches!(graph.node(*linear).op, Op::Experts(_)) =>
        {
            let mut work = experts_work(graph, *linear, rows)?;
            work.private = aligned(work.private.checked_add(list_bytes(graph, prologue)?)?)?;
            Some(work)
        }
        GroupKind::Linear { prologue, linear, epilogue } => {
            let precision = linear_precision(graph, *linear)?;
            let inputs = graph.ty(*graph.node(*linear).args.first()?).width();
            let all = if rows > 1 { activation_bytes(precision, inputs, rows)? } else { 0 };
            let one = aligned(activation_bytes(precision, inputs, 1)?)?;
            let grain = epilogue.iter().map(|&n| grain_of(graph, n)).fold(TILE, lcm);
            let parts = graph.node(*linear).args.len() - 1;
            let strips = parts.checked_mul(strip_len(grain)?)?;
            let registers = epilogue.len().checked_mul(span(grain, 1).max(span(grain, 2)))?;
            let after = strips.checked_add(registers)?.checked_mul(4)?;
            let private = list_bytes(graph, prologue)?.checked_add(one)?.checked_add(after)?;
            Some(Work { shared: aligned(all)?, private: aligned(private)?, ..Work::default() })
        }
    }
}

/// The attention of a node over caches of `context` positions.
pub(super) fn attention(graph: &Graph, id: NodeId, context: usize) -> Option<Attention> {
    let node = graph.node(id);
    let Op::Attend(op) = &node.op else { return None };
    let cache = graph.ty(*node.args.get(1)?);
    Attention::new(op, *node.ty.dims.first()?, kv_layout(cache, context)?)
}

/// How a cache lies in memory.
pub(in crate::cpu) fn kv_layout(cache: &TensorType, context: usize) -> Option<KvLayout> {
    match cache.dims.as_slice() {
        &[heads, dim] => KvLayout::new(context, heads, dim, cache.dtype),
        _ => None,
    }
}

/// Registers of a list over whole rows: one a node, as long as its longest value.
pub(super) fn list_bytes(graph: &Graph, nodes: &[NodeId]) -> Option<usize> {
    aligned(list_width(graph, nodes).checked_mul(nodes.len())?.checked_mul(4)?)
}

pub(super) fn list_width(graph: &Graph, nodes: &[NodeId]) -> usize {
    let rows = |ty: &&TensorType| matches!(ty.lead, Lead::Rows | Lead::Outs);
    let widths = nodes.iter().map(|&n| graph.ty(n)).filter(rows);
    widths.map(TensorType::width).max().unwrap_or(0).next_multiple_of(TILE)
}

fn aligned(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN as usize)
}
