//! The loop: a prompt in chunks, then a token a step.
//!
//! [`Generator`] owns a session and counts positions; it is the same for every backend. A prompt is
//! run in chunks of as many rows as the session holds, and only the last row's logits are wanted.
//! From then on [`Generator::next_token`] replays the program of one row, and the token it returns
//! is all that leaves the session; [`Generator::tokens`] does so many times, without the device waiting for
//! whoever looks at them.
//!
//! **Invariant:** a sequence never outgrows the context it was planned for. What does not fit is an
//! error; nothing is cut or shifted in silence.

mod perplexity;
pub mod probe;
pub mod profile;

pub use perplexity::{Perplexity, perplexity};

use crate::graph::op::Sampler;
use crate::graph::{Graph, Weights};
use crate::plan::{Backend, Limits, Plan, Progress, Session, StepInput};
use crate::{Error, Result};

/// Plans of one model: for one row, and for a chunk of the prompt.
#[derive(Clone, PartialEq, Debug)]
pub struct Plans {
    /// Decode.
    pub one: Plan,
    /// Prefill.
    pub many: Plan,
}

impl Plans {
    /// Plans `graph` for steps of one row and of up to `limits.rows` rows.
    ///
    /// # Errors
    /// When the backend refuses the graph or the limits are out of range.
    pub fn new(graph: &Graph, backend: &impl Backend, limits: Limits) -> Result<Plans> {
        let one = Limits { rows: 1, outs: 1, ..limits };
        Ok(Plans { one: Plan::new(graph, backend, one)?, many: Plan::new(graph, backend, limits)? })
    }

    /// Lowers both and loads the weights.
    ///
    /// # Errors
    /// When memory is short or a weight is missing.
    pub fn load<B: Backend>(&self, backend: &B, weights: &dyn Weights) -> Result<B::Session> {
        self.load_watched(backend, weights, &|_, _| true)
    }

    /// As [`load`](Plans::load), and tells how far it is.
    ///
    /// # Errors
    /// [`Error::Stopped`] when `progress` said so.
    pub fn load_watched<B: Backend>(
        &self,
        backend: &B,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<B::Session> {
        let programs = vec![backend.lower(&self.one)?, backend.lower(&self.many)?];
        backend.load_watched(programs, weights, progress)
    }

    /// Bytes that a decode step reads at `position`: weights once, and the cache up to there.
    pub fn bytes_per_token(&self, position: usize) -> u64 {
        let cache = self.one.cache_bytes_per_token(position);
        self.one.weight_bytes_per_token().saturating_add(cache)
    }
}

/// One sequence on a session.
pub struct Generator<S> {
    session: S,
    /// Rows in the cache.
    position: usize,
    next: Next,
}

/// Where the next token comes from.
enum Next {
    /// Nowhere yet: a prompt must come first.
    Prompt,
    /// The prefill sampled it.
    Sampled,
    /// A step.
    Step,
}

impl<S: Session> Generator<S> {
    /// An empty sequence.
    pub fn new(session: S) -> Self {
        Generator { session, position: 0, next: Next::Prompt }
    }

    /// The session.
    pub fn session(&mut self) -> &mut S {
        &mut self.session
    }

    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Starts over: the cache is empty again.
    pub fn reset(&mut self) {
        self.position = 0;
        self.next = Next::Prompt;
    }

    /// Forgets all but the first `position` tokens; the sequence goes on with a
    /// [`prefill`](Self::prefill).
    ///
    /// # Errors
    /// When there are not that many.
    pub fn rewind(&mut self, position: usize) -> Result<()> {
        if position > self.position {
            let what = format!("{} tokens cannot be rewound to {position}", self.position);
            return Err(Error::Invalid(what));
        }
        self.position = position;
        self.next = Next::Prompt;
        Ok(())
    }

    /// How to sample from now on.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn set_sampler(&mut self, sampler: &Sampler) -> Result<()> {
        self.session.set_sampler(sampler)
    }

    /// Appends tokens to the sequence, in chunks. `go_on` is asked before each chunk.
    ///
    /// # Errors
    /// [`Error::Context`] when they do not fit; then nothing was run.
    pub fn prefill(&mut self, tokens: &[u32], mut go_on: impl FnMut() -> bool) -> Result<bool> {
        let _span = tracing::info_span!("prefill", tokens = tokens.len()).entered();
        let limits = *self.session.limits();
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt has no tokens".to_string()));
        }
        let end = self.position.saturating_add(tokens.len());
        if end > limits.context {
            let what = format!("the prompt has {} tokens", tokens.len());
            return Err(Error::Context { context: limits.context, what, wants: end });
        }
        self.next = Next::Prompt;
        let (mut positions, slots) = (Vec::new(), vec![0; limits.rows]);
        for chunk in tokens.chunks(limits.rows) {
            if !go_on() {
                return Ok(false);
            }
            let n = chunk.len();
            positions.clear();
            positions.extend((self.position..self.position + n).map(|p| p as u32));
            let last = [n as u32 - 1];
            let ends_here = self.position + n == end;
            let outs: &[u32] = if ends_here { &last } else { &[] };
            let input =
                StepInput { tokens: chunk, positions: &positions, slots: &slots[..n], outs };
            self.session.run(&input)?;
            self.position += n;
        }
        self.next = Next::Sampled;
        Ok(true)
    }

    /// The next token of the sequence.
    ///
    /// # Errors
    /// [`Error::Context`] when the context is full, [`Error::NonFinite`] when the model fails.
    pub fn next_token(&mut self) -> Result<u32> {
        match self.next {
            Next::Prompt => return Err(Error::Invalid("a prompt comes first".to_string())),
            Next::Sampled => {
                self.next = Next::Step;
                let none = || Error::Invalid("the graph does not sample".to_string());
                return self.session.sampled().last().copied().ok_or_else(none);
            }
            Next::Step => {}
        }
        let token = self.session.step()?;
        self.position += 1;
        Ok(token)
    }

    /// The next tokens of the sequence, up to `most`, each given to `each` as soon as it is there, until that says
    /// `false`. They are those of [`next_token`](Self::next_token), but a device need not wait for `each`.
    ///
    /// # Errors
    /// As [`next_token`](Self::next_token), after the tokens before.
    pub fn tokens(&mut self, most: usize, mut each: impl FnMut(u32) -> bool) -> Result<()> {
        let mut left = most;
        if left > 0 && !matches!(self.next, Next::Step) {
            left -= 1;
            if !each(self.next_token()?) {
                return Ok(());
            }
        }
        let position = &mut self.position;
        self.session.steps(left, &mut |token| {
            *position += 1;
            each(token)
        })
    }
}
