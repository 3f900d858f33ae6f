//! Only what an output needs, and one linear for all matrices that read the same rows.
//!
//! Query, key and value, or gate and up, read one activation. As one linear of several weights
//! the activation is normed, quantized and read once, and there is one launch and one barrier
//! where there were three. Each old linear becomes a slice of the new one.
//!
//! Experts that read the same rows for the same picks merge alike.
//!
//! Weights that read the activation differently do not merge: as int8, BF16 or f32.

use crate::graph::op::Slice;
use crate::graph::{Args, DType, Graph, Node, NodeId, Op};
use crate::model::Format;
use crate::{Error, Result};

/// The graph without dead nodes and with linears merged; all else as it was.
pub(super) fn merge(graph: &Graph) -> Result<Graph> {
    if graph.outputs().is_empty() {
        return Err(Error::Plan("the graph has no outputs".to_string()));
    }
    let needed = needed(graph);
    let mut out = Graph::default();
    // Where each node of the old graph is in the new one.
    let mut moved: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    // Weights come first, in the caller's order: programs of one graph share them, and whether two
    // linears merge may differ between steps of one row and of many.
    for (id, node) in graph.iter().filter(|(_, n)| matches!(n.op, Op::Weight(_))) {
        if needed[id.index()] {
            moved[id.index()] = Some(copy(&mut out, node, &moved)?);
        }
    }
    for (id, node) in graph.iter() {
        if moved[id.index()].is_some() || !needed[id.index()] {
            continue;
        }
        let family = family(graph, id, node, &needed);
        if family.len() < 2 {
            moved[id.index()] = Some(copy(&mut out, node, &moved)?);
            continue;
        }
        let mut args = Args::new();
        let inputs = inputs(&node.op);
        for &input in &node.args[..inputs] {
            args.push(renamed(&moved, input)?);
        }
        for &member in &family {
            for &w in &graph.node(member).args[inputs..] {
                args.push(renamed(&moved, w)?);
            }
        }
        let all = out.push(node.op.clone(), args, None, node.origin.clone())?;
        let mut start = 0;
        for &member in &family {
            let old = graph.node(member);
            let len = old.ty.last();
            let slice = Op::Slice(Slice { start, len });
            let part = out.push(slice, Args::from_slice(&[all]), None, old.origin.clone())?;
            moved[member.index()] = Some(part);
            start += len;
        }
    }
    for &output in graph.outputs() {
        out.mark_output(renamed(&moved, output)?);
    }
    Ok(out)
}

/// For each node, whether an output depends on it.
fn needed(graph: &Graph) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes().len()];
    graph.outputs().iter().for_each(|o| needed[o.index()] = true);
    for (id, node) in graph.iter().rev() {
        if needed[id.index()] {
            node.args.iter().for_each(|a| needed[a.index()] = true);
        }
    }
    needed
}

/// All linears with the rows and the kind of weight of `id`, in list order. They depend on
/// nothing but those rows and their weights, so all can run where the first one does.
fn family(graph: &Graph, id: NodeId, node: &Node, needed: &[bool]) -> Vec<NodeId> {
    let inputs = inputs(&node.op);
    if inputs == 0 {
        return Vec::new();
    }
    let later = graph.nodes().iter().enumerate().skip(id.index());
    later
        .filter(|(i, _)| needed[*i])
        .filter(|(_, n)| n.op == node.op && n.args.get(..inputs) == node.args.get(..inputs))
        .filter(|(_, n)| reads(graph, n) == reads(graph, node))
        .map(|(i, _)| NodeId(i as u32))
        .collect()
}

/// Arguments of a product that are not weights; 0 for what is no product.
pub(crate) fn inputs(op: &Op) -> usize {
    match op {
        Op::Linear(_) => 1,
        Op::Experts(_) => 2,
        _ => 0,
    }
}

/// As what its rows are read: as integers, and if not, as BF16.
fn reads(graph: &Graph, product: &Node) -> (bool, bool) {
    match product.args.get(inputs(&product.op)).map(|&w| graph.ty(w).dtype) {
        Some(DType::Weight(format)) => (format.quant().is_some(), format == Format::BF16),
        _ => (false, false),
    }
}

/// A node whose arguments are elsewhere by now.
pub(super) fn copy(out: &mut Graph, node: &Node, moved: &[Option<NodeId>]) -> Result<NodeId> {
    let args: Result<Args> = node.args.iter().map(|&a| renamed(moved, a)).collect();
    out.push(node.op.clone(), args?, Some(node.ty.clone()), node.origin.clone())
}

pub(super) fn renamed(moved: &[Option<NodeId>], id: NodeId) -> Result<NodeId> {
    moved[id.index()].ok_or_else(|| Error::Plan(format!("{id} is used before it is made")))
}
