//! Which values leave their group, and until when each is needed.

use super::{Group, is_source, origin};
use crate::graph::{Graph, NodeId, Op};

/// A value that needs memory.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Value {
    pub id: NodeId,
    /// The group that makes it.
    pub born: usize,
    /// The last group that reads it; the number of groups when it outlives the step.
    pub dies: usize,
}

/// The values that another group reads or that the caller wants, in the order they are made.
pub(crate) fn live(graph: &Graph, groups: &[Group]) -> Vec<Value> {
    let mut born = vec![None; graph.nodes().len()];
    for (g, group) in groups.iter().enumerate() {
        group.nodes().for_each(|n| born[n.index()] = Some(g));
    }
    let mut dies: Vec<Option<usize>> = vec![None; graph.nodes().len()];
    for (g, group) in groups.iter().enumerate() {
        for node in group.nodes() {
            for &arg in &graph.node(node).args {
                let value = origin(graph, arg);
                if born[value.index()].is_some_and(|b| b != g) {
                    dies[value.index()] = Some(g);
                }
            }
        }
    }
    for &output in graph.outputs() {
        dies[origin(graph, output).index()] = Some(groups.len());
    }
    let values =
        groups.iter().enumerate().flat_map(|(g, group)| group.nodes().map(move |n| (g, n)));
    values
        .filter(|(_, id)| !is_source(&graph.node(*id).op))
        .filter(|(_, id)| !matches!(graph.node(*id).op, Op::Store(_)))
        .filter_map(|(born, id)| dies[id.index()].map(|dies| Value { id, born, dies }))
        .collect()
}
