//! What kernels are given, byte for byte as `kernels-src/*.cuh` declares it.
//!
//! Addresses are device addresses. A unit test and assertions in the kernels hold the sizes to the
//! same numbers.

mod attend;
mod products;
mod rows;

pub(super) use attend::*;
pub(super) use products::*;
pub(super) use rows::*;

/// Outputs of a panel.
pub(super) const PANEL: usize = 4;
/// Units of a span of planes, and of floats.
pub(super) const PLANES_SPAN: usize = 8;
pub(super) const FLOATS_SPAN: usize = 32;
/// Panels of an expert that a warp has at a time.
pub(super) const EXPERT_PANELS: usize = 2;
/// Warps of a block that multiplies.
pub(super) const WARPS: usize = 8;
/// Column domains of a product, and parts of all of them.
pub(super) const MAX_DOMAINS: usize = 3;
/// Operations and registers of an elementwise epilogue.
pub(super) const MAX_OPS: usize = 14;
pub(super) const MAX_REGISTERS: usize = 12;
/// Operations and jobs of a list of row-local work.
pub(super) const MAX_ROW_OPS: usize = 40;
pub(super) const MAX_JOBS: usize = 6;
pub(super) const MAX_TABLES: usize = 4;
/// Elements that the number of a list's register counts in.
pub(super) const FOUR: usize = 4;
/// Weights of one launch of experts.
pub(super) const MAX_PARTS: usize = 4;
/// Positions of a chunk of attention.
pub(super) const CHUNK: usize = 64;
/// Query heads that a block of attention of one row takes, runs of a head, elements of a head.
pub(super) const QUERIES: usize = 8;
pub(super) const MOST_RUNS: usize = 32;
pub(super) const MOST_DIM: usize = 256;
/// Rows of (row, query head) that a block of attention of many rows takes.
pub(super) const MANY: usize = 64;
/// Elements of one key head's output that a block keeps in registers.
pub(super) const OWN: usize = 8 * 256;
/// Tiles of a product with many rows.
pub(super) const TILE_M: usize = 64;
pub(super) const TILE_N: usize = 128;
pub(super) const TILE_K: usize = 32;
/// Tiles on sm_90a: outputs of a warpgroup, inputs that tiles of rows are padded to, rows of a group and
/// its bytes in a stage of 64 inputs.
pub(super) const WG_M: usize = 64;
pub(super) const WG_BLOCK: usize = 128;
pub(super) const WG_ROWS: usize = 8;
pub(super) const WG_BYTES: usize = 2048;
/// Bytes of sums of as many rows over the units of a block of inputs.
pub(super) const SUMS: usize = 256;
/// Bytes behind weights that a product may read, and not look at: of units that a row's last block has not.
pub(super) const READ_BEHIND: usize = 512;
/// Kernels of such a product, by the rows of a tile.
pub(super) const TILES: usize = 5;
pub(super) const TILE_NAMES: [&str; TILES] = ["_few", "_some", "_many", "_halves", "_tables"];
pub(super) const TILE_ROWS: [u32; TILES] = [8, 32, 128, 64, 64];
/// Stages of 64 inputs on their way.
pub(super) const TILE_STAGES: [u32; TILES] = [8, 4, 3, 4, 4];
/// Of kernels for many rows, the ones whose blocks may have several stretches, whose sums they keep in shared memory. Planes
/// have no others; what they have for tables takes registers that the other ways need.
pub(super) const HALVES: usize = 3;
pub(super) const TABLES: usize = 4;
/// Of kernels for few rows, the first ones: warps of a stretch, panels of a warp, spans on their way at most.
pub(super) const FEW: usize = 2;
pub(super) const FEW_WARPS: u32 = 4;
pub(super) const WARP_PANELS: u32 = 4;
pub(super) const MOST_PAGES: u32 = 4;
/// Depth of a ring, at most.
pub(super) const MAX_STAGES: usize = 32;
/// Threads of a block that multiplies one row: warps that multiply, one that fetches, one that
/// finishes.
pub(super) const GEMV_THREADS: u32 = (WARPS as u32 + 2) * 32;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Matrix {
    pub data: u64,
    pub rows: u32,
    pub cols: u32,
    pub units: u32,
    pub spans: u32,
    pub span_bytes: u32,
    pub panel_bytes: u32,
    pub kind: u32,
    pub lo: u32,
    pub hi: u32,
    pub halves: u32,
    pub levels: u32,
    pub min: u32,
    pub zero: i32,
    pub codes: u32,
    pub table: [u32; 4],
}

/// What codes are: numbers, or names of entries of a table.
pub(super) const TABLE: u32 = 1;

impl Matrix {
    /// Units and columns of a whole span.
    pub(super) fn span_units(&self) -> usize {
        if self.lo == 0 { FLOATS_SPAN } else { PLANES_SPAN }
    }
    pub(super) fn span_cols(&self) -> usize {
        let unit = match (self.lo, self.kind) {
            // 4 columns of f32 in a unit, 8 of halves.
            (0, 0) => 4,
            (0, _) => 8,
            _ => 32,
        };
        self.span_units() * unit
    }

    /// Those of some parts that there are.
    pub(super) fn there(parts: &[Matrix]) -> impl Iterator<Item = &Matrix> {
        parts.iter().take_while(|m| m.rows > 0)
    }

    /// Bytes of the largest span of those.
    pub(super) fn largest_of(parts: &[Matrix]) -> u32 {
        Matrix::there(parts).map(Matrix::largest_span).max().unwrap_or(0)
    }

    /// Bytes of its largest span in a panel.
    pub(super) fn largest_span(&self) -> u32 {
        self.span_bytes.min(self.panel_bytes)
    }
}

/// Where an operand is.
pub(super) const REGISTER: u32 = 0;
pub(super) const ROWS: u32 = 1;
pub(super) const VECTOR: u32 = 2;
/// Rows that another link of the same chain leaves.
pub(super) const FRESH: u32 = 3;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Operand {
    pub at: u64,
    pub place: u32,
    /// The register's number, or elements from a row to the next.
    pub n: u32,
}

impl Operand {
    pub(super) fn register(n: u32) -> Self {
        Operand { at: 0, place: REGISTER, n }
    }

    /// The second constant of a function, in the place of its second operand.
    pub(super) fn constant(d: f32) -> Self {
        Operand { n: d.to_bits(), ..Operand::default() }
    }
}

/// What an elementwise operation does.
pub(super) const UNARY: u32 = 0;
pub(super) const BINARY: u32 = 1;
pub(super) const PUT: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct ElementOp {
    pub what: u32,
    pub to: u32,
    pub kind: u32,
    pub c: f32,
    pub a: Operand,
    pub b: Operand,
}

/// Forms of an epilogue.
pub(super) const STORE: u32 = 0;
pub(super) const RESIDUAL: u32 = 1;
pub(super) const GATED: u32 = 2;
pub(super) const CODE: u32 = 3;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Epilogue {
    pub form: u32,
    pub kind: u32,
    pub count: u32,
    pub d: f32,
    pub c: f32,
    pub out_stride: u32,
    pub out: u64,
    pub residual: Operand,
    pub ops: [ElementOp; MAX_OPS],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Domain {
    pub parts: u32,
    pub part: [u32; 2],
    /// Whether its parts lie in memory alike.
    pub alike: u32,
    pub epilogue: Epilogue,
}

/// How a link waits for others, and what it leaves.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Fresh {
    /// Whether what it reads may not be there yet.
    pub polls: u32,
    pub unused: u32,
    /// Bytes to the next step's place of what it writes; 0 if no link waits for that.
    pub next: i64,
}

/// What stands before a link's own parameters, and what both take.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct LinkHead {
    pub kind: u32,
    pub unused: u32,
    pub fresh: Fresh,
}
pub(super) const LINK_BYTES: usize = 2800;
/// A chain of one row has a warp more, which brings what is in the cache.
pub(super) const CHAIN_THREADS: u32 = GEMV_THREADS + 32;
/// A chain's own shared memory, rounded up, of one row and of several.
pub(super) const CHAIN_SHARED: usize = 31 << 10;
pub(super) const SEVERAL_SHARED: usize = 30 << 10;
/// Rows of a step of several whose heads attention can make.
pub(super) const MAKES_HEADS: usize = 32;
/// Rows of a chain over several of them, blocks of columns that it has a norm for, and that a warp has at a time; bytes
/// of one.
pub(super) const SEVERAL: usize = 8;
pub(super) const NORM_BLOCKS: usize = 64;
pub(super) const AT_A_TIME: usize = 2;
pub(super) const BLOCK_BYTES: usize = 4096;
/// Its threads: warps that multiply, and one that fetches.
pub(super) const SEVERAL_THREADS: u32 = (WARPS as u32 + 1) * 32;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Chain {
    pub links: u64,
    pub positions: u64,
    pub slots: u64,
    /// When each link ended in each block; 0 for nobody who asks.
    pub times: u64,
    pub count: u32,
    pub stages: u32,
    pub stage_bytes: u32,
    /// Where in shared memory begins what is not the ring.
    pub beside: u32,
    /// Rows of the step.
    pub rows: u32,
    pub unused: u32,
}

/// What kernels read from memory, not as parameters.
///
/// # Safety
/// Without padding: every byte has a value.
pub(super) unsafe trait Plain: Copy {
    fn bytes(&self) -> &[u8] {
        // SAFETY: as long as it is, and without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}
// SAFETY: words and addresses only, which the order of the fields leaves no gaps between.
unsafe impl Plain for LinkHead {}
// SAFETY: as above.
unsafe impl Plain for Gemv {}
// SAFETY: as above.
unsafe impl Plain for AttendOne {}
// SAFETY: as above.
unsafe impl Plain for Several {}

/// In device memory; rewritten when the caller changes how to sample.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct SamplerState {
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub penalty: f32,
    pub top_k: u32,
    pub last_n: u32,
    pub seed: u64,
    pub draws: u64,
}

/// Bytes of what a block found: key, score, id, flag.
pub(super) const BEST_BYTES: usize = 24;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Sample {
    pub logits: u64,
    pub adjusted: u64,
    pub best: u64,
    pub tokens: u64,
    pub positions: u64,
    pub slots: u64,
    pub outs: u64,
    pub history: u64,
    pub sampled: u64,
    pub sampler: u64,
    pub result: u64,
    pub arrived: u64,
    pub stride: u32,
    pub vocabulary: u32,
    pub rows: u32,
    pub blocks: u32,
    pub context: u32,
    pub advance: u32,
}

/// The rows of a step on their way from the host.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Given {
    pub from: u64,
    pub tokens: u64,
    pub positions: u64,
    pub slots: u64,
    pub outs: u64,
    /// 0 where nothing is sampled.
    pub history: u64,
    pub rows: u32,
    pub wanted: u32,
    pub context: u32,
    pub unused: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_the_kernels_assert() {
        let sizes = [
            size_of::<Gemv>(),
            size_of::<Gemm>(),
            size_of::<RowList>(),
            size_of::<Experts>(),
            size_of::<Picks>(),
            size_of::<Attend>(),
            size_of::<AttendOne>(),
            size_of::<AttendFew>(),
            size_of::<LinkHead>(),
            LINK_BYTES - size_of::<LinkHead>() - size_of::<Gemv>(),
            LINK_BYTES - size_of::<LinkHead>() - size_of::<Several>(),
            size_of::<Chain>(),
            size_of::<Sample>(),
            size_of::<Given>(),
            size_of::<SamplerState>(),
            BEST_BYTES,
        ];
        assert_eq!(
            sizes,
            [2768, 2856, 3664, 520, 56, 176, 256, 320, 24, 8, 0, 56, 120, 64, 40, 24]
        );
    }
    #[test]
    fn attention_has_as_much_as_the_kernels_assert() {
        assert_eq!([1, 2, 4].map(attend_shared), [5168, 7472, 12080]);
        assert_eq!([1, 2].map(attend_page), [5376, 7680]);
    }
}
