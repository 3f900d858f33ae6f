//! When each worker begins and ends its part of each group: for `profile`, and for nobody else. The
//! loop of a step is written once over [`Watch`]; [`Unwatched`] leaves nothing of it in the code.

use super::program::{Program, Step};
use super::read_bandwidth;
use super::session::CpuSession;
use crate::plan::{Part, Rate, Session, StepInput, Timed, Times, median};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Is told where a worker is.
pub(super) trait Watch: Sync {
    /// `worker` takes up step `step`.
    fn begun(&self, step: usize, worker: usize);
    /// `worker` is done with it, and goes to wait for the others.
    fn done(&self, step: usize, worker: usize);
    /// All are done with all; what follows is the caller's alone.
    fn ended(&self);
}

/// Nobody watches.
pub(super) struct Unwatched;

impl Watch for Unwatched {
    #[inline(always)]
    fn begun(&self, _: usize, _: usize) {}
    #[inline(always)]
    fn done(&self, _: usize, _: usize) {}
    #[inline(always)]
    fn ended(&self) {}
}

/// The times of one step, in nanoseconds from its start.
struct Stamps {
    base: Instant,
    steps: usize,
    workers: usize,
    /// Begin and end of each step, worker by worker, so that none writes where another does.
    at: Vec<AtomicU64>,
    ended: AtomicU64,
}

impl Watch for Stamps {
    fn begun(&self, step: usize, worker: usize) {
        self.note(2 * (worker * self.steps + step));
    }

    fn done(&self, step: usize, worker: usize) {
        self.note(2 * (worker * self.steps + step) + 1);
    }

    fn ended(&self) {
        self.ended.store(self.now(), Ordering::Relaxed);
    }
}

impl Stamps {
    fn new(steps: usize, workers: usize) -> Stamps {
        let at = (0..2 * steps * workers).map(|_| AtomicU64::new(0)).collect();
        Stamps { base: Instant::now(), steps, workers, at, ended: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note(&self, i: usize) {
        if let Some(at) = self.at.get(i) {
            at.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Begin and end of a step for each worker.
    fn of(&self, step: usize) -> impl Iterator<Item = (u64, u64)> {
        let at = |i: usize| self.at.get(i).map_or(0, |a| a.load(Ordering::Relaxed));
        (0..self.workers).map(move |w| {
            let i = 2 * (w * self.steps + step);
            (at(i), at(i + 1))
        })
    }

    /// Each step's time, from the end of the one before to when its last worker was done, and how
    /// long a worker stood waiting in it; then what the caller does alone, until `total`.
    fn read(&self, total: u64) -> Vec<(f64, f64)> {
        let mut out = Vec::with_capacity(self.steps + 1);
        let mut before = 0;
        for step in 0..self.steps {
            let last = self.of(step).map(|(_, done)| done).max().unwrap_or(0);
            // Workers that leave the last step end the run.
            let end =
                if step + 1 == self.steps { self.ended.load(Ordering::Relaxed) } else { last };
            let seconds = end.saturating_sub(before);
            let worked: u64 = self.of(step).map(|(begun, done)| done.saturating_sub(begun)).sum();
            let worked = worked as f64 / self.workers.max(1) as f64;
            out.push((seconds as f64 / 1e9, (seconds as f64 - worked) / 1e9));
            before = end;
        }
        out.push((total.saturating_sub(before) as f64 / 1e9, 0.0));
        out
    }
}

/// Time of a round's steps, and steps of each kind in it.
const ROUND: Duration = Duration::from_millis(600);
const STEPS: (u128, u128) = (4, 64);

impl CpuSession {
    pub(super) fn watched(&mut self, input: &StepInput<'_>, rounds: usize) -> Result<Times> {
        if (input.tokens.len(), input.outs.len()) != (1, 1) {
            return Err(Error::Invalid("a profile is of one row and its token".to_string()));
        }
        self.run(input)?;
        let (program, threads) = (self.program()?, self.threads());
        let steps = program.steps.len();
        let kinds: Vec<&str> = program.steps.iter().map(kind).collect();
        let samples = program.sample.is_some();
        let start = Instant::now();
        self.replay()?;
        let pair = (2 * start.elapsed()).as_nanos().max(1);
        let each = (ROUND.as_nanos() / pair).clamp(STEPS.0, STEPS.1);
        let mut stamps = Stamps::new(steps, threads);
        let (mut plain, mut seen, mut roofs) = (Vec::new(), Vec::new(), Vec::new());
        let mut empty = Vec::new();
        for _ in 0..rounds.max(1) {
            // Workers sleep by now.
            self.replay()?;
            // Watched and unwatched steps take turns: what slows the machine slows both.
            for _ in 0..each {
                let start = Instant::now();
                self.replay()?;
                plain.push(start.elapsed().as_secs_f64());
                stamps.base = Instant::now();
                self.replay_watched(&stamps)?;
                let parts = stamps.read(stamps.now());
                seen.push((parts.iter().map(|p| p.0).sum::<f64>(), parts));
            }
            empty.push(self.barriers(steps)?);
            roofs.push(read_bandwidth(threads)?);
        }
        let replay = mean(middle(plain.into_iter().map(|s| (s, ())).collect()).iter().map(|s| s.0));
        let count = seen.len();
        let seen = middle(seen);
        let of = |i: usize, part: fn(&(f64, f64)) -> f64| {
            mean(seen.iter().filter_map(|(_, parts)| parts.get(i)).map(part))
        };
        let timed = |i: usize, kernel: &str| Timed {
            group: i,
            part: Part::Whole,
            takes_on: false,
            kernel: format!("{kernel} {}", self.isa.name()),
            weights: None,
            seconds: of(i, |p| p.0),
            waits: Some(of(i, |p| p.1)),
        };
        let mut launches: Vec<Timed> =
            kinds.iter().enumerate().map(|(i, kind)| timed(i, kind)).collect();
        if samples {
            launches.push(Timed { kernel: "sample".to_string(), ..timed(steps, "") });
        }
        Ok(Times {
            launches,
            clock: 0.0,
            replay,
            token: replay,
            empty: Some(median(empty)),
            ceiling: Rate {
                // No rate that memory delivers is above the roof.
                bytes_per_second: roofs.into_iter().fold(0.0, f64::max),
                how: "the most that all threads read together from memory in this run",
            },
            beside: None,
            steps: count,
        })
    }
}

fn kind(step: &Step) -> &'static str {
    match step {
        Step::Linear(_) => "linear",
        Step::Experts(_) => "experts",
        Step::Attend(_) => "attend",
        Step::Rows(_) => "rows",
    }
}

/// The half of the samples that is neither fast nor slow: what is averaged over whole steps adds up.
fn middle<T>(mut samples: Vec<(f64, T)>) -> Vec<(f64, T)> {
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    let quarter = samples.len() / 4;
    let keep = samples.len() - 2 * quarter;
    samples.into_iter().skip(quarter).take(keep).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = values.fold((0usize, 0.0), |(n, sum), v| (n + 1, sum + v));
    if n == 0 { 0.0 } else { sum / n as f64 }
}

impl CpuSession {
    fn program(&self) -> Result<&Program> {
        let none = || Error::Invalid("no program holds this step".to_string());
        self.programs.get(self.state.program).ok_or_else(none)
    }

    fn threads(&self) -> usize {
        self.programs.first().map_or(1, |p| p.threads)
    }

    /// Seconds that a run of so many groups takes in which nobody does anything.
    fn barriers(&mut self, steps: usize) -> Result<f64> {
        let mut once = || -> Result<f64> {
            let start = Instant::now();
            let ran = self.pool.run(&|worker| (1..steps).for_each(|_| worker.barrier()));
            ran.map_err(super::session::panicked)?;
            Ok(start.elapsed().as_secs_f64())
        };
        once()?;
        Ok(median((0..9).map(|_| once()).collect::<Result<Vec<_>>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_and_waiting_is_what_is_left_of_work() {
        let stamps = Stamps::new(2, 2);
        // Worker 0 begins at 10 and is done at 30, worker 1 at 50; the second step takes both 40.
        for (worker, times) in [[10, 30, 55, 95], [10, 50, 55, 95]].iter().enumerate() {
            for (i, &time) in times.iter().enumerate() {
                stamps.at[worker * 4 + i].store(time, Ordering::Relaxed);
            }
        }
        stamps.ended.store(100, Ordering::Relaxed);
        let nanos: Vec<(u64, u64)> = stamps
            .read(130)
            .iter()
            .map(|p| ((p.0 * 1e9).round() as u64, (p.1 * 1e9).round() as u64))
            .collect();
        // 50 of which 20 and 40 were work; 50 of which 40 were; and 30 of the caller's.
        assert_eq!(nanos, [(50, 20), (50, 10), (30, 0)]);
    }

    #[test]
    fn the_middle_half_is_kept() {
        let samples = [9.0, 1.0, 5.0, 4.0, 100.0, 6.0, 3.0, 2.0].map(|s| (s, ()));
        let kept: Vec<f64> = middle(samples.to_vec()).iter().map(|s| s.0).collect();
        assert_eq!(kept, [3.0, 4.0, 5.0, 6.0]);
        assert_eq!((mean([].into_iter()), median(vec![3.0, 1.0, 2.0])), (0.0, 2.0));
        assert_eq!(middle(vec![(1.0, ())]).len(), 1);
    }
}
