//! The same tokens on two things that run a graph, and how far apart their values are.
//!
//! A probe runs given tokens, the first of them as one step of several rows and the rest a row a step,
//! as a prompt and its continuation would, and reads what outputs hold after each. What two runs may
//! differ by is [`Tolerance`]: the numbers of SPEC/accuracy.md.

use crate::Result;
use crate::graph::op::InputKind;
use crate::graph::reference::{self, Reference};
use crate::graph::{DType, Graph, NodeId, Op};
use crate::model::Format;
use crate::model::format::Scale;
use crate::plan::{Session, StepInput};

/// Something that runs steps of one sequence and shows its outputs.
pub trait Probe {
    /// Runs a row for each token, from `position` on; all logits are wanted.
    ///
    /// # Errors
    /// What the step has against it.
    fn rows(&mut self, tokens: &[u32], position: u32) -> Result<()>;
    /// The rows of an output after a step; `None` if it is not f32.
    fn read(&mut self, output: usize) -> Option<Vec<f32>>;
}

/// Positions, slots and wanted rows of a step.
fn rows_of(n: usize, position: u32) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let rows = 0..u32::try_from(n).unwrap_or(u32::MAX);
    (rows.clone().map(|r| position.saturating_add(r)).collect(), vec![0; n], rows.collect())
}

impl<S: Session> Probe for S {
    fn rows(&mut self, tokens: &[u32], position: u32) -> Result<()> {
        let (positions, slots, outs) = rows_of(tokens.len(), position);
        let input = StepInput { tokens, positions: &positions, slots: &slots, outs: &outs };
        self.run(&input)
    }

    fn read(&mut self, output: usize) -> Option<Vec<f32>> {
        self.peek(output)
    }
}

/// The reference, and the nodes that it shows.
pub struct Watched {
    reference: Reference,
    outputs: Vec<NodeId>,
}

impl Watched {
    /// Shows the outputs of `graph`, which `reference` runs.
    pub fn new(reference: Reference, graph: &Graph) -> Self {
        Watched { reference, outputs: graph.outputs().to_vec() }
    }
}

impl Probe for Watched {
    fn rows(&mut self, tokens: &[u32], position: u32) -> Result<()> {
        let (positions, slots, outs) = rows_of(tokens.len(), position);
        self.reference.step(&reference::StepInput {
            tokens,
            positions: &positions,
            slots: &slots,
            outs: &outs,
            sampling: &[],
        })
    }

    fn read(&mut self, output: usize) -> Option<Vec<f32>> {
        self.reference.value(*self.outputs.get(output)?).map(<[f32]>::to_vec)
    }
}

/// Runs `tokens`, the first `chunk` of them in one step, and gives the rows of the first `outputs`
/// outputs.
///
/// # Errors
/// What a step has against it.
pub fn probe(
    on: &mut dyn Probe,
    tokens: &[u32],
    chunk: usize,
    outputs: usize,
) -> Result<Vec<Option<Vec<f32>>>> {
    let (first, rest) = tokens.split_at(chunk.min(tokens.len()));
    let mut seen: Vec<Option<Vec<f32>>> = vec![Some(Vec::new()); outputs];
    let mut position = 0u32;
    for step in std::iter::once(first).chain(rest.chunks(1)) {
        on.rows(step, position)?;
        position = position.saturating_add(u32::try_from(step.len()).unwrap_or(u32::MAX));
        for (output, rows) in seen.iter_mut().enumerate() {
            match (rows.as_mut(), on.read(output)) {
                (Some(rows), Some(more)) => rows.extend(more),
                _ => *rows = None,
            }
        }
    }
    Ok(seen)
}

/// The graph with every activation as an output, and those nodes in the order of the outputs. Views are
/// left out: they hold what they are views of.
///
/// # Errors
/// None that a graph of this crate gives.
pub fn watch(graph: &Graph) -> Result<(Graph, Vec<NodeId>)> {
    let views = |op: &Op| matches!(op, Op::Reshape(_));
    let nodes = graph.iter().filter(|(_, n)| n.ty.is_activation() && !views(&n.op));
    let nodes: Vec<NodeId> = nodes.map(|(id, _)| id).collect();
    let rest = graph.outputs().iter().filter(|o| !nodes.contains(o));
    let outputs: Vec<NodeId> = nodes.iter().chain(rest).copied().collect();
    Ok((graph.with_outputs(&outputs)?, nodes))
}

/// Pairs of nodes of two graphs that stand for each other, in order: the next of both that are the
/// same op of the same type, where what one has more is skipped.
pub fn align(a: (&Graph, &[NodeId]), b: (&Graph, &[NodeId])) -> Vec<(usize, usize)> {
    let alike = |i: usize, j: usize| {
        let of = |(graph, nodes): (&Graph, &[NodeId]), i: usize| {
            let node = graph.node(*nodes.get(i)?);
            Some((node.op.name(), node.ty.clone()))
        };
        matches!((of(a, i), of(b, j)), (Some(x), Some(y)) if x == y)
    };
    // A few that follow each other settle it; near the end, as many as there are.
    let run = |i: usize, j: usize| {
        let rest = a.1.len().saturating_sub(i).min(b.1.len().saturating_sub(j)).min(4);
        rest > 0 && (0..rest).all(|k| alike(i + k, j + k))
    };
    let mut pairs = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < a.1.len() && j < b.1.len() {
        if alike(i, j) {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let skips = (1..=MOST_SKIPPED).flat_map(|n| (0..=n).map(move |k| (k, n - k)));
        let found = skips.into_iter().find(|&(di, dj)| run(i + di, j + dj));
        (i, j) = found.map_or((i + 1, j + 1), |(di, dj)| (i + di, j + dj));
    }
    pairs
}

/// How far ahead [`align`] looks.
const MOST_SKIPPED: usize = 48;

/// `n` tokens that the graph's vocabulary has: the same for the same number of rows.
pub fn some_tokens(graph: &Graph, n: usize) -> Vec<u32> {
    let is_tokens =
        |id: NodeId| matches!(&graph.node(id).op, Op::Input(i) if i.kind == InputKind::Tokens);
    let tables = graph.nodes().iter().filter(|n| matches!(n.op, Op::Embed(_)));
    let by_token = tables.filter(|n| n.args.get(1).is_some_and(|&a| is_tokens(a)));
    let rows = by_token.filter_map(|n| graph.ty(*n.args.first()?).dims.first().copied()).min();
    let rows = u64::try_from(rows.unwrap_or(1)).unwrap_or(1).max(1);
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u32::try_from((state >> 33) % rows).unwrap_or(0)
    };
    (0..n).map(|_| next()).collect()
}

/// How far two lists of numbers are apart.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gap {
    /// The greatest difference, as a share of the greatest number wanted.
    pub largest: f64,
    /// The sum of squares of differences, as a share of that of what was wanted.
    pub nmse: f64,
    /// Where the difference is greatest.
    pub worst: usize,
    /// What was wanted there.
    pub wanted: f32,
    /// What was found there.
    pub got: f32,
    /// Whether all bits agree.
    pub same: bool,
}

impl Gap {
    /// Between what is wanted and what is there; `None` for lists of different lengths. What is not
    /// finite on one side only is infinitely far.
    pub fn between(wanted: &[f32], got: &[f32]) -> Option<Gap> {
        if wanted.len() != got.len() {
            return None;
        }
        let mut gap = Gap { largest: 0.0, nmse: 0.0, worst: 0, wanted: 0.0, got: 0.0, same: true };
        let (mut top, mut far, mut signal, mut noise) = (0.0f64, -1.0f64, 0.0f64, 0.0f64);
        for (i, (&w, &g)) in wanted.iter().zip(got).enumerate() {
            let same = w.to_bits() == g.to_bits();
            gap.same &= same;
            let d = if same { 0.0 } else { (f64::from(w) - f64::from(g)).abs() };
            let d = if d.is_nan() { f64::INFINITY } else { d };
            if d > far {
                (far, gap.worst, gap.wanted, gap.got) = (d, i, w, g);
            }
            if w.is_finite() {
                top = top.max(f64::from(w).abs());
                signal += f64::from(w) * f64::from(w);
            }
            noise += d * d;
        }
        let share = |x: f64, of: f64| if x <= 0.0 { 0.0 } else { x / of };
        (gap.largest, gap.nmse) = (share(far, top), share(noise, signal));
        Some(gap)
    }
}

/// What two runs may differ by.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tolerance {
    /// Nothing: the same bits.
    Exact,
    /// Each number by this share of the greatest.
    Largest(f64),
    /// Squares of differences, in sum, by this share.
    Nmse(f64),
}

/// What runs a graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The f32 reference.
    Reference,
    /// The CPU, on any instruction set.
    Cpu,
    /// A CUDA device.
    Cuda,
}

impl Tolerance {
    /// Two of these on one graph.
    pub fn of(a: Kind, b: Kind, graph: &Graph) -> Tolerance {
        match (a, b) {
            (Kind::Reference, Kind::Reference) | (Kind::Cpu, Kind::Cpu) => Tolerance::Exact,
            (Kind::Cuda, Kind::Cuda) => Tolerance::Exact,
            (Kind::Reference, _) | (_, Kind::Reference) => match rounded(graph) {
                (0, 0) => BACKEND,
                (digit, bf16) => {
                    Tolerance::Nmse(4e-6 + 1.3e-4 * digit as f64 + 1.3e-6 * bf16 as f64)
                }
            },
            // Rows of the CPU, and one row of a device, are integers of 16 bits in groups of 32; several rows of a device
            // are nearer to floats.
            _ => Tolerance::Nmse(4e-6),
        }
    }

    /// As [`of`](Self::of), for the values of single nodes rather than logits. What caches in f16
    /// round adds up from layer to layer, and one element of many may be far: squares are summed.
    pub fn of_values(a: Kind, b: Kind, graph: &Graph) -> Tolerance {
        match Tolerance::of(a, b, graph) {
            BACKEND => VALUES,
            other => other,
        }
    }

    /// Whether a gap is within it.
    pub fn allows(self, gap: &Gap) -> bool {
        match self {
            Tolerance::Exact => gap.same,
            Tolerance::Largest(share) => gap.largest <= share,
            Tolerance::Nmse(share) => gap.nmse <= share,
        }
    }
}

impl std::fmt::Display for Tolerance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tolerance::Exact => write!(f, "the same bits"),
            Tolerance::Largest(share) => write!(f, "{share:.0e} of the largest"),
            Tolerance::Nmse(share) => write!(f, "NMSE {share:.1e}"),
        }
    }
}

/// A planned backend against the reference: caches in f16.
pub const BACKEND: Tolerance = Tolerance::Largest(2e-3);
/// The value of any node, in place of logits.
pub const VALUES: Tolerance = Tolerance::Nmse(1e-5);
/// Two graphs that mean the same, on the reference: other orders of f32 sums.
pub const MEANING: Tolerance = Tolerance::Largest(2e-5);

/// How many matrices meet rows that are rounded: to one digit of 8 bits, for Q2_K, and to BF16.
fn rounded(graph: &Graph) -> (usize, usize) {
    let matrices = graph.nodes().iter().filter(|n| matches!(n.op, Op::Weight(_)));
    let formats = matrices.filter(|n| n.ty.dims.len() > 1).filter_map(|n| match n.ty.dtype {
        DType::Weight(format) => Some(format),
        _ => None,
    });
    let few = |f: Format| f.quant().is_some_and(|q| q.scale == Scale::Nibbles);
    formats.fold((0, 0), |(digit, bf16), f| {
        (digit + usize::from(few(f)), bf16 + usize::from(f == Format::BF16))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_measured() {
        let gap = Gap::between(&[1.0, -4.0, 2.0], &[1.0, -3.0, 2.0]).unwrap();
        assert_eq!((gap.largest, gap.worst, gap.wanted, gap.got), (0.25, 1, -4.0, -3.0));
        assert!((gap.nmse - 1.0 / 21.0).abs() < 1e-12 && !gap.same);
        assert!(!Tolerance::Largest(0.2).allows(&gap) && Tolerance::Largest(0.25).allows(&gap));
        assert!(!Tolerance::Exact.allows(&gap) && !Tolerance::Nmse(0.01).allows(&gap));
        // What is not finite is infinitely far from what is, and nothing agrees with itself.
        let gap = Gap::between(&[1.0, 2.0], &[1.0, f32::NAN]).unwrap();
        assert!(gap.largest.is_infinite() && !Tolerance::Largest(1e9).allows(&gap));
        let gap = Gap::between(&[0.0, f32::NAN], &[0.0, f32::NAN]).unwrap();
        assert!(gap.same && Tolerance::Largest(0.0).allows(&gap));
        let gap = Gap::between(&[0.0, 0.0], &[0.0, 1e-30]).unwrap();
        assert!(!BACKEND.allows(&gap), "nothing was wanted");
        assert!(Gap::between(&[1.0], &[]).is_none());
    }
}
