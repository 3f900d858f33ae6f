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
            _ => Tolerance::Nmse(1e-6),
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
            Tolerance::Nmse(share) => write!(f, "NMSE {share:.0e}"),
        }
    }
}

/// A planned backend against the reference: caches in f16.
pub const BACKEND: Tolerance = Tolerance::Largest(2e-3);
/// Two graphs that mean the same, on the reference: other orders of f32 sums.
pub const MEANING: Tolerance = Tolerance::Largest(2e-5);

/// How many matrices meet rows that are rounded: to one digit of 8 bits, for codes of one or two bits,
/// and to BF16.
fn rounded(graph: &Graph) -> (usize, usize) {
    let matrices = graph.nodes().iter().filter(|n| matches!(n.op, Op::Weight(_)));
    let formats = matrices.filter(|n| n.ty.dims.len() > 1).filter_map(|n| match n.ty.dtype {
        DType::Weight(format) => Some(format),
        _ => None,
    });
    let few = |f: Format| f.quant().is_some_and(|q| q.lo + q.hi <= 2);
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
