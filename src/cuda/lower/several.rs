//! Products over two to eight rows that follow each other as one kernel, on sm_90: each waits for the numbers of
//! those before, while weights of the next are on their way.

use super::chain::{as_one, domains_of, is_fresh, leaves};
use super::product::Multiplied;
use super::tiles::stretches;
use super::{Chip, Lowering, count, too_large};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::program::{Bases, Kernel, Launch, Parameters};
use crate::graph::{Graph, Lead, NodeId};

/// Stages that a ring must have.
const FEWEST_STAGES: usize = 4;

/// What the ring and the rows of a chain have of a block's shared memory.
#[derive(Clone, Copy, Default)]
struct Room {
    stage: usize,
    rows: usize,
}

impl Room {
    fn of(p: &Several) -> Room {
        let panel = (p.paged * Matrix::largest_of(&p.part)) as usize;
        let block = BLOCK_BYTES + if p.sums == 0 { 0 } else { SUMS };
        Room { stage: 4 * panel.next_multiple_of(32), rows: Room::blocks(p) * block }
    }

    /// Blocks of columns that a block of threads has of the rows.
    fn blocks(p: &Several) -> usize {
        // Of as many short parts as there are warps each has its own.
        match (p.cols as usize / WG_BLOCK, p.parts as usize) {
            (all, WARPS) if p.apart != 0 => all / WARPS,
            (all, WARPS) => all.max(WARPS * AT_A_TIME),
            (all, _) => all,
        }
    }

    fn with(self, o: Room) -> Room {
        Room { stage: self.stage.max(o.stage), rows: self.rows.max(o.rows) }
    }

    fn stages(self, chip: &Chip) -> Option<usize> {
        let room = chip.block_shared.checked_sub(SEVERAL_SHARED)?.checked_sub(self.rows)?;
        let stages = room.checked_div(self.stage)?.min(MAX_STAGES);
        (stages >= FEWEST_STAGES).then_some(stages)
    }
}

/// What a page has at most, if it has more than a span.
const PAGE: u32 = 9 << 10;

/// Whether blocks may have a product's stretches, and not warps: of rows so long that it takes a warp longer than once to
/// make its eighth of them. A block then makes an eighth of the rows, for eight times as many outputs.
pub(super) fn may_be_apart(chip: &Chip, graph: &Graph, linear: NodeId) -> bool {
    let &[x, _] = graph.node(linear).args.as_slice() else { return false };
    let (cols, outputs) = (graph.ty(x).width(), graph.ty(linear).width());
    let eight = |tiles| stretches(chip, tiles, cols, false) == WARPS as u32;
    cols > WARPS * AT_A_TIME * WG_BLOCK && count(outputs.div_ceil(WG_M)).is_ok_and(eight)
}

/// The rows that a product multiplies, and the norm before it: its weights, or of many rows the squares, which are made with
/// what is left of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    pub row: Operand,
    pub norm: (u64, f32),
}

impl Lowering<'_> {
    /// Whether all of a product's columns can be links.
    pub(super) fn are_links(
        &self,
        lead: Lead,
        cols: usize,
        row: Row,
        products: &[Multiplied],
    ) -> Result<bool> {
        let lines = products.iter().all(|p| p.2.form != CODE);
        let normed = row.norm.0 == 0 || cols <= NORM_BLOCKS * WG_BLOCK;
        let whole = cols.is_multiple_of(WG_BLOCK) && row.row.n.is_multiple_of(4);
        if lead != Lead::Rows || !lines || !normed || !whole {
            return Ok(false);
        }
        for same in products.chunk_by(|a, b| a.0 == b.0) {
            for some in same.chunks(MAX_DOMAINS) {
                let p = self.several(cols, row, some)?;
                if Room::of(&p).stages(self.chip).is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// A product as a link.
    pub(super) fn several(&self, cols: usize, row: Row, domains: &[Multiplied]) -> Result<Several> {
        let columns = self.dealt(domains, WG_M)?;
        let tiles = columns.first[MAX_DOMAINS];
        // Of planes' stretches, which are more, a warp has several in a row.
        let parts = stretches(self.chip, tiles, cols, false);
        let each = stretches(self.chip, tiles, cols, columns.part[0].lo != 0) / parts;
        // As many blocks as there are, and as few outputs for each.
        let outputs = tiles.checked_mul(4).ok_or_else(too_large)?;
        let most = WARPS as u32 / parts;
        let enough = |subs: &u32| outputs.div_ceil(*subs) <= self.chip.processors;
        let subs = [1, 2, 4].into_iter().filter(|s| *s < most).find(enough).unwrap_or(most);
        // Whether parts end where spans do, which are alike in all parts.
        let spans = columns.part[0].span_cols() * parts as usize;
        let alone = parts == 1 || cols.is_multiple_of(spans);
        // A norm sees whole rows; and who waits for sums of stretches takes their places back for what it leaves.
        let left = is_fresh(columns.domain[0].epilogue.out, self.bases);
        let apart = self.places.apart(self.group).filter(|_| alone && row.norm.0 == 0 && left);
        let fits = |n: &u32| 4 * n * Matrix::largest_of(&columns.part) <= PAGE;
        let paged = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        let (apart, jobs) = match apart {
            Some(at) => (self.bases.fresh + at, outputs.next_multiple_of(WARPS as u32)),
            None => (0, outputs.div_ceil(subs)),
        };
        let mut p = Several {
            x: row.row.at,
            norm: row.norm.0,
            eps: row.norm.1,
            cols: count(cols)?,
            stride: row.row.n,
            parts,
            each,
            jobs,
            subs,
            first_block: 0,
            alone: u32::from(alone),
            paged,
            apart,
            domains: count(domains.len())?,
            sums: 0,
            first: columns.first,
            domain: columns.domain,
            part: columns.part,
        };
        if domains.iter().any(|d| d.1.iter().any(|part| part.0.adds())) {
            p.sums = count(Room::blocks(&p) * BLOCK_BYTES)?;
        }
        Ok(p)
    }
}

/// Puts products that follow each other together.
pub(super) fn gather(chip: &Chip, bases: &Bases, launches: Vec<Launch>) -> Result<Vec<Launch>> {
    let (mut out, mut links, mut table) = (Vec::new(), Vec::new(), bases.links);
    let mut room = Room::default();
    for launch in launches {
        let Parameters::Several(p) = &launch.parameters else {
            close(chip, bases, &mut room, &mut table, &mut links, &mut out)?;
            out.push(launch);
            continue;
        };
        if room.with(Room::of(p)).stages(chip).is_none() {
            close(chip, bases, &mut room, &mut table, &mut links, &mut out)?;
        }
        room = room.with(Room::of(p));
        // For what is left elsewhere nobody can wait.
        let ends = !leaves(&launch, bases);
        links.push(launch);
        if ends {
            close(chip, bases, &mut room, &mut table, &mut links, &mut out)?;
        }
    }
    close(chip, bases, &mut room, &mut table, &mut links, &mut out)?;
    Ok(out)
}

/// Moves links to the launches, as one of them.
fn close(
    chip: &Chip,
    bases: &Bases,
    room: &mut Room,
    table: &mut u64,
    links: &mut Vec<Launch>,
    out: &mut Vec<Launch>,
) -> Result<()> {
    let (room, mut links) = (std::mem::take(room), std::mem::take(links));
    if links.is_empty() {
        return Ok(());
    }
    let stages = room.stages(chip).ok_or_else(too_large)?;
    let mut next = 0;
    for i in 0..links.len() {
        let (before, rest) = links.split_at_mut(i);
        let Some(Parameters::Several(p)) = rest.first_mut().map(|l| &mut l.parameters) else {
            continue;
        };
        for d in &mut p.domain {
            let r = &mut d.epilogue.residual;
            if d.epilogue.form == RESIDUAL && before.iter().any(|l| leaves_at(l, r.at)) {
                r.place = FRESH;
            }
        }
        // Who had fewer jobs of one product has more of the next.
        p.first_block = next;
        next = (next + p.jobs) % chip.processors.max(1);
    }
    let ring = (stages, room.stage);
    out.push(as_one(
        chip,
        bases,
        table,
        links,
        (Kernel::SeveralChain, SEVERAL_THREADS),
        ring,
        room.rows,
    )?);
    Ok(())
}

/// Whether a link leaves what is at this address.
fn leaves_at(link: &Launch, at: u64) -> bool {
    domains_of(link).into_iter().flatten().any(|d| {
        let e = &d.epilogue;
        let bytes = u64::from(e.out_stride) * 4 * SEVERAL as u64;
        e.out <= at && at - e.out < bytes
    })
}

/// Whether links read places that may hold nobody's number when they begin.
pub(super) fn polls(links: &[Launch], i: usize) -> bool {
    let Some(Parameters::Several(p)) = links.get(i).map(|l| &l.parameters) else { return false };
    links.iter().take(i).any(|l| leaves_at(l, p.x))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::CudaTarget;
    use crate::cuda::lower::chain::table;
    use crate::cuda::lower::launches;
    use crate::cuda::program::Links;
    use crate::graph::{Builder, MemoryWeights};
    use crate::model::format::Format;
    use crate::plan::{Limits, Plan};

    /// `layers` of a norm, a gate and a product back, over `dim` columns and `inner` ones.
    fn gates(format: Format, dim: usize, inner: usize, layers: usize) -> (Bases, Vec<Launch>) {
        let mut w = MemoryWeights::new();
        let mut add = |name: &str, rows: usize, cols: usize| {
            let bytes = vec![0; format.row_bytes(cols).unwrap() * rows];
            w.insert_bytes(name, format, &[rows, cols], bytes).unwrap();
        };
        add("x.weight", 4, dim);
        add("gate.weight", inner, dim);
        add("up.weight", inner, dim);
        add("down.weight", dim, inner);
        w.insert("norm.weight", &[dim], &vec![0.0; dim]).unwrap();
        let mut b = Builder::new(&w);
        let mut x = b.embed("x").unwrap();
        x = b.silu(x).unwrap();
        for _ in 0..layers {
            let n = b.rms_norm(x, "norm", 1e-5).unwrap();
            let (gate, up) = (b.linear(n, "gate").unwrap(), b.linear(n, "up").unwrap());
            let gate = b.silu(gate).unwrap();
            let y = b.mul(gate, up).unwrap();
            let y = b.linear(y, "down").unwrap();
            x = b.add(x, y).unwrap();
        }
        b.output(x);
        let target = CudaTarget::of(90).unwrap();
        let limits = Limits { rows: 64, outs: 1, slots: 1, context: 64 };
        let plan = Plan::new(&b.finish(), &target, limits).unwrap();
        let program = target.lower(&plan).unwrap();
        let next = program.work.several as i64 / 2;
        let bases = Bases { fresh: 1 << 62, next, logits: 1 << 40, ..Bases::default() };
        let made = launches(&target.0, &program, &bases).unwrap();
        (bases, made)
    }

    fn chains<'a>(made: &'a [Launch]) -> Vec<&'a Links> {
        let all = made.iter().filter(|l| l.kernel == Kernel::SeveralChain);
        let chain = |l: &'a Launch| match &l.parameters {
            Parameters::Chain(p) => Some(&**p),
            _ => None,
        };
        all.filter_map(chain).collect()
    }

    #[test]
    fn products_that_follow_each_other_are_one_chain() {
        for (format, stages) in [(Format::BF16, 16), (Format::Q4_0, 14), (Format::Q8_0, 15)] {
            let (bases, made) = gates(format, 2048, 8192, 3);
            let [chain] = chains(&made)[..] else { return assert_eq!(made.len(), 0) };
            // The last one leaves its rows for nobody in the chain, and they are too long: a launch.
            assert_eq!((chain.links.len(), chain.chain.stages), (5, stages));
            let launch = made.iter().find(|l| l.kernel == Kernel::SeveralChain).unwrap();
            assert!(launch.shape.together && launch.shape.grid.0 == 132);
            assert!(launch.shape.shared as usize + SEVERAL_SHARED <= 227 << 10);
            assert_eq!(table(&chain.links, &bases).len(), 5 * LINK_BYTES);
            // The first one's row is there; each other waits for the one before, and for what it adds to.
            let waits: Vec<bool> = (0..5).map(|i| polls(&chain.links, i)).collect();
            assert_eq!(waits, [false, true, true, true, true]);
            let residuals = chain.links.iter().filter_map(|l| match &l.parameters {
                Parameters::Several(p) if p.domain[0].epilogue.form == RESIDUAL => {
                    Some(p.domain[0].epilogue.residual.place)
                }
                _ => None,
            });
            assert_eq!(residuals.collect::<Vec<_>>(), [ROWS, FRESH]);
            // Of long rows blocks have stretches, and what those come to has places that nobody else has; but not where
            // what the sum is left for is no link.
            let apart = chain.links.iter().filter_map(|l| match &l.parameters {
                Parameters::Several(p) => (p.apart != 0).then_some((p.cols, p.jobs, p.apart)),
                _ => None,
            });
            let apart: Vec<_> = apart.collect();
            assert!(apart.len() == 2 && apart.iter().all(|p| (p.0, p.1) == (8192, 128)));
            let bytes = (WARPS * SEVERAL * 2048 * 4) as u64;
            let end = bases.fresh + bases.next.unsigned_abs();
            let ends = apart.iter().skip(1).map(|p| p.2).chain([end]);
            assert!(
                apart[0].2 >= bases.fresh && apart.iter().zip(ends).all(|(p, e)| p.2 + bytes <= e)
            );
        }
    }

    #[test]
    fn a_block_has_as_few_outputs_as_there_are_blocks_for() {
        let of = |format, dim, inner| -> Vec<(u32, u32, u32, u32)> {
            let (_, made) = gates(format, dim, inner, 3);
            let all = chains(&made).into_iter().flat_map(|c| &c.links).skip(2).take(2);
            let link = |l: &Launch| match &l.parameters {
                Parameters::Several(p) => Some((p.parts, p.subs, p.jobs, p.alone)),
                _ => None,
            };
            all.filter_map(link).collect()
        };
        // A warp each of eight times 16 outputs, or of eight stretches, each with its own spans if it has whole ones.
        assert_eq!(of(Format::BF16, 2048, 8192), [(1, 8, 128, 1), (8, 1, 128, 1)]);
        assert_eq!(of(Format::Q4_0, 2048, 4096), [(2, 4, 128, 1), (8, 1, 128, 1)]);
        assert_eq!(of(Format::BF16, 2048, 1536)[0], (4, 2, 96, 1));
        // Half of the warps have outputs.
        assert_eq!(of(Format::BF16, 2048, 1024)[1], (4, 1, 128, 1));
    }

    #[test]
    fn columns_that_are_not_whole_blocks_are_launches() {
        let (_, made) = gates(Format::BF16, 576, 1536, 2);
        let links = chains(&made).into_iter().map(|c| c.links.len());
        // Back from 1,536 columns to 576.
        assert_eq!(links.collect::<Vec<_>>(), [1, 1]);
        assert!(made.iter().any(|l| matches!(l.kernel, Kernel::Gemm(_))));
    }
}
