//! How long each launch of the step takes, by prefixes.
//!
//! Launches overlap, so one alone says little. The step is captured again and again, with its first
//! launch, its first two, and so on; the difference of two neighbours is what a launch adds. So the
//! sum of all differences is the step, whatever overlaps. Each prefix runs behind a whole step, which
//! leaves caches and memory as a step in a row of steps finds them, and takes longer than the host
//! needs to ask for what follows. In all these the sampler picks and does not advance: every run is
//! at the same position.
//!
//! A chain says itself when each of its links ended in each block, if it is given memory for that.

use super::{CudaSession, Ready, too_large};
use crate::cuda::abi::{
    Domain, Epilogue, FACTORED, Heads, Matrix, Operand, R_NORM, RowList, VECTOR,
};
use crate::cuda::driver::{Event, Function, Graph, Memory, Shape};
use crate::cuda::layout::Product;
use crate::cuda::program::{Bases, Kernel, Launch, Parameters, unchained};
use crate::graph::NodeId;
use crate::plan::{Part, Plan, Rate, Role, StepInput, Timed, Times, median};
use crate::{Error, Result};
use std::time::Instant;

/// Runs of a prefix in each round.
const RUNS: usize = 4;
/// Steps in a row, whose mean is the step's own time.
const ROW: usize = 20;
/// Bytes that are copied to see what memory does, at most.
const COPIED: u64 = 512 << 20;

impl CudaSession {
    pub(super) fn watched(&mut self, input: &StepInput<'_>, rounds: usize) -> Result<Times> {
        if (input.tokens.len(), input.outs.len()) != (1, 1) {
            return Err(Error::Invalid("a profile is of one row and its token".to_string()));
        }
        let context = self.programs.last().map_or(0, |p| p.program.plan.limits().context);
        let position = input.positions.first().map_or(0, |&p| p as usize);
        if position.saturating_add(2 * ROW + 1) >= context {
            let (what, wants) = (format!("a profile at position {position}"), position + 64);
            return Err(Error::Context { context, what, wants });
        }
        let (Some(index), false) = (self.sampling(), self.graphs.is_empty()) else {
            return Err(Error::Invalid("the graph does not sample".to_string()));
        };
        self.set_advance(index, false);
        let measured = self.prefixes(index, input, rounds.max(1));
        // Whatever happened, a step advances again.
        self.set_advance(index, true);
        let (clock, empty, ends) = measured?;
        let (replay, token) = self.steps(input, rounds.max(1))?;
        let (ceiling, beside) = self.ceiling()?;
        self.replay(input)?;
        let Some(ready) = self.programs.get(index) else { return Err(too_large()) };
        let made = unchained(ready.launches().iter().map(|(l, _)| l));
        let launches = times(&ready.program.plan, &made, &self.bases, clock, &ends);
        let steps = rounds.max(1) * RUNS;
        Ok(Times { launches, clock, replay, token, empty, ceiling, beside, steps })
    }

    /// Whether the sampler of this program advances the state.
    fn set_advance(&mut self, index: usize, advance: bool) {
        let turns = self.programs.get_mut(index).into_iter().flat_map(|r| &mut r.turns);
        for (launch, _) in turns.flatten() {
            if let Parameters::Sample(p) = &mut launch.parameters {
                p.advance = u32::from(advance);
            }
        }
    }

    /// Time of an empty pair of marks, of as many launches that do nothing, and to the end of each
    /// launch: medians, the first included in all others.
    fn prefixes(
        &mut self,
        index: usize,
        input: &StepInput<'_>,
        rounds: usize,
    ) -> Result<(f64, Option<f64>, Vec<f64>)> {
        // Token, position and slot go up; this run does not advance.
        self.replay(input)?;
        let count = self.programs.get(index).map_or(0, |r| r.launches().len());
        let whole = self.part(index, count)?;
        let nothing = self.nothing(index)?;
        let marks = (Event::new(&self.device)?, Event::new(&self.device)?);
        let mut clock = Vec::new();
        let mut empty = Vec::new();
        let mut ends = vec![Vec::new(); count];
        for _ in 0..rounds {
            for _ in 0..RUNS {
                clock.push(self.timed(index, &whole, &marks, None)?);
            }
            if let Some(nothing) = &nothing {
                self.go(index, nothing)?;
                self.stream.wait()?;
                for _ in 0..RUNS {
                    empty.push(self.timed(index, &whole, &marks, Some(nothing))?);
                }
            }
            for (i, end) in ends.iter_mut().enumerate() {
                let prefix = self.part(index, i + 1)?;
                // A new graph goes up when it is first launched: one for each turn.
                for _ in 0..prefix.graphs.len() {
                    self.go(index, &prefix)?;
                }
                self.stream.wait()?;
                for _ in 0..RUNS {
                    end.push(self.timed(index, &whole, &marks, Some(&prefix))?);
                }
            }
        }
        let clock = median(clock);
        let empty = (!empty.is_empty()).then(|| median(empty) - clock);
        let ends = ends.into_iter().map(median).collect();
        Ok((clock, empty, self.with_links(index, clock, ends, rounds)?))
    }

    /// The first launches of a step over one row.
    fn part(&mut self, index: usize, most: usize) -> Result<Graphs> {
        let graphs = self.capture_turns(index, most)?;
        let launches = self.programs.get(index).map_or(&[][..], Ready::launches);
        let chained = launches.iter().take(most).any(|(l, _)| l.kernel == Kernel::Chain);
        Ok(Graphs { graphs, chained })
    }

    fn go(&mut self, index: usize, of: &Graphs) -> Result<()> {
        let Some(ready) = self.programs.get_mut(index) else { return Ok(()) };
        let graph = of.graphs.get(ready.turn).or(of.graphs.first());
        graph.map_or(Ok(()), |g| g.launch(&self.stream))?;
        if of.chained {
            ready.pass();
        }
        Ok(())
    }

    /// The ends of launches, those of chains parted into the ends of their links.
    fn with_links(
        &mut self,
        index: usize,
        clock: f64,
        ends: Vec<f64>,
        rounds: usize,
    ) -> Result<Vec<f64>> {
        let (mut all, mut before) = (Vec::new(), clock);
        for (i, end) in ends.into_iter().enumerate() {
            let mut steps = self.links(index, i, rounds)?;
            let rest: f64 = steps.iter().sum();
            let whole = (end - before).max(0.0);
            if rest > whole {
                steps.iter_mut().for_each(|s| *s *= whole / rest);
            }
            // The first link has what the others leave.
            let mut at = end - rest.min(whole);
            all.push(at);
            for step in steps {
                at += step;
                all.push(at);
            }
            before = end;
        }
        Ok(all)
    }

    /// What each link after the first takes of a launch, a chain; nothing of any other.
    fn links(&mut self, index: usize, launch: usize, rounds: usize) -> Result<Vec<f64>> {
        let Some((launched, _)) = self.programs.get(index).and_then(|r| r.launches().get(launch))
        else {
            return Ok(Vec::new());
        };
        let Parameters::Chain(p) = &launched.parameters else { return Ok(Vec::new()) };
        let (links, blocks) = (p.links.len(), launched.shape.grid.0 as usize);
        let memory = Memory::new(&self.device, &self.stream, links * blocks * 8)?;
        self.set_times(index, launch, memory.address);
        let count = self.programs.get(index).map_or(0, |r| r.launches().len());
        let whole = self.part(index, count);
        self.set_times(index, launch, 0);
        let (whole, mut steps) = (whole?, vec![Vec::new(); links.saturating_sub(1)]);
        let mut bytes = vec![0; memory.bytes];
        for _ in 0..RUNS * rounds {
            // In a row, as steps are.
            self.go(index, &whole)?;
            self.go(index, &whole)?;
            // SAFETY: as large as the memory.
            unsafe { self.stream.download(&mut bytes, memory.address)? };
            let times: Vec<u64> =
                bytes.as_chunks().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
            steps.iter_mut().zip(taken(&times, links)).for_each(|(all, t)| all.push(t));
        }
        Ok(steps.into_iter().map(median).collect())
    }

    fn set_times(&mut self, index: usize, launch: usize, times: u64) {
        for turn in self.programs.get_mut(index).into_iter().flat_map(|r| &mut r.turns) {
            if let Some(Parameters::Chain(p)) = turn.get_mut(launch).map(|(l, _)| &mut l.parameters)
            {
                p.chain.times = times;
            }
        }
    }

    /// Seconds that `part` takes behind a whole step.
    fn timed(
        &mut self,
        index: usize,
        whole: &Graphs,
        marks: &(Event, Event),
        part: Option<&Graphs>,
    ) -> Result<f64> {
        self.go(index, whole)?;
        marks.0.record(&self.stream)?;
        if let Some(part) = part {
            self.go(index, part)?;
        }
        marks.1.record(&self.stream)?;
        self.stream.wait()?;
        marks.1.since(&marks.0)
    }

    /// As many launches as the step has, of the same shapes, that do nothing: lists of row-local
    /// work without a job.
    fn nothing(&self, index: usize) -> Result<Option<Graphs>> {
        let Some(ready) = self.programs.get(index) else { return Ok(None) };
        let all = self.programs.iter().flat_map(Ready::launches);
        let lists = all.filter_map(|(l, f)| match &l.parameters {
            Parameters::Rows(list) => Some((f.first().copied()?, list)),
            _ => None,
        });
        let Some((function, list)) = lists.into_iter().next() else { return Ok(None) };
        let list = RowList { jobs: 0, blocks: 0, ..**list };
        let graph = self.stream.capture(|| {
            let mut shapes = ready.launches().iter().map(|(l, _)| l.shape);
            shapes.try_for_each(|shape| self.empty(&function, &list, shape))
        })?;
        Ok(Some(Graphs { graphs: vec![graph], chained: false }))
    }

    fn empty(&self, function: &Function, list: &RowList, shape: Shape) -> Result<()> {
        // A list has no larger blocks, and no clusters.
        let shape = Shape { block: shape.block.min(256), cluster: 1, together: false, ..shape };
        // SAFETY: the kernel of lists takes a list; without jobs it touches no memory.
        unsafe { function.launch(&shape, list, &self.stream) }
    }

    /// The captured step itself, many in a row: seconds of one on the device, and from token to
    /// token with the host's part.
    fn steps(&mut self, input: &StepInput<'_>, rounds: usize) -> Result<(f64, f64)> {
        let marks = (Event::new(&self.device)?, Event::new(&self.device)?);
        let (mut device, mut host) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            self.replay(input)?;
            // The first gives the host a start.
            self.ask()?;
            marks.0.record(&self.stream)?;
            for _ in 0..ROW {
                self.ask()?;
            }
            marks.1.record(&self.stream)?;
            self.stream.wait()?;
            device.push(marks.1.since(&marks.0)? / ROW as f64);
            let start = Instant::now();
            self.asked = 0;
            for left in (1..=ROW).rev() {
                while self.asked < left.min(2) {
                    self.ask()?;
                }
                std::hint::black_box(self.answer()?);
            }
            host.push(start.elapsed().as_secs_f64() / ROW as f64);
        }
        Ok((median(device), median(host)))
    }

    /// The roof: what the memory's pins carry, or else what a copy moves.
    fn ceiling(&self) -> Result<(Rate, Option<Rate>)> {
        let copy = self.copied()?.map(|bytes_per_second| Rate {
            bytes_per_second,
            how: "what a copy within the device reads and writes together, measured in this run",
        });
        let peak = self.device.peak()?.map(|bytes_per_second| Rate {
            bytes_per_second,
            how: "what the memory's pins carry: two bits a clock and line, as the driver gives clock \
                  and width; no kernel reaches it",
        });
        match (peak, copy) {
            (Some(peak), copy) => Ok((peak, copy)),
            (None, Some(copy)) => Ok((copy, None)),
            (None, None) => {
                let what = "the driver does not say how fast its memory is, and there is no room to \
                            measure it";
                Err(Error::Unsupported(format!("CUDA: {what}")))
            }
        }
    }

    /// Bytes a second, read and written, of the best of several copies; none if there is no room.
    fn copied(&self) -> Result<Option<f64>> {
        let bytes = (self.device.memory()?.0 / 4).min(COPIED);
        // Less than this the second-level cache keeps.
        if bytes < COPIED / 4 {
            return Ok(None);
        }
        let Ok(bytes) = usize::try_from(bytes) else { return Ok(None) };
        let from = Memory::new(&self.device, &self.stream, bytes)?;
        let to = Memory::new(&self.device, &self.stream, bytes)?;
        let marks = (Event::new(&self.device)?, Event::new(&self.device)?);
        let mut best = 0.0f64;
        for _ in 0..5 {
            self.stream.copy(&to, &from)?;
            marks.0.record(&self.stream)?;
            self.stream.copy(&to, &from)?;
            marks.1.record(&self.stream)?;
            self.stream.wait()?;
            let seconds = marks.1.since(&marks.0)?;
            if seconds > 0.0 {
                best = best.max(2.0 * bytes as f64 / seconds);
            }
        }
        Ok((best > 0.0).then_some(best))
    }
}

/// A part of a step, as a graph for each turn, and whether chains are in it.
struct Graphs {
    graphs: Vec<Graph>,
    chained: bool,
}

/// From when each link of a chain ended in each block, what each link after the first took.
fn taken(times: &[u64], links: usize) -> Vec<f64> {
    let blocks = (times.len() / links.max(1)).max(1);
    let ends: Vec<u64> =
        times.chunks(blocks).map(|of| of.iter().copied().max().unwrap_or(0)).collect();
    ends.windows(2).map(|w| w[1].saturating_sub(w[0]) as f64 * 1e-9).collect()
}

/// Launches with their times: from the end of each, what it adds.
pub(in crate::cuda) fn times(
    plan: &Plan,
    made: &[&Launch],
    bases: &Bases,
    clock: f64,
    ends: &[f64],
) -> Vec<Timed> {
    let before = std::iter::once(&clock).chain(ends);
    let all = made.iter().zip(ends.iter().zip(before));
    let mut launches: Vec<Timed> =
        all.map(|(launch, (end, before))| timed(plan, launch, bases, end - before)).collect();
    parts(&mut launches);
    launches
}

/// What a launch is, apart from its place in the group.
fn timed(plan: &Plan, launch: &Launch, bases: &Bases, seconds: f64) -> Timed {
    let mut weights: Vec<NodeId> = addresses(&launch.parameters)
        .into_iter()
        .filter_map(|at| at.checked_sub(bases.weights))
        .filter_map(|at| weight_at(plan, at))
        .collect();
    weights.sort_unstable();
    weights.dedup();
    Timed {
        group: launch.group,
        part: match launch.kernel {
            Kernel::Gemv(_) | Kernel::Gemm(_) | Kernel::Several(_) => Part::Product,
            Kernel::Experts(_) | Kernel::Picked(_) => Part::Product,
            _ => Part::Whole,
        },
        takes_on: match &launch.parameters {
            Parameters::AttendOne(p) => p.k.raw != 0,
            Parameters::AttendFew(_) => true,
            _ => false,
        },
        kernel: name(launch.kernel),
        weights: Some(weights),
        seconds,
        waits: None,
    }
}

/// Which launches come before and after the product of their group.
fn parts(launches: &mut [Timed]) {
    let products: Vec<usize> =
        launches.iter().filter(|t| t.part == Part::Product).map(|t| t.group).collect();
    let mut passed = None;
    for t in launches {
        if t.part == Part::Product {
            passed = Some(t.group);
        } else if products.contains(&t.group) {
            t.part = if passed == Some(t.group) { Part::After } else { Part::Before };
        }
    }
}

/// The weight that lies at this byte of the weights' memory.
fn weight_at(plan: &Plan, at: u64) -> Option<NodeId> {
    let weights = plan.buffers().iter().filter(|b| b.role == Role::Weight);
    let mut found = weights.filter(|b| b.offset <= at && at - b.offset < b.bytes);
    found.next().map(|b| b.value)
}

/// Where the weights are that a launch may read; zeros and other memory among them.
fn addresses(parameters: &Parameters) -> Vec<u64> {
    let attention = |heads: [&Heads; 3], sinks| {
        let of = heads.into_iter().flat_map(|h| [h.bias, h.norm]);
        of.chain([sinks]).collect()
    };
    match parameters {
        Parameters::Gemv(p) => of_product(&p.domain, &p.part).chain([p.norm]).collect(),
        Parameters::Several(p) => of_product(&p.domain, &p.part).chain([p.norm]).collect(),
        Parameters::Gemm(p) => of_product(&p.domain, &p.part).chain([p.norm]).collect(),
        Parameters::Experts(p) => p.part.iter().map(|m| m.data).chain([p.norm]).collect(),
        Parameters::Rows(p) => {
            let tables = p.table.iter().map(|m| m.data);
            let ops = p.op.iter().flat_map(|op| {
                let vector = |o: &Operand| if o.place == VECTOR { o.at } else { 0 };
                let params = match op.what {
                    R_NORM if op.kind & FACTORED != 0 => [op.aux, 0],
                    R_NORM => [op.aux, op.aux2],
                    _ => [0; 2],
                };
                [vector(&op.a), vector(&op.b), params[0], params[1]]
            });
            tables.chain(ops).collect()
        }
        Parameters::Attend(p) => vec![p.sinks],
        Parameters::AttendOne(p) => attention([&p.q, &p.k, &p.v], p.sinks),
        Parameters::AttendFew(p) => attention([&p.q, &p.k, &p.v], p.many.sinks),
        // Its links have their own lines.
        Parameters::Picks(_) | Parameters::Chain(_) | Parameters::Sample(_) => Vec::new(),
    }
}

/// The weights of a product, and the vectors of what becomes of it.
fn of_product<'a>(domain: &'a [Domain], part: &'a [Matrix]) -> impl Iterator<Item = u64> + 'a {
    part.iter().map(|m| m.data).chain(domain.iter().flat_map(|d| operands(&d.epilogue)))
}

/// The vectors of an epilogue.
fn operands(e: &Epilogue) -> Vec<u64> {
    let ops = e.ops.iter().flat_map(|op| [op.a, op.b]);
    ops.chain([e.residual]).filter(|o| o.place == VECTOR).map(|o| o.at).collect()
}

/// The kernel's name in the cubins.
fn name(kernel: Kernel) -> String {
    let of = |what: &str, product: Product| format!("{what}_{}", product.name());
    match kernel {
        Kernel::Gemv(p) => of("gemv", p),
        Kernel::Gemm(p) => of("gemm", p),
        Kernel::Experts(p) => of("experts", p),
        Kernel::Picked(p) => of("picked", p),
        Kernel::SortPicks => "sort_picks".to_string(),
        Kernel::Rows => "rows".to_string(),
        Kernel::Attend => "attend".to_string(),
        Kernel::AttendOne(pairs) => format!("attend_one_{pairs}"),
        Kernel::AttendMany(pairs) => format!("attend_many_{pairs}"),
        Kernel::AttendFew(pairs, warps) => format!("attend_few_{pairs}_{warps}"),
        Kernel::Several(p) => of("several", p),
        Kernel::Chain => "chain".to_string(),
        Kernel::SeveralChain => "several".to_string(),
        Kernel::Scan => "scan".to_string(),
        Kernel::Pick => "pick".to_string(),
    }
}
