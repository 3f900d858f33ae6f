//! The graph as petgraph sees it, and from there as DOT.
//!
//! petgraph is a view for algorithms and drawings, never the store: the order of arguments is in
//! the node, and the view carries it as edge weights.

use super::{Graph, NodeId, Op};
use petgraph::dot::{Config, Dot};
use petgraph::graph::DiGraph;
use petgraph::visit::EdgeRef;

impl Graph {
    /// The same nodes, with an edge from each argument to its user whose weight is the argument's
    /// place. Node indices are equal to ids.
    pub fn petgraph(&self) -> DiGraph<NodeId, usize> {
        let mut view = DiGraph::with_capacity(self.nodes.len(), self.nodes.len() * 2);
        for (id, _) in self.iter() {
            view.add_node(id);
        }
        for (id, node) in self.iter() {
            for (place, arg) in node.args.iter().enumerate() {
                view.add_edge(arg.0.into(), id.0.into(), place);
            }
        }
        view
    }

    /// A drawing in the DOT language: sources as boxes, outputs with a double border, edges with
    /// the argument's place where a node has more than one.
    pub fn to_dot(&self) -> String {
        let view = self.petgraph();
        let edge = |_: &DiGraph<NodeId, usize>, edge: petgraph::graph::EdgeReference<'_, usize>| {
            let target = view.node_weight(edge.target());
            let many = target.is_some_and(|&id| self.node(id).args.len() > 1);
            if many { format!("label=\"{}\"", edge.weight()) } else { String::new() }
        };
        let node = |_: &DiGraph<NodeId, usize>, (_, &id): (_, &NodeId)| {
            let node = self.node(id);
            let source = matches!(node.op, Op::Input(_) | Op::Weight(_) | Op::Cache(_));
            let shape = if source { "box" } else { "ellipse" };
            let borders = if self.outputs.contains(&id) { 2 } else { 1 };
            let attrs = node.op.attrs();
            let attrs = attrs.0.iter().map(|(key, value)| format!("{key}={value}"));
            let attrs = attrs.collect::<Vec<_>>().join(", ");
            let lines = [format!("{id} {}", node.op.name()), attrs, node.ty.to_string()];
            let lines = lines.iter().filter(|l| !l.is_empty()).map(|l| escape(l));
            let label = lines.collect::<Vec<_>>().join("\\n");
            format!("label=\"{label}\", shape={shape}, peripheries={borders}")
        };
        let config = [Config::NodeNoLabel, Config::EdgeNoLabel];
        format!("{}", Dot::with_attr_getters(&view, &config, &edge, &node))
    }
}

/// Text within a DOT string: quotes and backslashes would end it or mean something.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
