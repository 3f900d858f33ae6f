//! Perplexity beside the sums done by hand.

use crate::common::{CONTEXT, session};
use gllm_kernels::plan::{Session, StepInput};
use gllm_kernels::replay::perplexity;

/// Ids of a text that is long enough for three windows of 20 and some more.
fn text() -> Vec<u32> {
    (0..67u32).map(|i| i * 977 % 4000 + 1).collect()
}

/// Token by token, a softmax as it is written.
fn by_hand(tokens: &[u32], window: usize, bos: Option<u32>) -> (u64, f64) {
    let mut session = session(1, 1, 1);
    let (mut count, mut sum) = (0, 0.0);
    for window in tokens.chunks(window).filter(|w| w.len() == window) {
        for (position, pair) in window.windows(2).enumerate() {
            let token = bos.filter(|_| position == 0).unwrap_or(pair[0]);
            let input = StepInput {
                tokens: &[token],
                positions: &[position as u32],
                slots: &[0],
                outs: &[0],
            };
            session.run(&input).unwrap();
            if position >= window.len() / 2 {
                let logits = session.peek(0).unwrap();
                let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
                count += 1;
                sum -= (f64::from(logits[pair[1] as usize]).exp() / total).ln();
            }
        }
    }
    (count, (sum / count as f64).exp())
}

#[test]
fn windows_are_scored_as_by_hand() {
    for (window, bos) in [(20, None), (20, Some(0)), (21, Some(5)), (67, None)] {
        let (count, want) = by_hand(&text(), window, bos);
        for rows in [1, 3, 4] {
            let found = perplexity(&mut session(2, rows, 1), &text(), window, bos, |_| true);
            let found = found.unwrap();
            assert_eq!(found.tokens, count);
            approx::assert_relative_eq!(found.value(), want, max_relative = 1e-9);
            assert!(found.error() > 0.0 && found.error() < found.value());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut session = session(1, 4, 1);
    let mut refused = |tokens: &[u32], window| {
        let found = perplexity(&mut session, tokens, window, None, |_| true);
        assert!(found.is_err(), "{} tokens in windows of {window}", tokens.len());
    };
    refused(&text(), 68);
    refused(&text(), 3);
    refused(&text(), 0);
    refused(&[], 20);
    refused(&vec![1; CONTEXT + 1], CONTEXT + 1);
    refused(&[1_000_000; 20], 20);
}

#[test]
fn it_stops_when_told() {
    let mut windows = 0;
    let found = perplexity(&mut session(1, 4, 1), &text(), 20, None, |_| {
        windows += 1;
        windows < 2
    });
    assert_eq!((windows, found.unwrap().tokens), (2, 18));
}
