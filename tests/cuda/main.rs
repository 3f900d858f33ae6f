//! The CUDA backend against the f32 reference and the CPU backend.
//!
//! Everything here needs a device and is ignored without being asked for; `tests/gpu.sh` asks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod architectures;
mod cases;
mod common;
mod graphs;
mod models;
mod ops;
mod replay;
mod sampling;
#[allow(dead_code)]
#[path = "../graphs/tiny.rs"]
mod tiny;
