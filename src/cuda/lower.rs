//! From a plan to launches: addresses looked up, shapes chosen, epilogues put into byte code.
//!
//! A product of one row is the streaming kernel, of more rows the tensor-core one. What is done to
//! its columns element by element rides along; what must see whole heads (norms, rotations, cache
//! writes) is a launch of its own that reads the product from the workspace. A prologue that is a
//! single norm rides along with one row; any other is a launch that leaves its row in the workspace.

use super::abi::{self, *};
use super::driver::Shape;
use super::layout::{Layout, Product};
use super::program::{
    Bases, Kernel, Launch, Parameters, Program, RopeTable, Tensor, TensorKind, Work,
};
use crate::graph::op::{CachePart, InputKind};
use crate::graph::{BinaryKind, DType, Graph, Lead, NodeId, Op, RopeLayout, TensorType, UnaryKind};
use crate::plan::{Group, GroupKind, Limits, Plan, Role, origin, weight_ranges};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What of a device decides about launches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Chip {
    pub processors: u32,
    /// Shared memory that a block may have, and that a multiprocessor has.
    pub block_shared: usize,
    pub processor_shared: usize,
    /// Whether it has bulk copies and programmatic launches.
    pub hopper: bool,
}

impl Chip {
    /// Shared memory of a streaming product: where kernels overlap, two must fit.
    fn stream_shared(&self) -> usize {
        // What the system and the kernel's own variables take.
        let taken = 5 << 10;
        let half = if self.hopper { self.processor_shared / 2 } else { self.block_shared };
        half.min(self.block_shared).saturating_sub(taken)
    }

    fn row_shared(&self) -> usize {
        self.block_shared.saturating_sub(4 << 10)
    }
}

/// How a weight of this type is kept.
pub(super) fn tensor_kind(ty: &TensorType) -> Option<TensorKind> {
    let DType::Weight(format) = ty.dtype else { return None };
    match ty.dims.as_slice() {
        &[rows, cols] => Layout::of(format, rows, cols).map(TensorKind::Matrix),
        _ => Some(TensorKind::Vector(ty.width())),
    }
}

impl TensorKind {
    pub(super) fn bytes(&self) -> usize {
        match self {
            TensorKind::Matrix(layout) => layout.bytes(),
            TensorKind::Vector(len) => len.saturating_mul(4),
        }
    }
}

/// Bytes of a cache: `[slots][heads][positions][dim]` of f16; no other type is kept yet.
pub(super) fn cache_bytes(ty: &TensorType, limits: &Limits) -> Option<usize> {
    if ty.dtype != DType::F16 {
        return None;
    }
    let positions = limits.slots.checked_mul(limits.context)?;
    ty.width().checked_mul(2)?.checked_mul(positions)
}

/// Tables of all rotations, in the order they occur.
pub(super) fn ropes(graph: &Graph, context: usize) -> Option<(Vec<RopeTable>, usize)> {
    let (mut tables, mut end): (Vec<RopeTable>, usize) = (Vec::new(), 0);
    for node in graph.nodes() {
        let Op::Rope(rope) = &node.op else { continue };
        let factors = node.args.get(2).and_then(|&f| match &graph.node(f).op {
            Op::Weight(w) => Some((f, w.name.clone())),
            _ => None,
        });
        if !tables.iter().any(|t| t.rope == *rope && t.factors == factors) {
            tables.push(RopeTable { rope: rope.clone(), factors, offset: end });
            let bytes = context.checked_mul(rope.dim / 2)?.checked_mul(8)?;
            end = end.checked_add(bytes.checked_next_multiple_of(256)?)?;
        }
    }
    Some((tables, end))
}

/// Why a group cannot run here.
pub(super) fn refuses(chip: &Chip, graph: &Graph, group: &Group) -> Option<String> {
    let bad = group.nodes().find_map(|id| {
        let why = refuses_node(chip, graph, id)?;
        let node = graph.node(id);
        Some(format!("{} ({}): {why}", node.op.name(), node.origin))
    });
    if bad.is_some() {
        return bad;
    }
    let (list, keep): (&[NodeId], _) = match &group.kind {
        GroupKind::Rows(nodes) => (nodes, None),
        GroupKind::Linear { prologue, linear, .. } => {
            (prologue, graph.node(*linear).args.first().map(|&x| origin(graph, x)))
        }
        _ => (&[], None),
    };
    if !list_fits(chip, graph, list, keep) {
        return Some("its rows are too wide, or too much is done to them, for one block".into());
    }
    if let GroupKind::Linear { linear, epilogue, .. } = &group.kind {
        let domains = domains(graph, *linear, epilogue)?;
        for d in domains.iter().filter(|d| !d.rides_along()) {
            if d.parts.len() * 2 + d.nodes.len() * 2 > MAX_ROW_OPS
                || d.unit(graph) * (d.nodes.len() + 1) * 4 > chip.row_shared()
            {
                return Some("too much is done to the product's columns for one launch".into());
            }
        }
    }
    None
}

fn refuses_node(chip: &Chip, graph: &Graph, id: NodeId) -> Option<&'static str> {
    let node = graph.node(id);
    let arg = |i: usize| node.args.get(i).map(|&a| &graph.node(a).op);
    let input = |i: usize, kind| matches!(arg(i), Some(Op::Input(x)) if x.kind == kind);
    let weight = |i: usize| matches!(arg(i), Some(Op::Weight(_)));
    let rows_of_step = |n: usize| input(n, InputKind::Positions) && input(n + 1, InputKind::Slots);
    match &node.op {
        Op::LayerNorm(_)
        | Op::Concat(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::TopK(_)
        | Op::Pick(_)
        | Op::Experts(_)
        | Op::Mix(_) => Some("there is no kernel for it yet"),
        Op::Unary(op) if unary_code(op.kind).is_none() => Some("there is no kernel for it yet"),
        Op::Binary(op) if binary_code(op.kind).is_none() => Some("there is no kernel for it yet"),
        Op::RmsNorm(_) if !weight(1) => Some("it has no weight of the model's"),
        Op::RmsNorm(_) if graph.ty(*node.args.get(1)?).width() != node.ty.last() => {
            Some("a weight for each head is not read yet")
        }
        Op::Attend(op) if op.alibi.is_some() || node.args.len() > 5 => {
            Some("slopes and sinks are not computed yet")
        }
        Op::Embed(_) if !(weight(0) && input(1, InputKind::Tokens)) => {
            Some("its tokens are computed")
        }
        Op::Select(_) if !input(1, InputKind::Outs) => Some("its rows are computed"),

        Op::Rope(_) if !input(1, InputKind::Positions) => Some("its positions are computed"),
        Op::Rope(_) if node.args.len() > 2 && !weight(2) => Some("its factors are computed"),
        Op::Store(_) if !rows_of_step(2) => Some("its positions are computed"),
        Op::Attend(_) if !rows_of_step(3) => Some("its positions are computed"),
        Op::Binary(_) if node.ty.dims.len() > 1 && (weight(0) || weight(1)) => {
            Some("a weight for rows of heads is not kept as a vector")
        }
        Op::Linear(_) => {
            let layouts = node.args.iter().skip(1).map(|&w| match tensor_kind(graph.ty(w)) {
                Some(TensorKind::Matrix(layout)) => Some(layout),
                _ => None,
            });
            let layouts: Option<Vec<Layout>> = layouts.collect();
            let Some(layouts) = layouts else { return Some("no kernel reads its weights") };
            let streams = |l: &Layout| pages(chip, std::slice::from_ref(l), WARPS).is_some();
            if layouts.iter().all(streams) { None } else { Some("its rows are too wide") }
        }
        Op::Attend(_) => {
            let (q, k) = (graph.ty(node.args[0]), graph.ty(node.args[1]));
            let (&[heads, dim], &[kv, _]) = (q.dims.as_slice(), k.dims.as_slice()) else {
                return Some("its heads do not fit its cache");
            };
            let group = heads / kv.max(1);
            if !dim.is_multiple_of(8) {
                return Some("its heads are not multiples of 8 wide");
            }
            // Sums take the place of the keys.
            let sums = 4 * group * dim <= 2 * CHUNK * (dim + 8);
            let fits = sums && group * dim <= OWN && attend_shared(group, dim) <= chip.row_shared();
            if fits { None } else { Some("its heads are too wide for one block") }
        }
        _ => None,
    }
}

/// Shared memory of a block of attention.
fn attend_shared(group: usize, dim: usize) -> usize {
    let line = group.next_multiple_of(4);
    let floats = group * dim + line * CHUNK + 2 * line;
    floats * 4 + 2 * CHUNK * (dim + 8) * 2
}

/// Whether a list over whole rows fits a block: its operations and its registers.
fn list_fits(chip: &Chip, graph: &Graph, nodes: &[NodeId], keep: Option<NodeId>) -> bool {
    let width = list_width(graph, nodes);
    // At most one register a node is alive; reuse makes it fewer, which the lowering counts.
    let alive = Registers::most(graph, nodes, keep);
    2 * nodes.len() < MAX_ROW_OPS && width.saturating_mul(4 * alive) <= chip.row_shared()
}

fn list_width(graph: &Graph, nodes: &[NodeId]) -> usize {
    let widths = nodes.iter().map(|&n| graph.ty(n)).filter(|ty| ty.is_activation());
    widths.map(TensorType::width).max().unwrap_or(0).next_multiple_of(4)
}

/// Spans of a page of each part, stages and bytes of a stage, for parts that share a ring, of which
/// a block has so many.
fn pages(chip: &Chip, parts: &[Layout], rings: usize) -> Option<(Vec<usize>, usize, usize)> {
    let row = parts.iter().map(|l| match l.product() {
        Some(Product::F32) => l.units * 16,
        Some(Product::F16 | Product::Bf16) => l.units * 32,
        _ => l.units * 80,
    });
    let room = chip.stream_shared().checked_sub(row.max()?)?;
    let least = if chip.hopper { 2 } else { PLAIN_STAGES };
    let mut best: Option<(Vec<usize>, usize, usize)> = None;
    // A page of about 4 KiB is long enough for the memory, and many of them keep it busy.
    for target in [4608, 3072, 2304, 1536, 1] {
        let page: Vec<usize> =
            parts.iter().map(|l| (target / l.span_bytes).clamp(1, l.spans)).collect();
        let bytes = parts.iter().zip(&page).map(|(l, &n)| (n * l.span_bytes).min(l.panel_bytes));
        let bytes = bytes.max()?.next_multiple_of(128);
        let fit = room / (rings * bytes);
        let stages = if chip.hopper { fit.min(MAX_STAGES) } else { PLAIN_STAGES.min(fit) };
        let better = best.as_ref().is_none_or(|(_, s, b)| stages * bytes > s * b + s * b / 8);
        if stages >= least && better {
            best = Some((page, stages, bytes));
        }
    }
    best
}

/// Columns that are computed together, and what becomes of them.
pub(super) struct Columns {
    /// Indices of the weights.
    pub parts: Vec<usize>,
    pub len: usize,
    pub layouts: Vec<Layout>,
    /// Nodes of the epilogue, in run order, with slices of whole parts left out.
    pub nodes: Vec<NodeId>,
    /// The value of each part.
    pub values: Vec<Vec<NodeId>>,
    elementwise: bool,
}

impl Columns {
    /// Whether its epilogue is byte code at the end of the product.
    pub(super) fn rides_along(&self) -> bool {
        let ops = self.parts.len() + 2 * self.nodes.len() + self.values.iter().flatten().count();
        self.elementwise
            && self.parts.len() <= 2
            && ops <= MAX_OPS
            && self.parts.len().max(2) + self.nodes.len() <= MAX_REGISTERS
            && self.layouts.iter().all(|l| l.product() == self.layouts[0].product())
    }

    /// Columns of a block of the separate epilogue.
    fn unit(&self, graph: &Graph) -> usize {
        let grain = self.nodes.iter().map(|&n| grain(graph, n)).fold(1, lcm);
        if grain == 1 {
            // Any divisor will do; not too short.
            return (1..=self.len.min(512))
                .rev()
                .find(|d| self.len.is_multiple_of(*d))
                .unwrap_or(1);
        }
        if self.len.is_multiple_of(grain) { grain } else { self.len }
    }
}

/// Columns that an op of an epilogue must see together.
fn grain(graph: &Graph, id: NodeId) -> usize {
    let node = graph.node(id);
    match (&node.op, node.args.get(1)) {
        (Op::RmsNorm(_) | Op::Rope(_), _) => node.ty.last(),
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

/// Sorts an epilogue by the weights that each node's columns come from.
pub(super) fn domains(graph: &Graph, linear: NodeId, epilogue: &[NodeId]) -> Option<Vec<Columns>> {
    let ranges: Vec<(usize, usize)> = weight_ranges(graph, linear).collect();
    let weights = graph.node(linear).args.iter().skip(1);
    let layouts: Option<Vec<Layout>> = weights
        .map(|&w| match tensor_kind(graph.ty(w)) {
            Some(TensorKind::Matrix(layout)) => Some(layout),
            _ => None,
        })
        .collect();
    let layouts = layouts?;
    let mut leader: Vec<usize> = (0..ranges.len()).collect();
    let mut part_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut values: Vec<Vec<NodeId>> = vec![Vec::new(); ranges.len()];
    if ranges.len() == 1 {
        part_of.insert(linear, 0);
        values[0].push(linear);
    }
    let mut nodes: Vec<(NodeId, usize)> = Vec::new();
    for &id in epilogue {
        let node = graph.node(id);
        if let (Op::Slice(s), Some(&arg)) = (&node.op, node.args.first())
            && arg == linear
        {
            let part = ranges.iter().position(|&r| r == (s.start, s.len))?;
            part_of.insert(id, part);
            values[part].push(id);
            continue;
        }
        let args = node.args.iter().map(|&a| origin(graph, a));
        let parts: Vec<usize> = args.filter_map(|a| part_of.get(&a).copied()).collect();
        let &first = parts.first()?;
        for &other in &parts {
            let (from, to) = (leader[other], leader[first]);
            leader.iter_mut().filter(|l| **l == from).for_each(|l| *l = to);
        }
        part_of.insert(id, first);
        nodes.push((id, first));
    }
    let mut out = Vec::new();
    for head in 0..ranges.len() {
        let parts: Vec<usize> = (0..ranges.len()).filter(|&p| leader[p] == head).collect();
        let Some(&first) = parts.first() else { continue };
        let own: Vec<NodeId> =
            nodes.iter().filter(|(_, p)| leader[*p] == head).map(|(n, _)| *n).collect();
        let elementwise =
            own.iter().all(|&n| matches!(graph.node(n).op, Op::Unary(_) | Op::Binary(_)));
        out.push(Columns {
            len: ranges[first].1,
            layouts: parts.iter().map(|&p| layouts[p]).collect(),
            values: parts.iter().map(|&p| values[p].clone()).collect(),
            parts,
            nodes: own,
            elementwise,
        });
    }
    Some(out)
}

/// Blocks that scan a row of logits.
pub(super) fn scan_blocks(chip: &Chip, vocabulary: usize) -> usize {
    vocabulary.div_ceil(256).clamp(1, chip.processors.max(1) as usize)
}

/// The workspace of all groups.
pub(super) fn work(chip: &Chip, graph: &Graph, groups: &[Group], limits: &Limits) -> Option<Work> {
    let mut work = Work::default();
    for group in groups {
        work = work.max(group_work(chip, graph, group, limits)?);
    }
    // Four lists of words, then the sampler.
    let words = limits.rows.checked_mul(3)?.checked_add(limits.outs)?;
    work.state = words.checked_mul(4)?.checked_add(5 * 256)?;
    Some(work)
}

fn group_work(chip: &Chip, graph: &Graph, group: &Group, limits: &Limits) -> Option<Work> {
    let rows = if group.lead == Lead::Outs { limits.outs } else { limits.rows };
    let mut work = Work::default();
    match &group.kind {
        GroupKind::Rows(_) => {}
        GroupKind::Linear { linear, epilogue, .. } => {
            let x = graph.ty(*graph.node(*linear).args.first()?).width();
            if rows == 1 {
                work.x = x.next_multiple_of(4).checked_mul(4)?;
            } else {
                let cols = x.checked_next_multiple_of(TILE_K)?;
                work.split = cols.checked_mul(rows)?.checked_mul(4)?;
            }
            let raw = domains(graph, *linear, epilogue)?;
            let raw = raw.iter().filter(|d| !d.rides_along());
            let columns: usize = raw.map(|d| d.len * d.parts.len()).sum();
            work.raw = columns.checked_mul(rows)?.checked_mul(4)?;
        }
        GroupKind::Attend(id) => {
            let node = graph.node(*id);
            let (&[heads, dim], &[kv, _]) =
                (node.ty.dims.as_slice(), graph.ty(*node.args.get(1)?).dims.as_slice())
            else {
                return None;
            };
            if rows == 1 {
                let chunks = limits.context.div_ceil(CHUNK) + 1;
                work.partial = heads.checked_mul(dim + 2)?.checked_mul(chunks)?.checked_mul(4)?;
            }
            work.arrived = kv.checked_mul(4)?;
        }
        GroupKind::Sample(id) => {
            let vocabulary = graph.ty(*graph.node(*id).args.first()?).width();
            let outs = limits.outs;
            work.adjusted = vocabulary.checked_mul(outs)?.checked_mul(4)?;
            work.best = scan_blocks(chip, vocabulary).checked_mul(outs)?.checked_mul(BEST_BYTES)?;
            work.sampled = outs.checked_mul(4)?;
            work.history = limits.slots.checked_mul(limits.context)?.checked_mul(4)?;
        }
    }
    Some(work)
}

fn unplaced(id: NodeId) -> Error {
    Error::Plan(format!("{id} has no place in this plan"))
}

fn too_large() -> Error {
    Error::Plan("its sizes overflow".to_string())
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| too_large())
}

/// Lowers `plan` without addresses, to see that it can be.
pub(super) fn lower(chip: &Chip, plan: &Plan) -> Result<Program> {
    let graph = plan.graph();
    let work = work(chip, graph, plan.groups(), plan.limits()).ok_or_else(too_large)?;
    let (ropes, _) = ropes(graph, plan.limits().context).ok_or_else(too_large)?;
    let mut tensors = Vec::new();
    for buffer in plan.buffers().iter().filter(|b| b.role == Role::Weight) {
        let node = graph.node(buffer.value);
        let kind = tensor_kind(&node.ty).ok_or_else(|| unplaced(buffer.value))?;
        if let Op::Weight(weight) = &node.op {
            tensors.push(Tensor { name: weight.name.clone(), offset: buffer.offset, kind });
        }
    }
    let tables = graph.nodes().iter().filter(|n| matches!(n.op, Op::Embed(_)));
    let vocabulary = tables.filter_map(|n| graph.ty(*n.args.first()?).dims.first().copied()).min();
    let mut program = Program {
        plan: plan.clone(),
        work,
        tensors,
        ropes,
        launches: 0,
        vocabulary: vocabulary.unwrap_or(usize::MAX),
    };
    program.launches = launches(chip, &program, &Bases::default())?.len();
    Ok(program)
}

/// The launches of a step, with addresses.
pub(super) fn launches(chip: &Chip, program: &Program, bases: &Bases) -> Result<Vec<Launch>> {
    let plan = &program.plan;
    let mut lowering = Lowering {
        chip,
        plan,
        graph: plan.graph(),
        ropes: &program.ropes,
        bases,
        group: 0,
        out: Vec::new(),
    };
    for (i, group) in plan.groups().iter().enumerate() {
        let sampled = lowering.out.last().is_some_and(|l| l.kernel == Kernel::Pick);
        if sampled {
            return Err(Error::Plan("sampling must come last, and once".to_string()));
        }
        lowering.group = i;
        match &group.kind {
            GroupKind::Rows(nodes) => lowering.rows(group.lead, nodes)?,
            GroupKind::Linear { prologue, linear, epilogue } => {
                lowering.linear(group.lead, prologue, *linear, epilogue)?;
            }
            GroupKind::Attend(id) => lowering.attend(*id)?,
            GroupKind::Sample(id) => lowering.sample(*id)?,
        }
    }
    Ok(lowering.out)
}

struct Lowering<'a> {
    chip: &'a Chip,
    plan: &'a Plan,
    graph: &'a Graph,
    ropes: &'a [RopeTable],
    bases: &'a Bases,
    group: usize,
    out: Vec<Launch>,
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

/// Columns of a product: the kernel, the weights and where they are, and what becomes of them.
type Multiplied = (Product, Vec<(Layout, u64)>, Epilogue);

/// A list of row-local operations in the making.
struct List {
    ops: Vec<RowOp>,
    jobs: Vec<Job>,
    width: usize,
    registers: u32,
    blocks: usize,
    table: Matrix,
}

impl List {
    fn new() -> Self {
        let table = Matrix::default();
        List { ops: Vec::new(), jobs: Vec::new(), width: 4, registers: 0, blocks: 0, table }
    }
}

/// The function's number and constant in the kernels.
fn unary_code(kind: UnaryKind) -> Option<(u32, f32)> {
    Some(match kind {
        UnaryKind::Silu => (0, 0.0),
        UnaryKind::Gelu => (1, 0.0),
        UnaryKind::Relu => (2, 0.0),
        UnaryKind::Sigmoid => (3, 0.0),
        UnaryKind::Tanh => (4, 0.0),
        UnaryKind::Scale(c) => (5, c),
        UnaryKind::Softcap(c) => (6, c),
        UnaryKind::GeluErf
        | UnaryKind::GeluQuick
        | UnaryKind::ReluSquared
        | UnaryKind::Shift(_)
        | UnaryKind::Clamp(..) => return None,
    })
}

fn binary_code(kind: BinaryKind) -> Option<u32> {
    match kind {
        BinaryKind::Add => Some(0),
        BinaryKind::Mul => Some(1),
        BinaryKind::Sub | BinaryKind::Div => None,
    }
}

impl Lowering<'_> {
    fn arg(&self, id: NodeId, i: usize) -> Result<NodeId> {
        self.graph.node(id).args.get(i).copied().ok_or_else(|| unplaced(id))
    }

    /// Rows of a step that this lead can have.
    fn most(&self, lead: Lead) -> usize {
        match lead {
            Lead::Outs => self.plan.limits().outs,
            _ => self.plan.limits().rows,
        }
    }

    fn push(
        &mut self,
        kernel: Kernel,
        grid: (u32, u32),
        block: u32,
        shared: usize,
        lead: Lead,
        p: Parameters,
    ) -> Result<()> {
        let shape = Shape { grid, block, shared: count(shared)?, early: self.chip.hopper };
        self.out.push(Launch { kernel, shape, parameters: p, lead, group: self.group });
        Ok(())
    }

    /// Address of a weight or of a cache.
    fn address(&self, id: NodeId) -> Result<u64> {
        let buffer = self.plan.place(id).ok_or_else(|| unplaced(id))?;
        match buffer.role {
            Role::Weight => Ok(self.bases.weights + buffer.offset),
            Role::KvCache => Ok(self.bases.kv + buffer.offset),
            _ => Err(unplaced(id)),
        }
    }

    fn matrix(&self, id: NodeId) -> Result<(Layout, u64)> {
        match tensor_kind(self.graph.ty(id)) {
            Some(TensorKind::Matrix(layout)) => Ok((layout, self.address(id)?)),
            _ => Err(unplaced(id)),
        }
    }

    /// The rows of a value that leaves its group.
    fn value(&self, id: NodeId) -> Result<Operand> {
        let buffer = self.plan.place(id).ok_or_else(|| unplaced(id))?;
        let base = match buffer.role {
            Role::Scratch => self.bases.scratch,
            Role::Logits => self.bases.logits,
            _ => return Err(unplaced(id)),
        };
        let n = count(self.graph.ty(buffer.value).width())?;
        Ok(Operand { at: base + buffer.offset, place: abi::ROWS, n })
    }

    /// Where the value of `id` must be put, if it has memory of its own.
    fn put(&self, id: NodeId) -> Result<Option<Operand>> {
        let owns = self.plan.place(id).is_some_and(|b| b.value == id);
        owns.then(|| self.value(id)).transpose()
    }

    fn operand(&self, known: &BTreeMap<NodeId, Operand>, id: NodeId) -> Result<Operand> {
        let id = origin(self.graph, id);
        if let Some(&operand) = known.get(&id) {
            return Ok(operand);
        }
        match &self.graph.node(id).op {
            Op::Weight(_) => Ok(Operand { at: self.address(id)?, place: abi::VECTOR, n: 0 }),
            _ => self.value(id),
        }
    }

    /// Appends operations for `nodes` over `len` columns (whole rows if that is 0). `known` are
    /// values that are elsewhere than in registers, and `keep` is read afterwards. Returns where each value is.
    fn list(
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
    fn push_list(&mut self, lead: Lead, list: List) -> Result<()> {
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
    fn whole(list: &mut List) -> Result<()> {
        let job = Job { first_block: 0, unit: 0, op: 0, ops: count(list.ops.len())? };
        list.jobs.push(job);
        list.blocks = 1;
        Ok(())
    }

    fn rows(&mut self, lead: Lead, nodes: &[NodeId]) -> Result<()> {
        let mut list = List::new();
        self.list(&mut list, nodes, 0, BTreeMap::new(), None)?;
        Self::whole(&mut list)?;
        self.push_list(lead, list)
    }

    fn linear(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        linear: NodeId,
        epilogue: &[NodeId],
    ) -> Result<()> {
        let one = self.most(lead) == 1;
        let x = origin(self.graph, self.arg(linear, 0)?);
        let cols = self.graph.ty(x).width();
        // The row to multiply, and the norm that is done on the way.
        let mut row = Operand::default();
        let mut norm = (0, 0.0);
        let single = match prologue {
            [id] if one && self.put(*id)?.is_none() => match &self.graph.node(*id).op {
                Op::RmsNorm(op) if self.graph.ty(*id).dims.len() == 1 => {
                    norm = (self.address(self.arg(*id, 1)?)?, op.eps);
                    row = self.value(origin(self.graph, self.arg(*id, 0)?))?;
                    true
                }
                _ => false,
            },
            _ => false,
        };
        if prologue.is_empty() && one {
            row = self.value(x)?;
        } else if !single {
            let mut list = List::new();
            let known = self.list(&mut list, prologue, 0, BTreeMap::new(), Some(x))?;
            let a = self.operand(&known, x)?;
            let mut op = RowOp { what: R_PUT, len: count(cols)?, a, ..RowOp::default() };
            if one {
                row = Operand { at: self.bases.x, place: abi::ROWS, n: count(cols)? };
                op.b = row;
            } else {
                op.what = R_SPLIT;
                op.n0 = count(cols.next_multiple_of(TILE_K))?;
                (op.aux, op.aux2) = (self.bases.high, self.bases.low);
            }
            list.ops.push(op);
            Self::whole(&mut list)?;
            self.push_list(lead, list)?;
        }

        let domains = domains(self.graph, linear, epilogue).ok_or_else(|| unplaced(linear))?;
        let ranges: Vec<(usize, usize)> = weight_ranges(self.graph, linear).collect();
        let whole = self.put(linear)?;
        let raw: usize =
            domains.iter().filter(|d| !d.rides_along()).map(|d| d.len * d.parts.len()).sum();
        let raw_stride = count(raw)?;
        let mut raw_at = self.bases.raw;
        // What is multiplied: parts with their epilogue, by kernel.
        let mut products: Vec<Multiplied> = Vec::new();
        let mut later: Vec<(Columns, Vec<Operand>)> = Vec::new();
        for d in domains {
            let mut parts = Vec::new();
            for &p in &d.parts {
                parts.push(self.matrix(self.arg(linear, p + 1)?)?);
            }
            // Where each part of a merged product goes as such.
            let wholes = d
                .parts
                .iter()
                .map(|&p| whole.map(|w| Operand { at: w.at + ranges[p].0 as u64 * 4, ..w }));
            let wholes: Vec<Option<Operand>> = wholes.collect();
            if d.rides_along() {
                let (e, swap) = self.epilogue(&d, &wholes)?;
                if swap {
                    parts.reverse();
                }
                let product = d.layouts[0].product().ok_or_else(|| unplaced(linear))?;
                products.push((product, parts, e));
                continue;
            }
            let mut operands = Vec::new();
            for part in parts {
                let o = Operand { at: raw_at, place: abi::ROWS, n: raw_stride };
                raw_at += part.0.rows as u64 * 4;
                let e = Epilogue { form: STORE, out: o.at, out_stride: o.n, ..Epilogue::default() };
                let product = part.0.product().ok_or_else(|| unplaced(linear))?;
                products.push((product, vec![part], e));
                operands.push(o);
            }
            later.push((d, operands));
        }
        products.sort_by_key(|p| p.0);
        for same in products.chunk_by(|a, b| a.0 == b.0) {
            for some in same.chunks(MAX_DOMAINS) {
                self.product(lead, one, cols, row, norm, some)?;
            }
        }
        self.finish(lead, later, whole, &ranges)
    }

    /// Byte code for what becomes of a domain's columns, or a straight line where there is one, and
    /// whether its two parts change places.
    fn epilogue(&self, d: &Columns, wholes: &[Option<Operand>]) -> Result<(Epilogue, bool)> {
        let mut ops: Vec<ElementOp> = Vec::new();
        let mut known: BTreeMap<NodeId, Operand> = BTreeMap::new();
        let put = |a, b| ElementOp { what: PUT, a, b, ..ElementOp::default() };
        for (i, values) in d.values.iter().enumerate() {
            let register = Operand::register(count(i)?);
            if let Some(Some(b)) = wholes.get(i) {
                ops.push(put(register, *b));
            }
            for &id in values {
                known.insert(id, register);
                if let (Some(b), Op::Slice(_)) = (self.put(id)?, &self.graph.node(id).op) {
                    ops.push(put(register, b));
                }
            }
        }
        // The kernel puts a value into both of the first two registers.
        for (next, &id) in (2..).zip(&d.nodes) {
            let node = self.graph.node(id);
            let a = self.operand(&known, self.arg(id, 0)?)?;
            let mut op = ElementOp { to: next, a, ..ElementOp::default() };
            match &node.op {
                Op::Unary(unary) => {
                    op.what = UNARY;
                    (op.kind, op.c) = unary_code(unary.kind).ok_or_else(|| unplaced(id))?;
                }
                Op::Binary(binary) => {
                    op.what = BINARY;
                    op.kind = binary_code(binary.kind).ok_or_else(|| unplaced(id))?;
                    op.b = self.operand(&known, self.arg(id, 1)?)?;
                }
                _ => return Err(unplaced(id)),
            }
            ops.push(op);
            known.insert(id, Operand::register(next));
            if let Some(b) = self.put(id)? {
                ops.push(put(Operand::register(next), b));
            }
        }
        let register = |o: &Operand, n| o.place == abi::REGISTER && o.n == n;
        let mut e = Epilogue { form: CODE, count: count(ops.len())?, ..Epilogue::default() };
        let mut swap = false;
        match ops.as_slice() {
            [p] if p.what == PUT && register(&p.a, 0) && d.parts.len() == 1 => {
                (e.form, e.out, e.out_stride) = (STORE, p.b.at, p.b.n);
            }
            [add, p]
                if (add.what, add.kind, p.what) == (BINARY, 0, PUT)
                    && d.parts.len() == 1
                    && register(&add.a, 0) != register(&add.b, 0) =>
            {
                (e.form, e.out, e.out_stride) = (RESIDUAL, p.b.at, p.b.n);
                e.residual = if register(&add.a, 0) { add.b } else { add.a };
            }
            [act, mul, p]
                if (act.what, mul.what, mul.kind, p.what) == (UNARY, BINARY, 1, PUT)
                    && d.parts.len() == 2
                    && act.a.place == abi::REGISTER
                    && act.a.n < 2
                    && (register(&mul.a, 2) && register(&mul.b, 1 - act.a.n)
                        || register(&mul.b, 2) && register(&mul.a, 1 - act.a.n)) =>
            {
                (e.form, e.kind, e.c) = (GATED, act.kind, act.c);
                (e.out, e.out_stride) = (p.b.at, p.b.n);
                swap = act.a.n == 1;
            }
            _ => {
                if ops.len() > MAX_OPS {
                    return Err(Error::Plan("its epilogue is too long".to_string()));
                }
                e.ops.iter_mut().zip(&ops).for_each(|(to, from)| *to = *from);
            }
        }
        Ok((e, swap))
    }

    /// One launch of a product.
    fn product(
        &mut self,
        lead: Lead,
        one: bool,
        cols: usize,
        row: Operand,
        norm: (u64, f32),
        domains: &[Multiplied],
    ) -> Result<()> {
        let Some((product, ..)) = domains.first() else { return Ok(()) };
        let layouts: Vec<Layout> = domains.iter().flat_map(|d| d.1.iter().map(|p| p.0)).collect();
        let panels: usize = domains.iter().map(|d| d.1.first().map_or(0, |p| p.0.panels)).sum();
        // Where a block has fewer panels than warps, several warps share one.
        let grid = panels.clamp(1, self.chip.processors.max(1) as usize);
        let per_block = panels.div_ceil(grid);
        let most = layouts.iter().map(|l| l.spans).min().unwrap_or(1);
        let fits = |s: &usize| per_block * s <= WARPS && *s <= most;
        let slices = [8usize, 4, 2].into_iter().find(fits).unwrap_or(1);
        let rings = (per_block * slices).min(WARPS);
        let (page, stages, stage_bytes) = pages(self.chip, &layouts, rings)
            .ok_or_else(|| Error::Plan("its rows are too wide".to_string()))?;
        let mut part = [Matrix::default(); 2 * MAX_DOMAINS];
        let mut domain = [Domain::default(); MAX_DOMAINS];
        let mut first = [0; MAX_DOMAINS + 1];
        let (mut parts, mut end) = (0, 0);
        for (i, (_, matrices, epilogue)) in domains.iter().enumerate() {
            let d = &mut domain[i];
            d.parts = count(matrices.len())?;
            d.epilogue = *epilogue;
            for (j, (layout, at)) in matrices.iter().enumerate() {
                part[parts] = layout.matrix(*at);
                (d.part[j], d.page[j]) = (count(parts)?, count(page[parts])?);
                parts += 1;
            }
            let outputs = matrices.first().map_or(0, |m| m.0.rows);
            let step = if one { PANEL } else { TILE_N / matrices.len() };
            first[i] = end;
            end += count(outputs.div_ceil(step))?;
        }
        for f in &mut first[domains.len()..] {
            *f = end;
        }
        let domains = count(domains.len())?;
        if one {
            let row_bytes = match product {
                Product::F32 => part[0].units as usize * 16,
                Product::F16 | Product::Bf16 => part[0].units as usize * 32,
                _ => part[0].units as usize * 80,
            };
            let shared = rings * stages * stage_bytes + row_bytes;
            let p = Gemv {
                x: row.at,
                norm: norm.0,
                eps: norm.1,
                cols: count(cols)?,
                domains,
                stages: count(stages)?,
                stage_bytes: count(stage_bytes)?,
                share: slices.ilog2(),
                rings: count(rings)?,
                unused: 0,
                first,
                domain,
                part,
            };
            let grid = (count(grid)?, 1);
            let p = Parameters::Gemv(Box::new(p));
            return self.push(Kernel::Gemv(*product), grid, 256, shared, lead, p);
        }
        let p = Gemm {
            high: self.bases.high,
            low: self.bases.low,
            rows: 0,
            stride: count(cols.next_multiple_of(TILE_K))?,
            domains,
            unused: 0,
            first,
            domain,
            part,
        };
        let p = Parameters::Gemm(Box::new(p));
        self.push(Kernel::Gemm(*product), (1, end), 256, gemm_shared(*product), lead, p)
    }

    /// Launches the epilogues that must see whole heads.
    fn finish(
        &mut self,
        lead: Lead,
        domains: Vec<(Columns, Vec<Operand>)>,
        whole: Option<Operand>,
        ranges: &[(usize, usize)],
    ) -> Result<()> {
        let mut list = List::new();
        for (d, operands) in domains {
            let unit = d.unit(self.graph);
            let (mut fresh, mut known) = (List::new(), BTreeMap::new());
            let put = |a, b| -> Result<RowOp> {
                Ok(RowOp { what: R_PUT, len: count(unit)?, a, b, ..RowOp::default() })
            };
            for (i, values) in d.values.iter().enumerate() {
                let a = operands[i];
                if let Some(w) = whole {
                    let at = w.at + ranges[d.parts[i]].0 as u64 * 4;
                    fresh.ops.push(put(a, Operand { at, ..w })?);
                }
                for &id in values {
                    known.insert(id, a);
                    if let (Some(b), Op::Slice(_)) = (self.put(id)?, &self.graph.node(id).op) {
                        fresh.ops.push(put(a, b)?);
                    }
                }
            }
            self.list(&mut fresh, &d.nodes, unit, known, None)?;
            let full = list.ops.len() + fresh.ops.len() > MAX_ROW_OPS
                || list.jobs.len() == MAX_JOBS
                || list.width.max(fresh.width) * list.registers.max(fresh.registers) as usize * 4
                    > self.chip.row_shared();
            if full && !list.jobs.is_empty() {
                self.push_list(lead, std::mem::replace(&mut list, List::new()))?;
            }
            list.jobs.push(Job {
                first_block: count(list.blocks)?,
                unit: count(unit)?,
                op: count(list.ops.len())?,
                ops: count(fresh.ops.len())?,
            });
            list.ops.append(&mut fresh.ops);
            list.width = list.width.max(fresh.width);
            list.registers = list.registers.max(fresh.registers);
            list.blocks += d.len / unit;
        }
        if list.jobs.is_empty() { Ok(()) } else { self.push_list(lead, list) }
    }

    fn attend(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let Op::Attend(op) = &node.op else { return Err(unplaced(id)) };
        let cache = |i: usize| {
            let cache = origin(self.graph, self.arg(id, i)?);
            match &self.graph.node(cache).op {
                Op::Cache(c) => Ok((self.address(cache)?, c.part)),
                _ => Err(unplaced(cache)),
            }
        };
        let ((keys, CachePart::Key), (values, CachePart::Value)) = (cache(1)?, cache(2)?) else {
            return Err(Error::Plan("attention wants a cache of keys and one of values".into()));
        };
        let (&[heads, dim], &[kv, _]) =
            (node.ty.dims.as_slice(), self.graph.ty(self.arg(id, 1)?).dims.as_slice())
        else {
            return Err(unplaced(id));
        };
        let (q, out) = (self.value(origin(self.graph, self.arg(id, 0)?))?, self.value(id)?);
        let context = self.plan.limits().context;
        let split = self.most(node.ty.lead) == 1;
        let chunks = context.div_ceil(CHUNK) + 1;
        let p = Attend {
            q: q.at,
            out: out.at,
            keys,
            values,
            positions: self.bases.positions,
            slots: self.bases.slots,
            partial: self.bases.partial,
            arrived: self.bases.arrived,
            q_stride: q.n,
            out_stride: out.n,
            heads: count(heads)?,
            kv_heads: count(kv)?,
            dim: count(dim)?,
            context: count(context)?,
            // A window past the context sees everything.
            window: op.window.map_or(Ok(0), |w| count(w.min(context)))?,
            chunks: count(chunks)?,
            scale: op.scale,
            softcap: op.softcap.unwrap_or(0.0),
            split: u32::from(split),
            unused: 0,
        };
        let spread = self.chip.processors * 2;
        let grid =
            if split { (count(kv * chunks)?.min(spread).max(1), 1) } else { (count(kv)?, 1) };
        let shared = attend_shared(heads / kv, dim);
        self.push(Kernel::Attend, grid, 256, shared, node.ty.lead, Parameters::Attend(p))
    }

    fn sample(&mut self, id: NodeId) -> Result<()> {
        let logits = origin(self.graph, self.arg(id, 0)?);
        let rows = self.value(logits)?;
        let vocabulary = self.graph.ty(logits).width();
        let blocks = scan_blocks(self.chip, vocabulary);
        let p = Sample {
            logits: rows.at,
            adjusted: self.bases.adjusted,
            best: self.bases.best,
            tokens: self.bases.tokens,
            positions: self.bases.positions,
            slots: self.bases.slots,
            outs: self.bases.outs,
            history: self.bases.history,
            sampled: self.bases.sampled,
            sampler: self.bases.sampler,
            result: self.bases.result,
            stride: rows.n,
            vocabulary: count(vocabulary)?,
            rows: 1,
            blocks: count(blocks)?,
            context: count(self.plan.limits().context)?,
            advance: 1,
        };
        let seen = vocabulary.div_ceil(blocks).div_ceil(32) * 4;
        let grid = (count(blocks)?, 1);
        self.push(Kernel::Scan, grid, 256, seen, Lead::Outs, Parameters::Sample(p))?;
        self.push(Kernel::Pick, (1, 1), 1024, 0, Lead::Outs, Parameters::Sample(p))
    }
}

/// Shared memory of a product with many rows.
pub(super) fn gemm_shared(product: Product) -> usize {
    let (line, planes) = (40 * 2, if product == Product::Bf16 { 1 } else { 2 });
    3 * (2 * TILE_M * line + planes * TILE_N * line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::CudaTarget;
    use super::*;
    use crate::graph::arch;

    #[test]
    fn launches_fit_every_chip_that_there_are_kernels_for() {
        let model = crate::embedded::tiny().unwrap();
        let graph = arch::build(&model).unwrap();
        for capability in [80, 86, 89, 90] {
            let target = CudaTarget::of(capability).unwrap();
            for rows in [1, 512] {
                let limits = Limits { rows, outs: 1, slots: 1, context: 2048 };
                let plan = Plan::new(&graph, &target, limits).unwrap();
                let program = target.lower(&plan).unwrap();
                let made = launches(&target.0, &program, &Bases::default()).unwrap();
                assert_eq!(made.len(), program.launches());
                for launch in made {
                    // 3.5 KiB and more are the kernels' own.
                    assert!(launch.shape.shared as usize + (4 << 10) <= target.0.block_shared);
                    assert_eq!(launch.shape.early, capability == 90, "no early start before sm_90");
                }
            }
        }
        assert!(CudaTarget::of(75).is_err());
    }

    #[test]
    fn heads_that_no_block_holds_are_refused_while_planning() {
        let mut w = crate::graph::MemoryWeights::new();
        w.insert("x.weight", &[4, 36], &[0.0; 144]).unwrap();
        let mut b = crate::graph::Builder::new(&w);
        let x = b.embed("x").unwrap();
        let q = b.heads(x, 3).unwrap();
        let options =
            crate::graph::AttendOptions { layer: 0, scale: 1.0, window: None, softcap: None };
        let y = b.attend(q, q, q, options).unwrap();
        b.output(y);
        let limits = Limits { rows: 1, outs: 1, slots: 1, context: 8 };
        let target = CudaTarget::of(90).unwrap();
        let refused = Plan::new(&b.finish(), &target, limits).unwrap_err().to_string();
        assert!(refused.contains("attend") && refused.contains("multiples of 8"), "{refused}");
    }
}
