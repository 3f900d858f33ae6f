//! `gllm diff`: two backends or two graph files on the same tokens, and where they part.

use crate::args::Diff;
use crate::check::{CHUNK, LIMITS, Subject, TOKENS, subject};
use crate::{End, Failure, load};
use gllm_kernels::Error;
use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::cuda::CudaBackend;
use gllm_kernels::graph::arch::Library;
use gllm_kernels::graph::reference::Reference;
use gllm_kernels::graph::{Graph, NodeId, Op, TensorType, Weights};
use gllm_kernels::plan::Backend;
use gllm_kernels::replay::Plans;
use gllm_kernels::replay::probe::{
    Gap, Kind, MEANING, Tolerance, Watched, align, probe, some_tokens, watch,
};
use std::io::{self, Write};
use std::path::PathBuf;

/// What runs a side.
enum Runner {
    Reference,
    Cpu(CpuBackend),
    Cuda(Box<CudaBackend>),
}

/// One of the two.
struct Side {
    name: String,
    subject: Subject,
    runner: Runner,
}

/// Rows of each value that a side shows, and the logits of a run in which nothing is watched.
struct Seen {
    graph: Graph,
    nodes: Vec<NodeId>,
    values: Vec<Option<Vec<f32>>>,
    logits: Vec<f32>,
}

impl Runner {
    fn named(name: &str, threads: Option<usize>) -> Result<Runner, Failure> {
        let cpu = |isa| -> Result<Runner, Failure> {
            let mut backend = CpuBackend::detect().with_isa(isa)?;
            if let Some(threads) = threads {
                backend = backend.with_threads(threads)?;
            }
            Ok(Runner::Cpu(backend))
        };
        match name.split_once(':') {
            None if name == "reference" => Ok(Runner::Reference),
            None if name == "cpu" => cpu(load::isa(None)?),
            None if name == "cuda" => Ok(Runner::Cuda(Box::new(CudaBackend::open()?))),
            Some(("cpu", isa)) => cpu(load::isa(Some(isa))?),
            _ => {
                let name = gllm_kernels::error::quoted(name);
                let what = format!("--backends: {name} is none of reference, cpu, cpu:ISA, cuda");
                Err(Failure::Usage(what))
            }
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Runner::Reference => Kind::Reference,
            Runner::Cpu(_) => Kind::Cpu,
            Runner::Cuda(_) => Kind::Cuda,
        }
    }

    /// The rows of the first `outputs` outputs.
    fn run(
        &self,
        graph: &Graph,
        weights: &dyn Weights,
        tokens: &[u32],
        outputs: usize,
    ) -> Result<Vec<Option<Vec<f32>>>, Error> {
        fn planned<B: Backend>(
            backend: &B,
            graph: &Graph,
            weights: &dyn Weights,
            tokens: &[u32],
            outputs: usize,
        ) -> Result<Vec<Option<Vec<f32>>>, Error> {
            let mut session = Plans::new(graph, backend, LIMITS)?.load(backend, weights)?;
            probe(&mut session, tokens, CHUNK, outputs)
        }
        match self {
            Runner::Reference => {
                let reference = Reference::new(graph, weights, LIMITS.context, 1)?;
                let reference = reference.rounding_caches();
                probe(&mut Watched::new(reference, graph), tokens, CHUNK, outputs)
            }
            Runner::Cpu(cpu) => planned(cpu, graph, weights, tokens, outputs),
            Runner::Cuda(cuda) => planned(&**cuda, graph, weights, tokens, outputs),
        }
    }
}

impl Side {
    fn see(&self, tokens: &[u32]) -> Result<Seen, Failure> {
        let (graph, nodes) = watch(&self.subject.graph)?;
        let weights = self.subject.weights();
        let values = self.runner.run(&graph, weights, tokens, nodes.len())?;
        let logits = self.runner.run(&self.subject.graph, weights, tokens, 1)?;
        self.subject.verify()?;
        let logits = logits.into_iter().next().flatten().unwrap_or_default();
        Ok(Seen { graph, nodes, values, logits })
    }
}

/// The two sides that the command line means.
fn sides(args: &Diff) -> Result<(Side, Side), Failure> {
    let is_graph = |f: &&PathBuf| f.extension().is_some_and(|e| e == "star");
    let graphs: Vec<&PathBuf> = args.files.iter().filter(is_graph).collect();
    let models: Vec<&PathBuf> = args.files.iter().filter(|f| !is_graph(f)).collect();
    let model = match (models.as_slice(), &args.config) {
        ([model], None) => Some(model.as_path()),
        ([], Some(_)) => None,
        _ => return Err(Failure::Usage("one model is needed, or --config".to_string())),
    };
    let names: Vec<&str> = args.backends.iter().map(String::as_str).collect();
    let (a, b) = match (graphs.as_slice(), names.as_slice()) {
        ([_, _], []) => ("reference", "reference"),
        ([_, _], [one]) => (*one, *one),
        ([] | [_], [a, b]) => (*a, *b),
        ([] | [_], _) => {
            let what = "two backends are needed: --backends reference,cpu";
            return Err(Failure::Usage(what.to_string()));
        }
        _ => return Err(Failure::Usage("two graph files on one backend".to_string())),
    };
    let side = |graph: Option<&&PathBuf>, backend: &str| {
        let library = Library::embedded();
        let library = graph.map_or(library.clone(), |g| library.with_file(g));
        let runner = Runner::named(backend, args.threads)?;
        let subject = subject(&library, model, args.config.as_deref(), args.layers)?;
        let file = graph.and_then(|g| g.file_name()).map(|n| n.to_string_lossy().into_owned());
        let file = file.map_or(String::new(), |f| f.escape_debug().to_string() + " on ");
        Ok::<Side, Failure>(Side { name: format!("{file}{backend}"), subject, runner })
    };
    Ok((side(graphs.first(), a)?, side(graphs.last(), b)?))
}

/// Runs the command.
pub fn diff(args: &Diff) -> Result<End, Failure> {
    let (a, b) = sides(args)?;
    let files = a.subject.graph != b.subject.graph;
    let (tolerance, of_logits) = match (a.runner.kind(), b.runner.kind()) {
        (Kind::Reference, Kind::Reference) => (MEANING, MEANING),
        (x, y) => {
            let graph = &a.subject.graph;
            (Tolerance::of_values(x, y, graph), Tolerance::of(x, y, graph))
        }
    };
    let tokens = some_tokens(&a.subject.graph, TOKENS);
    let (left, right) = (a.see(&tokens)?, b.see(&tokens)?);
    let mut out = io::stdout().lock();
    for (letter, side, seen) in [("A", &a, &left), ("B", &b, &right)] {
        let nodes = seen.graph.nodes().len();
        writeln!(out, "{letter}  {}: {nodes} nodes, weights: {}", side.name, side.subject.what)?;
    }
    if !a.subject.cut.is_empty() {
        writeln!(out, "made small: {}", a.subject.cut.join(", "))?;
    }
    let for_logits =
        if of_logits == tolerance { String::new() } else { format!("; in logits {of_logits}") };
    writeln!(out, "allowed is {tolerance}{for_logits}")?;
    let pairs = align((&left.graph, &left.nodes), (&right.graph, &right.nodes));
    if files {
        structure(&mut out, &left, &right, &pairs)?;
    }
    let mut watched = 0;
    let mut parted = None;
    let mut furthest: Option<(f64, usize)> = None;
    for &(i, j) in &pairs {
        let value = |seen: &Seen, i: usize| seen.values.get(i).cloned().flatten();
        let (Some(wanted), Some(got)) = (value(&left, i), value(&right, j)) else { continue };
        watched += 1;
        match Gap::between(&wanted, &got) {
            Some(gap) if tolerance.allows(&gap) => {
                if furthest.is_none_or(|(nmse, _)| gap.nmse > nmse) {
                    furthest = Some((gap.nmse, j));
                }
            }
            gap => {
                parted = Some((i, j, gap));
                break;
            }
        }
    }
    let logits = Gap::between(&left.logits, &right.logits);
    match &logits {
        Some(gap) => {
            writeln!(out, "logits: {:.2e} of the largest, NMSE {:.2e}", gap.largest, gap.nmse)?
        }
        None => writeln!(out, "logits: of other shapes")?,
    }
    let Some((i, j, gap)) = parted else {
        if !logits.is_some_and(|gap| of_logits.allows(&gap)) {
            let what = "the logits part, and no value does when all are kept";
            return Err(Failure::Message(what.to_string()));
        }
        writeln!(out, "no value parts, of {watched} side by side")?;
        if let Some((nmse, j)) = furthest.filter(|(nmse, _)| *nmse > 0.0) {
            let id = right.nodes.get(j).copied().unwrap_or(NodeId(0));
            writeln!(out, "furthest apart, NMSE {nmse:.1e}: {}", shown(&right.graph, id))?;
        }
        return Ok(End::Done);
    };
    let node = |seen: &Seen, i: usize| seen.nodes.get(i).copied().unwrap_or(NodeId(0));
    let (x, y) = (node(&left, i), node(&right, j));
    writeln!(out, "the first node that parts, after {} that do not:", watched - 1)?;
    writeln!(out, "  A  {}", shown(&left.graph, x))?;
    writeln!(out, "  B  {}", shown(&right.graph, y))?;
    if let Some(gap) = gap {
        let at = place(left.graph.ty(x), gap.worst);
        writeln!(
            out,
            "  by {:.2e} of the largest, NMSE {:.2e}; most at {at}: {} and {}",
            gap.largest, gap.nmse, gap.wanted, gap.got
        )?;
    }
    let node = right.graph.node(y);
    Err(Failure::Message(format!("{}: {}: values part", node.origin, node.op.name())))
}

/// The first difference between what two graphs say.
fn structure(
    out: &mut impl Write,
    a: &Seen,
    b: &Seen,
    pairs: &[(usize, usize)],
) -> Result<(), Failure> {
    let shown_at = |seen: &Seen, i: usize| seen.nodes.get(i).map(|&n| shown(&seen.graph, n));
    let ends = [(a.nodes.len(), b.nodes.len())];
    let (mut i, mut j) = (0, 0);
    for &(x, y) in pairs.iter().chain(&ends) {
        let only = [("A", a, i..x), ("B", b, j..y)];
        for (letter, seen, skipped) in only {
            if let Some(first) = skipped.clone().next().and_then(|n| shown_at(seen, n)) {
                let more = skipped.len() - 1;
                let more = if more == 0 { String::new() } else { format!(", and {more} more") };
                writeln!(out, "only in {letter}: {first}{more}")?;
            }
        }
        if i < x || j < y {
            return Ok(());
        }
        let words = |seen: &Seen, i: usize| {
            let id = *seen.nodes.get(i)?;
            let node = seen.graph.node(id);
            Some((node.op.clone(), weights(&seen.graph, id)))
        };
        if (x, y) != (a.nodes.len(), b.nodes.len()) && words(a, x) != words(b, y) {
            let (one, other) = (shown_at(a, x), shown_at(b, y));
            writeln!(out, "the files differ first in")?;
            writeln!(out, "  A  {}", one.unwrap_or_default())?;
            writeln!(out, "  B  {}", other.unwrap_or_default())?;
            return Ok(());
        }
        (i, j) = (x + 1, y + 1);
    }
    Ok(())
}

fn weights(graph: &Graph, id: NodeId) -> Vec<String> {
    let args = graph.node(id).args.iter();
    let names = args.filter_map(|&a| match &graph.node(a).op {
        Op::Weight(w) => Some(w.name.escape_debug().take(64).collect()),
        _ => None,
    });
    names.collect()
}

/// A node with its attributes, weights, type and line.
fn shown(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let attrs = node.op.attrs_text();
    let attrs: String = attrs.chars().take(120).collect();
    let inner: Vec<String> =
        weights(graph, id).into_iter().chain((!attrs.is_empty()).then_some(attrs)).collect();
    format!("{id} {}({}) : {} @ {}", node.op.name(), inner.join(", "), node.ty, node.origin)
}

/// Where element `at` of rows of that type is: `row 3, [0, 17]`.
fn place(ty: &TensorType, at: usize) -> String {
    let width = ty.width().max(1);
    let (row, mut rest) = (at / width, at % width);
    let mut index = Vec::new();
    for &dim in ty.dims.iter().rev() {
        index.push(rest % dim.max(1));
        rest /= dim.max(1);
    }
    index.reverse();
    format!("row {row}, {index:?}")
}
