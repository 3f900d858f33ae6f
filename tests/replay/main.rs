//! The loop: no allocation, no traffic but the token, the same tokens however they are computed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
mod perplexity;
mod profile;
mod same;
mod stream;
