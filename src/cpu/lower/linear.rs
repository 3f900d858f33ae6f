//! Products and experts: the columns sorted by what their epilogue must see together, and shared out
//! among workers.

use super::memory::tensor_kind;
use super::rows::Registers;
use super::{Lowering, unplaced};
use crate::Result;
use crate::cpu::experts::Experts;
use crate::cpu::program::{Domain, Linear, Micro, Rows, TensorKind, What};
use crate::cpu::quantize::Precision;
use crate::cpu::repack::{Layout, TILE};
use crate::graph::{Graph, Lead, NodeId, Op};
use crate::plan::{inputs, origin, weight_ranges};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// The precision in which all weights of a product want its rows.
pub(in crate::cpu) fn linear_precision(graph: &Graph, linear: NodeId) -> Option<Precision> {
    let node = graph.node(linear);
    let weights = node.args.iter().skip(inputs(&node.op));
    let mut weights = weights.map(|&w| match tensor_kind(graph.ty(w))? {
        TensorKind::Matrix(layout) | TensorKind::Experts(layout, _) => Some(layout.precision()),
        TensorKind::Vector(_) => None,
    });
    let first = weights.next()??;
    weights.all(|p| p == Some(first)).then_some(first)
}

/// Columns that an op of an epilogue must see together.
pub(super) fn grain_of(graph: &Graph, id: NodeId) -> usize {
    let node = graph.node(id);
    match (&node.op, node.args.get(1)) {
        (Op::RmsNorm(_) | Op::LayerNorm(_) | Op::Rope(_), _) => node.ty.last(),
        (Op::Store(_), Some(&x)) => graph.ty(x).last(),
        _ => 1,
    }
}

pub(super) fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).map_or(a.max(b), |times| times.saturating_mul(b))
}

impl Lowering<'_> {
    pub(super) fn linear(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        linear: NodeId,
        epilogue: &[NodeId],
        threads: usize,
    ) -> Result<Linear> {
        let (list, registers) = self.list(lead, prologue)?;
        let x = self.arg(linear, 0)?;
        let weights = self.graph.node(linear).args.iter().skip(1);
        let matrices = weights.map(|&w| self.matrix(w)).collect::<Result<Vec<_>>>()?;
        let domains = self.domains(linear, epilogue, &matrices)?;
        let pieces = pieces(&domains, &matrices, threads);
        Ok(Linear {
            lead,
            prologue: (!prologue.is_empty()).then_some(list),
            input: self.operand(&registers, x)?,
            inputs: self.graph.ty(x).width(),
            precision: linear_precision(self.graph, linear).ok_or_else(|| unplaced(linear))?,
            matrices,
            domains,
            pieces,
            next: AtomicUsize::new(threads),
        })
    }

    pub(super) fn experts(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        id: NodeId,
    ) -> Result<Experts> {
        let (list, registers) = self.list(lead, prologue)?;
        let node = self.graph.node(id);
        let (x, ids) = (self.arg(id, 0)?, self.arg(id, 1)?);
        let mut matrices = Vec::new();
        for &w in node.args.iter().skip(inputs(&node.op)) {
            match tensor_kind(self.graph.ty(w)) {
                Some(TensorKind::Experts(layout, count)) => {
                    matrices.push((layout, self.byte(w)?, count));
                }
                _ => return Err(unplaced(w)),
            }
        }
        let limits = self.plan.limits();
        Ok(Experts {
            lead,
            prologue: (!prologue.is_empty()).then_some(list),
            input: self.operand(&registers, x)?,
            inputs: self.graph.ty(x).last(),
            each: self.graph.ty(x).dims.len() == 2,
            ids: self.operand(&registers, ids)?,
            picks: self.graph.ty(ids).width(),
            precision: linear_precision(self.graph, id).ok_or_else(|| unplaced(id))?,
            matrices,
            out: self.put(id)?.ok_or_else(|| unplaced(id))?,
            rows: if lead == Lead::Outs { limits.outs } else { limits.rows },
        })
    }

    /// Sorts the epilogue by the matrices that each node's columns come from.
    fn domains(
        &mut self,
        linear: NodeId,
        epilogue: &[NodeId],
        matrices: &[(Layout, usize)],
    ) -> Result<Vec<Domain>> {
        let graph = self.graph;
        let ranges: Vec<(usize, usize)> = weight_ranges(graph, linear).collect();
        // The part that stands for all parts that were joined with it.
        let mut leader: Vec<usize> = (0..matrices.len()).collect();
        let mut part_of: BTreeMap<NodeId, usize> = BTreeMap::new();
        if matrices.len() == 1 {
            part_of.insert(linear, 0);
        }
        for &id in epilogue {
            let node = graph.node(id);
            if let (Op::Slice(s), Some(&arg)) = (&node.op, node.args.first())
                && arg == linear
            {
                let part = ranges.iter().position(|&r| r == (s.start, s.len));
                part_of.insert(id, part.ok_or_else(|| unplaced(id))?);
                continue;
            }
            let args = node.args.iter().map(|&a| origin(graph, a));
            let parts: Vec<usize> = args.filter_map(|a| part_of.get(&a).copied()).collect();
            let &first = parts.first().ok_or_else(|| unplaced(id))?;
            for &other in &parts {
                let (from, to) = (leader[other], leader[first]);
                leader.iter_mut().filter(|l| **l == from).for_each(|l| *l = to);
            }
            part_of.insert(id, first);
        }
        let whole = self.put(linear)?;
        let mut domains = Vec::new();
        for head in 0..matrices.len() {
            let parts: Vec<usize> = (0..matrices.len()).filter(|&p| leader[p] == head).collect();
            let Some(&first) = parts.first() else { continue };
            let len = matrices[first].0.rows();
            let mut registers = Registers { count: parts.len(), ..Registers::default() };
            let mut micros = Vec::new();
            if matrices.len() == 1 {
                registers.of.insert(linear, 0);
            }
            if let Some(to) = whole {
                for (from, &p) in parts.iter().enumerate() {
                    let to = Rows { col: ranges[p].0, ..to };
                    micros.push(Micro { what: What::Put { from, to }, len });
                }
            }
            let mut grain = TILE;
            for &id in epilogue {
                let Some(&part) = part_of.get(&id) else { continue };
                if leader[part] != head {
                    continue;
                }
                let node = graph.node(id);
                if matches!(node.op, Op::Slice(_)) && node.args.first() == Some(&linear) {
                    let from = parts.iter().position(|&p| p == part).unwrap_or(0);
                    registers.of.insert(id, from);
                    if let Some(to) = self.put(id)? {
                        micros.push(Micro { what: What::Put { from, to }, len });
                    }
                    continue;
                }
                grain = lcm(grain, grain_of(graph, id));
                micros.extend(self.micro(&mut registers, id, len)?);
            }
            domains.push(Domain { parts, len, grain, micros });
        }
        Ok(domains)
    }
}

/// Pieces of a step's columns that there are for each worker, if they do not get too small.
const PIECES: u128 = 4;

/// Bytes of weights below which a piece is not cut: a stretch long enough to be worth streaming.
const PIECE_BYTES: u128 = 32 << 10;

/// Cuts the columns into pieces of about as many bytes of weights: at least one for each worker.
fn pieces(
    domains: &[Domain],
    matrices: &[(Layout, usize)],
    threads: usize,
) -> Vec<Vec<(usize, Range<usize>)>> {
    // Of a tile's columns together, as good a measure as of one.
    let cost = |d: &Domain| -> u128 {
        d.parts.iter().map(|&p| matrices[p].0.tile_bytes() as u128).sum::<u128>().max(1)
    };
    let total: u128 = domains.iter().map(|d| cost(d) * d.len as u128).sum();
    let threads = threads as u128;
    let most = if threads == 1 { 1 } else { PIECES * threads };
    let count = (total / TILE as u128 / PIECE_BYTES).clamp(threads, most);
    let cut = |n: u128| {
        let (from, to) = (total * n / count, total * (n + 1) / count);
        let mut piece = Vec::new();
        let mut before = 0u128;
        for (i, d) in domains.iter().enumerate() {
            // The columns of this domain up to a piece's end, rounded to its grain.
            let upto = |mark: u128| {
                let columns = (mark.saturating_sub(before) / cost(d)).min(d.len as u128) as usize;
                if columns == d.len { columns } else { columns / d.grain * d.grain }
            };
            let range = upto(from)..upto(to);
            if !range.is_empty() {
                piece.push((i, range));
            }
            before += cost(d) * d.len as u128;
        }
        piece
    };
    (0..count).map(cut).collect()
}
