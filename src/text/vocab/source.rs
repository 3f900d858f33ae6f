//! What a vocabulary is made from: what files say of it, and how it cuts text.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::text::normal::Normal;
use crate::text::pre::Stage;

/// How a vocabulary cuts text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Byte-level BPE: words by a pre-tokenizer, bytes merged in the order of a list.
    Bpe,
    /// SentencePiece: characters merged by the score of what they become, or in the order of a list,
    /// bytes as a last resort.
    Spm,
}

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenType {
    /// A piece of text.
    Normal,
    /// What stands for text that has no token.
    Unknown,
    /// A mark that text never means by itself, such as the end of a turn.
    Control,
    /// A piece of text that is always cut out whole.
    UserDefined,
    /// A place kept free.
    Unused,
    /// One raw byte of a SentencePiece vocabulary.
    Byte,
}

/// A vocabulary as a file describes it, before any check.
#[derive(Clone, Default, Debug)]
#[allow(missing_docs, reason = "each is the metadata key of its name")]
pub struct Source<'a> {
    pub model: &'a str,
    pub pre: Option<&'a str>,
    pub tokens: Vec<&'a [u8]>,
    pub scores: Option<Cow<'a, [f32]>>,
    pub token_type: Option<Cow<'a, [i32]>>,
    pub merges: Vec<&'a [u8]>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<&'a str>,
}

/// What is done to a text before neighbours merge, and how they merge.
#[derive(Debug, Default)]
pub(in crate::text) struct Cut {
    /// What is done to it first.
    pub normal: Vec<Normal>,
    /// What then stands for a space, where that is not the space.
    pub space: Option<&'static str>,
    /// What is put before a text that does not begin with it.
    pub lead: Lead,
    /// How it is cut into words.
    pub stages: Vec<Stage>,
    /// How words are cut once more, their bytes written in BPE's alphabet.
    pub after: Vec<Stage>,
    /// Whether a word that is a token is taken as it is, before any merge.
    pub whole_words: bool,
    /// Whether neighbouring characters without a token make one unknown token.
    pub fuse_unknown: bool,
}

/// When a text that does not begin with a space gets one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::text) enum Lead {
    #[default]
    Never,
    /// Each part between whole tokens.
    Always,
    /// Only the text's very beginning.
    First,
}

/// How a token that is found whole meets the text around it.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::text) struct Added {
    /// Only where no letter or digit touches it.
    pub single_word: bool,
    /// With the white space before it.
    pub lstrip: bool,
    /// With the white space after it.
    pub rstrip: bool,
    /// In the text after normalizers rather than before.
    pub normalized: bool,
}

/// What a vocabulary brings beside its [`Source`].
#[derive(Default)]
pub(in crate::text) struct More<'a> {
    pub merges: Vec<(&'a str, &'a str)>,
    pub added: HashMap<u32, Added>,
    /// More ids that end a generation.
    pub ends: Vec<u32>,
}
