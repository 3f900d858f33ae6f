//! The embedded model, ready to run.

use gllm_kernels::cpu::{CpuBackend, CpuSession};
use gllm_kernels::embedded;
use gllm_kernels::graph::{DType, arch};
use gllm_kernels::plan::Limits;
use gllm_kernels::replay::{Generator, Plans};

pub const CONTEXT: usize = 1100;

/// A few tokens of the embedded model's vocabulary.
pub const PROMPT: [u32; 11] = [300, 17, 912, 44, 2033, 7, 7, 1500, 61, 890, 301];

pub fn session(threads: usize, rows: usize, slots: usize) -> CpuSession {
    session_of(DType::F16, threads, rows, slots)
}

/// A session with caches kept in this way.
pub fn session_of(caches: DType, threads: usize, rows: usize, slots: usize) -> CpuSession {
    let model = embedded::tiny().unwrap();
    let backend = CpuBackend::detect().with_threads(threads).unwrap();
    let limits = Limits { rows, outs: rows.min(4), slots, context: CONTEXT };
    let graph = arch::build(&model).unwrap().with_caches(|_| caches).unwrap();
    let plans = Plans::new(&graph, &backend, limits).unwrap();
    plans.load(&backend, &model).unwrap()
}

/// The embedded model with the prompt in its cache.
pub fn generator(threads: usize, rows: usize) -> Generator<CpuSession> {
    let mut generator = Generator::new(session(threads, rows, 1));
    assert!(generator.prefill(&PROMPT, || true).unwrap());
    generator
}
