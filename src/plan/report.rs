//! A plan for people: bytes, launches, and the life of every scratch buffer.

use super::{GroupKind, Plan, Role};
use crate::error::Size;
use crate::graph::{NodeId, Op};
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = &self.limits;
        writeln!(
            f,
            "plan for {}: up to {} rows a step ({} with logits), {} x {} positions",
            self.target, l.rows, l.outs, l.slots, l.context
        )?;
        let b = &self.bytes;
        writeln!(f, "{} nodes in {} launches a step", self.graph.nodes().len(), self.groups.len())?;
        writeln!(f, "\nmemory                    bytes")?;
        for (name, bytes) in [
            ("weights", b.weights),
            ("KV cache", b.kv),
            ("scratch", b.scratch),
            ("workspace", b.workspace),
            ("tables", b.tables),
            ("logits", b.logits),
            ("step state", b.step),
            ("total", b.total()),
        ] {
            writeln!(f, "  {name:<12} {bytes:>16}  {}", Size(bytes))?;
        }
        writeln!(f, "\nlaunches")?;
        for (i, group) in self.groups.iter().enumerate() {
            write!(f, "  {i:>4}  {:<7}", group.kind.name())?;
            match &group.kind {
                GroupKind::Linear { prologue, linear, epilogue } => {
                    let parts = [prologue.as_slice(), &[*linear], epilogue.as_slice()];
                    let parts: Vec<String> = parts
                        .iter()
                        .filter(|p| !p.is_empty())
                        .map(|p| p.iter().map(|&n| self.label(n)).collect::<Vec<_>>().join(" "))
                        .collect();
                    writeln!(f, "{}", parts.join(" | "))?;
                }
                _ => {
                    let labels: Vec<String> = group.nodes().map(|n| self.label(n)).collect();
                    writeln!(f, "{}", labels.join(" "))?;
                }
            }
        }
        writeln!(f, "\nscratch   offset        bytes  launches     value")?;
        for b in self.buffers.iter().filter(|b| b.role == Role::Scratch) {
            write!(f, "  {:>14} {:>12}  {:>4} .. {:<4}", b.offset, b.bytes, b.live.0, b.live.1)?;
            write!(f, " {} {}", self.label(b.value), self.graph.ty(b.value))?;
            match b.in_place_of {
                Some(old) => writeln!(f, " in place of {old}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

impl GroupKind {
    /// What kind of launch it is.
    pub fn name(&self) -> &'static str {
        match self {
            GroupKind::Linear { .. } => "linear",
            GroupKind::Attend(_) => "attend",
            GroupKind::Rows(_) => "rows",
            GroupKind::Sample(_) => "sample",
        }
    }
}

impl Plan {
    /// A node with its op and, for a linear, its weights: `%7=linear(blk.0.attn_q.weight)`.
    pub(super) fn label(&self, id: NodeId) -> String {
        let node = self.graph.node(id);
        let names: Vec<String> = node
            .args
            .iter()
            .filter_map(|&a| match &self.graph.node(a).op {
                Op::Weight(w) => Some(w.name.escape_debug().take(48).collect()),
                _ => None,
            })
            .collect();
        let names = if names.is_empty() { String::new() } else { format!("({})", names.join(",")) };
        format!("{id}={}{names}", node.op.name())
    }
}
