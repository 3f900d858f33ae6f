//! Rows as products with many of them take them: two bf16 that add up to each number, on sm_90 in tiles. A list
//! of row-local work splits them, or the launch before leaves them so.

use super::rows::List;
use super::tiles::{split_size, sums_size};
use super::{Lowering, count, is_output, too_large};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::layout::{Layout, UNIT};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{DType, Graph, Lead, NodeId};
use crate::plan::inputs;

/// Whether the weights of a product take their rows in one order: those of blocks have another than floats.
pub(super) fn one_order(graph: &Graph, product: NodeId) -> bool {
    let node = graph.node(product);
    let blocks = |w: NodeId| match graph.ty(w).dtype {
        DType::Weight(format) => format.quant().is_some(),
        _ => false,
    };
    let mut weights = node.args.iter().skip(inputs(&node.op)).map(|&w| blocks(w));
    weights.next().is_none_or(|first| weights.all(|blocks| blocks == first))
}

impl Lowering<'_> {
    /// Where so many rows before a product with them go, split in two: on sm_90 places take turns.
    pub(super) fn tiles(&mut self, rows: usize, linear: NodeId, cols: usize) -> Result<SplitTiles> {
        let (cols, rows) = split_size(self.chip, cols, rows).ok_or_else(too_large)?;
        if !self.chip.hopper {
            let at = self.bases.high;
            return Ok(SplitTiles { at, order: PLAIN_ROWS, ..SplitTiles::default() });
        }
        let (high, low) = (self.bases.high, self.bases.low);
        self.split_at = if self.split_at == high { low } else { high };
        // All weights of a linear are planes or none is.
        let layouts = self.layouts(linear)?;
        let order = if layouts.iter().any(Layout::in_planes) { FOURS } else { EIGHTS };
        let sums = if layouts.iter().any(Layout::adds) { self.sums_at(cols, rows) } else { 0 };
        Ok(SplitTiles { at: self.split_at, sums, groups: count(rows / WG_ROWS)?, order })
    }

    /// Where the sums of so many split rows are.
    pub(super) fn sums_at(&self, cols: usize, rows: usize) -> u64 {
        self.split_at + 4 * cols as u64 * rows as u64
    }

    /// Where their squares are.
    fn squares_at(&self, lead: Lead, cols: usize) -> Result<u64> {
        let (cols, rows) = split_size(self.chip, cols, self.most(lead)).ok_or_else(too_large)?;
        Ok(self.sums_at(cols, rows) + sums_size(cols, rows) as u64)
    }

    /// Has the norm that a list ends with leave its factor to the sums of the product: where that finds the squares.
    pub(super) fn factored(&self, lead: Lead, cols: usize, list: &mut List) -> Result<u64> {
        let at = self.squares_at(lead, cols)?;
        let Some(norm) = list.ops.last_mut() else { return Ok(0) };
        (norm.kind, norm.aux2) = (norm.kind | FACTORED, at);
        Ok(at)
    }

    /// The operation that splits so many of them.
    pub(super) fn split(
        &mut self,
        rows: usize,
        linear: NodeId,
        cols: usize,
        op: &mut RowOp,
    ) -> Result<()> {
        let (padded, _) = split_size(self.chip, cols, rows).ok_or_else(too_large)?;
        let to = self.tiles(rows, linear, cols)?;
        (op.what, op.n0) = (R_SPLIT, count(padded)?);
        (op.kind, op.aux, op.n1) = (to.order, to.at, to.groups);
        op.aux2 = if self.chip.hopper { to.sums } else { self.bases.low };
        Ok(())
    }

    /// Has the launch before leave `x` split, as the product takes it, if it can: that saves one. What nobody
    /// else reads is not left as it is. If there is a norm between, with these weights, what is left goes through it, and the
    /// product finds the squares here.
    pub(super) fn left_split(
        &mut self,
        lead: Lead,
        linear: NodeId,
        x: NodeId,
        cols: usize,
        norm: u64,
    ) -> Result<Option<u64>> {
        let at = self.value(x)?.at;
        let adds = self.layouts(linear)?.iter().any(Layout::adds);
        let Some(last) = self.out.last() else { return Ok(None) };
        // Whoever has a head has whole units of its sums.
        let units = |dim: u32| !adds || dim.is_multiple_of(UNIT as u32);
        let takes = match &last.parameters {
            Parameters::Attend(p) if norm == 0 => {
                let whole = p.heads as usize * p.dim as usize == cols;
                let many = matches!(last.kernel, Kernel::AttendMany(_));
                many && p.out == at && whole && units(p.dim)
            }
            Parameters::AttendFew(p) if norm == 0 => {
                let whole = p.many.heads as usize * p.many.dim as usize == cols;
                p.many.out == at && whole && units(p.many.dim)
            }
            Parameters::Gemm(p) => {
                let e = &p.domain[0].epilogue;
                let whole = p.part[0].rows as usize == cols;
                let one = p.domains == 1 && (norm == 0 || p.domain[0].parts == 1);
                one && e.form != CODE && e.out == at && whole && by_fours(p)
            }
            _ => false,
        };
        let fits = self.chip.hopper && cols.is_multiple_of(WG_BLOCK) && last.lead == lead;
        if !(takes && fits) {
            return Ok(None);
        }
        let alone = self.read_once(x) && !is_output(self.graph, x);
        let tiles = self.tiles(self.most(lead), linear, cols)?;
        let squares = if norm == 0 { 0 } else { self.squares_at(lead, cols)? };
        let Some(last) = self.out.last_mut() else { return Ok(None) };
        let (left, out) = match &mut last.parameters {
            Parameters::Attend(p) => (&mut p.left, &mut p.out),
            Parameters::AttendFew(p) => (&mut p.many.left, &mut p.many.out),
            Parameters::Gemm(p) => {
                (p.norm, p.left_squares) = (norm, squares);
                (&mut p.left, &mut p.domain[0].epilogue.out)
            }
            _ => return Ok(None),
        };
        *left = tiles;
        if alone {
            *out = 0;
        }
        Ok(Some(squares))
    }

    /// How a product's weights lie.
    fn layouts(&self, linear: NodeId) -> Result<Vec<Layout>> {
        let node = self.graph.node(linear);
        let weights = node.args.iter().skip(inputs(&node.op));
        weights.map(|&w| Ok(self.matrices(w)?.0)).collect()
    }
}

/// Whether the only domain of a product is finished four columns at a time, as kernels decide.
fn by_fours(p: &Gemm) -> bool {
    let (d, e) = (&p.domain[0], &p.domain[0].epilogue);
    let outputs = p.part[d.part[0] as usize].rows;
    let mut all = e.out | (u64::from(e.out_stride) * 4);
    if e.form == RESIDUAL {
        all |= e.residual.at | (u64::from(e.residual.n) * 4);
    }
    all.is_multiple_of(16) && outputs.is_multiple_of(WG_M as u32 / d.parts.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::lower::tests::lowered;
    use crate::cuda::program::{Bases, Launch};
    use crate::graph::{Builder, MemoryWeights};
    use crate::plan::Limits;

    /// Launches of `n`, a norm of 256 columns, into a gate and an `up` of so many, and back.
    fn gated(inner: usize, keep: bool) -> Vec<Launch> {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, 256], &[0.0; 4 * 256]).unwrap();
        w.insert("norm.weight", &[256], &[0.0; 256]).unwrap();
        for (name, rows, cols) in [("gate", inner, 256), ("up", inner, 256), ("down", 256, inner)] {
            let name = format!("{name}.weight");
            w.insert(&name, &[rows, cols], &vec![0.0; rows * cols]).unwrap();
        }
        let mut b = Builder::new(&w);
        let x = b.embed("x").unwrap();
        let n = b.rms_norm(x, "norm", 1e-5).unwrap();
        let (gate, up) = (b.linear(n, "gate").unwrap(), b.linear(n, "up").unwrap());
        let gate = b.silu(gate).unwrap();
        let y = b.mul(gate, up).unwrap();
        let z = b.linear(y, "down").unwrap();
        let z = b.add(x, z).unwrap();
        b.output(z);
        if keep {
            b.output(y);
        }
        let limits = Limits { rows: 512, outs: 1, slots: 1, context: 512 };
        let place = |bases| Bases {
            logits: 1 << 32,
            scratch: 1 << 30,
            high: 1 << 20,
            low: 1 << 24,
            ..bases
        };
        lowered(&b.finish(), 90, limits, place).1
    }

    #[test]
    fn a_product_leaves_its_rows_as_the_next_one_takes_them() {
        let split = |all: &[Launch]| {
            let lists = all.iter().filter(|l| match &l.parameters {
                Parameters::Rows(list) => list.op.iter().any(|op| op.what == R_SPLIT),
                _ => false,
            });
            lists.count()
        };
        let products = |all: &[Launch]| -> Vec<Gemm> {
            let gemm = |l: &Launch| match &l.parameters {
                Parameters::Gemm(p) => Some(**p),
                _ => None,
            };
            all.iter().filter_map(gemm).collect()
        };
        let all = gated(512, false);
        let [first, second] = products(&all)[..] else { return assert_eq!(all.len(), 0) };
        // The norm's rows are a list's; the product's are its own, in the other place, and nowhere else.
        assert_eq!(split(&all), 1);
        assert_eq!((first.left.at, second.left.at), (second.high, 0));
        assert_ne!(first.high, second.high);
        assert_eq!(first.domain[0].epilogue.out, 0);
        // What is an output stays; columns that no whole tiles hold are a list's.
        let kept = gated(512, true);
        assert!(split(&kept) == 1 && products(&kept)[0].domain[0].epilogue.out != 0);
        assert_eq!(split(&gated(528, false)), 2);
    }
}
