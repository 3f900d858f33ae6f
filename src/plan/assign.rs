//! An offset for every value that leaves its group.
//!
//! Values are placed in the order they are made. A value takes over the place of another when that
//! is safe (see [`heir`]), else the smallest gap that fits between the values alive with it, else
//! the end of the arena. Two values are alive together if any group needs both; the group that
//! reads one and makes the other needs both, since its workers do not run in step.

use super::live::Value;
use super::{Buffer, Group, GroupKind, Limits, Role, value_bytes};
use crate::graph::{DType, Graph, NodeId, Op};
use crate::{Error, Result};

/// Buffers for `values`: scratch, logits and sampled tokens.
pub(super) fn assign(
    graph: &Graph,
    groups: &[Group],
    values: &[Value],
    limits: &Limits,
    reuse: bool,
) -> Result<Vec<Buffer>> {
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut logits = 0u64;
    for value in values {
        let ty = graph.ty(value.id);
        let bytes = value_bytes(ty, limits)?;
        let outlives = value.dies == groups.len();
        let role = if outlives && ty.dtype == DType::F32 { Role::Logits } else { Role::Scratch };
        let mut in_place_of = None;
        let offset = if role == Role::Logits {
            let end = add(logits, bytes)?;
            std::mem::replace(&mut logits, end)
        } else if let Some(old) = reuse.then(|| heir(graph, groups, value, &buffers)).flatten() {
            in_place_of = Some(old.value);
            old.offset
        } else {
            gap(&buffers, value, bytes, reuse)?
        };
        let live = (value.born, value.dies);
        buffers.push(Buffer { value: value.id, role, offset, bytes, live, in_place_of });
    }
    Ok(buffers)
}

/// The buffer that `value` may be written over while its group still reads it.
///
/// Five conditions, all needed: the value is made by an elementwise op in an epilogue, so that an
/// element is read before the same worker writes it; the other side was made by an earlier group;
/// nothing reads it after this group; nothing else in this group reads it; and both have the same
/// type, so that the same element is in the same place.
fn heir<'a>(
    graph: &Graph,
    groups: &[Group],
    value: &Value,
    buffers: &'a [Buffer],
) -> Option<&'a Buffer> {
    let GroupKind::Linear { epilogue, .. } = &groups[value.born].kind else { return None };
    let node = graph.node(value.id);
    if !epilogue.contains(&value.id) || !matches!(node.op, Op::Binary(_)) {
        return None;
    }
    node.args.iter().find_map(|&arg| {
        // By id, not by origin: a view of another shape would not do.
        let old = buffers.iter().find(|b| b.value == arg && b.role == Role::Scratch)?;
        let readers = groups[value.born].nodes().filter(|&n| reads(graph, n, arg)).count();
        let other_sides = node.args.iter().filter(|&&a| a == arg).count();
        let fits = old.live.0 < value.born
            && old.live.1 == value.born
            && readers == 1
            && other_sides == 1
            && graph.ty(arg) == graph.ty(value.id);
        // Nor may anyone have taken it over already.
        let taken = buffers.iter().any(|b| b.in_place_of == Some(arg));
        (fits && !taken).then_some(old)
    })
}

fn reads(graph: &Graph, node: NodeId, value: NodeId) -> bool {
    graph.node(node).args.iter().any(|&a| super::origin(graph, a) == value)
}

/// The smallest gap of at least `bytes` among the buffers alive together with `value`.
fn gap(buffers: &[Buffer], value: &Value, bytes: u64, reuse: bool) -> Result<u64> {
    let overlaps = |b: &&Buffer| !reuse || (b.live.0 <= value.dies && value.born <= b.live.1);
    let scratch = buffers.iter().filter(|b| b.role == Role::Scratch);
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for b in scratch.filter(overlaps) {
        taken.push((b.offset, add(b.offset, b.bytes)?));
    }
    taken.sort_unstable();
    let (mut best, mut end): (Option<(u64, u64)>, u64) = (None, 0);
    for (start, stop) in taken {
        let room = start.saturating_sub(end);
        if room >= bytes && best.is_none_or(|(size, _)| room < size) {
            best = Some((room, end));
        }
        end = end.max(stop);
    }
    Ok(best.map_or(end, |(_, offset)| offset))
}

fn add(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| Error::Plan("the scratch memory is too large".to_string()))
}
