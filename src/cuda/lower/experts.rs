//! Products with the experts that rows picked: the prologue as a list of its own, then a launch for
//! each kind of weights. Which experts is known on the device alone. On sm_90 many rows are sorted by them first (`picked`).

use super::picked::Picked;
use super::product::Multiplied;
use super::registers::fold;
use super::rows::List;
use super::{Chip, Lowering, count, too_large, unplaced};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::layout::{Layout, Product};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Graph, Lead, NodeId};
use crate::plan::origin;
use std::collections::BTreeMap;

/// Shared memory of a block: the row, as the product reads it, in whole groups of units.
pub(super) fn experts_shared(layout: &Layout) -> usize {
    match layout.product() {
        Some(Product::F32) => layout.units.next_multiple_of(FLOATS_SPAN) * 16,
        Some(Product::F16 | Product::Bf16) => layout.units.next_multiple_of(FLOATS_SPAN) * 32,
        _ => layout.units.next_multiple_of(PLANES_SPAN) * 80,
    }
}

/// Where the picks are in the workspace, behind the rows that a prologue made, and the end of them.
pub(super) fn experts_work(graph: &Graph, id: NodeId, rows: usize) -> Option<(usize, usize)> {
    let args = &graph.node(id).args;
    let bytes = |i: usize| graph.ty(*args.get(i)?).width().checked_mul(rows)?.checked_mul(4);
    let picks = bytes(0)?.checked_next_multiple_of(256)?;
    Some((picks, picks.checked_add(bytes(1)?)?))
}

/// Blocks that share what there is to do for a pick: so many that a few picks keep the chip busy, each with
/// work for all of its warps.
fn spread(chip: &Chip, tasks: usize, picks: usize) -> usize {
    let busy = (4 * chip.processors as usize).div_ceil(picks.max(1));
    tasks.div_ceil(WARPS).min(busy).clamp(1, 65535)
}

impl Lowering<'_> {
    /// Where the rows of a product with experts and their picks are: in memory of their own, or where its prologue puts them.
    pub(super) fn inputs_of_experts(
        &self,
        prologue: &[NodeId],
        id: NodeId,
        rows: usize,
    ) -> Result<[Operand; 2]> {
        let (behind, _) = experts_work(self.graph, id, rows).ok_or_else(too_large)?;
        let mut places = [Operand::default(); 2];
        for (i, to) in places.iter_mut().enumerate() {
            let value = origin(self.graph, self.arg(id, i)?);
            let here = prologue.contains(&value) && self.put(value)?.is_none();
            *to = if here {
                let at = self.bases.x + if i == 0 { 0 } else { behind as u64 };
                Operand { at, place: ROWS, n: count(self.graph.ty(value).width())? }
            } else {
                self.value(value)?
            };
        }
        Ok(places)
    }

    /// The prologue as a list of its own, which puts rows and picks where the product finds them.
    pub(super) fn before_experts(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        id: NodeId,
        places: &[Operand; 2],
    ) -> Result<()> {
        if prologue.is_empty() {
            return Ok(());
        }
        let graph = self.graph;
        let reads = [origin(graph, self.arg(id, 0)?), origin(graph, self.arg(id, 1)?)];
        let mut list = List::new();
        list.fold = fold(graph, prologue);
        let known = self.list(&mut list, prologue, 0, BTreeMap::new(), &reads)?;
        for (&value, &to) in reads.iter().zip(places) {
            if prologue.contains(&value) && self.put(value)?.is_none() {
                let a = self.folded(&known, value, list.fold)?;
                let len = count(graph.ty(value).width() / list.fold)?;
                let b = Self::part(to, list.fold);
                list.ops.push(RowOp { what: R_PUT, len, a, b, ..RowOp::default() });
            }
        }
        Self::by_units(&mut list, 0, 1)?;
        self.push_list(lead, list)
    }

    pub(super) fn experts(&mut self, lead: Lead, prologue: &[NodeId], id: NodeId) -> Result<()> {
        let graph = self.graph;
        let (x_ty, picks) = (graph.ty(self.arg(id, 0)?), graph.ty(self.arg(id, 1)?).width());
        let (outputs, rows) = (graph.ty(id).last(), self.most(lead));
        let out = self.value(id)?;
        let places = self.inputs_of_experts(prologue, id, rows)?;
        let (weights, mut parts, mut column) = (graph.node(id).args.iter().skip(2), Vec::new(), 0);
        for &w in weights {
            let (layout, at) = self.matrices(w)?;
            let product = layout.product().ok_or_else(|| unplaced(w))?;
            let experts = graph.ty(w).dims.first().copied().unwrap_or(0);
            parts.push((product, layout, at, column, experts));
            column += layout.rows;
        }
        parts.sort_by_key(|p| p.0);
        if let Some(picked) = Picked::of(self.chip, graph, id, rows) {
            self.leave_picked(lead, prologue, id, &places, &picked)?;
            for same in parts.chunk_by(|a, b| a.0 == b.0) {
                for some in same.chunks(MAX_DOMAINS) {
                    let of = |&(product, layout, at, column, _): &_| -> Result<Multiplied> {
                        let (out, out_stride) = (out.at + column as u64 * 4, count(outputs)?);
                        let e = Epilogue { form: STORE, out, out_stride, ..Epilogue::default() };
                        Ok((product, vec![(layout, at)], e))
                    };
                    let some: Result<Vec<_>> = some.iter().map(of).collect();
                    self.picked_product(lead, x_ty.last(), &picked, &some?)?;
                }
            }
            return Ok(());
        }
        let route = self.route(prologue, id)?;
        if route.is_none() && !self.gate_last(prologue, id, &places)? {
            self.before_experts(lead, prologue, id, &places)?;
        }
        let grid = rows.checked_mul(picks).ok_or_else(too_large)?;
        i32::try_from(grid).map_err(|_| too_large())?;
        let ([mut from, picked], mut norm) = (places, (0, 0.0));
        if let Some((row, of)) = self.left_to_readers(origin(graph, self.arg(id, 0)?))? {
            (from, norm) = (row, of);
        }
        for same in parts.chunk_by(|a, b| a.0 == b.0) {
            for some in same.chunks(MAX_PARTS) {
                let Some((product, layout, ..)) = some.first() else { continue };
                let mut p = Experts {
                    x: from.at,
                    norm: norm.0,
                    eps: norm.1,
                    ids: picked.at,
                    out: out.at,
                    x_row: from.n,
                    x_pick: if x_ty.dims.len() > 1 { count(x_ty.last())? } else { 0 },
                    id_row: picked.n,
                    picks: count(picks)?,
                    out_row: out.n,
                    out_pick: count(outputs)?,
                    route: route.unwrap_or_default(),
                    cols: count(x_ty.last())?,
                    experts: count(some.iter().map(|p| p.4).min().unwrap_or(0))?,
                    parts: count(some.len())?,
                    ..Experts::default()
                };
                let (mut panels, mut tasks) = (0, 0);
                for (i, (_, layout, at, column, _)) in some.iter().enumerate() {
                    p.part[i] = layout.matrix(*at);
                    p.bytes[i] = layout.bytes() as u64;
                    p.column[i] = count(*column)?;
                    p.first[i] = count(panels)?;
                    panels += layout.panels;
                    tasks += layout.panels.div_ceil(EXPERT_PANELS);
                }
                p.first[some.len()..].fill(count(panels)?);
                let (kernel, shared) = (Kernel::Experts(*product), experts_shared(layout));
                let grid = (1, count(spread(self.chip, tasks, picks))?);
                self.push(kernel, grid, 256, shared, lead, Parameters::Experts(Box::new(p)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::cuda::CudaTarget;
    use crate::cuda::lower::launches;
    use crate::cuda::program::Bases;
    use crate::graph::{Builder, Dims, UnaryKind, Weights};
    use crate::model::Format;
    use crate::plan::{Limits, Plan};
    use std::borrow::Cow;

    /// Tensors without numbers.
    struct Shapes(BTreeMap<String, (Format, Dims)>);

    impl Weights for Shapes {
        fn find(&self, name: &str) -> Option<(Format, Dims)> {
            self.0.get(name).cloned()
        }

        fn bytes(&self, _: &str) -> Option<Cow<'_, [u8]>> {
            None
        }
    }

    #[test]
    fn mixtures_of_real_shapes_fit_every_chip() {
        // Mixtral, Qwen2 MoE, Qwen3 30B and 235B, OLMoE, gpt-oss, and wider than any.
        for (dim, inner, experts, k, bias) in [
            (4096, 14336, 8, 2, false),
            (2048, 1408, 60, 4, false),
            (2048, 768, 128, 8, false),
            (4096, 1536, 128, 8, false),
            (2048, 1024, 64, 8, false),
            (2880, 2880, 128, 4, true),
            (7168, 2048, 256, 8, false),
        ] {
            let mut all = BTreeMap::new();
            let mut add = |name: &str, format, dims: &[usize]| {
                all.insert(name.to_string(), (format, Dims::from_slice(dims)));
            };
            add("x.weight", Format::Q8_0, &[1000, dim]);
            add("norm.weight", Format::F32, &[dim]);
            add("router.weight", Format::F32, &[experts, dim]);
            let (outputs, format) =
                if bias { (2 * inner, Format::MXFP4) } else { (inner, Format::Q4_0) };
            for (name, rows, cols) in
                [("gate", outputs, dim), ("up", outputs, dim), ("down", dim, inner)]
            {
                add(&format!("{name}.weight"), format, &[experts, rows, cols]);
                if bias {
                    add(&format!("{name}.bias"), Format::F32, &[experts, rows]);
                }
            }
            let w = Shapes(all);
            let mut b = Builder::new(&w);
            let x = b.embed("x").unwrap();
            let n = b.rms_norm(x, "norm", 1e-5).unwrap();
            let logits = b.linear(n, "router").unwrap();
            let shares = b.softmax(logits).unwrap();
            let picks = b.top_k(shares, k).unwrap();
            let shares = b.pick(shares, picks).unwrap();
            let shares = b.normalize(shares).unwrap();
            let gate = b.experts(n, picks, "gate").unwrap();
            let y = if bias {
                let pairs = b.reshape(gate, &[k, inner, 2]).unwrap();
                let (gate, up) = (b.slice(pairs, 0, 1).unwrap(), b.slice(pairs, 1, 1).unwrap());
                let gate = b.reshape(gate, &[k, inner]).unwrap();
                let up = b.reshape(up, &[k, inner]).unwrap();
                let gate = b.unary(gate, UnaryKind::Clamp(-7.0, 7.0)).unwrap();
                let up = b.unary(up, UnaryKind::Shift(1.0)).unwrap();
                let gate = b.unary(gate, UnaryKind::GeluQuick).unwrap();
                b.mul(up, gate).unwrap()
            } else {
                let up = b.experts(n, picks, "up").unwrap();
                let gate = b.silu(gate).unwrap();
                b.mul(gate, up).unwrap()
            };
            let y = b.experts(y, picks, "down").unwrap();
            let y = b.mix(y, shares).unwrap();
            let y = b.add(x, y).unwrap();
            b.output(y);
            let graph = b.finish();
            for capability in [80, 86, 89, 90] {
                let target = CudaTarget::of(capability).unwrap();
                for rows in [1, 512] {
                    let limits = Limits { rows, outs: 1, slots: 1, context: 2048 };
                    let plan = Plan::new(&graph, &target, limits)
                        .unwrap_or_else(|e| panic!("{dim} {inner} on sm_{capability}: {e}"));
                    let program = target.lower(&plan).unwrap();
                    let made = launches(&target.0, &program, &Bases::default()).unwrap();
                    for launch in &made {
                        assert!(launch.shape.shared as usize + (4 << 10) <= target.0.block_shared);
                    }
                    let experts = made.iter().enumerate().filter_map(|(i, l)| {
                        let picked = matches!(&l.parameters, Parameters::Gemm(p) if p.picks > 0);
                        (picked || matches!(l.kernel, Kernel::Experts(_))).then_some(i)
                    });
                    let [gate, down] = experts.collect::<Vec<_>>()[..] else { panic!("experts") };
                    // A list of its own if there are biases.
                    assert_eq!(down - gate, 1 + usize::from(bias), "{dim} {inner}");
                    let sorted = made.iter().filter(|l| l.kernel == Kernel::SortPicks);
                    assert_eq!(sorted.count(), usize::from(rows > 1 && capability == 90));
                }
            }
        }
    }
}
