//! The chain of a `tokenizer.json`: its normalizers, pre-tokenizers, decoders and templates, brought
//! to what this room has.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::json::bad;
use super::normal::{Form, Normal};
use super::pre::{self, GPT2, Keep, Stage};
use super::vocab::{Cut, Lead, SPACE};
use crate::error::{Result, quoted};

/// Machines of a chain, at most: known ones have six.
const MOST: usize = 64;
/// Bytes of a pattern.
const LONGEST_PATTERN: usize = 16 << 10;
/// What Unicode and ASCII call punctuation.
const PUNCTUATION: &str = r"[\p{P}$+<=>^`|~]";

/// What a chain comes to.
pub(super) struct Chain {
    pub cut: Cut,
    /// Whether merging is over bytes rather than characters.
    pub byte_level: bool,
    /// Whether decoding takes away a space before the text.
    pub strips: bool,
}

/// Reads the three parts that say how text becomes tokens and back.
pub(super) fn read(normalizer: &Json, pre_tokenizer: &Json, decoder: &Json) -> Result<Chain> {
    let mut chain = Chain { cut: Cut::default(), byte_level: false, strips: false };
    for step in flat("normalizer", normalizer, "normalizers")? {
        chain.cut.normal.push(normal(step)?);
    }
    for (at, step) in flat("pre_tokenizer", pre_tokenizer, "pretokenizers")?.into_iter().enumerate()
    {
        chain.pre_tokenizer(at, step)?;
    }
    for step in flat("decoder", decoder, "decoders")? {
        chain.decoder(step)?;
    }
    Ok(chain)
}

/// The machines of a part: a sequence's, one, or none.
fn flat<'j>(part: &str, json: &'j Json, inside: &str) -> Result<Vec<&'j Json>> {
    let (mut open, mut out) = (vec![json], Vec::new());
    while let Some(json) = open.pop() {
        if out.len() + open.len() > MOST {
            return Err(bad(part, format!("more than {MOST} steps")));
        }
        match (json, json["type"].as_str()) {
            (Json::Null, _) => {}
            (_, Some("Sequence")) => {
                let steps = json[inside].as_array();
                let steps = steps.ok_or_else(|| bad(part, format!("there are no {inside}")))?;
                open.extend(steps.iter().rev());
            }
            (_, Some(_)) => out.push(json),
            (_, None) => return Err(bad(part, "there is no type")),
        }
    }
    Ok(out)
}

fn kind(json: &Json) -> &str {
    json["type"].as_str().unwrap_or_default()
}

/// A machine of a part that is not known.
fn unknown(part: &str, json: &Json) -> crate::Error {
    bad(part, format!("{} is not known", quoted(kind(json))))
}

fn text<'j>(part: &str, json: &'j Json, key: &str) -> Result<&'j str> {
    json[key].as_str().ok_or_else(|| bad(format!("{part}.{}.{key}", kind(json)), "no string"))
}

/// A yes or no; absent, the default.
fn flag(part: &str, json: &Json, key: &str, default: bool) -> Result<bool> {
    match &json[key] {
        Json::Null => Ok(default),
        Json::Bool(b) => Ok(*b),
        _ => Err(bad(format!("{part}.{}.{key}", kind(json)), "neither true nor false")),
    }
}

fn normal(json: &Json) -> Result<Normal> {
    const PART: &str = "normalizer";
    Ok(match kind(json) {
        "Prepend" => Normal::Prepend(text(PART, json, "prepend")?.to_string()),
        "Replace" => {
            let to = text(PART, json, "content")?.to_string();
            match pattern(PART, json)? {
                Pattern::Text(from) => Normal::Replace(from.to_string(), to),
                Pattern::Regex(source) => {
                    let stage = regex(PART, source)?;
                    if stage.spaces {
                        return Err(bad("normalizer.Replace.pattern", "a look ahead is not known"));
                    }
                    Normal::ReplaceAll(Box::new(pre::compile(&[&stage.pattern])?), to)
                }
            }
        }
        "Strip" => Normal::Strip {
            left: flag(PART, json, "strip_left", true)?,
            right: flag(PART, json, "strip_right", true)?,
        },
        "NFC" => Normal::Form(Form::C),
        "NFD" => Normal::Form(Form::D),
        "NFKC" => Normal::Form(Form::KC),
        "NFKD" => Normal::Form(Form::KD),
        "Lowercase" => Normal::Lowercase,
        _ => return Err(unknown(PART, json)),
    })
}

impl Chain {
    fn pre_tokenizer(&mut self, at: usize, json: &Json) -> Result<()> {
        const PART: &str = "pre_tokenizer";
        let stage = match kind(json) {
            "Split" => {
                let stage = match pattern(PART, json)? {
                    Pattern::Text(text) => of(literal(text)),
                    Pattern::Regex(source) => regex(PART, source)?,
                };
                let keep = keep(PART, json)?;
                Stage { keep, invert: flag(PART, json, "invert", false)?, ..stage }
            }
            "Digits" if flag(PART, json, "individual_digits", false)? => of(r"\p{N}".to_string()),
            "Digits" => of(r"\p{N}+".to_string()),
            "Punctuation" => {
                let keep =
                    if json["behavior"].is_null() { Keep::Isolated } else { keep(PART, json)? };
                Stage { keep, ..of(PUNCTUATION.to_string()) }
            }
            "ByteLevel" => {
                if self.byte_level || self.cut.space.is_some() {
                    return Err(bad("pre_tokenizer.ByteLevel", "after another that changes text"));
                }
                if flag(PART, json, "add_prefix_space", true)? {
                    self.leads(PART, at, json, Lead::Always)?;
                }
                self.byte_level = true;
                if flag(PART, json, "use_regex", true)? {
                    self.cut.stages.push(GPT2);
                }
                return Ok(());
            }
            "Metaspace" => return self.metaspace(at, json),
            _ => return Err(unknown(PART, json)),
        };
        if self.byte_level {
            self.cut.after.push(stage)
        } else {
            self.cut.stages.push(stage)
        }
        Ok(())
    }

    /// A space before the text must be there before anything cuts it.
    fn leads(&mut self, part: &str, at: usize, json: &Json, lead: Lead) -> Result<()> {
        if at > 0 {
            let what = "a space before the text, behind another step";
            return Err(bad(format!("{part}.{}", kind(json)), what));
        }
        self.cut.lead = lead;
        Ok(())
    }

    fn metaspace(&mut self, at: usize, json: &Json) -> Result<()> {
        const PART: &str = "pre_tokenizer";
        let fail = |what: &str| Err(bad("pre_tokenizer.Metaspace", what));
        if self.byte_level || self.cut.space.is_some() || at > 0 {
            return fail("behind another step");
        }
        if text(PART, json, "replacement")? != SPACE {
            return fail("another replacement than U+2581");
        }
        let old = flag(PART, json, "add_prefix_space", true)?;
        let lead = match json["prepend_scheme"].as_str() {
            Some("always") => Lead::Always,
            Some("first") => Lead::First,
            Some("never") => Lead::Never,
            Some(_) => return fail("the prepend_scheme is not known"),
            None if old => Lead::Always,
            None => Lead::Never,
        };
        self.leads(PART, at, json, lead)?;
        self.cut.space = Some(SPACE);
        if flag(PART, json, "split", true)? {
            self.cut.stages.push(Stage { keep: Keep::WithNext, ..of(literal(SPACE)) });
        }
        Ok(())
    }

    /// Decoding follows from the rest; what is checked is that the file means the same.
    fn decoder(&mut self, json: &Json) -> Result<()> {
        const PART: &str = "decoder";
        let fits = match kind(json) {
            "ByteLevel" => self.byte_level,
            "ByteFallback" | "Fuse" => !self.byte_level,
            "Replace" => {
                let from = matches!(pattern(PART, json)?, Pattern::Text(SPACE));
                from && text(PART, json, "content")? == " " && !self.byte_level
            }
            "Strip" => {
                let number = |key: &str| json[key].as_u64().unwrap_or(0);
                self.strips = number("start") == 1;
                text(PART, json, "content")? == " " && number("start") <= 1 && number("stop") == 0
            }
            "Metaspace" => {
                let never = json["prepend_scheme"] == "never" || json["add_prefix_space"] == false;
                self.strips = !never;
                !self.byte_level
            }
            _ => return Err(unknown(PART, json)),
        };
        if fits { Ok(()) } else { Err(bad(format!("{PART}.{}", kind(json)), "not known here")) }
    }
}

enum Pattern<'j> {
    Text(&'j str),
    Regex(&'j str),
}

fn pattern<'j>(part: &str, json: &'j Json) -> Result<Pattern<'j>> {
    let pattern = &json["pattern"];
    let found = match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(text), _) if !text.is_empty() => Some(Pattern::Text(text)),
        (_, Some(regex)) => Some(Pattern::Regex(regex)),
        _ => None,
    };
    let place = || format!("{part}.{}.pattern", kind(json));
    let found = found.ok_or_else(|| bad(place(), "neither a String nor a Regex"))?;
    let (Pattern::Text(text) | Pattern::Regex(text)) = found;
    if text.len() > LONGEST_PATTERN {
        return Err(bad(place(), format!("longer than {LONGEST_PATTERN} bytes")));
    }
    Ok(found)
}

fn keep(part: &str, json: &Json) -> Result<Keep> {
    Ok(match text(part, json, "behavior")? {
        "Isolated" => Keep::Isolated,
        "Removed" => Keep::Removed,
        "MergedWithPrevious" => Keep::WithPrevious,
        "MergedWithNext" => Keep::WithNext,
        "Contiguous" => Keep::Contiguous,
        other => {
            let field = format!("{part}.{}.behavior", kind(json));
            return Err(bad(field, format!("{} is not known", quoted(other))));
        }
    })
}

fn of(pattern: String) -> Stage {
    Stage { pattern: Cow::Owned(pattern), spaces: false, keep: Keep::Isolated, invert: false }
}

/// A pattern that matches this text.
fn literal(text: &str) -> String {
    text.chars().map(|c| format!(r"\x{{{:x}}}", u32::from(c))).collect()
}

/// A pattern of Oniguruma's as one of the linear engine, of the same meaning.
///
/// What the two read alike passes. Looking ahead is known in the one form that pre-tokenizers use
/// (see `pre`), quantifiers that give nothing back in those where giving back would find nothing:
/// what follows them matches none of what they took. All else is refused.
fn regex(part: &str, source: &str) -> Result<Stage> {
    let fail = |what: &str| Err(bad(part, format!("the pattern {}: {what}", quoted(source))));
    let body =
        [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"].iter().find_map(|end| source.strip_suffix(end));
    let mut pattern = body.unwrap_or(source).to_string();
    for (from, to) in [
        (r"[^\r\n\p{L}\p{N}]?+\p{L}", r"[^\r\n\p{L}\p{N}]?\p{L}"),
        (r"\p{L}++|", r"\p{L}+|"),
        (r"[^\s\p{L}\p{N}]++[\r\n]*", r"[^\s\p{L}\p{N}]+[\r\n]*"),
        (r"[\r\n]*+|", r"[\r\n]*|"),
        (r"|\s++$", r"|\s+\z"),
    ] {
        pattern = pattern.replace(from, to);
    }
    if possessive(&pattern) {
        return fail("a quantifier that gives nothing back is not known here");
    }
    if ["(?m", "(?s", "(?x", "(?-", "&&"].iter().any(|odd| pattern.contains(odd)) {
        return fail("an option or an intersection, which is not known");
    }
    let Ok(checked) = regex_automata::util::syntax::parse(&pattern.replace(r"|\s+\z", "")) else {
        return fail("not a regular expression of the linear engine");
    };
    let properties = checked.properties();
    if !properties.look_set().is_empty() {
        return fail("an anchor or a boundary, which is not known");
    }
    if properties.minimum_len().unwrap_or(0) == 0 {
        return fail("it matches nothing at all");
    }
    Ok(Stage { spaces: body.is_some(), ..of(pattern) })
}

/// Whether a quantifier gives nothing back: `?+`, `*+`, `++`.
fn possessive(pattern: &str) -> bool {
    let mut chars = pattern.chars().peekable();
    let (mut class, mut quantifier) = (0usize, false);
    while let Some(c) = chars.next() {
        let after = std::mem::take(&mut quantifier);
        match c {
            '\\' => _ = chars.next(),
            '[' => class += 1,
            ']' => class = class.saturating_sub(1),
            '+' if class == 0 && after => return true,
            '?' | '*' | '+' if class == 0 => quantifier = true,
            _ => {}
        }
    }
    false
}

/// The post-processors, without those that only move offsets.
fn processors(json: &Json) -> Result<Vec<&Json>> {
    let all = flat("post_processor", json, "processors")?;
    Ok(all.into_iter().filter(|p| kind(p) != "ByteLevel").collect())
}

/// Whether a template says what is put before a text, if only that it is nothing.
pub(super) fn has_template(json: &Json) -> bool {
    processors(json).is_ok_and(|all| !all.is_empty())
}

/// The token that is put before a text. What is put after it is left out: it would end the
/// generation before it began.
pub(super) fn begin(json: &Json) -> Result<Option<u32>> {
    const PART: &str = "post_processor";
    let id = |json: &Json| json.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut begin = Vec::new();
    for step in processors(json)? {
        match kind(step) {
            "TemplateProcessing" => {
                let parts = step["single"].as_array();
                let parts = parts.ok_or_else(|| bad(PART, "there is no template `single`"))?;
                let text = parts.iter().position(|p| !p["Sequence"].is_null());
                let text = text.ok_or_else(|| bad(PART, "the template has no place for a text"))?;
                for part in parts.iter().take(text) {
                    let name = part["SpecialToken"]["id"].as_str().unwrap_or_default();
                    let ids = step["special_tokens"][name]["ids"].as_array();
                    let ids = ids.into_iter().flatten().map(id);
                    let ids: Option<Vec<u32>> = ids.collect();
                    let ids = ids.filter(|ids| !ids.is_empty()).ok_or_else(|| {
                        bad(PART, format!("the template's {} has no ids", quoted(name)))
                    })?;
                    begin.extend(ids);
                }
            }
            "BertProcessing" | "RobertaProcessing" => {
                let cls = id(&step["cls"][1]);
                begin.push(cls.ok_or_else(|| bad(PART, "cls has no id"))?);
            }
            _ => return Err(unknown(PART, step)),
        }
    }
    match begin.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(bad(PART, "more than one token before a text, which is not known")),
    }
}
