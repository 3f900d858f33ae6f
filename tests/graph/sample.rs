//! The sampler against a slow one that sorts everything.

use crate::models::Noise;
use gllm_kernels::graph::op::{NonFinite, Sampler, SamplerScratch, sample};
use proptest::prelude::*;

fn draw(sampler: &Sampler, logits: &[f32], recent: &[u32], step: u64) -> Result<u32, NonFinite> {
    sample(sampler, &mut SamplerScratch::new(logits.len()), logits, recent, step)
}

/// No filter, no penalty.
fn plain() -> Sampler {
    Sampler { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampler::default() }
}

/// Tokens that the filters keep, in order of id, and their probabilities.
fn slow(sampler: &Sampler, logits: &[f32], recent: &[u32]) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let last = recent.len().saturating_sub(sampler.repeat_last_n);
    let mut seen = recent[last..].to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some((_, l)) = all.get_mut(id as usize) {
            *l = if *l > 0.0 { *l / sampler.repeat_penalty } else { *l * sampler.repeat_penalty };
        }
    }
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if sampler.top_k > 0 {
        all.truncate(sampler.top_k);
    }
    let max = f64::from(all[0].1);
    let weight = |l: f32, t: f64| ((f64::from(l) - max) / t).exp();
    if sampler.top_p < 1.0 {
        let total: f64 = all.iter().map(|c| weight(c.1, 1.0)).sum();
        let (mut sum, mut kept) = (0.0, 0);
        while kept < all.len() && sum < f64::from(sampler.top_p) * total {
            sum += weight(all[kept].1, 1.0);
            kept += 1;
        }
        all.truncate(kept);
    }
    all.retain(|c| weight(c.1, 1.0) >= f64::from(sampler.min_p));
    all.sort_by_key(|c| c.0);
    let t = f64::from(sampler.temperature);
    let total: f64 = all.iter().map(|c| weight(c.1, t)).sum();
    all.into_iter().map(|(id, l)| (id, weight(l, t) / total)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Over many draws exactly the kept tokens come, as often as they should.
    #[test]
    fn agrees_with_sorting(
        seed in any::<u64>(),
        size in 1usize..600,
        top_k in prop_oneof![Just(0usize), 1usize..50],
        top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.001f32..0.5],
        temperature in 0.2f32..3.0,
        repeat_penalty in prop_oneof![Just(1.0f32), 0.5f32..2.0],
        flat in any::<bool>(),
    ) {
        let mut noise = Noise(seed);
        // Many equal logits, or a wide spread.
        let mut logit = || if flat { (noise.next() * 3.0).round() } else { noise.next() * 12.0 };
        let logits: Vec<f32> = (0..size).map(|_| logit()).collect();
        let recent: Vec<u32> = (0..8).map(|i| (seed as u32).wrapping_mul(i) % 700).collect();
        let sampler = Sampler {
            temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n: 5, seed,
        };
        let wanted = slow(&sampler, &logits, &recent);
        let mut scratch = SamplerScratch::new(size);
        let mut counts = vec![0u32; size];
        let draws = 2000;
        for step in 0..draws {
            let id = sample(&sampler, &mut scratch, &logits, &recent, step).unwrap();
            counts[id as usize] += 1;
        }
        let mut kept = vec![0.0; size];
        wanted.iter().for_each(|&(id, p)| kept[id as usize] = p);
        for (id, (&n, &p)) in counts.iter().zip(&kept).enumerate() {
            prop_assert!(n == 0 || p > 0.0, "{id} was filtered out and came {n} times");
            let (mean, deviation) = (p * draws as f64, (p * draws as f64).sqrt());
            let distance = (f64::from(n) - mean).abs();
            prop_assert!(distance <= 6.5 * deviation + 5.0, "{id}: {n} times instead of {mean}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let greedy = Sampler::greedy();
    assert_eq!(draw(&greedy, &[1.0, 3.0, 2.0, 3.0], &[], 0), Ok(1));
    assert_eq!(draw(&greedy, &[-0.0, 0.0], &[], 0), Ok(0));
    assert_eq!(draw(&greedy, &[f32::MIN; 40], &[], 0), Ok(0));
    // Penalised once although it comes twice: 3 / 1.4 is still above 2.
    let penalty = Sampler { repeat_penalty: 1.4, ..greedy };
    assert_eq!(draw(&penalty, &[2.0, 3.0, -1.0], &[1, 1, 999], 0), Ok(1));
    assert_eq!(
        draw(&Sampler { repeat_penalty: 1.6, ..penalty.clone() }, &[2.0, 3.0], &[1], 0),
        Ok(0)
    );
    assert_eq!(draw(&Sampler { repeat_last_n: 0, ..penalty }, &[2.0, 3.0], &[1], 0), Ok(1));
}

#[test]
fn what_is_not_finite_makes_no_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 5, 16, 99] {
            let mut logits = [0.5f32; 100];
            logits[at] = bad;
            assert_eq!(draw(&Sampler::greedy(), &logits, &[], 0), Err(NonFinite));
            assert_eq!(draw(&Sampler::default(), &logits, &[], 0), Err(NonFinite));
        }
    }
    assert_eq!(draw(&Sampler::greedy(), &[], &[], 0), Err(NonFinite));
    // Far apart, and penalised beyond what f32 holds.
    let far = [f32::MAX, f32::MIN];
    let sampler = Sampler { repeat_penalty: 100.0, temperature: 0.01, ..plain() };
    assert_eq!(draw(&sampler, &far, &[1], 3), Ok(0));
}

#[test]
fn draws_depend_on_seed_and_step_only() {
    let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
    let mut scratch = SamplerScratch::new(50);
    let mut series = |seed: u64| -> Vec<u32> {
        let sampler = Sampler { seed, ..plain() };
        (0..40).map(|s| sample(&sampler, &mut scratch, &logits, &[], s).unwrap()).collect()
    };
    assert_eq!(series(1), series(1));
    assert_ne!(series(1), series(2));
    let fresh = draw(&Sampler { seed: 1, ..plain() }, &logits, &[], 17).unwrap();
    assert_eq!(fresh, series(1)[17]);
}

#[test]
fn parameters_are_checked() {
    Sampler::default().check().unwrap();
    Sampler::greedy().check().unwrap();
    plain().check().unwrap();
    for bad in [
        Sampler { temperature: -0.1, ..plain() },
        Sampler { temperature: f32::NAN, ..plain() },
        Sampler { top_p: 0.0, ..plain() },
        Sampler { top_p: 1.1, ..plain() },
        Sampler { min_p: -0.5, ..plain() },
        Sampler { repeat_penalty: 0.0, ..plain() },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}
