//! A decode step and a prefill chunk of the built-in model, one and two threads.
//!
//! `cargo bench --bench decode`

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::embedded;
use gllm_kernels::graph::arch;
use gllm_kernels::plan::Limits;
use gllm_kernels::replay::{Generator, Plans};

fn decode(c: &mut Criterion) {
    let model = embedded::tiny().unwrap();
    let graph = arch::build(&model).unwrap();
    let limits = Limits { rows: 256, outs: 1, slots: 1, context: 512 };
    let prompt: Vec<u32> = (0..256).collect();
    for threads in [1, 2] {
        let backend = CpuBackend::detect().with_threads(threads).unwrap();
        let session = Plans::new(&graph, &backend, limits).unwrap().load(&backend, &model).unwrap();
        let mut generator = Generator::new(session);
        let mut group = c.benchmark_group("tiny");
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("decode", threads), |b| {
            b.iter(|| {
                if generator.position() == 0 || generator.position() + 1 >= limits.context {
                    generator.reset();
                    generator.prefill(&prompt[..16], || true).unwrap();
                }
                generator.next_token().unwrap()
            });
        });
        group.throughput(Throughput::Elements(prompt.len() as u64));
        group.bench_function(BenchmarkId::new("prefill 256", threads), |b| {
            b.iter(|| {
                generator.reset();
                generator.prefill(&prompt, || true).unwrap()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
