//! A decode step and a prefill chunk, end to end, one and two threads.
//!
//! `cargo bench --bench decode` takes the built-in model; `GLLM_BENCH_MODEL=file.gguf` names another.
//! `read` is what the machine reads with as many threads in the same run: the roof over `decode`,
//! whose bytes are the weights and the cache that a step reads.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gllm_kernels::cpu::{CpuBackend, read_bandwidth};
use gllm_kernels::embedded;
use gllm_kernels::graph::arch;
use gllm_kernels::model::Model;
use gllm_kernels::plan::Limits;
use gllm_kernels::replay::{Generator, Plans};
use std::time::Duration;

fn decode(c: &mut Criterion) {
    let (name, model) = match std::env::var_os("GLLM_BENCH_MODEL") {
        Some(path) => (path.to_string_lossy().into_owned(), Model::open(path.as_ref()).unwrap()),
        None => ("built-in".to_string(), embedded::tiny().unwrap()),
    };
    let name = name.rsplit('/').next().unwrap_or("model");
    let graph = arch::build(&model).unwrap();
    let limits = Limits { rows: 256, outs: 1, slots: 1, context: 512 };
    let prompt: Vec<u32> = (0..256).collect();
    for threads in [1, 2] {
        let backend = CpuBackend::detect().with_threads(threads).unwrap();
        let plans = Plans::new(&graph, &backend, limits).unwrap();
        let mut generator = Generator::new(plans.load(&backend, &model).unwrap());
        let mut group = c.benchmark_group(name);
        let bytes = plans.bytes_per_token(limits.context / 2);
        group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes });
        group.bench_function(BenchmarkId::new("decode", threads), |b| {
            b.iter(|| {
                if generator.position() == 0 || generator.position() + 1 >= limits.context {
                    generator.reset();
                    generator.prefill(&prompt[..16], || true).unwrap();
                }
                generator.next_token().unwrap()
            });
        });
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(BenchmarkId::new("read", threads), |b| {
            // What was measured, once more in criterion's words: the time for as many bytes.
            b.iter_custom(|times| {
                let seconds = bytes as f64 / read_bandwidth(threads).unwrap();
                Duration::from_secs_f64(seconds * times as f64)
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = decode
}
criterion_main!(benches);
