//! Which launches belong to which layer, and which layers are alike.
//!
//! A layer is known by the number in the names of what it reads: the first part between dots that is
//! all digits, or its caches' number. Layers are alike if their launches are, word for word but for
//! that number: ops, attributes, types, script lines. So a model of a hundred layers is drawn as the
//! few kinds of layer that it has.

use super::super::{Group, Plan};
use crate::graph::{Graph, Lead, Op};
use std::ops::Range;

/// Launches that follow each other and belong to one layer, or to none.
pub(crate) struct Segment {
    pub layer: Option<usize>,
    pub groups: Range<usize>,
    /// Which kind it is of.
    pub kind: usize,
}

/// The segments of a plan in run order; kinds are numbered as they first come.
pub(crate) fn segments(plan: &Plan) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    let mut last = None;
    for (g, group) in plan.groups().iter().enumerate() {
        let layer = layer_of(plan.graph(), group, last);
        match out.last_mut() {
            Some(segment) if layer == last => segment.groups.end = g + 1,
            _ => out.push(Segment { layer, groups: g..g + 1, kind: 0 }),
        }
        last = layer;
    }
    let mut known: Vec<String> = Vec::new();
    for segment in &mut out {
        let groups = plan.groups().get(segment.groups.clone()).unwrap_or_default();
        let words: Vec<String> = groups.iter().map(|g| words(plan.graph(), g)).collect();
        let words = words.join("\n");
        segment.kind = known.iter().position(|k| *k == words).unwrap_or(known.len());
        if segment.kind == known.len() {
            known.push(words);
        }
    }
    out
}

/// The layer of a group. One that reads no weight and no cache is where the one before it is.
fn layer_of(graph: &Graph, group: &Group, before: Option<usize>) -> Option<usize> {
    let (mut found, mut reads) = (None, false);
    for node in group.nodes() {
        for &arg in &graph.node(node).args {
            let number = match &graph.node(super::super::origin(graph, arg)).op {
                Op::Weight(weight) => number_in(&weight.name),
                Op::Cache(cache) => Some(cache.layer),
                _ => continue,
            };
            reads = true;
            found = found.max(number);
        }
    }
    // Logits are of no layer.
    if reads || group.lead == Lead::Outs { found } else { before }
}

fn number_in(name: &str) -> Option<usize> {
    let digits = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    name.split('.').find(digits)?.parse().ok()
}

/// A tensor's name with a star for the layer's number.
pub(crate) fn starred(name: &str) -> String {
    let mut done = false;
    let part = |p: &str| {
        let number = !done && !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
        done |= number;
        if number { "*".to_string() } else { p.to_string() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// All that a group says, but for the layer's number.
fn words(graph: &Graph, group: &Group) -> String {
    let mut out = group.kind.name().to_string();
    for id in group.nodes() {
        let node = graph.node(id);
        let attrs = node.op.attrs();
        out += &format!("|{} {:?} {} {}", node.op.name(), attrs.0, node.ty, node.origin);
        for &arg in &node.args {
            if let Op::Weight(weight) = &graph.node(arg).op {
                out += &format!(" {} {}", starred(&weight.name), graph.ty(arg));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_starred() {
        for (name, number, star) in [
            ("blk.12.attn_q.weight", Some(12), "blk.*.attn_q.weight"),
            (
                "stack(model.layers.3.mlp.experts.*.up)",
                Some(3),
                "stack(model.layers.*.mlp.experts.*.up)",
            ),
            ("a.1.b.2", Some(1), "a.*.b.2"),
            ("output_norm.weight", None, "output_norm.weight"),
            ("a.99999999999999999999.b", None, "a.*.b"),
            ("", None, ""),
        ] {
            assert_eq!((number_in(name), starred(name)), (number, star.to_string()), "{name}");
        }
    }
}
