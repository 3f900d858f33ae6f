//! From a plan to a [`Program`]: offsets looked up, columns shared out.
//!
//! | file | holds |
//! |---|---|
//! | `memory` | what a plan takes of memory |
//! | `refuse` | which groups cannot run |
//! | `rows` | lists of operations on rows |
//! | `linear` | products and experts, their columns sorted and shared out |

mod linear;
mod memory;
mod refuse;
mod rows;

pub(super) use linear::linear_precision;
pub(super) use memory::{kv_layout, tensor_kind, work};
pub(super) use refuse::refuses;

use super::CpuBackend;
use super::program::{Attend, Place, Program, Rope, Rows, Step, Tensor, TensorKind};
use super::repack::Layout;
use crate::graph::op::InputKind;
use crate::graph::{DType, Graph, NodeId, Op};
use crate::plan::{Group, GroupKind, Plan, Role, origin};
use crate::{Error, Result};
use memory::attention;
use rows::Registers;

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
