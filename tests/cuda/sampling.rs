//! Sampling on the device: the same tokens where chance has no say, the same distribution where it
//! has.

use crate::common::{Noise, cuda};
use gllm_kernels::Error;
use gllm_kernels::cuda::CudaSession;
use gllm_kernels::graph::op::{Sampler, SamplerScratch, sample};
use gllm_kernels::graph::{Builder, MemoryWeights};
use gllm_kernels::plan::{Backend, Limits, Plan, Session, StepInput};

/// A session whose logits for token `t` are row `t` of `rows`.
fn session(rows: &[Vec<f32>]) -> CudaSession {
    let (n, vocabulary) = (rows.len(), rows[0].len());
    let mut w = MemoryWeights::new();
    let one_hot: Vec<f32> =
        (0..vocabulary * n).map(|i| f32::from(u8::from(i / n == i % n))).collect();
    w.insert("x.weight", &[vocabulary, n], &one_hot).unwrap();
    let head: Vec<f32> = (0..vocabulary * n).map(|i| rows[i % n][i / n]).collect();
    w.insert("head.weight", &[vocabulary, n], &head).unwrap();
    let mut b = Builder::new(&w);
    let x = b.embed("x").unwrap();
    let x = b.select(x).unwrap();
    let logits = b.linear(x, "head").unwrap();
    let token = b.sample(logits).unwrap();
    b.output(logits);
    b.output(token);
    let backend = cuda();
    let limits = Limits { rows: 1, outs: 1, slots: 1, context: 64 };
    let plan = Plan::new(&b.finish(), &backend, limits).unwrap();
    backend.load(vec![backend.lower(&plan).unwrap()], &w).unwrap()
}

fn pick(s: &mut CudaSession, token: u32, position: u32) -> u32 {
    let input = StepInput { tokens: &[token], positions: &[position], slots: &[0], outs: &[0] };
    s.run(&input).unwrap();
    s.sampled()[0]
}

#[test]
#[ignore = "needs a CUDA device"]
fn greedy_and_penalties_pick_what_the_cpu_picks() {
    let mut noise = Noise::new(5);
    for vocabulary in [7, 300, 5000, 40_001] {
        let mut rows: Vec<Vec<f32>> = (0..4)
            .map(|_| (0..vocabulary).map(|_| (noise.next() * 8.0).round() / 2.0).collect())
            .collect();
        rows[3].iter_mut().for_each(|v| *v = -3.5);
        let mut s = session(&rows);
        let mut scratch = SamplerScratch::new(vocabulary);
        for sampler in [
            Sampler::greedy(),
            Sampler { repeat_penalty: 1.7, ..Sampler::greedy() },
            Sampler { repeat_penalty: 0.5, repeat_last_n: 2, ..Sampler::greedy() },
            // One survivor: chance has no say either.
            Sampler { temperature: 0.7, top_k: 1, ..Sampler::default() },
            Sampler { temperature: 2.0, top_k: 0, top_p: 1e-6, min_p: 0.0, ..Sampler::default() },
        ] {
            s.set_sampler(&sampler).unwrap();
            let mut recent: Vec<u32> = Vec::new();
            for position in 0..12u32 {
                let token = (position * 7 + position / 3) % 4;
                recent.push(token);
                let got = pick(&mut s, token, position);
                let logits = &rows[token as usize];
                let want = sample(&sampler, &mut scratch, logits, &recent, 0).unwrap();
                assert_eq!(got, want, "{vocabulary} {sampler:?} at {position}");
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn draws_have_the_distribution_of_the_cpus() {
    let mut noise = Noise::new(11);
    let logits: Vec<f32> = (0..60).map(|_| noise.next() * 3.0).collect();
    let mut s = session(&[logits.clone(), logits.clone()]);
    const DRAWS: u64 = 20_000;
    for sampler in [
        Sampler { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampler::default() },
        Sampler { temperature: 0.6, top_k: 12, top_p: 1.0, min_p: 0.0, ..Sampler::default() },
        Sampler { temperature: 1.3, top_k: 0, top_p: 0.8, min_p: 0.0, ..Sampler::default() },
        Sampler { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.2, ..Sampler::default() },
        Sampler { temperature: 0.9, top_k: 30, top_p: 0.9, min_p: 0.05, ..Sampler::default() },
    ] {
        let sampler = Sampler { seed: 99, ..sampler };
        s.set_sampler(&sampler).unwrap();
        let mut scratch = SamplerScratch::new(60);
        let (mut ours, mut theirs) = (vec![0u32; 60], vec![0u32; 60]);
        for draw in 0..DRAWS {
            ours[pick(&mut s, 0, 0) as usize] += 1;
            theirs[sample(&sampler, &mut scratch, &logits, &[0], draw).unwrap() as usize] += 1;
        }
        // Two samples of one distribution: the sum of (a - b)² / (a + b) is chi-squared.
        let (mut chi, mut degrees) = (0.0, 0.0);
        for (&a, &b) in ours.iter().zip(&theirs) {
            if a + b > 10 {
                chi += f64::from(a.abs_diff(b)).powi(2) / f64::from(a + b);
                degrees += 1.0;
            } else {
                assert!(a.abs_diff(b) <= 10);
            }
        }
        let kept = |x: &[u32]| x.iter().filter(|&&n| n > 0).count();
        println!(
            "{sampler:?}: chi² {chi:.1} of {degrees}, {} and {} tokens",
            kept(&ours),
            kept(&theirs)
        );
        assert!(chi < degrees + 5.0 * f64::sqrt(2.0 * degrees) + 5.0, "{sampler:?}");
        // The same seed, the same tokens.
        s.set_sampler(&sampler).unwrap();
        let again: Vec<u32> = (0..50).map(|_| pick(&mut s, 0, 0)).collect();
        s.set_sampler(&sampler).unwrap();
        let same: Vec<u32> = (0..50).map(|_| pick(&mut s, 0, 0)).collect();
        assert_eq!(again, same);
        assert!(again.iter().any(|&t| t != again[0]));
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn logits_that_are_not_finite_make_no_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = vec![vec![0.5; 1000]; 2];
        rows[1][777] = bad;
        let mut s = session(&rows);
        let run = |s: &mut CudaSession, token: u32| {
            let input = StepInput { tokens: &[token], positions: &[0], slots: &[0], outs: &[0] };
            s.run(&input)
        };
        // The product with 0 makes NaN of what is not finite, so token 0 fails as well: only a row
        // without it can pass.
        assert!(matches!(run(&mut s, 1), Err(Error::NonFinite { position: 0, .. })), "{bad}");
        assert!(s.step().is_err(), "no token to go on from");
    }
}
