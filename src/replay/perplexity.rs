//! How well a model predicts a text.

use crate::plan::{Session, StepInput};
use crate::{Error, Result};

/// What a model thought of the tokens that came: sums of their negative log-probabilities.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Perplexity {
    /// Tokens that were predicted.
    pub tokens: u64,
    sum: f64,
    squares: f64,
}

impl Perplexity {
    /// Takes the logits of a prediction and the token that came.
    fn add(&mut self, logits: &[f32], token: u32) -> Result<()> {
        let came = usize::try_from(token).ok().and_then(|t| logits.get(t)).copied();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let loss = sum.ln() - (f64::from(came.unwrap_or(f32::NAN)) - f64::from(max));
        if !loss.is_finite() {
            return Err(Error::Invalid(format!("the probability of token {token} is no number")));
        }
        self.tokens += 1;
        self.sum += loss;
        self.squares += loss * loss;
        Ok(())
    }

    /// Mean negative log-probability of a token, in nats.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    /// `e` to the [`mean`](Self::mean): among how many equally likely tokens the model wavers.
    pub fn value(&self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of [`value`](Self::value), as if tokens were independent.
    pub fn error(&self) -> f64 {
        let (n, mean) = (self.tokens as f64, self.mean());
        let variance = (self.squares / n - mean * mean).max(0.0);
        (variance / (n - 1.0).max(1.0)).sqrt() * self.value()
    }
}

/// Reads `tokens` in windows of so many, each from an empty cache, and predicts the second half of
/// each; what does not fill a window is left out. `bos`, if given, takes the place of the first
/// token of a window. Others measure in the same way, so numbers can be compared.
///
/// Output 0 of the graph must be logits. `each` is told the result so far after each window, and
/// says whether to go on.
///
/// # Errors
/// When there is no whole window, it does not fit the session, or the session fails.
pub fn perplexity(
    session: &mut impl Session,
    tokens: &[u32],
    window: usize,
    bos: Option<u32>,
    mut each: impl FnMut(&Perplexity) -> bool,
) -> Result<Perplexity> {
    let limits = *session.limits();
    if window < 4 || tokens.len() < window {
        let what = format!("{} tokens are no window of {window}, or too short a one", tokens.len());
        return Err(Error::Invalid(what));
    }
    if window > limits.context {
        let what = format!("a window has {window} tokens");
        return Err(Error::Context { context: limits.context, what, wants: window });
    }
    let first = window / 2;
    let (slots, rows) = (vec![0; limits.rows], limits.rows.min(limits.outs).max(1));
    let mut all = Perplexity::default();
    let (mut positions, mut outs) = (Vec::new(), Vec::new());
    for window in tokens.chunks_exact(window) {
        let mut input = window.to_vec();
        if let (Some(first), Some(bos)) = (input.first_mut(), bos) {
            *first = bos;
        }
        for (chunk, start) in input.chunks(rows).zip((0..).step_by(rows)) {
            let end = start + chunk.len();
            positions.clear();
            positions.extend((start..end).map(|p| p as u32));
            // The last token's successor is not in the window.
            let wanted = start.max(first)..end.min(window.len() - 1);
            outs.clear();
            outs.extend(wanted.clone().map(|p| (p - start) as u32));
            let slots = &slots[..chunk.len()];
            session.run(&StepInput { tokens: chunk, positions: &positions, slots, outs: &outs })?;
            if wanted.is_empty() {
                continue;
            }
            let logits = session.peek(0).unwrap_or_default();
            let width = logits.len() / outs.len();
            if width == 0 {
                return Err(Error::Invalid("the graph's first output is no logits".to_string()));
            }
            for (logits, &came) in logits.chunks_exact(width).zip(&window[wanted.start + 1..]) {
                all.add(logits, came)?;
            }
        }
        if !each(&all) {
            break;
        }
    }
    Ok(all)
}
