//! Attention.

use super::{QUERIES, SplitTiles};

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Attend {
    pub q: u64,
    pub out: u64,
    pub keys: u64,
    pub values: u64,
    /// 0 where keys and values are halves.
    pub key_scales: u64,
    pub value_scales: u64,
    pub positions: u64,
    pub slots: u64,
    pub partial: u64,
    pub arrived: u64,
    pub sinks: u64,
    pub q_stride: u32,
    pub out_stride: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub dim: u32,
    pub context: u32,
    pub window: u32,
    pub chunks: u32,
    pub scale: f32,
    pub softcap: f32,
    pub split: u32,
    pub alibi: f32,
    /// How many of `kv_heads` are one in the cache.
    pub share: u32,
    /// Rows of the step.
    pub rows: u32,
    /// Chunks on their way, and how many there is room for.
    pub buffers: u32,
    pub room: u32,
    pub left: SplitTiles,
}

/// Heads as a product left them, and what becomes of them; zeros for what is not done.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Heads {
    pub raw: u64,
    pub bias: u64,
    pub norm: u64,
    pub turns: u64,
    pub eps: f32,
    pub turn: u32,
    pub halves: u32,
    /// Floats from a row to the next, if there are several.
    pub stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct AttendOne {
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    pub out: u64,
    pub keys: u64,
    pub values: u64,
    pub positions: u64,
    pub slots: u64,
    pub sinks: u64,
    pub partial: u64,
    pub arrived: u64,
    pub kv_heads: u32,
    pub group: u32,
    pub taken: u32,
    pub parts: u32,
    pub dim: u32,
    pub context: u32,
    pub window: u32,
    pub runs: u32,
    pub chunk: u32,
    pub buffers: u32,
    pub scale: f32,
    pub softcap: f32,
}

/// Attention of few rows that makes their heads itself; `room` of `many` counts rows.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct AttendFew {
    pub many: Attend,
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
}

/// What a block of attention of one row has in shared memory beside its tiles.
pub(in crate::cuda) fn attend_shared(pairs: usize) -> usize {
    (2 * QUERIES * (64 * pairs + 8) * 2 + 256 * pairs + 2596).next_multiple_of(16)
}

/// The same of a chain's page, with what the block sees of the cache.
pub(in crate::cuda) fn attend_page(pairs: usize) -> usize {
    128 + attend_shared(pairs).next_multiple_of(128)
}
