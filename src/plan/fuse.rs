//! Which nodes run in one launch.
//!
//! Nodes are taken in list order and each joins the latest group among those that its arguments
//! come from, if that group can take it; otherwise it opens a new group at the end. Since a node
//! joins no earlier a group than its arguments need, run order is list order of the groups. A slice that
//! cannot join there joins rows at the end, so that what becomes of two slices is one group.
//!
//! * A linear takes the row-local ops before it as **prologue** (they are recomputed by each
//!   worker, or run row by row before the product), provided that they are the latest group.
//! * It takes as **epilogue** what can be done to a range of its columns: elementwise ops,
//!   rotations and norms of single heads, cache writes. A range of columns belongs to one weight;
//!   two weights' ranges meet where an elementwise op joins them (gate and up).

use super::merge::inputs;
use super::{Group, GroupKind, is_source, origin};
use crate::graph::{Graph, Lead, Node, NodeId, Op};

/// The groups of `graph` in run order; every node but sources and reshapes is in exactly one.
pub(super) fn fuse(graph: &Graph) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut group_of: Vec<Option<usize>> = vec![None; graph.nodes().len()];
    for (id, node) in graph.iter() {
        if is_source(&node.op) {
            continue;
        }
        let latest = node.args.iter().filter_map(|a| group_of[a.index()]).max();
        if matches!(node.op, Op::Reshape(_)) {
            group_of[id.index()] = latest;
            continue;
        }
        let last = groups.len().checked_sub(1);
        let joins = |groups: &mut [Group], g: usize| {
            let is_last = Some(g) == last;
            join(graph, &mut groups[g], is_last, id, node, |a| group_of[a.index()] == Some(g))
        };
        let mut taken = latest.filter(|&g| joins(&mut groups, g));
        // A slice is no work: what is done to it may stand beside what is done to others.
        if taken.is_none() && latest.is_some() && matches!(node.op, Op::Slice(_)) {
            let rows = |&g: &usize| matches!(groups[g].kind, GroupKind::Rows(_));
            taken = last.filter(rows).filter(|&g| joins(&mut groups, g));
        }
        group_of[id.index()] = Some(taken.unwrap_or_else(|| {
            groups.push(open(graph, id, node));
            groups.len() - 1
        }));
    }
    groups
}

/// A new group for `id`.
fn open(graph: &Graph, id: NodeId, node: &Node) -> Group {
    let kind = match node.op {
        Op::Linear(_) | Op::Experts(_) => {
            GroupKind::Linear { prologue: Vec::new(), linear: id, epilogue: Vec::new() }
        }
        Op::Attend(_) => GroupKind::Attend(id),
        Op::Sample(_) => GroupKind::Sample(id),
        _ => GroupKind::Rows(vec![id]),
    };
    Group { kind, lead: lead(graph, node) }
}

/// Over which rows a node runs. A store's value is a cache; it runs over the rows it writes.
fn lead(graph: &Graph, node: &Node) -> Lead {
    match (&node.op, node.args.get(1)) {
        (Op::Store(_), Some(&x)) => graph.ty(x).lead,
        _ => node.ty.lead,
    }
}

/// Puts `id` into `group` if it fits there.
fn join(
    graph: &Graph,
    group: &mut Group,
    is_last: bool,
    id: NodeId,
    node: &Node,
    inside: impl Fn(NodeId) -> bool,
) -> bool {
    if group.lead != lead(graph, node) {
        return false;
    }
    match (&mut group.kind, &node.op) {
        (_, Op::Attend(_) | Op::Sample(_) | Op::Select(_)) => false,
        (GroupKind::Rows(nodes), Op::Linear(_) | Op::Experts(_)) => {
            // Moving the rows' work into the product is free only if nothing ran in between.
            let made = |&x: &NodeId| nodes.contains(&origin(graph, x));
            if !is_last || !node.args[..inputs(&node.op)].iter().any(made) {
                return false;
            }
            let prologue = std::mem::take(nodes);
            group.kind = GroupKind::Linear { prologue, linear: id, epilogue: Vec::new() };
            true
        }
        (_, Op::Linear(_) | Op::Experts(_)) => false,
        (GroupKind::Rows(nodes), _) => {
            nodes.push(id);
            true
        }
        (GroupKind::Linear { linear, epilogue, .. }, _) => {
            let fits = fits_epilogue(graph, *linear, epilogue, node, inside);
            if fits {
                epilogue.push(id);
            }
            fits
        }
        (GroupKind::Attend(_) | GroupKind::Sample(_), _) => false,
    }
}

/// Whether `node` can be computed for a range of the product's columns at a time.
fn fits_epilogue(
    graph: &Graph,
    linear: NodeId,
    epilogue: &[NodeId],
    node: &Node,
    inside: impl Fn(NodeId) -> bool,
) -> bool {
    let product = graph.node(linear);
    // The columns of experts are those of several rows.
    if !matches!(product.op, Op::Linear(_)) {
        return false;
    }
    // Of the group's own values, only those of the epilogue exist column by column.
    let own = |a: NodeId| {
        let a = origin(graph, a);
        a == linear || epilogue.contains(&a)
    };
    let args = &node.args;
    if args.iter().any(|&a| inside(a) && !own(a) && !is_store(graph, a)) {
        return false;
    }
    // Of several weights side by side, only a whole one can be taken apart.
    let several = product.args.len() > 2;
    let whole = |a: NodeId| several && origin(graph, a) == linear;
    match &node.op {
        Op::Slice(slice) => {
            several
                && args[0] == linear
                && weight_ranges(graph, linear)
                    .any(|(start, len)| (start, len) == (slice.start, slice.len))
        }
        Op::Unary(_) | Op::Binary(_) => !args.iter().any(|&a| whole(a)),
        Op::RmsNorm(_) | Op::LayerNorm(_) | Op::Rope(_) => {
            node.ty.dims.len() == 2 && own(args[0]) && !whole(args[0])
        }
        Op::Store(_) => own(args[1]) && !whole(args[1]),
        _ => false,
    }
}

fn is_store(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Store(_))
}

/// First column and number of columns of each weight of a linear.
pub(crate) fn weight_ranges(
    graph: &Graph,
    linear: NodeId,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let node = graph.node(linear);
    let weights = node.args.iter().skip(inputs(&node.op));
    weights.scan(0, |start, &w| {
        // Outputs come before inputs, and experts before both.
        let len = graph.ty(w).dims.iter().rev().nth(1).copied().unwrap_or(0);
        let range = (*start, len);
        *start += len;
        Some(range)
    })
}
