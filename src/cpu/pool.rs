//! Threads that run one job together, again and again, with barriers cheap enough to stand between
//! the routines of a token.
//!
//! A step of decode lasts milliseconds and holds hundreds of routines, so a lock or a system call
//! at each would cost more than the arithmetic. [`Pool::run`] publishes a borrowed closure by
//! raising an epoch; workers that wait for one spin for [`SPIN`] and only then sleep, so a pool in
//! use is never woken by the system and an idle one takes no processor. [`Worker::barrier`] is one
//! counter and one generation: the last to arrive raises the generation, all others watch it.
//! Every wait yields to the system after a while, so more threads than cores are slow but live.
//!
//! A panic in one worker poisons the run: whoever waits at a barrier unwinds too, every worker
//! reports back, and the caller gets [`Panicked`]; the pool can be used again.
//!
//! **Invariant:** between two runs no worker touches the job.
//! **Invariant:** a run allocates nothing (unless it panics).

use crate::error::{Error, Result};
use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism, park, yield_now};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps: longer than what lies between two steps, far
/// shorter than what a person would notice as load.
const SPIN: Duration = Duration::from_micros(80);

/// Looks at a barrier before the thread offers its core to another.
const LOOKS: u32 = 4096;

/// The same when there are more threads than cores: whoever is awaited may need this very core.
const LOOKS_CROWDED: u32 = 64;

type Job<'a> = dyn Fn(&Worker<'_>) + Sync + 'a;

/// A value on cache lines of its own: what one core writes must not slow what another reads.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    count: usize,
    looks: u32,
    /// Raised for each run; the job may be read by a worker that saw it rise.
    epoch: Line<AtomicUsize>,
    /// Workers that have not finished the run.
    left: Line<AtomicUsize>,
    arrived: Line<AtomicUsize>,
    generation: Line<AtomicUsize>,
    poisoned: AtomicBool,
    stop: AtomicBool,
    message: Mutex<Option<String>>,
    job: UnsafeCell<Option<*const Job<'static>>>,
}

// SAFETY: everything but `job` is Sync. `job` is written by `Pool::run` while no worker is in a
// run, and read by workers only after they saw the epoch that was raised (released) after it; the
// closure it points to is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is followed only during the run that lent it.
unsafe impl Send for Shared {}

/// What unwinds a worker whose barrier another worker's panic made unreachable.
struct Released;

impl Shared {
    /// Runs the job as worker `index`; keeps what a panic said.
    fn work(&self, index: usize, job: &Job<'_>) {
        let worker = Worker { index, count: self.count, shared: self };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !payload.is::<Released>() {
                let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
                message.get_or_insert_with(|| text(payload.as_ref()));
            }
            self.poisoned.store(true, Ordering::Release);
        }
    }

    /// The life of worker `index`.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.await_epoch(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            seen += 1;
            // SAFETY: the epoch rose after the job was written, and the caller waits for `left`
            // before it takes the job back.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: the caller of `run` keeps the closure alive until `left` is 0.
                self.work(index, unsafe { &*job });
            }
            self.left.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn await_epoch(&self, seen: usize) {
        let epoch = || self.epoch.0.load(Ordering::Acquire);
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..16 {
                if epoch() != seen {
                    return;
                }
                spin_loop();
            }
            if self.looks == LOOKS_CROWDED {
                yield_now();
            }
        }
        while epoch() != seen + 1 {
            // `run` unparks after it raised the epoch; a token left from an earlier run only costs
            // one more look.
            park();
        }
    }

    /// Waits until `done`, yielding after a while.
    fn wait(&self, done: impl Fn() -> bool) {
        let mut looks = 0;
        while !done() {
            if looks < self.looks {
                looks += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

/// One thread's part in a run.
pub struct Worker<'a> {
    /// Which one, from 0 (the caller of [`Pool::run`]).
    pub index: usize,
    /// How many take part.
    pub count: usize,
    shared: &'a Shared,
}

impl Worker<'_> {
    /// Waits for all workers of the run; what any of them wrote before, all see after. Either all
    /// workers come here or none does.
    pub fn barrier(&self) {
        if self.count == 1 {
            return;
        }
        let shared = self.shared;
        // Read before arriving: it cannot rise until this worker has arrived.
        let generation = shared.generation.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        shared.wait(|| {
            if shared.generation.0.load(Ordering::Acquire) != generation {
                return true;
            }
            if shared.poisoned.load(Ordering::Relaxed) {
                resume_unwind(Box::new(Released));
            }
            false
        });
    }

    /// This worker's part of `0..n`: contiguous, in order of index, sizes at most 1 apart.
    pub fn share(&self, n: usize) -> Range<usize> {
        let (each, more) = (n / self.count, n % self.count);
        let start = self.index * each + self.index.min(more);
        start..start + each + usize::from(self.index < more)
    }
}

/// A run that a worker's panic ended.
#[derive(Debug, thiserror::Error)]
#[error("a worker thread panicked: {message}")]
pub struct Panicked {
    /// What the first panic said.
    pub message: String,
}

/// Threads that wait for jobs. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads`, the caller of [`Pool::run`] included.
    ///
    /// # Errors
    /// No threads are asked for, or more than the system grants.
    pub fn new(threads: usize) -> Result<Pool> {
        if threads == 0 {
            return Err(Error::Invalid("a pool needs a thread".to_string()));
        }
        let cores = available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            count: threads,
            looks: if threads > cores { LOOKS_CROWDED } else { LOOKS },
            epoch: Line(AtomicUsize::new(0)),
            left: Line(AtomicUsize::new(0)),
            arrived: Line(AtomicUsize::new(0)),
            generation: Line(AtomicUsize::new(0)),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            message: Mutex::new(None),
            job: UnsafeCell::new(None),
        });
        let mut pool = Pool { shared, handles: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("worker {index}");
            let spawned = Builder::new().name(name).spawn(move || shared.serve(index));
            let handle = spawned.map_err(|e| {
                Error::Unsupported(format!("{threads} threads: the system refused one: {e}"))
            })?;
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// How many threads run a job, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Runs `job` once on each thread, the caller being worker 0, and returns when all are done.
    ///
    /// # Errors
    /// A worker panicked; all have stopped.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), Panicked> {
        let shared = &*self.shared;
        // No worker is in a run (`&mut self`, and the last one was waited for).
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.poisoned.store(false, Ordering::Relaxed);
        shared.left.0.store(shared.count - 1, Ordering::Relaxed);
        // SAFETY: only the lifetime changes; it is followed only until `left` is 0, below.
        let lent = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: no worker reads it before the epoch rises.
        unsafe { *shared.job.get() = Some(lent) };
        shared.epoch.0.fetch_add(1, Ordering::Release);
        for handle in &self.handles {
            handle.thread().unpark();
        }
        shared.work(0, job);
        shared.wait(|| shared.left.0.load(Ordering::Acquire) == 0);
        // SAFETY: all workers have reported back.
        unsafe { *shared.job.get() = None };
        if !shared.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = shared.message.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(Panicked { message: message.unwrap_or_default() })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.0.fetch_add(1, Ordering::Release);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches what its jobs throw, so there is no panic to pass on.
            let _ = handle.join();
        }
    }
}

/// What a panic said, if it said it in words.
fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// The cores this process may use: two threads of one core count once, since they share the units
/// that the kernels keep busy.
pub fn default_threads() -> usize {
    // Knows of a quota (control groups) too, but counts threads.
    let allowed = available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

/// Distinct cores among the processors of our affinity.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    // SAFETY: a set of bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and size are those of `set`.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return None;
    }
    let mut cores = std::collections::BTreeSet::new();
    // SAFETY: the index stays below CPU_SETSIZE, the number of bits.
    for cpu in (0..libc::CPU_SETSIZE as usize).filter(|&c| unsafe { libc::CPU_ISSET(c, &set) }) {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        cores.insert(std::fs::read_to_string(path).ok()?);
    }
    Some(cores.len())
}

/// Unknown elsewhere.
#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// Workers pass numbers around a ring, a barrier a hop: wrong order or a missed wait shows.
    fn ring(pool: &mut Pool, hops: usize) {
        let n = pool.threads();
        let cells: Vec<AtomicU64> = (0..n).map(|i| AtomicU64::new(i as u64)).collect();
        pool.run(&|w: &Worker<'_>| {
            for _ in 0..hops {
                let next = cells[(w.index + 1) % w.count].load(Ordering::Relaxed);
                w.barrier();
                cells[w.index].store(next, Ordering::Relaxed);
                w.barrier();
            }
        })
        .unwrap();
        for (i, cell) in cells.iter().enumerate() {
            assert_eq!(cell.load(Ordering::Relaxed), ((i + hops) % n) as u64);
        }
    }

    #[test]
    fn runs_and_barriers_hold() {
        for threads in 1..=8 {
            let mut pool = Pool::new(threads).unwrap();
            let total = AtomicUsize::new(0);
            for _ in 0..1000 {
                pool.run(&|w: &Worker<'_>| {
                    total.fetch_add(w.index + 1, Ordering::Relaxed);
                })
                .unwrap();
            }
            assert_eq!(total.into_inner(), 1000 * threads * (threads + 1) / 2);
            for hops in [0, 1, 7, 100] {
                ring(&mut pool, hops);
            }
        }
    }

    #[test]
    fn sleepers_wake() {
        let mut pool = Pool::new(3).unwrap();
        for pause in [0, 50, 79, 80, 81, 120, 1000, 5000] {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_micros(pause));
                ring(&mut pool, 2);
            }
        }
    }

    #[test]
    fn shares_are_even_and_cover() {
        let pool = Pool::new(1).unwrap();
        for count in 1..=9 {
            for n in 0..40 {
                let mut next = 0;
                for index in 0..count {
                    let share = Worker { index, count, shared: &pool.shared }.share(n);
                    assert_eq!(share.start, next);
                    assert!((n / count..=n.div_ceil(count)).contains(&share.len()));
                    next = share.end;
                }
                assert_eq!(next, n);
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            for victim in (0..threads).cycle().take(40) {
                let failed = pool.run(&|w: &Worker<'_>| {
                    w.barrier();
                    assert!(w.index != victim, "worker {victim} fell");
                    w.barrier();
                    w.barrier();
                });
                assert_eq!(failed.unwrap_err().message, format!("worker {victim} fell"));
                ring(&mut pool, 3);
            }
        }
        std::panic::set_hook(hook);
    }

    #[test]
    fn no_threads_are_refused_and_some_are_found() {
        assert!(Pool::new(0).is_err());
        assert!((1..=available_parallelism().unwrap().get()).contains(&default_threads()));
    }
}
