//! A plan in the CPU's terms: routines over fixed offsets.
//!
//! A [`Program`] is a list of [`Step`]s, one a group, with everything looked up: where weights lie
//! in the weight memory, where rows lie in the scratch memory, which columns each worker takes.
//! What a group does besides its product is a list of [`Micro`] operations, one list before the
//! product (over whole rows) and one after it (over ranges of columns). Values inside a list are in
//! **registers**: short f32 buffers private to a worker.

use super::attend::{Attention, KvLayout};
use super::experts::Experts;
use super::quantize::Precision;
use super::repack::Layout;
use super::rope::RopeTable;
use crate::graph::{BinaryKind, Lead, UnaryKind};
use crate::plan::{Bytes, Limits};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows that a product puts into strips before the epilogue takes them up: enough for
/// [`super::matmul::words`].
pub(super) const ROW_BLOCK: usize = 128;
/// Columns of a strip in a step over one row: long spans, few calls.
pub(super) const SPAN_ONE: usize = 256;
/// Columns of a strip in a step over several rows: strips of [`ROW_BLOCK`] rows stay in L2.
pub(super) const SPAN_MANY: usize = 64;

/// A lowered plan.
pub struct Program {
    pub(super) steps: Vec<Step>,
    pub(super) limits: Limits,
    pub(super) threads: usize,
    pub(super) tensors: Vec<Tensor>,
    /// Bytes of each arena.
    pub(super) weight_bytes: usize,
    pub(super) kv_bytes: usize,
    pub(super) scratch_bytes: usize,
    pub(super) logits_bytes: usize,
    /// Workspace that all workers share, and that each has for itself.
    pub(super) work: Work,
    pub(super) ropes: Vec<Rope>,
    /// Tokens must be below this.
    pub(super) vocabulary: usize,
    /// For each graph output, where its rows are; `None` for sampled tokens.
    pub(super) outputs: Vec<Option<(Lead, Rows)>>,
    /// The logits that tokens are sampled from when all steps are done.
    pub(super) sample: Option<Rows>,
    pub(super) bytes: Bytes,
}

impl Program {
    /// Puts all pieces back, before workers run the program.
    pub(super) fn rewind(&self) {
        for step in &self.steps {
            if let Step::Linear(linear) = step {
                linear.next.store(self.threads, Ordering::Relaxed);
            }
        }
    }
}

/// A weight and where it goes.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub offset: usize,
    pub kind: TensorKind,
}

/// How a weight is kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum TensorKind {
    /// Repacked tiles, for products and embeddings.
    Matrix(Layout),
    /// So many matrices, one after the other.
    Experts(Layout, usize),
    /// So many f32, for norms and biases.
    Vector(usize),
}

/// Bytes of workspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Work {
    /// Activations that all workers quantize and read.
    pub shared: usize,
    /// Partial results of attention; zeroed once and used for nothing else.
    pub attention: usize,
    /// Registers, strips and activations of one worker.
    pub private: usize,
}

/// A rotation whose angles are tabled for every position.
pub(super) struct Rope {
    pub op: crate::graph::op::Rope,
    /// Offset of the factors in the weight memory, if any.
    pub factors: Option<usize>,
    pub table: Option<RopeTable>,
}

/// One group.
pub(super) enum Step {
    Linear(Linear),
    Experts(Experts),
    Attend(Attend),
    Rows(RowList),
}

/// A product with what comes before and after.
pub(super) struct Linear {
    pub lead: Lead,
    pub prologue: Option<RowList>,
    /// The rows to multiply.
    pub input: Place,
    pub inputs: usize,
    pub precision: Precision,
    pub matrices: Vec<(Layout, usize)>,
    pub domains: Vec<Domain>,
    /// The columns in pieces of about equal bytes, each a list of `(domain, columns)` in multiples
    /// of the grain. Workers take one after another until none are left, so that none waits long
    /// for one that was held up.
    pub pieces: Vec<Vec<(usize, Range<usize>)>>,
    /// The next piece to take, beyond each worker's first.
    pub next: AtomicUsize,
}

/// Columns that are computed together: those of one matrix, or of several of one width.
pub(super) struct Domain {
    /// Indices of the matrices; register `i` receives the columns of `parts[i]`.
    pub parts: Vec<usize>,
    pub len: usize,
    /// Columns that must stay together.
    pub grain: usize,
    pub micros: Vec<Micro>,
}

impl Domain {
    /// Columns of a strip.
    pub fn span(&self, rows: usize) -> usize {
        span(self.grain, rows)
    }
}

/// Columns of a strip for a step over `rows` rows: whole grains.
pub(super) fn span(grain: usize, rows: usize) -> usize {
    let want = if rows == 1 { SPAN_ONE } else { SPAN_MANY };
    (want / grain).max(1) * grain
}

/// f32 of a strip, for any number of rows.
pub(super) fn strip_len(grain: usize) -> Option<usize> {
    Some(span(grain, 1).max(span(grain, 2).checked_mul(ROW_BLOCK)?))
}

/// Row-local work over whole rows.
pub(super) struct RowList {
    pub lead: Lead,
    pub micros: Vec<Micro>,
    /// Length of a register.
    pub width: usize,
    /// Bytes of all registers.
    pub bytes: usize,
}

/// Attention over the cache of a layer.
pub(super) struct Attend {
    pub q: Rows,
    pub out: Rows,
    /// Bytes into the cache memory.
    pub keys: usize,
    pub values: usize,
    pub attention: Attention,
    /// Byte of the heads' sinks in the weight memory, if there are any.
    pub sinks: Option<usize>,
}

/// f32 rows in memory that all workers see.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rows {
    pub logits: bool,
    /// First element, within its arena.
    pub offset: usize,
    /// Elements from a row to the next.
    pub width: usize,
    /// First column meant.
    pub col: usize,
}

/// An operand.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Place {
    Register(usize),
    Rows(Rows),
    /// A vector in the weight memory, by its first byte.
    Vector(usize),
}

/// Which rows of a table are meant.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Ids {
    Tokens,
    Positions,
    Place(Place),
}

/// Which norm.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum NormKind {
    Rms,
    Layer,
}

/// One operation on a span of columns of one row. `len` is how many columns at most; in an epilogue
/// a span may have fewer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Micro {
    pub what: What,
    pub len: usize,
}

/// What a [`Micro`] does. Results go to registers, and from there to memory with [`What::Put`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum What {
    /// The rows of a table that the row's token, position or picks name.
    Embed {
        to: usize,
        table: Layout,
        offset: usize,
        ids: Ids,
    },
    /// The row that `outs` names.
    Select {
        to: usize,
        from: Rows,
    },
    /// Norms of spans of `dim` columns.
    Norm {
        to: usize,
        from: Place,
        kind: NormKind,
        weight: Option<usize>,
        bias: Option<usize>,
        /// Whether each head has its own part of weight and bias.
        each: bool,
        dim: usize,
        eps: f32,
    },
    /// Shares of spans of `dim` columns, of their exponentials with `exp`.
    Shares {
        to: usize,
        from: Place,
        dim: usize,
        exp: bool,
    },
    /// Indices of the greatest of `dim` columns.
    TopK {
        to: usize,
        from: Place,
        dim: usize,
    },
    /// Those of `dim` columns that `ids` name.
    Pick {
        to: usize,
        from: Place,
        dim: usize,
        ids: Place,
    },
    /// The weighted sum of `count` spans.
    Mix {
        to: usize,
        from: Place,
        weights: Place,
        count: usize,
    },
    /// Columns `start .. start + take` of every `dim` of the result.
    Join {
        to: usize,
        from: Place,
        start: usize,
        take: usize,
        dim: usize,
    },
    /// Heads of `head` columns, turned.
    Rope {
        to: usize,
        from: Place,
        rope: usize,
        head: usize,
    },
    Unary {
        to: usize,
        from: Place,
        kind: UnaryKind,
    },
    Binary {
        to: usize,
        a: Place,
        b: Place,
        kind: BinaryKind,
    },
    /// Columns `start .. start + take` of every `dim`.
    Slice {
        to: usize,
        from: Place,
        start: usize,
        take: usize,
        dim: usize,
    },
    Put {
        from: usize,
        to: Rows,
    },
    /// Heads into the cache at byte `cache`.
    Store {
        from: Place,
        cache: usize,
        keys: bool,
        layout: KvLayout,
        head: usize,
    },
}
