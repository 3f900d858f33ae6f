//! `sample logits`: a token from each row of logits.
//!
//! Filters act in the order penalties, top-k, top-p, min-p, temperature. The trick that keeps them
//! fast on a quarter of a million logits: candidates are ordered by higher logit, then lower id,
//! and each filter only finds a [`Cut`] in that order, the last candidate it keeps. Survivors stay
//! in order of id, so nothing is sorted as a whole and every sum has one order.
//!
//! A draw depends on the logits, the seed and the step, and on nothing else: random numbers are a
//! hash of seed and step, probabilities are f64, and [`exp`] is written out here so that no
//! system's mathematics library has a say.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::error::{Error, Result};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};
use std::cmp::Ordering;

/// Picks a token a row. How it picks is no part of the graph: it may change with each step.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample;

impl OpDef for Sample {
    fn infer(
        &self,
        args: &[&TensorType],
        _: Option<&TensorType>,
    ) -> std::result::Result<TensorType, String> {
        let [logits] = arity(args)?;
        activation("the logits", logits)?;
        if logits.lead != Lead::Outs || logits.dims.len() != 1 {
            return Err(format!("logits must be f32[O, vocabulary], are {logits}"));
        }
        if u32::try_from(logits.width()).is_err() {
            return Err(format!("{logits} has more entries than there are token ids"));
        }
        Ok(TensorType::new(DType::U32, Lead::Outs, &[]))
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> std::result::Result<Self, String> {
        Ok(Sample)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> Result<()> {
        let (logits, width) = (env.arg_f32(id, 0), env.arg_ty(id, 0).width());
        let mut scratch = SamplerScratch::new(width);
        let greedy = Sampler::greedy();
        let mut tokens = Vec::new();
        for (row, logits) in logits.chunks_exact(width).enumerate() {
            let how = env.step.sampling.get(row);
            let (sampler, recent, step) =
                how.map_or((&greedy, &[][..], 0), |s| (s.sampler, s.recent, s.step));
            let token =
                sample(sampler, &mut scratch, logits, recent, step).map_err(|NonFinite| {
                    let position = env.step.outs.get(row).and_then(|&r| {
                        let position = env.step.positions.get(r as usize)?;
                        Some(*position as usize)
                    });
                    Error::NonFinite { step, position: position.unwrap_or(0) }
                })?;
            tokens.push(token);
        }
        env.set(id, Value::U32(tokens));
        Ok(())
    }
}

/// How to pick a token.
#[derive(Clone, PartialEq, Debug)]
pub struct Sampler {
    /// Divides the logits; 0 takes the likeliest token, the lowest id of equals.
    pub temperature: f32,
    /// Keeps so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest of the likeliest tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of recent tokens; 1 does nothing.
    pub repeat_penalty: f32,
    /// How many of the latest tokens count as recent.
    pub repeat_last_n: usize,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl Sampler {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Sampler { temperature: 0.0, ..Self::default() }
    }

    /// Refuses parameters that mean nothing. [`sample`] expects that this passed.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn check(&self) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, 0.0, 1000.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repeat_penalty", self.repeat_penalty, 0.01, 100.0),
        ];
        for (name, value, low, high) in checks {
            if !(low..=high).contains(&value) {
                let low = if low == f32::MIN_POSITIVE { "above 0".into() } else { low.to_string() };
                let what = format!("{name} is {value}, it may be {low} to {high}");
                return Err(Error::Invalid(what));
            }
        }
        Ok(())
    }
}

/// Memory for [`sample`], made once: with it a step allocates nothing.
#[derive(Clone, Debug)]
pub struct SamplerScratch {
    kept: Vec<Candidate>,
    best: Vec<Candidate>,
    weights: Vec<f64>,
}

impl SamplerScratch {
    /// Bytes of it for each entry of the vocabulary.
    pub const BYTES_PER_TOKEN: usize = 2 * size_of::<Candidate>() + size_of::<f64>();

    /// Enough for rows of `vocabulary` logits.
    pub fn new(vocabulary: usize) -> Self {
        SamplerScratch {
            kept: Vec::with_capacity(vocabulary),
            best: Vec::with_capacity(vocabulary),
            weights: Vec::with_capacity(vocabulary),
        }
    }
}

/// A logit is infinite or not a number (or there is none): no token can be made of this row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NonFinite;

/// Picks a token. `recent` are the tokens so far, the latest last; `step` must differ for each
/// token of a sequence, or the draws repeat.
///
/// # Errors
/// [`NonFinite`] when a logit is not finite or there are no logits.
pub fn sample(
    sampler: &Sampler,
    scratch: &mut SamplerScratch,
    logits: &[f32],
    recent: &[u32],
    step: u64,
) -> std::result::Result<u32, NonFinite> {
    let max = highest(logits)?;
    let latest = recent.len().saturating_sub(sampler.repeat_last_n);
    let recent = recent.get(latest..).unwrap_or_default();
    let penalty = sampler.repeat_penalty;
    if sampler.temperature == 0.0 && (recent.is_empty() || penalty == 1.0) {
        return Ok(first_of(logits.iter().copied(), max));
    }

    let SamplerScratch { kept, best, weights } = scratch;
    kept.clear();
    // Adding 0 makes one zero of the two, so that the order of bits is the order of numbers.
    kept.extend(logits.iter().zip(0..).map(|(&logit, id)| Candidate { logit: logit + 0.0, id }));
    for &token in recent {
        // From the row itself, so that a token that occurs twice is penalised once.
        if let (Some(c), Some(&logit)) = (kept.get_mut(token as usize), logits.get(token as usize))
        {
            let changed = if logit > 0.0 { logit / penalty } else { logit * penalty };
            c.logit = changed.clamp(f32::MIN, f32::MAX) + 0.0;
        }
    }
    let max = kept.iter().map(|c| c.logit).fold(f32::MIN, f32::max);
    let first = first_of(kept.iter().map(|c| c.logit), max);
    if sampler.temperature == 0.0 {
        return Ok(first);
    }

    if sampler.top_k > 0 && sampler.top_k < kept.len() {
        let cut = top_k(kept, best, sampler.top_k);
        kept.retain(|c| cut.keeps(c));
    }
    if sampler.top_p < 1.0 {
        let cut = top_p(kept, best, sampler.top_p, max);
        kept.retain(|c| cut.keeps(c));
    }
    if sampler.min_p > 0.0 {
        let distance = f64::from(sampler.min_p).ln();
        kept.retain(|c| f64::from(c.logit) - f64::from(max) >= distance);
    }

    let by_temperature = 1.0 / f64::from(sampler.temperature);
    weights.clear();
    weights.extend(kept.iter().map(|c| below(c.logit, max, by_temperature)));
    let mut rest = uniform(sampler.seed, step) * weights.iter().sum::<f64>();
    for (c, w) in kept.iter().zip(&*weights) {
        rest -= w;
        if rest < 0.0 {
            return Ok(c.id);
        }
    }
    // Rounding left a crumb: the likeliest survives every filter.
    Ok(first)
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// Higher logits first, lower ids first among equals.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// The last candidate that a filter keeps.
#[derive(Clone, Copy)]
struct Cut(Candidate);

impl Cut {
    fn keeps(self, c: &Candidate) -> bool {
        c.order(&self.0) != Ordering::Greater
    }
}

/// The highest logit, if all are finite. 0 * x is 0 for finite x and NaN for all others, so that a
/// sum tells; both run in lanes.
fn highest(logits: &[f32]) -> std::result::Result<f32, NonFinite> {
    const LANES: usize = 16;
    let (mut max, mut zero) = ([f32::MIN; LANES], [0.0f32; LANES]);
    for chunk in logits.chunks(LANES) {
        for ((max, zero), &x) in max.iter_mut().zip(&mut zero).zip(chunk) {
            *max = if x > *max { x } else { *max };
            *zero += x * 0.0;
        }
    }
    let finite = !logits.is_empty() && zero.iter().sum::<f32>() == 0.0;
    if finite { Ok(max.into_iter().fold(f32::MIN, f32::max)) } else { Err(NonFinite) }
}

/// The lowest id with this logit.
fn first_of(logits: impl Iterator<Item = f32>, value: f32) -> u32 {
    logits.zip(0..).find(|(x, _)| *x == value).map_or(0, |(_, id)| id)
}

/// The `k`-th candidate. `best` collects those that may belong to the first `k`; each time it is
/// full the true `k`-th of them becomes the bar for all that follow, which nearly none pass.
fn top_k(kept: &[Candidate], best: &mut Vec<Candidate>, k: usize) -> Cut {
    let full = k.saturating_mul(4).max(256).min(kept.len());
    let mut bar = f32::NEG_INFINITY;
    best.clear();
    for c in kept {
        // A later equal has a higher id and loses.
        if c.logit > bar {
            best.push(*c);
            if best.len() == full {
                bar = best.select_nth_unstable_by(k - 1, Candidate::order).1.logit;
                best.truncate(k);
            }
        }
    }
    Cut(*best.select_nth_unstable_by(k - 1, Candidate::order).1)
}

/// The candidate with which the probabilities, from the highest down, reach `p` of their sum.
///
/// They are summed into bins of 1/32 nat first. All bins before the one in which the sum passes
/// its mark stay as they are; only that bin's candidates are put in order.
fn top_p(kept: &[Candidate], best: &mut Vec<Candidate>, p: f32, max: f32) -> Cut {
    const BINS: usize = 1024;
    let bin = |c: &Candidate| {
        let distance = f64::from(max) - f64::from(c.logit);
        ((distance * 32.0) as usize).min(BINS - 1)
    };
    let mut mass = [0.0f64; BINS];
    for c in kept {
        mass[bin(c)] += below(c.logit, max, 1.0);
    }
    let mark = f64::from(p) * mass.iter().sum::<f64>();
    let (mut sum, mut last) = (0.0, BINS - 1);
    for (i, m) in mass.iter().enumerate() {
        if sum + m >= mark {
            last = i;
            break;
        }
        sum += m;
    }
    best.clear();
    best.extend(kept.iter().filter(|c| bin(c) == last));
    best.sort_unstable_by(Candidate::order);
    for c in &*best {
        sum += below(c.logit, max, 1.0);
        if sum >= mark {
            return Cut(*c);
        }
    }
    // Rounding left the mark unreached (or the last bin is empty): nothing is cut.
    Cut(Candidate { logit: best.last().map_or(f32::MIN, |c| c.logit), id: u32::MAX })
}

/// `e^((logit - max) * factor)`.
fn below(logit: f32, max: f32, factor: f64) -> f64 {
    exp((f64::from(logit) - f64::from(max)) * factor)
}

/// `e^x` for `x <= 0`, to about 1e-15: `2^n` times the series of `e^r` with `|r| <= ln 2 / 2`.
fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i64;
    let r = (x - n as f64 * LN2_HIGH) - n as f64 * LN2_LOW;
    let mut sum = 1.0;
    for i in (1..=13).rev() {
        sum = 1.0 + sum * r / f64::from(i);
    }
    sum * f64::from_bits(((1023 + n) as u64) << 52)
}

/// A number from 0 up to but not including 1, for each seed and step.
fn uniform(seed: u64, step: u64) -> f64 {
    (mix(mix(seed) ^ step) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The finalizer of SplitMix64, after its increment: a bijection whose every output bit depends on
/// every input bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_enough() {
        for i in 0..70_000 {
            let x = f64::from(-i) / 100.0;
            assert!((exp(x) - x.exp()).abs() <= 4e-15 * x.exp(), "{x}: {} {}", exp(x), x.exp());
        }
        assert_eq!(exp(-1e30), 0.0);
    }

    #[test]
    fn uniform_is_even() {
        let mut bins = [0u32; 16];
        for step in 0..160_000 {
            bins[(uniform(7, step) * 16.0) as usize] += 1;
        }
        assert!(bins.iter().all(|&n| (9_600..10_400).contains(&n)), "{bins:?}");
    }
}
