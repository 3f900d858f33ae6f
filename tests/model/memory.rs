//! A header costs memory in proportion to its file, whatever it claims.
//!
//! The test binary counts each thread's own bytes, so that tests beside this one do not disturb.

use super::open;
use gllm_kernels::model::{Array, GgufWriter, Strings};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    NOW.set(NOW.get() + bytes);
    PEAK.set(PEAK.get().max(NOW.get()));
}

// SAFETY: everything is the system allocator's; counting touches only cells of this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both at once, as when the block moves.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Most bytes that `work` had allocated at one time.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let out = work();
    (out, (PEAK.get() - before) as usize)
}

/// What opening a file of `len` bytes may allocate: its copy for `open` and all the rest.
pub fn allowance(len: usize) -> usize {
    16 * len + 8192
}

#[test]
fn dense_headers_cost_a_few_times_their_size() {
    // As many of the smallest things as fit.
    let keys = (0..20_000u32).fold(GgufWriter::new(), |w, i| w.meta(&format!("{i:x}"), 0u8));
    let tensors = (0..20_000u32).fold(GgufWriter::new(), |w, i| {
        w.tensor(&format!("{i:x}"), gllm_kernels::model::Format::F32, &[1], &[0; 4])
    });
    let empty = Array::Array(vec![Array::U8(vec![]); 50_000]);
    let strings: Strings = std::iter::repeat_n("", 50_000).collect();
    let nested = Array::Array(vec![Array::Array(vec![Array::Bool(vec![])]); 50_000]);
    let files = [
        keys.finish(),
        tensors.finish(),
        GgufWriter::new().meta("k", empty).finish(),
        GgufWriter::new().meta("k", strings).finish(),
        GgufWriter::new().meta("k", nested).finish(),
    ];
    for file in files {
        let (model, peak) = peak(|| open(&file));
        model.unwrap();
        println!("{} bytes: peak {:.1} times", file.len(), peak as f64 / file.len() as f64);
        assert!(peak <= allowance(file.len()), "{} bytes, {peak} allocated", file.len());
    }
}

#[test]
fn claims_cost_nothing() {
    let pad = vec![0u8; 4096];
    let array = |kind: u32, count: u64| {
        let mut file = GgufWriter::new().meta("k", vec![0u8]).finish()[..37].to_vec();
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(&pad);
        file
    };
    for kind in 0..=12 {
        for count in [u64::MAX, 1 << 61, 1 << 32, 4096, 512, 400] {
            let file = array(kind, count);
            let (_, peak) = peak(|| open(&file).is_ok());
            assert!(peak <= allowance(file.len()), "{kind} {count}: {peak} allocated");
        }
    }
}

/// The negative control: what is counted is what is allocated.
#[test]
fn the_counter_counts() {
    let (len, peak) = peak(|| vec![1u8; 1 << 20].len());
    assert!(peak >= len && peak < 2 * len);
}
