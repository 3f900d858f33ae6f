//! Which groups cannot run here, and why: asked while planning.

use super::linear::linear_precision;
use super::memory::attention;
use crate::graph::op::InputKind;
use crate::graph::{Graph, Op};
use crate::plan::Group;

/// Why a group cannot run here.
pub(in crate::cpu) fn refuses(graph: &Graph, group: &Group) -> Option<String> {
    group.nodes().find_map(|id| {
        let node = graph.node(id);
        let arg = |i: usize| node.args.get(i).map(|&a| &graph.node(a).op);
        let input = |i: usize, kind| matches!(arg(i), Some(Op::Input(x)) if x.kind == kind);
        let weight = |i: usize| matches!(arg(i), Some(Op::Weight(_)));
        let why = match &node.op {
            Op::Embed(_) if !weight(0) => "its table is computed",
            Op::Embed(_) if input(1, InputKind::Slots) || input(1, InputKind::Outs) => {
                "its rows are neither tokens nor positions"
            }
            Op::Select(_) if !input(1, InputKind::Outs) => "its rows are computed",
            Op::RmsNorm(_) | Op::LayerNorm(_) if (1..node.args.len()).any(|i| !weight(i)) => {
                "its weight is computed"
            }
            Op::Rope(_) if !input(1, InputKind::Positions) => "its positions are computed",
            Op::Rope(_) if node.args.len() > 2 && !weight(2) => "its factors are computed",
            Op::Store(_) if !(input(2, InputKind::Positions) && input(3, InputKind::Slots)) => {
                "its positions are computed"
            }
            Op::Attend(_) if !(input(3, InputKind::Positions) && input(4, InputKind::Slots)) => {
                "its positions are computed"
            }
            Op::Attend(_) if node.args.len() > 5 && !weight(5) => "its sinks are computed",
            Op::Binary(_) if node.ty.dims.len() > 1 && (weight(0) || weight(1)) => {
                "a weight for rows of heads is not kept as a vector"
            }
            Op::Linear(_) | Op::Experts(_) if linear_precision(graph, id).is_none() => {
                "its weights want rows of different precision, or no kernel reads them"
            }
            Op::Attend(_) if attention(graph, id, 1).is_none() => "its heads do not fit its cache",
            _ => return None,
        };
        Some(format!("{} ({}): {why}", node.op.name(), node.origin))
    })
}
