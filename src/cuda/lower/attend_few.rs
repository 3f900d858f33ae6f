//! Attention of two to 32 rows as a launch that also makes their heads, if all that becomes of them is a bias, a norm,
//! a rotation and the write to the cache.

use super::attend::{many_shared, many_shares};
use super::attend_one::pairs;
use super::{Chip, Lowering, count, unplaced};
use crate::Result;
use crate::cuda::abi::{AttendFew, Heads};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Lead, NodeId};

/// Rows of (row, query head) of a tile.
const TILE: usize = 8;

/// Shared memory of a block: keys and values of the step, and a tile.
fn shared(pairs: u32, rows: usize, buffers: usize) -> usize {
    let wide = 64 * pairs as usize;
    rows * 2 * wide * 2 + many_shared(pairs, TILE, buffers)
}

/// Warps of a block, and chunks that can be on their way, one for each of them at most: as many as fit, or leave room for another
/// block if there are more than multiprocessors.
fn team(chip: &Chip, pairs: u32, rows: usize, blocks: u32) -> Option<(u32, usize)> {
    let (warps, room) = match blocks > chip.processors {
        true => (4, chip.half_shared()),
        false => (8, chip.row_shared()),
    };
    let fits = |&b: &usize| shared(pairs, rows, b) <= room;
    Some((warps, (1..=warps as usize).rev().find(fits)?))
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
        let blocks = many.kv_heads.saturating_mul(count(rows)?);
        let (warps, buffers) = team(self.chip, pairs, rows, blocks).ok_or_else(|| unplaced(id))?;
        (many.buffers, many.room) = (count(buffers)?, count(rows)?);
        let p = Parameters::AttendFew(Box::new(AttendFew { many, q, k, v }));
        let (grid, shared) = ((many.kv_heads, 1), shared(pairs, rows, buffers));
        self.push(Kernel::AttendFew(pairs, warps), grid, 32 * warps, shared, Lead::Rows, p)
    }
}
