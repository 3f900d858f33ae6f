//! The model room: formats decode as published, sound files are read, all others refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod convert;
mod decode;
mod encode;
mod files;
mod fuzz;
mod malformed;
mod memory;
mod metadata;
mod real;

use gllm_kernels::model::Model;

/// Opens bytes as a model called `m.gguf`.
fn open(bytes: &[u8]) -> gllm_kernels::Result<Model> {
    Model::from_static("m.gguf", bytes.to_vec().leak())
}
