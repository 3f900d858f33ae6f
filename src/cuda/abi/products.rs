//! Products: of one row, of many, of a chain over several, with experts; and how rows lie that they take.

use super::{Domain, MAX_DOMAINS, MAX_PARTS, Matrix};

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Gemv {
    pub x: u64,
    pub norm: u64,
    pub eps: f32,
    pub cols: u32,
    pub domains: u32,
    /// Bytes of the ring, if the launch is no link; panels that each block has at least.
    pub ring: u32,
    pub each: u32,
    /// Warps that share a panel, as a power of two; panels of a page; how often the columns are gone
    /// through, and how many units a warp has each time.
    pub team: u32,
    pub batch: u32,
    pub passes: u32,
    pub wide: u32,
    /// Of a link: cycles from KiB to KiB of its weights, 0 where they are asked for at once.
    pub pace: u32,
    /// Of a link: whether its row comes as integers, and whether it leaves its own so: then each block has whole chunks.
    pub takes_integers: u32,
    pub leaves_integers: u32,
    pub first: [u32; MAX_DOMAINS + 1],
    pub domain: [Domain; MAX_DOMAINS],
    pub part: [Matrix; 2 * MAX_DOMAINS],
}

/// Panels that a block adds up at a time: 32 outputs of each part.
pub(in crate::cuda) const GROUP: u32 = 8;

impl Gemv {
    /// Deals its panels out to so many blocks.
    pub(in crate::cuda) fn deal(&mut self, blocks: u32) {
        let step = if self.leaves_integers == 0 { 1 } else { GROUP };
        self.each = (self.first[MAX_DOMAINS] / step).checked_div(blocks).unwrap_or(0);
    }
}

/// A product of a chain over several rows.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Several {
    pub x: u64,
    pub norm: u64,
    pub eps: f32,
    /// Columns of a row, and floats from a row to the next.
    pub cols: u32,
    pub stride: u32,
    /// Parts of the columns that warps have, and the stretches of each.
    pub parts: u32,
    pub each: u32,
    /// Jobs of 16 outputs times `subs`, and the block that has the first of them.
    pub jobs: u32,
    pub subs: u32,
    pub first_block: u32,
    /// Whether each part has spans of its own.
    pub alone: u32,
    pub domains: u32,
    /// Where sums of rows are behind rows, in bytes; 0 if nothing is added to weights.
    pub sums: u32,
    /// Spans of a page, a power of two.
    pub paged: u32,
    /// Where stretches that blocks have are left until they are added up; 0 if warps have them.
    pub apart: u64,
    pub first: [u32; MAX_DOMAINS + 1],
    pub domain: [Domain; MAX_DOMAINS],
    pub part: [Matrix; 2 * MAX_DOMAINS],
}

/// Where a launch leaves its rows as the next product takes them, and their sums; nowhere if they are 0.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct SplitTiles {
    pub at: u64,
    pub sums: u64,
    pub groups: u32,
    pub order: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Gemm {
    pub high: u64,
    pub low: u64,
    /// Sums of rows on sm_90, where something is added to weights; else 0.
    pub sums: u64,
    pub rows: u32,
    pub stride: u32,
    pub domains: u32,
    /// On sm_90a: groups of rows that there is room for, rows of a tile, and stages; zeros elsewhere.
    pub groups: u32,
    pub tile: u32,
    pub stages: u32,
    /// Stretches that inputs are summed up in, and those of a block.
    pub stretches: u32,
    pub each: u32,
    /// A zero that the compiler does not know.
    pub zero: u32,
    pub first: [u32; MAX_DOMAINS + 1],
    pub domain: [Domain; MAX_DOMAINS],
    pub part: [Matrix; 2 * MAX_DOMAINS],
    pub left: SplitTiles,
    /// Squares of rows, if their norm's factor is for the sums; a norm's weights for what is left, and where its squares go.
    pub squares: u64,
    pub norm: u64,
    pub left_squares: u64,
    pub eps: f32,
    /// With few rows: pages of weights of a warp, and bytes of a panel's span in them.
    pub pages: u32,
    pub page: u32,
    /// Where rows picked experts: how many each, of how many, and what sorting left; zeros if none did.
    pub picks: u32,
    pub experts: u32,
    pub unused: u32,
    pub tiles: u64,
    pub pairs: u64,
}

/// Columns whose squares are one number, and from one row's numbers to the next one's.
pub(in crate::cuda) const SQUARED: usize = 64;
pub(in crate::cuda) fn squares_stride(cols: usize) -> usize {
    cols.div_ceil(SQUARED).next_multiple_of(4)
}

/// Where split rows lie: as they are, or in tiles of which a lane has inputs by eights or by fours.
pub(in crate::cuda) const PLAIN_ROWS: u32 = 0;
pub(in crate::cuda) const EIGHTS: u32 = 1;
pub(in crate::cuda) const FOURS: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Experts {
    pub x: u64,
    /// Weights of a norm of the row; 0 for none.
    pub norm: u64,
    pub ids: u64,
    pub out: u64,
    pub x_row: u32,
    pub x_pick: u32,
    pub id_row: u32,
    pub picks: u32,
    pub out_row: u32,
    pub out_pick: u32,
    pub cols: u32,
    pub experts: u32,
    pub parts: u32,
    /// If not 0 there are two parts alike, a gate and what it is for, and a function of the gate.
    pub gated: u32,
    pub kind: u32,
    pub c: f32,
    pub d: f32,
    pub eps: f32,
    /// Bytes of an expert of each part.
    pub bytes: [u64; MAX_PARTS],
    pub column: [u32; MAX_PARTS],
    pub first: [u32; MAX_PARTS + 1],
    pub unused: u32,
    pub part: [Matrix; MAX_PARTS],
    pub route: Route,
}

/// How the only row of a step makes its picks; nothing if they are there.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Route {
    pub logits: u64,
    /// Where picks go, and their shares.
    pub ids: u64,
    pub shares: u64,
    /// Logits, and what is done to all of them before the greatest are picked, and to those then.
    pub count: u32,
    pub before: u32,
    pub after: u32,
    pub unused: u32,
}
/// Logits and picks at most.
pub(in crate::cuda) const ROUTERS: usize = 256;
pub(in crate::cuda) const ROUTED: usize = 32;
/// Shares that are made of numbers.
pub(in crate::cuda) const AS_IT_IS: u32 = 0;
pub(in crate::cuda) const SOFTMAX: u32 = 1;
pub(in crate::cuda) const NORMALIZE: u32 = 2;

/// Picks of a step sorted by expert.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Picks {
    pub ids: u64,
    /// Four words a tile: expert, first place, rows; of each place its pair, of each pair its place.
    pub tiles: u64,
    pub pairs: u64,
    pub places: u64,
    pub id_row: u32,
    pub picks: u32,
    pub experts: u32,
    pub rows: u32,
    /// Places of a tile, and tiles that there are room for.
    pub tile: u32,
    pub most: u32,
}
