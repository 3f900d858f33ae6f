//! `gllm`: runs, measures and explains models from the command line.

mod args;
mod bench;
mod check;
mod diff;
mod inspect;
mod load;
mod perplexity;
mod profile;
mod quantize;
mod run;
mod signal;

use args::{Arguments, Command};
use clap::Parser;
use std::io::{self, Write};
use std::process::ExitCode;

/// How a command ended, if not with an error.
enum End {
    /// All was done.
    Done,
    /// The user stopped it with this signal.
    Interrupted(i32),
}

/// A failure with a message for the user, or a reader of our output that went away.
enum Failure {
    Message(String),
    Usage(String),
    ClosedPipe,
    /// The user stopped it with this signal, before there was anything to keep.
    Interrupted(i32),
}

impl From<gllm_kernels::Error> for Failure {
    fn from(error: gllm_kernels::Error) -> Self {
        Failure::Message(error.to_string())
    }
}

impl From<io::Error> for Failure {
    /// Of writing to standard output, which is all that is written here.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::Message(format!("standard output: {error}")),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer(io::stderr)
        .init();
    let result = match arguments.command {
        None => run::run(args::Run::demo()),
        Some(Command::Run(run)) => run::run(run),
        Some(Command::Bench(bench)) => bench::bench(&bench),
        Some(Command::Profile(args)) => profile::profile(&args),
        Some(Command::Perplexity(args)) => perplexity::perplexity(&args),
        Some(Command::Quantize(args)) => quantize::quantize(&args),
        Some(Command::Plan(plan)) => inspect::plan(&plan),
        Some(Command::Info(info)) => inspect::info(&info),
        Some(Command::Graph(graph)) => inspect::graph(&graph),
        Some(Command::Check(check)) => check::check(&check),
        Some(Command::Diff(args)) => diff::diff(&args),
        Some(Command::Completions { shell }) => args::completions(shell),
    };
    let result = result.and_then(|end| {
        io::stdout().flush()?;
        Ok(end)
    });
    match result {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Interrupted(signal)) | Err(Failure::Interrupted(signal)) => {
            ExitCode::from(128u8.wrapping_add(signal as u8))
        }
        Err(Failure::ClosedPipe) => ExitCode::from(128 + 13),
        Err(Failure::Message(what)) => {
            eprintln!("gllm: {what}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(what)) => {
            eprintln!("gllm: {what}");
            ExitCode::from(2)
        }
    }
}
