//! Rows that a link leaves as integers, where rounding them is all that the next one would do first.

use super::Chip;
use super::chain::is_fresh;
use super::places::Places;
use super::product::INTEGERS;
use crate::cuda::abi::{GATED, GROUP, Gemv, MAX_DOMAINS, Matrix, TABLE, WARPS};
use crate::cuda::layout::UNIT;
use crate::cuda::program::{Bases, Launch, Parameters};

/// Has gates leave integers to the products behind them, if those would go through rows of numbers more than once and need not
/// then: a lane has room for more columns that come as integers. Blocks of such a gate have whole groups of outputs: it must
/// be one whose blocks have no more to do for that.
pub(super) fn round(chip: &Chip, bases: &Bases, places: &Places, links: &mut [Launch]) {
    for i in 1..links.len() {
        let Some([gate, reader]) = links.get_mut(i - 1..=i) else { continue };
        if let (Parameters::Gemv(gate), Parameters::Gemv(p)) =
            (&mut gate.parameters, &mut reader.parameters)
            && in_groups(gate, chip.processors)
            && p.x == gate.domain[0].epilogue.out
            && is_fresh(p.x, bases)
            && places.has_one_reader(p.x - bases.fresh)
            && (p.passes > 1 && p.norm == 0)
            && Matrix::there(&p.part).all(once)
        {
            (gate.leaves_integers, p.takes_integers) = (1, 1);
        }
    }
}

/// Whether all it leaves is a gate's, and blocks that have whole groups of panels have no more of them.
fn in_groups(p: &Gemv, blocks: u32) -> bool {
    let (panels, outputs) = (p.first[MAX_DOMAINS], p.part[0].rows as usize);
    p.domains == 1
        && p.domain[0].epilogue.form == GATED
        && outputs.is_multiple_of(UNIT)
        && (panels / GROUP).div_ceil(blocks) * GROUP <= panels.div_ceil(blocks)
}

/// Whether a row of integers is gone through once, and that is faster: entries of a table are so much more to do that it is not. Of 5
/// and 6 bits the kernel has the ways that formats of these planes have, and no other.
fn once(m: &Matrix) -> bool {
    let known = match (m.lo, m.hi) {
        (0, _) => false,
        (4, 1) => matches!((m.levels, m.min, m.halves), (0, 0 | 1, 1) | (1, 2, 1)),
        (4, 2) => (m.levels, m.min, m.halves) == (1, 0, 2),
        _ => true,
    };
    known && m.codes != TABLE && m.units as usize <= INTEGERS * WARPS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::lower::tests::lowered;
    use crate::graph::{Builder, Graph, MemoryWeights};
    use crate::model::{Codes, Format};
    use crate::plan::Limits;

    /// Three gates of so many columns, each with a product behind it, and maybe a sum that reads the gate's, too.
    fn gates(format: Format, ffn: usize, read_twice: bool) -> Graph {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, 256], &[0.0; 4 * 256]).unwrap();
        for (name, rows, cols) in [("gate", ffn, 256), ("up", ffn, 256), ("down", 256, ffn)] {
            let bytes = vec![0; format.row_bytes(cols).unwrap() * rows];
            w.insert_bytes(&format!("{name}.weight"), format, &[rows, cols], bytes).unwrap();
        }
        let mut b = Builder::new(&w);
        let mut x = b.embed("x").unwrap();
        for _ in 0..3 {
            let (gate, up) = (b.linear(x, "gate").unwrap(), b.linear(x, "up").unwrap());
            let gate = b.silu(gate).unwrap();
            let y = b.mul(gate, up).unwrap();
            let down = b.linear(y, "down").unwrap();
            x = b.add(x, down).unwrap();
            if read_twice {
                let up = b.linear(x, "up").unwrap();
                let sum = b.add(up, y).unwrap();
                let down = b.linear(sum, "down").unwrap();
                x = b.add(x, down).unwrap();
            }
        }
        b.output(x);
        b.finish()
    }

    /// Of the gates of its chain, how many leave integers, to a product that takes them.
    fn rounded(format: Format, ffn: usize, read_twice: bool) -> usize {
        let limits = Limits { rows: 1, outs: 1, slots: 1, context: 64 };
        let (_, made) = lowered(&gates(format, ffn, read_twice), 90, limits, |bases| bases);
        let chain = made.iter().find_map(|l| match &l.parameters {
            Parameters::Chain(p) => Some(p),
            _ => None,
        });
        let products = chain.unwrap().links.iter().filter_map(|l| match &l.parameters {
            Parameters::Gemv(p) => Some(p),
            _ => None,
        });
        let products: Vec<_> = products.collect();
        for (i, p) in products.iter().enumerate() {
            let out = p.domain[0].epilogue.out;
            let readers: Vec<_> = products.iter().filter(|reader| reader.x == out).collect();
            if p.leaves_integers == 1 {
                assert!(readers.len() == 1 && products[i + 1].x == out);
                // Whole groups, of which each block has as many or one more.
                assert_eq!(p.each, p.first[MAX_DOMAINS] / GROUP / 132);
            }
            assert!(readers.iter().all(|r| r.takes_integers == p.leaves_integers));
            assert!(p.takes_integers == 0 || (p.passes, p.wide, p.norm) == (1, 32, 0));
        }
        assert!(products.len() >= 6);
        products.iter().filter(|p| p.leaves_integers == 1).count()
    }

    #[test]
    fn gates_leave_integers_to_long_products_where_that_is_faster() {
        // But for floats and entries of a table.
        for &format in Format::all() {
            let is = format.quant().is_some_and(|q| !matches!(q.codes, Codes::Table(_)));
            assert_eq!(rounded(format, 7936, false), if is { 3 } else { 0 }, "{format:?}");
        }
        // Another reader; a row that is gone through once as it is, and blocks that would have 16 panels instead of 9.
        assert_eq!(rounded(Format::Q4_0, 7936, true), 0);
        assert_eq!(rounded(Format::Q4_0, 2048, false), 0);
        assert_eq!(rounded(Format::Q4_0, 4352, false), 0);
    }
}
