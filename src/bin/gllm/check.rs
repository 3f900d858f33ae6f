//! `gllm check`: a graph file, looked at from all sides.

use crate::args::Check;
use crate::{End, Failure, load};
use gllm_kernels::Error;
use gllm_kernels::cpu::{CpuBackend, simd::Isa};
use gllm_kernels::cuda::CudaBackend;
use gllm_kernels::error::{Size, quoted};
use gllm_kernels::graph::arch::{self, Library};
use gllm_kernels::graph::reference::Reference;
use gllm_kernels::graph::{Graph, MemoryWeights, Op, Weights};
use gllm_kernels::model::{Metadata, Model};
use gllm_kernels::plan::{Backend, Limits, Page, Plan, Role};
use gllm_kernels::replay::Plans;
use gllm_kernels::replay::probe::{Gap, Kind, Tolerance, Watched, probe, some_tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

/// Tokens that are run, and how many of them in one step.
pub const TOKENS: usize = 16;
pub const CHUNK: usize = 11;
/// What a session for them is planned for.
pub const LIMITS: Limits = Limits { rows: CHUNK, outs: CHUNK, slots: 1, context: 64 };

/// Weights of a model beyond which layers are left out: 1 GiB of f32.
const MOST_WEIGHTS: usize = 256 << 20;

/// A graph and its weights.
pub struct Subject {
    pub graph: Graph,
    weights: Held,
    /// What the weights are.
    pub what: String,
    /// Whether there are fewer layers than the model has.
    layers: bool,
    /// What was left out to keep it small.
    pub cut: Vec<String>,
    /// What the graph's tensors are called on the other side: in the hub, or in the graph file.
    names: BTreeMap<String, String>,
    /// Whether the graph's own names are the hub's.
    of_hub: bool,
}

enum Held {
    Noise(Box<MemoryWeights>),
    Model(Box<Model>),
}

impl Subject {
    pub fn weights(&self) -> &dyn Weights {
        match &self.weights {
            Held::Noise(noise) => &**noise,
            Held::Model(model) => &**model,
        }
    }

    /// That the file is still what was read.
    pub fn verify(&self) -> Result<(), Failure> {
        match &self.weights {
            Held::Model(model) => Ok(model.verify_unchanged()?),
            Held::Noise(_) => Ok(()),
        }
    }
}

/// The graph of a model, or of a likeness of it that is made of its hyper-parameters.
pub fn subject(
    library: &Library,
    model: Option<&Path>,
    config: Option<&Path>,
    layers: Option<usize>,
) -> Result<Subject, Failure> {
    if let Some(config) = config {
        let meta = Metadata::from_config(config)?;
        let like = arch::sketch(&meta, library, layers)?;
        let noise = like.sketch.noise(&like.graph)?;
        return Ok(Subject {
            graph: like.graph,
            weights: Held::Noise(Box::new(noise)),
            what: "noise".to_string(),
            layers: false,
            cut: like.cut,
            names: like.names.into_iter().collect(),
            of_hub: false,
        });
    }
    let model = load::open(model)?;
    let mut cut = Vec::new();
    let mut graph = match layers {
        Some(layers) => arch::build_layers(model.meta(), &model, library, layers)?,
        None => arch::build_with(model.meta(), &model, library)?,
    };
    // Each layer has a cache.
    let caches = graph.nodes().iter().filter(|n| matches!(n.op, Op::Cache(_))).count() / 2;
    let count = arch::weights_of(&graph);
    if count > MOST_WEIGHTS && layers.is_none() && caches > 1 {
        let keep = (caches * (MOST_WEIGHTS / 1024) / (count / 1024)).max(1);
        graph = arch::build_layers(model.meta(), &model, library, keep)?;
        cut.push(format!("{keep} of {caches} layers"));
    }
    let what = format!("those of {}", model.name());
    let fewer = layers.is_some() || !cut.is_empty();
    let (names, count) = arch::names(model.meta(), library)?;
    let of_hub = model.is_folder();
    // A file may say that it has more layers than it has tensors.
    let count = count.min(model.tensors().len() + model.packed().len());
    let bias =
        |(own, _): &(String, String)| Some(own.strip_suffix(".weight")?.to_string() + ".bias");
    let all = names.all(count);
    let biases: Vec<String> = all.iter().filter_map(bias).collect();
    let biases = biases.into_iter().map(|own| (names.resolve(&own), own));
    let names = biases.chain(all.into_iter().map(|(own, hub)| (hub, own))).collect();
    let weights = Held::Model(Box::new(model));
    Ok(Subject { graph, weights, what, layers: fewer, cut, names, of_hub })
}

/// Runs the command.
pub fn check(args: &Check) -> Result<End, Failure> {
    swapped(args)?;
    let library = Library::embedded().with_file(&args.graph);
    let subject = subject(&library, args.model.as_deref(), args.config.as_deref(), args.layers)?;
    let mut cpu = CpuBackend::detect();
    if let Some(threads) = args.threads {
        cpu = cpu.with_threads(threads)?;
    }
    let plan = Plan::new(&subject.graph, &cpu, LIMITS)?;
    let mut out = io::stdout().lock();
    if args.text {
        write!(out, "{}", subject.graph)?;
    }
    if args.tensors {
        tensors(&mut out, &subject)?;
    }
    describe(&mut out, &subject, &plan)?;
    if let Some(path) = &args.html {
        let title = args.graph.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut about = format!("The weights are {}.", subject.what);
        if !subject.cut.is_empty() {
            about += &format!(" Made small: {}.", subject.cut.join(", "));
        }
        let page = Page { plan: &plan, title: &title, about: &about };
        std::fs::write(path, page.to_string()).map_err(|e| Error::io(path, e))?;
        writeln!(out, "drawing   {}", path.display().to_string().escape_debug())?;
    }
    let failed = compare(&mut out, &subject, cpu)?;
    subject.verify()?;
    match failed.is_empty() {
        true => {
            writeln!(
                out,
                "OK: the backends agree with the reference; whether that is the model, its tokens say"
            )?;
            Ok(End::Done)
        }
        false => Err(Failure::Message(format!(
            "further from the reference than SPEC/accuracy.md allows: {}",
            failed.join(", ")
        ))),
    }
}

/// Refuses a model where the graph file is expected, and a config in the place of a model.
fn swapped(args: &Check) -> Result<(), Failure> {
    let ends = |path: &Path, with: &str| path.extension().is_some_and(|e| e == with);
    let shown = |path: &Path| path.display().to_string().escape_debug().to_string();
    let (graph, model) = (&args.graph, args.model.as_deref());
    let hint = match model {
        Some(model) if ends(model, "star") && !ends(graph, "star") => {
            format!("the graph file comes first: gllm check {} {}", shown(model), shown(graph))
        }
        Some(model) if ends(model, "json") => {
            format!(
                "a config goes with --config: gllm check {} --config {}",
                shown(graph),
                shown(model)
            )
        }
        _ if graph.is_dir() || ends(graph, "gguf") => {
            format!("{} is a model; a graph file comes first, such as newt.star", shown(graph))
        }
        _ if ends(graph, "json") => {
            format!("{} is a config; a graph file comes first, such as newt.star", shown(graph))
        }
        _ => return Ok(()),
    };
    Err(Failure::Usage(hint))
}

/// What the graph is and what it takes.
fn describe(out: &mut impl Write, subject: &Subject, plan: &Plan) -> Result<(), Failure> {
    let graph = &subject.graph;
    let weights = graph.nodes().iter().filter(|n| matches!(n.op, Op::Weight(_))).count();
    let cut = if subject.cut.is_empty() {
        String::new()
    } else {
        format!("; made small: {}", subject.cut.join(", "))
    };
    writeln!(out, "weights   {} in {weights} tensors{cut}", subject.what)?;
    writeln!(out, "graph     {} nodes", graph.nodes().len())?;
    unread(out, subject)?;
    let scratch = plan.buffers().iter().filter(|b| b.role == Role::Scratch);
    let (buffers, sum) =
        scratch.fold((0, 0u64), |(n, sum), b| (n + 1, sum.saturating_add(b.bytes)));
    let limits = plan.limits();
    writeln!(
        out,
        "plan      {} nodes in {} launches a step, for {} rows and {} positions",
        plan.graph().nodes().len(),
        plan.groups().len(),
        limits.rows,
        limits.context
    )?;
    let bytes = plan.bytes();
    writeln!(
        out,
        "memory    weights {}, caches {}, {buffers} values of {} in an arena of {}, workspace {}, \
         tables {}, logits {}",
        Size(bytes.weights),
        Size(bytes.kv),
        Size(sum),
        Size(bytes.scratch),
        Size(bytes.workspace),
        Size(bytes.tables),
        Size(bytes.logits)
    )?;
    Ok(())
}

/// Names that are told of tensors which the graph does not read.
const MOST_UNREAD: usize = 8;

/// What the model has and the graph does not read, layers as `*`: most often something forgotten.
fn unread(out: &mut impl Write, subject: &Subject) -> Result<(), Failure> {
    let Held::Model(model) = &subject.weights else { return Ok(()) };
    if subject.layers {
        return Ok(());
    }
    let graph = subject.graph.nodes().iter();
    let read: Vec<&str> = graph
        .filter_map(|n| match &n.op {
            Op::Weight(weight) => Some(plain(&weight.name)),
            _ => None,
        })
        .collect();
    let of_stack = |name: &str| {
        read.iter().filter_map(|read| read.split_once('*')).any(|(first, last)| {
            let number = name.strip_prefix(first).and_then(|rest| rest.strip_suffix(last));
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    // Scales and their like belong to the weight that is packed with them.
    let stem = |name: &str| name.rsplit_once('.').map(|(stem, _)| stem.to_string());
    let packed: BTreeSet<Option<String>> = model.packed().iter().map(|p| stem(&p.name)).collect();
    let floats = model.tensors().iter().map(|t| t.name.as_str());
    let floats = floats.filter(|n| n.ends_with(".bias") || !packed.contains(&stem(n)));
    let all: Vec<&str> = floats.chain(model.packed().iter().map(|p| plain(&p.name))).collect();
    let (mut count, mut names) = (0usize, Vec::new());
    for name in all.iter().filter(|n| !read.contains(n) && !of_stack(n)) {
        count += 1;
        let parts = name.split('.');
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let parts = parts.map(|part| if digits(part) { "*" } else { part });
        let name = quoted(&parts.collect::<Vec<_>>().join("."));
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if count > 0 {
        let more = if names.len() > MOST_UNREAD { ", …" } else { "" };
        names.truncate(MOST_UNREAD);
        let (all, names) = (all.len(), names.join(", "));
        writeln!(out, "unread    {count} of the model's {all} tensors: {names}{more}")?;
    }
    Ok(())
}

/// The tensor that `plus1(NAME)` and its kin are made of.
fn plain(mut name: &str) -> &str {
    while let Some((_, inner)) = name.strip_suffix(')').and_then(|name| name.split_once('(')) {
        name = inner;
    }
    name
}

/// A name of a file, escaped.
fn plainly(name: &str) -> String {
    quoted(name).trim_matches('"').to_string()
}

/// Each tensor by the graph file's name, with its type, and its name in a folder of the hub.
fn tensors(out: &mut impl Write, subject: &Subject) -> Result<(), Failure> {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for node in subject.graph.nodes() {
        let Op::Weight(weight) = &node.op else { continue };
        let name = plainly(&weight.name);
        let other = subject.names.get(&weight.name).map(|n| plainly(n)).unwrap_or_default();
        rows.push(if subject.of_hub {
            [other, node.ty.to_string(), name]
        } else {
            [name, node.ty.to_string(), other]
        });
    }
    // Columns as wide as what stands in them.
    let widest = |all: &mut dyn Iterator<Item = &String>| all.map(|s| s.chars().count()).max();
    let first = widest(&mut rows.iter().map(|[name, ..]| name)).unwrap_or(0);
    let second = widest(&mut rows.iter().map(|[_, ty, _]| ty)).unwrap_or(0);
    for [name, ty, other] in &rows {
        let line = format!("{name:<first$}  {ty:<second$}  {other}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Logits of every backend beside the reference's; the names of those that fail.
fn compare(
    out: &mut impl Write,
    subject: &Subject,
    cpu: CpuBackend,
) -> Result<Vec<String>, Failure> {
    let graph = &subject.graph;
    let tokens = some_tokens(graph, TOKENS);
    writeln!(out, "\n{:<16} {:>12} {:>12}", "", "max error", "NMSE")?;
    let reference = Reference::new(graph, subject.weights(), LIMITS.context, 1)?;
    let reference = reference.rounding_caches();
    let logits = probe(&mut Watched::new(reference, graph), &tokens, CHUNK, 1)?;
    let Some(Some(wanted)) = logits.into_iter().next() else {
        return Err(Error::Invalid("the graph has no logits".to_string()).into());
    };
    writeln!(out, "{:<16} {:>12} {:>12}", "reference", "", "")?;
    let mut failed = Vec::new();
    let mut row = |name: &str, kind: Kind, got: Result<Vec<f32>, Error>| -> Result<(), Failure> {
        let tolerance = Tolerance::of(Kind::Reference, kind, graph);
        let verdict = match got.as_ref().map(|got| Gap::between(&wanted, got)) {
            Ok(Some(gap)) => {
                let fine = tolerance.allows(&gap);
                let verdict =
                    if fine { "ok".to_string() } else { format!("FAIL: more than {tolerance}") };
                writeln!(out, "{name:<16} {:>12.2e} {:>12.2e} {verdict}", gap.largest, gap.nmse)?;
                fine
            }
            Ok(None) => {
                writeln!(out, "{name:<16} {:>25} FAIL: other shapes", "")?;
                false
            }
            Err(e) => {
                writeln!(out, "{name:<16} {:>25} FAIL: {e}", "")?;
                false
            }
        };
        if !verdict {
            failed.push(name.to_string());
        }
        Ok(())
    };
    for isa in Isa::available() {
        let got = cpu.with_isa(isa).and_then(|cpu| run(&cpu, subject, &tokens));
        row(&format!("cpu {}", isa.name()), Kind::Cpu, got)?;
    }
    match CudaBackend::open() {
        Ok(cuda) => row("cuda", Kind::Cuda, run(&cuda, subject, &tokens))?,
        Err(e) => writeln!(out, "{:<16} not run: {e}", "cuda")?,
    }
    Ok(failed)
}

/// The logits of one backend.
fn run<B: Backend>(backend: &B, subject: &Subject, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    let plans = Plans::new(&subject.graph, backend, LIMITS)?;
    let mut session = plans.load(backend, subject.weights())?;
    let logits = probe(&mut session, tokens, CHUNK, 1)?.into_iter().next().flatten();
    logits.ok_or_else(|| Error::Invalid("the graph has no logits".to_string()))
}
