//! From a plan to launches: addresses looked up, shapes chosen, epilogues put into byte code.
//!
//! | file | holds |
//! |---|---|
//! | `memory` | what a plan takes of the device's memory |
//! | `refuse` | which groups have no launch |
//! | `rows`, `registers` | lists of row-local operations, and the values in them |
//! | `columns`, `linear`, `product` | a product: what becomes of its columns, its launches |
//! | `tiles`, `split` | of many rows: how it is dealt out over blocks, and how rows come to it |
//! | `experts`, `picked`, `gated` | a product with the weights that rows picked; of many rows, sorted by those; two with a gate |
//! | `route` | which those are, of one row |
//! | `attend`, `sample` | attention, of one and of a few rows with the making of heads; a token from its row of logits |
//! | `chain`, `several`, `pace` | launches over one row, and products over a few, as one kernel; how fast it asks for weights |

mod attend;
mod attend_few;
mod attend_one;
mod chain;
mod columns;
mod experts;
mod gated;
mod integers;
mod linear;
mod memory;
mod pace;
mod picked;
mod places;
mod product;
mod refuse;
mod registers;
mod route;
mod rows;
mod sample;
mod several;
mod split;
mod tiles;

pub(super) use attend::set_buffers;
pub(super) use chain::table;
use memory::scale_offset;
pub(super) use memory::{cache_bytes, ropes, tensor_kind, work};
pub(super) use picked::set_picks;
use places::Places;
pub(super) use refuse::refuses;
pub(super) use tiles::{gemm_shared, set_tile};

use super::abi::{self, Heads, Operand};
use super::driver::Shape;
use super::layout::Layout;
use super::program::{Bases, Kernel, Launch, Parameters, Program, RopeTable, Tensor, TensorKind};
use crate::graph::op::InputKind;
use crate::graph::{BinaryKind, DType, Graph, Lead, NodeId, Op, UnaryKind};
use crate::plan::{GroupKind, Plan, Role, origin};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What of a device decides about launches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Chip {
    pub processors: u32,
    /// Cycles in which the memory's pins carry a KiB for each of them; 0 where nobody says.
    pub kib_cycles: u32,
    /// Shared memory that a block may have, and that a multiprocessor has.
    pub block_shared: usize,
    pub processor_shared: usize,
    /// Whether it has bulk copies and programmatic launches.
    pub hopper: bool,
}

impl Chip {
    /// Shared memory of a streaming product: where kernels overlap, two must fit. Not a half: what is
    /// asked for ahead of an attention's successor holds up the attention's end.
    fn stream_shared(&self) -> usize {
        self.shared_of(3)
    }

    /// Shared memory of attention of one row.
    fn attend_shared(&self) -> usize {
        self.shared_of(2)
    }

    fn shared_of(&self, parts: usize) -> usize {
        // What the system and the kernel's own variables take.
        let taken = 18 << 10;
        let part = if self.hopper { self.processor_shared / parts } else { self.block_shared };
        part.min(self.block_shared).saturating_sub(taken)
    }

    /// Shared memory of a block that leaves room for another.
    fn half_shared(&self) -> usize {
        (self.processor_shared / 2).saturating_sub(3 << 10).min(self.row_shared())
    }

    fn row_shared(&self) -> usize {
        self.block_shared.saturating_sub(4 << 10)
    }
}

fn unplaced(id: NodeId) -> Error {
    Error::Plan(format!("{id} has no place in this plan"))
}

fn too_large() -> Error {
    Error::Plan("its sizes overflow".to_string())
}

/// Whether the value is one of the graph's.
fn is_output(graph: &Graph, value: NodeId) -> bool {
    graph.outputs().iter().any(|&o| origin(graph, o) == value)
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
    let vocabulary = table_rows(graph, InputKind::Tokens);
    let context = plan.limits().context;
    if let Some(positions) = table_rows(graph, InputKind::Positions).filter(|&n| n < context) {
        let what = format!("a context of {context}, but the model knows {positions} positions");
        return Err(Error::Plan(what));
    }
    let mut program = Program {
        plan: plan.clone(),
        work,
        tensors,
        ropes,
        launches: 0,
        vocabulary: vocabulary.unwrap_or(usize::MAX),
    };
    program.launches = launches(chip, &program, &Bases::unknown(&work))?.len();
    Ok(program)
}

/// Rows of the shortest table that such an input picks from.
fn table_rows(graph: &Graph, kind: InputKind) -> Option<usize> {
    let names = |id: NodeId| matches!(&graph.node(id).op, Op::Input(i) if i.kind == kind);
    let embeds = graph.nodes().iter().filter(|n| matches!(n.op, Op::Embed(_)));
    let tables = embeds.filter(|n| n.args.get(1).is_some_and(|&ids| names(ids)));
    tables.filter_map(|n| graph.ty(*n.args.first()?).dims.first().copied()).min()
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
        places: Places::default(),
        out: Vec::new(),
        heads: None,
        split_at: bases.high,
        sorted: None,
        several: bases.next != 0 && plan.limits().rows > 1,
    };
    if bases.next != 0 {
        let places = Places::of(chip, plan.graph(), plan.groups(), plan.limits());
        lowering.places = places.ok_or_else(too_large)?;
    }
    for (i, group) in plan.groups().iter().enumerate() {
        let sampled = lowering.out.last().is_some_and(|l| l.kernel == Kernel::Pick);
        if sampled {
            return Err(Error::Plan("sampling must come last, and once".to_string()));
        }
        lowering.group = i;
        match &group.kind {
            GroupKind::Rows(nodes) => lowering.rows(group.lead, nodes)?,
            GroupKind::Linear { prologue, linear, .. }
                if matches!(lowering.graph.node(*linear).op, Op::Experts(_)) =>
            {
                lowering.experts(group.lead, prologue, *linear)?;
            }
            GroupKind::Linear { prologue, linear, epilogue } => {
                lowering.linear(group.lead, prologue, *linear, epilogue)?;
            }
            GroupKind::Attend(id) => lowering.attend(*id)?,
            GroupKind::Sample(id) => lowering.sample(*id)?,
        }
    }
    match lowering.several {
        true => several::gather(chip, bases, lowering.out),
        false if bases.next != 0 => chain::gather(chip, bases, &lowering.places, lowering.out),
        false => Ok(lowering.out),
    }
}

struct Lowering<'a> {
    chip: &'a Chip,
    plan: &'a Plan,
    graph: &'a Graph,
    ropes: &'a [RopeTable],
    bases: &'a Bases,
    group: usize,
    places: Places,
    out: Vec<Launch>,
    /// What the next group, an attention, does to its heads itself.
    heads: Option<[Heads; 3]>,
    /// Where the split rows of the last product are.
    split_at: u64,
    /// By which picks, of how many experts, rows are sorted.
    sorted: Option<(NodeId, usize)>,
    /// Whether there are no more rows than a chain of products takes.
    several: bool,
}

/// The function's number and constants in the kernels.
fn unary_code(kind: UnaryKind) -> (u32, f32, f32) {
    match kind {
        UnaryKind::Silu => (0, 0.0, 0.0),
        UnaryKind::Gelu => (1, 0.0, 0.0),
        UnaryKind::Relu => (2, 0.0, 0.0),
        UnaryKind::Sigmoid => (3, 0.0, 0.0),
        UnaryKind::Tanh => (4, 0.0, 0.0),
        UnaryKind::Scale(c) => (5, c, 0.0),
        UnaryKind::Softcap(c) => (6, c, 0.0),
        UnaryKind::GeluErf => (7, 0.0, 0.0),
        UnaryKind::GeluQuick => (8, 0.0, 0.0),
        UnaryKind::ReluSquared => (9, 0.0, 0.0),
        UnaryKind::Shift(c) => (10, c, 0.0),
        UnaryKind::Clamp(low, high) => (11, low, high),
        UnaryKind::Exp => (12, 0.0, 0.0),
        UnaryKind::Softplus => (13, 0.0, 0.0),
        UnaryKind::Over(c) => (14, c, 0.0),
    }
}

fn binary_code(kind: BinaryKind) -> u32 {
    match kind {
        BinaryKind::Add => 0,
        BinaryKind::Mul => 1,
        BinaryKind::Sub => 2,
        BinaryKind::Div => 3,
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

    /// Whether it is one, or as few as a chain of products takes.
    fn few(&self, lead: Lead) -> bool {
        self.most(lead) == 1 || self.several
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
        let (mut grid, mut shared, mut p) = (grid, shared, p);
        if self.chip.hopper && self.plan.limits().rows == 1 {
            // Kernels that overlap share multiprocessors evenly only if each has one block on every
            // one of them, and if no three blocks fit: where one kernel leaves a gap, the next puts
            // two blocks, and all that follow are uneven.
            grid.0 = self.chip.processors;
            shared = shared.max(self.chip.processor_shared / 3);
        }
        if let Parameters::Gemv(p) = &mut p {
            p.deal(grid.0);
        }
        let shared = count(shared)?;
        let early = self.chip.hopper;
        let shape = Shape { grid, cluster: 1, block, shared, early, together: false };
        self.out.push(Launch { kernel, tile: 0, shape, parameters: p, lead, group: self.group });
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

    /// Address of the scales of a cache; 0 for one that has none.
    fn scales(&self, id: NodeId) -> Result<u64> {
        let ty = self.graph.ty(id);
        if ty.dtype != DType::Q8_0 {
            return Ok(0);
        }
        let offset = scale_offset(ty, self.plan.limits()).ok_or_else(too_large)?;
        Ok(self.address(id)? + offset as u64)
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
        let own = self.places.value(buffer.value).map(|at| self.bases.fresh + at);
        Ok(Operand { at: own.unwrap_or(base + buffer.offset), place: abi::ROWS, n })
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::CudaTarget;
    use super::*;
    use crate::graph::{Builder, arch};
    use crate::model::Format;
    use crate::plan::Limits;

    /// The launches of a graph on a chip, in memory that `place` says more of; and where that is.
    pub(super) fn lowered(
        graph: &Graph,
        capability: u32,
        limits: Limits,
        place: impl FnOnce(Bases) -> Bases,
    ) -> (Bases, Vec<Launch>) {
        let target = CudaTarget::of(capability).unwrap();
        let program = target.lower(&Plan::new(graph, &target, limits).unwrap()).unwrap();
        let bases = place(Bases::unknown(&program.work));
        let made = launches(&target.0, &program, &bases).unwrap();
        (bases, made)
    }

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
                let bases = Bases::unknown(&program.work);
                let made = launches(&target.0, &program, &bases).unwrap();
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

    #[test]
    fn weights_that_take_their_rows_in_different_orders_are_no_product() {
        let mut w = crate::graph::MemoryWeights::new();
        w.insert("x.weight", &[4, 32], &[0.0; 128]).unwrap();
        for (name, format) in [("a", Format::Q8_0), ("b", Format::Q8_0), ("c", Format::BF16)] {
            let bytes = vec![0; format.row_bytes(32).unwrap() * 8];
            w.insert_bytes(&format!("{name}.weight"), format, &[8, 32], bytes).unwrap();
        }
        let target = CudaTarget::of(90).unwrap();
        let limits = Limits { rows: 8, outs: 1, slots: 1, context: 8 };
        let plan = |names: [&str; 2]| {
            let mut b = Builder::new(&w);
            let x = b.embed("x").unwrap();
            let args = names.map(|name| b.linear(x, name).unwrap());
            let mut graph = b.finish();
            let weights = args.map(|y| graph.node(y).args[1]);
            let (op, origin) = (graph.node(args[0]).op.clone(), graph.node(args[0]).origin.clone());
            let both = graph
                .push(op, [x, weights[0], weights[1]].as_slice().into(), None, origin)
                .unwrap();
            graph.mark_output(both);
            Plan::new(&graph, &target, limits)
        };
        assert!(plan(["a", "b"]).is_ok());
        let refused = plan(["a", "c"]).unwrap_err().to_string();
        assert!(refused.contains("another order"), "{refused}");
    }
}
