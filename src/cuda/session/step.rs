//! One step: checked, its lists sent up, launched, and its tokens read back; the step over one row
//! is captured once.

use super::{CudaSession, NO_TOKEN, Ready, Repeated};
use crate::cuda::abi::SamplerState;
use crate::cuda::driver::{Graph, Shape};
use crate::cuda::program::{Kernel, Launch, Parameters};
use crate::graph::Lead;
use crate::plan::{Session, StepInput};
use crate::{Error, Result};
use std::mem::offset_of;

/// Shapes of steps that are remembered.
const MOST_REPEATED: usize = 8;

impl CudaSession {
    /// Captures the step over one row that goes on from the last sampled token.
    pub(super) fn record(&mut self) -> Result<()> {
        let Some(index) = self.sampling() else { return Ok(()) };
        if self.programs[index].samples() {
            self.graphs = self.capture_turns(index, usize::MAX)?;
        }
        Ok(())
    }

    /// The program of steps over one row.
    pub(super) fn sampling(&self) -> Option<usize> {
        self.programs.iter().position(|r| r.holds(1, 1))
    }

    /// The first launches of a step over one row, as a graph for each turn.
    pub(super) fn capture_turns(&mut self, index: usize, most: usize) -> Result<Vec<Graph>> {
        set_rows(&mut self.programs[index], 1, 1);
        let (turns, now) = (self.programs[index].turns.len(), self.programs[index].turn);
        let mut graphs = Vec::new();
        for turn in 0..turns {
            self.programs[index].turn = turn;
            graphs.push(self.stream.capture(|| self.launch(index, 1, 1, most)));
        }
        self.programs[index].turn = now;
        graphs.into_iter().collect()
    }

    /// Puts the captured step, in the turn that it is, behind those that were asked for.
    pub(super) fn ask(&mut self) -> Result<()> {
        let missing = || Error::Invalid("the graph does not sample".to_string());
        let index = self.sampling().ok_or_else(missing)?;
        let ready = &mut self.programs[index];
        self.graphs.get(ready.turn).ok_or_else(missing)?.launch(&self.stream)?;
        self.ends[ready.turn % 2].record(&self.stream)?;
        ready.pass();
        self.asked += 1;
        Ok(())
    }

    /// Waits for the first of the steps that were asked for, of two at most: its token.
    pub(super) fn answer(&mut self) -> Result<u32> {
        let index = self.sampling().unwrap_or(0);
        let ready = &self.programs[index];
        self.asked = self.asked.saturating_sub(1);
        let turn = ready.latest(self.asked);
        self.ends[turn % 2].wait()?;
        Ok(self.result.word(turn * ready.apart))
    }

    /// The next step, of so many that are `wanted`: if there are more, one is in the stream while this one's token is
    /// looked at.
    pub(super) fn go_on(&mut self, wanted: usize) -> Result<u32> {
        let _span = tracing::debug_span!("step", rows = 1).entered();
        if self.state.sampled.is_empty() {
            return Err(Error::Invalid("nothing was sampled yet".to_string()));
        }
        let (position, slot) = self.state.last;
        let left = self.limits().left(position)?;
        let token = self.alive(|s| {
            while s.asked < wanted.min(left).clamp(1, 2) {
                s.ask()?;
            }
            s.answer()
        })?;
        self.traffic.steps += 1;
        self.traffic.bytes_out += 4;
        self.state.program = self.sampling().unwrap_or(0);
        (self.state.rows, self.state.outs, self.state.last) = (1, 1, (position + 1, slot));
        self.state.sampled.clear();
        if token == NO_TOKEN {
            let position = position as usize + 1;
            return Err(Error::NonFinite { step: self.traffic.steps, position });
        }
        self.state.sampled.push(token);
        Ok(token)
    }

    /// Makes it as if a step that nobody wants the token of had not been: where the sequence goes on, and which draw
    /// is the next. What it left in caches and history is behind the sequence.
    pub(super) fn take_back(&mut self) -> Result<()> {
        if self.asked == 0 {
            return Ok(());
        }
        self.stream.wait()?;
        let at = self.bases.sampler + offset_of!(SamplerState, draws) as u64;
        let mut draws = [0; 8];
        // SAFETY: the sampler's state has so many bytes there.
        unsafe { self.stream.download(&mut draws, at)? };
        let draws = u64::from_le_bytes(draws).saturating_sub(self.asked as u64).to_le_bytes();
        // After logits that were not finite there is no token to go on from, and nobody does.
        let token = self.state.sampled.last().copied().unwrap_or(0).to_le_bytes();
        let position = (self.state.last.0 + 1).to_le_bytes();
        // SAFETY: as before, and each list has a word.
        unsafe {
            self.stream.upload(at, &draws)?;
            self.stream.upload(self.bases.tokens, &token)?;
            self.stream.upload(self.bases.positions, &position)?;
        }
        self.stream.wait()?;
        self.asked = 0;
        self.traffic.bytes_out += 8;
        self.traffic.bytes_in += 16;
        Ok(())
    }

    /// Puts the first launches of a program into the stream. Rows must have been set.
    pub(super) fn launch(&self, index: usize, rows: usize, outs: usize, most: usize) -> Result<()> {
        let Some(ready) = self.programs.get(index) else { return Ok(()) };
        for (launch, functions) in ready.launches().iter().take(most) {
            let Some(function) = functions.get(launch.tile) else { continue };
            let n = if launch.lead == Lead::Outs { outs } else { rows };
            // A chain that was left out would leave the next one's places as they are.
            if n == 0 && launch.kernel != Kernel::Chain {
                continue;
            }
            let (s, on) = (&launch.shape, &self.stream);
            // SAFETY: parameters are those of the kernel's own kind, and their addresses were made
            // from this session's allocations, which the plan's verifier has seen to be large enough
            // for as many rows as were checked.
            let done = unsafe {
                match &launch.parameters {
                    Parameters::Gemv(p) => function.launch(s, &**p, on),
                    Parameters::Gemm(p) => function.launch(s, &**p, on),
                    Parameters::Rows(p) => function.launch(s, &**p, on),
                    Parameters::Experts(p) => function.launch(s, &**p, on),
                    Parameters::Picks(p) => function.launch(s, p, on),
                    Parameters::Attend(p) => function.launch(s, p, on),
                    Parameters::AttendOne(p) => function.launch(s, &**p, on),
                    Parameters::AttendFew(p) => function.launch(s, &**p, on),
                    Parameters::Chain(p) => function.launch(s, &p.chain, on),
                    // A link is launched by its chain.
                    Parameters::Several(_) => Ok(()),
                    Parameters::Sample(p) => function.launch(s, p, on),
                }
            };
            done.map_err(|e| named(e, launch))?;
        }
        Ok(())
    }

    /// Refuses to go on after the device failed, and remembers that it did.
    pub(super) fn alive<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(why) = &self.dead {
            let what = format!("the session ended when the device failed: {why}");
            return Err(Error::Device { call: "step".to_string(), what });
        }
        let result = self.device.bind().and_then(|()| run(self));
        if let Err(Error::Device { call, what }) = &result {
            self.dead = Some(format!("{call}: {what}"));
        }
        result
    }

    pub(super) fn replay(&mut self, input: &StepInput<'_>) -> Result<()> {
        let (rows, outs) = (input.tokens.len(), input.outs.len());
        let holds = |few| move |r: &Ready| (r.few > 0) == few && r.holds(rows, outs);
        let few = self.programs.iter().position(holds(true));
        let Some(index) = few.or_else(|| self.programs.iter().position(holds(false))) else {
            return Err(Error::Invalid("no program holds this step".to_string()));
        };
        self.state.sampled.clear();
        (self.state.program, self.state.rows, self.state.outs) = (index, rows, outs);
        // The device takes them from there.
        let lists = [input.tokens, input.positions, input.slots, input.outs];
        let words = lists.into_iter().flatten();
        for (bytes, word) in self.staging.bytes_mut().chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.traffic.bytes_in += (3 * rows + outs) as u64 * 4;
        self.launch_given(index, rows, outs)?;
        self.programs[index].pass();
        self.stream.wait()?;
        self.traffic.steps += 1;
        // The graph was captured for one row; its parameters are its own.
        let samples = self.programs[index].samples();
        let Some(&last) = input.outs.last().filter(|_| samples) else { return Ok(()) };
        let last = last as usize;
        self.state.last = (input.positions[last], input.slots[last]);
        let first = self.programs[index].latest(0) * self.programs[index].apart;
        self.state.sampled.extend((first..first + outs).map(|i| self.result.word(i)));
        self.traffic.bytes_out += outs as u64 * 4;
        if let Some(bad) = self.state.sampled.iter().position(|&t| t == NO_TOKEN) {
            let row = input.outs.get(bad).map_or(0, |&r| r as usize);
            let position = input.positions.get(row).map_or(0, |&p| p as usize);
            self.state.sampled.clear();
            return Err(Error::NonFinite { step: self.traffic.steps, position });
        }
        Ok(())
    }

    /// Puts a step over given rows into the stream: launch by launch, or as a graph if a step of this shape
    /// has been before.
    fn launch_given(&mut self, index: usize, rows: usize, outs: usize) -> Result<()> {
        let shape = (index, rows, outs);
        let known = self.repeated.iter().position(|r| r.shape == shape);
        let new = || Repeated { shape, graphs: [None, None] };
        let mut step = known.map_or_else(new, |i| self.repeated.remove(i));
        let turn = self.programs.get(index).map_or(0, |r| r.turn);
        // There are two turns at most.
        let graph = &mut step.graphs[turn % 2];
        if graph.is_none() {
            (self.take.1.rows, self.take.1.wanted) = (rows as u32, outs as u32);
            if let Some(ready) = self.programs.get_mut(index) {
                set_rows(ready, rows, outs);
            }
            // Of one row a profile changes what launches do.
            if known.is_some() && rows > 1 {
                *graph = Some(self.stream.capture(|| self.launch_taken(index, rows, outs))?);
            }
        }
        match graph {
            Some(graph) => graph.launch(&self.stream)?,
            None => self.launch_taken(index, rows, outs)?,
        }
        self.repeated.truncate(MOST_REPEATED - 1);
        self.repeated.insert(0, step);
        Ok(())
    }

    /// Takes the step's rows, and launches it.
    fn launch_taken(&self, index: usize, rows: usize, outs: usize) -> Result<()> {
        let shape = Shape {
            grid: (1, 1),
            cluster: 1,
            block: 256,
            shared: 0,
            early: false,
            together: false,
        };
        // SAFETY: lists and staging have room for as many rows as were checked, and the history has a
        // word for each slot and position.
        unsafe { self.take.0.launch(&shape, &self.take.1, &self.stream)? };
        self.launch(index, rows, outs, usize::MAX)
    }
}

pub(super) fn set_rows(ready: &mut Ready, rows: usize, outs: usize) {
    for (launch, _) in ready.turns.iter_mut().flatten() {
        let n = if launch.lead == Lead::Outs { outs } else { rows };
        launch.set_rows(n as u32);
    }
}

/// An error of a launch, with the launch.
fn named(error: Error, launch: &Launch) -> Error {
    match error {
        Error::Device { call, what } => {
            let call = format!("{call} of {:?} (group {})", launch.kernel, launch.group);
            Error::Device { call, what }
        }
        other => other,
    }
}
