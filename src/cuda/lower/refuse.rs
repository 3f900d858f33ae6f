//! Which groups cannot run here, and why: asked while planning, so that lowering meets none of
//! them.

use super::attend::attend_shared;
use super::columns::domains;
use super::memory::tensor_kind;
use super::product::pages;
use super::rows::list_fits;
use super::{Chip, binary_code, unary_code};
use crate::cuda::abi::{CHUNK, MAX_ROW_OPS, OWN, WARPS};
use crate::cuda::layout::Layout;
use crate::cuda::program::TensorKind;
use crate::graph::op::InputKind;
use crate::graph::{Graph, NodeId, Op};
use crate::plan::{Group, GroupKind, origin};

/// Why a group cannot run here.
pub(in crate::cuda) fn refuses(chip: &Chip, graph: &Graph, group: &Group) -> Option<String> {
    let bad = group.nodes().find_map(|id| {
        let why = refuses_node(chip, graph, id)?;
        let node = graph.node(id);
        Some(format!("{} ({}): {why}", node.op.name(), node.origin))
    });
    if bad.is_some() {
        return bad;
    }
    let (list, keep): (&[NodeId], _) = match &group.kind {
        GroupKind::Rows(nodes) => (nodes, None),
        GroupKind::Linear { prologue, linear, .. } => {
            (prologue, graph.node(*linear).args.first().map(|&x| origin(graph, x)))
        }
        _ => (&[], None),
    };
    if !list_fits(chip, graph, list, keep) {
        return Some("its rows are too wide, or too much is done to them, for one block".into());
    }
    if let GroupKind::Linear { linear, epilogue, .. } = &group.kind {
        let domains = domains(graph, *linear, epilogue)?;
        for d in domains.iter().filter(|d| !d.rides_along()) {
            if d.parts.len() * 2 + d.nodes.len() * 2 > MAX_ROW_OPS
                || d.unit(graph) * (d.nodes.len() + 1) * 4 > chip.row_shared()
            {
                return Some("too much is done to the product's columns for one launch".into());
            }
        }
    }
    None
}

fn refuses_node(chip: &Chip, graph: &Graph, id: NodeId) -> Option<&'static str> {
    let node = graph.node(id);
    let arg = |i: usize| node.args.get(i).map(|&a| &graph.node(a).op);
    let input = |i: usize, kind| matches!(arg(i), Some(Op::Input(x)) if x.kind == kind);
    let weight = |i: usize| matches!(arg(i), Some(Op::Weight(_)));
    let rows_of_step = |n: usize| input(n, InputKind::Positions) && input(n + 1, InputKind::Slots);
    match &node.op {
        Op::LayerNorm(_)
        | Op::Concat(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::TopK(_)
        | Op::Pick(_)
        | Op::Experts(_)
        | Op::Mix(_) => Some("there is no kernel for it yet"),
        Op::Unary(op) if unary_code(op.kind).is_none() => Some("there is no kernel for it yet"),
        Op::Binary(op) if binary_code(op.kind).is_none() => Some("there is no kernel for it yet"),
        Op::RmsNorm(_) if !weight(1) => Some("it has no weight of the model's"),
        Op::RmsNorm(_) if graph.ty(*node.args.get(1)?).width() != node.ty.last() => {
            Some("a weight for each head is not read yet")
        }
        Op::Attend(op) if op.alibi.is_some() || node.args.len() > 5 => {
            Some("slopes and sinks are not computed yet")
        }
        Op::Embed(_) if !(weight(0) && input(1, InputKind::Tokens)) => {
            Some("its tokens are computed")
        }
        Op::Select(_) if !input(1, InputKind::Outs) => Some("its rows are computed"),

        Op::Rope(_) if !input(1, InputKind::Positions) => Some("its positions are computed"),
        Op::Rope(_) if node.args.len() > 2 && !weight(2) => Some("its factors are computed"),
        Op::Store(_) if !rows_of_step(2) => Some("its positions are computed"),
        Op::Attend(_) if !rows_of_step(3) => Some("its positions are computed"),
        Op::Binary(_) if node.ty.dims.len() > 1 && (weight(0) || weight(1)) => {
            Some("a weight for rows of heads is not kept as a vector")
        }
        Op::Linear(_) => {
            let layouts = node.args.iter().skip(1).map(|&w| match tensor_kind(graph.ty(w)) {
                Some(TensorKind::Matrix(layout)) => Some(layout),
                _ => None,
            });
            let layouts: Option<Vec<Layout>> = layouts.collect();
            let Some(layouts) = layouts else { return Some("no kernel reads its weights") };
            let streams = |l: &Layout| pages(chip, std::slice::from_ref(l), WARPS).is_some();
            if layouts.iter().all(streams) { None } else { Some("its rows are too wide") }
        }
        Op::Attend(_) => {
            let (q, k) = (graph.ty(node.args[0]), graph.ty(node.args[1]));
            let (&[heads, dim], &[kv, _]) = (q.dims.as_slice(), k.dims.as_slice()) else {
                return Some("its heads do not fit its cache");
            };
            let group = heads / kv.max(1);
            if !dim.is_multiple_of(8) {
                return Some("its heads are not multiples of 8 wide");
            }
            // Sums take the place of the keys.
            let sums = 4 * group * dim <= 2 * CHUNK * (dim + 8);
            let fits = sums && group * dim <= OWN && attend_shared(group, dim) <= chip.row_shared();
            if fits { None } else { Some("its heads are too wide for one block") }
        }
        _ => None,
    }
}
