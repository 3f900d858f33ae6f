//! Which groups cannot run here, and why: asked while planning, so that lowering meets none of
//! them.

use super::Chip;
use super::attend::shares;
use super::columns::domains;
use super::experts::experts_shared;
use super::memory::tensor_kind;
use super::product::Stream;
use super::registers::{Registers, fold};
use super::rows::{list_fits, ops, tables};
use super::split::one_order;
use crate::cuda::abi::{MAX_ROW_OPS, MAX_TABLES};
use crate::cuda::layout::Layout;
use crate::cuda::program::TensorKind;
use crate::graph::op::InputKind;
use crate::graph::{Graph, NodeId, Op};
use crate::plan::{Group, GroupKind, inputs, origin};

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
    let experts = |id: NodeId| matches!(graph.node(id).op, Op::Experts(_));
    let (list, keep, parts) = match &group.kind {
        GroupKind::Rows(nodes) => (nodes.as_slice(), Vec::new(), fold(graph, nodes)),
        GroupKind::Linear { prologue, linear, .. } => {
            let inputs = graph.node(*linear).args.iter().take(inputs(&graph.node(*linear).op));
            let parts = if experts(*linear) { fold(graph, prologue) } else { 1 };
            (prologue.as_slice(), inputs.map(|&x| origin(graph, x)).collect(), parts)
        }
        _ => (&[] as &[NodeId], Vec::new(), 1),
    };
    if !list_fits(chip, graph, list, &keep, parts) {
        return Some("its rows are too wide, or too much is done to them, for one block".into());
    }
    if let GroupKind::Linear { linear, epilogue, .. } = &group.kind
        && !experts(*linear)
    {
        let domains = domains(graph, *linear, epilogue)?;
        for d in domains.iter().filter(|d| !d.rides_along()) {
            let ops: usize = d.nodes.iter().map(|&id| ops(graph, id)).sum();
            let bytes = Registers::bytes(graph, &d.nodes, &[], d.unit(graph, false), 1);
            if d.parts.len() * 2 + ops > MAX_ROW_OPS
                || tables(graph, &d.nodes) > MAX_TABLES
                || bytes > chip.row_shared()
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
        Op::RmsNorm(_) | Op::LayerNorm(_) if (1..node.args.len()).any(|i| !weight(i)) => {
            Some("its weight is computed")
        }
        Op::Attend(_) if node.args.len() > 5 && !weight(5) => Some("its sinks are computed"),
        Op::Embed(_) if !weight(0) => Some("its table is computed"),
        Op::Embed(_) if input(1, InputKind::Slots) || input(1, InputKind::Outs) => {
            Some("its rows are neither tokens nor positions")
        }
        Op::Embed(_) if tensor_kind(graph.ty(*node.args.first()?)).is_none() => {
            Some("no kernel reads its table")
        }
        Op::Select(_) if !input(1, InputKind::Outs) => Some("its rows are computed"),
        Op::Rope(_) if !input(1, InputKind::Positions) => Some("its positions are computed"),
        Op::Rope(_) if node.args.len() > 2 && !weight(2) => Some("its factors are computed"),
        Op::Store(_) if !rows_of_step(2) => Some("its positions are computed"),
        Op::Attend(_) if !rows_of_step(3) => Some("its positions are computed"),
        Op::Binary(_) if weight(1) && tensor_kind(graph.ty(*node.args.get(1)?)).is_none() => {
            Some("no kernel reads its weight")
        }
        Op::Experts(_) => {
            let fits = |&w: &NodeId| match tensor_kind(graph.ty(w)) {
                Some(TensorKind::Experts(l, _)) => experts_shared(&l) <= chip.row_shared(),
                _ => false,
            };
            if !(2..node.args.len()).all(weight) {
                return Some("its weights are computed");
            }
            if node.args.iter().skip(2).all(fits) {
                None
            } else {
                Some("no kernel reads its weights, or its rows are too wide")
            }
        }
        Op::Linear(_) => {
            let layouts = node.args.iter().skip(1).map(|&w| match tensor_kind(graph.ty(w)) {
                Some(TensorKind::Matrix(layout)) => Some(layout),
                _ => None,
            });
            let layouts: Option<Vec<Layout>> = layouts.collect();
            let Some(layouts) = layouts else { return Some("no kernel reads its weights") };
            if chip.hopper && !one_order(graph, id) {
                return Some("some of its weights are floats, which take rows in another order");
            }
            let streams = |l: &Layout| Stream::of(chip, std::slice::from_ref(l)).is_some();
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
            let fits = shares(chip, group, dim).is_some();
            if fits { None } else { Some("its heads are too wide for one block") }
        }
        _ => None,
    }
}
