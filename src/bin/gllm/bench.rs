//! `gllm bench`: prefill and decode, measured.

use crate::args::Bench;
use crate::load::{self, Loaded};
use crate::run::rate;
use crate::{End, Failure, signal};
use gllm_kernels::cpu::read_bandwidth;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    model: String,
    backend: &'static str,
    isa: &'static str,
    threads: usize,
    repeat: usize,
    prefill: Measured,
    decode: Measured,
    bytes_per_token: u64,
    decode_bytes_per_second: f64,
    read_bytes_per_second: f64,
    /// Decode's bytes a second as a share of what the machine reads.
    share_of_bandwidth: f64,
}

#[derive(Serialize)]
struct Measured {
    /// `pp512` or `tg128`, as others name these measurements.
    name: String,
    tokens: usize,
    /// The median of all runs.
    tokens_per_second: f64,
    min: f64,
    max: f64,
}

impl Measured {
    fn new(name: String, tokens: usize, mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        let at = |i: usize| rates.get(i).copied().unwrap_or(0.0);
        let (min, max) = (at(0), at(rates.len().saturating_sub(1)));
        Measured { name, tokens, tokens_per_second: at(rates.len() / 2), min, max }
    }
}

/// Runs the command.
pub fn bench(args: &Bench) -> Result<End, Failure> {
    signal::catch();
    let model = load::open(args.model.as_deref())?;
    let needs = args.prompt.max(args.n.saturating_add(1));
    let context = load::check_context(args.machine.ctx.unwrap_or(needs).max(needs))?;
    let isa = load::backend(&args.machine)?.isa();
    let Loaded { plans, mut generator, threads } = load::load(&model, &args.machine, context)?;
    // What the tokens are does not matter, only that they differ.
    let vocabulary =
        plans.one.graph().outputs().first().map_or(1, |&l| plans.one.graph().ty(l).width());
    let tokens: Vec<u32> = (0..args.prompt).map(|i| (i * 7919 % vocabulary) as u32).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=args.repeat {
        generator.reset();
        let start = Instant::now();
        let finished = generator.prefill(&tokens, || signal::caught().is_none())?;
        let took = start.elapsed();
        if finished && round > 0 {
            prefill.push(rate(tokens.len(), took));
        }
        generator.reset();
        generator.prefill(&tokens[..1], || true)?;
        generator.next_token()?;
        let start = Instant::now();
        let mut done = 0;
        while done < args.n && signal::caught().is_none() {
            generator.next_token()?;
            done += 1;
        }
        if let Some(signal) = signal::caught() {
            return Ok(End::Interrupted(signal));
        }
        if round > 0 {
            decode.push(rate(done, start.elapsed()));
        }
    }
    let bytes = plans.bytes_per_token(args.n / 2);
    let decode = Measured::new(format!("tg{}", args.n), args.n, decode);
    let speed = bytes as f64 * decode.tokens_per_second;
    let roof = read_bandwidth(threads)?;
    let report = Report {
        model: model.name().to_string(),
        backend: "cpu",
        isa: isa.name(),
        threads,
        repeat: args.repeat,
        prefill: Measured::new(format!("pp{}", args.prompt), args.prompt, prefill),
        decode,
        bytes_per_token: bytes,
        decode_bytes_per_second: speed,
        read_bytes_per_second: roof,
        share_of_bandwidth: speed / roof,
    };
    let json = serde_json::to_string_pretty(&report);
    writeln!(io::stdout(), "{}", json.map_err(|e| Failure::Message(e.to_string()))?)?;
    Ok(End::Done)
}
