//! A thousand steps allocate nothing, on no thread, and move four bytes each. A binary of its own,
//! since it counts every allocation of the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{CONTEXT, generator};
use gllm_kernels::graph::op::Sampler;
use gllm_kernels::plan::Session;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the process while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// One test, so that no other allocates meanwhile.
#[test]
fn a_thousand_steps_allocate_nothing() {
    assert!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))) > 0, "the count counts");
    for sampler in [Sampler::greedy(), Sampler { repeat_penalty: 1.1, ..Sampler::default() }] {
        let mut generator = generator(2, 16);
        generator.set_sampler(&sampler).unwrap();
        // The first token was sampled by the prefill.
        generator.next_token().unwrap();
        let before = generator.session().traffic();
        let count = allocations(|| {
            for _ in 0..1000 {
                generator.next_token().unwrap();
            }
        });
        assert_eq!(count, 0);
        assert!(generator.position() < CONTEXT);
        let after = generator.session().traffic();
        assert_eq!(after.steps - before.steps, 1000);
        assert_eq!(after.bytes_in - before.bytes_in, 0);
        assert_eq!(after.bytes_out - before.bytes_out, 4 * 1000);
    }
}
