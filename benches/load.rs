//! How long loading takes, beside reading the same file: `cargo bench --bench load -- FILE…`
//!
//! In turn, nine rounds, medians, as many threads as cores; the file is in the page cache after the
//! first round, whose numbers stand apart. `read` brings the file into one buffer a thread over and
//! over, so that its bytes are nowhere afterwards; `keep` reads it into memory of its own, in huge
//! pages where the system has them; `load` is that of a session for a context of 512. `keep` and
//! `load` take memory from the system anew each round: on a virtual machine whose host takes unused
//! memory back, the first to touch it again waits for the host, which would be noise in either.

#![allow(clippy::unwrap_used, missing_docs)]

use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::graph::arch;
use gllm_kernels::model::Model;
use gllm_kernels::plan::Limits;
use gllm_kernels::replay::Plans;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

const ROUNDS: usize = 9;
const STEP: usize = 1 << 20;

fn seconds<T>(what: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let result = what();
    let seconds = start.elapsed().as_secs_f64();
    drop(result);
    seconds
}

fn read(file: &File, len: usize, threads: usize) {
    let offsets = Mutex::new((0..len).step_by(STEP));
    let next = || offsets.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; STEP];
                while let Some(at) = next() {
                    let part = &mut buffer[..STEP.min(len - at)];
                    file.read_exact_at(part, at as u64).unwrap();
                }
            });
        }
    });
}

fn keep(file: &File, len: usize, threads: usize) -> memmap2::MmapMut {
    let mut memory = memmap2::MmapMut::map_anon(len).unwrap();
    #[cfg(target_os = "linux")]
    memory.advise(memmap2::Advice::HugePage).unwrap();
    let parts = Mutex::new(memory.chunks_mut(STEP).enumerate());
    let next = || parts.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((i, part)) = next() {
                    file.read_exact_at(part, (i * STEP) as u64).unwrap();
                }
            });
        }
    });
    memory
}

fn main() {
    let backend = CpuBackend::detect();
    let threads = backend.threads();
    let paths: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    println!("{threads} threads, {}; seconds: median of {ROUNDS} (first)", backend.isa().name());
    for path in paths {
        let file = File::open(&path).unwrap();
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let load = || {
            let model = Model::open(Path::new(&path)).unwrap();
            let graph = arch::build(&model).unwrap();
            let limits = Limits { rows: 512, outs: 1, slots: 1, context: 512 };
            Plans::new(&graph, &backend, limits).unwrap().load(&backend, &model).unwrap()
        };
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..=ROUNDS {
            times[0].push(seconds(|| read(&file, len, threads)));
            times[1].push(seconds(|| keep(&file, len, threads)));
            times[2].push(seconds(load));
        }
        let [read, keep, load] = times.map(|mut t| {
            let first = t.remove(0);
            t.sort_by(f64::total_cmp);
            (t[ROUNDS / 2], first)
        });
        let name = path.rsplit('/').next().unwrap_or(&path);
        let show = |(median, first): (f64, f64)| format!("{median:.3} ({first:.3})");
        println!(
            "{name}: {:.0} MB, read {}, keep {}, load {}: {:.2} of read, {:.2} of keep",
            len as f64 / 1e6,
            show(read),
            show(keep),
            show(load),
            load.0 / read.0,
            load.0 / keep.0,
        );
    }
}
