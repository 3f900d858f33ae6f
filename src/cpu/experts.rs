//! Products with the experts that rows picked: only their weights are read.
//!
//! A step over one row: each worker computes the prologue and quantizes for itself, then takes its
//! share of the tiles of every picked expert.
//!
//! Over several rows: rows are shared out, their picks and inputs written to common memory, a
//! barrier. Then all (row, pick) pairs are sorted by expert, which each worker does for itself, into
//! **places**: those of one expert follow one another and begin at a multiple of a block of
//! activations. The pairs are quantized into their places, a barrier, and each expert that anyone
//! picked is one matmul over its places, the columns shared out as ever. An expert's weights are
//! read once a step however many rows picked it.
//!
//! A pair's result does not depend on which others are beside it, since a matmul's rows do not.

use super::lower::{linear_precision, tensor_kind};
use super::pool::Worker;
use super::program::{Place, Program, ROW_BLOCK, RowList, Rows, SPAN_MANY, TensorKind};
use super::quantize::{Activations, BLOCK, Precision, activation_bytes};
use super::repack::{Layout, TILE};
use super::run::Exec;
use crate::graph::op::MOST_PICKS;
use crate::graph::{Graph, Lead, NodeId};
use crate::plan::inputs;

/// A product with picked experts.
pub(super) struct Experts {
    pub lead: Lead,
    pub prologue: Option<RowList>,
    /// The rows to multiply, and how long one is.
    pub input: Place,
    pub inputs: usize,
    /// Whether each pick has a row of its own.
    pub each: bool,
    /// The picks of a row, and how many they are.
    pub ids: Place,
    pub picks: usize,
    pub precision: Precision,
    /// Layout of an expert, first byte of all, how many there are.
    pub matrices: Vec<(Layout, usize, usize)>,
    /// Where results go: the outputs of all matrices, pick after pick.
    pub out: Rows,
    /// Rows of a step, at most.
    pub rows: usize,
}

/// The parts of the workspace, in bytes from their beginnings.
struct Parts {
    /// Common: picks of all rows, then their inputs, then activations by place.
    inputs: usize,
    acts: usize,
    shared: usize,
    /// A worker's own, behind the prologue's registers: activations of one row, then the first
    /// place of each expert, then the pair of each place, then a strip.
    starts: usize,
    pairs: usize,
    strip: usize,
    private: usize,
    /// Bytes of the activations of one row.
    one: usize,
}

/// Places for so many pairs: each expert's begin at a multiple of a block.
fn places(pairs: usize, experts: usize) -> Option<usize> {
    pairs.checked_add(experts.min(pairs).checked_mul(BLOCK)?)?.checked_next_multiple_of(BLOCK)
}

fn parts(
    precision: Precision,
    inputs: usize,
    each: bool,
    picks: usize,
    experts: usize,
    rows: usize,
) -> Option<Parts> {
    let align = |n: usize| n.checked_next_multiple_of(64);
    let pairs = rows.checked_mul(picks)?;
    let places = places(pairs, experts)?;
    let one = align(activation_bytes(precision, inputs, 1)?)?;
    let inputs_at = align(pairs.checked_mul(4)?)?;
    let values = if each { pairs } else { rows }.checked_mul(inputs)?.checked_mul(4)?;
    let acts = align(inputs_at.checked_add(values)?)?;
    let shared = align(acts.checked_add(activation_bytes(precision, inputs, places)?)?)?;
    let starts = one.checked_mul(if each { picks } else { 1 })?;
    let pairs_at = align(starts.checked_add(experts.checked_add(1)?.checked_mul(4)?)?)?;
    let strip = align(pairs_at.checked_add(places.checked_mul(4)?)?)?;
    let private = align(strip.checked_add(ROW_BLOCK * SPAN_MANY * 4)?)?;
    // Steps over one row need nothing in common.
    let shared = if rows > 1 { shared } else { 0 };
    Some(Parts { inputs: inputs_at, acts, shared, starts, pairs: pairs_at, strip, private, one })
}

/// The workspace of the product `id` in steps of up to `rows` rows, without its prologue.
pub(super) fn experts_work(graph: &Graph, id: NodeId, rows: usize) -> Option<super::program::Work> {
    let node = graph.node(id);
    let x = graph.ty(*node.args.first()?);
    let picks = graph.ty(*node.args.get(1)?).width();
    let w = graph.ty(*node.args.get(inputs(&node.op))?);
    let TensorKind::Experts(_, experts) = tensor_kind(w)? else { return None };
    let precision = linear_precision(graph, id)?;
    let parts = parts(precision, x.last(), x.dims.len() == 2, picks, experts, rows)?;
    let (shared, private) = (parts.shared, parts.private);
    Some(super::program::Work { shared, private, ..super::program::Work::default() })
}

impl Experts {
    fn parts(&self) -> Option<Parts> {
        let experts = self.matrices.first()?.2;
        parts(self.precision, self.inputs, self.each, self.picks, experts, self.rows)
    }

    /// The rows that a row of the step multiplies.
    fn inputs_of_row(&self) -> usize {
        if self.each { self.picks } else { 1 }
    }
}

impl Exec<'_> {
    /// # Safety
    /// As [`Exec::program`], of such a step.
    pub(super) unsafe fn experts(&self, program: &Program, e: &Experts, worker: &Worker<'_>) {
        let rows = self.count(e.lead);
        let Some(parts) = e.parts().filter(|_| rows > 0 && e.picks <= MOST_PICKS) else { return };
        let own = self.private(worker.index);
        let own = own.wrapping_add(e.prologue.as_ref().map_or(0, |list| list.bytes));
        // SAFETY: the caller's promise; the workspace has the parts.
        unsafe {
            if rows == 1 {
                self.experts_of_row(program, e, &parts, own, worker);
            } else {
                self.experts_of_rows(program, e, &parts, own, rows, worker);
            }
        }
    }

    /// Runs the prologue on a row; gives its inputs and picks.
    ///
    /// # Safety
    /// As [`Exec::program`]; with `effects`, the row must be this worker's.
    unsafe fn expert_inputs(
        &self,
        program: &Program,
        e: &Experts,
        row: usize,
        effects: bool,
        worker: usize,
    ) -> (*const f32, *const u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = match &e.prologue {
                Some(list) => self.list(program, list, row, effects, worker),
                None => self.whole_row(row, 0, worker),
            };
            (self.place(&e.input, &at).cast_const(), self.place(&e.ids, &at).cast_const().cast())
        }
    }

    /// # Safety
    /// As [`Exec::experts`].
    unsafe fn experts_of_row(
        &self,
        program: &Program,
        e: &Experts,
        parts: &Parts,
        own: *mut u8,
        worker: &Worker<'_>,
    ) {
        // SAFETY: the caller's promise: rows of `inputs` elements, `picks` picks, activations of as
        // many rows in this worker's own memory. Tiles are shared out, and each writes its own
        // columns of the result.
        unsafe {
            let (x, ids) = self.expert_inputs(program, e, 0, worker.index == 0, worker.index);
            let acts = |i: usize| {
                Activations::new(own.wrapping_add(i * parts.one), e.precision, e.inputs, 1)
            };
            for i in 0..e.inputs_of_row() {
                let x = std::slice::from_raw_parts(x.add(i * e.inputs), e.inputs);
                let acts = acts(i);
                acts.quantize(self.isa, 0, x, 0..acts.groups());
            }
            let outputs: usize = e.matrices.iter().map(|m| m.0.rows()).sum();
            for pick in 0..e.picks {
                let acts = acts(if e.each { pick } else { 0 });
                let mut out = self.rows(&e.out, 0).wrapping_add(pick * outputs);
                for &(layout, at, count) in &e.matrices {
                    let expert = *ids.add(pick) as usize;
                    let tiles = worker.share(layout.tiles());
                    if expert < count {
                        let packed = &self.weights[at + expert * layout.bytes()..];
                        let packed = &packed[..layout.bytes()];
                        super::matmul::matmul(self.isa, &layout, packed, &acts, tiles, out, 0);
                    } else {
                        let columns = tiles.start * TILE..layout.rows().min(tiles.end * TILE);
                        columns.for_each(|c| *out.add(c) = 0.0);
                    }
                    out = out.wrapping_add(layout.rows());
                }
            }
        }
    }

    /// # Safety
    /// As [`Exec::experts`].
    unsafe fn experts_of_rows(
        &self,
        program: &Program,
        e: &Experts,
        parts: &Parts,
        own: *mut u8,
        rows: usize,
        worker: &Worker<'_>,
    ) {
        let experts = e.matrices.first().map_or(0, |m| m.2);
        let per_row = e.inputs_of_row() * e.inputs;
        let (picks, values) = (self.shared.cast::<u32>(), self.shared.wrapping_add(parts.inputs));
        let values = values.cast::<f32>();
        let pairs = rows * e.picks;
        // SAFETY: the caller's promise: the workspace was sized for this many rows and picks. Rows
        // and pairs are shared out; barriers part who writes from who reads.
        unsafe {
            for row in worker.share(rows) {
                let (x, ids) = self.expert_inputs(program, e, row, true, worker.index);
                values.add(row * per_row).copy_from_nonoverlapping(x, per_row);
                picks.add(row * e.picks).copy_from_nonoverlapping(ids, e.picks);
            }
            worker.barrier();
            let picks = std::slice::from_raw_parts(picks.cast_const(), pairs);
            let starts = own.wrapping_add(parts.starts).cast::<u32>();
            let starts = std::slice::from_raw_parts_mut(starts, experts + 1);
            let places = places(pairs, experts).unwrap_or(0);
            let order = own.wrapping_add(parts.pairs).cast::<u32>();
            let order = std::slice::from_raw_parts_mut(order, places);
            sort(picks, starts, order);
            let used = starts.last().map_or(0, |&n| n as usize);
            let acts = self.shared.wrapping_add(parts.acts);
            let acts = Activations::new(acts, e.precision, e.inputs, used.max(BLOCK));
            for place in worker.share(used) {
                let pair = order[place];
                if pair == NOBODY {
                    continue;
                }
                let input = if e.each { pair as usize } else { pair as usize / e.picks };
                let x = values.add(input * e.inputs).cast_const();
                let x = std::slice::from_raw_parts(x, e.inputs);
                acts.quantize(self.isa, place, x, 0..acts.groups());
            }
            worker.barrier();
            let strip = own.wrapping_add(parts.strip).cast::<f32>();
            let outputs: usize = e.matrices.iter().map(|m| m.0.rows()).sum();
            for expert in 0..experts {
                let (first, end) = (starts[expert] as usize, starts[expert + 1] as usize);
                let own = order[first..end].iter().take_while(|&&p| p != NOBODY).count();
                let mut column = 0;
                for &(layout, at, _) in &e.matrices {
                    let packed = &self.weights[at + expert * layout.bytes()..][..layout.bytes()];
                    let tiles = worker.share(layout.tiles());
                    let width = SPAN_MANY / TILE;
                    for block in (0..own).step_by(ROW_BLOCK) {
                        let n = ROW_BLOCK.min(own - block);
                        let acts = acts.part(first + block, n);
                        for tile in tiles.clone().step_by(width) {
                            let tiles = tile..tiles.end.min(tile + width);
                            let columns = tile * TILE..layout.rows().min(tiles.end * TILE);
                            let to = strip.wrapping_sub(columns.start);
                            super::matmul::matmul(
                                self.isa, &layout, packed, &acts, tiles, to, SPAN_MANY,
                            );
                            for (i, &pair) in order[first + block..][..n].iter().enumerate() {
                                let (row, pick) =
                                    (pair as usize / e.picks, pair as usize % e.picks);
                                let at = pick * outputs + column + columns.start;
                                let out = self.rows(&e.out, row).wrapping_add(at);
                                let from = strip.add(i * SPAN_MANY).cast_const();
                                out.copy_from_nonoverlapping(from, columns.len());
                            }
                        }
                    }
                    column += layout.rows();
                }
            }
            // What picked an expert that is not there gets nothing.
            for pair in worker.share(pairs).filter(|&p| picks[p] as usize >= experts) {
                let out = self.rows(&e.out, pair / e.picks);
                let out = out.wrapping_add(pair % e.picks * outputs);
                std::slice::from_raw_parts_mut(out, outputs).fill(0.0);
            }
        }
    }
}

/// In a place that pads.
const NOBODY: u32 = u32::MAX;

/// Sorts pairs by the expert they picked, in their order: `starts` gets the first place of each
/// expert and the number of places used, `order` the pair of each place.
fn sort(picks: &[u32], starts: &mut [u32], order: &mut [u32]) {
    starts.fill(0);
    let experts = starts.len() - 1;
    for &pick in picks {
        if let Some(count) = starts[..experts].get_mut(pick as usize) {
            *count += 1;
        }
    }
    // Count becomes the place behind the last of each expert's.
    let mut next = 0u32;
    for start in starts.iter_mut() {
        let count = *start;
        *start = next + count;
        next += count.next_multiple_of(BLOCK as u32);
    }
    // Filled from the last to the first, it ends as the first.
    order.fill(NOBODY);
    for (pair, &pick) in picks.iter().enumerate().rev() {
        let Some(start) = starts[..experts].get_mut(pick as usize) else { continue };
        *start -= 1;
        if let Some(place) = order.get_mut(*start as usize) {
            *place = pair as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_into_blocks() {
        let picks = [2, 0, 2, 9, 2, 1, 0];
        let (mut starts, mut order) = ([7; 5], [7; 40]);
        sort(&picks, &mut starts, &mut order);
        assert_eq!(starts, [0, 8, 16, 24, 24]);
        assert_eq!(order[..3], [1, 6, NOBODY]);
        assert_eq!(order[8..10], [5, NOBODY]);
        assert_eq!(order[16..20], [0, 2, 4, NOBODY]);
        assert!(places(7, 4) >= Some(24) && order[20..].iter().all(|&p| p == NOBODY));
    }
}
