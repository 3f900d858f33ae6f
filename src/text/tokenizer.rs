//! Encoding and decoding with a checked vocabulary.
//!
//! Encoding has three steps. Tokens that are matched whole (user-defined ones always, control
//! ones on request) cut the text first, all at once through one automaton, the leftmost and then
//! the longest winning. What lies between is cut into words (BPE) or taken as it is with its
//! spaces made visible (SentencePiece). Then neighbours merge.
//!
//! Decoding is a table: what each token contributes to a text is worked out once, at load.

mod bytes;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::merge::Merger;
use super::pre::Splitter;
use super::stream::Detokenizer;
use super::vocab::{Added, Kind, Lead, MERGEABLE, TokenType, Vocab};
use super::{json, normal};
use crate::error::{Error, Result};
use crate::model::{Metadata, Model};
use bytes::{alphabet, byte_char, byte_ids, piece};

/// The longest text that is encoded at once.
const LONGEST_TEXT: usize = 64 << 20;

/// How a text is to be encoded. The default is text as it stands: no BOS, no special tokens.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Encode {
    /// Begin with BOS where the model wants one.
    pub bos: bool,
    /// Take the texts of control tokens for those tokens. Without it they are text.
    pub special: bool,
}

/// A vocabulary ready for use.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    splitter: Splitter,
    /// Cuts words once more, written in BPE's alphabet.
    after: Splitter,
    /// Match user-defined tokens, and these with control ones: in the text as it stands, and in the
    /// normalized one.
    whole: [Option<Matcher>; 2],
    normalized: [Option<Matcher>; 2],
    alphabet: [Option<u8>; 0x144],
    /// The token of each byte: of BPE's alphabet, or SentencePiece's last resort.
    byte_ids: [Option<u32>; 256],
    /// What each token contributes to a text, in one piece of memory.
    pieces: Vec<u8>,
    piece_ends: Vec<usize>,
}

impl Tokenizer {
    /// Makes a tokenizer of a model file's metadata.
    pub fn from_metadata(meta: &Metadata) -> Result<Self> {
        Self::new(Vocab::from_metadata(meta)?)
    }

    /// Makes the tokenizer of a model: of its metadata, or of the `tokenizer.json` in its folder.
    ///
    /// # Errors
    /// When there is none, or it is broken or asks for what is not known: file and field are named.
    pub fn of(model: &Model) -> Result<Self> {
        if model.is_folder() {
            return Self::new(json::read(model)?).map_err(|e| json::within(model, e));
        }
        Self::from_metadata(model.meta())
    }

    /// Makes a tokenizer of a vocabulary.
    pub fn new(vocab: Vocab) -> Result<Self> {
        let alphabet = alphabet();
        let mut pieces = Vec::new();
        let mut piece_ends = Vec::new();
        for id in 0..vocab.len() as u32 {
            piece(&vocab, &alphabet, id, &mut pieces);
            piece_ends.push(pieces.len());
        }
        Ok(Tokenizer {
            splitter: Splitter::new(&vocab.cut.stages)?,
            after: Splitter::new(&vocab.cut.after)?,
            whole: [Matcher::new(&vocab, false, false)?, Matcher::new(&vocab, true, false)?],
            normalized: [Matcher::new(&vocab, false, true)?, Matcher::new(&vocab, true, true)?],
            alphabet,
            byte_ids: byte_ids(&vocab, &alphabet),
            pieces,
            piece_ends,
            vocab,
        })
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// How many tokens there are.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes of a token's text as the file has them.
    pub fn token_text(&self, id: u32) -> Option<&[u8]> {
        self.vocab.text(id)
    }

    /// Whether a token ends a generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.vocab.end_ids().binary_search(&id).is_ok()
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str, how: Encode) -> Result<Vec<u32>> {
        if text.len() > LONGEST_TEXT {
            return Err(Error::Tokenizer(format!(
                "a text of {} bytes is longer than {LONGEST_TEXT}",
                text.len()
            )));
        }
        let mut ids = Vec::new();
        if how.bos && self.vocab.add_bos() {
            ids.extend(self.vocab.bos());
        }
        let mut work = Work::default();
        let pick = |two: &[Option<Matcher>; 2]| usize::from(how.special).min(two.len() - 1);
        let whole = self.whole.get(pick(&self.whole)).and_then(Option::as_ref);
        let normalized = self.normalized.get(pick(&self.normalized)).and_then(Option::as_ref);
        cut_out(whole, text, &mut |at, part| match part {
            Part::Token(id) => {
                ids.push(id);
                Ok(())
            }
            Part::Text(text) => {
                let text = normal::apply(&self.vocab.cut.normal, text)?;
                cut_out(normalized, &text, &mut |inner, part| match part {
                    Part::Token(id) => {
                        ids.push(id);
                        Ok(())
                    }
                    Part::Text(text) => self.fragment(text, at + inner == 0, &mut work, &mut ids),
                })
            }
        })?;
        Ok(ids)
    }

    /// Encodes text that holds no whole tokens.
    fn fragment(&self, text: &str, first: bool, work: &mut Work, ids: &mut Vec<u32>) -> Result<()> {
        let cut = &self.vocab.cut;
        let Work { merger, spaced, mapped } = work;
        let space = cut.space.unwrap_or(" ");
        let leads = match cut.lead {
            Lead::Never => false,
            Lead::Always => true,
            Lead::First => first,
        };
        let leads = leads && !text.starts_with([' ', space.chars().next().unwrap_or(' ')]);
        let text = if leads || cut.space.is_some() {
            spaced.clear();
            spaced.push_str(if leads { space } else { "" });
            for c in text.chars() {
                if c == ' ' { spaced.push_str(space) } else { spaced.push(c) }
            }
            spaced.as_str()
        } else {
            text
        };
        self.splitter.split(text, &mut |word| match self.vocab.kind {
            Kind::Spm => self.pieces(word, merger, ids),
            Kind::Bpe if self.after.is_empty() => self.word(word.as_bytes(), merger, ids),
            Kind::Bpe => {
                mapped.clear();
                mapped.extend(word.bytes().map(byte_char));
                self.after.split(mapped, &mut |word| {
                    let byte = |c: char| self.alphabet.get(c as usize).copied().flatten();
                    let bytes: Vec<u8> = word.chars().filter_map(byte).collect();
                    self.word(&bytes, merger, ids)
                })
            }
        })
    }

    /// BPE: one word.
    fn word(&self, word: &[u8], merger: &mut Merger, ids: &mut Vec<u32>) -> Result<()> {
        let byte_id = |b: u8| self.byte_ids.get(usize::from(b)).copied().flatten();
        merger.clear();
        for &b in word {
            merger.push(1, byte_id(b));
        }
        if self.vocab.cut.whole_words
            && let Some(id) = self.whole_word(word)
        {
            ids.push(id);
            return Ok(());
        }
        merger.run(|l, r| self.vocab.merge(l.id?, r.id?));
        for symbol in merger.symbols() {
            let byte = word.get(symbol.start as usize).copied().unwrap_or_default();
            ids.push(symbol.id.or(self.vocab.unknown()).ok_or_else(|| no_token(byte))?);
        }
        Ok(())
    }

    /// The token that a word of BPE is, if it is one.
    fn whole_word(&self, word: &[u8]) -> Option<u32> {
        if word.len() > MERGEABLE {
            return None;
        }
        let text: String = word.iter().map(|&b| byte_char(b)).collect();
        self.vocab.id(text.as_bytes()).filter(|&id| self.vocab.is_mergeable(id))
    }

    /// SentencePiece: a text with its spaces made visible.
    fn pieces(&self, text: &str, merger: &mut Merger, ids: &mut Vec<u32>) -> Result<()> {
        let bytes = text.as_bytes();
        let part = |from: u32, to: u32| bytes.get(from as usize..to as usize).unwrap_or_default();
        let byte_id = |&b: &u8| self.byte_ids.get(usize::from(b)).copied().flatten();
        merger.clear();
        let mut at = 0;
        for c in text.chars() {
            let length = c.len_utf8();
            let own = bytes.get(at..at + length).unwrap_or_default();
            at += length;
            let id = if self.vocab.ranked {
                self.vocab.id(own).filter(|&id| self.vocab.is_mergeable(id))
            } else {
                self.vocab.piece(own).map(|p| p.1)
            };
            if self.vocab.ranked && id.is_none() && own.iter().all(|b| byte_id(b).is_some()) {
                // Bytes merge like characters, should a list say so.
                own.iter().for_each(|b| merger.push(1, byte_id(b)));
            } else {
                merger.push(length as u32, id);
            }
        }
        if self.vocab.ranked {
            merger.run(|l, r| self.vocab.merge(l.id?, r.id?));
        } else {
            merger.run(|l, r| self.vocab.piece(part(l.start, r.end)));
        }
        let mut unknown = false;
        for symbol in merger.symbols() {
            let after_unknown = std::mem::take(&mut unknown);
            if let Some(id) = symbol.id {
                ids.push(id);
                continue;
            }
            // A character without a token: its bytes where each has one, else the unknown token.
            let run = part(symbol.start, symbol.end);
            if run.iter().all(|b| byte_id(b).is_some()) {
                ids.extend(run.iter().filter_map(byte_id));
                continue;
            }
            let byte = run.first().copied().unwrap_or_default();
            let id = self.vocab.unknown().ok_or_else(|| no_token(byte))?;
            unknown = true;
            if !(after_unknown && self.vocab.cut.fuse_unknown) {
                ids.push(id);
            }
        }
        Ok(())
    }

    /// What a token contributes to a text: nothing if it is a control token or no token at all.
    pub fn piece(&self, id: u32) -> &[u8] {
        let piece = || {
            let id = usize::try_from(id).ok()?;
            let start = match id.checked_sub(1) {
                Some(before) => *self.piece_ends.get(before)?,
                None => 0,
            };
            self.pieces.get(start..*self.piece_ends.get(id)?)
        };
        piece().unwrap_or_default()
    }

    /// The bytes of a text. Control tokens contribute nothing, and the space that encoding put
    /// before the text is taken away.
    pub fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut out: Vec<u8> = ids.iter().flat_map(|&id| self.piece(id)).copied().collect();
        if self.vocab.kind() == Kind::Spm
            && self.vocab.add_space_prefix()
            && out.first() == Some(&b' ')
        {
            out.remove(0);
        }
        out
    }

    /// [`bytes`](Self::bytes) as text; what is not UTF-8 in it becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.bytes(ids)).into_owned()
    }

    /// Decodes ids one by one, each as the continuation of the ones before.
    pub fn stream(&self) -> Detokenizer<'_> {
        Detokenizer::new(self)
    }
}

/// Buffers of one call of `encode`.
#[derive(Default)]
struct Work {
    merger: Merger,
    spaced: String,
    mapped: String,
}

fn no_token(byte: u8) -> Error {
    Error::Tokenizer(format!("the vocabulary has no token for byte 0x{byte:02X}"))
}

/// Finds tokens that are cut out of a text whole.
#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<(u32, Added)>,
}

impl Matcher {
    /// For user-defined tokens, or for control ones as well; for those that are looked for in the
    /// text as it stands, or in the normalized one.
    fn new(vocab: &Vocab, control: bool, normalized: bool) -> Result<Option<Self>> {
        let (mut texts, mut ids, mut left_out) = (Vec::new(), Vec::new(), 0usize);
        for id in 0..vocab.len() as u32 {
            let wanted = match vocab.token_type(id) {
                Some(TokenType::UserDefined) => true,
                Some(TokenType::Control | TokenType::Unknown) => control,
                _ => false,
            };
            let added = vocab.added(id);
            let text = vocab.text(id).unwrap_or_default();
            if !wanted || added.normalized != normalized || text.is_empty() {
                continue;
            }
            // What is not UTF-8 cannot occur in a text, and would cut a character if it did.
            let Some(text) = std::str::from_utf8(text).ok().filter(|t| t.len() <= MERGEABLE) else {
                left_out += 1;
                continue;
            };
            let steps = if normalized { &vocab.cut.normal[..] } else { &[] };
            let text = normal::apply(steps, text)?;
            if !text.is_empty() {
                texts.push(text);
                ids.push((id, added));
            }
        }
        if left_out > 0 {
            tracing::warn!(left_out, "whole tokens too long or not UTF-8, never matched");
        }
        if texts.is_empty() {
            return Ok(None);
        }
        // Of the automata this is the one whose size is linear in its texts.
        let automaton = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts.iter().map(|t| t.as_bytes()))
            .map_err(|e| Error::Tokenizer(format!("whole tokens: {e}")))?;
        Ok(Some(Matcher { automaton, ids }))
    }
}

/// What a text is made of.
enum Part<'t> {
    Token(u32),
    Text(&'t str),
}

/// Calls `part` with the whole tokens of a text and what lies between, and where each begins.
fn cut_out(
    matcher: Option<&Matcher>,
    text: &str,
    part: &mut dyn FnMut(usize, Part<'_>) -> Result<()>,
) -> Result<()> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    for m in matcher.iter().flat_map(|m| m.automaton.find_iter(text).map(move |f| (f, &m.ids))) {
        let (found, ids) = m;
        let Some(&(id, added)) = ids.get(found.pattern().as_usize()) else { continue };
        let before = text.get(..found.start()).unwrap_or_default();
        let after = text.get(found.end()..).unwrap_or_default();
        if added.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
            continue;
        }
        let start = if added.lstrip { before.trim_end().len() } else { before.len() }.max(at);
        let stripped = if added.rstrip { after.len() - after.trim_start().len() } else { 0 };
        if at < start {
            part(at, Part::Text(text.get(at..start).unwrap_or_default()))?;
        }
        part(start, Part::Token(id))?;
        at = (found.end() + stripped).max(at);
    }
    if at < text.len() { part(at, Part::Text(text.get(at..).unwrap_or_default())) } else { Ok(()) }
}
