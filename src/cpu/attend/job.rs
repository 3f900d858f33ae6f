//! One group of rows and one kv head: its chunks computed, and joined in their order.

use super::kernel::{BLOCK, Block, Source, State, open_keys, open_values, scores, sums};
use super::{AttendCall, Attention, CHUNK, Group};
use crate::cpu::lanes::{LANES, Lanes, Work};
use crate::graph::op::alibi_slope;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Queries that a kernel takes at once.
const QUERIES: usize = 4;

/// One group of rows and one kv head.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) this: &'a Attention,
    pub(super) call: &'a AttendCall<'a>,
    pub(super) group: Group,
    pub(super) head: usize,
    /// The thread's scratch: keys, values, then states of a chunk and of all chunks.
    pub(super) mine: *mut f32,
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
        let blocks = self.this.kv.open_key() + self.this.kv.open_value();
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
    pub(super) unsafe fn unit<L: Lanes>(
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
            unsafe { self.state(query).clear::<L>(kv.wide) };
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
    /// few, else opened once.
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
            let (k, v) = (self.mine, self.mine.add(kv.open_key()));
            let tiles = (seen.start - start) / LANES..(seen.end - 1 - start) / LANES + 1;
            open_keys::<L, S>(keys, kv.dim, tiles, k);
            open_values::<L, S>(values, kv.wide, seen.start - start..seen.end - start, v);
            self.block::<L, S::Open>(start, k.cast(), v.cast());
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
        let (this, kv, ahead) = (job.this, &job.this.kv, job.this.ahead);
        let keys = Block { data: keys, dim: kv.dim, ahead };
        let values = Block { data: values, dim: kv.wide, ahead };
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
                    scores::<L, S, M, 4>(&q, keys, tile, to)
                } else if const { L::SUMS >= 2 * M && L::SUMS < 4 * M } && left >= 2 {
                    scores::<L, S, M, 2>(&q, keys, tile, to)
                } else {
                    scores::<L, S, M, 1>(&q, keys, tile, to)
                };
            }
            // Each step for all queries: one's chain of steps is long, and they run beside one another.
            let mut tops = [(0.0, 0.0); M];
            for m in 0..M {
                let (scale, softcap) = (this.scale, this.softcap);
                let bias = job.bias(query + m, start);
                tops[m] = states[m].greatest::<L>(&mut weights[m], seen, scale, softcap, bias);
            }
            let mut factors = [0.0f32; M];
            for m in 0..M {
                factors[m] = states[m].weigh::<L>(&mut weights[m], tops[m]);
            }
            let (weights, factors, mut at) = (&weights, &factors, 0);
            while at < kv.wide {
                let left = (kv.wide - at) / LANES;
                at += if const { L::SUMS >= 4 * M } && left >= 4 {
                    sums::<L, S, M, 4>(weights, factors, seen, values, at, &states)
                } else if const { L::SUMS >= 2 * M && L::SUMS < 4 * M } && left >= 2 {
                    sums::<L, S, M, 2>(weights, factors, seen, values, at, &states)
                } else {
                    sums::<L, S, M, 1>(weights, factors, seen, values, at, &states)
                };
            }
        }
    }
}
