//! The loop: nothing allocated, nothing crosses but the token, and errors that end well.

use crate::common::{SMALL, cuda, llama, llama_weights};
use gllm_kernels::cuda::CudaSession;
use gllm_kernels::graph::op::Sampler;
use gllm_kernels::model::Format;
use gllm_kernels::plan::{Limits, Session, StepInput};
use gllm_kernels::replay::profile::profile;
use gllm_kernels::replay::{Generator, Plans};
use gllm_kernels::{Error, Result};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

thread_local! {
    static COUNT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
static ALL: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        ALL.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn session(context: usize) -> Result<CudaSession> {
    let w = llama_weights(&SMALL, Format::BF16);
    let graph = llama(&SMALL, &w);
    let backend = cuda();
    let limits = Limits { rows: 32, outs: 4, slots: 4, context };
    Plans::new(&graph, &backend, limits)?.load(&backend, &w)
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_step_allocates_nothing_and_moves_a_token() {
    let mut generator = Generator::new(session(10_100).unwrap());
    generator.prefill(&[1, 2, 3], || true).unwrap();
    // The first is the prefill's; the second step looks the driver's function up.
    generator.next_token().unwrap();
    generator.next_token().unwrap();
    let (nodes, kernels) = generator.session().graph_nodes().unwrap().unwrap();
    assert!(nodes == kernels && nodes > 2, "{kernels} of {nodes} nodes are kernels");
    let (before, free) =
        (generator.session().traffic(), generator.session().free_memory().unwrap());
    let count = COUNT.with(std::cell::Cell::get);
    for _ in 0..5_000 {
        generator.next_token().unwrap();
    }
    generator.tokens(5_000, |_| true).unwrap();
    assert_eq!(COUNT.with(std::cell::Cell::get), count);
    let after = generator.session().traffic();
    assert_eq!((after.steps - before.steps, after.bytes_in - before.bytes_in), (10_000, 0));
    assert!(after.bytes_out - before.bytes_out <= 80_000);
    assert_eq!(generator.session().free_memory().unwrap(), free);
    println!("{nodes} nodes, 10,000 steps: {} bytes out", after.bytes_out - before.bytes_out);
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_captured_step_equals_the_step_that_is_launched() {
    // The same tokens by replay, and fed one by one.
    let mut replayed = Generator::new(session(600).unwrap());
    replayed.prefill(&[5, 6, 7], || true).unwrap();
    let tokens: Vec<u32> = (0..500).map(|_| replayed.next_token().unwrap()).collect();
    let logits = replayed.session().peek(0).unwrap();
    let mut fed = session(600).unwrap();
    let first = StepInput { tokens: &[5, 6, 7], positions: &[0, 1, 2], slots: &[0; 3], outs: &[2] };
    fed.run(&first).unwrap();
    for (i, pair) in tokens.windows(2).enumerate() {
        assert_eq!(fed.sampled(), [pair[0]], "token {i}");
        let position = 3 + i as u32;
        let one = StepInput { tokens: &pair[..1], positions: &[position], slots: &[0], outs: &[0] };
        fed.run(&one).unwrap();
    }
    let same =
        fed.peek(0).unwrap().iter().map(|v| v.to_bits()).eq(logits.iter().map(|v| v.to_bits()));
    assert!(same, "other logits");
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_step_ahead_that_nobody_wants_is_as_if_it_had_not_been() {
    let sampler = |seed| Sampler { seed, temperature: 1.5, ..Sampler::default() };
    let begin = || {
        let mut generator = Generator::new(session(200).unwrap());
        generator.set_sampler(&sampler(1)).unwrap();
        generator.prefill(&[5, 6, 7], || true).unwrap();
        generator
    };
    let (mut one, mut ahead) = (begin(), begin());
    let some = |g: &mut Generator<CudaSession>, n: usize| -> Vec<u32> {
        (0..n).map(|_| g.next_token().unwrap()).collect()
    };
    // Wants more than it takes.
    let taken = |g: &mut Generator<CudaSession>, n: usize| {
        let mut all = Vec::new();
        g.tokens(n + 50, |token| {
            all.push(token);
            all.len() < n
        })
        .unwrap();
        all
    };
    for n in [1, 2, 9] {
        assert_eq!(taken(&mut ahead, n), some(&mut one, n));
    }
    assert!(ahead.session().peek(0).is_none(), "logits of a step that nobody has seen");
    assert_eq!(ahead.next_token().unwrap(), one.next_token().unwrap());
    assert_eq!(ahead.session().peek(0).unwrap(), one.session().peek(0).unwrap());
    // Another sampler, from the token after the last one that was given.
    assert_eq!(taken(&mut ahead, 3), some(&mut one, 3));
    for g in [&mut one, &mut ahead] {
        g.set_sampler(&Sampler { repeat_penalty: 1.3, ..sampler(2) }).unwrap();
    }
    assert_eq!(taken(&mut ahead, 5), some(&mut one, 5));
    // A prompt; draws go on where they were.
    for g in [&mut one, &mut ahead] {
        g.rewind(6).unwrap();
        g.prefill(&[8, 9], || true).unwrap();
    }
    assert_eq!(taken(&mut ahead, 12), some(&mut one, 12));
    // As many as there are: no step is left over.
    let left = 200 - one.position();
    let (mut all, want) = (Vec::new(), some(&mut one, left));
    let error = ahead.tokens(1_000, |token| {
        all.push(token);
        true
    });
    assert!(matches!(error, Err(Error::Context { .. })));
    assert_eq!(all, want);
    assert_eq!(ahead.session().peek(0).unwrap(), one.session().peek(0).unwrap());
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_batch_gives_each_sequence_what_it_gets_in_any_other() {
    let batch = |starts: &[u32]| -> Vec<Vec<u32>> {
        let mut session = session(64).unwrap();
        let n = starts.len();
        let slots: Vec<u32> = (0..n as u32).map(|s| 3 - s).collect();
        let outs: Vec<u32> = (0..n as u32).collect();
        let mut last = starts.to_vec();
        let mut tokens = vec![Vec::new(); n];
        for position in 0..30u32 {
            let positions = vec![position; n];
            let step =
                StepInput { tokens: &last, positions: &positions, slots: &slots, outs: &outs };
            session.run(&step).unwrap();
            last = session.sampled().to_vec();
            tokens.iter_mut().zip(&last).for_each(|(t, &id)| t.push(id));
        }
        tokens
    };
    let all = batch(&[3, 50, 99, 120]);
    let pair = batch(&[99, 3]);
    assert_eq!(pair, [all[2].clone(), all[0].clone()]);
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_profile_is_the_step_and_leaves_it_as_it_was() {
    let w = llama_weights(&SMALL, Format::BF16);
    let limits = Limits { rows: 32, outs: 4, slots: 4, context: 600 };
    let plans = Plans::new(&llama(&SMALL, &w), &cuda(), limits).unwrap();
    let mut fresh = Generator::new(session(600).unwrap());
    fresh.prefill(&[5, 6, 7], || true).unwrap();
    let want: Vec<u32> = (0..50).map(|_| fresh.next_token().unwrap()).collect();
    let mut generator = Generator::new(session(600).unwrap());
    let measured = profile(&mut generator, &plans.one, 100, 3, || true).unwrap().unwrap();
    println!("{measured}");
    let (nodes, _) = generator.session().graph_nodes().unwrap().unwrap();
    // Links of a chain have a line each.
    assert!(measured.launches.len() >= nodes && measured.launches.len() > 10);
    assert!(measured.timed().all(|(l, _)| l.line.line > 0 && !l.name.is_empty()));
    // A step of so small a model is launches alone, and a microsecond at a graph's start is much of
    // it; that of a real one must be within 3%.
    assert!(measured.apart().abs() < 0.25, "{}", measured.apart());
    assert!(measured.times.ceiling.bytes_per_second > 1e11);
    generator.reset();
    generator.prefill(&[5, 6, 7], || true).unwrap();
    let got: Vec<u32> = (0..50).map(|_| generator.next_token().unwrap()).collect();
    assert_eq!(got, want);
    // No room to go on in: refused, and the session lives.
    let last = StepInput { tokens: &[1], positions: &[570], slots: &[0], outs: &[0] };
    assert!(generator.session().profile(&last, 1).is_err());
    generator.next_token().unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn sessions_of_two_threads_step_at_once() {
    // Blocks of a chain wait for each other: two chains must not have half of the chip each.
    let tokens = |start: u32| {
        let mut generator = Generator::new(session(2_100).unwrap());
        generator.prefill(&[start, 2, 3], || true).unwrap();
        (0..2_000).map(|_| generator.next_token().unwrap()).collect::<Vec<u32>>()
    };
    let alone = [tokens(1), tokens(7)];
    let both = std::thread::scope(|s| {
        let threads = [1, 7].map(|start| s.spawn(move || tokens(start)));
        threads.map(|t| t.join().unwrap())
    });
    assert_eq!(both, alone);
}

#[test]
#[ignore = "needs a CUDA device"]
fn sessions_come_and_go_and_memory_stays() {
    let w = llama_weights(&SMALL, Format::BF16);
    let backend = cuda();
    let limits = Limits { rows: 32, outs: 4, slots: 4, context: 64 };
    let plans = Plans::new(&llama(&SMALL, &w), &backend, limits).unwrap();
    let session = || plans.load(&backend, &w).unwrap();
    drop(session());
    let free = session().free_memory().unwrap();
    for i in 0..1000 {
        let mut s = session();
        s.run(&StepInput { tokens: &[1], positions: &[0], slots: &[0], outs: &[0] }).unwrap();
        s.step().unwrap();
        if i % 100 == 0 {
            println!("{i}: {} bytes", free as i64 - s.free_memory().unwrap() as i64);
        }
    }
    let after = session().free_memory().unwrap();
    // Drivers keep what they took in steps of 2 MiB.
    assert!(free.abs_diff(after) <= 2 << 20, "{free} {after}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn what_does_not_fit_is_refused_before_it_is_allocated() {
    match session(1 << 28) {
        Err(Error::Memory { needs, has, hint, .. }) => {
            assert!(needs > has && hint.contains("--ctx"), "{hint}");
        }
        other => panic!("{other:?}"),
    }
    let mut s = session(64).unwrap();
    let bad = |tokens: &[u32], position: u32, slot: u32| {
        let (positions, slots) = (vec![position; tokens.len()], vec![slot; tokens.len()]);
        let input = StepInput { tokens, positions: &positions, slots: &slots, outs: &[] };
        s.run(&input).is_err()
    };
    let mut bad = bad;
    assert!(bad(&[300], 0, 0) && bad(&[1], 64, 0) && bad(&[1], 0, 4) && bad(&[], 0, 0));
    assert!(s.step().is_err(), "nothing was sampled");
}
