//! The plan of one layer, as a person reads it, and what is refused.

use gllm_kernels::Error;
use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::graph::{DType, arch};
use gllm_kernels::plan::{Backend, Limits, Plan, Role};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const LIMITS: Limits = Limits { rows: 8, outs: 1, slots: 1, context: 64 };

fn tiny(limits: Limits) -> gllm_kernels::Result<Plan> {
    let model = gllm_kernels::embedded::tiny().unwrap();
    let graph = arch::build(&model).unwrap();
    Plan::new(&graph, &CpuBackend::detect().with_threads(2).unwrap(), limits)
}

#[test]
fn five_launches_a_layer() {
    let plan = tiny(LIMITS).unwrap();
    let model = gllm_kernels::embedded::tiny().unwrap();
    let layers = model.meta().get_u64("llama.block_count").unwrap().unwrap() as usize;
    // The head and the sampling come on top, and of a prompt's residual before the last layer the
    // rows that are wanted.
    assert_eq!(plan.groups().len(), 5 * layers + 3);
    assert_eq!(tiny(Limits { rows: 1, ..LIMITS }).unwrap().groups().len(), 5 * layers + 2);
    let report = plan.to_string();
    let launches: Vec<&str> =
        report.lines().skip_while(|l| *l != "launches").skip(1).take(5).collect();
    let kinds: Vec<&str> = launches.iter().filter_map(|l| l.split_whitespace().nth(1)).collect();
    assert_eq!(kinds, ["linear", "attend", "linear", "linear", "linear"], "{report}");
}

#[test]
fn the_same_input_gives_the_same_plan() {
    assert_eq!(tiny(LIMITS).unwrap(), tiny(LIMITS).unwrap());
}

#[test]
fn the_residual_is_updated_in_place() {
    let plan = tiny(LIMITS).unwrap();
    let in_place = plan.buffers().iter().filter(|b| b.in_place_of.is_some()).count();
    assert!(in_place >= plan.groups().len() / 5, "{plan}");
}

#[test]
fn what_is_planned_is_what_is_loaded() {
    let plan = tiny(LIMITS).unwrap();
    let model = gllm_kernels::embedded::tiny().unwrap();
    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let program = backend.lower(&plan).unwrap();
    assert!(backend.load(vec![program], &model).is_ok());
    let scratch = plan.buffers().iter().filter(|b| b.role == Role::Scratch);
    let end = scratch.map(|b| b.offset + b.bytes).max().unwrap();
    assert_eq!(plan.bytes().scratch, end);
}

#[test]
fn loading_tells_how_far_it_is_and_stops_when_told() {
    let plan = tiny(LIMITS).unwrap();
    let model = gllm_kernels::embedded::tiny().unwrap();
    for threads in [1, 2, 3] {
        let backend = CpuBackend::detect().with_threads(threads).unwrap();
        let load = |progress: &(dyn Fn(u64, u64) -> bool + Sync)| {
            // A plan is for so many threads.
            let plan = Plan::new(plan.graph(), &backend, LIMITS).unwrap();
            let program = backend.lower(&plan).unwrap();
            backend.load_watched(vec![program], &model, progress).map(|_| ())
        };
        let told = Mutex::new(Vec::new());
        load(&|done, total| {
            told.lock().unwrap().push((done, total));
            true
        })
        .unwrap();
        let told = told.into_inner().unwrap();
        let total = told[0].1;
        // All bytes of the file but its header.
        assert!((total..total + total / 4).contains(&model.file_bytes()), "{total}");
        assert!(told.iter().all(|&(done, of)| of == total && done <= total));
        assert_eq!(told.iter().map(|(done, _)| *done).max(), Some(total));
        for most in [0, 1, total / 2] {
            let seen = AtomicU64::new(0);
            let stopped = load(&|done, _| {
                seen.fetch_max(done, Ordering::Relaxed);
                done < most
            });
            assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
            // It is asked before the first piece, and after each.
            let seen = seen.into_inner();
            assert!(if most == 0 { seen == 0 } else { seen < total }, "{seen} of {total}");
        }
    }
}

#[test]
fn absurd_limits_are_refused() {
    for limits in [
        Limits { rows: 0, ..LIMITS },
        Limits { outs: 0, ..LIMITS },
        Limits { outs: 9, ..LIMITS },
        Limits { slots: 0, ..LIMITS },
        Limits { context: 0, ..LIMITS },
        Limits { context: usize::MAX, ..LIMITS },
        Limits { slots: usize::MAX, ..LIMITS },
    ] {
        assert!(tiny(limits).is_err(), "{limits:?}");
    }
}

#[test]
fn more_than_memory_is_refused_with_figures() {
    let limits = Limits { context: 4_000_000_000, ..LIMITS };
    let plan = tiny(limits).unwrap();
    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let model = gllm_kernels::embedded::tiny().unwrap();
    let program = backend.lower(&plan).unwrap();
    let Err(error) = backend.load(vec![program], &model) else { panic!("it was loaded") };
    let text = error.to_string();
    assert!(text.contains("needs") && text.contains("KV") && text.contains("--ctx"), "{text}");
}

#[test]
fn what_follows_sampling_is_refused() {
    use gllm_kernels::graph::{Builder, MemoryWeights};
    let mut weights = MemoryWeights::new();
    weights.insert("w.weight", &[32, 32], &[0.5; 1024]).unwrap();
    let mut b = Builder::new(&weights);
    let x = b.embed("w").unwrap();
    let x = b.select(x).unwrap();
    let logits = b.linear(x, "w").unwrap();
    let token = b.sample(logits).unwrap();
    let more = b.linear(logits, "w").unwrap();
    b.output(token);
    let (first, backend) = (b.graph().clone(), CpuBackend::detect());
    assert!(backend.lower(&Plan::new(&first, &backend, LIMITS).unwrap()).is_ok());
    b.output(more);
    let plan = Plan::new(&b.finish(), &backend, LIMITS).unwrap();
    let Err(error) = backend.lower(&plan) else { panic!("it was lowered") };
    assert!(error.to_string().contains("sampling must come last"), "{error}");
}

#[test]
fn a_step_reads_the_cache_that_its_windows_show() {
    // 8 layers, keys and values, 2 heads of 64, f16.
    let row = 8 * 2 * 2 * 64 * 2;
    let all = tiny(LIMITS).unwrap();
    assert_eq!([0, 9, 40].map(|p| all.cache_bytes_per_token(p)), [row, 10 * row, 41 * row]);
    let model = gllm_kernels::embedded::tiny().unwrap();
    let text = arch::build(&model).unwrap().to_string();
    // Every other layer sees 16 positions.
    let mut layer = 0;
    let lines = text.lines().map(|line| {
        let attends = line.contains("= attend(");
        layer += usize::from(attends);
        if attends && layer % 2 == 0 {
            line.replace("scale=", "window=16, scale=")
        } else {
            line.to_string()
        }
    });
    let graph = lines.collect::<Vec<_>>().join("\n").parse().unwrap();
    let half = Plan::new(&graph, &CpuBackend::detect(), LIMITS).unwrap();
    assert_eq!(
        [0, 9, 40].map(|p| half.cache_bytes_per_token(p)),
        [row, 10 * row, 41 * row / 2 + 16 * row / 2]
    );
}

#[test]
fn caches_take_16_bits_an_element_or_8_and_a_half() {
    let model = gllm_kernels::embedded::tiny().unwrap();
    let graph = arch::build(&model).unwrap();
    let count = |key: &str| model.meta().get_u64(&format!("llama.{key}")).unwrap().unwrap();
    let (layers, kv_heads) = (count("block_count"), count("attention.head_count_kv"));
    let dim = count("embedding_length") / count("attention.head_count");
    assert_eq!(dim % 32, 0);
    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let kv = |kept: &dyn Fn(usize) -> DType| {
        let graph = graph.with_caches(|cache| kept(cache.layer)).unwrap();
        Plan::new(&graph, &backend, LIMITS).unwrap().bytes().kv
    };
    let layer = 2 * LIMITS.context as u64 * kv_heads * dim;
    assert_eq!(kv(&|_| DType::F16), layers * layer * 2);
    assert_eq!(kv(&|_| DType::Q8_0), layers * layer * 34 / 32);
    let last = layers as usize - 1;
    let mixed = kv(&|l| if l == last { DType::Q8_0 } else { DType::F16 });
    assert_eq!(mixed, (layers - 1) * layer * 2 + layer * 34 / 32);
    assert!(graph.with_caches(|_| DType::F32).is_err());
}
