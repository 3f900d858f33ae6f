//! Lists of operations on rows, each value in a register of its own.

use super::memory::{kv_layout, list_bytes, list_width};
use super::{Lowering, too_large, unplaced};
use crate::Result;
use crate::cpu::program::{Ids, Micro, NormKind, Rope, RowList, What};
use crate::graph::op::{CachePart, InputKind};
use crate::graph::{Lead, NodeId, Op};
use crate::plan::origin;
use std::collections::BTreeMap;

/// Registers by value, while a list is made.
#[derive(Default)]
pub(super) struct Registers {
    pub of: BTreeMap<NodeId, usize>,
    pub count: usize,
}

impl Registers {
    fn make(&mut self, id: NodeId) -> usize {
        self.of.insert(id, self.count);
        self.count += 1;
        self.count - 1
    }
}

impl Lowering<'_> {
    /// The operation of one node, its result in a new register.
    pub(super) fn micro(
        &mut self,
        registers: &mut Registers,
        id: NodeId,
        len: usize,
    ) -> Result<Vec<Micro>> {
        let node = self.graph.node(id);
        let place = |i: usize| self.operand(registers, self.arg(id, i)?);
        let what = match &node.op {
            Op::Store(_) => {
                let (cache, x) = (origin(self.graph, id), self.arg(id, 1)?);
                let Op::Cache(op) = &self.graph.node(cache).op else { return Err(unplaced(id)) };
                let ty = self.graph.ty(cache);
                let layout = kv_layout(ty, self.plan.limits().context);
                let what = What::Store {
                    from: self.operand(registers, x)?,
                    cache: self.byte(cache)?,
                    keys: op.part == CachePart::Key,
                    layout: layout.ok_or_else(|| unplaced(cache))?,
                    head: ty.last(),
                };
                return Ok(vec![Micro { what, len }]);
            }
            Op::Embed(_) => {
                let (table, offset) = self.matrix(self.arg(id, 0)?)?;
                let ids = match &self.graph.node(self.arg(id, 1)?).op {
                    Op::Input(input) if input.kind == InputKind::Tokens => Ids::Tokens,
                    Op::Input(input) if input.kind == InputKind::Positions => Ids::Positions,
                    _ => Ids::Place(place(1)?),
                };
                What::Embed { to: registers.make(id), table, offset, ids }
            }
            Op::Select(_) => {
                let from = self.rows(self.arg(id, 0)?)?;
                What::Select { to: registers.make(id), from }
            }
            Op::RmsNorm(_) | Op::LayerNorm(_) => {
                let from = place(0)?;
                let param = |i: usize| node.args.get(i).map(|&w| self.byte(w)).transpose();
                let (weight, bias, dim) = (param(1)?, param(2)?, node.ty.last());
                let (kind, eps) = match &node.op {
                    Op::LayerNorm(op) => (NormKind::Layer, op.eps),
                    Op::RmsNorm(op) => (NormKind::Rms, op.eps),
                    _ => return Err(unplaced(id)),
                };
                // One weight for all heads, or a part for each.
                let each = node.args.get(1).is_some_and(|&w| self.graph.ty(w).width() > dim);
                What::Norm { to: registers.make(id), from, kind, weight, bias, each, dim, eps }
            }
            Op::Softmax(_) | Op::Normalize(_) => {
                let (from, dim) = (place(0)?, node.ty.last());
                let exp = matches!(node.op, Op::Softmax(_));
                What::Shares { to: registers.make(id), from, dim, exp }
            }
            Op::TopK(_) => {
                let (from, dim) = (place(0)?, self.graph.ty(self.arg(id, 0)?).width());
                What::TopK { to: registers.make(id), from, dim }
            }
            Op::Pick(_) => {
                let (from, dim) = (place(0)?, self.graph.ty(self.arg(id, 0)?).width());
                let ids = place(1)?;
                What::Pick { to: registers.make(id), from, dim, ids }
            }
            Op::Mix(_) => {
                let (from, weights) = (place(0)?, place(1)?);
                let count = self.graph.ty(self.arg(id, 1)?).width();
                What::Mix { to: registers.make(id), from, weights, count }
            }
            Op::Concat(_) => {
                let parts = (0..node.args.len()).map(place).collect::<Result<Vec<_>>>()?;
                let (to, dim, mut start) = (registers.make(id), node.ty.last(), 0);
                let mut micros = Vec::new();
                for (&arg, from) in node.args.iter().zip(parts) {
                    let take = self.graph.ty(arg).last();
                    let what = What::Join { to, from, start, take, dim };
                    micros.push(Micro { what, len });
                    start += take;
                }
                return self.and_put(registers, id, micros, len);
            }
            Op::Rope(op) => {
                let from = place(0)?;
                let factors = node.args.get(2).map(|&f| self.byte(f)).transpose()?;
                let known = self.ropes.iter().position(|r| r.op == *op && r.factors == factors);
                let rope = known.unwrap_or(self.ropes.len());
                if known.is_none() {
                    self.ropes.push(Rope { op: op.clone(), factors, table: None });
                }
                What::Rope { to: registers.make(id), from, rope, head: node.ty.last() }
            }
            Op::Unary(op) => {
                let (from, kind) = (place(0)?, op.kind);
                What::Unary { to: registers.make(id), from, kind }
            }
            Op::Binary(op) => {
                let (a, b, kind) = (place(0)?, place(1)?, op.kind);
                What::Binary { to: registers.make(id), a, b, kind }
            }
            Op::Slice(op) => {
                let (from, start) = (place(0)?, op.start);
                let dim = self.graph.ty(self.arg(id, 0)?).last();
                What::Slice { to: registers.make(id), from, start, dim, take: op.len }
            }
            Op::Input(_) | Op::Weight(_) | Op::Cache(_) | Op::Reshape(_) => {
                return Err(unplaced(id));
            }
            Op::Linear(_) | Op::Experts(_) | Op::Attend(_) | Op::Sample(_) => {
                return Err(unplaced(id));
            }
        };
        self.and_put(registers, id, vec![Micro { what, len }], len)
    }

    /// Puts the value of `id` into its memory, if it has any.
    fn and_put(
        &self,
        registers: &Registers,
        id: NodeId,
        mut micros: Vec<Micro>,
        len: usize,
    ) -> Result<Vec<Micro>> {
        if let (Some(to), Some(&from)) = (self.put(id)?, registers.of.get(&id)) {
            micros.push(Micro { what: What::Put { from, to }, len });
        }
        Ok(micros)
    }

    /// A list over whole rows.
    pub(super) fn list(&mut self, lead: Lead, nodes: &[NodeId]) -> Result<(RowList, Registers)> {
        let mut registers = Registers::default();
        let mut micros = Vec::new();
        for &id in nodes {
            let x = match self.graph.node(id).op {
                Op::Store(_) => self.arg(id, 1)?,
                _ => id,
            };
            let len = self.graph.ty(x).width();
            micros.extend(self.micro(&mut registers, id, len)?);
        }
        let width = list_width(self.graph, nodes);
        let bytes = list_bytes(self.graph, nodes).ok_or_else(too_large)?;
        Ok((RowList { lead, micros, width, bytes }, registers))
    }
}
