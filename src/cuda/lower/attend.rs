//! Attention as a launch: that of a single row that `attend_one` does not take is split by chunk.

use super::{Chip, Lowering, count, unplaced};
use crate::cuda::abi::{Attend, CHUNK, OWN};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::op::CachePart;
use crate::graph::{NodeId, Op};
use crate::plan::origin;
use crate::{Error, Result};

/// How many blocks share a key head, so that each holds its part of the heads that read it: as few
/// as can be. None if no block holds a single one.
pub(super) fn shares(chip: &Chip, group: usize, dim: usize) -> Option<usize> {
    let fits = |heads: usize| {
        // Sums take the place of the keys.
        let sums = 4 * heads * dim <= 2 * CHUNK * (dim + 8);
        sums && heads * dim <= OWN && attend_shared(heads, dim) <= chip.row_shared()
    };
    (1..=group).find(|&n| group.is_multiple_of(n) && fits(group / n))
}

/// Shared memory of a block of attention.
fn attend_shared(group: usize, dim: usize) -> usize {
    let line = group.next_multiple_of(4);
    let floats = group * dim + line * CHUNK + 2 * line;
    floats * 4 + 2 * CHUNK * (dim + 8) * 2
}

impl Lowering<'_> {
    pub(super) fn attend(&mut self, id: NodeId) -> Result<()> {
        if let Some(chunks) = self.chunks(id) {
            return self.attend_one(id, chunks);
        }
        let node = self.graph.node(id);
        let Op::Attend(op) = &node.op else { return Err(unplaced(id)) };
        let (keys, values) = self.caches(id)?;
        let (&[heads, dim], &[kv, _]) =
            (node.ty.dims.as_slice(), self.graph.ty(self.arg(id, 1)?).dims.as_slice())
        else {
            return Err(unplaced(id));
        };
        let share = shares(self.chip, heads / kv, dim).ok_or_else(|| unplaced(id))?;
        let kv = kv * share;
        let (q, out) = (self.value(origin(self.graph, self.arg(id, 0)?))?, self.value(id)?);
        let context = self.plan.limits().context;
        let split = self.most(node.ty.lead) == 1;
        let chunks = context.div_ceil(CHUNK) + 1;
        let p = Attend {
            q: q.at,
            out: out.at,
            keys,
            values,
            key_scales: self.scales(origin(self.graph, self.arg(id, 1)?))?,
            value_scales: self.scales(origin(self.graph, self.arg(id, 2)?))?,
            positions: self.bases.positions,
            slots: self.bases.slots,
            partial: self.bases.partial,
            arrived: self.bases.arrived,
            sinks: node.args.get(5).map_or(Ok(0), |&w| self.address(w))?,
            q_stride: q.n,
            out_stride: out.n,
            heads: count(heads)?,
            kv_heads: count(kv)?,
            dim: count(dim)?,
            context: count(context)?,
            // A window past the context sees everything.
            window: op.window.map_or(Ok(0), |w| count(w.min(context)))?,
            chunks: count(chunks)?,
            scale: op.scale,
            softcap: op.softcap.unwrap_or(0.0),
            split: u32::from(split),
            alibi: op.alibi.unwrap_or(0.0),
            share: count(share)?,
            unused: 0,
        };
        let spread = self.chip.processors * 2;
        let grid =
            if split { (count(kv * chunks)?.min(spread).max(1), 1) } else { (count(kv)?, 1) };
        let shared = attend_shared(heads / kv, dim);
        self.push(Kernel::Attend, grid, 256, shared, node.ty.lead, Parameters::Attend(p))
    }

    /// Where the keys and the values are that attention reads.
    pub(super) fn caches(&self, id: NodeId) -> Result<(u64, u64)> {
        let cache = |i: usize| {
            let cache = origin(self.graph, self.arg(id, i)?);
            match &self.graph.node(cache).op {
                Op::Cache(c) => Ok((self.address(cache)?, c.part)),
                _ => Err(unplaced(cache)),
            }
        };
        match (cache(1)?, cache(2)?) {
            ((keys, CachePart::Key), (values, CachePart::Value)) => Ok((keys, values)),
            _ => Err(Error::Plan("attention wants a cache of keys and one of values".into())),
        }
    }
}
