//! Lists of operations on rows, each row in the registers of one block.

use super::memory::tensor_kind;
use super::registers::{Registers, fold, makes, names_columns};
use super::{Chip, Lowering, binary_code, count, unary_code, unplaced};
use crate::cuda::abi::*;
use crate::cuda::layout::Layout;
use crate::cuda::program::{Kernel, Parameters, TensorKind};
use crate::graph::op::InputKind;
use crate::graph::{Graph, Lead, NodeId, Op, RopeLayout};
use crate::plan::origin;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Columns of a block where a row is made by columns.
const COLUMNS: usize = 64;

/// Whether a list over whole rows fits a block: its operations, tables and registers.
pub(super) fn list_fits(
    chip: &Chip,
    graph: &Graph,
    nodes: &[NodeId],
    keep: &[NodeId],
    fold: usize,
) -> bool {
    let bytes = Registers::bytes(graph, nodes, keep, 0, fold);
    let ops: usize = nodes.iter().map(|&id| ops(graph, id)).sum();
    // What is read after the list is put somewhere.
    ops + keep.len() <= MAX_ROW_OPS
        && tables(graph, nodes) <= MAX_TABLES
        && bytes <= chip.row_shared()
}

/// Operations of a node, at most.
pub(super) fn ops(graph: &Graph, id: NodeId) -> usize {
    let node = graph.node(id);
    let parts = if matches!(node.op, Op::Concat(_)) { node.args.len() } else { 1 };
    parts + 1 + usize::from(table_of(graph, id).is_some())
}

/// The weight for rows of heads that an elementwise op reads: it is kept as a matrix.
pub(super) fn table_of(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = graph.node(id);
    let &w = node.args.get(1).filter(|_| matches!(node.op, Op::Binary(_)))?;
    let matrix =
        matches!(tensor_kind(graph.ty(w)), Some(TensorKind::Matrix(_) | TensorKind::Experts(..)));
    matrix.then_some(w)
}

/// Tables that the nodes read.
pub(super) fn tables(graph: &Graph, nodes: &[NodeId]) -> usize {
    let table = |&id: &NodeId| match &graph.node(id).op {
        Op::Embed(_) => graph.node(id).args.first().copied(),
        _ => table_of(graph, id),
    };
    let mut all: Vec<NodeId> = nodes.iter().filter_map(table).collect();
    all.sort_unstable();
    all.dedup();
    all.len()
}

/// A list of row-local operations in the making.
pub(super) struct List {
    pub ops: Vec<RowOp>,
    pub jobs: Vec<Job>,
    /// Fours of elements of a block's registers.
    pub fours: usize,
    pub blocks: usize,
    /// Rows that it sees in a row of the step.
    pub fold: usize,
    pub tables: Vec<Matrix>,
}

impl List {
    pub(super) fn new() -> Self {
        let (ops, jobs, tables) = (Vec::new(), Vec::new(), Vec::new());
        List { ops, jobs, fours: 1, blocks: 0, fold: 1, tables }
    }

    /// The number of a table.
    fn table(&mut self, matrix: Matrix) -> Result<u32> {
        let known = self.tables.iter().position(|t| *t == matrix);
        count(known.unwrap_or_else(|| {
            self.tables.push(matrix);
            self.tables.len() - 1
        }))
    }
}

impl Lowering<'_> {
    /// Appends operations for `nodes` over `len` columns (whole rows if that is 0). `known` are
    /// values that are elsewhere than in registers, and `keep` is read afterwards. Returns where each value is.
    pub(super) fn list(
        &self,
        list: &mut List,
        nodes: &[NodeId],
        len: usize,
        mut known: BTreeMap<NodeId, Operand>,
        keep: &[NodeId],
    ) -> Result<BTreeMap<NodeId, Operand>> {
        let fold = list.fold;
        let mut registers = Registers::new(self.graph, nodes, keep, len, fold);
        for (i, &id) in nodes.iter().enumerate() {
            let node = self.graph.node(id);
            let x = if matches!(node.op, Op::Store(_)) { self.arg(id, 1)? } else { id };
            let columns = if len == 0 { self.graph.ty(x).width() / fold } else { len };
            let mut op = RowOp { len: count(columns)?, ..RowOp::default() };
            let place = |i: usize| self.folded(&known, self.arg(id, i)?, fold);
            let to_put = self.put(id)?.map(|b| Self::part(b, fold));
            if len == 0 && names_columns(self.graph, nodes, id, fold) {
                let (Op::Slice(slice), mut from) = (&node.op, place(0)?) else {
                    return Err(unplaced(id));
                };
                from.at += slice.start as u64 * 4;
                known.insert(id, from);
                if let Some(b) = to_put {
                    list.ops.push(RowOp { what: R_PUT, a: from, b, ..op });
                }
                continue;
            }
            let (to, table) = registers.make(i);
            op.to = count(to)?;
            match &node.op {
                Op::Embed(_) => {
                    let (layout, at) = self.matrix(self.arg(id, 0)?)?;
                    op.what = R_EMBED;
                    op.kind = list.table(layout.matrix(at))?;
                    op.n1 = count(layout.cols)?;
                    op.n0 = match &self.graph.node(self.arg(id, 1)?).op {
                        Op::Input(input) if input.kind == InputKind::Tokens => TOKENS,
                        Op::Input(input) if input.kind == InputKind::Positions => POSITIONS,
                        _ => {
                            op.a = place(1)?;
                            PICKS
                        }
                    };
                }
                Op::Select(_) => {
                    op.what = R_SELECT;
                    op.a = self.value(origin(self.graph, self.arg(id, 0)?))?;
                }
                Op::RmsNorm(_) | Op::LayerNorm(_) => {
                    op.what = R_NORM;
                    op.a = place(0)?;
                    let param = |i: usize| node.args.get(i).map_or(Ok(0), |&w| self.address(w));
                    (op.aux, op.aux2) = (param(1)?, param(2)?);
                    let dim = node.ty.last();
                    op.n0 = count(dim)?;
                    let (layer, eps) = match &node.op {
                        Op::LayerNorm(norm) => (1, norm.eps),
                        Op::RmsNorm(norm) => (0, norm.eps),
                        _ => return Err(unplaced(id)),
                    };
                    let each = node.args.get(1).is_some_and(|&w| self.graph.ty(w).width() > dim);
                    (op.kind, op.c) = (layer + 2 * u32::from(each), eps);
                }
                Op::Softmax(_) | Op::Normalize(_) => {
                    op.what = R_SHARES;
                    op.a = place(0)?;
                    op.kind = u32::from(matches!(node.op, Op::Softmax(_)));
                    op.n0 = count(node.ty.last())?;
                }
                Op::TopK(_) => {
                    op.what = R_TOP_K;
                    op.a = place(0)?;
                    op.n0 = count(self.graph.ty(self.arg(id, 0)?).width())?;
                }
                Op::Pick(_) => {
                    op.what = R_PICK;
                    (op.a, op.b) = (place(0)?, place(1)?);
                    op.n0 = count(self.graph.ty(self.arg(id, 0)?).width())?;
                }
                Op::Mix(_) => {
                    op.what = R_MIX;
                    (op.a, op.b) = (place(0)?, place(1)?);
                    op.n0 = count(self.graph.ty(self.arg(id, 1)?).width())?;
                    op.n1 = count(node.ty.width())?;
                }
                Op::Concat(_) => {
                    op.what = R_JOIN;
                    op.n2 = count(node.ty.last())?;
                    let mut start = 0;
                    for (i, &arg) in node.args.iter().enumerate() {
                        let ty = self.graph.ty(arg);
                        let (len, take) = (count(ty.width() / fold)?, count(ty.last())?);
                        list.ops.push(RowOp { len, a: place(i)?, n0: start, n1: take, ..op });
                        start += take;
                    }
                }
                Op::Rope(rope) => {
                    op.what = R_ROPE;
                    op.a = place(0)?;
                    op.aux = self.turns(id, rope)?;
                    (op.n0, op.n1) = (count(node.ty.last())?, count(rope.dim)?);
                    op.kind = u32::from(rope.layout == RopeLayout::Half);
                }
                Op::Unary(unary) => {
                    op.what = R_UNARY;
                    op.a = place(0)?;
                    let d;
                    (op.kind, op.c, d) = unary_code(unary.kind);
                    op.b = Operand::constant(d);
                }
                Op::Binary(binary) => {
                    op.what = R_BINARY;
                    op.a = place(0)?;
                    op.kind = binary_code(binary.kind);
                    op.b = match table_of(self.graph, id) {
                        None => place(1)?,
                        Some(w) => {
                            let (layout, at) = self.matrices(w)?;
                            let all = RowOp {
                                what: R_EMBED,
                                to: count(table)?,
                                kind: list.table(layout.matrix(at))?,
                                n0: ALL,
                                n1: count(layout.cols)?,
                                aux: layout.bytes() as u64,
                                ..op
                            };
                            list.ops.push(RowOp { a: Operand::default(), ..all });
                            Operand::register(count(table)?)
                        }
                    };
                }
                Op::Slice(slice) => {
                    op.what = R_SLICE;
                    op.a = place(0)?;
                    (op.n0, op.n1) = (count(slice.start)?, count(slice.len)?);
                    op.n2 = count(self.graph.ty(self.arg(id, 0)?).last())?;
                }
                Op::Store(_) => {
                    let cache = origin(self.graph, id);
                    let &[heads, dim] = self.graph.ty(cache).dims.as_slice() else {
                        return Err(unplaced(cache));
                    };
                    op.what = R_STORE;
                    op.a = place(1)?;
                    op.aux2 = self.address(cache)?;
                    op.aux = self.scales(cache)?;
                    op.kind = u32::from(op.aux != 0);
                    (op.n0, op.n2) = (count(dim)?, count(heads)?);
                    op.n1 = count(self.plan.limits().context)?;
                }
                Op::Input(_) | Op::Weight(_) | Op::Cache(_) | Op::Reshape(_) => {
                    return Err(unplaced(id));
                }
                Op::Linear(_) | Op::Attend(_) | Op::Sample(_) | Op::Experts(_) => {
                    return Err(unplaced(id));
                }
            }
            if op.what != R_JOIN {
                list.ops.push(op);
            }
            if makes(&node.ty) {
                let a = Operand::register(op.to);
                known.insert(id, a);
                if let Some(b) = to_put {
                    list.ops.push(RowOp { what: R_PUT, len: op.len, a, b, ..RowOp::default() });
                }
            }
        }
        list.fours = list.fours.max(registers.end);
        Ok(known)
    }

    /// A part of rows in memory, of which a row of the step has `fold`.
    pub(super) fn part(mut o: Operand, fold: usize) -> Operand {
        if o.place == ROWS {
            o.n /= fold.max(1) as u32;
        }
        o
    }

    /// Where a value is that a list may have made.
    pub(super) fn folded(
        &self,
        known: &BTreeMap<NodeId, Operand>,
        id: NodeId,
        fold: usize,
    ) -> Result<Operand> {
        match known.get(&origin(self.graph, id)) {
            Some(&o) => Ok(o),
            None => Ok(Self::part(self.operand(known, id)?, fold)),
        }
    }

    /// The layout of one matrix of a weight, and where the first is.
    pub(super) fn matrices(&self, id: NodeId) -> Result<(Layout, u64)> {
        match tensor_kind(self.graph.ty(id)) {
            Some(TensorKind::Matrix(layout) | TensorKind::Experts(layout, _)) => {
                Ok((layout, self.address(id)?))
            }
            _ => Err(unplaced(id)),
        }
    }

    /// Launches a list.
    pub(super) fn push_list(&mut self, lead: Lead, list: List) -> Result<()> {
        let tables = list.tables.len() > MAX_TABLES;
        if list.ops.len() > MAX_ROW_OPS || list.jobs.len() > MAX_JOBS || tables {
            let what =
                format!("group {}: more operations on a row than a launch takes", self.group);
            return Err(Error::Plan(what));
        }
        let mut p = RowList {
            tokens: self.bases.tokens,
            positions: self.bases.positions,
            slots: self.bases.slots,
            outs: self.bases.outs,
            jobs: count(list.jobs.len())?,
            fold: count(list.fold)?,
            blocks: count(list.blocks * list.fold)?,
            unused: 0,
            job: [Job::default(); MAX_JOBS],
            table: [Matrix::default(); MAX_TABLES],
            op: [RowOp::default(); MAX_ROW_OPS],
        };
        p.job.iter_mut().zip(&list.jobs).for_each(|(to, from)| *to = *from);
        p.table.iter_mut().zip(&list.tables).for_each(|(to, from)| *to = *from);
        p.op.iter_mut().zip(&list.ops).for_each(|(to, from)| *to = *from);
        let most = list.ops.iter().map(|op| op.len.max(if op.what == R_SPLIT { op.n0 } else { 0 }));
        let block = most.max().unwrap_or(32).next_multiple_of(32).clamp(32, 256);
        let shared = list.fours * FOUR * 4;
        let grid = (count(list.blocks * list.fold)?, 1);
        self.push(Kernel::Rows, grid, block, shared, lead, Parameters::Rows(Box::new(p)))
    }

    /// Ops so far become one job over units of columns, or over whole rows if that is 0.
    pub(super) fn by_units(list: &mut List, unit: usize, blocks: usize) -> Result<()> {
        let (unit, ops) = (count(unit)?, count(list.ops.len())?);
        list.jobs.push(Job { first_block: 0, unit, op: 0, ops });
        list.blocks = blocks;
        Ok(())
    }

    pub(super) fn rows(&mut self, lead: Lead, nodes: &[NodeId]) -> Result<()> {
        let mut list = List::new();
        let (unit, blocks) = match self.by_columns(lead, nodes) {
            Some(blocks) => (COLUMNS, blocks),
            None => (0, 1),
        };
        if unit == 0 {
            list.fold = fold(self.graph, nodes);
        }
        self.list(&mut list, nodes, unit, BTreeMap::new(), &[])?;
        Self::by_units(&mut list, unit, blocks)?;
        self.push_list(lead, list)
    }

    /// In how many blocks a row is made where there are few, if none of its columns is seen by the others.
    fn by_columns(&self, lead: Lead, nodes: &[NodeId]) -> Option<usize> {
        let cols = self.graph.ty(*nodes.first()?).width();
        (self.few(lead) && cols.is_multiple_of(COLUMNS) && self.apart(nodes))
            .then_some(cols / COLUMNS)
    }

    /// Whether these are an embedding, or what picks come to, and what becomes of each of its columns: a thread takes a while
    /// for one of them.
    pub(super) fn apart(&self, nodes: &[NodeId]) -> bool {
        let width = |id: NodeId| self.graph.ty(id).width();
        let Some(cols) = nodes.first().map(|&id| width(id)) else { return false };
        nodes.iter().all(|&id| {
            let node = self.graph.node(id);
            let input = |&id: &NodeId| matches!(self.graph.node(id).op, Op::Input(_));
            width(id) == cols
                && match node.op {
                    Op::Embed(_) => node.args.get(1).is_some_and(input),
                    Op::Mix(_) => {
                        node.args.iter().all(|&a| !nodes.contains(&origin(self.graph, a)))
                    }
                    Op::Unary(_) | Op::Binary(_) => node.args.iter().all(|&a| width(a) == cols),
                    _ => false,
                }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::lower::tests::lowered;
    use crate::cuda::program::Bases;
    use crate::graph::{Builder, MemoryWeights};
    use crate::plan::Limits;

    /// Blocks of the first list of a step over an embedding, and whether its first product has the norm.
    fn embedded(dim: usize, rows: usize) -> (u32, bool) {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, dim], &vec![0.0; 4 * dim]).unwrap();
        w.insert("up.weight", &[dim, dim], &vec![0.0; dim * dim]).unwrap();
        w.insert("norm.weight", &[dim], &vec![1.0; dim]).unwrap();
        let mut b = Builder::new(&w);
        let x = b.embed("x").unwrap();
        let n = b.rms_norm(x, "norm", 1e-5).unwrap();
        let y = b.linear(n, "up").unwrap();
        let y = b.add(x, y).unwrap();
        b.output(y);
        let limits = Limits { rows, outs: 1, slots: 1, context: 64 };
        let few = if (2..=32).contains(&rows) { rows } else { 0 };
        let (_, made) = lowered(&b.finish(), 90, limits, |bases| Bases { few, ..bases });
        let list = made.iter().find_map(|l| match &l.parameters {
            Parameters::Rows(p) => Some(p.blocks),
            _ => None,
        });
        let normed = |l: &_| matches!(l, Parameters::Gemv(p) if p.norm != 0);
        (list.unwrap(), made.iter().any(|l| normed(&l.parameters)))
    }

    #[test]
    fn an_embedding_is_made_by_columns_and_its_norm_on_the_way() {
        assert_eq!(embedded(1024, 1), (16, true));
        // No columns are left over.
        assert_eq!(embedded(96, 1), (1, true));
        // Of a few rows the list has the norm's columns, too.
        assert_eq!(embedded(1024, 32), (8, false));
        assert_eq!(embedded(96, 32), (1, false));
        assert_eq!(embedded(1024, 64), (1, false));
    }
}
