//! Rows are selected as early as nobody misses the others.
//!
//! After the last attention a prompt's rows no longer meet, and only those whose logits are wanted
//! have a use: of a prompt of hundreds, one. What a graph computes of all rows and then selects
//! from is computed of the selected rows alone. Each row's result is the same to the last bit.

use super::merge::{copy, renamed};
use crate::Result;
use crate::graph::{Args, DType, Graph, Lead, Node, NodeId, Op};

/// The graph with every `select` where the rows part.
pub(super) fn lift(graph: &Graph) -> Result<Graph> {
    let lifted = lifted(graph);
    let mut lift = Lift { from: graph, out: Graph::default(), whole: Vec::new(), few: Vec::new() };
    lift.whole = vec![None; graph.nodes().len()];
    lift.few = lift.whole.clone();
    // Where all rows are computed and some selected.
    let mut parts = vec![false; lifted.len()];
    for (id, node) in graph.iter() {
        let args = match node.op {
            Op::Select(_) => node.args.get(..1),
            _ => lifted[id.index()].then_some(node.args.as_slice()),
        };
        for arg in args.unwrap_or_default() {
            parts[arg.index()] = graph.ty(*arg).lead == Lead::Rows && !lifted[arg.index()];
        }
    }
    // One input names the rows, whoever selects.
    let outs = graph.nodes().iter().find_map(|n| match (&n.op, n.args.get(1)) {
        (Op::Select(_), Some(&outs)) => Some(outs),
        _ => None,
    });
    for (id, node) in graph.iter() {
        if let (Op::Select(_), Some(&x)) = (&node.op, node.args.first()) {
            lift.whole[id.index()] = lift.few[x.index()];
        } else if lifted[id.index()] {
            lift.few[id.index()] = Some(lift.copy_few(node)?);
        } else if lift.whole[id.index()].is_none() {
            lift.whole[id.index()] = Some(lift.copy(node)?);
        }
        if let (true, Some(outs)) = (parts[id.index()], outs) {
            if lift.whole[outs.index()].is_none() {
                lift.whole[outs.index()] = Some(lift.copy(graph.node(outs))?);
            }
            let args = Args::from_slice(&[lift.at(id)?, lift.at(outs)?]);
            let select = Op::Select(crate::graph::op::Select);
            let few = lift.out.push(select, args, None, node.origin.clone())?;
            lift.few[id.index()] = Some(few);
        }
    }
    for &output in graph.outputs() {
        let output = lift.at(output)?;
        lift.out.mark_output(output);
    }
    Ok(lift.out)
}

/// For each node, whether it is wanted of the selected rows only, and can be computed of them alone.
fn lifted(graph: &Graph) -> Vec<bool> {
    let mut lifted: Vec<bool> = graph.nodes().iter().map(by_row).collect();
    graph.outputs().iter().for_each(|o| lifted[o.index()] = false);
    loop {
        let before = lifted.clone();
        let mut used = vec![false; lifted.len()];
        for (id, node) in graph.iter().rev() {
            // Users come later in the list, so it is known of all of them.
            lifted[id.index()] &= used[id.index()];
            let few = lifted[id.index()] || matches!(node.op, Op::Select(_));
            for arg in &node.args {
                used[arg.index()] = true;
                lifted[arg.index()] &= few;
            }
        }
        // Rows of f32 can be selected, of picks they cannot.
        for (id, node) in graph.iter() {
            let picks =
                |&&a: &&NodeId| (graph.ty(a).lead, graph.ty(a).dtype) == (Lead::Rows, DType::U32);
            lifted[id.index()] &= node.args.iter().filter(picks).all(|a| lifted[a.index()]);
        }
        if lifted == before {
            return lifted;
        }
    }
}

/// Whether each row of a node follows from the same row of its arguments, whichever row that is.
fn by_row(node: &Node) -> bool {
    node.ty.lead == Lead::Rows
        && matches!(
            node.op,
            Op::Linear(_)
                | Op::RmsNorm(_)
                | Op::LayerNorm(_)
                | Op::Unary(_)
                | Op::Binary(_)
                | Op::Reshape(_)
                | Op::Slice(_)
                | Op::Concat(_)
                | Op::Softmax(_)
                | Op::Normalize(_)
                | Op::TopK(_)
                | Op::Pick(_)
                | Op::Experts(_)
                | Op::Mix(_)
        )
}

struct Lift<'a> {
    from: &'a Graph,
    out: Graph,
    /// Where each node is in the new graph,
    whole: Vec<Option<NodeId>>,
    /// and where it is of the selected rows.
    few: Vec<Option<NodeId>>,
}

impl Lift<'_> {
    fn at(&self, id: NodeId) -> Result<NodeId> {
        renamed(&self.whole, id)
    }

    fn copy(&mut self, node: &Node) -> Result<NodeId> {
        copy(&mut self.out, node, &self.whole)
    }

    /// A copy that is given the selected rows. Its type follows from theirs.
    fn copy_few(&mut self, node: &Node) -> Result<NodeId> {
        let of = |&a: &NodeId| match (self.from.ty(a).lead, self.few[a.index()]) {
            (Lead::Rows, Some(few)) => Ok(few),
            _ => self.at(a),
        };
        let args: Result<Args> = node.args.iter().map(of).collect();
        self.out.push(node.op.clone(), args?, None, node.origin.clone())
    }
}
