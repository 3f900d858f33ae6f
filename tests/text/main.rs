//! The text room, from outside: ids, streams, stop strings and chat templates, with vocabularies
//! made by hand, hostile ones, and (where they have been fetched) those of two real models.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod encode;
mod folders;
mod hostile;
mod json;
mod real;
mod stops;
mod stream;
mod template;
