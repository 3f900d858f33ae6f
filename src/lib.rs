//! A lazy computation-graph executor for transformer decode.
//!
//! A caller builds the graph of one decode step once; a planner decides what runs together and
//! where every byte lies; a backend lowers the plan to its own routines; a loop replays them, token
//! after token. The modules are the rooms that data passes through, in this order, and each uses
//! only those before it:
//!
//! 1. [`model`]: a model file, mapped and checked; what block formats mean.
//! 2. [`graph`]: the step as a graph, the meaning of every op in plain f32, the architectures.
//! 3. [`plan`]: launches, memory, and the proof that no value is overwritten too early.
//! 4. [`cpu`]: SIMD kernels, threads, and the session that replays a plan on them.
//! 5. [`cuda`]: prebuilt kernels, and the session that replays a plan as one captured graph.
//! 6. [`replay`]: prompts in chunks, then a token a step.
//! 7. [`text`]: tokenizers, chat templates, stop strings.
//!
//! [`embedded`] is the small model that comes with the crate.

// Module texts explain what is inside as well; those links lead on in a build with private items.
#![allow(rustdoc::private_intra_doc_links)]

pub mod error;

pub mod model;

pub mod graph;

pub mod plan;

pub mod cpu;

pub mod cuda;

pub mod replay;

pub mod text;

pub mod embedded;

pub use error::{Error, Result};

// Some tests of devices share their cases with tests of the crate's own.
#[cfg(test)]
extern crate self as gllm_kernels;

/// The example of the README, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
