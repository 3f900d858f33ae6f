//! The columns of a product, sorted by what their epilogue must see together.

use super::memory::tensor_kind;
use super::rows::table_of;
use crate::cuda::abi::{MAX_OPS, MAX_REGISTERS};
use crate::cuda::layout::Layout;
use crate::cuda::program::TensorKind;
use crate::graph::{Graph, NodeId, Op};
use crate::plan::{origin, weight_ranges};
use std::collections::BTreeMap;

/// Columns that are computed together, and what becomes of them.
pub(super) struct Columns {
    /// Indices of the weights.
    pub parts: Vec<usize>,
    pub len: usize,
    pub layouts: Vec<Layout>,
    /// Nodes of the epilogue, in run order, with slices of whole parts left out.
    pub nodes: Vec<NodeId>,
    /// The value of each part.
    pub values: Vec<Vec<NodeId>>,
    elementwise: bool,
}

impl Columns {
    /// Whether its epilogue is byte code at the end of the product.
    pub(super) fn rides_along(&self) -> bool {
        let ops = self.parts.len() + 2 * self.nodes.len() + self.values.iter().flatten().count();
        self.elementwise
            && self.parts.len() <= 2
            && ops <= MAX_OPS
            && self.parts.len().max(2) + self.nodes.len() <= MAX_REGISTERS
            && self.layouts.iter().all(|l| l.product() == self.layouts[0].product())
    }

    /// Columns of a block of the separate epilogue: what must be seen together, and not too few where rows
    /// are many enough for all blocks.
    pub(super) fn unit(&self, graph: &Graph, one: bool) -> usize {
        let grain = self.nodes.iter().map(|&n| grain(graph, n)).fold(1, lcm);
        if !self.len.is_multiple_of(grain) {
            return self.len;
        }
        if one && grain > 1 {
            return grain;
        }
        let most = (512 / grain).max(1).min(self.len / grain);
        let times = (1..=most).rev().find(|n| self.len.is_multiple_of(n * grain));
        grain * times.unwrap_or(1)
    }
}

/// Columns that an op of an epilogue must see together.
fn grain(graph: &Graph, id: NodeId) -> usize {
    let node = graph.node(id);
    match (&node.op, node.args.get(1)) {
        (Op::RmsNorm(_) | Op::LayerNorm(_) | Op::Rope(_), _) => node.ty.last(),
        (Op::Store(_), Some(&x)) => graph.ty(x).last(),
        _ => 1,
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).map_or(a.max(b), |times| times.saturating_mul(b))
}

/// How many columns these leave for a launch of its own.
pub(super) fn raw(domains: &[Columns]) -> usize {
    domains.iter().filter(|d| !d.rides_along()).map(|d| d.len * d.parts.len()).sum()
}

/// Sorts an epilogue by the weights that each node's columns come from.
pub(super) fn domains(graph: &Graph, linear: NodeId, epilogue: &[NodeId]) -> Option<Vec<Columns>> {
    let ranges: Vec<(usize, usize)> = weight_ranges(graph, linear).collect();
    let weights = graph.node(linear).args.iter().skip(1);
    let layouts: Option<Vec<Layout>> = weights
        .map(|&w| match tensor_kind(graph.ty(w)) {
            Some(TensorKind::Matrix(layout)) => Some(layout),
            _ => None,
        })
        .collect();
    let layouts = layouts?;
    let mut leader: Vec<usize> = (0..ranges.len()).collect();
    let mut part_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut values: Vec<Vec<NodeId>> = vec![Vec::new(); ranges.len()];
    if ranges.len() == 1 {
        part_of.insert(linear, 0);
        values[0].push(linear);
    }
    let mut nodes: Vec<(NodeId, usize)> = Vec::new();
    for &id in epilogue {
        let node = graph.node(id);
        if let (Op::Slice(s), Some(&arg)) = (&node.op, node.args.first())
            && arg == linear
        {
            let part = ranges.iter().position(|&r| r == (s.start, s.len))?;
            part_of.insert(id, part);
            values[part].push(id);
            continue;
        }
        let args = node.args.iter().map(|&a| origin(graph, a));
        let parts: Vec<usize> = args.filter_map(|a| part_of.get(&a).copied()).collect();
        let &first = parts.first()?;
        for &other in &parts {
            let (from, to) = (leader[other], leader[first]);
            leader.iter_mut().filter(|l| **l == from).for_each(|l| *l = to);
        }
        part_of.insert(id, first);
        nodes.push((id, first));
    }
    let mut out = Vec::new();
    for head in 0..ranges.len() {
        let parts: Vec<usize> = (0..ranges.len()).filter(|&p| leader[p] == head).collect();
        let Some(&first) = parts.first() else { continue };
        let own: Vec<NodeId> =
            nodes.iter().filter(|(_, p)| leader[*p] == head).map(|(n, _)| *n).collect();
        let elementwise = own.iter().all(|&n| {
            matches!(graph.node(n).op, Op::Unary(_) | Op::Binary(_)) && table_of(graph, n).is_none()
        });
        out.push(Columns {
            len: ranges[first].1,
            layouts: parts.iter().map(|&p| layouts[p]).collect(),
            values: parts.iter().map(|&p| values[p].clone()).collect(),
            parts,
            nodes: own,
            elementwise,
        });
    }
    Some(out)
}
