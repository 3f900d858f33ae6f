//! `gllm bench`: prefill and decode, measured.
//!
//! The names and what they stand for are llama-bench's: `pp512` runs a prompt of 512 tokens in
//! chunks and wants the last one's logits; `tg128` runs 128 steps of one row, from an empty context
//! or from what `--depth` says. Both want a token of each step; llama-bench, less than that, logits.

use crate::args::Bench;
use crate::load::{self, AnySession, Chosen, Device, Loaded};
use crate::run::rate;
use crate::{End, Failure, signal};
use gllm_kernels::cpu::read_bandwidth;
use gllm_kernels::error::quoted;
use gllm_kernels::plan::median;
use gllm_kernels::replay::{Generator, Plans};
use serde::Serialize;
use std::io::{self, Write};
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    model: String,
    backend: &'static str,
    /// Why this backend was taken.
    why: String,
    /// The instruction set, or the device.
    isa: String,
    threads: usize,
    repeat: usize,
    load_seconds: f64,
    weight_bytes_per_token: u64,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    /// `pp512` or `tg128`, as others name these measurements.
    name: String,
    /// Tokens in the context before.
    depth: usize,
    tokens: usize,
    /// The median of all.
    tokens_per_second: f64,
    min: f64,
    max: f64,
    samples: Vec<f64>,
    /// Of a decode step in the middle: weights, and the cache up to there.
    #[serde(skip_serializing_if = "Option::is_none")]
    reads: Option<Reads>,
}

#[derive(Serialize)]
struct Reads {
    bytes_per_token: u64,
    bytes_per_second: f64,
    /// What the machine reads with so many threads; not measured on a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes_per_second: Option<f64>,
    /// The one as a share of the other: the median of neighbours in time, for a machine that is
    /// shared does not read equally fast all the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_bandwidth: Option<f64>,
}

impl Run {
    fn new(kind: &str, tokens: usize, depth: usize, samples: Vec<f64>) -> Self {
        let name = match depth {
            0 => format!("{kind}{tokens}"),
            _ => format!("{kind}{tokens} @ d{depth}"),
        };
        let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max = samples.iter().copied().fold(0.0, f64::max);
        let tokens_per_second = median(samples.clone());
        Run { name, depth, tokens, tokens_per_second, min, max, samples, reads: None }
    }
}

/// Runs the command.
pub fn bench(args: &Bench) -> Result<End, Failure> {
    signal::catch();
    if args.prompt == 0 && args.n == 0 {
        return Err(Failure::Usage("-p 0 and -n 0 leave nothing to measure".to_string()));
    }
    let model = load::open(args.model.as_deref())?;
    let deepest = args.depth.iter().copied().max().unwrap_or(0);
    let needs = deepest.saturating_add(args.prompt.max(args.n));
    let context = load::check_context(args.machine.ctx.unwrap_or(needs).max(needs))?;
    let start = Instant::now();
    let Loaded { plans, mut generator, chosen } = {
        let limits = load::one_sequence(&args.machine, context);
        load::load(&model, &args.machine, limits)?
    };
    let load_seconds = start.elapsed().as_secs_f64();
    let mut runs = Vec::new();
    for &depth in &args.depth {
        let Some(measured) = measure(args, &plans, &mut generator, &chosen, depth)? else {
            return Ok(signal::caught().map_or(End::Done, End::Interrupted));
        };
        runs.extend(measured);
    }
    let report = Report {
        model: model.name().to_string(),
        backend: chosen.name(),
        isa: chosen.unit(),
        threads: chosen.threads(),
        why: chosen.why,
        repeat: args.repeat,
        load_seconds,
        weight_bytes_per_token: plans.one.weight_bytes_per_token(),
        runs,
    };
    if args.json {
        let json = serde_json::to_string_pretty(&report);
        writeln!(io::stdout(), "{}", json.map_err(|e| Failure::Message(e.to_string()))?)?;
    } else {
        report.print(&mut io::stdout().lock())?;
    }
    Ok(End::Done)
}

/// Prefill and decode on top of `depth` tokens; `None` when interrupted.
fn measure(
    args: &Bench,
    plans: &Plans,
    generator: &mut Generator<AnySession>,
    chosen: &Chosen,
    depth: usize,
) -> Result<Option<Vec<Run>>, Failure> {
    let go_on = || signal::caught().is_none();
    let graph = plans.one.graph();
    let vocabulary = graph.outputs().first().map_or(1, |&logits| graph.ty(logits).width());
    // What the tokens are does not matter, only that they differ.
    let token = |i: usize| (i.wrapping_mul(7919) % vocabulary.max(1)) as u32;
    let before: Vec<u32> = (0..depth).map(token).collect();
    let prompt: Vec<u32> = (depth..depth + args.prompt).map(token).collect();
    let (mut prefill, mut decode, mut roofs) = (Vec::new(), Vec::new(), Vec::new());
    generator.reset();
    if depth > 0 && !generator.prefill(&before, go_on)? {
        return Ok(None);
    }
    // The first round warms up.
    for round in 0..=args.repeat {
        if args.prompt > 0 {
            generator.rewind(depth)?;
            let start = Instant::now();
            if !generator.prefill(&prompt, go_on)? {
                return Ok(None);
            }
            if round > 0 {
                prefill.push(rate(args.prompt, start.elapsed()));
            }
        }
        if args.n > 0 {
            generator.rewind(depth)?;
            let start = Instant::now();
            // A step, whose token is the first of `n`.
            generator.prefill(&[token(depth)], || true)?;
            generator.tokens(args.n, |_| go_on())?;
            if !go_on() {
                return Ok(None);
            }
            if round > 0 {
                decode.push(rate(args.n, start.elapsed()));
                if let Device::Cpu(cpu) = &chosen.device {
                    roofs.push(read_bandwidth(cpu.threads())?);
                }
            }
        }
    }
    let mut runs = Vec::new();
    if args.prompt > 0 {
        runs.push(Run::new("pp", args.prompt, depth, prefill));
    }
    if args.n > 0 {
        let bytes_per_token = plans.bytes_per_token(depth + args.n / 2);
        let shares =
            decode.iter().zip(&roofs).map(|(rate, roof)| rate * bytes_per_token as f64 / roof);
        let shares: Vec<f64> = shares.collect();
        let some = |values: Vec<f64>| (!values.is_empty()).then(|| median(values));
        let mut run = Run::new("tg", args.n, depth, decode);
        run.reads = Some(Reads {
            bytes_per_token,
            bytes_per_second: bytes_per_token as f64 * run.tokens_per_second,
            read_bytes_per_second: some(roofs),
            share_of_bandwidth: some(shares),
        });
        runs.push(run);
    }
    Ok(Some(runs))
}

impl Report {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let (name, threads, seconds) = (quoted(&self.model), self.threads, self.load_seconds);
        writeln!(out, "{name}: {}, {threads} threads, loaded in {seconds:.2} s", self.isa)?;
        writeln!(
            out,
            "{:<16} {:>9} {:>9} {:>9} {:>9} {:>7}",
            "", "tokens/s", "min", "max", "MB/token", "GB/s"
        )?;
        for run in &self.runs {
            let Run { name, tokens_per_second: rate, min, max, .. } = run;
            write!(out, "{name:<16} {rate:>9.1} {min:>9.1} {max:>9.1}")?;
            if let Some(reads) = &run.reads {
                let (mb, gb) = (reads.bytes_per_token as f64 / 1e6, reads.bytes_per_second / 1e9);
                write!(out, " {mb:>9.1} {gb:>7.1}")?;
                let roof = (reads.share_of_bandwidth, reads.read_bytes_per_second);
                if let (Some(share), Some(roof)) = roof {
                    write!(out, "  {:.0}% of {:.1} GB/s", 100.0 * share, roof / 1e9)?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}
