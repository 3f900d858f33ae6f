//! Attention of a single row as a launch that also makes the row's own heads, if all that becomes of
//! them is a bias, a norm, a rotation and the write to the cache.

use super::columns::Columns;
use super::{Chip, Lowering, count, unplaced};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::program::{Kernel, Parameters, RopeTable};
use crate::graph::{BinaryKind, DType, NodeId, Op, RopeLayout, op};
use crate::plan::{GroupKind, origin};

/// Query heads of a key head that a block of attention of one row takes.
fn taken(group: usize) -> usize {
    group.div_ceil(group.div_ceil(QUERIES).max(1))
}

/// Positions of a chunk, and how many chunks are on their way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    positions: usize,
    buffers: usize,
}

/// A position for each row of a warp's tile; fewer where heads are wide.
const CHUNKS: [(usize, usize); 4] =
    [(16 * WARPS, 2), (16 * WARPS, 1), (8 * WARPS, 1), (4 * WARPS, 1)];

/// Shared memory of such a block: tiles of keys and values, then the sums of all warps.
fn one_shared(group: usize, dim: usize, chunks: Chunks) -> usize {
    room(taken(group), pairs(dim) as usize, chunks)
}

fn room(heads: usize, pairs: usize, chunks: Chunks) -> usize {
    // Sums take the place of tiles that all have read.
    let sums = heads * (WARPS * (64 * pairs + 4) + 4) * 4;
    sums.max(chunks.buffers * tile(pairs, chunks.positions))
}

/// Bytes of a tile: a key and a value for each position.
fn tile(pairs: usize, positions: usize) -> usize {
    positions * (128 * pairs + 8) * 2
}

/// What attention takes at most of a ring through which weights come as well, in pages: two chunks at a time where heads
/// are narrow. A second chunk that is asked for late is waited for.
pub(super) fn one_room(p: &mut AttendOne) -> usize {
    const MOST: usize = 80 << 10;
    let (heads, pairs) = (p.taken as usize, pairs(p.dim as usize) as usize);
    let all = CHUNKS.map(|(positions, buffers)| Chunks { positions, buffers });
    let fits = |c: &&Chunks| room(heads, pairs, **c) <= MOST;
    let least = &all[CHUNKS.len() - 1];
    let chunks = all.iter().find(fits).unwrap_or(least);
    (p.chunk, p.buffers) = (chunks.positions as u32, chunks.buffers as u32);
    room(heads, pairs, *chunks) + attend_page(pairs)
}

/// Pairs of elements of a head that a lane makes: the kernels are made for 1, 2 and 4.
pub(super) fn pairs(dim: usize) -> u32 {
    if dim <= 64 {
        1
    } else if dim <= 128 {
        2
    } else {
        4
    }
}

/// Runs of chunks that the cache of a head is dealt out in.
fn runs(chip: &Chip, kv: usize, group: usize) -> usize {
    let heads = kv * group.div_ceil(taken(group));
    (chip.processors as usize / heads.max(1)).clamp(1, MOST_RUNS)
}

/// Bytes of what blocks leave of each run, and of the counts of those that are done.
pub(super) fn one_work(chip: &Chip, kv: usize, group: usize, dim: usize) -> Option<(usize, usize)> {
    let each = kv.checked_mul(group)?.checked_mul(dim.checked_add(2)?)?;
    let partial = each.checked_mul(runs(chip, kv, group))?.checked_mul(4)?;
    Some((partial, kv.checked_mul(group)?.checked_mul(4)?))
}

impl Lowering<'_> {
    pub(super) fn attend_one(&mut self, id: NodeId, chunks: Chunks) -> Result<()> {
        let heads_made = self.heads.take();
        let node = self.graph.node(id);
        let Op::Attend(op) = &node.op else { return Err(unplaced(id)) };
        let (keys, values) = self.caches(id)?;
        let (kv, group, dim) = self.shape_of(id).ok_or_else(|| unplaced(id))?;
        let (q, out) = (self.value(origin(self.graph, self.arg(id, 0)?))?, self.value(id)?);
        let done = Heads { raw: q.at, ..Heads::default() };
        let [q, k, v] = heads_made.unwrap_or([done, Heads::default(), Heads::default()]);
        let (taken, runs) = (taken(group), runs(self.chip, kv, group));
        let parts = group.div_ceil(taken);
        let context = self.plan.limits().context;
        let p = AttendOne {
            q,
            k,
            v,
            out: out.at,
            keys,
            values,
            positions: self.bases.positions,
            slots: self.bases.slots,
            sinks: node.args.get(5).map_or(Ok(0), |&w| self.address(w))?,
            partial: self.bases.partial,
            arrived: self.bases.arrived,
            kv_heads: count(kv)?,
            group: count(group)?,
            taken: count(taken)?,
            parts: count(parts)?,
            dim: count(dim)?,
            context: count(context)?,
            // A window past the context sees everything.
            window: op.window.map_or(Ok(0), |w| count(w.min(context)))?,
            runs: count(runs)?,
            chunk: count(chunks.positions)?,
            buffers: count(chunks.buffers)?,
            scale: op.scale,
            softcap: op.softcap.unwrap_or(0.0),
        };
        let grid = (count(kv * parts * runs)?, 1);
        let shared = one_shared(group, dim, chunks);
        let (kernel, p) = (Kernel::AttendOne(pairs(dim)), Parameters::AttendOne(Box::new(p)));
        self.push(kernel, grid, 256, shared, node.ty.lead, p)
    }

    /// Key heads of an attention, query heads of each, and their width.
    pub(super) fn shape_of(&self, id: NodeId) -> Option<(usize, usize, usize)> {
        let node = self.graph.node(id);
        let keys = self.graph.ty(*node.args.get(1)?);
        let (&[heads, dim], &[kv, _]) = (node.ty.dims.as_slice(), keys.dims.as_slice()) else {
            return None;
        };
        Some((kv, heads.checked_div(kv)?, dim))
    }

    /// Whether kernels on tensor cores serve it: heads that registers hold, of halves, without slopes.
    pub(super) fn on_tensor_cores(&self, id: NodeId, dim: usize) -> bool {
        let node = self.graph.node(id);
        let half = |&c: &NodeId| self.graph.ty(c).dtype == DType::F16;
        let halves = node.args.get(1..3).is_some_and(|caches| caches.iter().all(half));
        let slopes = matches!(&node.op, Op::Attend(op) if op.alibi.is_some());
        dim <= MOST_DIM && !slopes && halves
    }

    /// How a block goes through positions, if attention is of one row and this kernel's.
    pub(super) fn chunks(&self, id: NodeId) -> Option<Chunks> {
        let node = self.graph.node(id);
        let (_, group, dim) = self.shape_of(id)?;
        if self.most(node.ty.lead) != 1 || !self.on_tensor_cores(id, dim) {
            return None;
        }
        let all = CHUNKS.map(|(positions, buffers)| Chunks { positions, buffers });
        let room = self.chip.attend_shared();
        all.into_iter().find(|&chunks| one_shared(group, dim, chunks) <= room)
    }

    /// What becomes of the columns of a product, if the next group is the attention that they are
    /// made for, and it can do it.
    pub(super) fn heads_of(&self, made: &[(Columns, Vec<Operand>)]) -> Result<Option<[Heads; 3]>> {
        let next = self.plan.groups().get(self.group + 1);
        let Some(GroupKind::Attend(id)) = next.map(|g| &g.kind) else { return Ok(None) };
        let takes = self.chunks(*id).is_some() || self.attends_few(*id);
        let (Some((_, _, dim)), true, 3) = (self.shape_of(*id), takes, made.len()) else {
            return Ok(None);
        };
        let mut found = [None; 3];
        for (columns, raw) in made {
            let Some((heads, end)) = self.chain(columns, raw, dim)? else { return Ok(None) };
            let (q, k, v) = (self.arg(*id, 0)?, self.arg(*id, 1)?, self.arg(*id, 2)?);
            let args = [origin(self.graph, q), k, v];
            let Some(i) = args.iter().position(|&a| a == end) else { return Ok(None) };
            found[i] = Some(heads);
        }
        let [Some(q), Some(k), Some(v)] = found else { return Ok(None) };
        // A list of more rows adds up the squares of several heads in another order, and rows must have the same bits. Of what turns
        // a lane has four neighbours and those that belong to them.
        let alone = |h: &Heads| h.norm == 0 && h.turn.is_multiple_of(8);
        if self.bases.few > 0 && ![q, k, v].iter().all(alone) {
            return Ok(None);
        }
        Ok(Some([q, k, v]))
    }

    /// The steps from a product's columns to a cache, whose store is returned, or to a value that
    /// attention alone reads.
    fn chain(
        &self,
        columns: &Columns,
        raw: &[Operand],
        dim: usize,
    ) -> Result<Option<(Heads, NodeId)>> {
        // Columns of one part.
        let ([raw], [values]) = (raw, columns.values.as_slice()) else { return Ok(None) };
        let mut heads = Heads { raw: raw.at, stride: raw.n, ..Heads::default() };
        let Some(&(mut now)) = values.last() else { return Ok(None) };
        for value in values {
            if columns.nodes.is_empty() || self.put(*value)?.is_some() {
                return Ok(None);
            }
        }
        for (i, &id) in columns.nodes.iter().enumerate() {
            let node = self.graph.node(id);
            let is_now = |i: usize| node.args.get(i).is_some_and(|&a| origin(self.graph, a) == now);
            match &node.op {
                Op::Binary(b)
                    if b.kind == BinaryKind::Add && heads.norm == 0 && heads.turns == 0 =>
                {
                    let other = if is_now(0) { self.arg(id, 1)? } else { self.arg(id, 0)? };
                    // A bias of rows of heads would lie in panels.
                    let vector = matches!(self.graph.node(other).op, Op::Weight(_))
                        && self.graph.ty(other).dims.len() == 1;
                    if !(vector && heads.bias == 0 && (is_now(0) || is_now(1))) {
                        return Ok(None);
                    }
                    heads.bias = self.address(other)?;
                }
                Op::RmsNorm(op)
                    if is_now(0) && node.args.len() == 2 && heads.norm == 0 && heads.turns == 0 =>
                {
                    let weight = self.arg(id, 1)?;
                    if node.ty.last() != dim || self.graph.ty(weight).dims.as_slice() != [dim] {
                        return Ok(None);
                    }
                    (heads.norm, heads.eps) = (self.address(weight)?, op.eps);
                }
                Op::Rope(op) if is_now(0) && heads.turns == 0 && node.ty.last() == dim => {
                    heads.turns = self.turns(id, op)?;
                    heads.turn = count(op.dim)?;
                    heads.halves = u32::from(op.layout == RopeLayout::Half);
                }
                Op::Store(_) if i + 1 == columns.nodes.len() => {
                    let stores = origin(self.graph, self.arg(id, 1)?) == now;
                    return Ok(stores.then_some((heads, id)));
                }
                _ => return Ok(None),
            }
            now = id;
            let ends = i + 1 == columns.nodes.len();
            if self.put(id)?.is_some() && !(ends && self.read_once(id)) {
                return Ok(None);
            }
        }
        Ok(Some((heads, now)))
    }

    /// Whether one node alone reads this value.
    pub(super) fn read_once(&self, id: NodeId) -> bool {
        let readers = self.graph.nodes().iter().filter(|n| {
            !matches!(n.op, Op::Reshape(_)) && n.args.iter().any(|&a| origin(self.graph, a) == id)
        });
        readers.count() == 1
    }

    /// The table of a rotation.
    pub(super) fn turns(&self, id: NodeId, rope: &op::Rope) -> Result<u64> {
        let factors = self.graph.node(id).args.get(2).copied();
        let same = |t: &&RopeTable| t.rope == *rope && t.factors.as_ref().map(|f| f.0) == factors;
        let table = self.ropes.iter().find(same).ok_or_else(|| unplaced(id))?;
        Ok(self.bases.tables + table.offset as u64)
    }
}
