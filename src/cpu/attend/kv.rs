//! Where the cache lies, and how a step's keys and values get there.

use super::CHUNK;
use super::kernel::BLOCK;
use crate::cpu::lanes::{LANES, Lanes, by_isa};
use crate::cpu::simd::Isa;
use crate::cpu::span::SpanKernels;

/// Where keys and values of one slot of one layer lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvLayout {
    pub(super) context: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    /// The context, whole blocks.
    pub(super) room: usize,
    /// The elements of a value, whole vectors.
    pub(super) wide: usize,
}

impl KvLayout {
    /// A layout for positions below `context`; `None` if a number is 0 or the size overflows.
    pub fn new(context: usize, kv_heads: usize, head_dim: usize) -> Option<KvLayout> {
        if context == 0 || kv_heads == 0 || head_dim == 0 {
            return None;
        }
        let room = context.checked_next_multiple_of(BLOCK)?;
        let wide = head_dim.checked_next_multiple_of(LANES)?;
        let elements = room.checked_mul(kv_heads)?.checked_mul(wide)?;
        if elements > isize::MAX as usize / 64 {
            return None;
        }
        Some(KvLayout { context, kv_heads, dim: head_dim, room, wide })
    }

    /// Bytes of the keys of one slot.
    pub fn key_bytes(&self) -> usize {
        self.room * self.kv_heads * self.dim * size_of::<u16>()
    }

    /// Bytes of the values of one slot.
    pub fn value_bytes(&self) -> usize {
        self.room * self.kv_heads * self.wide * size_of::<u16>()
    }

    /// The first key of a slot's head, in elements.
    pub(super) fn key_at(&self, slot: usize, head: usize) -> usize {
        (slot * self.kv_heads + head) * self.room * self.dim
    }

    /// The first value of a slot's head, in elements.
    pub(super) fn value_at(&self, slot: usize, head: usize) -> usize {
        (slot * self.kv_heads + head) * self.room * self.wide
    }

    /// Chunks of a slot, the last of which may be short.
    pub(super) fn chunks(&self) -> usize {
        self.room.div_ceil(CHUNK)
    }

    fn holds(&self, position: usize, head: usize) -> bool {
        position < self.context && head < self.kv_heads
    }

    /// Keeps the key of one head; nothing where position or head is outside the layout.
    ///
    /// # Safety
    /// `isa` is available; `keys` is valid for [`key_bytes`](Self::key_bytes) for each slot up to
    /// `slot`, `x` for a head; no one else touches that key meanwhile.
    pub unsafe fn store_key(
        &self,
        isa: Isa,
        keys: *mut u16,
        slot: usize,
        position: usize,
        head: usize,
        x: *const f32,
    ) {
        if !self.holds(position, head) {
            return;
        }
        let tile = position / LANES * self.dim * LANES + position % LANES;
        // SAFETY: the element lies inside the slot, since position and head do.
        unsafe {
            let key = keys.add(self.key_at(slot, head) + tile);
            by_isa!(isa, scatter(x: *const f32, out: *mut u16, dim: usize) with (x, key, self.dim));
        }
    }

    /// Keeps the value of one head; nothing where position or head is outside the layout.
    ///
    /// # Safety
    /// As [`store_key`](Self::store_key), with [`value_bytes`](Self::value_bytes).
    pub unsafe fn store_value(
        &self,
        isa: Isa,
        values: *mut u16,
        slot: usize,
        position: usize,
        head: usize,
        x: *const f32,
    ) {
        if !self.holds(position, head) {
            return;
        }
        // SAFETY: the row lies inside the slot, since position and head do.
        unsafe {
            let value = values.add(self.value_at(slot, head) + position * self.wide);
            (SpanKernels::of(isa).to_f16)(x, value, self.dim);
        }
    }
}

/// Puts `dim` elements as halves 16 apart.
#[inline(always)]
unsafe fn scatter<L: Lanes>(x: *const f32, out: *mut u16, dim: usize) {
    for start in (0..dim).step_by(LANES) {
        let n = LANES.min(dim - start);
        let (mut wide, mut halves) = ([0.0f32; LANES], [0u16; LANES]);
        // SAFETY: `x` is valid for `dim` elements, the arrays for sixteen, `out` for the tile.
        unsafe {
            std::ptr::copy_nonoverlapping(x.add(start), wide.as_mut_ptr(), n);
            L::load(wide.as_ptr()).store_half(halves.as_mut_ptr());
            for (i, &half) in halves.iter().enumerate().take(n) {
                *out.add((start + i) * LANES) = half;
            }
        }
    }
}
