//! Text to token ids and back.
//!
//! [`Vocab`] is what a model file says about its tokens, checked; [`Tokenizer`] encodes and
//! decodes with it; [`Detokenizer`] turns a stream of ids into text that is whole UTF-8 at every
//! step; [`Stops`] watches that text for strings that end it; [`ChatTemplate`] writes a
//! conversation as the model was taught to read it. Nothing here knows of graphs or plans.
//!
//! BPE and SentencePiece share one merging loop of our own (`merge`), and pre-tokenizers run on a
//! linear regex engine (`pre`). The `tokenizers` crate was measured for the same work on SmolLM2's
//! vocabulary and a megabyte each of prose, one letter, letters without a space, and spaces: it is
//! linear too (0.9, 0.6, 1.3 and 1.2 s). What spoke against it is that it panics on vocabularies
//! that contradict themselves and brings 78 dependencies.

mod chain;
mod json;
mod merge;
mod normal;
mod pre;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod vocab;

pub use stop::{Found, Stops};
pub use stream::Detokenizer;
pub use template::{ChatTemplate, Message};
pub use tokenizer::{Encode, Tokenizer};
pub use vocab::{Kind, Source, TokenType, Vocab};
