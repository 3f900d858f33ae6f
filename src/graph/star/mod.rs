//! Graph files: Starlark, read at run time.
//!
//! A graph file is a small program that calls the [`Builder`](super::Builder). This room reads the
//! part of the language that such files need, and runs it within limits: a file is hostile until it
//! has ended. What it may use up is counted before it is used: steps ([`value::MAX_STEPS`]), bytes
//! ([`value::MAX_BYTES`]), levels of everything that nests, nodes. There is no input, no output and
//! no recursion, so a file gives one graph or one error with its line, soon.
//!
//! | file | holds |
//! |---|---|
//! | [`lex`], [`parse`], [`terms`], [`tree`] | text to tokens to a tree |
//! | [`value`] | values and the heap that counts them |
//! | [`eval`], [`expressions`] | the tree, run |
//! | [`builtins`], [`methods`], [`operators`] | what every script can call and do |
//! | [`host`] | `g` and `c`, the graph and the hyper-parameters |
//! | [`library`] | where files come from, and which serves which model |

mod builtins;
mod eval;
mod expressions;
mod host;
mod lex;
mod library;
mod methods;
mod operators;
mod parse;
mod terms;
mod tree;
mod value;

pub use library::{Library, Loaded};
