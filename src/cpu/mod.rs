//! The CPU backend: SIMD kernels found at run time, threads that meet at one barrier a group.
//!
//! | file | holds |
//! |---|---|
//! | [`simd`] | the instruction sets and the vector vocabulary kernels are written in |
//! | [`repack`], [`quantize`], [`matmul`], [`float`] | one matrix product for every format |
//! | [`lanes`], [`span`], [`rope`], [`attend`] | everything else that computes |
//! | [`pool`] | workers and their barrier |
//! | `lower`, `program`, `run` | a plan in these terms, and its replay |
//! | `experts` | products with the experts that rows picked |
//! | `load`, `session` | weights into memory, and the door to it |
//! | `watch` | how long each group of a step takes |
//!
//! Products with block weights quantize their input to int8 and are exact in the integers; the
//! floats around them are combined in one order. So a row's bits depend neither on the instruction
//! set, nor on how many rows, workers or chunks there are.

pub mod attend;
mod bandwidth;
mod experts;
pub mod float;
pub mod lanes;
mod load;
mod lower;
pub mod matmul;
mod memory;
pub mod pool;
mod program;
pub mod quantize;
pub mod repack;
pub mod rope;
mod run;
mod session;
pub mod simd;
pub mod span;
#[cfg(test)]
mod tests;
mod watch;

pub use bandwidth::read_bandwidth;
pub use memory::available;
pub use program::Program;
pub use session::CpuSession;

use crate::graph::op::{Cache, CachePart};
use crate::graph::{Graph, Op, TensorType, Weights};
use crate::plan::{Backend, Group, Limits, Plan, Progress, Target};
use crate::{Error, Result};
use simd::Isa;

/// The CPU, with so many threads and an instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuBackend {
    isa: Isa,
    threads: usize,
}

impl CpuBackend {
    /// All cores, the best instruction set.
    pub fn detect() -> Self {
        CpuBackend { isa: Isa::detect(), threads: pool::default_threads() }
    }

    /// With so many threads.
    ///
    /// # Errors
    /// When `threads` is 0 or beyond reason.
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::Invalid(format!("{threads} threads: 1 to {MAX_THREADS} will do")));
        }
        Ok(CpuBackend { threads, ..self })
    }

    /// With this instruction set.
    ///
    /// # Errors
    /// When the processor does not have it.
    pub fn with_isa(self, isa: Isa) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::Unsupported(format!("this processor has no {}", isa.name())));
        }
        Ok(CpuBackend { isa, ..self })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }
}

/// More workers than this meet at a barrier too slowly to be of use.
pub const MAX_THREADS: usize = 1024;

impl Target for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn refuses(&self, graph: &Graph, group: &Group) -> Option<String> {
        lower::refuses(graph, group)
    }

    fn weight_bytes(&self, ty: &TensorType) -> Option<u64> {
        u64::try_from(lower::tensor_kind(ty)?.bytes()).ok()
    }

    fn cache_bytes(&self, cache: &Cache, ty: &TensorType, limits: &Limits) -> Option<u64> {
        let layout = lower::kv_layout(ty, limits.context)?;
        let slot = match cache.part {
            CachePart::Key => layout.key_bytes(),
            CachePart::Value => layout.value_bytes(),
        };
        u64::try_from(slot.checked_mul(limits.slots)?).ok()
    }

    fn workspace_bytes(&self, graph: &Graph, groups: &[Group], limits: &Limits) -> Option<u64> {
        let work = lower::work(graph, groups, limits, self.threads)?.bytes(self.threads)?;
        u64::try_from(work.checked_add(session::sampler_bytes(graph)?)?).ok()
    }

    fn table_bytes(&self, graph: &Graph, limits: &Limits) -> Option<u64> {
        let mut seen: Vec<(&crate::graph::op::Rope, _)> = Vec::new();
        let mut bytes = 0usize;
        for node in graph.nodes() {
            let Op::Rope(rope) = &node.op else { continue };
            let key = (rope, node.args.get(2));
            if !seen.contains(&key) {
                seen.push(key);
                bytes = bytes.checked_add(rope::RopeTable::bytes(rope.dim, limits.context)?)?;
            }
        }
        u64::try_from(bytes).ok()
    }
}

impl Backend for CpuBackend {
    type Program = Program;
    type Session = CpuSession;

    fn lower(&self, plan: &Plan) -> Result<Program> {
        let _span = tracing::info_span!("lower", rows = plan.limits().rows).entered();
        lower::lower(self, plan)
    }

    fn load_watched(
        &self,
        programs: Vec<Program>,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<CpuSession> {
        CpuSession::load(self, programs, weights, progress)
    }
}
