//! How a product of many rows is dealt out over blocks on sm_90, by its weights and by how many rows it was given.

use super::Chip;
use super::picked::most_tiles;
use crate::cuda::abi::*;
use crate::cuda::driver::Shape;
use crate::cuda::layout::Product;

/// Columns and rows that split rows take.
pub(super) fn split_size(chip: &Chip, cols: usize, rows: usize) -> Option<(usize, usize)> {
    if chip.hopper {
        let cols = cols.checked_next_multiple_of(WG_BLOCK)?;
        return Some((cols, rows.checked_next_multiple_of(WG_ROWS)?));
    }
    Some((cols.checked_next_multiple_of(TILE_K)?, rows))
}

/// Bytes of the sums of as many split rows.
pub(super) fn sums_size(cols: usize, rows: usize) -> usize {
    cols / WG_BLOCK * rows.div_ceil(WG_ROWS) * SUMS
}

/// Bytes of the squares of so many split rows (`square.cuh`).
pub(super) fn squares_size(cols: usize, rows: usize) -> usize {
    4 * squares_stride(cols) * rows.next_multiple_of(WG_ROWS)
}

/// Stretches that the inputs of a product of so many tiles are summed up in, so that blocks can share
/// them where tiles are few. It must not depend on the number of rows: it is the order of a row's sums. Of planes four
/// blocks are on a multiprocessor where there are up to 32 rows, and more of them are worth more than their sums cost.
pub(super) fn stretches(chip: &Chip, tiles: u32, cols: usize, planes: bool) -> u32 {
    let fits = |(s, blocks): &(u32, u32)| {
        let all = tiles.saturating_mul(*s);
        all <= blocks * chip.processors && cols / WG_BLOCK >= 2 * *s as usize
    };
    let ways = [(8, 2), (4, 2), (2, if planes { 4 } else { 2 })];
    ways.into_iter().find(fits).map_or(1, |way| way.0)
}

/// As many blocks as a chip has multiprocessors, nearly.
const MANY_BLOCKS: u32 = 128;

/// The kernel for rows that picked experts, so many each: by how many meet the weights of one.
pub(super) fn picked_tile(rows: u32, picks: u32, experts: u32) -> usize {
    match rows.saturating_mul(picks).div_ceil(experts.max(1)) {
        0..=2 => 0,
        3..=16 => 1,
        _ => HALVES,
    }
}

/// Shapes a product of many rows for as many as it was given; which of its kernels that takes.
pub(in crate::cuda) fn set_tile(p: &mut Gemm, shape: &mut Shape) -> usize {
    if p.groups == 0 {
        shape.grid.0 = p.rows.div_ceil(TILE_M as u32);
        return 0;
    }
    let planes = p.part[0].lo != 0;
    // With so many rows blocks need not have one stretch each, which costs less to add up.
    let halves = p.rows > 128 && (p.stretches >= 4 || planes && p.stretches > 1);
    let tile = match p.picks {
        0 => match p.rows {
            0..=8 => 0,
            9..=32 => 1,
            _ if planes || halves => HALVES,
            _ => 2,
        },
        _ => picked_tile(p.rows, p.picks, p.experts),
    };
    let tile = if tile == HALVES && planes && p.part[0].codes == TABLE { TABLES } else { tile };
    let tiles = p.first[MAX_DOMAINS];
    let rows = TILE_ROWS[tile];
    let places = match p.picks {
        0 => p.rows.div_ceil(rows),
        picks => most_tiles(p.rows.saturating_mul(picks), p.experts, rows),
    };
    // Warpgroups of a block, and its stretches: half of all, or both, where rows are many, unless there are few blocks even
    // with one each; where they are few two in a row of floats, one of planes. Two at once would have a multiprocessor for
    // themselves, and not all clusters of such blocks are on the chip at the same time.
    let spread = places.saturating_mul(tiles.div_ceil(2)).saturating_mul(p.stretches);
    let (groups, each) = match (tile, p.stretches) {
        (FEW.., all) if halves && spread > MANY_BLOCKS => (2, (all / 2).max(2)),
        (FEW.., _) => (2, 1),
        (_, 8) if !planes => (1, 2),
        _ => (1, 1),
    };
    p.each = each;
    // Of planes half the stages for up to 32 rows, so that a multiprocessor has four blocks.
    let stages = if planes && tile == 1 { 2 } else { TILE_STAGES[tile] };
    (p.tile, p.stages) = (rows, stages);
    shape.cluster = p.stretches / p.each;
    shape.block = groups * 128;
    shape.grid = (places, tiles.div_ceil(groups));
    (p.pages, p.page) = if tile < FEW { pages(p, tile) } else { (0, 0) };
    shape.shared = tile_shared(p, tile, groups, p.pages * p.page);
    tile
}

/// Pages of weights that a warp has on their way where rows are few, and how large they are: spans. Two are enough, and of
/// planes no more is better: more warps on a multiprocessor are worth more than another on its way.
fn pages(p: &Gemm, tile: usize) -> (u32, u32) {
    let page = Matrix::largest_of(&p.part).next_multiple_of(128);
    let planes = p.part[0].lo != 0;
    let blocks = (p.part[0].span_cols() / WG_BLOCK) as u32;
    let each = (p.each * p.stride / WG_BLOCK as u32).div_ceil(p.stretches.max(1));
    // Stretches that do not begin with a page have a part of one more.
    let most = each.div_ceil(blocks) + u32::from(!each.is_multiple_of(blocks));
    let fits = |pages: &u32, room| tile_shared(p, tile, 1, pages * page) <= room;
    let (most, rooms): (u32, &[u32]) = match planes {
        true => (most.min(2), &[QUARTER, HALF, WHOLE]),
        false => (most.min(MOST_PAGES), &[HALF, WHOLE]),
    };
    let within = |&room: &u32| (most.min(2)..=most).rev().find(|n| fits(n, room));
    (rooms.iter().find_map(within).unwrap_or(1), page)
}

/// Shared memory of a block beside which four others do not fit, that leaves room for three, for another, and of one alone.
const FIFTH: u32 = 46 << 10;
const QUARTER: u32 = 56 << 10;
const HALF: u32 = 113 << 10;
const WHOLE: u32 = 220 << 10;

/// Shared memory of a block: barriers, then the ring (at a multiple of 1,024) and, where rows are few, pages of so many
/// bytes a panel; sums and registers of byte code replace them. Two stages may have sums of their rows.
fn tile_shared(p: &Gemm, tile: usize, groups: u32, pages: u32) -> u32 {
    let (rows, few, each) = (TILE_ROWS[tile], tile < FEW, p.each);
    let registers = MAX_REGISTERS as u32 * groups * 128 * 4;
    let two = 2 * WG_BYTES + if p.sums == 0 { 0 } else { SUMS };
    let ring = p.stages * rows / WG_ROWS as u32 * two as u32 / 2;
    if !few {
        let sums = rows * (groups * WG_M as u32 + 4) * 4;
        // Behind the ring each thread has its sums of the stretches before.
        let kept = if tile >= HALVES { groups * 128 * rows / 2 * 4 } else { 0 };
        return 2048 + (ring + kept).max(sums + registers);
    }
    // Sums of all stretches but the last have a place of their own.
    let sums = rows * (WG_M as u32 + 4) * 4;
    let kept = ((each - 1) * sums).next_multiple_of(1024);
    let pages = FEW_WARPS * WARP_PANELS * pages + READ_BEHIND as u32;
    // Stretches of planes are dealt out for four blocks on a multiprocessor, and the kernel for one bit has registers for five:
    // then some have five and others fewer.
    let least = if tile == 1 && (p.part[0].lo, p.part[0].hi) == (1, 0) { FIFTH } else { 0 };
    least.max(2048 + (kept + ring + pages).max(each * sums + registers))
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
    use crate::cuda::program::{Bases, Kernel, Launch, Parameters};
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
                let cluster = if tile < FEW { 4 } else { 2.min(p.stretches / 2) };
                assert!(p.each == 1 || shape.cluster == cluster);
                // Tiles of rows lie within what they have room for.
                assert_eq!(p.groups, 512 / 8);
                assert!(shape.grid.1 * (shape.block / 128) >= p.first[MAX_DOMAINS]);
                // Two blocks and their system share fit a multiprocessor; one if its weights are wide.
                let blocks = if tile < FEW && shape.shared > HALF { 1 } else { 2 };
                assert!(blocks * (shape.shared + 1024) <= 228 << 10, "{} bytes", shape.shared);
                let mut parts = Matrix::there(&p.part);
                assert!(tile >= FEW || p.pages >= 1 && parts.all(|m| p.page >= m.largest_span()));
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
            all.map(|(p, ..)| (p.stretches, p.stride, p.first, p.sums != 0)).collect::<Vec<_>>()
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
    fn rows_are_split_as_the_product_reads_them() {
        for (format, kind) in [(Format::BF16, EIGHTS), (Format::Q4_0, FOURS), (Format::Q4_K, FOURS)]
        {
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
            assert_eq!((split.kind, gemm.part[0].lo != 0), (kind, kind == FOURS));
            assert_eq!((split.n0, split.n1, split.aux), (gemm.stride, gemm.groups, gemm.high));
            // Behind them, where something is added to weights.
            let sums = if format == Format::Q4_K { gemm.high + 4 * 512 * 2048 } else { 0 };
            assert_eq!((split.aux2, gemm.sums), (sums, sums));
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

    #[test]
    fn many_rows_of_tables_have_a_kernel() {
        let tile = |format, rows| {
            let all = square(format, rows);
            all.iter().find(|l| matches!(l.kernel, Kernel::Gemm(_))).unwrap().tile
        };
        for format in [Format::IQ4_NL, Format::MXFP4] {
            assert_eq!([32, 33, 512].map(|rows| tile(format, rows)), [1, TABLES, TABLES]);
        }
        assert_eq!([33, 512].map(|rows| tile(Format::Q4_0, rows)), [HALVES; 2]);
    }

    /// The order in which kernels add `each` stretches after stretches up, and then what those come to: the first half in
    /// order, the second half, then both.
    fn order(stretches: u32, each: u32, groups_add_up: bool) -> String {
        let row = |of: &[String]| of.iter().cloned().reduce(|a, b| format!("({a}+{b})")).unwrap();
        let all: Vec<_> = (0..stretches).map(|s| s.to_string()).collect();
        let groups: Vec<_> =
            if groups_add_up { all.chunks(each as usize).map(row).collect() } else { all };
        match groups.split_at(groups.len() / 2) {
            ([], whole) => row(whole),
            (first, second) => row(&[row(first), row(second)]),
        }
    }

    #[test]
    fn sums_of_stretches_have_one_order_for_any_number_of_rows() {
        let chip = CudaTarget::of(90).unwrap().0;
        for (lo, tiles) in [0, 4].into_iter().flat_map(|lo| (1..600).map(move |t| (lo, t))) {
            for cols in [256, 1024, 2048, 8192] {
                let all = stretches(&chip, tiles, cols, lo != 0);
                let parts = stretches(&chip, tiles, cols, false);
                let want = order(all, all / parts, true);
                for rows in [8, 32, 64, 128, 129, 512] {
                    let mut p = Gemm {
                        groups: 64,
                        rows,
                        stretches: all,
                        stride: cols as u32,
                        ..Gemm::default()
                    };
                    (p.first[MAX_DOMAINS], p.part[0].lo) = (tiles, lo);
                    let (grid, together) = ((1, tiles), false);
                    let mut shape =
                        Shape { grid, cluster: 1, block: 0, shared: 0, early: true, together };
                    let tile = set_tile(&mut p, &mut shape);
                    // Where rows are few a block's stretches are added up with those of the others.
                    let got = order(all, p.each, tile >= FEW);
                    assert_eq!(got, want, "{tiles} tiles of {cols}, {rows} rows");
                }
            }
        }
    }

    #[test]
    fn a_stretch_of_planes_leaves_a_multiprocessor_to_others_where_rows_are_few() {
        for (format, beside) in
            [(Format::Q1_0, 3), (Format::Q4_0, 3), (Format::Q4_K, 3), (Format::Q8_0, 3)]
        {
            for rows in [8, 9, 32] {
                let all = square(format, rows);
                let launch = all.iter().find(|l| matches!(l.kernel, Kernel::Gemm(_))).unwrap();
                let Parameters::Gemm(p) = &launch.parameters else { continue };
                assert_eq!((launch.shape.cluster, launch.shape.block, p.each), (8, 128, 1));
                // What few90.cuh takes for granted of planes.
                assert!(p.pages <= 2 && (rows == 8 || p.stages == 2), "{format:?}");
                assert!((beside + 1) * (launch.shape.shared + 1024) <= 228 << 10, "{format:?}");
            }
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
        let of = |outputs: u32, cols| {
            let of = |planes| stretches(&chip, outputs.div_ceil(64), cols, planes);
            (of(false), of(true))
        };
        assert_eq!([of(2048, 2048), of(2048, 8192)], [(8, 8); 2]);
        assert_eq!([of(3072, 2048), of(16384, 2048)], [(4, 4), (1, 2)]);
        // Neither where the chip is full, nor where a share would be next to nothing.
        assert_eq!([of(128_256, 2048), of(2048, 256)], [(1, 1); 2]);
        // No stretch is empty.
        assert_eq!([of(576, 576), of(576, 1536)], [(2, 2), (4, 4)]);
        // Parts of a chain's warps have as many each.
        for (outputs, blocks) in (1..40).flat_map(|o| (1..80).map(move |b| (o * 512, b * 128))) {
            let (floats, planes) = of(outputs, blocks);
            assert!(planes % floats == 0, "{outputs} x {blocks}: {floats}, {planes}");
        }
    }
}
