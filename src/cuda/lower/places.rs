//! Where links of a chain leave their numbers: places of their own.

use super::Chip;
use super::columns::{domains, raw};
use super::several::may_be_apart;
use crate::cuda::abi::{SEVERAL, WARPS};
use crate::graph::{DType, Graph, NodeId, Op};
use crate::plan::{Group, GroupKind, Limits, live_values, origin};
use std::collections::{BTreeMap, BTreeSet};

/// Where values are that groups leave, from the start of a turn's memory.
#[derive(Default)]
pub(super) struct Places {
    values: BTreeMap<NodeId, u64>,
    /// Of products, by group, before what becomes of their columns.
    raw: BTreeMap<usize, u64>,
    /// Of products over several rows, by group: what stretches come to that blocks have.
    apart: BTreeMap<usize, u64>,
    /// Those of values that the next group multiplies, and nobody else reads.
    one_reader: BTreeSet<u64>,
    /// Of all, and links at most.
    pub bytes: usize,
    pub links: usize,
}

impl Places {
    /// None where there are no chains.
    pub(super) fn of(
        chip: &Chip,
        graph: &Graph,
        groups: &[Group],
        limits: &Limits,
    ) -> Option<Places> {
        let mut all = Places::default();
        if !chip.hopper {
            return Some(all);
        }
        let rows = if limits.rows == 1 { 1 } else { SEVERAL };
        let mut end = 0usize;
        let mut take = |width: usize| {
            let at = end;
            let bytes = width.checked_mul(rows)?.checked_mul(4)?;
            end = at.checked_add(bytes)?.checked_next_multiple_of(256)?;
            Some(at as u64)
        };
        let links = |group: &Group| match &group.kind {
            GroupKind::Linear { linear, .. } => match graph.node(*linear).op {
                Op::Experts(_) => 0,
                _ => graph.node(*linear).args.len(),
            },
            GroupKind::Attend(_) => 1,
            _ => 0,
        };
        for value in live_values(graph, groups) {
            let of_links = groups.get(value.born).is_some_and(|g| links(g) > 0);
            let ty = graph.ty(value.id);
            if of_links && value.dies < groups.len() && ty.dtype == DType::F32 {
                let at = take(ty.width())?;
                all.values.insert(value.id, at);
                if value.dies == value.born + 1
                    && groups.get(value.dies).is_some_and(|g| multiplies(graph, g, value.id))
                {
                    all.one_reader.insert(at);
                }
            }
        }
        for (i, group) in groups.iter().enumerate() {
            all.links = all.links.checked_add(links(group))?;
            if let GroupKind::Linear { linear, epilogue, .. } = &group.kind
                && links(group) > 0
            {
                let columns = raw(&domains(graph, *linear, epilogue)?);
                all.raw.insert(i, take(columns)?);
                if rows > 1 && may_be_apart(chip, graph, *linear) {
                    let outputs = graph.ty(*linear).width().next_multiple_of(16 * WARPS);
                    all.apart.insert(i, take(outputs.checked_mul(WARPS)?)?);
                }
            }
        }
        all.bytes = end;
        Some(all)
    }

    pub(super) fn value(&self, id: NodeId) -> Option<u64> {
        self.values.get(&id).copied()
    }

    /// Whether the value there is a row of the group behind it and nothing else.
    pub(super) fn has_one_reader(&self, at: u64) -> bool {
        self.one_reader.contains(&at)
    }

    pub(super) fn raw(&self, group: usize) -> Option<u64> {
        self.raw.get(&group).copied()
    }

    pub(super) fn apart(&self, group: usize) -> Option<u64> {
        self.apart.get(&group).copied()
    }
}

/// Whether the group multiplies the value, as it is and by one matrix, and does nothing else with it.
fn multiplies(graph: &Graph, group: &Group, value: NodeId) -> bool {
    let GroupKind::Linear { linear, .. } = &group.kind else { return false };
    let is_it = |&a: &NodeId| origin(graph, a) == value;
    let others = group.nodes().filter(|n| n != linear).flat_map(|n| &graph.node(n).args);
    let [row, _] = graph.node(*linear).args.as_slice() else { return false };
    is_it(row) && !others.into_iter().any(is_it)
}
