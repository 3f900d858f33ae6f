//! Lists of row-local work.

use super::{MAX_JOBS, MAX_ROW_OPS, MAX_TABLES, Matrix, Operand};

/// What a row-local operation does.
pub(in crate::cuda) const R_EMBED: u32 = 0;
pub(in crate::cuda) const R_SELECT: u32 = 1;
pub(in crate::cuda) const R_NORM: u32 = 2;
pub(in crate::cuda) const R_ROPE: u32 = 3;
pub(in crate::cuda) const R_UNARY: u32 = 4;
pub(in crate::cuda) const R_BINARY: u32 = 5;
pub(in crate::cuda) const R_SLICE: u32 = 6;
pub(in crate::cuda) const R_PUT: u32 = 7;
pub(in crate::cuda) const R_STORE: u32 = 8;
pub(in crate::cuda) const R_SPLIT: u32 = 9;
pub(in crate::cuda) const R_SHARES: u32 = 10;
pub(in crate::cuda) const R_TOP_K: u32 = 11;
pub(in crate::cuda) const R_PICK: u32 = 12;
pub(in crate::cuda) const R_MIX: u32 = 13;
pub(in crate::cuda) const R_JOIN: u32 = 14;

/// Of a norm: its factor is for the sums of the product that reads it, which finds the squares.
pub(in crate::cuda) const FACTORED: u32 = 4;

/// What names the rows of a table.
pub(in crate::cuda) const TOKENS: u32 = 0;
pub(in crate::cuda) const POSITIONS: u32 = 1;
pub(in crate::cuda) const PICKS: u32 = 2;
pub(in crate::cuda) const ALL: u32 = 3;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct RowOp {
    pub what: u32,
    pub to: u32,
    pub len: u32,
    pub kind: u32,
    pub c: f32,
    pub n0: u32,
    pub n1: u32,
    pub n2: u32,
    pub a: Operand,
    pub b: Operand,
    pub aux: u64,
    pub aux2: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(in crate::cuda) struct Job {
    pub first_block: u32,
    pub unit: u32,
    pub op: u32,
    pub ops: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct RowList {
    pub tokens: u64,
    pub positions: u64,
    pub slots: u64,
    pub outs: u64,
    pub jobs: u32,
    /// Rows that the list sees in a row of the step.
    pub fold: u32,
    /// Units of all jobs; blocks beyond them have none.
    pub blocks: u32,
    pub unused: u32,
    pub job: [Job; MAX_JOBS],
    pub table: [Matrix; MAX_TABLES],
    pub op: [RowOp; MAX_ROW_OPS],
}
