//! Attention as a launch: of many rows on tensor cores where it can be; else a block a row, and of a single row
//! that `attend_one` does not take a block a chunk.

use super::attend_one::pairs;
use super::{Chip, Lowering, count, unplaced};
use crate::cuda::abi::{Attend, CHUNK, MANY, OWN};
use crate::cuda::driver::Shape;
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

/// How many blocks share a key head on tensor cores, so that each has the heads of a row at once in a tile of
/// so many rows.
pub(super) fn many_shares(group: usize, tile: usize) -> Option<usize> {
    (1..=group).find(|&n| group.is_multiple_of(n) && group / n <= tile)
}

/// Shared memory of a block of attention with tiles of so many rows: queries, then chunks. Where few rows are, sums
/// of chunks lie behind their queries.
pub(super) fn many_shared(pairs: u32, tile: usize, buffers: usize) -> usize {
    let wide = 64 * pairs as usize;
    let query = 2 * wide + 8;
    let narrow = tile.min(16);
    let parts = buffers * (wide / 8 + 1) * 2 * (narrow / 8) * 32 * 4;
    (tile * query * 2).max(narrow * query * 2 + parts) + buffers * 2 * CHUNK * (wide + 8) * 2
}

/// Chunks that can be on their way: as many as leave room for another block, or else two or one.
fn many_room(chip: &Chip, pairs: u32) -> Option<usize> {
    let fits = |room: usize| move |&b: &usize| many_shared(pairs, MANY, b) <= room;
    let half = chip.half_shared();
    [4, 2].into_iter().find(fits(half)).or([2, 1].into_iter().find(fits(chip.row_shared())))
}

/// Many rows fill the chip: more blocks are better than more chunks on their way.
pub(in crate::cuda) fn set_buffers(p: &mut Attend, shape: &mut Shape, kernel: Kernel, rows: u32) {
    let Kernel::AttendMany(pairs) = kernel else { return };
    p.rows = rows;
    p.buffers = if rows > MANY as u32 { p.room.min(2) } else { p.room };
    shape.shared = many_shared(pairs, MANY, p.buffers as usize) as u32;
}

impl Lowering<'_> {
    pub(super) fn attend(&mut self, id: NodeId) -> Result<()> {
        if let Some(chunks) = self.chunks(id) {
            return self.attend_one(id, chunks);
        }
        if let Some(heads) = self.heads.take() {
            return self.attend_few(id, heads);
        }
        let node = self.graph.node(id);
        let (kv, group, dim) = self.shape_of(id).ok_or_else(|| unplaced(id))?;
        let split = self.most(node.ty.lead) == 1;
        let room = many_room(self.chip, pairs(dim));
        let room = room.filter(|_| !split && self.on_tensor_cores(id, dim));
        let share = match room {
            Some(_) => many_shares(group, MANY),
            None => shares(self.chip, group, dim),
        };
        let share = share.ok_or_else(|| unplaced(id))?;
        let p = Attend {
            split: u32::from(split),
            room: count(room.unwrap_or(0))?,
            ..self.attended(id, share)?
        };
        let kv = kv * share;
        if let Some(room) = room {
            let (kernel, shared) =
                (Kernel::AttendMany(pairs(dim)), many_shared(pairs(dim), MANY, room));
            let grid = (count(kv)?, 1);
            return self.push(kernel, grid, 128, shared, node.ty.lead, Parameters::Attend(p));
        }
        let blocks = if split {
            count(kv * p.chunks as usize)?.clamp(1, (self.chip.processors * 2).max(1))
        } else {
            count(kv)?
        };
        let (grid, shared) = ((blocks, 1), attend_shared(group, dim));
        self.push(Kernel::Attend, grid, 256, shared, node.ty.lead, Parameters::Attend(p))
    }

    /// What attention of rows is given, if so many blocks share a key head.
    pub(super) fn attended(&self, id: NodeId, share: usize) -> Result<Attend> {
        let node = self.graph.node(id);
        let Op::Attend(op) = &node.op else { return Err(unplaced(id)) };
        let (keys, values) = self.caches(id)?;
        let (kv, group, dim) = self.shape_of(id).ok_or_else(|| unplaced(id))?;
        let (q, out) = (self.value(origin(self.graph, self.arg(id, 0)?))?, self.value(id)?);
        let context = self.plan.limits().context;
        Ok(Attend {
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
            heads: count(kv * group)?,
            kv_heads: count(kv * share)?,
            dim: count(dim)?,
            context: count(context)?,
            // A window past the context sees everything.
            window: op.window.map_or(Ok(0), |w| count(w.min(context)))?,
            chunks: count(context.div_ceil(CHUNK) + 1)?,
            scale: op.scale,
            softcap: op.softcap.unwrap_or(0.0),
            alibi: op.alibi.unwrap_or(0.0),
            share: count(share)?,
            ..Attend::default()
        })
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
