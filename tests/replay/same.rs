//! One prompt, many ways to compute it, one result.

use crate::common::{PROMPT, generator, session_of};
use gllm_kernels::graph::DType;
use gllm_kernels::plan::{Session, StepInput};
use gllm_kernels::replay::Generator;

const KEPT: [DType; 2] = [DType::F16, DType::Q8_0];

#[test]
fn chunks_and_threads_change_no_bit() {
    let run = |caches, threads, rows| {
        let mut generator = Generator::new(session_of(caches, threads, rows, 1));
        assert!(generator.prefill(&PROMPT, || true).unwrap());
        let logits = generator.session().peek(0).unwrap();
        let tokens: Vec<u32> = (0..64).map(|_| generator.next_token().unwrap()).collect();
        let last = generator.session().peek(0).unwrap();
        let bits = |x: Vec<f32>| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        (bits(logits), tokens, bits(last))
    };
    let [half, eight] = KEPT.map(|caches| {
        let want = run(caches, 1, 1);
        for threads in [1, 2, 3] {
            for rows in [1, 7, 512] {
                let same = run(caches, threads, rows) == want;
                assert!(same, "{caches:?}: {threads} threads, chunks of {rows}");
            }
        }
        want
    });
    assert_ne!(half.0, eight.0, "one of them was not used");
}

#[test]
fn a_batch_gives_each_sequence_what_it_gets_alone() {
    for caches in KEPT {
        let batch = |shifts: &[u32]| batch(caches, shifts, 12);
        let alone: Vec<Vec<u32>> = [0u32, 1, 2].map(|shift| batch(&[shift]).remove(0)).to_vec();
        assert_eq!(batch(&[0, 1, 2]), alone, "{caches:?}");
        assert_eq!(batch(&[2, 0]), [alone[2].clone(), alone[0].clone()], "{caches:?}");
    }
}

/// Greedy tokens of sequences that start with the prompt shifted by so much, all in one batch.
fn batch(caches: DType, shifts: &[u32], steps: usize) -> Vec<Vec<u32>> {
    let n = shifts.len();
    let mut session = session_of(caches, 2, 4, 4);
    let slots: Vec<u32> = (0..n as u32).map(|s| 3 - s).collect();
    let outs: Vec<u32> = (0..n as u32).collect();
    let mut tokens = vec![Vec::new(); n];
    for position in 0..PROMPT.len() + steps {
        let inputs: Vec<u32> = (0..n)
            .map(|i| match PROMPT.get(position) {
                Some(token) => token + shifts[i],
                None => tokens[i][position - PROMPT.len()],
            })
            .collect();
        let positions = vec![position as u32; n];
        let step = StepInput { tokens: &inputs, positions: &positions, slots: &slots, outs: &outs };
        session.run(&step).unwrap();
        if position + 1 >= PROMPT.len() {
            for (tokens, &token) in tokens.iter_mut().zip(session.sampled()) {
                tokens.push(token);
            }
        }
    }
    tokens
}

#[test]
fn what_an_earlier_sequence_left_in_the_cache_is_not_seen() {
    let mut dirty = generator(2, 16);
    for _ in 0..100 {
        dirty.next_token().unwrap();
    }
    dirty.reset();
    dirty.prefill(&PROMPT, || true).unwrap();
    let mut clean = generator(2, 16);
    for _ in 0..30 {
        assert_eq!(dirty.next_token().unwrap(), clean.next_token().unwrap());
    }
}
