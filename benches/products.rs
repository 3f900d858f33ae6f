//! Products with block weights: bytes a second for one row, multiplications a second for many.
//!
//! `cargo bench --bench products`

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gllm_kernels::cpu::matmul::matmul_all;
use gllm_kernels::cpu::quantize::{Activations, activation_bytes};
use gllm_kernels::cpu::repack::{Layout, repack_tiles};
use gllm_kernels::cpu::simd::Isa;
use gllm_kernels::model::Format;
use std::hint::black_box;

const OUTPUTS: usize = 4096;
const INPUTS: usize = 2048;

fn products(c: &mut Criterion) {
    let isa = Isa::detect();
    for format in [
        Format::F16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q4_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::MXFP4,
        Format::Q2_K,
        Format::TQ2_0,
        Format::Q1_0,
    ] {
        let layout = Layout::of(format, OUTPUTS, INPUTS).unwrap();
        let source = vec![0x11u8; format.row_bytes(INPUTS).unwrap() * OUTPUTS];
        let mut packed = vec![0u8; layout.bytes()];
        repack_tiles(&layout, &source, &mut packed, 0..layout.tiles()).unwrap();
        for rows in [1, 64] {
            let bytes = activation_bytes(layout.precision(), INPUTS, rows).unwrap();
            let mut memory = vec![0u64; bytes.div_ceil(8)];
            // SAFETY: the memory is as long as the activations and outlives them.
            let acts = unsafe {
                Activations::new(memory.as_mut_ptr().cast(), layout.precision(), INPUTS, rows)
            };
            let x: Vec<f32> = (0..INPUTS).map(|i| (i % 13) as f32 - 6.0).collect();
            for row in 0..rows {
                // SAFETY: the set was detected; nobody else writes.
                unsafe { acts.quantize(isa, row, &x, 0..acts.groups()) };
            }
            let mut out = vec![0.0f32; rows * OUTPUTS];
            let mut group = c.benchmark_group(format.name());
            group.throughput(if rows == 1 {
                Throughput::Bytes(layout.bytes() as u64)
            } else {
                Throughput::Elements((rows * OUTPUTS * INPUTS) as u64)
            });
            group.bench_function(BenchmarkId::new("rows", rows), |b| {
                b.iter(|| matmul_all(isa, &layout, black_box(&packed), &acts, &mut out));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
