//! Launches over one row that are one kernel: a chain, in which each waits for the numbers of those before
//! and for nothing else, so that weights of the next are on their way meanwhile.
//!
//! What products and attention leave lies in places of their own, which nobody else writes in a step:
//! a place holds nobody's number until its own is there. There are two of each, for steps in turn.

use super::attend_one::one_room;
use super::integers::round;
use super::pace::set_pace;
use super::places::Places;
use super::product::chained;
use super::several::polls;
use super::{Chip, Lowering, count};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::driver::Shape;
use crate::cuda::layout::Product;
use crate::cuda::program::{Bases, Kernel, Launch, Links, Parameters};
use crate::graph::Lead;

/// Puts launches that can be one kernel together.
pub(super) fn gather(
    chip: &Chip,
    bases: &Bases,
    places: &Places,
    launches: Vec<Launch>,
) -> Result<Vec<Launch>> {
    let (mut out, mut links, mut table) = (Vec::new(), Vec::new(), bases.links);
    for launch in launches {
        let joins = kind(&launch, bases).is_some();
        if !joins || !follows(&links, &launch) {
            close(chip, bases, places, &mut table, &mut links, &mut out)?;
        }
        let ends = !leaves(&launch, bases);
        if joins { &mut links } else { &mut out }.push(launch);
        if ends {
            close(chip, bases, places, &mut table, &mut links, &mut out)?;
        }
    }
    close(chip, bases, places, &mut table, &mut links, &mut out)?;
    Ok(out)
}

fn attends(launch: &Launch) -> bool {
    matches!(launch.parameters, Parameters::AttendOne(_))
}

/// Whether attention waits for the attention before it among these links, by way of products, which read whole rows:
/// blocks leave each other their shares of both in the same place.
fn follows(links: &[Launch], attention: &Launch) -> bool {
    let Parameters::AttendOne(next) = &attention.parameters else { return true };
    let Some(last) = links.iter().rposition(attends) else { return true };
    let mut made: Vec<(u64, u64)> = Vec::new();
    let within = |made: &[(u64, u64)], at| made.iter().any(|&(a, n)| a <= at && at - a < n);
    for (i, link) in links.iter().enumerate().skip(last) {
        let reads = matches!(&link.parameters, Parameters::Gemv(p) if within(&made, p.x));
        if i == last || reads {
            made.append(&mut outputs(link));
        }
    }
    within(&made, next.q.raw)
}

/// What a link leaves, and how many bytes.
fn outputs(link: &Launch) -> Vec<(u64, u64)> {
    match &link.parameters {
        Parameters::AttendOne(p) => {
            vec![(p.out, 4 * u64::from(p.kv_heads) * u64::from(p.group) * u64::from(p.dim))]
        }
        Parameters::Gemv(p) => {
            let rows = |d: &Domain| p.part.get(d.part[0] as usize).map_or(0, |m| m.rows);
            let all = domains_of(link).unwrap_or_default().iter();
            all.map(|d| (d.epilogue.out, 4 * u64::from(rows(d)))).collect()
        }
        _ => Vec::new(),
    }
}

/// As many links as are worth being one launch, which begins when all of the chip is free: a model with experts has four in
/// a row, and those are faster as they are.
const FEWEST_LINKS: usize = 5;

/// Moves links to the launches, as one of them; a few stay what they are.
fn close(
    chip: &Chip,
    bases: &Bases,
    places: &Places,
    table: &mut u64,
    links: &mut Vec<Launch>,
    out: &mut Vec<Launch>,
) -> Result<()> {
    if links.len() < FEWEST_LINKS {
        out.append(links);
        return Ok(());
    }
    let room = chip.block_shared.saturating_sub(CHAIN_SHARED) / 128 * 128;
    let mut made = links.clone();
    let fit = |made: &mut [Launch]| made.iter_mut().all(|l| settle(chip, l, room, bases).is_some());
    let fits = fit(&mut made) && {
        round(chip, bases, places, &mut made);
        fit(&mut made)
    };
    if !fits {
        out.append(links);
        return Ok(());
    }
    set_pace(chip, &mut made);
    links.clear();
    let kernel = (Kernel::Chain, CHAIN_THREADS);
    out.push(as_one(chip, bases, table, made, kernel, (1, room), 0)?);
    Ok(())
}

/// Links as one launch of a kernel with so many threads, whose ring has so many stages of so many bytes,
/// and `beside` it as many more.
pub(super) fn as_one(
    chip: &Chip,
    bases: &Bases,
    table: &mut u64,
    links: Vec<Launch>,
    (kernel, threads): (Kernel, u32),
    (stages, stage): (usize, usize),
    beside: usize,
) -> Result<Launch> {
    let (lead, group) = links.first().map_or((Lead::Rows, 0), |l| (l.lead, l.group));
    let chain = Chain {
        links: *table,
        positions: bases.positions,
        slots: bases.slots,
        count: count(links.len())?,
        stages: count(stages)?,
        stage_bytes: count(stage)?,
        beside: count(stages * stage)?,
        ..Chain::default()
    };
    *table += (links.len() * LINK_BYTES) as u64;
    let shape = Shape {
        grid: (chip.processors, 1),
        cluster: 1,
        block: threads,
        shared: count(stages * stage + beside)?,
        early: true,
        together: true,
    };
    let parameters = Parameters::Chain(Box::new(Links { chain, links }));
    Ok(Launch { kernel, tile: 0, shape, parameters, lead, group })
}

pub(super) fn is_fresh(at: u64, bases: &Bases) -> bool {
    at >= bases.fresh && at - bases.fresh < bases.next.unsigned_abs()
}

/// What a link is in the kernel; none for a launch that cannot be one.
fn kind(launch: &Launch, bases: &Bases) -> Option<u32> {
    match (&launch.kernel, &launch.parameters) {
        (Kernel::Gemv(product), Parameters::Gemv(p)) => {
            // Byte code reads and writes where it likes; rows are read in fours.
            let lines = p.domain.iter().take(p.domains as usize).all(|d| d.epilogue.form != CODE);
            (lines && p.cols % 4 == 0).then(|| product_kind(*product))
        }
        (Kernel::Several(product), _) => Some(product_kind(*product)),
        (Kernel::AttendOne(pairs), Parameters::AttendOne(p)) => {
            let raw = [p.q.raw, p.k.raw, p.v.raw].into_iter().filter(|&at| at != 0);
            let fresh: Vec<bool> = raw.map(|at| is_fresh(at, bases)).collect();
            // What is read is polled, or is not.
            let alike = fresh.windows(2).all(|w| w[0] == w[1]);
            (alike && *pairs <= 2).then_some(10 + pairs.ilog2())
        }
        _ => None,
    }
}

fn product_kind(product: Product) -> u32 {
    match product {
        Product::P8 => 0,
        Product::P4 => 1,
        Product::P2 => 2,
        Product::P1 => 3,
        Product::P21 => 4,
        Product::P41 => 5,
        Product::P42 => 6,
        Product::F32 => 7,
        Product::F16 => 8,
        Product::Bf16 => 9,
    }
}

/// Whether links may wait for what this one leaves.
pub(super) fn leaves(launch: &Launch, bases: &Bases) -> bool {
    match &launch.parameters {
        Parameters::AttendOne(p) => is_fresh(p.out, bases),
        _ => domains_of(launch)
            .is_some_and(|all| all.iter().all(|d| is_fresh(d.epilogue.out, bases))),
    }
}

/// What becomes of a product that is a link.
pub(super) fn domains_of(launch: &Launch) -> Option<&[Domain]> {
    let (all, count) = match &launch.parameters {
        Parameters::Gemv(p) => (&p.domain, p.domains),
        Parameters::Several(p) => (&p.domain, p.domains),
        _ => return None,
    };
    all.get(..count as usize)
}

/// Adapts a launch to being a link, if its pages fit the ring.
fn settle(chip: &Chip, launch: &mut Launch, room: usize, bases: &Bases) -> Option<()> {
    match &mut launch.parameters {
        Parameters::Gemv(p) => {
            p.deal(chip.processors);
            for d in &mut p.domain {
                let e = &mut d.epilogue;
                if e.form == RESIDUAL && is_fresh(e.residual.at, bases) {
                    e.residual.place = FRESH;
                }
            }
            chained(p, room)
        }
        Parameters::AttendOne(p) => (one_room(p) <= room).then_some(()),
        _ => Some(()),
    }
}

/// Links as the kernel reads them.
pub(in crate::cuda) fn table(links: &[Launch], bases: &Bases) -> Vec<u8> {
    let mut all = Vec::with_capacity(links.len() * LINK_BYTES);
    for (i, link) in links.iter().enumerate() {
        let (polls, parameters) = match &link.parameters {
            Parameters::Gemv(p) => (is_fresh(p.x, bases), p.bytes()),
            Parameters::AttendOne(p) => (is_fresh(p.q.raw, bases), p.bytes()),
            Parameters::Several(p) => (polls(links, i), p.bytes()),
            _ => continue,
        };
        let next = if leaves(link, bases) { bases.next } else { 0 };
        let fresh = Fresh { polls: polls.into(), unused: 0, next };
        let kind = kind(link, bases).unwrap_or(0);
        all.extend_from_slice(LinkHead { kind, fresh, ..LinkHead::default() }.bytes());
        all.extend_from_slice(parameters);
        all.resize(all.len().next_multiple_of(LINK_BYTES), 0);
    }
    all
}

impl Lowering<'_> {
    /// Where a product leaves its columns for a launch of its own.
    pub(super) fn raw(&self) -> u64 {
        self.places.raw(self.group).map_or(self.bases.raw, |at| self.bases.fresh + at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::lower::pace::weights;
    use crate::cuda::lower::tests::lowered;
    use crate::graph::{AttendOptions, Builder, Graph, MemoryWeights, RopeOptions, arch};
    use crate::plan::Limits;

    fn chains(graph: &Graph, capability: u32) -> (Bases, Vec<Launch>) {
        let limits = Limits { rows: 1, outs: 1, slots: 1, context: 64 };
        lowered(graph, capability, limits, |bases| bases)
    }

    /// Layers of attention and products that add to a row; attention sees the row, or what it was `at_first`.
    fn layers(dim: usize, layers: usize, at_first: bool) -> Graph {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, dim], &vec![0.0; 4 * dim]).unwrap();
        for name in ["q", "k", "v", "o", "up"] {
            w.insert(&format!("{name}.weight"), &[dim, dim], &vec![0.0; dim * dim]).unwrap();
        }
        let mut b = Builder::new(&w);
        let mut x = b.embed("x").unwrap();
        let first = x;
        for layer in 0..layers {
            let seen = if at_first { first } else { x };
            let mut head = |name: &str| {
                let y = b.linear(seen, name).unwrap();
                b.heads(y, dim / 64).unwrap()
            };
            let (q, k, v) = (head("q"), head("k"), head("v"));
            let mut turned = |x| b.rope(x, RopeOptions { base: 1e4, ..RopeOptions::default() });
            let (q, k) = (turned(q).unwrap(), turned(k).unwrap());
            let options = AttendOptions { layer, scale: 0.1, window: None, softcap: None };
            let y = b.attend(q, k, v, options).unwrap();
            let y = b.linear(y, "o").unwrap();
            let y = b.linear(y, "up").unwrap();
            let y = b.linear(y, "up").unwrap();
            let y = b.linear(y, "up").unwrap();
            x = b.add(x, y).unwrap();
        }
        b.output(x);
        b.finish()
    }

    #[test]
    fn attentions_are_in_one_chain_if_each_waits_for_the_one_before() {
        let links = |dim, at_first| {
            let (_, made) = chains(&layers(dim, 3, at_first), 90);
            let chained = made.iter().filter_map(|l| match &l.parameters {
                Parameters::Chain(p) => Some(p.links.iter().filter(|l| attends(l)).count()),
                _ => None,
            });
            chained.collect::<Vec<_>>()
        };
        // 256 panels, more than there are blocks; 32 panels.
        assert_eq!(links(1024, false), [3]);
        assert_eq!(links(128, false), [3]);
        // Three at once would leave their shares in one place.
        let apart = links(128, true);
        assert!(apart.iter().all(|&n| n <= 1) && apart.iter().sum::<usize>() == 3);
    }

    #[test]
    fn a_few_links_stay_launches() {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, 128], &[0.0; 4 * 128]).unwrap();
        w.insert("w.weight", &[128, 128], &[0.0; 128 * 128]).unwrap();
        for products in [FEWEST_LINKS - 1, FEWEST_LINKS] {
            let mut b = Builder::new(&w);
            let mut x = b.embed("x").unwrap();
            for _ in 0..products {
                x = b.linear(x, "w").unwrap();
            }
            b.output(x);
            let (_, made) = chains(&b.finish(), 90);
            let chained = made.iter().any(|l| l.kernel == Kernel::Chain);
            assert_eq!(chained, products == FEWEST_LINKS, "{products} products");
        }
    }

    #[test]
    fn what_a_chain_asks_for_fits_its_ring() {
        let (bases, made) = chains(&layers(1024, 2, false), 90);
        let chain = made.iter().find_map(|l| match &l.parameters {
            Parameters::Chain(p) => Some((p, l.shape)),
            _ => None,
        });
        let (p, shape) = chain.unwrap();
        let ring = p.chain.beside as usize;
        assert!(ring.is_multiple_of(128) && ring == shape.shared as usize);
        assert!(ring + CHAIN_SHARED <= 227 << 10);
        for link in &p.links {
            match &link.parameters {
                Parameters::Gemv(p) => {
                    let page = p.batch * p.part[0].panel_bytes;
                    assert!(p.passes > 1 || page as usize <= ring / 2);
                    // Blocks of the chain, not of the launch alone, share the panels.
                    assert_eq!(p.each, p.first[MAX_DOMAINS] / 132);
                }
                Parameters::AttendOne(p) => assert!(one_room(&mut p.clone()) <= ring),
                _ => unreachable!(),
            }
            assert!(kind(link, &bases).is_some());
        }
    }

    #[test]
    fn the_fewer_the_weights_the_slower_they_are_asked_for() {
        let paces = |dim| {
            let (_, made) = chains(&layers(dim, 2, false), 90);
            let chain = made.iter().find_map(|l| match &l.parameters {
                Parameters::Chain(p) => Some(p),
                _ => None,
            });
            let products = chain.unwrap().links.iter().filter_map(|l| match &l.parameters {
                Parameters::Gemv(p) => Some((p.pace, weights(p))),
                _ => None,
            });
            products.collect::<Vec<_>>()
        };
        let (wide, narrow) = (paces(2048), paces(1024));
        // f32, of q, k, v and of one.
        assert_eq!((wide[0].1, wide[1].1), (3.0 * 4.0 * 2048.0 * 2048.0, 4.0 * 2048.0 * 2048.0));
        for of in [&wide, &narrow] {
            let (last, others) = of.split_last().unwrap();
            assert!(last.0 == 0 && others.iter().all(|p| p.0 == of[0].0 && p.0 >= 80));
        }
        assert!(wide[0].0 < narrow[0].0);
    }

    #[test]
    fn what_links_read_of_each_other_is_theirs_alone() {
        let graph = arch::build(&crate::embedded::tiny().unwrap()).unwrap();
        let (bases, made) = chains(&graph, 90);
        let mut left = Vec::new();
        for launch in &made {
            if let Parameters::Rows(p) = &launch.parameters {
                let puts = p.op.iter().filter(|op| op.what == R_PUT && is_fresh(op.b.at, &bases));
                left.extend(puts.map(|op| (op.b.at, 4 * u64::from(op.b.n))));
            }
            let Parameters::Chain(p) = &launch.parameters else { continue };
            assert!(launch.shape.together && launch.shape.grid.0 == 132);
            assert!(launch.shape.shared as usize + CHAIN_SHARED <= 227 << 10);
            let bytes = table(&p.links, &bases);
            assert_eq!(bytes.len(), p.links.len() * LINK_BYTES);
            for link in &p.links {
                // No place is written twice, and all but the last link's are kept apart.
                for (at, len) in outputs(link) {
                    assert!(left.iter().all(|&(a, n)| at + len <= a || a + n <= at));
                    left.push((at, len));
                }
                if let Parameters::Gemv(p) = &link.parameters
                    && is_fresh(p.x, &bases)
                {
                    assert!(left.iter().any(|&(a, n)| a <= p.x && p.x < a + n));
                }
            }
        }
        assert!(left.len() > 20);
        // Before sm_90 there are none.
        let (_, made) = chains(&graph, 80);
        assert!(made.iter().all(|l| l.kernel != Kernel::Chain));
    }
}
