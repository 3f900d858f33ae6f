//! One launch of a product: of one row the streaming kernel, of more rows the tensor-core one.

use super::{Chip, Lowering, count, too_large};
use crate::cuda::abi::*;
use crate::cuda::driver::Shape;
use crate::cuda::layout::{Layout, Product};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Lead, NodeId};
use crate::plan::origin;
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
            high: self.split_at,
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

    /// Where the rows before a product with many of them go, split in two: on sm_90 places take turns.
    fn tiles(&mut self, lead: Lead, linear: NodeId, cols: usize) -> Result<SplitTiles> {
        let (_, rows) = split_size(self.chip, cols, self.most(lead)).ok_or_else(too_large)?;
        if !self.chip.hopper {
            return Ok(SplitTiles { at: self.bases.high, groups: 0, order: PLAIN_ROWS });
        }
        let (high, low) = (self.bases.high, self.bases.low);
        self.split_at = if self.split_at == high { low } else { high };
        let order = if self.wide(linear)? { WIDE_TILES } else { NARROW_TILES };
        Ok(SplitTiles { at: self.split_at, groups: count(rows / WG_ROWS)?, order })
    }

    /// The operation that splits them.
    pub(super) fn split(
        &mut self,
        lead: Lead,
        linear: NodeId,
        cols: usize,
        op: &mut RowOp,
    ) -> Result<()> {
        let (padded, _) = split_size(self.chip, cols, self.most(lead)).ok_or_else(too_large)?;
        let to = self.tiles(lead, linear, cols)?;
        (op.what, op.n0) = (R_SPLIT, count(padded)?);
        (op.kind, op.aux, op.n1) = (to.order, to.at, to.groups);
        op.aux2 = if self.chip.hopper { to.at + WG_BYTES as u64 / 2 } else { self.bases.low };
        Ok(())
    }

    /// Has the launch before leave `x` split, as the product takes it, if it can: that saves one. What nobody
    /// else reads is not left as it is.
    pub(super) fn left_split(
        &mut self,
        lead: Lead,
        linear: NodeId,
        x: NodeId,
        cols: usize,
    ) -> Result<bool> {
        let at = self.value(x)?.at;
        let Some(last) = self.out.last() else { return Ok(false) };
        let takes = match &last.parameters {
            Parameters::Attend(p) => matches!(last.kernel, Kernel::AttendMany(_)) && p.out == at,
            Parameters::Gemm(p) => {
                let e = &p.domain[0].epilogue;
                p.domains == 1 && e.form != CODE && e.out == at && by_fours(p)
            }
            _ => false,
        };
        let whole = self.chip.hopper && cols.is_multiple_of(WG_BLOCK) && last.lead == lead;
        if !(takes && whole) {
            return Ok(false);
        }
        let output = |&o: &NodeId| origin(self.graph, o) == x;
        let alone = self.read_once(x) && !self.graph.outputs().iter().any(output);
        let tiles = self.tiles(lead, linear, cols)?;
        let Some(last) = self.out.last_mut() else { return Ok(false) };
        let (left, out) = match &mut last.parameters {
            Parameters::Attend(p) => (&mut p.left, &mut p.out),
            Parameters::Gemm(p) => (&mut p.left, &mut p.domain[0].epilogue.out),
            _ => return Ok(false),
        };
        *left = tiles;
        if alone {
            *out = 0;
        }
        Ok(true)
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

/// Whether the only domain of a product is finished four columns at a time, as kernels decide.
fn by_fours(p: &Gemm) -> bool {
    let (d, e) = (&p.domain[0], &p.domain[0].epilogue);
    let outputs = p.part[d.part[0] as usize].rows;
    let mut all = e.out | (u64::from(e.out_stride) * 4);
    if e.form == RESIDUAL {
        all |= e.residual.at | (u64::from(e.residual.n) * 4);
    }
    all.is_multiple_of(16) && outputs.is_multiple_of(WG_M as u32 / d.parts.max(1))
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
    let tiles = p.first[MAX_DOMAINS];
    // Warpgroups of a block, and its stretches: half of all where rows are many; where they are few two, at once
    // if taking weights apart is work.
    let (groups, each) = match (tile, p.stretches) {
        (3, all) => (2, all / 2),
        (FEW.., _) => (2, 1),
        (_, 8) => (if p.part[0].lo > 0 { 2 } else { 1 }, 2),
        _ => (1, 1),
    };
    p.each = each;
    (p.tile, p.stages) = (TILE_ROWS[tile], TILE_STAGES[tile]);
    shape.cluster = p.stretches / p.each;
    shape.block = groups * 128;
    let own = if tile < FEW { 1 } else { groups };
    shape.grid = (p.rows.div_ceil(p.tile), tiles.div_ceil(own));
    (p.pages, p.page) = if tile < FEW { pages(p, groups, each / groups) } else { (0, 0) };
    shape.shared = tile_shared(tile, groups, each / groups, p.pages * p.page);
    tile
}

/// Spans of weights that a warp has on their way where rows are few, beside so many bytes; and how large they
/// are. Two blocks have a multiprocessor if two spans each fit.
fn pages(p: &Gemm, groups: u32, own: u32) -> (u32, u32) {
    let parts = p.part.iter().take_while(|m| m.rows > 0);
    let span = |m: &Matrix| m.span_bytes.min(m.panel_bytes);
    let page = parts.map(span).max().unwrap_or(0).next_multiple_of(128);
    let first = &p.part[0];
    let blocks = match (first.lo, first.kind) {
        // 4 columns of f32 in a unit, 8 of halves.
        (0, 0) => 1,
        (0, _) => 2,
        _ => SPAN as u32 / 4,
    };
    let each = (own * p.stride / WG_BLOCK as u32).div_ceil(p.stretches.max(1));
    // Stretches that do not begin with a span have a part of one more.
    let most = each.div_ceil(blocks) + u32::from(!each.is_multiple_of(blocks));
    let tile = usize::from(p.tile > TILE_ROWS[0]);
    let fits = |pages: &u32, room| tile_shared(tile, groups, own, pages * page) <= room;
    let most = most.min(MOST_PAGES);
    let enough = most.min(2);
    let beside = (enough..=most).rev().find(|n| fits(n, HALF));
    let alone = || (1..=enough).rev().find(|n| fits(n, WHOLE));
    (beside.or_else(alone).unwrap_or(1), page)
}

/// Shared memory of a block that leaves room for another, and of one alone.
const HALF: u32 = 113 << 10;
const WHOLE: u32 = 220 << 10;

/// Shared memory of a block: barriers, then the ring (at a multiple of 1,024) and, where rows are few, pages of so many
/// bytes a panel; sums and registers of byte code replace them.
fn tile_shared(tile: usize, groups: u32, own: u32, pages: u32) -> u32 {
    let (rows, few) = (TILE_ROWS[tile], tile < FEW);
    let registers = MAX_REGISTERS as u32 * groups * 128 * 4;
    let ring = TILE_STAGES[tile] * rows * (WG_BYTES / WG_ROWS) as u32;
    if !few {
        let sums = rows * (groups * WG_M as u32 + 4) * 4;
        return 2048 + ring.max(sums + registers);
    }
    // Sums of all stretches of a warpgroup but its last have a place of their own.
    let sums = rows * (WG_M as u32 + 4) * 4;
    let kept = ((own - 1) * sums).next_multiple_of(1024);
    let ring = groups * (ring + FEW_WARPS * WARP_PANELS * pages);
    2048 + (kept + ring).max(groups * own * sums + registers)
}

/// The most shared memory that a product with many rows takes.
pub(in crate::cuda) fn gemm_shared(chip: &Chip, product: Product) -> usize {
    if chip.hopper {
        return WHOLE as usize;
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
                // A block has one stretch, or two or half of all in a row.
                assert_eq!(shape.cluster * p.each, p.stretches);
                assert!(p.each == 1 || shape.cluster == if tile < FEW { 4 } else { 2 });
                // Tiles of rows lie within what they have room for.
                assert_eq!(p.groups, 512 / 8);
                assert!(shape.grid.1 * (shape.block / 128) >= p.first[MAX_DOMAINS]);
                // Two blocks and their system share fit a multiprocessor; one if its weights are wide.
                let blocks = if tile < FEW && shape.shared > HALF { 1 } else { 2 };
                assert!(blocks * (shape.shared + 1024) <= 228 << 10, "{} bytes", shape.shared);
                assert!(
                    tile >= FEW
                        || p.pages >= 1
                            && p.page >= p.part[0].span_bytes.min(p.part[0].panel_bytes)
                );
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
    fn blocks_have_several_stretches_each_where_the_chip_is_full_without() {
        for (rows, tile, cluster, each) in
            [(8, 0, 4, 2), (32, 1, 4, 2), (128, 2, 8, 1), (129, 3, 2, 4), (512, 3, 2, 4)]
        {
            let all = square(Format::BF16, rows);
            let launch = all.iter().find(|l| matches!(l.kernel, Kernel::Gemm(_))).unwrap();
            let Parameters::Gemm(p) = &launch.parameters else { continue };
            assert_eq!((launch.tile, launch.shape.cluster, p.each), (tile, cluster, each));
            assert_eq!((p.stretches, p.tile), (8, TILE_ROWS[tile]));
        }
    }

    /// Launches of `n`, a norm of 256 columns, into a gate and an `up` of so many, and back.
    fn gated(inner: usize, keep: bool) -> Vec<Launch> {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, 256], &[0.0; 4 * 256]).unwrap();
        w.insert("norm.weight", &[256], &[0.0; 256]).unwrap();
        for (name, rows, cols) in [("gate", inner, 256), ("up", inner, 256), ("down", 256, inner)] {
            let name = format!("{name}.weight");
            w.insert(&name, &[rows, cols], &vec![0.0; rows * cols]).unwrap();
        }
        let mut b = Builder::new(&w);
        let x = b.embed("x").unwrap();
        let n = b.rms_norm(x, "norm", 1e-5).unwrap();
        let (gate, up) = (b.linear(n, "gate").unwrap(), b.linear(n, "up").unwrap());
        let gate = b.silu(gate).unwrap();
        let y = b.mul(gate, up).unwrap();
        let z = b.linear(y, "down").unwrap();
        let z = b.add(x, z).unwrap();
        b.output(z);
        if keep {
            b.output(y);
        }
        let target = CudaTarget::of(90).unwrap();
        let limits = Limits { rows: 512, outs: 1, slots: 1, context: 512 };
        let plan = Plan::new(&b.finish(), &target, limits).unwrap();
        let program = target.lower(&plan).unwrap();
        let bases = Bases {
            logits: 1 << 32,
            scratch: 1 << 30,
            high: 1 << 20,
            low: 1 << 24,
            ..Bases::unknown(&program.work)
        };
        launches(&target.0, &program, &bases).unwrap()
    }

    #[test]
    fn a_product_leaves_its_rows_as_the_next_one_takes_them() {
        let split = |all: &[Launch]| {
            let lists = all.iter().filter(|l| match &l.parameters {
                Parameters::Rows(list) => list.op.iter().any(|op| op.what == R_SPLIT),
                _ => false,
            });
            lists.count()
        };
        let products = |all: &[Launch]| -> Vec<Gemm> {
            let gemm = |l: &Launch| match &l.parameters {
                Parameters::Gemm(p) => Some(**p),
                _ => None,
            };
            all.iter().filter_map(gemm).collect()
        };
        let all = gated(512, false);
        let [first, second] = products(&all)[..] else { return assert_eq!(all.len(), 0) };
        // The norm's rows are a list's; the product's are its own, in the other place, and nowhere else.
        assert_eq!(split(&all), 1);
        assert_eq!((first.left.at, second.left.at), (second.high, 0));
        assert_ne!(first.high, second.high);
        assert_eq!(first.domain[0].epilogue.out, 0);
        // What is an output stays; columns that no whole tiles hold are a list's.
        let kept = gated(512, true);
        assert!(split(&kept) == 1 && products(&kept)[0].domain[0].epilogue.out != 0);
        assert_eq!(split(&gated(528, false)), 2);
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
