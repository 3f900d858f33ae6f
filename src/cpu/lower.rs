//! From a plan to a [`Program`]: offsets looked up, columns shared out.

use super::CpuBackend;
use super::attend::{Attention, KvLayout};
use super::experts::{Experts, experts_work};
use super::program::{
    Attend, Domain, Ids, Linear, Micro, NormKind, Place, Program, Rope, RowList, Rows, Step,
    Tensor, TensorKind, What, Work, span, strip_len,
};
use super::quantize::{Precision, activation_bytes};
use super::repack::{Layout, TILE};
use crate::graph::op::{CachePart, InputKind};
use crate::graph::{DType, Graph, Lead, NodeId, Op, TensorType};
use crate::plan::{ALIGN, Group, GroupKind, Limits, Plan, Role, inputs, origin, weight_ranges};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// How a weight of this type is kept.
pub(super) fn tensor_kind(ty: &TensorType) -> Option<TensorKind> {
    let DType::Weight(format) = ty.dtype else { return None };
    match *ty.dims.as_slice() {
        [rows, cols] => Layout::of(format, rows, cols).map(TensorKind::Matrix),
        [count, rows, cols] => {
            let layout = Layout::of(format, rows, cols)?;
            layout.bytes().checked_mul(count)?;
            Some(TensorKind::Experts(layout, count))
        }
        _ => Some(TensorKind::Vector(ty.width())),
    }
}

impl TensorKind {
    pub(super) fn bytes(&self) -> usize {
        match self {
            TensorKind::Matrix(layout) => layout.bytes(),
            TensorKind::Experts(layout, count) => layout.bytes() * count,
            TensorKind::Vector(len) => len * 4,
        }
    }
}

/// Lowers `plan` for the backend's number of threads.
pub(super) fn lower(backend: &CpuBackend, plan: &Plan) -> Result<Program> {
    let mut lowering = Lowering { plan, graph: plan.graph(), ropes: Vec::new() };
    let mut tensors = Vec::new();
    for buffer in plan.buffers().iter().filter(|b| b.role == Role::Weight) {
        let node = plan.graph().node(buffer.value);
        let kind = tensor_kind(&node.ty).ok_or_else(|| unplaced(buffer.value))?;
        if let Op::Weight(weight) = &node.op {
            let name = weight.name.clone();
            tensors.push(Tensor { name, offset: size(buffer.offset)?, kind });
        }
    }
    let (mut steps, mut sample) = (Vec::new(), None);
    for group in plan.groups() {
        // The session samples when all steps are done, so nothing may come after.
        if sample.is_some() {
            return Err(Error::Plan("sampling must come last, and once".to_string()));
        }
        match group.kind {
            GroupKind::Sample(id) => sample = Some(lowering.rows(lowering.arg(id, 0)?)?),
            _ => steps.push(lowering.step(group, backend.threads())?),
        }
    }
    let work = work(plan.graph(), plan.groups(), plan.limits(), backend.threads());
    let graph = plan.graph();
    let outputs = graph.outputs().iter();
    let outputs = outputs.map(|&id| {
        let ty = graph.ty(id);
        let f32_rows = ty.dtype == DType::F32;
        f32_rows.then(|| lowering.rows(id).map(|rows| (ty.lead, rows))).transpose()
    });
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    let vocabulary = table_rows(graph, InputKind::Tokens);
    if let Some(positions) = table_rows(graph, InputKind::Positions)
        && positions < plan.limits().context
    {
        let context = plan.limits().context;
        let what = format!("a context of {context}, but the model knows {positions} positions");
        return Err(Error::Plan(what));
    }
    let bytes = plan.bytes();
    Ok(Program {
        steps,
        limits: *plan.limits(),
        threads: backend.threads(),
        tensors,
        weight_bytes: size(bytes.weights)?,
        kv_bytes: size(bytes.kv)?,
        scratch_bytes: size(bytes.scratch)?,
        logits_bytes: size(bytes.logits)?,
        work: work.ok_or_else(too_large)?,
        ropes: lowering.ropes,
        vocabulary: vocabulary.unwrap_or(usize::MAX),
        outputs,
        sample,
        bytes: *bytes,
    })
}

/// Rows of the smallest table that an input of this kind looks into.
fn table_rows(graph: &Graph, kind: InputKind) -> Option<usize> {
    let looks = |n: &&crate::graph::Node| {
        let ids = n.args.get(1).map(|&ids| &graph.node(ids).op);
        matches!(n.op, Op::Embed(_)) && matches!(ids, Some(Op::Input(i)) if i.kind == kind)
    };
    let tables = graph.nodes().iter().filter(looks);
    tables.filter_map(|n| graph.ty(*n.args.first()?).dims.first().copied()).min()
}

/// Why a group cannot run here.
pub(super) fn refuses(graph: &Graph, group: &Group) -> Option<String> {
    group.nodes().find_map(|id| {
        let node = graph.node(id);
        let arg = |i: usize| node.args.get(i).map(|&a| &graph.node(a).op);
        let input = |i: usize, kind| matches!(arg(i), Some(Op::Input(x)) if x.kind == kind);
        let weight = |i: usize| matches!(arg(i), Some(Op::Weight(_)));
        let why = match &node.op {
            Op::Embed(_) if !weight(0) => "its table is computed",
            Op::Embed(_) if input(1, InputKind::Slots) || input(1, InputKind::Outs) => {
                "its rows are neither tokens nor positions"
            }
            Op::Select(_) if !input(1, InputKind::Outs) => "its rows are computed",
            Op::RmsNorm(_) | Op::LayerNorm(_) if (1..node.args.len()).any(|i| !weight(i)) => {
                "its weight is computed"
            }
            Op::Rope(_) if !input(1, InputKind::Positions) => "its positions are computed",
            Op::Rope(_) if node.args.len() > 2 && !weight(2) => "its factors are computed",
            Op::Store(_) if !(input(2, InputKind::Positions) && input(3, InputKind::Slots)) => {
                "its positions are computed"
            }
            Op::Attend(_) if !(input(3, InputKind::Positions) && input(4, InputKind::Slots)) => {
                "its positions are computed"
            }
            Op::Attend(_) if node.args.len() > 5 && !weight(5) => "its sinks are computed",
            Op::Binary(_) if node.ty.dims.len() > 1 && (weight(0) || weight(1)) => {
                "a weight for rows of heads is not kept as a vector"
            }
            Op::Linear(_) | Op::Experts(_) if linear_precision(graph, id).is_none() => {
                "its weights want rows of different precision, or no kernel reads them"
            }
            Op::Attend(_) if attention(graph, id, 1).is_none() => "its heads do not fit its cache",
            _ => return None,
        };
        Some(format!("{} ({}): {why}", node.op.name(), node.origin))
    })
}

/// The precision in which all weights of a product want its rows.
pub(super) fn linear_precision(graph: &Graph, linear: NodeId) -> Option<Precision> {
    let node = graph.node(linear);
    let weights = node.args.iter().skip(inputs(&node.op));
    let mut weights = weights.map(|&w| match tensor_kind(graph.ty(w))? {
        TensorKind::Matrix(layout) | TensorKind::Experts(layout, _) => Some(layout.precision()),
        TensorKind::Vector(_) => None,
    });
    let first = weights.next()??;
    weights.all(|p| p == Some(first)).then_some(first)
}

/// The workspace of all groups: they take turns in it.
pub(super) fn work(
    graph: &Graph,
    groups: &[Group],
    limits: &Limits,
    threads: usize,
) -> Option<Work> {
    let mut work = Work::default();
    for group in groups {
        let w = group_work(graph, group, limits, threads)?;
        work.shared = work.shared.max(w.shared);
        work.attention = work.attention.max(w.attention);
        work.private = work.private.max(w.private);
    }
    Some(work)
}

impl Work {
    /// Bytes for so many workers.
    pub(super) fn bytes(&self, threads: usize) -> Option<usize> {
        let private = self.private.checked_mul(threads)?;
        self.shared.checked_add(self.attention)?.checked_add(private)
    }
}

fn group_work(graph: &Graph, group: &Group, limits: &Limits, threads: usize) -> Option<Work> {
    let rows = if group.lead == Lead::Outs { limits.outs } else { limits.rows };
    match &group.kind {
        GroupKind::Sample(_) => Some(Work::default()),
        GroupKind::Rows(nodes) => {
            Some(Work { private: list_bytes(graph, nodes)?, ..Work::default() })
        }
        GroupKind::Attend(id) => {
            let bytes = attention(graph, *id, limits.context)?.scratch_bytes(rows, threads)?;
            Some(Work { attention: aligned(bytes)?, ..Work::default() })
        }
        GroupKind::Linear { prologue, linear, .. }
            if matches!(graph.node(*linear).op, Op::Experts(_)) =>
        {
            let mut work = experts_work(graph, *linear, rows)?;
            work.private = aligned(work.private.checked_add(list_bytes(graph, prologue)?)?)?;
            Some(work)
        }
        GroupKind::Linear { prologue, linear, epilogue } => {
            let precision = linear_precision(graph, *linear)?;
            let inputs = graph.ty(*graph.node(*linear).args.first()?).width();
            let all = if rows > 1 { activation_bytes(precision, inputs, rows)? } else { 0 };
            let one = aligned(activation_bytes(precision, inputs, 1)?)?;
            let grain = epilogue.iter().map(|&n| grain_of(graph, n)).fold(TILE, lcm);
            let parts = graph.node(*linear).args.len() - 1;
            let strips = parts.checked_mul(strip_len(grain)?)?;
            let registers = epilogue.len().checked_mul(span(grain, 1).max(span(grain, 2)))?;
            let after = strips.checked_add(registers)?.checked_mul(4)?;
            let private = list_bytes(graph, prologue)?.checked_add(one)?.checked_add(after)?;
            Some(Work { shared: aligned(all)?, private: aligned(private)?, ..Work::default() })
        }
    }
}

/// The attention of a node over caches of `context` positions.
fn attention(graph: &Graph, id: NodeId, context: usize) -> Option<Attention> {
    let node = graph.node(id);
    let Op::Attend(op) = &node.op else { return None };
    let cache = graph.ty(*node.args.get(1)?);
    Attention::new(op, *node.ty.dims.first()?, kv_layout(cache, context)?)
}

/// How a cache lies in memory.
pub(super) fn kv_layout(cache: &TensorType, context: usize) -> Option<KvLayout> {
    match cache.dims.as_slice() {
        &[heads, dim] => KvLayout::new(context, heads, dim, cache.dtype),
        _ => None,
    }
}

/// Registers of a list over whole rows: one a node, as long as its longest value.
fn list_bytes(graph: &Graph, nodes: &[NodeId]) -> Option<usize> {
    aligned(list_width(graph, nodes).checked_mul(nodes.len())?.checked_mul(4)?)
}

fn list_width(graph: &Graph, nodes: &[NodeId]) -> usize {
    let rows = |ty: &&TensorType| matches!(ty.lead, Lead::Rows | Lead::Outs);
    let widths = nodes.iter().map(|&n| graph.ty(n)).filter(rows);
    widths.map(TensorType::width).max().unwrap_or(0).next_multiple_of(TILE)
}

fn aligned(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN as usize)
}

/// Columns that an op of an epilogue must see together.
fn grain_of(graph: &Graph, id: NodeId) -> usize {
    let node = graph.node(id);
    match (&node.op, node.args.get(1)) {
        (Op::RmsNorm(_) | Op::LayerNorm(_) | Op::Rope(_), _) => node.ty.last(),
        (Op::Store(_), Some(&x)) => graph.ty(x).last(),
        _ => 1,
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).map_or(a.max(b), |times| times.saturating_mul(b))
}

pub(super) fn unplaced(id: NodeId) -> Error {
    Error::Plan(format!("{id} has no place in this plan"))
}

fn too_large() -> Error {
    Error::Plan("its sizes overflow".to_string())
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| too_large())
}

struct Lowering<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
    ropes: Vec<Rope>,
}

/// Registers by value, while a list is made.
#[derive(Default)]
struct Registers {
    of: BTreeMap<NodeId, usize>,
    count: usize,
}

impl Registers {
    fn make(&mut self, id: NodeId) -> usize {
        self.of.insert(id, self.count);
        self.count += 1;
        self.count - 1
    }
}

impl Lowering<'_> {
    fn step(&mut self, group: &Group, threads: usize) -> Result<Step> {
        Ok(match &group.kind {
            GroupKind::Rows(nodes) => Step::Rows(self.list(group.lead, nodes)?.0),
            GroupKind::Linear { prologue, linear, .. }
                if matches!(self.graph.node(*linear).op, Op::Experts(_)) =>
            {
                Step::Experts(self.experts(group.lead, prologue, *linear)?)
            }
            GroupKind::Linear { prologue, linear, epilogue } => {
                Step::Linear(self.linear(group.lead, prologue, *linear, epilogue, threads)?)
            }
            GroupKind::Attend(id) => Step::Attend(self.attend(*id)?),
            GroupKind::Sample(id) => return Err(unplaced(*id)),
        })
    }

    fn arg(&self, id: NodeId, i: usize) -> Result<NodeId> {
        self.graph.node(id).args.get(i).copied().ok_or_else(|| unplaced(id))
    }

    /// First byte of a weight or a cache.
    fn byte(&self, id: NodeId) -> Result<usize> {
        size(self.plan.place(id).ok_or_else(|| unplaced(id))?.offset)
    }

    /// Where the rows of a value that leaves its group are.
    fn rows(&self, id: NodeId) -> Result<Rows> {
        let buffer = self.plan.place(id).ok_or_else(|| unplaced(id))?;
        let logits = buffer.role == Role::Logits;
        if !logits && buffer.role != Role::Scratch {
            return Err(unplaced(id));
        }
        let width = self.graph.ty(buffer.value).width();
        Ok(Rows { logits, offset: size(buffer.offset / 4)?, width, col: 0 })
    }

    /// Where the value of `id` must be put, if it has memory of its own.
    fn put(&self, id: NodeId) -> Result<Option<Rows>> {
        let owns = self.plan.place(id).is_some_and(|b| b.value == id);
        owns.then(|| self.rows(id)).transpose()
    }

    fn operand(&self, registers: &Registers, id: NodeId) -> Result<Place> {
        let id = origin(self.graph, id);
        if let Some(&register) = registers.of.get(&id) {
            return Ok(Place::Register(register));
        }
        match &self.graph.node(id).op {
            Op::Weight(_) => Ok(Place::Vector(self.byte(id)?)),
            _ => Ok(Place::Rows(self.rows(id)?)),
        }
    }

    fn matrix(&self, id: NodeId) -> Result<(Layout, usize)> {
        match tensor_kind(self.graph.ty(id)) {
            Some(TensorKind::Matrix(layout)) => Ok((layout, self.byte(id)?)),
            _ => Err(unplaced(id)),
        }
    }

    /// The operation of one node, its result in a new register.
    fn micro(&mut self, registers: &mut Registers, id: NodeId, len: usize) -> Result<Vec<Micro>> {
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
    fn list(&mut self, lead: Lead, nodes: &[NodeId]) -> Result<(RowList, Registers)> {
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

    fn linear(
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

    fn experts(&mut self, lead: Lead, prologue: &[NodeId], id: NodeId) -> Result<Experts> {
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

    fn attend(&mut self, id: NodeId) -> Result<Attend> {
        let attention = attention(self.graph, id, self.plan.limits().context);
        let cache = |i: usize| self.byte(origin(self.graph, self.arg(id, i)?));
        Ok(Attend {
            q: self.rows(origin(self.graph, self.arg(id, 0)?))?,
            out: self.rows(id)?,
            keys: cache(1)?,
            values: cache(2)?,
            attention: attention.ok_or_else(|| unplaced(id))?,
            sinks: self.graph.node(id).args.get(5).map(|&s| self.byte(s)).transpose()?,
        })
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
