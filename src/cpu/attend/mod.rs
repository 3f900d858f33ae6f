//! Attention over a cache of halves, or of codes of 8 bits with scales.
//!
//! **Layout.** Positions come in blocks of 64. The keys of one lie `[dim][64]`, so that a
//! vector holds the same element of 16 keys (a *tile*) and the scores of 16 positions grow in its
//! lanes without a horizontal sum; values lie `[position][dim]`, so that a vector holds 16 elements
//! of the sum. Both are read front to back, and a block follows the one before: one long run, to be
//! fetched ahead of its use. Each kv head has its own stretch. With codes, groups of 32 elements
//! have a scale, a half; those of a block lie behind its codes, `[group][64]`.
//!
//! **Order.** The result of a row is defined by absolute positions alone: within a block one
//! softmax; blocks of a chunk of [`CHUNK`] positions joined as they come, rescaled by the running
//! maximum; chunks joined from the first to the last. Every sum is one chain in order of element
//! or position; with codes a dot product is one of the sums of groups, each met by its scale, and a
//! value's scale meets its weight. So the bits depend neither on which rows are computed together,
//! nor on who computes which chunk, nor on the instruction set.
//!
//! **Sharing.** Rows of one slot at consecutive positions (prefill) form groups of up to
//! [`ROWS`]: their queries share each block, opened to f32 once. A unit of work is a group and
//! a kv head; where there are few rows it is a chunk of those as well, and whoever finishes the
//! last chunk joins them all. No barrier is needed inside.
//!
//! Positions that a row does not see are masked by selection, not by arithmetic: garbage there,
//! even NaN, is never part of a result.

mod job;
mod kernel;
mod kv;

pub use kv::KvLayout;

use super::lanes::{LANES, Lanes, by_isa};
use super::simd::{Isa, ahead};
use crate::graph::op::Attend;
use job::Job;
use std::ops::Range;
use std::sync::atomic::AtomicU32;

/// Positions that one unit of work covers where rows are few.
const CHUNK: usize = 128;
/// Rows whose queries share the conversion of a block.
const ROWS: usize = 16;
/// A step of at most so many rows is split by chunk.
const SPLIT_ROWS: usize = 16;
/// Counters of chunks done, one a row and kv head, at the start of the scratch: a fixed number, so
/// that all steps and all attentions agree where they are. They are 0 between steps.
const COUNTERS: usize = 1024;
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
    /// How many bytes ahead of those it reads a kernel asks for the cache.
    ahead: usize,
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
        Some(Attention { kv, heads, scale, window, softcap, alibi, ahead: ahead() })
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

    /// Elements of a [`State`](kernel::State) with its sum.
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
        let block = self.kv.open_key() + self.kv.open_value();
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

#[cfg(test)]
mod tests;
