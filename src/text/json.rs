//! `tokenizer.json` and the files beside it: the vocabulary of a Hugging Face folder.
//!
//! The file describes a chain of small machines, and many chains do the same. What is read here is
//! brought to what this room has: byte-level BPE ([`Kind::Bpe`]) or BPE over characters
//! ([`Kind::Spm`]), normalizers, a list of stages, whole tokens. A machine that is not known, or in
//! a place where it would do something else, is an error that names file and field: guessing would
//! change the ids of every prompt.
//!
//! | file | for |
//! |---|---|
//! | `tokenizer.json` | tokens, merges, how text is cut, whether BOS is put before it |
//! | `tokenizer_config.json` | names of BOS and EOS, the chat template |
//! | `chat_template.jinja` | the chat template, before the other |
//! | `generation_config.json`, `config.json` | ids that end a generation |

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use super::chain;
use super::vocab::{Added, Kind, More, Source, Vocab};
use crate::error::{Error, Result, quoted};
use crate::model::{Array, Model, Value};

const FILE: &str = "tokenizer.json";
/// Bytes of a `tokenizer.json`: three times that of the largest known.
const MOST_BYTES: u64 = 128 << 20;
/// Bytes of the files beside it.
const MOST_CONFIG: u64 = 16 << 20;

/// The parts of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    model: Bpe,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    post_processor: Json,
    #[serde(default)]
    decoder: Json,
}

#[derive(Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Tokens,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// A vocabulary: an object of texts and ids. That of another kind of model is passed over, for its
/// kind says more than that it is no object.
#[derive(Default)]
struct Tokens(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Tokens;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut all = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    all.push(pair);
                }
                Ok(Tokens(all))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tokens, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Tokens::default())
            }
        }
        from.deserialize_any(Pairs)
    }
}

/// Two tokens that merge: a text with a space between, or a list of two.
struct Merge(String, Option<String>);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Two;
        impl<'de> Visitor<'de> for Two {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens")
            }
            fn visit_str<E>(self, text: &str) -> Result<Merge, E> {
                Ok(Merge(text.to_string(), None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let mut next = || list.next_element::<String>();
                match (next()?, next()?, next()?) {
                    (Some(left), right @ Some(_), None) => Ok(Merge(left, right)),
                    _ => Err(serde::de::Error::custom("a merge is two tokens")),
                }
            }
        }
        from.deserialize_any(Two)
    }
}

impl Merge {
    fn parts(&self) -> Option<(&str, &str)> {
        match &self.1 {
            Some(right) => Some((&self.0, right)),
            None => self.0.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        }
    }
}

/// An error about a field of the file, which [`within`] names.
pub(super) fn bad(field: impl fmt::Display, what: impl fmt::Display) -> Error {
    Error::Tokenizer(format!("{field}: {what}"))
}

/// A file of the folder as JSON; nothing where there is none.
fn json<T: for<'de> Deserialize<'de>>(model: &Model, file: &str, most: u64) -> Result<Option<T>> {
    let Some(bytes) = model.beside(file, most)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        // The message may hold the file's text.
        let what: String = e.to_string().chars().take(200).flat_map(char::escape_debug).collect();
        Error::Tokenizer(format!("{}/{file}: {what}", model.name()))
    })
}

/// Reads the vocabulary of a folder.
pub(super) fn read(model: &Model) -> Result<Vocab> {
    let file: Option<File> = json(model, FILE, MOST_BYTES)?;
    let file = file.ok_or_else(|| {
        let (name, what) = (model.name(), "missing; text needs it");
        Error::Tokenizer(format!("{name}/{FILE}: {what}"))
    })?;
    let config = json::<Json>(model, "tokenizer_config.json", MOST_CONFIG)?.unwrap_or_default();
    let generation =
        json::<Json>(model, "generation_config.json", MOST_CONFIG)?.unwrap_or_default();
    let template = match model.beside("chat_template.jinja", MOST_CONFIG)? {
        Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| {
            Error::Tokenizer(format!("{}/chat_template.jinja: not UTF-8", model.name()))
        })?),
        None => template(&config).map(str::to_string),
    };
    let mut ends = ids(&generation["eos_token_id"]);
    ends.extend(model.meta().get("eos_token_id").map(meta_ids).unwrap_or_default());
    vocab(&file, &config, ends, template.as_deref()).map_err(|e| within(model, e))
}

/// An error about what a `tokenizer.json` says, with its path.
pub(super) fn within(model: &Model, error: Error) -> Error {
    match error {
        Error::Tokenizer(what) => Error::Tokenizer(format!("{}/{FILE}: {what}", model.name())),
        other => other,
    }
}

fn vocab(file: &File, config: &Json, ends: Vec<u32>, template: Option<&str>) -> Result<Vocab> {
    let model = &file.model;
    match model.kind.as_deref() {
        None | Some("BPE") => {}
        Some(other) => {
            return Err(bad("model.type", format!("{} is not known; BPE is", quoted(other))));
        }
    }
    let affix = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if affix.iter().any(|a| a.as_ref().is_some_and(|a| !a.is_empty())) {
        return Err(bad("model", "a prefix or suffix of words is not known"));
    }
    if model.dropout.is_some_and(|d| d != 0.0) {
        return Err(bad("model.dropout", "merges left out at random are not known"));
    }
    let mut chain = chain::read(&file.normalizer, &file.pre_tokenizer, &file.decoder)?;
    let kind = if chain.byte_level { Kind::Bpe } else { Kind::Spm };
    if model.ignore_merges && kind == Kind::Spm {
        return Err(bad("model.ignore_merges", "known for byte-level BPE only"));
    }
    chain.cut.whole_words = model.ignore_merges;
    chain.cut.fuse_unknown = model.fuse_unk;

    let table = Table::new(file)?;
    let id = |text: &str| table.ids.get(text).copied();
    let unknown = match &model.unk_token {
        Some(text) => Some(
            id(text)
                .ok_or_else(|| bad("model.unk_token", format!("{} is no token", quoted(text))))?,
        ),
        None => None,
    };
    let types = table.types(file, kind, unknown);
    let named = |key: &str| token_name(&config[key]).and_then(id);
    let begin = chain::begin(&file.post_processor)?;
    let add_bos = match begin {
        Some(_) => true,
        None => chain::has_template(&file.post_processor)
            .then_some(false)
            .or(config["add_bos_token"].as_bool())
            .unwrap_or(false),
    };
    let merges = (0..).zip(&model.merges).map(|(i, merge): (usize, _)| {
        merge.parts().ok_or_else(|| bad(format!("model.merges[{i}]"), "not two tokens"))
    });
    let more = More { merges: merges.collect::<Result<_>>()?, added: table.added(file), ends };
    let source = Source {
        tokens: table.texts,
        token_type: Some(Cow::Owned(types)),
        bos: begin.or_else(|| named("bos_token")),
        eos: named("eos_token"),
        unknown,
        add_bos: Some(add_bos),
        add_space_prefix: Some(chain.strips),
        chat_template: template,
        ..Source::default()
    };
    Vocab::with(source, kind, true, chain.cut, more)
}

/// All tokens by id.
struct Table<'a> {
    texts: Vec<&'a [u8]>,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Table<'a> {
    fn new(file: &'a File) -> Result<Self> {
        let own = file.model.vocab.0.iter().map(|(text, id)| (text.as_str(), *id, "model.vocab"));
        let added = file.added_tokens.iter().map(|t| (t.content.as_str(), t.id, "added_tokens"));
        let all = || own.clone().chain(added.clone());
        // Ids may have holes, but what they take must be in proportion to the file.
        let most = 2 * (file.model.vocab.0.len() + file.added_tokens.len()) + 1024;
        let mut table = Table { texts: Vec::new(), ids: HashMap::new() };
        for (text, id, field) in all() {
            let at = usize::try_from(id).ok().filter(|&at| at < most).ok_or_else(|| {
                bad(field, format!("{} has id {id}, of about {} tokens", quoted(text), most / 2))
            })?;
            if at >= table.texts.len() {
                table.texts.resize(at + 1, &[]);
            }
            let Some(place) = table.texts.get_mut(at) else { continue };
            let other = table.ids.insert(text, id).filter(|&other| other != id);
            if let Some(other) = other {
                return Err(bad(field, format!("{} has ids {other} and {id}", quoted(text))));
            }
            if !place.is_empty() && *place != text.as_bytes() {
                let there = String::from_utf8_lossy(place);
                let what = format!("id {id} is {} and {}", quoted(&there), quoted(text));
                return Err(bad(field, what));
            }
            *place = text.as_bytes();
        }
        Ok(table)
    }

    /// What each token is for, in GGUF's numbers.
    fn types(&self, file: &File, kind: Kind, unknown: Option<u32>) -> Vec<i32> {
        const NORMAL: i32 = 1;
        const UNKNOWN: i32 = 2;
        const CONTROL: i32 = 3;
        const USER_DEFINED: i32 = 4;
        const BYTE: i32 = 6;
        let bytes = kind == Kind::Spm && file.model.byte_fallback;
        let of = |text: &[u8]| if bytes && is_byte(text) { BYTE } else { NORMAL };
        let mut types: Vec<i32> = self.texts.iter().map(|text| of(text)).collect();
        let mut set = |id: u32, kind: i32| {
            if let Some(slot) = usize::try_from(id).ok().and_then(|id| types.get_mut(id)) {
                *slot = kind;
            }
        };
        unknown.into_iter().for_each(|id| set(id, UNKNOWN));
        for token in &file.added_tokens {
            set(token.id, if token.special { CONTROL } else { USER_DEFINED });
        }
        types
    }

    fn added(&self, file: &File) -> HashMap<u32, Added> {
        let added = |t: &AddedToken| {
            let &AddedToken { single_word, lstrip, rstrip, normalized, .. } = t;
            (t.id, Added { single_word, lstrip, rstrip, normalized })
        };
        file.added_tokens.iter().map(added).collect()
    }
}

/// Whether a text stands for a byte: `<0x0A>`.
fn is_byte(text: &[u8]) -> bool {
    let hex = text.strip_prefix(b"<0x").and_then(|t| t.strip_suffix(b">"));
    hex.is_some_and(|h| h.len() == 2 && h.iter().all(u8::is_ascii_hexdigit))
}

/// A token's name: a string, or an object with it inside.
fn token_name(json: &Json) -> Option<&str> {
    json.as_str().or_else(|| json["content"].as_str())
}

/// The template of a config: a string, or of several the one that is called `default`.
fn template(config: &Json) -> Option<&str> {
    let json = &config["chat_template"];
    let named = || json.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    json.as_str().or_else(named)
}

/// Ids: one, or a list. What is no id is left out.
fn ids(json: &Json) -> Vec<u32> {
    let one = |json: &Json| json.as_u64().and_then(|id| u32::try_from(id).ok());
    match json {
        Json::Array(all) => all.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

/// The same of the model's own config, which was read before.
fn meta_ids(value: &Value) -> Vec<u32> {
    let all = match value {
        Value::I64(id) => vec![*id],
        Value::Array(Array::I64(all)) => all.clone(),
        _ => Vec::new(),
    };
    all.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
}
