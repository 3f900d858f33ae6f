//! Lists of operations on rows, each row in the registers of one block.

use super::{Chip, Lowering, binary_code, count, unary_code, unplaced};
use crate::cuda::abi::*;
use crate::cuda::program::{Kernel, Parameters, RopeTable};
use crate::graph::{Graph, Lead, NodeId, Op, RopeLayout, TensorType};
use crate::plan::origin;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Whether a list over whole rows fits a block: its operations and its registers.
pub(super) fn list_fits(
    chip: &Chip,
    graph: &Graph,
    nodes: &[NodeId],
    keep: Option<NodeId>,
) -> bool {
    let width = list_width(graph, nodes);
    // At most one register a node is alive; reuse makes it fewer, which the lowering counts.
    let alive = Registers::most(graph, nodes, keep);
    2 * nodes.len() < MAX_ROW_OPS && width.saturating_mul(4 * alive) <= chip.row_shared()
}

fn list_width(graph: &Graph, nodes: &[NodeId]) -> usize {
    let widths = nodes.iter().map(|&n| graph.ty(n)).filter(|ty| ty.is_activation());
    widths.map(TensorType::width).max().unwrap_or(0).next_multiple_of(4)
}

/// Registers of a list, each free again after its value's last use.
#[derive(Default)]
struct Registers {
    of: BTreeMap<NodeId, u32>,
    free: Vec<u32>,
    count: u32,
}

impl Registers {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        })
    }

    /// A register for `id`, node `i` of the list. What dies here is free before if the operation
    /// reads an element before it writes it and looks at no other. `keep` is read after the list.
    fn make(&mut self, graph: &Graph, nodes: &[NodeId], i: usize, keep: Option<NodeId>) -> u32 {
        let id = nodes[i];
        let args: Vec<NodeId> = graph.node(id).args.iter().map(|&a| origin(graph, a)).collect();
        let later = |value: NodeId| {
            nodes[i + 1..]
                .iter()
                .any(|&n| graph.node(n).args.iter().any(|&a| origin(graph, a) == value))
        };
        let dying: Vec<u32> = args
            .iter()
            .filter(|&&a| !later(a) && Some(a) != keep)
            .filter_map(|a| self.of.remove(a))
            .collect();
        let in_place = matches!(graph.node(id).op, Op::Unary(_) | Op::Binary(_) | Op::RmsNorm(_));
        let makes = graph.ty(id).is_activation();
        if in_place {
            self.free.extend(&dying);
        }
        let to = if makes { self.take() } else { 0 };
        if !in_place {
            self.free.extend(&dying);
        }
        if makes {
            self.of.insert(id, to);
        }
        to
    }

    /// How many registers a list needs.
    fn most(graph: &Graph, nodes: &[NodeId], keep: Option<NodeId>) -> usize {
        let mut registers = Registers::default();
        for i in 0..nodes.len() {
            registers.make(graph, nodes, i, keep);
        }
        registers.count as usize
    }
}

/// A list of row-local operations in the making.
pub(super) struct List {
    pub ops: Vec<RowOp>,
    pub jobs: Vec<Job>,
    pub width: usize,
    pub registers: u32,
    pub blocks: usize,
    table: Matrix,
}

impl List {
    pub(super) fn new() -> Self {
        let table = Matrix::default();
        List { ops: Vec::new(), jobs: Vec::new(), width: 4, registers: 0, blocks: 0, table }
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
        keep: Option<NodeId>,
    ) -> Result<BTreeMap<NodeId, Operand>> {
        let mut registers = Registers::default();
        for (i, &id) in nodes.iter().enumerate() {
            let node = self.graph.node(id);
            let x = if matches!(node.op, Op::Store(_)) { self.arg(id, 1)? } else { id };
            let columns = if len == 0 { self.graph.ty(x).width() } else { len };
            let mut op = RowOp { len: count(columns)?, ..RowOp::default() };
            let place = |i: usize| self.operand(&known, self.arg(id, i)?);
            match &node.op {
                Op::Embed(_) => {
                    let (layout, at) = self.matrix(self.arg(id, 0)?)?;
                    op.what = R_EMBED;
                    list.table = layout.matrix(at);
                }
                Op::Select(_) => {
                    op.what = R_SELECT;
                    op.a = self.value(origin(self.graph, self.arg(id, 0)?))?;
                }
                Op::RmsNorm(norm) => {
                    op.what = R_NORM;
                    op.a = place(0)?;
                    op.aux = self.address(self.arg(id, 1)?)?;
                    (op.n0, op.c) = (count(node.ty.last())?, norm.eps);
                }
                Op::Rope(rope) => {
                    op.what = R_ROPE;
                    op.a = place(0)?;
                    let factors = node.args.get(2).copied();
                    let same = |t: &&RopeTable| {
                        t.rope == *rope && t.factors.as_ref().map(|f| f.0) == factors
                    };
                    let table = self.ropes.iter().find(same).ok_or_else(|| unplaced(id))?;
                    op.aux = self.bases.tables + table.offset as u64;
                    (op.n0, op.n1) = (count(node.ty.last())?, count(rope.dim)?);
                    op.kind = u32::from(rope.layout == RopeLayout::Half);
                }
                Op::Unary(unary) => {
                    op.what = R_UNARY;
                    op.a = place(0)?;
                    (op.kind, op.c) = unary_code(unary.kind).ok_or_else(|| unplaced(id))?;
                }
                Op::Binary(binary) => {
                    op.what = R_BINARY;
                    (op.a, op.b) = (place(0)?, place(1)?);
                    op.kind = binary_code(binary.kind).ok_or_else(|| unplaced(id))?;
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
                    (op.n0, op.n2) = (count(dim)?, count(heads)?);
                    op.n1 = count(self.plan.limits().context)?;
                }
                Op::Input(_) | Op::Weight(_) | Op::Cache(_) | Op::Reshape(_) => {
                    return Err(unplaced(id));
                }
                Op::Linear(_)
                | Op::Attend(_)
                | Op::Sample(_)
                | Op::LayerNorm(_)
                | Op::Concat(_)
                | Op::Softmax(_)
                | Op::Normalize(_)
                | Op::TopK(_)
                | Op::Pick(_)
                | Op::Experts(_)
                | Op::Mix(_) => return Err(unplaced(id)),
            }
            op.to = registers.make(self.graph, nodes, i, keep);
            list.ops.push(op);
            if self.graph.ty(id).is_activation() {
                known.insert(id, Operand::register(op.to));
                if let Some(b) = self.put(id)? {
                    let a = Operand::register(op.to);
                    list.ops.push(RowOp { what: R_PUT, len: op.len, a, b, ..RowOp::default() });
                }
            }
        }
        list.registers = list.registers.max(registers.count);
        let width = if len == 0 { list_width(self.graph, nodes) } else { len.next_multiple_of(4) };
        list.width = list.width.max(width);
        Ok(known)
    }

    /// Launches a list.
    pub(super) fn push_list(&mut self, lead: Lead, list: List) -> Result<()> {
        if list.ops.len() > MAX_ROW_OPS || list.jobs.len() > MAX_JOBS {
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
            width: count(list.width)?,
            job: [Job::default(); MAX_JOBS],
            table: list.table,
            op: [RowOp::default(); MAX_ROW_OPS],
        };
        p.job.iter_mut().zip(&list.jobs).for_each(|(to, from)| *to = *from);
        p.op.iter_mut().zip(&list.ops).for_each(|(to, from)| *to = *from);
        let most = list.ops.iter().map(|op| op.len.max(if op.what == R_SPLIT { op.n0 } else { 0 }));
        let block = most.max().unwrap_or(32).next_multiple_of(32).clamp(32, 256);
        let shared = list.width * list.registers as usize * 4;
        let grid = (count(list.blocks)?, 1);
        self.push(Kernel::Rows, grid, block, shared, lead, Parameters::Rows(Box::new(p)))
    }

    /// Ops so far become one job over whole rows.
    pub(super) fn whole(list: &mut List) -> Result<()> {
        let job = Job { first_block: 0, unit: 0, op: 0, ops: count(list.ops.len())? };
        list.jobs.push(job);
        list.blocks = 1;
        Ok(())
    }

    pub(super) fn rows(&mut self, lead: Lead, nodes: &[NodeId]) -> Result<()> {
        let mut list = List::new();
        self.list(&mut list, nodes, 0, BTreeMap::new(), None)?;
        Self::whole(&mut list)?;
        self.push_list(lead, list)
    }
}
