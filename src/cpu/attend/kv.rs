//! Where the cache lies, and how a step's keys and values get there.

use super::CHUNK;
use super::kernel::{BLOCK, Code, GROUP, Source};
use crate::cpu::lanes::{LANES, Lanes, ROUND, by_isa};
use crate::cpu::simd::Isa;
use crate::cpu::span::SpanKernels;
use crate::graph::DType;

/// The greatest code.
const MOST: f32 = 127.0;

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
    /// Codes of 8 bits with scales, else halves.
    pub(super) q8: bool,
}

impl KvLayout {
    /// A layout for positions below `context`, kept as `dtype`; `None` if a cache is not kept so, a
    /// number is 0 or the size overflows.
    pub fn new(context: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> Option<KvLayout> {
        let q8 = match dtype {
            DType::F16 => false,
            DType::Q8_0 => true,
            DType::F32 | DType::U32 | DType::Weight(_) => return None,
        };
        if context == 0 || kv_heads == 0 || head_dim == 0 {
            return None;
        }
        let room = context.checked_next_multiple_of(BLOCK)?;
        let wide = head_dim.checked_next_multiple_of(LANES)?;
        let elements = room.checked_mul(kv_heads)?.checked_mul(wide)?;
        if elements > isize::MAX as usize / 64 {
            return None;
        }
        Some(KvLayout { context, kv_heads, dim: head_dim, room, wide, q8 })
    }

    /// Bytes of the keys of one slot.
    pub fn key_bytes(&self) -> usize {
        self.key_at(1, 0, 0)
    }

    /// Bytes of the values of one slot.
    pub fn value_bytes(&self) -> usize {
        self.value_at(1, 0, 0)
    }

    /// The block of keys that holds `position`, in bytes.
    pub(super) fn key_at(&self, slot: usize, head: usize, position: usize) -> usize {
        self.block_at(slot, head, position, self.dim)
    }

    /// The block of values that holds `position`, in bytes.
    pub(super) fn value_at(&self, slot: usize, head: usize, position: usize) -> usize {
        self.block_at(slot, head, position, self.wide)
    }

    fn block_at(&self, slot: usize, head: usize, position: usize, dim: usize) -> usize {
        let block = if self.q8 { i8::block(dim) } else { u16::block(dim) * size_of::<u16>() };
        ((slot * self.kv_heads + head) * (self.room / BLOCK) + position / BLOCK) * block
    }

    /// Elements of an opened block of keys.
    pub(super) fn open_key(&self) -> usize {
        if self.q8 { Code::block(self.dim) } else { f32::block(self.dim) }
    }

    /// Elements of an opened block of values.
    pub(super) fn open_value(&self) -> usize {
        if self.q8 { Code::block(self.wide) } else { f32::block(self.wide) }
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
    /// `slot` and aligned to two, `x` for a head; no one else touches that key meanwhile.
    pub unsafe fn store_key(
        &self,
        isa: Isa,
        keys: *mut u8,
        slot: usize,
        position: usize,
        head: usize,
        x: *const f32,
    ) {
        if !self.holds(position, head) {
            return;
        }
        let (dim, lane) = (self.dim, position % BLOCK);
        // SAFETY: the block lies inside the slot, since position and head do.
        unsafe {
            let block = keys.add(self.key_at(slot, head, position));
            if self.q8 {
                let scales = block.add(dim * BLOCK).cast::<u16>().add(lane);
                quantize(isa, x, dim, block.add(lane).cast(), BLOCK, scales);
            } else {
                let key = block.cast::<u16>().add(lane);
                by_isa!(isa, scatter(x: *const f32, out: *mut u16, dim: usize) with (x, key, dim));
            }
        }
    }

    /// Keeps the value of one head; nothing where position or head is outside the layout.
    ///
    /// # Safety
    /// As [`store_key`](Self::store_key), with [`value_bytes`](Self::value_bytes).
    pub unsafe fn store_value(
        &self,
        isa: Isa,
        values: *mut u8,
        slot: usize,
        position: usize,
        head: usize,
        x: *const f32,
    ) {
        if !self.holds(position, head) {
            return;
        }
        let (dim, lane) = (self.dim, position % BLOCK);
        // SAFETY: the block lies inside the slot, since position and head do.
        unsafe {
            let block = values.add(self.value_at(slot, head, position));
            if self.q8 {
                let scales = block.add(self.wide * BLOCK).cast::<u16>().add(lane);
                quantize(isa, x, dim, block.add(lane * self.wide).cast(), 1, scales);
            } else {
                let value = block.cast::<u16>().add(lane * self.wide);
                (SpanKernels::of(isa).to_f16)(x, value, dim);
            }
        }
    }
}

/// Puts `dim` elements as halves, a block apart.
#[inline(always)]
unsafe fn scatter<L: Lanes>(x: *const f32, out: *mut u16, dim: usize) {
    for start in (0..dim).step_by(LANES) {
        let n = LANES.min(dim - start);
        let (mut wide, mut halves) = ([0.0f32; LANES], [0u16; LANES]);
        // SAFETY: `x` is valid for `dim` elements, the arrays for sixteen, `out` for the block.
        unsafe {
            std::ptr::copy_nonoverlapping(x.add(start), wide.as_mut_ptr(), n);
            L::load(wide.as_ptr()).store_half(halves.as_mut_ptr());
            for (i, &half) in halves.iter().enumerate().take(n) {
                *out.add((start + i) * BLOCK) = half;
            }
        }
    }
}

/// Puts `dim` elements as codes `stride` apart, and a scale a group, a block apart.
///
/// # Safety
/// `isa` is available, `x` is valid for `dim` elements, codes and scales for what is put there.
unsafe fn quantize(
    isa: Isa,
    x: *const f32,
    dim: usize,
    codes: *mut i8,
    stride: usize,
    scales: *mut u16,
) {
    // SAFETY: the caller's promise.
    unsafe {
        by_isa!(isa, groups(x: *const f32, dim: usize, codes: *mut i8, stride: usize,
            scales: *mut u16) with (x, dim, codes, stride, scales));
    }
}

#[inline(always)]
unsafe fn groups<L: Lanes>(
    x: *const f32,
    dim: usize,
    codes: *mut i8,
    stride: usize,
    scales: *mut u16,
) {
    for (group, start) in (0..dim).step_by(GROUP).enumerate() {
        let n = GROUP.min(dim - start);
        let (mut wide, mut halves) = ([0.0f32; GROUP], [0u16; LANES]);
        // SAFETY: `x` is valid for `dim` elements, the arrays for what is loaded and stored.
        unsafe {
            std::ptr::copy_nonoverlapping(x.add(start), wide.as_mut_ptr(), n);
            let (a, b) = (L::load(wide.as_ptr()), L::load(wide.as_ptr().add(LANES)));
            // 0, or NaN if any element is not finite: then the scale is NaN and so are all.
            let taint = a.mul(L::splat(0.0)).add(b.mul(L::splat(0.0))).sum();
            let top = a.abs().max(b.abs()).greatest();
            L::splat(top / MOST + taint).store_half(halves.as_mut_ptr());
            *scales.add(group * BLOCK) = halves[0];
            // Codes are of the scale as it is kept.
            let scale = L::load_half(halves.as_ptr());
            for (i, x) in [a, b].into_iter().enumerate() {
                // A scale that was rounded down, or is hardly a half, would let more through.
                let (q, most) = (x.div(scale), L::splat(MOST));
                let q = most.if_less(q, most, q);
                let q = q.if_less(L::splat(-MOST), L::splat(-MOST), q);
                let q = L::splat(0.0).if_less(scale, q, L::splat(0.0));
                q.add(L::splat(ROUND)).store(wide.as_mut_ptr().add(i * LANES));
            }
            for (i, q) in wide.iter().enumerate().take(n) {
                *codes.add((start + i) * stride) = q.to_bits() as i8;
            }
        }
    }
}
