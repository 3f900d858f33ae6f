//! A gate and what it is for, where both are products with the same experts: their launch does that as well, and leaves what the
//! next product with them takes.

use super::{Lowering, count, is_output, unary_code};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::layout::Layout;
use crate::cuda::program::Parameters;
use crate::graph::{BinaryKind, Graph, NodeId, Op, UnaryKind};
use crate::plan::origin;

/// A product with experts of which one half gates the other.
struct Gated {
    product: NodeId,
    /// The gate's weights, and the others.
    parts: [(Layout, u64); 2],
    function: (u32, f32, f32),
    /// Columns of each half.
    len: usize,
}

/// What the prologue of a product with experts is, if nothing but a gate: the product that it reads, the arguments of that
/// which are the gate's weights and the others, and the function.
fn gate_of(
    graph: &Graph,
    prologue: &[NodeId],
    id: NodeId,
) -> Option<(NodeId, [usize; 2], UnaryKind)> {
    let op = |id: NodeId| &graph.node(id).op;
    let arg = |id: NodeId, i: usize| Some(origin(graph, *graph.node(id).args.get(i)?));
    let all = arg(id, 0)?;
    let Op::Binary(mul) = op(all) else { return None };
    let (a, b) = (arg(all, 0)?, arg(all, 1)?);
    let (acts, plain) = if matches!(op(a), Op::Unary(_)) { (a, b) } else { (b, a) };
    let Op::Unary(act) = op(acts) else { return None };
    let gate = arg(acts, 0)?;
    let (Op::Slice(first), Op::Slice(second)) = (op(gate), op(plain)) else { return None };
    let product = arg(gate, 0)?;
    let of = graph.node(product);
    let halves = match (first.start, second.start) {
        (0, n) if n == first.len => [2, 3],
        (n, 0) if n == second.len => [3, 2],
        _ => return None,
    };
    let same = first.len == second.len && arg(plain, 0)? == product && of.args.len() == 4;
    let picks = matches!(of.op, Op::Experts(_)) && arg(product, 1) == arg(id, 1);
    let reads = |id: &NodeId| graph.node(*id).args.iter().any(|&a| origin(graph, a) == product);
    let readers = graph.iter().map(|(id, _)| id).filter(reads).count();
    let alone = readers == 2 && !is_output(graph, product) && prologue.len() == 4;
    let these = [gate, plain, acts, all].iter().all(|id| prologue.contains(id));
    (same && picks && alone && these && mul.kind == BinaryKind::Mul)
        .then_some((product, halves, act.kind))
}

impl Lowering<'_> {
    /// Nothing of what a gate goes through may be read by others, and its weights must lie as those of the other half.
    fn gated(&self, prologue: &[NodeId], id: NodeId) -> Result<Option<Gated>> {
        let Some((product, halves, act)) = gate_of(self.graph, prologue, id) else {
            return Ok(None);
        };
        for &value in prologue {
            if self.put(value)?.is_some() {
                return Ok(None);
            }
        }
        let [gate, other] = halves.map(|i| self.matrices(self.arg(product, i)?));
        let parts = [gate?, other?];
        let len = self.graph.ty(product).last() / 2;
        let [a, b] = parts.map(|(layout, _)| layout.matrix(0));
        let function = unary_code(act);
        Ok((a == b && parts[0].0.rows == len).then_some(Gated { product, parts, function, len }))
    }

    /// Has the last launch, in which each pick is a product of its own, leave what such a prologue makes, where the product finds it.
    pub(super) fn gate_last(
        &mut self,
        prologue: &[NodeId],
        id: NodeId,
        places: &[Operand; 2],
    ) -> Result<bool> {
        let Some(gated) = self.gated(prologue, id)? else { return Ok(false) };
        let made = self.value(gated.product)?.at;
        let Some(last) = self.out.last_mut() else { return Ok(false) };
        let Parameters::Experts(p) = &mut last.parameters else { return Ok(false) };
        // Both are one launch, which does not read from where it would write.
        let [to, ids] = places;
        if p.out != made || p.parts != 2 || p.x == to.at || p.ids != ids.at {
            return Ok(false);
        }
        p.gated = 1;
        (p.kind, p.c, p.d) = gated.function;
        for (part, (layout, at)) in p.part.iter_mut().zip(gated.parts) {
            *part = layout.matrix(at);
        }
        (p.out, p.out_row, p.out_pick) = (to.at, to.n, count(gated.len)?);
        Ok(true)
    }

    /// The same where rows are sorted by expert: they are left split.
    pub(super) fn gate_last_split(
        &mut self,
        prologue: &[NodeId],
        id: NodeId,
        places: usize,
    ) -> Result<bool> {
        let Some(gated) = self.gated(prologue, id)? else { return Ok(false) };
        let made = self.value(gated.product)?.at;
        // Whole tiles and blocks of columns: nobody fills up what is behind them.
        let fits = gated.len.is_multiple_of(WG_BLOCK);
        let last = |l: &Lowering| match l.out.last().map(|l| &l.parameters) {
            Some(Parameters::Gemm(p)) => {
                p.picks > 0
                    && p.domains == 2
                    && p.domain[0].epilogue.out.min(p.domain[1].epilogue.out) == made
            }
            _ => false,
        };
        let Some(product) = gated.parts[0].0.product().filter(|_| fits && last(self)) else {
            return Ok(false);
        };
        let (kind, c, d) = gated.function;
        let out_stride = count(gated.len)?;
        let e = Epilogue { form: GATED, kind, c, d, out_stride, ..Epilogue::default() };
        let dealt = self.dealt(&[(product, gated.parts.to_vec(), e)], WG_M)?;
        let left = self.tiles(places, id, gated.len)?;
        let Some(Parameters::Gemm(p)) = self.out.last_mut().map(|l| &mut l.parameters) else {
            return Ok(false);
        };
        (p.domains, p.first, p.domain, p.part) = (1, dealt.first, dealt.domain, dealt.part);
        p.left = left;
        Ok(true)
    }
}
