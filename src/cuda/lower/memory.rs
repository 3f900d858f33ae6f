//! What a plan takes of the device's memory: weights, caches, tables, and the workspace that its
//! groups share.

use super::Chip;
use super::attend::shares;
use super::attend_one::one_work;
use super::columns::{domains, raw};
use super::experts::experts_work;
use super::picked::Picked;
use super::places::Places;
use super::sample::scan_blocks;
use super::tiles::{split_size, squares_size, sums_size};
use crate::cuda::abi::{BEST_BYTES, CHUNK, LINK_BYTES};
use crate::cuda::layout::Layout;
use crate::cuda::program::{RopeTable, TensorKind, Work};
use crate::graph::{DType, Graph, Lead, Op, TensorType};
use crate::plan::{Group, GroupKind, Limits};

/// How a weight of this type is kept.
pub(in crate::cuda) fn tensor_kind(ty: &TensorType) -> Option<TensorKind> {
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
    pub(in crate::cuda) fn bytes(&self) -> usize {
        match self {
            TensorKind::Matrix(layout) => layout.bytes(),
            TensorKind::Experts(layout, count) => layout.bytes().saturating_mul(*count),
            TensorKind::Vector(len) => len.saturating_mul(4),
        }
    }
}

/// Bytes of a cache: `[slots][heads][positions][dim]` of f16 or of 8-bit codes, and then the scales
/// of those.
pub(in crate::cuda) fn cache_bytes(ty: &TensorType, limits: &Limits) -> Option<usize> {
    let positions = limits.slots.checked_mul(limits.context)?;
    match ty.dtype {
        DType::F16 => ty.width().checked_mul(2)?.checked_mul(positions),
        DType::Q8_0 => {
            let heads = ty.width().checked_div(ty.last())?;
            let scales = heads.checked_mul(ty.last().div_ceil(32))?.checked_mul(2)?;
            scale_offset(ty, limits)?.checked_add(scales.checked_mul(positions)?)
        }
        _ => None,
    }
}

/// Where the scales of a cache of 8-bit codes are in it.
pub(super) fn scale_offset(ty: &TensorType, limits: &Limits) -> Option<usize> {
    let positions = limits.slots.checked_mul(limits.context)?;
    ty.width().checked_mul(positions)?.checked_next_multiple_of(64)
}

/// Tables of all rotations, in the order they occur.
pub(in crate::cuda) fn ropes(graph: &Graph, context: usize) -> Option<(Vec<RopeTable>, usize)> {
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

/// The workspace of all groups.
pub(in crate::cuda) fn work(
    chip: &Chip,
    graph: &Graph,
    groups: &[Group],
    limits: &Limits,
) -> Option<Work> {
    let mut work = Work::default();
    for group in groups {
        work = work.max(group_work(chip, graph, group, limits)?);
    }
    // Four lists of words, then the sampler.
    let words = limits.rows.checked_mul(3)?.checked_add(limits.outs)?;
    work.state = words.checked_mul(4)?.checked_add(5 * 256)?;
    let places = Places::of(chip, graph, groups, limits)?;
    let (fresh, links) = if limits.rows == 1 {
        (&mut work.fresh, &mut work.links)
    } else {
        (&mut work.several, &mut work.several_links)
    };
    *fresh = places.bytes.checked_mul(2)?;
    *links = places.links.checked_mul(2 * LINK_BYTES)?;
    Some(work)
}

/// Split rows, and what stands beside them.
fn split_work(chip: &Chip, cols: usize, rows: usize) -> Option<usize> {
    let (cols, rows) = split_size(chip, cols, rows)?;
    // On sm_90 in turn: who leaves rows for a product reads those for its own.
    let turns = if chip.hopper { 2 } else { 1 };
    let split = cols.checked_mul(rows)?.checked_mul(4)?;
    let beside = match chip.hopper {
        true => sums_size(cols, rows).checked_add(squares_size(cols, rows))?,
        false => 0,
    };
    split.checked_add(beside)?.checked_mul(turns)
}

fn group_work(chip: &Chip, graph: &Graph, group: &Group, limits: &Limits) -> Option<Work> {
    let rows = if group.lead == Lead::Outs { limits.outs } else { limits.rows };
    let mut work = Work::default();
    match &group.kind {
        GroupKind::Rows(_) => {}
        GroupKind::Linear { linear, .. } if matches!(graph.node(*linear).op, Op::Experts(_)) => {
            work.x = experts_work(graph, *linear, rows)?.1;
            if let Some(picked) = Picked::of(chip, graph, *linear, rows) {
                let x = graph.ty(*graph.node(*linear).args.first()?).last();
                work.split = split_work(chip, x, picked.places()?)?;
                work.sorted = picked.bytes()?;
            }
        }
        GroupKind::Linear { linear, epilogue, .. } => {
            let x = graph.ty(*graph.node(*linear).args.first()?).width();
            if rows == 1 {
                work.x = x.next_multiple_of(4).checked_mul(4)?;
            } else {
                work.split = split_work(chip, x, rows)?;
            }
            let columns = raw(&domains(graph, *linear, epilogue)?);
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
                let group = heads.checked_div(kv)?;
                (work.partial, work.arrived) = one_work(chip, kv, group, dim)?;
                let chunks = limits.context.div_ceil(CHUNK) + 1;
                let all = heads.checked_mul(dim + 2)?.checked_mul(chunks)?.checked_mul(4)?;
                work.partial = work.partial.max(all);
            }
            let share = shares(chip, heads.checked_div(kv)?, dim)?;
            work.arrived = work.arrived.max(kv.checked_mul(share)?.checked_mul(4)?);
        }
        GroupKind::Sample(id) => {
            let vocabulary = graph.ty(*graph.node(*id).args.first()?).width();
            let outs = limits.outs;
            work.adjusted = vocabulary.checked_mul(outs)?.checked_mul(4)?;
            work.best =
                scan_blocks(chip, vocabulary, 1).checked_mul(outs)?.checked_mul(BEST_BYTES)?;
            work.sampled = outs.checked_mul(4)?;
            work.arrived = 4;
            work.history = limits.slots.checked_mul(limits.context)?.checked_mul(4)?;
        }
    }
    Some(work)
}
