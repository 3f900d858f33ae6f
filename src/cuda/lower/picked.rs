//! Products of many rows with the experts that they picked, on sm_90: picks are sorted by expert, rows split where those of
//! the same expert are neighbours, and products are those of many rows, a tile of which has one expert.

use super::product::Multiplied;
use super::registers::fold;
use super::rows::List;
use super::split::one_order;
use super::tiles::{picked_tile, split_size};
use super::{Chip, Lowering, count, too_large};
use crate::Result;
use crate::cuda::abi::*;
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::{Graph, Lead, NodeId};
use crate::plan::origin;
use std::collections::BTreeMap;

/// Rows with so many picks each, of so many experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Picked {
    rows: usize,
    picks: usize,
    experts: usize,
}

impl Picked {
    /// Of a product with experts in a step of so many rows; none where each pick is a product of its own, as it is where
    /// weights do not take their rows in the same order.
    pub(super) fn of(chip: &Chip, graph: &Graph, id: NodeId, rows: usize) -> Option<Picked> {
        let args = &graph.node(id).args;
        let picks = graph.ty(*args.get(1)?).width();
        let experts = graph.ty(*args.get(2)?).dims.first().copied().filter(|&n| n > 0)?;
        (chip.hopper && rows > 1 && one_order(graph, id)).then_some(Picked { rows, picks, experts })
    }

    fn pairs(&self) -> Option<usize> {
        self.rows.checked_mul(self.picks)
    }

    /// Places of split rows: those of an expert begin with a group of eight, those of picks that name none, too.
    pub(super) fn places(&self) -> Option<usize> {
        let pairs = self.pairs()?;
        let experts = pairs.min(self.experts.checked_add(1)?);
        let most = experts.checked_mul(WG_ROWS - 1)?.checked_add(pairs)?;
        most.checked_next_multiple_of(WG_ROWS)
    }

    /// Where tiles, the pairs of places, and the places of pairs begin, and where those end.
    fn sorted(&self) -> Option<[usize; 4]> {
        let up = |bytes: usize| bytes.checked_next_multiple_of(256);
        let tiles = self.experts.checked_add(1)?.checked_add(self.pairs()? / WG_ROWS)?;
        let pairs = up(tiles.checked_mul(16)?)?;
        let places = pairs.checked_add(up(self.places()?.checked_mul(4)?)?)?;
        Some([0, pairs, places, places.checked_add(up(self.pairs()?.checked_mul(4)?)?)?])
    }

    /// Bytes of what sorting leaves.
    pub(super) fn bytes(&self) -> Option<usize> {
        Some(self.sorted()?[3])
    }
}

/// Tiles of so many places that so many pairs come to, at most.
pub(in crate::cuda) fn most_tiles(pairs: u32, experts: u32, tile: u32) -> u32 {
    let begun = pairs.min(experts.saturating_add(1));
    begun + (pairs - begun).checked_div(tile).unwrap_or(0)
}

/// Adapts the sorting of picks to so many rows.
pub(in crate::cuda) fn set_picks(p: &mut Picks, rows: u32) {
    p.rows = rows;
    p.tile = TILE_ROWS[picked_tile(rows, p.picks, p.experts)];
    p.most = most_tiles(rows.saturating_mul(p.picks), p.experts, p.tile);
}

impl Lowering<'_> {
    /// Leaves rows split where products with experts take them, each for every expert that it picked.
    pub(super) fn leave_picked(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        id: NodeId,
        places: &[Operand; 2],
        picked: &Picked,
    ) -> Result<()> {
        let graph = self.graph;
        let x = origin(graph, self.arg(id, 0)?);
        let ids = origin(graph, self.arg(id, 1)?);
        let each = graph.ty(self.arg(id, 0)?).dims.len() > 1;
        let ([from, picks], mut list) = (places, List::new());
        list.fold = if each { picked.picks } else { 1 };
        let by = (ids, picked.experts);
        let sorted = self.sorted == Some(by) && !prologue.contains(&ids);
        let room = picked.places().ok_or_else(too_large)?;
        if sorted && self.gate_last_split(prologue, id, room)? {
            return Ok(());
        }
        // What is done to rows before they are split takes no list of its own, once it is known where they go.
        let a = if sorted && !prologue.is_empty() && fold(graph, prologue) == list.fold {
            let known = self.list(&mut list, prologue, 0, BTreeMap::new(), &[x])?;
            self.folded(&known, x, list.fold)?
        } else {
            self.before_experts(lead, prologue, id, places)?;
            Self::part(*from, list.fold)
        };
        let [tiles, pairs, places, _] = picked.sorted().ok_or_else(too_large)?;
        let at = |bytes: usize| self.bases.sorted + bytes as u64;
        if !sorted {
            let p = Picks {
                ids: picks.at,
                tiles: at(tiles),
                pairs: at(pairs),
                places: at(places),
                id_row: picks.n,
                picks: count(picked.picks)?,
                experts: count(picked.experts)?,
                ..Picks::default()
            };
            let shared = (picked.experts + 1) * 4;
            self.push(Kernel::SortPicks, (1, 1), 1024, shared, lead, Parameters::Picks(p))?;
            self.sorted = Some(by);
        }
        let cols = graph.ty(x).last();
        let mut op = RowOp { len: count(cols)?, a, ..RowOp::default() };
        self.split(room, id, cols, &mut op)?;
        (op.b.at, op.n2) = (at(places), count(picked.picks / list.fold)?);
        list.ops.push(op);
        Self::by_units(&mut list, 0, 1)?;
        self.push_list(lead, list)
    }

    /// One launch of a product with experts.
    pub(super) fn picked_product(
        &mut self,
        lead: Lead,
        cols: usize,
        picked: &Picked,
        parts: &[Multiplied],
    ) -> Result<()> {
        let Some((product, ..)) = parts.first() else { return Ok(()) };
        let layouts = || parts.iter().flat_map(|d| d.1.iter().map(|p| p.0));
        let dealt = self.dealt(parts, WG_M)?;
        let places = picked.places().ok_or_else(too_large)?;
        let (cols, rows) = split_size(self.chip, cols, places).ok_or_else(too_large)?;
        let [tiles, pairs, ..] = picked.sorted().ok_or_else(too_large)?;
        let p = Gemm {
            high: self.split_at,
            stride: count(cols)?,
            domains: count(parts.len())?,
            first: dealt.first,
            domain: dealt.domain,
            part: dealt.part,
            sums: if layouts().any(|l| l.adds()) { self.sums_at(cols, rows) } else { 0 },
            groups: count(rows / WG_ROWS)?,
            // Experts are enough for all of the chip.
            stretches: 1,
            each: 1,
            picks: count(picked.picks)?,
            experts: count(picked.experts)?,
            tiles: self.bases.sorted + tiles as u64,
            pairs: self.bases.sorted + pairs as u64,
            ..Gemm::default()
        };
        let end = p.first[MAX_DOMAINS];
        let p = Parameters::Gemm(Box::new(p));
        self.push(Kernel::Picked(*product), (1, end), 256, 0, lead, p)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cuda::lower::tests::lowered;
    use crate::cuda::program::{Bases, Launch};
    use crate::graph::{Builder, MemoryWeights};
    use crate::model::format::Format;
    use crate::plan::Limits;

    #[test]
    fn there_is_room_for_whatever_is_picked() {
        let mut x = 1u64;
        let mut any = |n: u32| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) as u32 % n
        };
        for (rows, picks, experts) in
            [(2, 1, 1), (2, 8, 128), (5, 3, 6), (64, 8, 128), (512, 4, 32)]
        {
            let picked = Picked { rows, picks, experts };
            let pairs = (rows * picks) as u32;
            // All the same, all in turn, a few, any; one more than there are is none.
            for of in [1, 2, 3, experts as u32 + 1] {
                let mut each = vec![0u32; experts + 1];
                for i in 0..pairs {
                    let expert = if i % 2 == 0 { i % of } else { any(of) };
                    each[expert.min(experts as u32) as usize] += 1;
                }
                let places: u32 = each.iter().map(|n| n.next_multiple_of(WG_ROWS as u32)).sum();
                assert!(places as usize <= picked.places().unwrap());
                for tile in [8, 32, 64] {
                    let tiles: u32 = each.iter().map(|n| n.div_ceil(tile)).sum();
                    let most = most_tiles(pairs, experts as u32, tile);
                    assert!(tiles <= most, "{tiles} tiles of {tile}, {picked:?}");
                    let room = picked.sorted().unwrap()[1];
                    assert!(16 * most as usize <= room, "{most} tiles, {picked:?}");
                }
            }
        }
    }

    /// A router and two products with experts, `gate` being both halves, over so many rows at most.
    fn mixture(format: Format, rows: usize) -> Vec<Launch> {
        let mut w = MemoryWeights::new();
        w.insert("x.weight", &[4, 256], &[0.0; 4 * 256]).unwrap();
        w.insert("norm.weight", &[256], &[1.0; 256]).unwrap();
        w.insert("router.weight", &[16, 256], &[0.0; 16 * 256]).unwrap();
        w.insert("o.weight", &[256, 256], &[0.0; 256 * 256]).unwrap();
        for name in ["gate", "up", "down"] {
            let bytes = vec![0; format.row_bytes(256).unwrap() * 256 * 16];
            w.insert_bytes(&format!("{name}.weight"), format, &[16, 256, 256], bytes).unwrap();
        }
        let mut b = Builder::new(&w);
        let x = b.embed("x").unwrap();
        let x = b.linear(x, "o").unwrap();
        let n = b.rms_norm(x, "norm", 1e-5).unwrap();
        let logits = b.linear(n, "router").unwrap();
        let picks = b.top_k(logits, 4).unwrap();
        let shares = b.pick(logits, picks).unwrap();
        let shares = b.softmax(shares).unwrap();
        let (gate, up) = (b.experts(n, picks, "gate").unwrap(), b.experts(n, picks, "up").unwrap());
        let gate = b.silu(gate).unwrap();
        let y = b.mul(gate, up).unwrap();
        let y = b.experts(y, picks, "down").unwrap();
        let y = b.mix(y, shares).unwrap();
        let y = b.add(x, y).unwrap();
        b.output(y);
        let limits = Limits { rows, outs: 1, slots: 1, context: 512 };
        let place = |bases| Bases { weights: 1 << 40, scratch: 1 << 30, ..bases };
        let (_, mut all) = lowered(&b.finish(), 90, limits, place);
        all.iter_mut().for_each(|l| l.set_rows(rows as u32));
        all
    }

    #[test]
    fn a_product_has_the_tiles_that_its_picks_are_sorted_for() {
        for (rows, tile) in [(2, 8), (8, 8), (9, 32), (64, 32), (65, 64), (512, 64)] {
            for format in [Format::Q4_0, Format::MXFP4, Format::BF16, Format::Q4_K] {
                let all = mixture(format, rows);
                let sorted = all.iter().find_map(|l| match &l.parameters {
                    Parameters::Picks(p) => Some(*p),
                    _ => None,
                });
                let sorted = sorted.unwrap();
                assert_eq!((sorted.tile, sorted.rows), (tile, rows as u32), "{format:?}");
                let products = all.iter().filter_map(|l| match (&l.kernel, &l.parameters) {
                    (Kernel::Picked(_), Parameters::Gemm(p)) => Some((**p, l.shape)),
                    _ => None,
                });
                let products: Vec<_> = products.collect();
                let [(gate, _), (down, _)] = products[..] else { return assert_eq!(all.len(), 0) };
                for (p, shape) in &products {
                    assert_eq!((p.tile, shape.grid.0, shape.cluster), (tile, sorted.most, 1));
                    assert_eq!((p.tiles, p.pairs), (sorted.tiles, sorted.pairs));
                    assert_eq!((p.picks, p.experts, p.stretches), (4, 16, 1));
                }
                // Gated rows go where the next product takes them, and nowhere else.
                assert_eq!((gate.left.at, gate.domain[0].epilogue.form), (down.high, GATED));
                assert!(gate.domain[0].epilogue.out == 0 && down.left.at == 0);
            }
        }
    }

    #[test]
    fn one_row_has_no_list_between_its_router_and_its_experts() {
        let all = mixture(Format::Q4_0, 1);
        let experts = all.iter().enumerate().filter_map(|(i, l)| match &l.parameters {
            Parameters::Experts(p) => Some((i, p)),
            _ => None,
        });
        let [(first, gate), (second, down)] = experts.collect::<Vec<_>>()[..] else {
            return assert_eq!(all.len(), 0);
        };
        // The router, gate and up, down; both of the first norm the row themselves.
        let Parameters::Gemv(router) = &all[first - 1].parameters else {
            return assert_eq!(first, 0);
        };
        assert!(second == first + 1 && router.norm != 0 && router.norm == gate.norm);
        assert_eq!((router.x, gate.gated, down.gated), (gate.x, 1, 0));
        assert_eq!((gate.route.ids, gate.route.after), (down.ids, SOFTMAX));
        assert_eq!((gate.route.count, down.route.logits), (16, 0));
        assert_eq!(gate.route.logits, router.domain[0].epilogue.out);
    }
}
