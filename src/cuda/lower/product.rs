//! One launch of a product: of one row the streaming kernel, of more rows the tensor-core one.

use super::{Chip, Lowering, count};
use crate::cuda::abi::*;
use crate::cuda::layout::{Layout, Product};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::Lead;
use crate::{Error, Result};

/// Spans of a page of each part, stages and bytes of a stage, for parts that share a ring, of which
/// a block has so many.
pub(super) fn pages(
    chip: &Chip,
    parts: &[Layout],
    rings: usize,
) -> Option<(Vec<usize>, usize, usize)> {
    let row = parts.iter().map(|l| match l.product() {
        Some(Product::F32) => l.units * 16,
        Some(Product::F16 | Product::Bf16) => l.units * 32,
        _ => l.units * 80,
    });
    let room = chip.stream_shared().checked_sub(row.max()?)?;
    let least = if chip.hopper { 2 } else { PLAIN_STAGES };
    let mut best: Option<(Vec<usize>, usize, usize)> = None;
    // A page of about 4 KiB is long enough for the memory, and many of them keep it busy.
    for target in [4608, 3072, 2304, 1536, 1] {
        let page: Vec<usize> =
            parts.iter().map(|l| (target / l.span_bytes).clamp(1, l.spans)).collect();
        let bytes = parts.iter().zip(&page).map(|(l, &n)| (n * l.span_bytes).min(l.panel_bytes));
        let bytes = bytes.max()?.next_multiple_of(128);
        let fit = room / (rings * bytes);
        let stages = if chip.hopper { fit.min(MAX_STAGES) } else { PLAIN_STAGES.min(fit) };
        let better = best.as_ref().is_none_or(|(_, s, b)| stages * bytes > s * b + s * b / 8);
        if stages >= least && better {
            best = Some((page, stages, bytes));
        }
    }
    best
}

/// Columns of a product: the kernel, the weights and where they are, and what becomes of them.
pub(super) type Multiplied = (Product, Vec<(Layout, u64)>, Epilogue);

impl Lowering<'_> {
    /// One launch of a product.
    pub(super) fn product(
        &mut self,
        lead: Lead,
        one: bool,
        cols: usize,
        row: Operand,
        norm: (u64, f32),
        domains: &[Multiplied],
    ) -> Result<()> {
        let Some((product, ..)) = domains.first() else { return Ok(()) };
        let layouts: Vec<Layout> = domains.iter().flat_map(|d| d.1.iter().map(|p| p.0)).collect();
        let panels: usize = domains.iter().map(|d| d.1.first().map_or(0, |p| p.0.panels)).sum();
        // Where a block has fewer panels than warps, several warps share one.
        let grid = panels.clamp(1, self.chip.processors.max(1) as usize);
        let per_block = panels.div_ceil(grid);
        let most = layouts.iter().map(|l| l.spans).min().unwrap_or(1);
        let fits = |s: &usize| per_block * s <= WARPS && *s <= most;
        let slices = [8usize, 4, 2].into_iter().find(fits).unwrap_or(1);
        let rings = (per_block * slices).min(WARPS);
        let (page, stages, stage_bytes) = pages(self.chip, &layouts, rings)
            .ok_or_else(|| Error::Plan("its rows are too wide".to_string()))?;
        let mut part = [Matrix::default(); 2 * MAX_DOMAINS];
        let mut domain = [Domain::default(); MAX_DOMAINS];
        let mut first = [0; MAX_DOMAINS + 1];
        let (mut parts, mut end) = (0, 0);
        for (i, (_, matrices, epilogue)) in domains.iter().enumerate() {
            let d = &mut domain[i];
            d.parts = count(matrices.len())?;
            d.epilogue = *epilogue;
            for (j, (layout, at)) in matrices.iter().enumerate() {
                part[parts] = layout.matrix(*at);
                (d.part[j], d.page[j]) = (count(parts)?, count(page[parts])?);
                parts += 1;
            }
            let outputs = matrices.first().map_or(0, |m| m.0.rows);
            let step = if one { PANEL } else { TILE_N / matrices.len() };
            first[i] = end;
            end += count(outputs.div_ceil(step))?;
        }
        for f in &mut first[domains.len()..] {
            *f = end;
        }
        let domains = count(domains.len())?;
        if one {
            let row_bytes = match product {
                Product::F32 => part[0].units as usize * 16,
                Product::F16 | Product::Bf16 => part[0].units as usize * 32,
                _ => part[0].units as usize * 80,
            };
            let shared = rings * stages * stage_bytes + row_bytes;
            let p = Gemv {
                x: row.at,
                norm: norm.0,
                eps: norm.1,
                cols: count(cols)?,
                domains,
                stages: count(stages)?,
                stage_bytes: count(stage_bytes)?,
                share: slices.ilog2(),
                rings: count(rings)?,
                unused: 0,
                first,
                domain,
                part,
            };
            let grid = (count(grid)?, 1);
            let p = Parameters::Gemv(Box::new(p));
            return self.push(Kernel::Gemv(*product), grid, 256, shared, lead, p);
        }
        let p = Gemm {
            high: self.bases.high,
            low: self.bases.low,
            rows: 0,
            stride: count(cols.next_multiple_of(TILE_K))?,
            domains,
            unused: 0,
            first,
            domain,
            part,
        };
        let p = Parameters::Gemm(Box::new(p));
        self.push(Kernel::Gemm(*product), (1, end), 256, gemm_shared(*product), lead, p)
    }
}

/// Shared memory of a product with many rows.
pub(in crate::cuda) fn gemm_shared(product: Product) -> usize {
    let (line, planes) = (40 * 2, if product == Product::Bf16 { 1 } else { 2 });
    3 * (2 * TILE_M * line + planes * TILE_N * line)
}
