//! From a path to a model that is ready to run.

use crate::args::{Choice, Machine};
use crate::{Failure, signal};
use gllm_kernels::cpu::{CpuBackend, CpuSession, simd::Isa};
use gllm_kernels::cuda::{CudaBackend, CudaSession};
use gllm_kernels::error::quoted;
use gllm_kernels::graph::op::Sampler;
use gllm_kernels::graph::{Encoded, Graph, Weights, arch};
use gllm_kernels::model::Model;
use gllm_kernels::plan::{Limits, Session, StepInput, Times, Traffic};
use gllm_kernels::replay::{Generator, Plans};
use gllm_kernels::{Error, embedded};
use std::env;
use std::path::Path;
use std::thread;

/// Opens a file or folder, or the built-in model.
pub fn open(path: Option<&Path>) -> Result<Model, Failure> {
    Ok(match path {
        Some(path) => Model::open(path)?,
        None => embedded::tiny()?,
    })
}

/// What runs a model.
pub enum Device {
    Cpu(CpuBackend),
    Cuda(Box<CudaBackend>),
}

/// A device, and why it was taken.
pub struct Chosen {
    pub device: Device,
    pub why: String,
}

impl Chosen {
    /// The backend's name.
    pub fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu(_) => "cpu",
            Device::Cuda(_) => "cuda",
        }
    }

    /// What computes: the instruction set, or the device.
    pub fn unit(&self) -> String {
        match &self.device {
            Device::Cpu(cpu) => cpu.isa().name().to_string(),
            Device::Cuda(cuda) => cuda.device().name.clone(),
        }
    }

    /// Threads of the CPU; 1 beside a device.
    pub fn threads(&self) -> usize {
        match &self.device {
            Device::Cpu(cpu) => cpu.threads(),
            Device::Cuda(_) => 1,
        }
    }
}

/// The CPU as the command line wants it.
fn cpu(machine: &Machine) -> Result<CpuBackend, Failure> {
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

/// A CUDA device if there is one, else the CPU; or what was asked for by name.
pub fn backend(machine: &Machine) -> Result<Chosen, Failure> {
    let on_cpu = |why: String| Ok(Chosen { device: Device::Cpu(cpu(machine)?), why });
    let on_cuda =
        |cuda: CudaBackend, why: String| Chosen { device: Device::Cuda(cuda.into()), why };
    match machine.backend {
        Choice::Cpu => on_cpu("as asked".to_string()),
        Choice::Cuda => Ok(on_cuda(CudaBackend::open()?, "as asked".to_string())),
        Choice::Auto if machine.threads.is_some() || machine.isa.is_some() => {
            on_cpu("threads or an instruction set were asked for".to_string())
        }
        Choice::Auto => match CudaBackend::open() {
            Ok(cuda) => {
                let why = format!("found {}", cuda.device().name);
                Ok(on_cuda(cuda, why))
            }
            Err(e) => on_cpu(e.to_string()),
        },
    }
}

/// The context a model was trained for.
pub fn trained_context(model: &Model) -> Option<usize> {
    let architecture = model.meta().get_str("general.architecture").ok()??;
    let own = format!("{architecture}.context_length");
    let keys: &[&str] =
        if model.is_folder() { &["max_position_embeddings", "n_positions"] } else { &[&own] };
    let length = keys.iter().find_map(|key| model.meta().get_u64(key).ok()?)?;
    usize::try_from(length).ok()
}

/// A model's weights as they will be in memory.
enum Weighted<'m> {
    AsTheyAre(&'m Model),
    Encoded(Box<Encoded<'m>>),
}

impl<'m> Weighted<'m> {
    fn new(model: &'m Model, machine: &Machine) -> Result<Self, Failure> {
        let Some(main) = machine.quantize else { return Ok(Weighted::AsTheyAre(model)) };
        let (names, layers) = arch::names(model.meta(), &machine.files.library())?;
        let threads =
            machine.threads.or_else(|| thread::available_parallelism().ok().map(usize::from));
        let encoded = Encoded::new(model, main, &names, layers, threads.unwrap_or(1));
        Ok(Weighted::Encoded(Box::new(encoded)))
    }

    fn get(&self) -> &dyn Weights {
        match self {
            Weighted::AsTheyAre(model) => *model,
            Weighted::Encoded(encoded) => &**encoded,
        }
    }

    /// Why loading failed: a weight that could not be encoded, or what the session said.
    fn why(&self, error: Error) -> Error {
        match self {
            Weighted::AsTheyAre(_) => error,
            Weighted::Encoded(encoded) => encoded.failure().unwrap_or(error),
        }
    }
}

/// The graph of a model for so many positions, with caches as the command line says.
fn graph(
    model: &Model,
    weights: &dyn Weights,
    machine: &Machine,
    context: usize,
) -> Result<Graph, Failure> {
    let graph = arch::build_for(model.meta(), weights, &machine.files.library(), context)?;
    Ok(graph.with_caches(|_| machine.kv.dtype())?)
}

/// Plans a model. Where the device was not asked for by name and refuses
/// the model, the CPU takes it.
pub fn plan(model: &Model, machine: &Machine, limits: Limits) -> Result<(Chosen, Plans), Failure> {
    let weighted = Weighted::new(model, machine)?;
    plan_with(model, weighted.get(), machine, limits)
}

fn plan_with(
    model: &Model,
    weights: &dyn Weights,
    machine: &Machine,
    limits: Limits,
) -> Result<(Chosen, Plans), Failure> {
    let chosen = backend(machine)?;
    let graph = graph(model, weights, machine, limits.context)?;
    let plans = match &chosen.device {
        Device::Cpu(cpu) => Plans::new(&graph, cpu, limits),
        Device::Cuda(cuda) => match Plans::new(&graph, &**cuda, limits) {
            Err(e) if machine.backend == Choice::Auto => {
                let cpu = cpu(machine)?;
                let plans = Plans::new(&graph, &cpu, limits)?;
                return Ok((Chosen { device: Device::Cpu(cpu), why: e.to_string() }, plans));
            }
            plans => plans,
        },
    };
    Ok((chosen, plans?))
}

/// A session on either.
pub enum AnySession {
    Cpu(Box<CpuSession>),
    Cuda(Box<CudaSession>),
}

impl AnySession {
    fn get(&self) -> &dyn Session {
        match self {
            AnySession::Cpu(s) => &**s,
            AnySession::Cuda(s) => &**s,
        }
    }

    fn get_mut(&mut self) -> &mut dyn Session {
        match self {
            AnySession::Cpu(s) => &mut **s,
            AnySession::Cuda(s) => &mut **s,
        }
    }
}

impl Session for AnySession {
    fn limits(&self) -> &Limits {
        self.get().limits()
    }

    fn run(&mut self, input: &StepInput<'_>) -> gllm_kernels::Result<()> {
        self.get_mut().run(input)
    }

    fn step(&mut self) -> gllm_kernels::Result<u32> {
        self.get_mut().step()
    }

    fn steps(
        &mut self,
        most: usize,
        each: &mut dyn FnMut(u32) -> bool,
    ) -> gllm_kernels::Result<()> {
        self.get_mut().steps(most, each)
    }

    fn sampled(&self) -> &[u32] {
        self.get().sampled()
    }

    fn set_sampler(&mut self, sampler: &Sampler) -> gllm_kernels::Result<()> {
        self.get_mut().set_sampler(sampler)
    }

    fn peek(&mut self, output: usize) -> Option<Vec<f32>> {
        self.get_mut().peek(output)
    }

    fn traffic(&self) -> Traffic {
        self.get().traffic()
    }

    fn profile(&mut self, input: &StepInput<'_>, rounds: usize) -> gllm_kernels::Result<Times> {
        self.get_mut().profile(input, rounds)
    }
}

/// A model with its memory.
pub struct Loaded {
    pub plans: Plans,
    pub generator: Generator<AnySession>,
    pub chosen: Chosen,
}

/// One sequence of `context` positions, its prompt in chunks, a token at a time.
pub fn one_sequence(machine: &Machine, context: usize) -> Limits {
    Limits { rows: machine.chunk.min(context), outs: 1, slots: 1, context }
}

/// Plans and loads; shows on a terminal how far it is, and ends when a signal was caught.
pub fn load(model: &Model, machine: &Machine, limits: Limits) -> Result<Loaded, Failure> {
    let weighted = Weighted::new(model, machine)?;
    let weights = weighted.get();
    let (chosen, plans) = plan_with(model, weights, machine, limits)?;
    let bar = indicatif::ProgressBar::new(0).with_style(style()?);
    bar.set_message(format!("loading {}", model.name()));
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        signal::caught().is_none()
    };
    let session = match &chosen.device {
        Device::Cpu(cpu) => {
            plans.load_watched(cpu, weights, &progress).map(|s| AnySession::Cpu(s.into()))
        }
        Device::Cuda(cuda) => {
            plans.load_watched(&**cuda, weights, &progress).map(|s| AnySession::Cuda(s.into()))
        }
    };
    bar.finish_and_clear();
    let session = match (session, signal::caught()) {
        (Err(Error::Stopped), Some(signal)) => return Err(Failure::Interrupted(signal)),
        (session, _) => session.map_err(|e| weighted.why(e))?,
    };
    model.verify_unchanged()?;
    Ok(Loaded { plans, generator: Generator::new(session), chosen })
}

/// Of the bar while loading.
fn style() -> Result<indicatif::ProgressStyle, Failure> {
    let line = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}";
    let style = indicatif::ProgressStyle::with_template(line);
    Ok(style.map_err(|e| Failure::Message(e.to_string()))?.progress_chars("=> "))
}

/// Refuses a context that no position could be counted in.
pub fn check_context(context: usize) -> Result<usize, Failure> {
    if u32::try_from(context).is_ok() {
        return Ok(context);
    }
    Err(Error::Invalid(format!("a context of {context} tokens cannot be counted")).into())
}
