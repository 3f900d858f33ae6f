//! Attention of two to 32 rows as a launch that also makes their heads, if all that becomes of them is a bias, a norm,
//! a rotation and the write to the cache.

use super::attend::{many_shared, many_shares};
use super::attend_one::pairs;
use super::{Chip, Lowering, count, unplaced};
use crate::Result;
use crate::cuda::abi::{AttendFew, Heads};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Lead, NodeId};

/// Rows of (row, query head) of a tile; warps.
const TILE: usize = 16;
const TEAM: usize = 4;

/// Shared memory of a block: heads that turn, keys and values of the step, and a tile.
fn shared(pairs: u32, rows: usize, buffers: usize) -> usize {
    let wide = 64 * pairs as usize;
    TEAM * 2 * wide * 4 + rows * 2 * wide * 2 + many_shared(pairs, TILE, buffers)
}

/// Chunks that can be on their way: as many as leave room for another block.
fn buffers(chip: &Chip, pairs: u32, rows: usize) -> Option<usize> {
    (1..=TEAM).rev().find(|&b| shared(pairs, rows, b) <= chip.half_shared())
}

impl Lowering<'_> {
    /// Whether attention makes its heads, if it can: of a few rows, on tensor cores, of heads that are not too wide.
    pub(super) fn attends_few(&self, id: NodeId) -> bool {
        let rows = self.bases.few > 0 && self.graph.node(id).ty.lead == Lead::Rows;
        let fits = |dim| pairs(dim) <= 2 && self.on_tensor_cores(id, dim);
        rows && self.shape_of(id).is_some_and(|(_, _, dim)| fits(dim))
    }

    pub(super) fn attend_few(&mut self, id: NodeId, [q, k, v]: [Heads; 3]) -> Result<()> {
        let (_, group, dim) = self.shape_of(id).ok_or_else(|| unplaced(id))?;
        let share = many_shares(group, TILE).ok_or_else(|| unplaced(id))?;
        let mut many = self.attended(id, share)?;
        let (pairs, rows) = (pairs(dim), self.bases.few);
        let buffers = buffers(self.chip, pairs, rows).ok_or_else(|| unplaced(id))?;
        (many.buffers, many.room) = (count(buffers)?, count(rows)?);
        let p = Parameters::AttendFew(Box::new(AttendFew { many, q, k, v }));
        let (grid, shared) = ((many.kv_heads, 1), shared(pairs, rows, buffers));
        self.push(Kernel::AttendFew(pairs), grid, 32 * TEAM as u32, shared, Lead::Rows, p)
    }
}
