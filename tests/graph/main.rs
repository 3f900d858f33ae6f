//! The graph room: shape rules, the meaning of each op, the text form, architectures.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arch;
mod models;
mod ops;
mod reference;
mod refusals;
mod sample;
mod spec;
mod star;
mod text;
