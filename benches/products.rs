//! Products with block weights: bytes a second for one row, multiplications a second for many.
//!
//! `cargo bench --bench products`, or with a part of a name: `-- gemv/Q4_0`
//!
//! `gemv` reads more weights than caches hold, with one thread, on every instruction set of this
//! machine; `memory/read` is a plain sum over as many bytes in the same run: the roof. `cached` is the
//! same with weights that stay in a cache: what the instructions allow. `gemm` takes 64 rows of
//! activations.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gllm_kernels::cpu::matmul::matmul_all;
use gllm_kernels::cpu::quantize::{Activations, activation_bytes};
use gllm_kernels::cpu::repack::{Layout, repack_tiles};
use gllm_kernels::cpu::simd::Isa;
use gllm_kernels::model::Format;
use memmap2::MmapMut;
use std::hint::black_box;
use std::time::Duration;

const INPUTS: usize = 2048;

/// Bytes of repacked weights that `gemv` reads, about.
const WEIGHTS: usize = 96 << 20;

/// Bytes of repacked weights that `cached` reads, about: what a second-level cache holds.
const CACHED: usize = 512 << 10;

/// Outputs of `gemm`, whose weights may stay in a cache.
const OUTPUTS: usize = 4096;

/// Memory in large pages where there are any, as a session has it: with small ones a plain read is
/// a third slower here.
fn large_pages(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes).unwrap();
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map
}

/// Weights of a format in the kernel's layout; all codes and scales are the same small numbers.
fn weights(format: Format, outputs: usize) -> (Layout, MmapMut) {
    let layout = Layout::of(format, outputs, INPUTS).unwrap();
    let row = vec![0x11u8; format.row_bytes(INPUTS).unwrap()];
    let mut packed = large_pages(layout.bytes());
    let tile = Layout::of(format, 16, INPUTS).unwrap();
    let mut one = vec![0u8; tile.bytes()];
    repack_tiles(&tile, &row.repeat(16), &mut one, 0..tile.tiles()).unwrap();
    assert_eq!(packed.len() % one.len(), 0);
    packed.chunks_exact_mut(one.len()).for_each(|tile| tile.copy_from_slice(&one));
    (layout, packed)
}

/// Rows of activations, and the memory that they lie in.
fn activations(isa: Isa, layout: &Layout, rows: usize) -> (Activations, Vec<u64>) {
    let bytes = activation_bytes(layout.precision(), INPUTS, rows).unwrap();
    let mut memory = vec![0u64; bytes.div_ceil(8)];
    // SAFETY: the memory is as long as the activations, and is returned beside them.
    let acts =
        unsafe { Activations::new(memory.as_mut_ptr().cast(), layout.precision(), INPUTS, rows) };
    let x: Vec<f32> = (0..INPUTS).map(|i| (i % 13) as f32 - 6.0).collect();
    for row in 0..rows {
        // SAFETY: the set is there; nobody else writes.
        unsafe { acts.quantize(isa, row, &x, 0..acts.groups()) };
    }
    (acts, memory)
}

fn formats() -> impl Iterator<Item = Format> {
    Format::all().iter().copied().filter(|&f| Layout::of(f, 16, INPUTS).is_some())
}

fn memory(c: &mut Criterion) {
    let mut bytes = large_pages(WEIGHTS);
    bytes.fill(1);
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Bytes(WEIGHTS as u64));
    group.bench_function("read", |b| {
        b.iter(|| {
            let mut sums = [0u64; 16];
            for line in black_box(&bytes).as_chunks::<128>().0 {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
            sums
        });
    });
    group.finish();
}

fn gemv(c: &mut Criterion) {
    one_row(c, "gemv", WEIGHTS);
}

fn cached(c: &mut Criterion) {
    one_row(c, "cached", CACHED);
}

fn one_row(c: &mut Criterion, name: &str, bytes: usize) {
    for format in formats() {
        let tile = Layout::of(format, 16, INPUTS).unwrap().bytes();
        let (layout, packed) = weights(format, bytes / tile * 16);
        let mut out = vec![0.0f32; layout.rows()];
        let mut group = c.benchmark_group(format!("{name}/{}", format.name()));
        group.throughput(Throughput::Bytes(layout.bytes() as u64));
        for isa in Isa::available() {
            let (acts, _memory) = activations(isa, &layout, 1);
            group.bench_function(isa.name(), |b| {
                b.iter(|| matmul_all(isa, &layout, black_box(&packed[..]), &acts, &mut out));
            });
        }
        group.finish();
    }
}

fn gemm(c: &mut Criterion) {
    let isa = Isa::detect();
    let rows = 64;
    for format in formats() {
        let (layout, packed) = weights(format, OUTPUTS);
        let (acts, _memory) = activations(isa, &layout, rows);
        let mut out = vec![0.0f32; rows * OUTPUTS];
        let mut group = c.benchmark_group("gemm");
        group.throughput(Throughput::Elements((rows * OUTPUTS * INPUTS) as u64));
        group.bench_function(BenchmarkId::new(format.name(), isa.name()), |b| {
            b.iter(|| matmul_all(isa, &layout, black_box(&packed[..]), &acts, &mut out));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = memory, gemv, cached, gemm
}
criterion_main!(benches);
