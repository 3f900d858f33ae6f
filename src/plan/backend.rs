//! What a backend is: it is asked while a plan is made, lowers it, and replays it.

use super::{Group, Limits, Plan, Times};
use crate::graph::op::{Cache, Sampler};
use crate::graph::{Graph, TensorType, Weights};
use crate::{Error, Result};

/// What planning asks of a backend.
pub trait Target {
    /// Its name, for the report and for refusals.
    fn name(&self) -> &'static str;
    /// Why it cannot run a group, if so. There is no fallback at run time, so it is asked here.
    fn refuses(&self, graph: &Graph, group: &Group) -> Option<String>;
    /// Bytes of a weight as this backend keeps it; `None` when it does not keep such a weight.
    fn weight_bytes(&self, ty: &TensorType) -> Option<u64>;
    /// Bytes of one cache; `None` when it does not keep such a cache.
    fn cache_bytes(&self, cache: &Cache, ty: &TensorType, limits: &Limits) -> Option<u64>;
    /// Bytes that the groups need while they run, and only then.
    fn workspace_bytes(&self, graph: &Graph, groups: &[Group], limits: &Limits) -> Option<u64>;
    /// Bytes of tables it derives from the graph, such as rotary angles.
    fn table_bytes(&self, graph: &Graph, limits: &Limits) -> Option<u64>;
}

/// A target that also runs what was planned for it.
pub trait Backend: Target {
    /// A plan in the backend's own terms: routines and offsets.
    type Program;
    /// Memory and workers that replay programs.
    type Session: Session;

    /// Turns a plan into a program. Reads no weights and allocates none of the plan's memory.
    ///
    /// # Errors
    /// When the plan was made for another target.
    fn lower(&self, plan: &Plan) -> Result<Self::Program>;

    /// Allocates the memory of the programs, which share weights and caches, and fills in the
    /// weights. A step runs on the first program that holds its rows, so the smallest comes first.
    ///
    /// # Errors
    /// When memory is short or a weight is missing.
    fn load(&self, programs: Vec<Self::Program>, weights: &dyn Weights) -> Result<Self::Session> {
        self.load_watched(programs, weights, &|_, _| true)
    }

    /// As [`load`](Backend::load), and tells how far it is.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::Error::Stopped) when `progress` said so.
    fn load_watched(
        &self,
        programs: Vec<Self::Program>,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<Self::Session>;
}

/// Is told, every few milliseconds and by any thread, how many bytes of the weights are loaded and
/// of how many, and says whether to go on.
pub type Progress<'a> = dyn Fn(u64, u64) -> bool + Sync + 'a;

/// The rows of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StepInput<'a> {
    /// A token a row.
    pub tokens: &'a [u32],
    /// Its position in its sequence, from 0.
    pub positions: &'a [u32],
    /// Which sequence it belongs to.
    pub slots: &'a [u32],
    /// The rows whose logits are wanted, ascending.
    pub outs: &'a [u32],
}

impl StepInput<'_> {
    /// Whether every row is within what was planned, and every token in the vocabulary.
    pub(crate) fn check(&self, limits: &Limits, vocabulary: usize) -> Result<()> {
        let rows = self.tokens.len();
        let fail = |what: String| Err(Error::Invalid(format!("step: {what}")));
        if rows == 0 || rows > limits.rows {
            return fail(format!("{rows} rows, planned for 1 to {}", limits.rows));
        }
        if self.positions.len() != rows || self.slots.len() != rows {
            return fail(format!("{rows} rows need as many positions and slots"));
        }
        if self.outs.len() > limits.outs {
            return fail(format!(
                "{} rows with logits, planned for {}",
                self.outs.len(),
                limits.outs
            ));
        }
        if self.outs.windows(2).any(|w| w[0] >= w[1])
            || self.outs.last().is_some_and(|&r| r as usize >= rows)
        {
            return fail("rows with logits must ascend and exist".to_string());
        }
        for ((&token, &position), &slot) in self.tokens.iter().zip(self.positions).zip(self.slots) {
            if token as usize >= vocabulary {
                return fail(format!("token {token} is not among {vocabulary}"));
            }
            if slot as usize >= limits.slots {
                return fail(format!("slot {slot} is not among {}", limits.slots));
            }
            if position as usize >= limits.context {
                return Err(Error::Context {
                    context: limits.context,
                    what: format!("position {position}"),
                    wants: (position as usize).saturating_add(1),
                });
            }
        }
        Ok(())
    }
}

/// What has crossed between caller and session since it was loaded, the weights left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Steps run.
    pub steps: u64,
    /// Bytes that went in.
    pub bytes_in: u64,
    /// Bytes that came out.
    pub bytes_out: u64,
}

/// Memory that holds weights and caches, and the programs that run on it.
pub trait Session: Send {
    /// What the largest program was planned for.
    fn limits(&self) -> &Limits;

    /// Runs one step over the rows of `input`. If the graph samples, the tokens of the wanted rows
    /// are in [`Session::sampled`] afterwards.
    ///
    /// # Errors
    /// Rows outside the limits, or logits that are not finite. The caches of the rows' positions
    /// are then undefined; all others are as they were.
    fn run(&mut self, input: &StepInput<'_>) -> Result<()>;

    /// Runs one step over the token sampled last, at the next position of its slot, and returns
    /// the token sampled from it. Allocates nothing, and nothing but that token leaves the session.
    ///
    /// # Errors
    /// As [`Session::run`], and when the context is full or nothing has been sampled yet.
    fn step(&mut self) -> Result<u32>;

    /// Runs up to `most` steps, as [`Session::step`] one after the other, and gives each token to `each` as soon as it
    /// is there, until that says `false`. A session may run the next step meanwhile: if `each` ends early, tokens go on
    /// as if it had not, but what [`Session::peek`] would show may be gone.
    ///
    /// # Errors
    /// As [`Session::step`], after the tokens before.
    fn steps(&mut self, most: usize, each: &mut dyn FnMut(u32) -> bool) -> Result<()> {
        for _ in 0..most {
            if !each(self.step()?) {
                break;
            }
        }
        Ok(())
    }

    /// Tokens sampled in the last step, one for each wanted row.
    fn sampled(&self) -> &[u32];

    /// How to sample from now on.
    ///
    /// # Errors
    /// When a parameter is out of range.
    fn set_sampler(&mut self, sampler: &Sampler) -> Result<()>;

    /// Copies an output of the graph, such as the logits, out of the session: the metered door for
    /// tests and diagnosis, which no step passes through. `output` counts [`Graph::outputs`]; rows
    /// are those of the last step. `None` when there is no such output, it is not f32, or it is gone.
    fn peek(&mut self, output: usize) -> Option<Vec<f32>>;

    /// Bytes that crossed so far.
    fn traffic(&self) -> Traffic;

    /// Times every launch of a step over the one row of `input`, in so many rounds, always at that
    /// row's position; afterwards the session is as [`Session::run`] leaves it. It costs other
    /// steps nothing.
    ///
    /// # Errors
    /// As [`Session::run`], and when the session cannot tell its launches apart.
    fn profile(&mut self, input: &StepInput<'_>, rounds: usize) -> Result<Times> {
        let _ = (input, rounds);
        Err(Error::Unsupported("this session does not time its launches".to_string()))
    }
}
