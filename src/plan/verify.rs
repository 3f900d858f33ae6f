//! Whether a plan computes what its graph says, shown by replaying its memory.
//!
//! Every plan passes through here, whoever made it. Nothing of the other passes is used: groups and
//! offsets are taken as claims, and a simulation of who wrote which byte last refuses them if
//!
//! * a node is missing, runs twice, or runs before what it needs,
//! * a buffer is misaligned, too short, or leaves its arena,
//! * a group reads bytes that no longer hold the value it wants,
//! * a group writes bytes that it also reads or writes otherwise, unless element by element.

use super::{ALIGN, Group, GroupKind, Plan, Role, is_source, origin};
use crate::graph::{Graph, Lead, NodeId, Op};
use crate::{Error, Result};

/// Checks `plan`.
pub(super) fn verify(plan: &Plan) -> Result<()> {
    let order = check_order(plan)?;
    check_buffers(plan)?;
    let mut owners: Vec<(u64, u64, NodeId)> = Vec::new();
    for (g, group) in plan.groups.iter().enumerate() {
        let reads = external_reads(plan, g, &order);
        for &value in &reads {
            let (start, end) = range(plan, value)?;
            let held = held_bytes(&owners, value, start, end);
            if held != end - start {
                return Err(Error::Plan(format!("group {g} reads {value} after it is gone")));
            }
        }
        let mut written: Vec<(u64, u64, NodeId)> = Vec::new();
        for node in group.nodes().filter(|&n| leaves(plan, n)) {
            let (start, end) = range(plan, node)?;
            if written.iter().any(|&(s, e, _)| s < end && start < e) {
                return Err(Error::Plan(format!("group {g} writes {node} over its own output")));
            }
            for &value in &reads {
                let (s, e) = range(plan, value)?;
                if s < end && start < e && !element_by_element(&plan.graph, group, value, node) {
                    return Err(Error::Plan(format!("group {g} writes {node} over {value}")));
                }
            }
            written.push((start, end, node));
        }
        for (start, end, node) in written {
            erase(&mut owners, start, end);
            owners.push((start, end, node));
        }
    }
    for &output in plan.graph.outputs() {
        let value = origin(&plan.graph, output);
        let source = is_source(&plan.graph.node(value).op);
        let (start, end) = range(plan, value)?;
        if !source && held_bytes(&owners, value, start, end) != end - start {
            return Err(Error::Plan(format!("the output {value} does not survive the step")));
        }
    }
    Ok(())
}

/// For each node, the group it runs in; refuses a group list that is not a run order.
fn check_order(plan: &Plan) -> Result<Vec<Option<usize>>> {
    let graph = &plan.graph;
    let mut order: Vec<Option<usize>> = vec![None; graph.nodes().len()];
    for (g, group) in plan.groups.iter().enumerate() {
        for id in group.nodes() {
            for &arg in &graph.node(id).args {
                let needs = through_reshapes(graph, arg);
                if !is_source(&graph.node(needs).op) && order[needs.index()].is_none() {
                    return Err(Error::Plan(format!("group {g} runs {id} before {needs}")));
                }
            }
            if order[id.index()].replace(g).is_some() {
                return Err(Error::Plan(format!("{id} runs twice")));
            }
            let rows = match (&graph.node(id).op, graph.node(id).args.get(1)) {
                (Op::Store(_), Some(&x)) => graph.ty(x).lead,
                _ => graph.ty(id).lead,
            };
            if rows != group.lead || !matches!(rows, Lead::Rows | Lead::Outs) {
                return Err(Error::Plan(format!("group {g} runs {id} over the wrong rows")));
            }
        }
    }
    for (id, node) in graph.iter() {
        let needs_group = !is_source(&node.op) && !matches!(node.op, Op::Reshape(_));
        if needs_group && order[id.index()].is_none() {
            return Err(Error::Plan(format!("{id} never runs")));
        }
    }
    Ok(order)
}

/// A reshape is the value itself; a store is a step of its own that readers must wait for.
fn through_reshapes(graph: &Graph, mut id: NodeId) -> NodeId {
    while let (Op::Reshape(_), Some(&arg)) = (&graph.node(id).op, graph.node(id).args.first()) {
        id = arg;
    }
    id
}

fn check_buffers(plan: &Plan) -> Result<()> {
    for b in &plan.buffers {
        let fail = |what: &str| Err(Error::Plan(format!("the buffer of {} {what}", b.value)));
        let arena = match b.role {
            Role::Weight => plan.bytes.weights,
            Role::KvCache => plan.bytes.kv,
            Role::Scratch => plan.bytes.scratch,
            Role::Logits => plan.bytes.logits,
            Role::Step => plan.bytes.step,
        };
        if !b.offset.is_multiple_of(ALIGN) {
            return fail("is misaligned");
        }
        if b.offset.checked_add(b.bytes).is_none_or(|end| end > arena) {
            return fail("leaves its memory");
        }
        let ty = plan.graph.ty(b.value);
        let rows = match ty.lead {
            Lead::Rows => plan.limits.rows,
            Lead::Outs => plan.limits.outs,
            Lead::Fixed | Lead::Cache => continue,
        };
        if (rows as u64).saturating_mul(ty.width() as u64).saturating_mul(4) > b.bytes {
            return fail("is too short");
        }
    }
    // Memory that outlives a group is never shared.
    let kept = |r: Role| !matches!(r, Role::Scratch);
    let mut all: Vec<_> = plan.buffers.iter().filter(|b| kept(b.role)).collect();
    all.sort_by_key(|b| (b.role, b.offset));
    for pair in all.windows(2) {
        if let [a, b] = pair
            && a.role == b.role
            && a.offset + a.bytes > b.offset
        {
            return Err(Error::Plan(format!("{} and {} overlap", a.value, b.value)));
        }
    }
    Ok(())
}

/// Whether a value made in a group is written to memory: it has a buffer of its own.
fn leaves(plan: &Plan, id: NodeId) -> bool {
    !matches!(plan.graph.node(id).op, Op::Store(_)) && plan.place(id).is_some_and(|b| b.value == id)
}

/// The values of other groups that group `g` reads.
fn external_reads(plan: &Plan, g: usize, order: &[Option<usize>]) -> Vec<NodeId> {
    let mut reads = Vec::new();
    for id in plan.groups[g].nodes() {
        for &arg in &plan.graph.node(id).args {
            let value = origin(&plan.graph, arg);
            let source = is_source(&plan.graph.node(value).op);
            if !source && order[value.index()] != Some(g) && !reads.contains(&value) {
                reads.push(value);
            }
        }
    }
    reads
}

/// The bytes of a value, with scratch and logits apart from each other.
fn range(plan: &Plan, id: NodeId) -> Result<(u64, u64)> {
    let b = plan.place(id).ok_or_else(|| Error::Plan(format!("{id} is read but has no place")))?;
    let base = if b.role == Role::Scratch { 0 } else { plan.bytes.scratch };
    let start = base.saturating_add(b.offset);
    Ok((start, start.saturating_add(b.bytes)))
}

fn held_bytes(owners: &[(u64, u64, NodeId)], value: NodeId, start: u64, end: u64) -> u64 {
    let own = owners.iter().filter(|o| o.2 == value);
    own.map(|&(s, e, _)| e.min(end).saturating_sub(s.max(start))).sum()
}

/// Takes `start..end` away from whoever owned it.
fn erase(owners: &mut Vec<(u64, u64, NodeId)>, start: u64, end: u64) {
    let before = std::mem::take(owners);
    for (s, e, id) in before {
        if s < start.min(e) {
            owners.push((s, start.min(e), id));
        }
        if e > end.max(s) {
            owners.push((end.max(s), e, id));
        }
    }
}

/// Whether `old` may be overwritten by `new` in one group: an elementwise op of the epilogue reads
/// it, nothing else does, and both are of one type.
fn element_by_element(graph: &Graph, group: &Group, old: NodeId, new: NodeId) -> bool {
    let GroupKind::Linear { epilogue, .. } = &group.kind else { return false };
    let args = |id: NodeId| graph.node(id).args.iter().map(|&a| origin(graph, a));
    let reads: usize = group.nodes().map(|n| args(n).filter(|&a| a == old).count()).sum();
    epilogue.contains(&new)
        && matches!(graph.node(new).op, Op::Binary(_) | Op::Unary(_))
        && graph.node(new).args.contains(&old)
        && reads == 1
        && graph.ty(old) == graph.ty(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::plan::Limits;

    fn plan() -> Plan {
        let model = crate::embedded::tiny().unwrap();
        let graph = crate::graph::arch::build(&model).unwrap();
        let limits = Limits { rows: 4, outs: 1, slots: 1, context: 64 };
        Plan::new(&graph, &crate::cpu::CpuBackend::detect(), limits).unwrap()
    }

    fn refused(wanted: &str, spoil: impl FnOnce(&mut Plan)) {
        let mut plan = plan();
        verify(&plan).unwrap();
        spoil(&mut plan);
        let error = verify(&plan).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }

    /// The first scratch buffer that lives through several groups, and one made meanwhile.
    fn overlapping(plan: &Plan) -> (usize, usize) {
        let scratch = |b: &super::super::Buffer| b.role == Role::Scratch;
        let long = plan.buffers.iter().position(|b| scratch(b) && b.live.1 > b.live.0 + 1).unwrap();
        let live = plan.buffers[long].live;
        let other = plan
            .buffers
            .iter()
            .position(|b| scratch(b) && b.live.0 > live.0 && b.live.0 < live.1)
            .unwrap();
        (long, other)
    }

    #[test]
    fn a_value_overwritten_too_early_is_found() {
        refused("after it is gone", |plan| {
            let (long, other) = overlapping(plan);
            plan.buffers[other].offset = plan.buffers[long].offset;
        });
    }

    #[test]
    fn an_output_over_an_input_is_found() {
        refused("over", |plan| {
            // The attention's output over the queries that it reads.
            let attend = plan.groups.iter().find_map(|g| match g.kind {
                GroupKind::Attend(id) => Some(id),
                _ => None,
            });
            let id = attend.unwrap();
            let q = plan.place(plan.graph.node(id).args[0]).unwrap().offset;
            let out = plan.buffers.iter().position(|b| b.value == id).unwrap();
            plan.buffers[out].offset = q;
        });
    }

    #[test]
    fn groups_out_of_order_are_found() {
        refused("before", |plan| plan.groups.swap(1, 2));
        refused("never runs", |plan| {
            plan.groups.pop();
        });
        refused("runs twice", |plan| {
            let last = plan.groups.last().cloned().unwrap();
            plan.groups.push(last);
        });
    }

    #[test]
    fn buffers_outside_their_memory_are_found() {
        refused("leaves its memory", |plan| plan.bytes.scratch -= ALIGN);
        refused("misaligned", |plan| plan.buffers[0].offset += 4);
        refused("too short", |plan| {
            let (long, _) = overlapping(plan);
            plan.buffers[long].bytes -= ALIGN;
        });
    }
}
