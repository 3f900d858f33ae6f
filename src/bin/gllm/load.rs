//! From a path to a model that is ready to run.

use crate::Failure;
use crate::args::Machine;
use gllm_kernels::cpu::{CpuBackend, CpuSession, simd::Isa};
use gllm_kernels::error::quoted;
use gllm_kernels::graph::{Graph, arch};
use gllm_kernels::model::Model;
use gllm_kernels::plan::Limits;
use gllm_kernels::replay::{Generator, Plans};
use gllm_kernels::{Error, embedded};
use std::env;
use std::path::Path;
use std::time::Duration;

/// Opens a file, or the built-in model.
pub fn open(path: Option<&Path>) -> Result<Model, Failure> {
    Ok(match path {
        Some(path) => Model::open(path)?,
        None => embedded::tiny()?,
    })
}

/// The backend that the command line asks for.
pub fn backend(machine: &Machine) -> Result<CpuBackend, Failure> {
    let mut backend = CpuBackend::detect();
    if let Some(threads) = machine.threads {
        backend = backend.with_threads(threads)?;
    }
    Ok(backend.with_isa(isa(machine.isa.as_deref())?)?)
}

/// The instruction set of this name, or else the one that `GLLM_ISA` names, or the best there is.
pub fn isa(name: Option<&str>) -> Result<Isa, Failure> {
    let (from, name) = match (name, env::var_os(ISA_VARIABLE)) {
        (Some(name), _) => ("--isa", name.to_string()),
        (None, Some(name)) if !name.is_empty() => {
            (ISA_VARIABLE, name.to_string_lossy().into_owned())
        }
        _ => return Ok(Isa::detect()),
    };
    Isa::from_name(&name).filter(|isa| isa.is_available()).ok_or_else(|| {
        let name = quoted(&name);
        let has = isa_names();
        Failure::Usage(format!(
            "{from}: this processor has no instruction set {name}; it has {has}"
        ))
    })
}

const ISA_VARIABLE: &str = "GLLM_ISA";

/// The instruction sets of this processor.
pub fn isa_names() -> String {
    Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ")
}

/// The context a model was trained for.
pub fn trained_context(model: &Model) -> Option<usize> {
    let architecture = model.meta().get_str("general.architecture").ok()??;
    let length = model.meta().get_u64(&format!("{architecture}.context_length")).ok()??;
    usize::try_from(length).ok()
}

/// The graph of a model, with caches as the command line says.
pub fn graph(model: &Model, machine: &Machine) -> Result<Graph, Failure> {
    let graph = arch::build_with(model.meta(), model, &machine.files.library())?;
    Ok(graph.with_caches(|_| machine.kv.dtype())?)
}

/// Plans a model for `context` positions.
pub fn plan(
    model: &Model,
    machine: &Machine,
    context: usize,
) -> Result<(CpuBackend, Graph, Plans), Failure> {
    let backend = backend(machine)?;
    let graph = graph(model, machine)?;
    let limits = Limits { rows: machine.chunk.min(context), outs: 1, slots: 1, context };
    let plans = Plans::new(&graph, &backend, limits)?;
    Ok((backend, graph, plans))
}

/// A model with its memory.
pub struct Loaded {
    pub plans: Plans,
    pub generator: Generator<CpuSession>,
    pub threads: usize,
}

/// Plans and loads; shows on a terminal that it is at work.
pub fn load(model: &Model, machine: &Machine, context: usize) -> Result<Loaded, Failure> {
    let (backend, _, plans) = plan(model, machine, context)?;
    let spinner = indicatif::ProgressBar::new_spinner();
    spinner.set_message(format!("loading {}", model.name()));
    spinner.enable_steady_tick(Duration::from_millis(100));
    let session = plans.load(&backend, model);
    spinner.finish_and_clear();
    let session = session?;
    model.verify_unchanged()?;
    Ok(Loaded { plans, generator: Generator::new(session), threads: backend.threads() })
}

/// Refuses a context that no position could be counted in.
pub fn check_context(context: usize) -> Result<usize, Failure> {
    if u32::try_from(context).is_ok() {
        return Ok(context);
    }
    Err(Error::Invalid(format!("a context of {context} tokens cannot be counted")).into())
}
