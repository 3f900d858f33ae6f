//! The vocabulary of a model file, checked.
//!
//! A vocabulary is a quarter of a million short byte strings, so nothing here allocates per
//! token: all texts lie in one piece of memory, and the way back from a text to its id is an
//! open-addressing table of ids whose keys are those same bytes. Its hash is seeded per process,
//! so a file cannot choose its collisions.
//!
//! Files lie and writers err, so what can be repaired is repaired with one warning a kind (an id
//! past the end is dropped, a token that comes twice keeps its first id, a merge that makes no
//! token is left out) and what cannot is an error. A control token is never the result of a
//! merge: text that looks like one stays text.

mod index;
mod source;

pub(super) use source::{Added, Cut, Lead, More};
pub use source::{Kind, Source, TokenType};

use std::collections::HashMap;

use super::normal::Normal;
use super::pre;
use crate::error::{Error, Result, quoted};
use crate::model::Metadata;
use index::{Index, text_of};

/// Longer texts are decoded, but neither merged into nor matched: the longest token of any
/// published vocabulary is a quarter of this, and the bound keeps encoding linear.
pub(super) const MERGEABLE: usize = 1024;
/// How SentencePiece writes a space.
pub(super) const SPACE: &str = "\u{2581}";
/// As many ids as 31 bits hold; files count tokens in `i32`.
const MOST_TOKENS: usize = i32::MAX as usize;
/// Names that end a generation wherever they are control tokens.
const ENDS: [&str; 7] = [
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
];

/// A checked vocabulary: every id in it is one of its own tokens.
#[derive(Debug)]
pub struct Vocab {
    pub(super) kind: Kind,
    pub(super) cut: Cut,
    /// Whether neighbours merge in the order of a list.
    pub(super) ranked: bool,
    added: HashMap<u32, Added>,
    bytes: Vec<u8>,
    /// Where each token's text ends in `bytes`.
    ends: Vec<u32>,
    types: Vec<TokenType>,
    /// Merging order of SentencePiece tokens: the smaller, the sooner.
    order: Vec<u32>,
    index: Index,
    /// Two ids side by side to the rank of their merge and what it makes.
    merges: HashMap<(u32, u32), (u32, u32)>,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    /// Ids that end a generation, sorted.
    end_ids: Vec<u32>,
    chat_template: Option<String>,
}

impl Vocab {
    /// Reads and checks the `tokenizer.*` keys of a model file.
    pub fn from_metadata(meta: &Metadata) -> Result<Self> {
        const KEY: &str = "tokenizer.ggml.";
        let key = |name: &str| format!("{KEY}{name}");
        let id = |name: &str| optional_id(meta, &key(name));
        let flag = |name: &str| meta.get_bool(&key(name));
        let merges = meta.get_strs(&key("merges"))?;
        Self::new(Source {
            model: meta.require_str(&key("model"))?,
            pre: meta.get_str(&key("pre"))?,
            tokens: meta.require_strs(&key("tokens"))?.iter().collect(),
            scores: meta.get_f32s(&key("scores"))?,
            token_type: meta.get_i32s(&key("token_type"))?,
            merges: merges.map(|m| m.iter().collect()).unwrap_or_default(),
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            unknown: id("unknown_token_id")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_template: meta.get_str("tokenizer.chat_template")?,
        })
    }

    /// Checks a vocabulary from wherever it comes.
    pub fn new(mut source: Source<'_>) -> Result<Self> {
        let (kind, cut) = match source.model {
            "gpt2" => {
                let pre = pre::find(source.pre)?;
                _ = source.add_bos.get_or_insert(pre.add_bos);
                let whole_words = pre.whole_words;
                (Kind::Bpe, Cut { stages: pre.stages(), whole_words, ..Cut::default() })
            }
            "llama" => {
                let space = Normal::Replace(" ".to_string(), SPACE.to_string());
                let lead = Normal::Prepend(SPACE.to_string());
                let lead = source.add_space_prefix.unwrap_or(true).then_some(lead);
                (
                    Kind::Spm,
                    Cut { normal: lead.into_iter().chain([space]).collect(), ..Cut::default() },
                )
            }
            other => {
                return Err(Error::Unsupported(format!(
                    "tokenizer model {}; known are \"gpt2\" (BPE) and \"llama\" (SentencePiece)",
                    quoted(other)
                )));
            }
        };
        let ranked = kind == Kind::Bpe;
        Self::with(source, kind, ranked, cut, More::default())
    }

    /// Checks a vocabulary whose ways are known.
    pub(super) fn with(
        source: Source<'_>,
        kind: Kind,
        ranked: bool,
        cut: Cut,
        more: More<'_>,
    ) -> Result<Self> {
        let count = source.tokens.len();
        if count == 0 {
            return Err(bad("the vocabulary is empty"));
        }
        let total: usize = source.tokens.iter().map(|t| t.len()).sum();
        if count > MOST_TOKENS || u32::try_from(total).is_err() {
            return Err(bad(format!("{count} tokens of {total} bytes are more than 32 bits hold")));
        }
        let mut vocab = Vocab {
            kind,
            cut,
            ranked,
            added: more.added,
            bytes: reserved(total)?,
            ends: reserved(count)?,
            types: types(source.token_type.as_deref(), count)?,
            order: order(ranked, source.scores.as_deref(), count)?,
            index: Index::new(count)?,
            merges: HashMap::new(),
            bos: checked("bos", source.bos, count),
            eos: checked("eos", source.eos, count),
            unknown: checked("unknown", source.unknown, count),
            add_bos: source.add_bos.unwrap_or(true),
            add_eos: source.add_eos.unwrap_or(false),
            add_space_prefix: source.add_space_prefix.unwrap_or(kind == Kind::Spm),
            end_ids: Vec::new(),
            chat_template: source.chat_template.map(str::to_string),
        };
        vocab.read_tokens(&source.tokens);
        if ranked {
            let pairs = more.merges.iter().map(|(l, r)| Some((l.as_bytes(), r.as_bytes())));
            vocab.read_merges(source.merges.iter().map(|m| parts(m)).chain(pairs))?;
        }
        let ends = [("eot", source.eot), ("eom", source.eom)];
        let ends = ends.into_iter().chain(more.ends.iter().map(|&id| ("eos", Some(id))));
        vocab.find_stops(ends.filter_map(|(name, id)| checked(name, id, count)).collect());
        Ok(vocab)
    }

    fn read_tokens(&mut self, tokens: &[&[u8]]) {
        let (mut empty, mut twice) = (0usize, 0usize);
        for (id, text) in (0u32..).zip(tokens) {
            self.bytes.extend_from_slice(text);
            self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
            if text.is_empty() {
                empty += 1;
            } else if !self.index.insert(id, &self.bytes, &self.ends) {
                twice += 1;
            }
        }
        if empty + twice > 0 {
            tracing::warn!(empty, twice, "tokens without text, or with that of an earlier one");
        }
    }

    /// Turns the list of merges into pairs of ids.
    fn read_merges<'a>(
        &mut self,
        merges: impl Iterator<Item = Option<(&'a [u8], &'a [u8])>>,
    ) -> Result<()> {
        let count = merges.size_hint().0;
        let room = self.merges.try_reserve(count);
        room.map_err(|_| bad(format!("no memory for {count} merges")))?;
        let (mut dropped, mut joined) = (0usize, Vec::new());
        for (rank, merge) in (0u32..).zip(merges) {
            let made = merge.and_then(|(left, right)| {
                joined.clear();
                joined.extend_from_slice(left);
                joined.extend_from_slice(right);
                let pair = (self.id(left)?, self.id(right)?);
                Some((pair, self.id(&joined).filter(|&id| self.is_mergeable(id))?))
            });
            match made {
                Some((pair, id)) => _ = self.merges.entry(pair).or_insert((rank, id)),
                None => dropped += 1,
            }
        }
        if dropped > 0 {
            tracing::warn!(dropped, "merges that are malformed or do not join two tokens to one");
        }
        Ok(())
    }

    fn find_stops(&mut self, ends: Vec<u32>) {
        let named = ENDS.iter().filter_map(|name| self.id(name.as_bytes()));
        let control = named.filter(|&id| self.token_type(id) == Some(TokenType::Control));
        let mut stops: Vec<u32> = control.chain(self.eos).chain(ends).collect();
        stops.sort_unstable();
        stops.dedup();
        self.end_ids = stops;
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none; a checked vocabulary has some.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of a token's text as the file has them.
    pub fn text(&self, id: u32) -> Option<&[u8]> {
        text_of(&self.bytes, &self.ends, id)
    }

    /// The id of a text, the lowest where it comes more than once.
    pub fn id(&self, text: &[u8]) -> Option<u32> {
        self.index.find(text, &self.bytes, &self.ends)
    }

    /// What a token is for.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(usize::try_from(id).ok()?).copied()
    }

    /// How this vocabulary cuts text.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What stands for text that has no token.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Whether the model wants [`bos`](Self::bos) before a text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether the model was trained with [`eos`](Self::eos) after each text. Encoding does not
    /// append it, since it would end the generation before it began.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Whether a text is encoded as if a space stood before it (SentencePiece only).
    pub fn add_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// The ids that end a generation, sorted.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// The source of the model's chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Whether merging may make this token.
    pub(super) fn is_mergeable(&self, id: u32) -> bool {
        let text = matches!(
            self.token_type(id),
            Some(TokenType::Normal | TokenType::UserDefined | TokenType::Unused)
        );
        text && self.text(id).is_some_and(|t| t.len() <= MERGEABLE)
    }

    /// How a whole token meets the text around it.
    pub(super) fn added(&self, id: u32) -> Added {
        self.added.get(&id).copied().unwrap_or_default()
    }

    /// The rank of merging two neighbours, and what they become.
    pub(super) fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.merges.get(&(left, right)).copied()
    }

    /// The order of a text among possible merges, and its id (by scores).
    pub(super) fn piece(&self, text: &[u8]) -> Option<(u32, u32)> {
        if text.len() > MERGEABLE {
            return None;
        }
        let id = self.id(text).filter(|&id| self.is_mergeable(id))?;
        Some((*self.order.get(usize::try_from(id).ok()?)?, id))
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::Tokenizer(what.into())
}

/// An empty vector with room for `count`.
fn reserved<T>(count: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(count).map_err(|_| bad(format!("no memory for {count} entries")))?;
    Ok(v)
}

/// The two halves of a merge: texts with a space between. The first may begin with a space, which
/// is why the search starts at the second byte.
fn parts(merge: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = merge.iter().skip(1).position(|&b| b == b' ')? + 1;
    Some((merge.get(..at)?, merge.get(at + 1..)?))
}

/// An id key. Some writers put -1 for "none".
fn optional_id(meta: &Metadata, key: &str) -> Result<Option<u32>> {
    let Some(id) = meta.get_i64(key)? else { return Ok(None) };
    let found = u32::try_from(id).ok();
    if found.is_none() {
        tracing::warn!(key, id, "not a token id, dropped");
    }
    Ok(found)
}

/// An id that is one of `count`, or none.
fn checked(name: &str, id: Option<u32>, count: usize) -> Option<u32> {
    let inside = id.filter(|&id| usize::try_from(id).is_ok_and(|id| id < count));
    if inside.is_none()
        && let Some(id) = id
    {
        tracing::warn!(name, id, count, "token id past the vocabulary's end, dropped");
    }
    inside
}

fn types(raw: Option<&[i32]>, count: usize) -> Result<Vec<TokenType>> {
    let mut out = reserved(count)?;
    let Some(raw) = raw else {
        out.resize(count, TokenType::Normal);
        return Ok(out);
    };
    if raw.len() != count {
        return Err(bad(format!("{} token types for {count} tokens", raw.len())));
    }
    let mut odd = 0usize;
    out.extend(raw.iter().map(|t| match t {
        1 => TokenType::Normal,
        2 => TokenType::Unknown,
        3 => TokenType::Control,
        4 => TokenType::UserDefined,
        5 => TokenType::Unused,
        6 => TokenType::Byte,
        _ => {
            odd += 1;
            TokenType::Normal
        }
    }));
    if odd > 0 {
        tracing::warn!(odd, "tokens of no known type, taken as normal ones");
    }
    Ok(out)
}

/// The order in which scores merge: the higher the score, the smaller the number.
fn order(ranked: bool, scores: Option<&[f32]>, count: usize) -> Result<Vec<u32>> {
    if ranked {
        return Ok(Vec::new());
    }
    let mut out = reserved(count)?;
    let scores = scores.ok_or_else(|| bad("a SentencePiece vocabulary without scores"))?;
    if scores.len() != count {
        return Err(bad(format!("{} scores for {count} tokens", scores.len())));
    }
    let mut odd = 0usize;
    out.extend(scores.iter().map(|&score| {
        if score.is_nan() {
            odd += 1;
            return u32::MAX;
        }
        // The bits of a float order like an integer once negative ones are turned over; adding
        // zero makes both zeros one.
        let bits = (score + 0.0).to_bits();
        if bits >> 31 == 1 { bits } else { !bits & 0x7fff_ffff }
    }));
    if odd > 0 {
        tracing::warn!(odd, "scores that are not numbers: their tokens merge last");
    }
    Ok(out)
}
