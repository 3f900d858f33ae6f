//! `gllm profile`: where the time of a decode step goes.

use crate::args::Profile as Args;
use crate::load::{self, Loaded};
use crate::{End, Failure, signal};
use gllm_kernels::Error;
use gllm_kernels::error::quoted;
use gllm_kernels::plan::Rate;
use gllm_kernels::replay::profile::{self, Moved, Profile, ProfilePage};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};

/// What `--json` prints. Times are in seconds.
#[derive(Serialize)]
struct Report {
    model: String,
    backend: &'static str,
    why: String,
    /// The instruction set, or the device.
    isa: String,
    threads: usize,
    position: usize,
    steps: usize,
    /// The sum of the launches, the step itself, and how far apart they are as a share of it.
    sum: f64,
    replay: f64,
    apart: f64,
    adds_up: bool,
    /// From token to token, the host's part included.
    token: f64,
    /// As many launches that do nothing.
    empty_launches: Option<f64>,
    /// What is measured where nothing is launched.
    clock: f64,
    bytes: Bytes,
    bytes_per_second: f64,
    share_of_ceiling: f64,
    ceiling: Ceiling,
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<Ceiling>,
    lines: Vec<Line>,
    launches: Vec<Launch>,
}

#[derive(Serialize)]
struct Bytes {
    weights: u64,
    cache: u64,
    values: u64,
    all: u64,
}

#[derive(Serialize)]
struct Ceiling {
    bytes_per_second: f64,
    how: &'static str,
}

#[derive(Serialize)]
struct Line {
    line: String,
    seconds: f64,
    ops: Vec<Op>,
}

#[derive(Serialize)]
struct Op {
    name: String,
    kernel: String,
    formats: String,
    kind: &'static str,
    /// Where its other nodes are from.
    also: Vec<String>,
    count: usize,
    median: f64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<f64>,
    bytes: Bytes,
    bytes_per_second: f64,
    share_of_ceiling: f64,
}

#[derive(Serialize)]
struct Launch {
    group: usize,
    line: String,
    layer: Option<usize>,
    name: String,
    kernel: String,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<f64>,
    bytes: Bytes,
}

impl From<Moved> for Bytes {
    fn from(m: Moved) -> Self {
        Bytes { weights: m.weights, cache: m.cache, values: m.values, all: m.total() }
    }
}

impl From<&Rate> for Ceiling {
    fn from(rate: &Rate) -> Self {
        Ceiling { bytes_per_second: rate.bytes_per_second, how: rate.how }
    }
}

/// A model's name without its folders.
fn short(name: &str) -> &str {
    let parts = || name.split(['/', '\\']).rev();
    parts().find(|part| !part.is_empty()).unwrap_or(name)
}

/// Runs the command.
pub fn profile(args: &Args) -> Result<End, Failure> {
    signal::catch();
    let model = load::open(args.model.as_deref())?;
    let needs = args.context.saturating_add(profile::ROOM);
    let context = load::check_context(args.machine.ctx.unwrap_or(needs).max(needs))?;
    let limits = load::one_sequence(&args.machine, context);
    let Loaded { plans, mut generator, chosen } = load::load(&model, &args.machine, limits)?;
    // What cannot be written is not measured first; a page that is there stays until there is another.
    let open = |p| File::options().write(true).create(true).truncate(false).open(p);
    let file = args.html.as_ref().map(|p| open(p).map_err(|e| Error::io(p, e))).transpose()?;
    let go_on = || signal::caught().is_none();
    let measured = profile::profile(&mut generator, &plans.one, args.context, args.repeat, go_on)?;
    // Who asked for an end while it was measured wants no more.
    let Some(profile) = measured.filter(|_| go_on()) else {
        if let (Some(path), Some(file)) = (&args.html, &file)
            && file.metadata().is_ok_and(|m| m.is_file() && m.len() == 0)
        {
            // Nothing more can be done if this fails.
            let _ = std::fs::remove_file(path);
        }
        return Ok(signal::caught().map_or(End::Done, End::Interrupted));
    };
    let threads = match chosen.threads() {
        1 => String::new(),
        n => format!(", {n} threads"),
    };
    let on = format!("{} ({}{threads})", chosen.name(), chosen.unit());
    if let (Some(path), Some(mut file)) = (&args.html, file) {
        let title = format!("A step of {}", short(model.name()));
        let about = format!("{}; position {}.", on, args.context);
        let page =
            ProfilePage { profile: &profile, plan: &plans.one, title: &title, about: &about };
        // A pipe has no length.
        let _ = file.set_len(0);
        write!(file, "{page}").map_err(|e| Error::io(path, e))?;
    }
    let mut out = io::stdout().lock();
    if args.json {
        let (name, isa, threads) = (model.name().to_string(), chosen.unit(), chosen.threads());
        let report = report(&profile, name, chosen.name(), chosen.why, isa, threads);
        let json = serde_json::to_string_pretty(&report);
        writeln!(out, "{}", json.map_err(|e| Failure::Message(e.to_string()))?)?;
    } else {
        write!(out, "{} on {on}: {profile}", quoted(model.name()))?;
        if let Some(path) = &args.html {
            writeln!(out, "drawing   {}", path.display().to_string().escape_debug())?;
        }
    }
    if let Some(warning) = profile.warning() {
        eprintln!("gllm: {warning}");
    }
    Ok(End::Done)
}

fn report(
    p: &Profile,
    model: String,
    backend: &'static str,
    why: String,
    isa: String,
    threads: usize,
) -> Report {
    let (moved, sum) = (p.moved(), p.total());
    let per_second = |bytes: u64, s: f64| if s > 0.0 { bytes as f64 / s } else { 0.0 };
    let lines = p.lines().into_iter().map(|(line, rows)| Line {
        line: line.to_string(),
        seconds: rows.iter().map(|r| r.seconds).sum(),
        ops: rows
            .into_iter()
            .map(|r| Op {
                count: r.members.len(),
                median: r.median,
                seconds: r.seconds,
                waits: r.waits,
                bytes_per_second: per_second(r.moved.total(), r.seconds),
                share_of_ceiling: p.share(r.moved.total(), r.seconds),
                bytes: r.moved.into(),
                kernel: r.kernel,
                also: r.launch.also.iter().map(ToString::to_string).collect(),
                name: r.launch.name,
                formats: r.launch.formats,
                kind: r.launch.kind,
            })
            .collect(),
    });
    let launches = p.timed().map(|(l, t)| Launch {
        group: t.group,
        line: l.line.to_string(),
        layer: l.layer,
        name: l.name.clone(),
        kernel: t.kernel.clone(),
        seconds: t.seconds,
        waits: t.waits,
        bytes: l.moved.into(),
    });
    Report {
        model,
        backend,
        why,
        isa,
        threads,
        position: p.position,
        steps: p.times.steps,
        sum,
        replay: p.times.replay,
        apart: p.apart(),
        adds_up: p.adds_up(),
        token: p.times.token,
        empty_launches: p.times.empty,
        clock: p.times.clock,
        bytes_per_second: per_second(moved.total(), sum),
        share_of_ceiling: p.share(moved.total(), sum),
        bytes: moved.into(),
        ceiling: (&p.times.ceiling).into(),
        beside: p.times.beside.as_ref().map(Into::into),
        lines: lines.collect(),
        launches: launches.collect(),
    }
}
