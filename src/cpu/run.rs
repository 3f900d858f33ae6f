//! Replays a program: what every worker does, step by step.
//!
//! All memory is reached through [`Exec`], raw pointers that all workers share. What makes that
//! sound is the plan: a group's outputs overlap none of its inputs except element by element, its
//! columns or rows are shared out without overlap, and a barrier parts a group from the next.

use super::attend::AttendCall;
use super::pool::Worker;
use super::program::{
    Attend, Ids, Linear, Micro, NormKind, Place, Program, ROW_BLOCK, RowList, Rows, Step, What,
};
use super::quantize::{Activations, activation_bytes};
use super::repack::{TILE, row_f32};
use super::simd::Isa;
use super::span::SpanKernels;
use super::watch::Watch;
use crate::graph::op::top_k;
use crate::graph::{BinaryKind, Lead};
use std::sync::atomic::Ordering;

/// The memory of a session and the rows of a step, as workers see them.
#[derive(Clone, Copy)]
pub(super) struct Exec<'a> {
    pub isa: Isa,
    pub spans: &'static SpanKernels,
    pub weights: &'a [u8],
    pub kv: *mut u8,
    pub scratch: *mut f32,
    pub logits: *mut f32,
    pub shared: *mut u8,
    pub attention: *mut u8,
    pub private: *mut u8,
    pub private_bytes: usize,
    pub tokens: &'a [u32],
    pub positions: &'a [u32],
    pub slots: &'a [u32],
    pub outs: &'a [u32],
}

// SAFETY: the pointers are to memory that the session owns and lends to one replay at a time;
// within it, workers write apart from each other (see the module's text).
unsafe impl Sync for Exec<'_> {}

/// Where a list of micro-operations is at work.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// Strips of the product: register `i < parts` is at `strips + i * strip + strip_row`.
    strips: *mut f32,
    strip: usize,
    parts: usize,
    /// All other registers, `width` apart.
    registers: *mut f32,
    width: usize,
    row: usize,
    col: usize,
    columns: usize,
    /// Whether this worker writes to shared memory. Where all workers compute the same row for
    /// themselves, only one does.
    effects: bool,
}

impl Exec<'_> {
    /// The share of `worker` in every step of `program`; `watch` is told where it is.
    ///
    /// # Safety
    /// The memory must be what `program` asks for; tokens, positions, slots and outs must be within
    /// its limits; all workers of one pool must call this with the same arguments.
    pub unsafe fn program<W: Watch>(&self, program: &Program, worker: &Worker<'_>, watch: &W) {
        for (i, step) in program.steps.iter().enumerate() {
            if i > 0 {
                worker.barrier();
            }
            watch.begun(i, worker.index);
            // SAFETY: the caller's promise; the barrier ends the step before.
            unsafe {
                match step {
                    Step::Linear(linear) => self.linear(program, linear, worker),
                    Step::Experts(experts) => self.experts(program, experts, worker),
                    Step::Attend(attend) => self.attend(attend, worker),
                    Step::Rows(list) => {
                        for row in worker.share(self.count(list.lead)) {
                            self.list(program, list, row, true, worker.index);
                        }
                    }
                }
            }
            watch.done(i, worker.index);
        }
    }

    pub(super) fn count(&self, lead: Lead) -> usize {
        if lead == Lead::Outs { self.outs.len() } else { self.tokens.len() }
    }

    pub(super) fn private(&self, worker: usize) -> *mut u8 {
        self.private.wrapping_add(worker * self.private_bytes)
    }

    /// # Safety
    /// As [`Exec::program`], of a linear step.
    unsafe fn linear(&self, program: &Program, linear: &Linear, worker: &Worker<'_>) {
        let rows = self.count(linear.lead);
        if rows == 0 {
            return;
        }
        let (precision, inputs) = (linear.precision, linear.inputs);
        let registers = match &linear.prologue {
            Some(list) => list.bytes,
            None => 0,
        };
        let private = self.private(worker.index);
        let own = private.wrapping_add(registers);
        // SAFETY: the workspace holds the registers, then the activations of one row, then
        // strips; the shared part holds activations of all rows. Rows are shared out.
        let acts = unsafe {
            if rows == 1 {
                let acts = Activations::new(own, precision, inputs, 1);
                self.input(program, linear, &acts, 0, worker.index == 0, worker.index);
                acts
            } else {
                let acts = Activations::new(self.shared, precision, inputs, rows);
                for row in worker.share(rows) {
                    self.input(program, linear, &acts, row, true, worker.index);
                }
                worker.barrier();
                acts
            }
        };
        let one = activation_bytes(precision, inputs, 1).unwrap_or(0).next_multiple_of(64);
        let strips = own.wrapping_add(one).cast::<f32>();
        let taken = std::iter::once(worker.index)
            .chain(std::iter::repeat_with(|| linear.next.fetch_add(1, Ordering::Relaxed)));
        let pieces = taken.map_while(|piece| linear.pieces.get(piece));
        for (domain, range) in pieces.flatten() {
            let domain = &linear.domains[*domain];
            let width = domain.span(rows);
            let strip = width * ROW_BLOCK.min(rows);
            let registers = strips.wrapping_add(domain.parts.len() * strip);
            for col in range.clone().step_by(width) {
                let columns = width.min(range.end - col);
                let tiles = col / TILE..(col + columns).div_ceil(TILE);
                for first in (0..rows).step_by(ROW_BLOCK) {
                    let block = ROW_BLOCK.min(rows - first);
                    let acts = acts.part(first, block);
                    for (i, &part) in domain.parts.iter().enumerate() {
                        let (layout, at) = &linear.matrices[part];
                        let packed = &self.weights[*at..*at + layout.bytes()];
                        let out = strips.wrapping_add(i * strip).wrapping_sub(col);
                        // SAFETY: the strip holds `block` rows of `width` columns, of which the
                        // tiles write those from `col` on.
                        unsafe {
                            let tiles = tiles.clone();
                            super::matmul::matmul(
                                self.isa, layout, packed, &acts, tiles, out, width,
                            );
                        }
                    }
                    for row in 0..block {
                        let at = At {
                            strips: strips.wrapping_add(row * width),
                            strip,
                            parts: domain.parts.len(),
                            registers,
                            width,
                            row: first + row,
                            col,
                            columns,
                            effects: true,
                        };
                        for micro in &domain.micros {
                            // SAFETY: these columns of this row are this worker's alone.
                            unsafe { self.micro(program, micro, &at) };
                        }
                    }
                }
            }
        }
    }

    /// Computes the input of a product for one row and quantizes it.
    ///
    /// # Safety
    /// As [`Exec::program`]; the row of `acts` must be this worker's.
    unsafe fn input(
        &self,
        program: &Program,
        linear: &Linear,
        acts: &Activations,
        row: usize,
        effects: bool,
        worker: usize,
    ) {
        // SAFETY: the caller's promise. The operand is a whole row of `inputs` elements.
        unsafe {
            let at = match &linear.prologue {
                Some(list) => self.list(program, list, row, effects, worker),
                None => self.whole_row(row, 0, worker),
            };
            let x = std::slice::from_raw_parts(self.place(&linear.input, &at), linear.inputs);
            acts.quantize(self.isa, row, x, 0..acts.groups());
        }
    }

    pub(super) fn whole_row(&self, row: usize, width: usize, worker: usize) -> At {
        let registers = self.private(worker).cast::<f32>();
        At {
            strips: registers,
            strip: 0,
            parts: 0,
            registers,
            width,
            row,
            col: 0,
            columns: usize::MAX,
            effects: true,
        }
    }

    /// Runs a list on one row and says where its registers are.
    ///
    /// # Safety
    /// As [`Exec::program`]; with `effects`, the row must be this worker's.
    pub(super) unsafe fn list(
        &self,
        program: &Program,
        list: &RowList,
        row: usize,
        effects: bool,
        worker: usize,
    ) -> At {
        let at = At { effects, ..self.whole_row(row, list.width, worker) };
        for micro in &list.micros {
            // SAFETY: the caller's promise.
            unsafe { self.micro(program, micro, &at) };
        }
        at
    }

    /// # Safety
    /// As [`Exec::program`].
    unsafe fn attend(&self, attend: &Attend, worker: &Worker<'_>) {
        let (q, out) = (&attend.q, &attend.out);
        let call = AttendCall {
            q: self.rows(q, 0),
            q_stride: q.width,
            keys: self.kv.wrapping_add(attend.keys),
            values: self.kv.wrapping_add(attend.values),
            out: self.rows(out, 0),
            out_stride: out.width,
            positions: self.positions,
            slots: self.slots,
            sinks: attend.sinks.map(|byte| self.vector(byte)),
        };
        // SAFETY: positions and slots are within the caches; q, caches and out are apart.
        unsafe {
            attend.attention.run(self.isa, &call, worker.index, worker.count, self.attention);
        }
    }

    pub(super) fn rows(&self, rows: &Rows, row: usize) -> *mut f32 {
        let arena = if rows.logits { self.logits } else { self.scratch };
        arena.wrapping_add(rows.offset + row * rows.width + rows.col)
    }

    /// The first element of an operand's span.
    pub(super) fn place(&self, place: &Place, at: &At) -> *mut f32 {
        match place {
            Place::Register(i) => at.register(*i),
            Place::Rows(rows) => self.rows(rows, at.row).wrapping_add(at.col),
            Place::Vector(byte) => self.vector(*byte).cast_mut().wrapping_add(at.col),
        }
    }

    fn vector(&self, byte: usize) -> *const f32 {
        self.weights.as_ptr().wrapping_add(byte).cast()
    }

    /// # Safety
    /// As [`Exec::program`]; the span must be this worker's.
    unsafe fn micro(&self, program: &Program, micro: &Micro, at: &At) {
        let n = micro.len.min(at.columns);
        let k = self.spans;
        // SAFETY: registers and rows hold the span; results go to a register of their own; what is
        // put to memory is this worker's span.
        unsafe {
            match micro.what {
                What::Embed { to, table, offset, ids } => {
                    let packed = &self.weights[offset..offset + table.bytes()];
                    let ids = match ids {
                        Ids::Tokens => self.tokens.as_ptr().wrapping_add(at.row),
                        Ids::Positions => self.positions.as_ptr().wrapping_add(at.row),
                        Ids::Place(place) => self.place(&place, at).cast_const().cast(),
                    };
                    let out = std::slice::from_raw_parts_mut(at.register(to), n);
                    for (i, out) in out.chunks_exact_mut(table.cols()).enumerate() {
                        // The session has checked tokens and positions; a pick that is not there
                        // gives nothing.
                        if row_f32(&table, packed, *ids.add(i) as usize, out).is_err() {
                            out.fill(0.0);
                        }
                    }
                }
                What::Select { to, from } => {
                    (k.copy)(self.rows(&from, self.outs[at.row] as usize), at.register(to), n);
                }
                What::Norm { to, from, kind, weight, bias, each, dim, eps } => {
                    let (from, to) = (self.place(&from, at), at.register(to));
                    for i in (0..n).step_by(dim) {
                        let part = |byte: Option<usize>| match byte {
                            None => std::ptr::null(),
                            Some(byte) if each => self.vector(byte).add(at.col + i),
                            Some(byte) => self.vector(byte),
                        };
                        let (x, y) = (from.add(i), to.add(i));
                        match kind {
                            NormKind::Rms => (k.rms_norm)(x, part(weight), eps, y, dim),
                            NormKind::Layer => {
                                (k.layer_norm)(x, part(weight), part(bias), eps, y, dim);
                            }
                        }
                    }
                }
                What::Shares { to, from, dim, exp } => {
                    let (from, to) = (self.place(&from, at), at.register(to));
                    let share = if exp { k.softmax } else { k.normalize };
                    for i in (0..n).step_by(dim) {
                        share(from.add(i), to.add(i), dim);
                    }
                }
                What::TopK { to, from, dim } => {
                    let x = std::slice::from_raw_parts(self.place(&from, at), dim);
                    let ids = std::slice::from_raw_parts_mut(at.register(to).cast::<u32>(), n);
                    top_k(x, ids);
                }
                What::Pick { to, from, dim, ids } => {
                    let x = std::slice::from_raw_parts(self.place(&from, at), dim);
                    let ids = self.place(&ids, at).cast::<u32>();
                    let to = at.register(to);
                    for i in 0..n {
                        let id = *ids.add(i) as usize;
                        *to.add(i) = x.get(id).copied().unwrap_or(0.0);
                    }
                }
                What::Mix { to, from, weights, count } => {
                    let (from, weights) = (self.place(&from, at), self.place(&weights, at));
                    (k.mix)(from, weights, count, at.register(to), n);
                }
                What::Join { to, from, start, take, dim } => {
                    let (from, to) = (self.place(&from, at), at.register(to));
                    for i in 0..n / dim {
                        (k.copy)(from.add(i * take), to.add(i * dim + start), take);
                    }
                }
                What::Rope { to, from, rope, head } => {
                    let table = program.ropes[rope].table.as_ref();
                    if let Some((table, turn)) =
                        table.and_then(|t| Some((t, t.row(self.positions[at.row])?)))
                    {
                        let (from, to) = (self.place(&from, at), at.register(to));
                        let (dim, layout) = (table.dim(), table.layout());
                        (k.rope)(from, to, turn.as_ptr(), n / head, head, dim, layout);
                    }
                }
                What::Unary { to, from, kind } => {
                    (k.unary)(kind, self.place(&from, at), at.register(to), n);
                }
                What::Binary { to, a, b, kind } => {
                    let (a, b, to) = (self.place(&a, at), self.place(&b, at), at.register(to));
                    match kind {
                        BinaryKind::Add => (k.add)(a, b, to, n),
                        BinaryKind::Mul => (k.mul)(a, b, to, n),
                        BinaryKind::Sub => (k.sub)(a, b, to, n),
                        BinaryKind::Div => (k.div)(a, b, to, n),
                    }
                }
                What::Slice { to, from, start, take, dim } => {
                    let (from, to) = (self.place(&from, at), at.register(to));
                    for i in 0..n / take {
                        (k.copy)(from.add(i * dim + start), to.add(i * take), take);
                    }
                }
                What::Put { from, to } => {
                    if at.effects {
                        let to = self.rows(&to, at.row).wrapping_add(at.col);
                        (k.copy)(at.register(from), to, n);
                    }
                }
                What::Store { from, cache, keys, layout, head } => {
                    if at.effects {
                        let from = self.place(&from, at);
                        let cache = self.kv.wrapping_add(cache);
                        let slot = self.slots[at.row] as usize;
                        let position = self.positions[at.row] as usize;
                        for i in 0..n / head {
                            let (x, head) = (from.add(i * head), at.col / head + i);
                            if keys {
                                layout.store_key(self.isa, cache, slot, position, head, x);
                            } else {
                                layout.store_value(self.isa, cache, slot, position, head, x);
                            }
                        }
                    }
                }
            }
        }
    }
}

impl At {
    fn register(&self, i: usize) -> *mut f32 {
        match i.checked_sub(self.parts) {
            None => self.strips.wrapping_add(i * self.strip),
            Some(i) => self.registers.wrapping_add(i * self.width),
        }
    }
}
