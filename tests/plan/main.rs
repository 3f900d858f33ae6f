//! Plans: golden reports, refusals, and random graphs whose results must not depend on how they
//! were planned, on the instruction set, on threads or on chunks, to the last bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod golden;
mod page;
mod random;
