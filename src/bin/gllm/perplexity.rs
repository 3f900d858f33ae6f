//! `gllm perplexity`: how well a model predicts a text.

use crate::args::Perplexity;
use crate::load::{self, Loaded};
use crate::{End, Failure, run, signal};
use gllm_kernels::error::quoted;
use gllm_kernels::plan::Limits;
use gllm_kernels::replay::perplexity as measure;
use gllm_kernels::text::{Encode, Tokenizer};
use serde::Serialize;
use std::io::{self, Write};

/// Rows whose logits are kept at once: with a large vocabulary they take a megabyte each.
const ROWS: usize = 64;

#[derive(Serialize)]
struct Report {
    model: String,
    text: String,
    window: usize,
    /// Tokens that were predicted.
    tokens: u64,
    perplexity: f64,
    /// Its standard error.
    error: f64,
}

/// Runs the command.
pub fn perplexity(args: &Perplexity) -> Result<End, Failure> {
    signal::catch();
    let text = run::read_file(&args.text)?;
    let model = load::open(Some(&args.model))?;
    let tokenizer = Tokenizer::of(&model)?;
    let vocab = tokenizer.vocab();
    let tokens = tokenizer.encode(&text, Encode { bos: true, special: false })?;
    let bos = if vocab.add_bos() { vocab.bos() } else { None };
    let context = load::check_context(args.window)?;
    let rows = args.machine.chunk.min(ROWS).min(context);
    let limits = Limits { rows, outs: rows, slots: 1, context };
    let Loaded { mut generator, .. } = load::load(&model, &args.machine, limits)?;
    let session = generator.session();
    let spinner = indicatif::ProgressBar::new_spinner();
    let windows = tokens.len() / args.window;
    let mut done = 0;
    let found = measure(session, &tokens, args.window, bos, |so_far| {
        done += 1;
        spinner.set_message(format!("window {done} of {windows}: {:.4}", so_far.value()));
        spinner.tick();
        signal::caught().is_none()
    });
    spinner.finish_and_clear();
    let found = found?;
    if let Some(signal) = signal::caught() {
        return Ok(End::Interrupted(signal));
    }
    let report = Report {
        model: model.name().to_string(),
        text: args.text.display().to_string(),
        window: args.window,
        tokens: found.tokens,
        perplexity: found.value(),
        error: found.error(),
    };
    let mut out = io::stdout();
    if args.json {
        let json = serde_json::to_string_pretty(&report);
        writeln!(out, "{}", json.map_err(|e| Failure::Message(e.to_string()))?)?;
    } else {
        let (name, value, error) = (quoted(&report.model), report.perplexity, report.error);
        let (tokens, window) = (report.tokens, report.window);
        writeln!(out, "{name}: {value:.4} +/- {error:.4} ({tokens} tokens, windows of {window})")?;
    }
    Ok(End::Done)
}
