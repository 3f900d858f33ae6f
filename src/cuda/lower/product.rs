//! One launch of a product: of one row the streaming kernel, of more rows the tensor-core one.

use super::{Chip, Lowering, count, too_large};
use crate::cuda::abi::*;
use crate::cuda::driver::Shape;
use crate::cuda::layout::{Layout, Product};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Lead, NodeId};
use crate::{Error, Result};

/// How a product of one row goes through its weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    team: usize,
    batch: usize,
    passes: usize,
    wide: usize,
    stages: usize,
    stage_bytes: usize,
}

/// What pages of several panels are filled up to; in a chain, whose ring is larger and whose warps multiply more panels
/// at a time.
const PAGE: usize = 20 << 10;
const LINK_PAGE: usize = 40 << 10;

impl Stream {
    /// For parts that share a ring; `None` if two pages do not fit.
    pub(super) fn of(chip: &Chip, parts: &[Layout]) -> Option<Stream> {
        let parts: Vec<Matrix> = parts.iter().map(|l| l.matrix(0)).collect();
        Stream::with(chip.stream_shared(), &parts, false)
    }

    /// In so much memory, alone or as a link.
    fn with(room: usize, parts: &[Matrix], link: bool) -> Option<Stream> {
        let first = parts.first()?;
        let units = first.units as usize;
        // Units that a warp has at a time.
        let wide = match first.lo {
            0 => 32,
            // More bits would be more registers than there are.
            bits if link && units > 8 * WARPS && bits + first.hi <= 4 => 16,
            _ => 8,
        };
        let team = units.div_ceil(wide).next_power_of_two().min(WARPS);
        let passes = units.div_ceil(team * wide);
        let slice = |m: &Matrix| match passes {
            1 => m.panel_bytes as usize,
            _ => team * wide / SPAN * m.span_bytes as usize,
        };
        let slice = parts.iter().map(slice).max()?;
        let page = if link { LINK_PAGE.min(room / 256 * 128) } else { PAGE };
        let batch = (page / slice).clamp(1, 16);
        let stage_bytes = (batch * slice).next_multiple_of(128);
        let stages = (room / stage_bytes).min(MAX_STAGES);
        (stages >= 2).then_some(Stream { team, batch, passes, wide, stages, stage_bytes })
    }

    /// Tells a product of it.
    fn tell(&self, p: &mut Gemv) -> Result<()> {
        p.team = self.team.ilog2();
        (p.batch, p.passes) = (count(self.batch)?, count(self.passes)?);
        (p.wide, p.stages) = (count(self.wide)?, count(self.stages)?);
        p.stage_bytes = count(self.stage_bytes)?;
        Ok(())
    }
}

/// Adapts a product to a chain's ring; bytes of its pages.
pub(super) fn chained(p: &mut Gemv, room: usize) -> Option<usize> {
    let parts = p.part.iter().take_while(|m| m.data != 0 || m.rows != 0);
    let stream = Stream::with(room, &parts.copied().collect::<Vec<_>>(), true)?;
    stream.tell(p).ok()?;
    Some(stream.stage_bytes)
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
                d.part[j] = count(parts)?;
                parts += 1;
            }
            let alike = matrices
                .windows(2)
                .all(|m| Matrix { data: 0, ..m[0].0.matrix(0) } == m[1].0.matrix(0));
            d.alike = u32::from(alike);
            let outputs = matrices.first().map_or(0, |m| m.0.rows);
            let tile = if self.chip.hopper { WG_M } else { TILE_N };
            let step = if one { PANEL } else { tile / matrices.len() };
            first[i] = end;
            end += count(outputs.div_ceil(step))?;
        }
        for f in &mut first[domains.len()..] {
            *f = end;
        }
        let domains = count(domains.len())?;
        if one {
            let stream = Stream::of(self.chip, &layouts)
                .ok_or_else(|| Error::Plan("its rows are too wide".to_string()))?;
            let mut p = Gemv {
                x: row.at,
                norm: norm.0,
                eps: norm.1,
                cols: count(cols)?,
                domains,
                first,
                domain,
                part,
                ..Gemv::default()
            };
            stream.tell(&mut p)?;
            let grid = (end.clamp(1, self.chip.processors.max(1)), 1);
            let shared = stream.stages * stream.stage_bytes;
            let p = Parameters::Gemv(Box::new(p));
            return self.push(Kernel::Gemv(*product), grid, GEMV_THREADS, shared, lead, p);
        }
        let (cols, rows) = split_size(self.chip, cols, self.most(lead)).ok_or_else(too_large)?;
        let mut p = Gemm {
            high: self.bases.high,
            low: self.bases.low,
            stride: count(cols)?,
            domains,
            first,
            domain,
            part,
            ..Gemm::default()
        };
        if self.chip.hopper {
            p.groups = count(rows / WG_ROWS)?;
            p.wide = u32::from(layouts.iter().any(Layout::in_planes));
            (p.stretches, p.each) = (stretches(self.chip, end, cols), 1);
        }
        let p = Parameters::Gemm(Box::new(p));
        let shared = gemm_shared(self.chip, *product);
        self.push(Kernel::Gemm(*product), (1, end), 256, shared, lead, p)
    }

    /// How the rows before a product with many of them are split in two.
    pub(super) fn split(
        &self,
        lead: Lead,
        linear: NodeId,
        cols: usize,
        op: &mut RowOp,
    ) -> Result<()> {
        let (cols, rows) = split_size(self.chip, cols, self.most(lead)).ok_or_else(too_large)?;
        op.what = R_SPLIT;
        op.n0 = count(cols)?;
        (op.kind, op.aux, op.aux2) = (PLAIN_ROWS, self.bases.high, self.bases.low);
        if self.chip.hopper {
            op.n1 = count(rows / WG_ROWS)?;
            op.aux2 = self.bases.high + WG_BYTES as u64 / 2;
            op.kind = if self.wide(linear)? { WIDE_TILES } else { NARROW_TILES };
        }
        Ok(())
    }

    /// Whether a product's weights, or some of them, are planes.
    fn wide(&self, linear: NodeId) -> Result<bool> {
        for &weight in self.graph.node(linear).args.iter().skip(1) {
            if self.matrix(weight)?.0.in_planes() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Columns and rows that split rows take.
pub(super) fn split_size(chip: &Chip, cols: usize, rows: usize) -> Option<(usize, usize)> {
    if chip.hopper {
        let cols = cols.checked_next_multiple_of(WG_BLOCK)?;
        return Some((cols, rows.checked_next_multiple_of(WG_ROWS)?));
    }
    Some((cols.checked_next_multiple_of(TILE_K)?, rows))
}

/// Stretches that the inputs of a product of so many tiles are summed up in, so that blocks can share
/// them where tiles are few. It must not depend on the number of rows: it is the order of a row's sums.
fn stretches(chip: &Chip, tiles: u32, cols: usize) -> u32 {
    let fits = |s: &u32| {
        tiles.saturating_mul(*s) <= 2 * chip.processors && cols / WG_BLOCK >= 2 * *s as usize
    };
    [8, 2].into_iter().find(fits).unwrap_or(1)
}

/// Shapes a product of many rows for as many as it was given; which of its kernels that takes.
pub(in crate::cuda) fn set_tile(p: &mut Gemm, shape: &mut Shape) -> usize {
    if p.groups == 0 {
        shape.grid.0 = p.rows.div_ceil(TILE_M as u32);
        return 0;
    }
    let tile = match p.rows {
        0..=8 => 0,
        9..=32 => 1,
        // With so many rows halves are enough for the chip, and cost less to add up.
        129.. if p.stretches == 8 => 3,
        _ => 2,
    };
    let groups = TILE_GROUPS[tile];
    p.each = if tile == 3 { p.stretches / 2 } else { 1 };
    (p.tile, p.stages) = (TILE_ROWS[tile], TILE_STAGES[tile]);
    shape.cluster = p.stretches / p.each;
    shape.block = groups * 128;
    shape.grid = (p.rows.div_ceil(p.tile), p.first[MAX_DOMAINS].div_ceil(groups));
    shape.shared = tile_shared(tile);
    tile
}

/// Shared memory of a block: barriers, then the ring (at a multiple of 1,024), which sums and registers
/// of byte code replace.
fn tile_shared(tile: usize) -> u32 {
    let (rows, groups) = (TILE_ROWS[tile], TILE_GROUPS[tile]);
    let ring = TILE_STAGES[tile] * rows * (WG_BYTES / WG_ROWS) as u32;
    let sums = rows * (groups * WG_M as u32 + 4) * 4;
    let registers = MAX_REGISTERS as u32 * groups * 128 * 4;
    2048 + ring.max(sums + registers)
}

/// The most shared memory that a product with many rows takes.
pub(in crate::cuda) fn gemm_shared(chip: &Chip, product: Product) -> usize {
    if chip.hopper {
        return (0..TILES).map(tile_shared).max().unwrap_or(0) as usize;
    }
    let (line, planes) = (40 * 2, if product == Product::Bf16 { 1 } else { 2 });
    3 * (2 * TILE_M * line + planes * TILE_N * line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::CudaTarget;
    use crate::cuda::lower::launches;
    use crate::cuda::program::{Bases, Launch};
    use crate::graph::{Builder, MemoryWeights, arch};
    use crate::model::format::Format;
    use crate::plan::{Limits, Plan};

    /// Every product of the embedded model, shaped for so many rows.
    fn products(capability: u32, most: usize, rows: u32) -> Vec<(Gemm, Shape, usize)> {
        let graph = arch::build(&crate::embedded::tiny().unwrap()).unwrap();
        let target = CudaTarget::of(capability).unwrap();
        let limits = Limits { rows: most, outs: most, slots: 1, context: 512 };
        let plan = Plan::new(&graph, &target, limits).unwrap();
        let program = target.lower(&plan).unwrap();
        let mut all = Vec::new();
        for mut launch in launches(&target.0, &program, &Bases::default()).unwrap() {
            launch.set_rows(rows);
            if let Parameters::Gemm(p) = &launch.parameters {
                all.push((**p, launch.shape, launch.tile));
            }
        }
        all
    }

    #[test]
    fn tiles_cover_rows_and_outputs_and_fit_the_chip() {
        for rows in [1, 2, 8, 9, 32, 33, 128, 129, 512] {
            let all = products(90, 512, rows);
            assert!(!all.is_empty());
            for (p, shape, tile) in all {
                assert!(p.tile == TILE_ROWS[tile] && shape.grid.0 * p.tile >= rows);
                assert!((shape.grid.0 - 1) * p.tile < rows);
                // A block has one stretch, or half of all.
                assert_eq!(shape.cluster * p.each, p.stretches);
                assert!(p.each == 1 || shape.cluster == 2);
                // Tiles of rows lie within what they have room for.
                assert_eq!(p.groups, 512 / 8);
                assert!(shape.grid.1 * (shape.block / 128) >= p.first[MAX_DOMAINS]);
                // Two blocks and their system share fit a multiprocessor.
                assert!(2 * (shape.shared + 1024) <= 228 << 10, "{} bytes", shape.shared);
                for (d, outputs) in p.domain.iter().zip(p.first.windows(2)) {
                    let columns = WG_M as u32 / d.parts.max(1);
                    let rows = p.part[d.part[0] as usize].rows;
                    assert!(
                        outputs[0] == outputs[1] || (outputs[1] - outputs[0]) * columns >= rows
                    );
                }
            }
        }
    }

    #[test]
    fn what_decides_the_order_of_sums_does_not_depend_on_rows() {
        let order = |most, rows| {
            let all = products(90, most, rows).into_iter();
            all.map(|(p, ..)| (p.stretches, p.stride, p.first, p.wide)).collect::<Vec<_>>()
        };
        let want = order(512, 512);
        for (most, rows) in [(512, 2), (512, 33), (2, 2), (32, 9), (128, 128)] {
            assert_eq!(order(most, rows), want, "{rows} rows of {most}");
        }
    }

    /// The launches of one product of 2048 inputs and outputs.
    fn square(format: Format, rows: usize) -> Vec<Launch> {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, 2048], &[0.0; 4 * 2048]).unwrap();
        let bytes = vec![0; format.row_bytes(2048).unwrap() * 2048];
        w.insert_bytes("w.weight", format, &[2048, 2048], bytes).unwrap();
        let mut b = Builder::new(&w);
        let x = b.embed("x").unwrap();
        let y = b.linear(x, "w").unwrap();
        b.output(y);
        let target = CudaTarget::of(90).unwrap();
        let limits = Limits { rows: 512, outs: 1, slots: 1, context: 512 };
        let plan = Plan::new(&b.finish(), &target, limits).unwrap();
        let program = target.lower(&plan).unwrap();
        let mut all = launches(&target.0, &program, &Bases::default()).unwrap();
        all.iter_mut().for_each(|l| l.set_rows(rows as u32));
        all
    }

    #[test]
    fn a_link_goes_through_long_rows_in_fewer_passes() {
        let stream = |format, cols, link| {
            let parts = [Layout::of(format, 2048, cols).unwrap().matrix(0)];
            let s = Stream::with(120 << 10, &parts, link).unwrap();
            assert!(s.stages >= 2 && s.stages * s.stage_bytes <= 120 << 10);
            assert!(s.passes * s.team * s.wide >= parts[0].units as usize);
            (s.wide, s.team, s.passes, s.batch)
        };
        assert_eq!(stream(Format::Q4_0, 8192, false), (8, 8, 4, 4));
        assert_eq!(stream(Format::Q4_0, 8192, true), (16, 8, 2, 4));
        assert_eq!(stream(Format::Q4_0, 2048, true), (8, 8, 1, 8));
        assert_eq!(stream(Format::Q8_0, 8192, true), (8, 8, 4, 4));
        assert_eq!(stream(Format::BF16, 8192, true), (32, 8, 4, 2));
    }

    #[test]
    fn rows_are_split_as_the_product_reads_them() {
        for (format, kind) in [(Format::BF16, NARROW_TILES), (Format::Q4_0, WIDE_TILES)] {
            let all = square(format, 100);
            let split = all.iter().find_map(|l| match &l.parameters {
                Parameters::Rows(list) => list.op.iter().find(|op| op.what == R_SPLIT),
                _ => None,
            });
            let gemm = all.iter().find_map(|l| match &l.parameters {
                Parameters::Gemm(p) => Some(p),
                _ => None,
            });
            let (split, gemm) = (split.unwrap(), gemm.unwrap());
            assert_eq!((split.kind, gemm.wide), (kind, u32::from(kind == WIDE_TILES)));
            assert_eq!((split.n0, split.n1, split.aux), (gemm.stride, gemm.groups, gemm.high));
            assert_eq!(split.aux2, split.aux + 1024);
        }
    }

    #[test]
    fn with_many_rows_two_blocks_have_half_of_the_stretches_each() {
        for (rows, tile, cluster, each) in
            [(8, 0, 8, 1), (32, 1, 8, 1), (128, 2, 8, 1), (129, 3, 2, 4), (512, 3, 2, 4)]
        {
            let all = square(Format::BF16, rows);
            let launch = all.iter().find(|l| matches!(l.kernel, Kernel::Gemm(_))).unwrap();
            let Parameters::Gemm(p) = &launch.parameters else { continue };
            assert_eq!((launch.tile, launch.shape.cluster, p.each), (tile, cluster, each));
            assert_eq!((p.stretches, p.tile), (8, TILE_ROWS[tile]));
        }
    }

    #[test]
    fn before_sm_90_there_are_neither_clusters_nor_tiles_in_memory() {
        for capability in [80, 86, 89] {
            for (p, shape, tile) in products(capability, 512, 100) {
                assert_eq!((p.groups, p.tile, shape.cluster, tile), (0, 0, 1, 0));
                assert_eq!((shape.grid.0, shape.block), (2, 256));
            }
        }
    }

    #[test]
    fn inputs_are_shared_where_tiles_are_few() {
        let chip = CudaTarget::of(90).unwrap().0;
        let of = |outputs: u32, cols| stretches(&chip, outputs.div_ceil(64), cols);
        assert_eq!((of(2048, 2048), of(2048, 8192), of(3072, 2048)), (8, 8, 2));
        // Neither where the chip is full, nor where a share would be next to nothing.
        assert_eq!((of(16384, 2048), of(2048, 256)), (1, 1));
        // No stretch is empty.
        assert_eq!((of(576, 576), of(576, 1536)), (2, 2));
    }
}
