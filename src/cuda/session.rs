//! The memory of a model on a device, and the door to it.
//!
//! | file | holds |
//! |---|---|
//! | `kernels` | the functions of the cubins, by kernel |
//! | `upload` | weights and tables on their way up |
//! | `step` | one step: checked, launched, captured |
//! | `profile` | how long each launch of it takes |

mod kernels;
mod profile;
mod step;
mod upload;

use super::CudaBackend;
use super::abi::{Given, MAKES_HEADS, READ_BEHIND, SEVERAL, SamplerState};
use super::driver::{Device, Event, Function, Graph, Memory, Pinned, Stream};
use super::lower::{Chip, launches, table};
use super::program::{Bases, Kernel, Launch, Parameters, Program, Tensor, Work};
use crate::error::Size;
use crate::graph::op::Sampler;
use crate::graph::{DType, Lead, Weights};
use crate::plan::{Bytes, Limits, Progress, Role, Session, StepInput, Times, Traffic, origin};
use crate::{Error, Result};
use kernels::{Functions, function};
pub(super) use kernels::{Loaded, kernels};
#[cfg(test)]
pub(super) use profile::times;
use std::sync::Arc;

/// What the device leaves when a logit was not finite.
const NO_TOKEN: u32 = u32::MAX;

/// Weights and caches on a device, and the programs that run on them.
pub struct CudaSession {
    /// One row, one token: what [`Session::step`] replays, in each turn.
    graphs: Vec<Graph>,
    /// Steps of more rows, captured when they come again: the latest first.
    repeated: Vec<Repeated>,
    programs: Vec<Ready>,
    /// Takes rows that the caller gives.
    take: (Function, Given),
    weights: Memory,
    kv: Memory,
    scratch: Memory,
    logits: Memory,
    tables: Memory,
    work: Memory,
    bases: Bases,
    /// The words that the sampler leaves for the host.
    result: Pinned,
    /// Where the captured step of each turn ends, and how many of them nobody has had the token of.
    ends: [Event; 2],
    asked: usize,
    /// Tokens, positions, slots and rows on their way to the device, one after the other.
    staging: Pinned,
    state: State,
    traffic: Traffic,
    /// What went wrong with the device: then nothing more is run.
    dead: Option<String>,
    loaded: Arc<Loaded>,
    stream: Stream,
    device: Device,
}

/// A shape of step: its program, rows, and rows with logits; a graph from the second time on.
struct Repeated {
    shape: (usize, usize, usize),
    /// Of each turn.
    graphs: [Option<Graph>; 2],
}

/// A program with its launches. There may be two turns of them, for steps in turn: where they are chained, links of
/// a step leave their numbers in other places than those of the step before; and the token of a step that is
/// captured is read while the next one runs.
struct Ready {
    program: Program,
    turns: Vec<Launches>,
    /// Whose turn it is.
    turn: usize,
    /// Words for the host from a turn's first to the next one's.
    apart: usize,
    /// If it is for steps of two to so many rows only; else 0.
    few: usize,
}

type Launches = Vec<(Launch, Functions)>;

impl Ready {
    fn launches(&self) -> &[(Launch, Functions)] {
        self.turns.get(self.turn).map_or(&[], Vec::as_slice)
    }

    /// Whether it runs steps of so many rows, so many of them with logits.
    fn holds(&self, rows: usize, outs: usize) -> bool {
        let limits = self.program.plan.limits();
        let few = self.few == 0 || (2..=self.few).contains(&rows);
        few && rows <= limits.rows && outs <= limits.outs
    }

    fn samples(&self) -> bool {
        self.launches().iter().any(|(l, _)| l.kernel == Kernel::Pick)
    }

    /// The turn of the latest step but so many.
    fn latest(&self, before: usize) -> usize {
        (self.turn + 1 + before) % self.turns.len().max(1)
    }

    /// After a step, or as much of one as has its chains.
    fn pass(&mut self) {
        self.turn = (self.turn + 1) % self.turns.len().max(1);
    }
}

/// What the host knows of the step.
struct State {
    rows: usize,
    outs: usize,
    /// Position and slot of the last row with logits.
    last: (u32, u32),
    /// Tokens sampled in the last step.
    sampled: Vec<u32>,
    /// The program of the last step.
    program: usize,
}

impl std::fmt::Debug for CudaSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaSession").field("device", &self.device.name).finish_non_exhaustive()
    }
}

impl CudaSession {
    pub(super) fn load(
        backend: &CudaBackend,
        programs: Vec<Program>,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<CudaSession> {
        let _span = tracing::info_span!("load").entered();
        let Some(last) = programs.last() else {
            return Err(Error::Invalid("a session needs a program".to_string()));
        };
        check_programs(&programs)?;
        let device = backend.device.clone();
        device.bind()?;
        let limits = *last.plan.limits();
        let work = programs.iter().map(|p| p.work).fold(Work::default(), Work::max);
        let offsets = work.offsets().ok_or_else(too_large)?;
        let most = |of: fn(&Bytes) -> u64| {
            size(programs.iter().map(|p| of(p.plan.bytes())).max().unwrap_or(0))
        };
        let bytes = *last.plan.bytes();
        check_memory(&device, &bytes, offsets[Work::PARTS] as u64, &limits)?;

        let stream = Stream::new(&device)?;
        let loaded = backend.loaded()?;
        let memory = |bytes: usize| Memory::new(&device, &stream, bytes);
        let (mut result, staging) = (
            Pinned::new(&device, limits.outs.saturating_mul(8).saturating_add(64))?,
            Pinned::new(&device, limits.rows.saturating_mul(16).saturating_add(64))?,
        );
        result.bytes_mut().fill(0xff);
        let mut session = CudaSession {
            graphs: Vec::new(),
            repeated: Vec::new(),
            programs: Vec::new(),
            take: (function(&loaded.functions, None)?[0], Given::default()),
            weights: memory(size(bytes.weights)?.saturating_add(READ_BEHIND))?,
            kv: memory(size(bytes.kv)?)?,
            scratch: memory(most(|b| b.scratch)?)?,
            logits: memory(most(|b| b.logits)?)?,
            tables: memory(size(bytes.tables)?)?,
            work: memory(offsets[Work::PARTS])?,
            bases: Bases::default(),
            result,
            ends: [Event::new(&device)?, Event::new(&device)?],
            asked: 0,
            staging,
            state: State {
                rows: 0,
                outs: 0,
                last: (0, 0),
                sampled: Vec::with_capacity(limits.outs),
                program: 0,
            },
            traffic: Traffic::default(),
            dead: None,
            loaded,
            stream,
            device,
        };
        session.bases = session.addresses(&work, &offsets, &limits)?;
        session.stream.wait()?;
        session.fill(&last.tensors, weights, progress)?;
        session.tabulate(&last.ropes, limits.context, weights)?;
        let chip = &backend.target.0;
        let count = programs.len();
        for (i, program) in programs.into_iter().enumerate() {
            // Over several, the one that holds every step: of as few rows as chains take, and of some more.
            if program.work.several > 0 && i + 1 == count {
                let (at, links) = ((offsets[12], work.several), (offsets[13], work.several_links));
                let mut turns = session.turns(at, links)?;
                turns.iter_mut().for_each(|b| b.few = SEVERAL);
                session.add(program.clone(), chip, &turns, SEVERAL)?;
                let more = Bases { few: MAKES_HEADS, ..session.bases };
                session.add(program.clone(), chip, &[more], MAKES_HEADS)?;
            }
            // Steps over one row: the first program that holds them runs them all.
            let mut turns = vec![session.bases];
            if session.programs.is_empty() {
                turns = session.turns((offsets[10], work.fresh), (offsets[11], work.links))?;
                turns[1].result += 4 * limits.outs as u64;
            }
            session.add(program, chip, &turns, 0)?;
        }
        session.take.1 = Given {
            from: session.staging.address()?,
            tokens: session.bases.tokens,
            positions: session.bases.positions,
            slots: session.bases.slots,
            outs: session.bases.outs,
            history: if work.history > 0 { session.bases.history } else { 0 },
            context: u32::try_from(limits.context).map_err(|_| too_large())?,
            ..Given::default()
        };
        session.set_sampler(&Sampler::greedy())?;
        session.record()?;
        Ok(session)
    }

    fn addresses(
        &self,
        work: &Work,
        at: &[usize; Work::PARTS + 1],
        limits: &Limits,
    ) -> Result<Bases> {
        let base = self.work.address;
        let part = |i: usize| base + at[i] as u64;
        let list = |i: usize| {
            // Four lists, each from a multiple of 256.
            part(9) + (limits.rows * 4).next_multiple_of(256) as u64 * i as u64
        };
        Ok(Bases {
            weights: self.weights.address,
            kv: self.kv.address,
            scratch: self.scratch.address,
            logits: self.logits.address,
            tables: self.tables.address,
            raw: part(0),
            x: part(1),
            high: part(2),
            low: part(2) + work.split as u64 / 2,
            partial: part(3),
            adjusted: part(4),
            best: part(5),
            arrived: part(6),
            sampled: part(7),
            history: part(8),
            tokens: list(0),
            positions: list(1),
            slots: list(2),
            outs: list(3),
            sampler: list(3) + (limits.outs * 4).next_multiple_of(256) as u64,
            result: self.result.address()?,
            fresh: 0,
            next: 0,
            links: 0,
            sorted: part(14),
            few: 0,
        })
    }

    /// Where everything is in each of two turns, with nobody's number in places that links leave theirs in.
    /// Of places and links: where they are in the workspace, and how many bytes.
    fn turns(&self, fresh: (usize, usize), links: (usize, usize)) -> Result<Vec<Bases>> {
        let half = i64::try_from(fresh.1 / 2).map_err(|_| too_large())?;
        let part = |at: usize| self.work.address + at as u64;
        // SAFETY: the workspace has as much there.
        unsafe { self.stream.fill(part(fresh.0), 0xff, fresh.1)? };
        let (at, to) = (part(fresh.0), part(links.0));
        let first = Bases { fresh: at, next: half, links: to, ..self.bases };
        let (at, to) = (at + half as u64, to + links.1 as u64 / 2);
        Ok(vec![first, Bases { fresh: at, next: -half, links: to, ..first }])
    }

    /// Makes a program's launches, in each turn.
    fn add(&mut self, program: Program, chip: &Chip, turns: &[Bases], few: usize) -> Result<()> {
        let mut made = Vec::new();
        for bases in turns {
            let launches = launches(chip, &program, bases)?;
            self.send_links(&launches, bases)?;
            let functions = &self.loaded.functions;
            let with = |l: Launch| Ok((function(functions, Some(l.kernel))?, l));
            let with: Result<Vec<_>> = launches.into_iter().map(with).collect();
            made.push(with?.into_iter().map(|(f, l)| (l, f)).collect());
        }
        let apart = turns.iter().map(|b| b.result - self.bases.result).max().unwrap_or(0) / 4;
        let apart = size(apart)?;
        self.programs.push(Ready { program, turns: made, turn: 0, apart, few });
        Ok(())
    }

    /// The parameters of links go up once.
    fn send_links(&self, made: &[Launch], bases: &Bases) -> Result<()> {
        for launch in made {
            let Parameters::Chain(p) = &launch.parameters else { continue };
            // SAFETY: the workspace has room for the links of both turns.
            unsafe { self.stream.upload(p.chain.links, &table(&p.links, bases))? };
            self.stream.wait()?;
        }
        Ok(())
    }

    /// Nodes of the captured step, and how many of them are kernels: all must be, or something
    /// crosses.
    ///
    /// # Errors
    /// When the driver cannot say.
    pub fn graph_nodes(&self) -> Result<Option<(usize, usize)>> {
        self.graphs.first().map(Graph::nodes).transpose()
    }

    /// Bytes of device memory that can be allocated now.
    ///
    /// # Errors
    /// When the driver cannot say.
    pub fn free_memory(&self) -> Result<u64> {
        Ok(self.device.memory()?.0)
    }
}

fn too_large() -> Error {
    Error::Plan("its sizes overflow".to_string())
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| too_large())
}

/// Programs of a session share weights and caches, so they must agree on both.
fn check_programs(programs: &[Program]) -> Result<()> {
    let agree = programs.windows(2).all(|w| {
        let (a, b) = (w[0].plan.limits(), w[1].plan.limits());
        let same = |a: &Tensor, b: &Tensor| a.name == b.name && a.offset == b.offset;
        w[0].tensors.len() == w[1].tensors.len()
            && w[0].tensors.iter().zip(&w[1].tensors).all(|(a, b)| same(a, b))
            && w[0].ropes == w[1].ropes
            && w[0].plan.bytes().kv == w[1].plan.bytes().kv
            && (a.context, a.slots) == (b.context, b.slots)
            && a.rows <= b.rows
            && a.outs <= b.outs
    });
    if agree {
        return Ok(());
    }
    Err(Error::Invalid("the programs are not of one graph, smallest first".to_string()))
}

/// Refuses before anything is allocated.
fn check_memory(device: &Device, b: &Bytes, work: u64, limits: &Limits) -> Result<()> {
    // What the driver takes for itself as kernels are loaded and graphs are made.
    const RESERVE: u64 = 256 << 20;
    let has = device.memory()?.0.saturating_sub(RESERVE);
    let needs = b.total().saturating_sub(b.workspace).saturating_add(work);
    if needs <= has {
        return Ok(());
    }
    let rest = Size(needs.saturating_sub(b.weights).saturating_sub(b.kv));
    let (weights, kv, context) = (Size(b.weights), Size(b.kv), limits.context);
    // What is not weights grows with the context, or nearly so: nine tenths of what fits.
    let (room, grows) = (has.saturating_sub(b.weights), needs.saturating_sub(b.weights));
    let fits = u128::from(room / 10 * 9) * context as u128 / u128::from(grows.max(1));
    let hint = match fits {
        0..32 => "no context is small enough for this device".to_string(),
        fits => format!("try --ctx {}", fits / 32 * 32),
    };
    let what = format!("weights {weights}, KV {kv} at context {context}, rest {rest}");
    Err(Error::Memory { what, needs, has, hint })
}

impl Session for CudaSession {
    fn limits(&self) -> &Limits {
        // `load` refuses an empty list.
        static NONE: Limits = Limits { rows: 0, outs: 0, slots: 0, context: 0 };
        self.programs.last().map_or(&NONE, |p| p.program.plan.limits())
    }

    fn run(&mut self, input: &StepInput<'_>) -> Result<()> {
        let vocabulary = self.programs.first().map_or(0, |p| p.program.vocabulary);
        input.check(self.limits(), vocabulary)?;
        let _span = tracing::debug_span!("step", rows = input.tokens.len()).entered();
        self.alive(|s| {
            s.take_back()?;
            s.replay(input)
        })
    }

    fn step(&mut self) -> Result<u32> {
        self.go_on(1)
    }

    fn steps(&mut self, most: usize, each: &mut dyn FnMut(u32) -> bool) -> Result<()> {
        for left in (1..=most).rev() {
            if !each(self.go_on(left)?) {
                break;
            }
        }
        Ok(())
    }

    fn sampled(&self) -> &[u32] {
        &self.state.sampled
    }

    fn set_sampler(&mut self, sampler: &Sampler) -> Result<()> {
        sampler.check()?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let s = SamplerState {
            temperature: sampler.temperature,
            top_p: sampler.top_p,
            min_p: sampler.min_p,
            penalty: sampler.repeat_penalty,
            top_k: small(sampler.top_k),
            last_n: small(sampler.repeat_last_n),
            seed: sampler.seed,
            draws: 0,
        };
        self.alive(|session| {
            session.take_back()?;
            let mut bytes = [0u8; size_of::<SamplerState>()];
            let floats = [s.temperature, s.top_p, s.min_p, s.penalty].map(f32::to_bits);
            let words = floats.into_iter().chain([s.top_k, s.last_n]);
            let long = [s.seed, s.draws].into_iter().flat_map(u64::to_le_bytes);
            let all = words.flat_map(u32::to_le_bytes).chain(long);
            bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
            // SAFETY: the state has room for a sampler.
            unsafe { session.stream.upload(session.bases.sampler, &bytes)? };
            session.stream.wait()
        })
    }

    fn peek(&mut self, output: usize) -> Option<Vec<f32>> {
        // A step ahead has written over it.
        if self.asked > 0 {
            return None;
        }
        let ready = self.programs.get(self.state.program)?;
        let plan = &ready.program.plan;
        let graph = plan.graph();
        let id = origin(graph, *graph.outputs().get(output)?);
        let ty = graph.ty(id);
        let buffer = plan.place(id).filter(|_| ty.dtype == DType::F32)?;
        let base = match buffer.role {
            Role::Scratch => self.bases.scratch,
            Role::Logits => self.bases.logits,
            _ => return None,
        };
        let rows = if ty.lead == Lead::Outs { self.state.outs } else { self.state.rows };
        let mut bytes = vec![0u8; rows * ty.width() * 4];
        if !bytes.is_empty() {
            self.device.bind().ok()?;
            // SAFETY: the plan placed as many rows there.
            unsafe { self.stream.download(&mut bytes, base + buffer.offset).ok()? };
        }
        self.traffic.bytes_out += bytes.len() as u64;
        Some(bytes.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect())
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn profile(&mut self, input: &StepInput<'_>, rounds: usize) -> Result<Times> {
        let vocabulary = self.programs.first().map_or(0, |p| p.program.vocabulary);
        input.check(self.limits(), vocabulary)?;
        self.alive(|s| {
            s.take_back()?;
            s.watched(input, rounds)
        })
    }
}

impl Drop for CudaSession {
    fn drop(&mut self) {
        // What still runs must end before its memory goes.
        if self.device.bind().is_ok() {
            let _ = self.stream.wait();
        }
    }
}
