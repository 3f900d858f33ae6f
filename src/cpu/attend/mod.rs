//! Attention over a cache of halves, or of codes of 8 bits with scales.
//!
//! **Layout.** Positions come in blocks of [`BLOCK`]. The keys of one lie `[dim][64]`, so that a
//! vector holds the same element of 16 keys (a *tile*) and the scores of 16 positions grow in its
//! lanes without a horizontal sum; values lie `[position][dim]`, so that a vector holds 16 elements
//! of the sum. Both are read front to back, and a block follows the one before: what fetches memory
//! ahead of its use sees one long run. Each kv head has its own stretch. With codes, groups of 32
//! elements have a scale, a half; those of a block lie behind its codes, `[group][64]`.
//!
//! **Order.** The result of a row is defined by absolute positions alone: within a block one
//! softmax; blocks of a chunk of [`CHUNK`] positions joined as they come, rescaled by the running
//! maximum; chunks joined from the first to the last. Every sum is one chain in order of element
//! or position. So the bits depend neither on which rows are computed together, nor on who
//! computes which chunk, nor on the instruction set.
//!
//! **Sharing.** Rows of one slot at consecutive positions (prefill) form groups of up to
//! [`ROWS`]: their queries share each block, converted to f32 once. A unit of work is a group and
//! a kv head; where there are few rows it is a chunk of those as well, and whoever finishes the
//! last chunk joins them all. No barrier is needed inside.
//!
//! Positions that a row does not see are masked by selection, not by arithmetic: garbage there,
//! even NaN, is never part of a result.

mod kernel;
mod kv;

pub use kv::KvLayout;

use super::lanes::{LANES, Lanes, Work, by_isa};
use super::simd::Isa;
use crate::graph::op::{Attend, alibi_slope};
use kernel::{BLOCK, Source, State, scores, sums, widen_keys, widen_values};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Positions that one unit of work covers where rows are few.
const CHUNK: usize = 128;
/// Rows whose queries share the conversion of a block.
const ROWS: usize = 16;
/// A step of at most so many rows is split by chunk.
const SPLIT_ROWS: usize = 16;
/// Counters of chunks done, one a row and kv head, at the start of the scratch: a fixed number, so
/// that all steps and all attentions agree where they are. They are 0 between steps.
const COUNTERS: usize = 1024;
/// Queries that a kernel takes at once.
const QUERIES: usize = 4;
/// Bytes that parts of scratch are apart, so that threads share no cache line.
const LINE: usize = 128;

/// What one step asks of a layer's attention.
#[derive(Clone, Copy)]
pub struct AttendCall<'a> {
    /// Head `h` of row `r` begins at `r * q_stride + h * head_dim`.
    pub q: *const f32,
    /// From a row of queries to the next, in elements.
    pub q_stride: usize,
    /// The keys of slot 0.
    pub keys: *const u8,
    /// The values of slot 0.
    pub values: *const u8,
    /// As `q`; overlaps nothing else here.
    pub out: *mut f32,
    /// From a row of results to the next, in elements.
    pub out_stride: usize,
    /// The position of each row, below the context.
    pub positions: &'a [u32],
    /// The slot of each row.
    pub slots: &'a [u32],
    /// A score for each query head that has no value, if there are any.
    pub sinks: Option<*const f32>,
}

/// Attention of one layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    kv: KvLayout,
    heads: usize,
    scale: f32,
    window: usize,
    softcap: Option<f32>,
    alibi: Option<f32>,
}

/// Rows of one slot at consecutive positions.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    rows: usize,
    slot: usize,
    /// The position of the first row.
    position: usize,
}

impl Attention {
    /// The attention of `op` with `heads` query heads; `None` if they do not divide among the kv
    /// heads.
    pub fn new(op: &Attend, heads: usize, kv: KvLayout) -> Option<Attention> {
        if heads == 0 || !heads.is_multiple_of(kv.kv_heads) {
            return None;
        }
        heads.checked_mul(kv.wide)?.checked_mul(ROWS * 64)?;
        let window = op.window.unwrap_or(usize::MAX);
        let (scale, softcap, alibi) = (op.scale, op.softcap, op.alibi);
        Some(Attention { kv, heads, scale, window, softcap, alibi })
    }

    /// Scratch of [`run`](Self::run) for steps of up to `rows` rows on up to `threads` workers,
    /// zeroed before its first use. `None` if the size overflows.
    pub fn scratch_bytes(&self, rows: usize, threads: usize) -> Option<usize> {
        let threads = threads.checked_mul(self.thread_bytes())?;
        self.parts_bytes(rows.min(SPLIT_ROWS))?.checked_add(threads)
    }

    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.heads / self.kv.kv_heads
    }

    /// Elements of a [`State`] with its sum.
    fn state_len(&self) -> usize {
        LANES + self.kv.wide
    }

    /// Counters, then the states of every chunk of `rows` rows.
    fn parts_bytes(&self, rows: usize) -> Option<usize> {
        let states = rows.checked_mul(self.heads)?.checked_mul(self.kv.chunks())?;
        let bytes = states.checked_mul(self.state_len() * size_of::<f32>())?;
        bytes.checked_next_multiple_of(LINE)?.checked_add(COUNTERS * size_of::<u32>())
    }

    /// What a thread needs: a block of keys and one of values in f32, and two states a query.
    fn thread_bytes(&self) -> usize {
        let block = BLOCK * (self.kv.dim + self.kv.wide);
        let states = 2 * ROWS * self.group() * self.state_len();
        ((block + states) * size_of::<f32>()).next_multiple_of(LINE)
    }

    /// The positions that a row at `position` sees.
    fn seen(&self, position: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// The chunks that hold those positions.
    fn chunks(seen: &Range<usize>) -> Range<usize> {
        seen.start / CHUNK..(seen.end - 1) / CHUNK + 1
    }

    /// The chunks that any row of a group sees.
    fn chunks_of(&self, group: Group) -> Range<usize> {
        Self::chunks(&(self.seen(group.position).start..group.position + group.rows))
    }

    /// The share of worker `index` of `count` in a step. All workers of a step call this with the
    /// same call; a barrier stands before it (queries and cache are written) and after it (the
    /// result is read, or the scratch used again).
    ///
    /// # Safety
    /// - `isa` is available, `index < count`, positions and slots are equally many;
    /// - every position is below the context; keys and values are valid for every slot, their
    ///   bytes initialized and aligned to two; `q` and `out` are valid for every row;
    /// - `scratch` is valid for [`scratch_bytes`](Self::scratch_bytes) of at least these rows and
    ///   workers, aligned to 64 bytes, zeroed before its first use and since then touched only by
    ///   this function, whatever the attention;
    /// - `out` and the scratch overlap nothing else.
    pub unsafe fn run(
        &self,
        isa: Isa,
        call: &AttendCall<'_>,
        index: usize,
        count: usize,
        scratch: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            by_isa!(isa, share(this: &Attention, call: &AttendCall<'_>, index: usize,
                count: usize, scratch: *mut u8) with (self, call, index, count, scratch));
        }
    }

    /// The group that begins with row `first`.
    fn group_at(&self, call: &AttendCall<'_>, first: usize) -> Option<Group> {
        let (&slot, &position) = (call.slots.get(first)?, call.positions.get(first)?);
        let others = call.slots.iter().zip(call.positions).skip(first).take(ROWS).enumerate();
        let along = |(i, (&s, &p)): (usize, (&u32, &u32))| {
            s == slot && u32::try_from(i).ok().and_then(|i| position.checked_add(i)) == Some(p)
        };
        let rows = others.take_while(|&row| along(row)).count();
        Some(Group { first, rows, slot: slot as usize, position: position as usize })
    }
}

/// [`Attention::run`] for one instruction set.
#[inline(always)]
unsafe fn share<L: Lanes>(
    this: &Attention,
    call: &AttendCall<'_>,
    index: usize,
    count: usize,
    scratch: *mut u8,
) {
    let (rows, kv_heads) = (call.positions.len(), this.kv.kv_heads);
    let split = rows <= SPLIT_ROWS && rows * kv_heads <= COUNTERS;
    let parts = this.parts_bytes(rows.min(SPLIT_ROWS)).unwrap_or(0);
    // SAFETY: counters, parts and the threads' areas follow one another in the scratch.
    let (counters, parts, area) = unsafe {
        let states = scratch.add(COUNTERS * size_of::<u32>()).cast::<f32>();
        let mine = scratch.add(parts + index * this.thread_bytes());
        (scratch.cast::<AtomicU32>(), states, mine.cast::<f32>())
    };
    // Split, a worker has units one after the other, so that it reads on where it stopped.
    let mut units = 0;
    if split {
        let mut first = 0;
        while let Some(group) = this.group_at(call, first) {
            units += this.chunks_of(group).len() * kv_heads;
            first += group.rows;
        }
    }
    let own = units * index / count..units * (index + 1) / count;
    let (mut first, mut unit) = (0, 0);
    while let Some(group) = this.group_at(call, first) {
        let chunks = this.chunks_of(group);
        for head in 0..kv_heads {
            // SAFETY: the caller's promise; each unit has one worker.
            unsafe {
                let job = Job { this, call, group, head, mine: area };
                // Units: all chunks at once, or each.
                let each = if split { 1 } else { chunks.len() };
                for start in chunks.clone().step_by(each) {
                    let mine = if split { own.contains(&unit) } else { unit % count == index };
                    if mine {
                        job.unit::<L>(start..start + each, chunks.len(), counters, parts);
                    }
                    unit += 1;
                }
            }
        }
        first += group.rows;
    }
}

/// One group of rows and one kv head.
#[derive(Clone, Copy)]
struct Job<'a> {
    this: &'a Attention,
    call: &'a AttendCall<'a>,
    group: Group,
    head: usize,
    /// The thread's scratch: keys, values, then states of a chunk and of all chunks.
    mine: *mut f32,
}

impl Job<'_> {
    /// Query `i` of the group's `rows * group` queries, and which of `out` or `q` is meant.
    #[inline(always)]
    fn offset(&self, query: usize, stride: usize) -> usize {
        let (row, of_row) = (query / self.this.group(), query % self.this.group());
        let head = self.head * self.this.group() + of_row;
        (self.group.first + row) * stride + head * self.this.kv.dim
    }

    /// The query head of query `i`.
    #[inline(always)]
    fn query_head(&self, query: usize) -> usize {
        self.head * self.this.group() + query % self.this.group()
    }

    /// Its sink.
    #[inline(always)]
    unsafe fn sink(&self, query: usize) -> Option<f32> {
        // SAFETY: there are as many as query heads.
        self.call.sinks.map(|sinks| unsafe { *sinks.add(self.query_head(query)) })
    }

    /// What a query adds to the scores of a block that begins at `start`: a slope, and the distance
    /// of the first position.
    #[inline(always)]
    fn bias(&self, query: usize, start: usize) -> Option<(f32, f32)> {
        let slope = alibi_slope(self.this.alibi?, self.query_head(query), self.this.heads);
        let position = self.group.position + query / self.this.group();
        Some((slope, start as f32 - position as f32))
    }

    /// State `i` of this thread: those of the chunk, then those of all chunks.
    #[inline(always)]
    unsafe fn state(&self, i: usize) -> State {
        let blocks = BLOCK * (self.this.kv.dim + self.this.kv.wide);
        // SAFETY: `i` is below 2 * ROWS * group.
        State { data: unsafe { self.mine.add(blocks + i * self.this.state_len()) } }
    }

    /// The positions of chunk `chunk` that row `row` of the group sees.
    #[inline(always)]
    fn seen_in(&self, row: usize, span: &Range<usize>) -> Range<usize> {
        let seen = self.this.seen(self.group.position + row);
        let start = seen.start.clamp(span.start, span.end);
        start..seen.end.min(span.end).max(start)
    }

    /// The chunks of one unit. All of the group's: the result. Else one, kept for whoever is the
    /// last to finish one; that one joins them all.
    #[inline(always)]
    unsafe fn unit<L: Lanes>(
        &self,
        chunks: Range<usize>,
        of: usize,
        counters: *const AtomicU32,
        parts: *mut f32,
    ) {
        let whole = chunks.len() == of;
        for chunk in chunks {
            // SAFETY: the caller's promise; the parts of this unit are written by it alone.
            unsafe {
                self.chunk::<L>(chunk);
                if whole {
                    self.add::<L>(chunk);
                } else {
                    for query in 0..self.group.rows * self.this.group() {
                        let kept = self.kept(query, chunk, parts);
                        self.state(query).copy_to(kept, self.this.kv.wide);
                    }
                }
            }
        }
        if whole {
            return;
        }
        // SAFETY: few rows times kv heads have a counter each.
        unsafe {
            let counter = &*counters.add(self.group.first * self.this.kv.kv_heads + self.head);
            // Released with the part, acquired with all others by the last to come.
            if counter.fetch_add(1, Ordering::AcqRel) as usize + 1 == of {
                counter.store(0, Ordering::Relaxed);
                self.join_parts::<L>(parts);
            }
        }
    }

    /// Joins the states of a chunk to those of the chunks before; after the last, the result.
    #[inline(always)]
    unsafe fn add<L: Lanes>(&self, chunk: usize) {
        let (queries, wide) = (self.group.rows * self.this.group(), self.this.kv.wide);
        for query in 0..queries {
            let seen = self.this.seen(self.group.position + query / self.this.group());
            let own = Attention::chunks(&seen);
            if !own.contains(&chunk) {
                continue;
            }
            // SAFETY: states of this thread; the output of this query.
            unsafe {
                let (part, all) = (self.state(query), self.state(queries + query));
                if chunk == own.start {
                    part.copy_to(all, wide);
                } else {
                    all.join::<L>(part, wide);
                }
                if chunk + 1 == own.end {
                    let out = self.call.out.add(self.offset(query, self.call.out_stride));
                    all.finish::<L>(out, self.this.kv.dim, self.sink(query));
                }
            }
        }
    }

    /// Where the part of `query` for `chunk` is kept.
    #[inline(always)]
    unsafe fn kept(&self, query: usize, chunk: usize, parts: *mut f32) -> State {
        let (row, of_row) = (query / self.this.group(), query % self.this.group());
        let head = self.head * self.this.group() + of_row;
        let index = (self.group.first + row) * self.this.heads + head;
        let index = index * self.this.kv.chunks() + chunk;
        // SAFETY: row, head and chunk are inside what the parts were sized for.
        State { data: unsafe { parts.add(index * self.this.state_len()) } }
    }

    /// The result from the parts of all chunks.
    #[inline(always)]
    unsafe fn join_parts<L: Lanes>(&self, parts: *mut f32) {
        for query in 0..self.group.rows * self.this.group() {
            let seen = self.this.seen(self.group.position + query / self.this.group());
            let own = Attention::chunks(&seen);
            // SAFETY: all parts of this group and head are complete, and this thread alone joins.
            unsafe {
                let all = self.kept(query, own.start, parts);
                for chunk in own.start + 1..own.end {
                    all.join::<L>(self.kept(query, chunk, parts), self.this.kv.wide);
                }
                let out = self.call.out.add(self.offset(query, self.call.out_stride));
                all.finish::<L>(out, self.this.kv.dim, self.sink(query));
            }
        }
    }

    /// The states of all queries over one chunk, from nothing.
    #[inline(always)]
    unsafe fn chunk<L: Lanes>(&self, chunk: usize) {
        let (kv, group) = (&self.this.kv, self.this.group());
        let queries = self.group.rows * group;
        for query in 0..queries {
            // SAFETY: a state of this thread.
            unsafe { self.state(query).clear(kv.wide) };
        }
        for start in (chunk * CHUNK..(chunk + 1) * CHUNK).step_by(BLOCK) {
            let block = start..start + BLOCK;
            // What any row sees: from where the first begins to where the last ends.
            let (low, high) = (self.seen_in(0, &block), self.seen_in(self.group.rows - 1, &block));
            let seen = low.start..high.end;
            if seen.is_empty() {
                continue;
            }
            // SAFETY: the block lies inside the head of the slot: `room` is whole chunks.
            unsafe {
                let keys = self.call.keys.add(kv.key_at(self.group.slot, self.head, start));
                let values = self.call.values.add(kv.value_at(self.group.slot, self.head, start));
                if kv.q8 {
                    self.stored::<L, i8>(start, seen, keys.cast(), values.cast());
                } else {
                    self.stored::<L, u16>(start, seen, keys.cast(), values.cast());
                }
            }
        }
    }

    /// One block as the cache keeps it, of which `seen` is seen: read as it is where queries are
    /// few, else converted once.
    #[inline(always)]
    unsafe fn stored<L: Lanes, S: Source>(
        &self,
        start: usize,
        seen: Range<usize>,
        keys: *const S,
        values: *const S,
    ) {
        let kv = &self.this.kv;
        // SAFETY: the caller's promise; this thread's scratch has room for a block.
        unsafe {
            if self.group.rows * self.this.group() <= 2 * QUERIES {
                return self.block::<L, S>(start, keys, values);
            }
            let (k, v) = (self.mine, self.mine.add(BLOCK * kv.dim));
            let tiles = (seen.start - start) / LANES..(seen.end - 1 - start) / LANES + 1;
            widen_keys::<L, S>(keys, kv.dim, tiles, k);
            widen_values::<L, S>(values, kv.wide, seen.start - start..seen.end - start, v);
            self.block::<L, f32>(start, k, v);
        }
    }

    /// One block for all queries, those that see the same of it together.
    #[inline(always)]
    unsafe fn block<L: Lanes, S: Source>(&self, start: usize, keys: *const S, values: *const S) {
        let (group, block) = (self.this.group(), start..start + BLOCK);
        let mut row = 0;
        while row < self.group.rows {
            let seen = self.seen_in(row, &block);
            let mut end = row + 1;
            while end < self.group.rows && self.seen_in(end, &block) == seen {
                end += 1;
            }
            if !seen.is_empty() {
                let seen = seen.start - start..seen.end - start;
                let mut query = row * group;
                // SAFETY: queries below rows * group; the caller's promise for the block.
                unsafe {
                    while query < end * group {
                        // One at a time where not even one query's sums fit the registers.
                        let most = if const { L::SUMS > 1 } { QUERIES } else { 1 };
                        let n = (end * group - query).min(most);
                        let (job, seen) = (*self, &seen);
                        if const { L::SUMS > 1 } {
                            match n {
                                1 => L::outline(Queries::<S, 1> {
                                    job,
                                    query,
                                    start,
                                    seen,
                                    keys,
                                    values,
                                }),
                                2 => L::outline(Queries::<S, 2> {
                                    job,
                                    query,
                                    start,
                                    seen,
                                    keys,
                                    values,
                                }),
                                3 => L::outline(Queries::<S, 3> {
                                    job,
                                    query,
                                    start,
                                    seen,
                                    keys,
                                    values,
                                }),
                                _ => L::outline(Queries::<S, 4> {
                                    job,
                                    query,
                                    start,
                                    seen,
                                    keys,
                                    values,
                                }),
                            }
                        } else {
                            L::outline(Queries::<S, 1> { job, query, start, seen, keys, values });
                        }
                        query += n;
                    }
                }
            }
            row = end;
        }
    }
}

/// The positions `seen` of a block, to be added to the states of `M` queries: a function of its
/// own, since all of them inlined into one take the compiler minutes.
struct Queries<'a, S, const M: usize> {
    job: Job<'a>,
    query: usize,
    /// The position where the block begins.
    start: usize,
    seen: &'a Range<usize>,
    keys: *const S,
    values: *const S,
}

impl<S: Source, const M: usize> Work for Queries<'_, S, M> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Queries { job, query, start, seen, keys, values } = self;
        let (this, kv) = (job.this, &job.this.kv);
        let mut q = [std::ptr::null(); M];
        let mut states = [State { data: std::ptr::null_mut() }; M];
        let mut weights = [[f32::NEG_INFINITY; BLOCK]; M];
        let tiles = seen.start / LANES..(seen.end - 1) / LANES + 1;
        // SAFETY: M queries from `query` on are this job's; see `chunk` for the block.
        unsafe {
            for m in 0..M {
                q[m] = job.call.q.add(job.offset(query + m, job.call.q_stride));
                states[m] = job.state(query + m);
            }
            // As many vectors at once as there are registers for their sums.
            let mut tile = tiles.start;
            while tile < tiles.end {
                let (left, to) = (tiles.end - tile, &mut weights);
                tile += if const { L::SUMS >= 4 * M } && left >= 4 {
                    scores::<L, S, M, 4>(&q, keys, kv.dim, tile, to)
                } else if const { L::SUMS >= 2 * M && L::SUMS < 4 * M } && left >= 2 {
                    scores::<L, S, M, 2>(&q, keys, kv.dim, tile, to)
                } else {
                    scores::<L, S, M, 1>(&q, keys, kv.dim, tile, to)
                };
            }
            let mut factors = [0.0f32; M];
            for m in 0..M {
                let (scale, softcap) = (this.scale, this.softcap);
                let bias = job.bias(query + m, start);
                factors[m] = states[m].softmax::<L>(&mut weights[m], seen, scale, softcap, bias);
            }
            let (weights, factors, mut at) = (&weights, &factors, 0);
            while at < kv.wide {
                let left = (kv.wide - at) / LANES;
                at += if const { L::SUMS >= 4 * M } && left >= 4 {
                    sums::<L, S, M, 4>(weights, factors, seen, values, kv.wide, at, &states)
                } else if const { L::SUMS >= 2 * M && L::SUMS < 4 * M } && left >= 2 {
                    sums::<L, S, M, 2>(weights, factors, seen, values, kv.wide, at, &states)
                } else {
                    sums::<L, S, M, 1>(weights, factors, seen, values, kv.wide, at, &states)
                };
            }
        }
    }
}

#[cfg(test)]
mod tests;
