//! Sampling as two launches: blocks scan the logits, one picks.

use super::{Chip, Lowering, count};
use crate::Result;
use crate::cuda::abi::Sample;
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Lead, NodeId};
use crate::plan::origin;

/// Blocks of a scan that a multiprocessor holds.
const BESIDE: usize = 8;

/// Blocks that scan a row of logits, of so many rows: one on every multiprocessor, but no more than are on the chip
/// at once.
pub(super) fn scan_blocks(chip: &Chip, vocabulary: usize, rows: usize) -> usize {
    let processors = chip.processors.max(1) as usize;
    let most = (BESIDE * processors).checked_div(rows).unwrap_or(processors);
    vocabulary.div_ceil(256).min(most.min(processors)).max(1)
}

impl Lowering<'_> {
    pub(super) fn sample(&mut self, id: NodeId) -> Result<()> {
        let logits = origin(self.graph, self.arg(id, 0)?);
        let rows = self.value(logits)?;
        let vocabulary = self.graph.ty(logits).width();
        let blocks = scan_blocks(self.chip, vocabulary, self.most(Lead::Outs));
        let p = Sample {
            logits: rows.at,
            adjusted: self.bases.adjusted,
            best: self.bases.best,
            tokens: self.bases.tokens,
            positions: self.bases.positions,
            slots: self.bases.slots,
            outs: self.bases.outs,
            history: self.bases.history,
            sampled: self.bases.sampled,
            sampler: self.bases.sampler,
            result: self.bases.result,
            arrived: self.bases.arrived,
            stride: rows.n,
            vocabulary: count(vocabulary)?,
            rows: 1,
            blocks: count(blocks)?,
            context: count(self.plan.limits().context)?,
            advance: 1,
        };
        let seen = vocabulary.div_ceil(blocks).div_ceil(32) * 4;
        let grid = (count(blocks)?, 1);
        self.push(Kernel::Scan, grid, 256, seen, Lead::Outs, Parameters::Sample(p))?;
        self.push(Kernel::Pick, (1, 1), 1024, 0, Lead::Outs, Parameters::Sample(p))
    }
}
