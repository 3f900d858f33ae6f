//! The memory of a model on the CPU, and the door to it.

use super::load;
use super::memory::{Memory, available};
use super::pool::{Panicked, Pool};
use super::program::{Program, Rows};
use super::rope::RopeTable;
use super::run::Exec;
use super::span::SpanKernels;
use super::watch::{Unwatched, Watch};
use super::{CpuBackend, simd::Isa};
use crate::error::{Size, quoted};
use crate::graph::op::{Sampler, SamplerScratch, sample};
use crate::graph::{Graph, Lead, Op, Weights};
use crate::plan::{Limits, Progress, Session, StepInput, Times, Traffic};
use crate::{Error, Result};

/// Weights and caches in memory, and the programs that run on them.
pub struct CpuSession {
    pub(super) isa: Isa,
    spans: &'static SpanKernels,
    pub(super) pool: Pool,
    /// Smallest first.
    pub(super) programs: Vec<Program>,
    weights: Memory,
    kv: Memory,
    scratch: Memory,
    logits: Memory,
    shared: Memory,
    attention: Memory,
    private: Memory,
    private_bytes: usize,
    sampling: Sampling,
    pub(super) state: State,
    traffic: Traffic,
}

/// The few numbers that change from step to step.
pub(super) struct State {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    outs: Vec<u32>,
    /// Tokens sampled in the last step, one for each of `outs`.
    sampled: Vec<u32>,
    /// The program of the last step.
    pub(super) program: usize,
}

/// How tokens are picked, and what that needs to remember.
struct Sampling {
    sampler: Sampler,
    scratch: SamplerScratch,
    /// The tokens of each slot by position.
    history: Vec<u32>,
    /// Tokens drawn so far, which numbers the draws.
    draws: u64,
}

/// Bytes that sampling needs besides the plan's.
pub(super) fn sampler_bytes(graph: &Graph) -> Option<usize> {
    let node = graph.nodes().iter().find(|n| matches!(n.op, Op::Sample(_)));
    let vocabulary = node.and_then(|n| n.args.first()).map_or(0, |&l| graph.ty(l).width());
    vocabulary.checked_mul(SamplerScratch::BYTES_PER_TOKEN)
}

impl CpuSession {
    pub(super) fn load(
        backend: &CpuBackend,
        mut programs: Vec<Program>,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<CpuSession> {
        let _span = tracing::info_span!("load").entered();
        let Some(last) = programs.last() else {
            return Err(Error::Invalid("a session needs a program".to_string()));
        };
        check_programs(backend, &programs)?;
        let limits = last.limits;
        let (weight_bytes, kv_bytes, tensors) =
            (last.weight_bytes, last.kv_bytes, last.tensors.clone());
        let most = |of: fn(&Program) -> usize| programs.iter().map(of).max().unwrap_or(0);
        check_memory(&programs, &limits)?;
        let vocabulary = last.sample.map_or(0, |logits| logits.width);
        let history = limits.slots.checked_mul(limits.context).filter(|_| vocabulary > 0);
        let private_bytes = most(|p| p.work.private);
        let mut session = CpuSession {
            isa: backend.isa(),
            spans: SpanKernels::of(backend.isa()),
            pool: Pool::new(backend.threads())?,
            weights: Memory::new(weight_bytes)?,
            kv: Memory::new(kv_bytes)?,
            scratch: Memory::new(most(|p| p.scratch_bytes))?,
            logits: Memory::new(most(|p| p.logits_bytes))?,
            shared: Memory::new(most(|p| p.work.shared))?,
            attention: Memory::new(most(|p| p.work.attention))?,
            private: Memory::new(private_bytes.saturating_mul(backend.threads()))?,
            private_bytes,
            sampling: Sampling {
                sampler: Sampler::greedy(),
                scratch: SamplerScratch::new(vocabulary),
                history: vec![0; history.unwrap_or(0)],
                draws: 0,
            },
            state: State {
                tokens: Vec::with_capacity(limits.rows),
                positions: Vec::with_capacity(limits.rows),
                slots: Vec::with_capacity(limits.rows),
                outs: Vec::with_capacity(limits.outs),
                sampled: Vec::with_capacity(limits.outs),
                program: 0,
            },
            traffic: Traffic::default(),
            programs: Vec::new(),
        };
        let memory = session.weights.bytes_mut();
        load::fill(&mut session.pool, memory, &tensors, weights, progress)?;
        for program in &mut programs {
            session.tabulate(program)?;
        }
        session.programs = programs;
        Ok(session)
    }

    /// Makes the tables of rotary angles.
    fn tabulate(&self, program: &mut Program) -> Result<()> {
        for rope in &mut program.ropes {
            let factors = rope.factors.map(|at| {
                let bytes = self.weights.bytes().get(at..at + rope.op.dim / 2 * 4);
                let words = bytes.unwrap_or_default().as_chunks().0.iter();
                words.map(|w| f32::from_ne_bytes(*w)).collect::<Vec<f32>>()
            });
            let table = RopeTable::new(&rope.op, factors.as_deref(), program.limits.context)?;
            rope.table = Some(table);
        }
        Ok(())
    }

    /// Runs the smallest program that holds the rows in the state.
    pub(super) fn replay(&mut self) -> Result<()> {
        self.replay_watched(&Unwatched)
    }

    pub(super) fn replay_watched<W: Watch>(&mut self, watch: &W) -> Result<()> {
        let (rows, outs) = (self.state.tokens.len(), self.state.outs.len());
        let holds = |p: &Program| rows <= p.limits.rows && outs <= p.limits.outs;
        let found = self.programs.iter().enumerate().find(|(_, p)| holds(p));
        let Some((index, program)) = found else {
            return Err(Error::Invalid("no program holds this step".to_string()));
        };
        self.state.program = index;
        program.rewind();
        let exec = Exec {
            isa: self.isa,
            spans: self.spans,
            weights: self.weights.bytes(),
            kv: self.kv.pointer(),
            scratch: self.scratch.pointer().cast(),
            logits: self.logits.pointer().cast(),
            shared: self.shared.pointer(),
            attention: self.attention.pointer(),
            private: self.private.pointer(),
            private_bytes: self.private_bytes,
            tokens: &self.state.tokens,
            positions: &self.state.positions,
            slots: &self.state.slots,
            outs: &self.state.outs,
        };
        let ran = self
            .pool
            // SAFETY: memory was allocated for the largest of the programs, rows were checked
            // against the limits, and the pool runs the same call on all workers.
            .run(&|worker| unsafe { exec.program(program, worker, watch) });
        watch.ended();
        if let Err(p) = ran {
            // Attention counts on finding zeros where it left off.
            self.attention.bytes_mut().fill(0);
            return Err(panicked(p));
        }
        self.traffic.steps += 1;
        match program.sample {
            Some(logits) => self.sample(&logits),
            None => Ok(()),
        }
    }

    /// Picks a token for each wanted row.
    fn sample(&mut self, logits: &Rows) -> Result<()> {
        let context = self.limits().context;
        let State { tokens, positions, slots, outs, sampled, .. } = &mut self.state;
        let Sampling { sampler, scratch, history, draws } = &mut self.sampling;
        for ((&token, &position), &slot) in tokens.iter().zip(&*positions).zip(&*slots) {
            history[slot as usize * context + position as usize] = token;
        }
        sampled.clear();
        let arena = if logits.logits { self.logits.bytes() } else { self.scratch.bytes() };
        // SAFETY: the arena begins at a page and holds f32 only.
        let (_, values, _) = unsafe { arena.align_to::<f32>() };
        for (i, &row) in outs.iter().enumerate() {
            let start = logits.offset + i * logits.width;
            let (slot, position) = (slots[row as usize] as usize, positions[row as usize] as usize);
            let recent = &history[slot * context..][..=position];
            let values = &values[start..start + logits.width];
            let token = sample(sampler, scratch, values, recent, *draws)
                .map_err(|_| Error::NonFinite { step: self.traffic.steps, position })?;
            *draws += 1;
            sampled.push(token);
        }
        Ok(())
    }
}

impl Session for CpuSession {
    fn limits(&self) -> &Limits {
        // `load` refuses an empty list.
        static NONE: Limits = Limits { rows: 0, outs: 0, slots: 0, context: 0 };
        self.programs.last().map_or(&NONE, |p| &p.limits)
    }

    fn run(&mut self, input: &StepInput<'_>) -> Result<()> {
        let vocabulary = self.programs.first().map_or(0, |p| p.vocabulary);
        input.check(self.limits(), vocabulary)?;
        let _span = tracing::debug_span!("step", rows = input.tokens.len()).entered();
        let set = |to: &mut Vec<u32>, from: &[u32]| {
            to.clear();
            to.extend_from_slice(from);
        };
        set(&mut self.state.tokens, input.tokens);
        set(&mut self.state.positions, input.positions);
        set(&mut self.state.slots, input.slots);
        set(&mut self.state.outs, input.outs);
        self.state.sampled.clear();
        let words = 3 * input.tokens.len() + input.outs.len();
        self.traffic.bytes_in += words as u64 * 4;
        self.replay()
    }

    fn step(&mut self) -> Result<u32> {
        let _span = tracing::debug_span!("step", rows = 1).entered();
        let last = self.state.outs.last().map(|&row| row as usize);
        let (Some(&token), Some(row)) = (self.state.sampled.last(), last) else {
            return Err(Error::Invalid("nothing was sampled yet".to_string()));
        };
        let (slot, position) = (self.state.slots[row], self.state.positions[row]);
        self.limits().left(position)?;
        for (list, value) in [
            (&mut self.state.tokens, token),
            (&mut self.state.positions, position + 1),
            (&mut self.state.slots, slot),
            (&mut self.state.outs, 0),
        ] {
            list.clear();
            list.push(value);
        }
        self.replay()?;
        self.traffic.bytes_out += 4;
        let none = || Error::Invalid("the graph does not sample".to_string());
        self.state.sampled.last().copied().ok_or_else(none)
    }

    fn sampled(&self) -> &[u32] {
        &self.state.sampled
    }

    fn set_sampler(&mut self, sampler: &Sampler) -> Result<()> {
        sampler.check()?;
        self.sampling.sampler = sampler.clone();
        self.sampling.draws = 0;
        Ok(())
    }

    fn peek(&mut self, output: usize) -> Option<Vec<f32>> {
        let program = self.programs.get(self.state.program)?;
        let (lead, rows) = (*program.outputs.get(output)?)?;
        let state = &self.state;
        let count = if lead == Lead::Outs { state.outs.len() } else { state.tokens.len() };
        let arena = if rows.logits { self.logits.bytes() } else { self.scratch.bytes() };
        let start = rows.offset * 4;
        let bytes = arena.get(start..start + count * rows.width * 4)?;
        self.traffic.bytes_out += bytes.len() as u64;
        Some(bytes.as_chunks().0.iter().map(|w| f32::from_ne_bytes(*w)).collect())
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn profile(&mut self, input: &StepInput<'_>, rounds: usize) -> Result<Times> {
        self.watched(input, rounds)
    }
}

/// Programs of a session share weights and caches, so they must agree on both.
fn check_programs(backend: &CpuBackend, programs: &[Program]) -> Result<()> {
    let agree = programs.windows(2).all(|w| {
        let (a, b) = (&w[0], &w[1]);
        a.tensors == b.tensors
            && a.kv_bytes == b.kv_bytes
            && (a.limits.context, a.limits.slots) == (b.limits.context, b.limits.slots)
            && a.limits.rows <= b.limits.rows
            && a.limits.outs <= b.limits.outs
            && a.outputs.len() == b.outputs.len()
    });
    if !agree {
        return Err(Error::Invalid(
            "the programs are not of one graph, smallest first".to_string(),
        ));
    }
    if programs.iter().any(|p| p.threads != backend.threads()) {
        return Err(Error::Invalid("a program was lowered for other threads".to_string()));
    }
    Ok(())
}

/// Refuses before anything is allocated.
fn check_memory(programs: &[Program], limits: &Limits) -> Result<()> {
    let Some(last) = programs.last() else { return Ok(()) };
    let (needs, b) = (last.bytes.total(), last.bytes);
    match available() {
        Some(has) if needs > has => {
            let rest = Size(needs.saturating_sub(b.weights).saturating_sub(b.kv));
            let (weights, kv, context) = (Size(b.weights), Size(b.kv), limits.context);
            // What is not weights grows with the context, or nearly so: nine tenths of what fits.
            let (room, grows) = (has.saturating_sub(b.weights), needs - b.weights);
            let fits = u128::from(room / 10 * 9) * context as u128 / u128::from(grows.max(1));
            let hint = match fits {
                0..32 => "no context is small enough for this machine".to_string(),
                fits => format!("try --ctx {}", fits / 32 * 32),
            };
            let what = format!("weights {weights}, KV {kv} at context {context}, rest {rest}");
            Err(Error::Memory { what, needs, has, hint })
        }
        _ => Ok(()),
    }
}

pub(super) fn panicked(p: Panicked) -> Error {
    Error::Invalid(format!("a worker panicked: {}", quoted(&p.message)))
}
