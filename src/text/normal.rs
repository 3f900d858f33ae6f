//! Normalizers: what a `tokenizer.json` does to a text before tokens are looked for.

use std::borrow::Cow;

use regex_automata::meta::Regex;
use unicode_normalization::{UnicodeNormalization, is_nfc, is_nfd, is_nfkc, is_nfkd};

use crate::error::{Error, Result};

/// The longest text that a step may make: a few times the longest that is encoded.
const LONGEST: usize = 256 << 20;

/// One step.
#[derive(Debug)]
pub(super) enum Normal {
    /// Puts a text before one that is not empty.
    Prepend(String),
    /// Puts a text in the place of another.
    Replace(String, String),
    /// Puts a text in the place of what a pattern matches.
    ReplaceAll(Box<Regex>, String),
    /// Takes white space from the ends.
    Strip {
        left: bool,
        right: bool,
    },
    /// A normal form of Unicode.
    Form(Form),
    Lowercase,
}

/// A normal form of Unicode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    C,
    D,
    KC,
    KD,
}

/// Does all steps to a text.
pub(super) fn apply<'t>(steps: &[Normal], text: &'t str) -> Result<Cow<'t, str>> {
    let mut text = Cow::Borrowed(text);
    for step in steps {
        if let Some(next) = step.apply(&text)? {
            text = Cow::Owned(next);
        }
    }
    Ok(text)
}

impl Normal {
    /// The text after this step, if it is another.
    fn apply(&self, text: &str) -> Result<Option<String>> {
        let mut out = Bounded(String::new());
        match self {
            Normal::Prepend(_) if text.is_empty() => return Ok(None),
            Normal::Prepend(before) => {
                out.push(before)?;
                out.push(text)?;
            }
            Normal::Replace(from, _) if from.is_empty() || !text.contains(from) => return Ok(None),
            Normal::Replace(from, to) => {
                let mut parts = text.split(from.as_str());
                out.push(parts.next().unwrap_or_default())?;
                for part in parts {
                    out.push(to)?;
                    out.push(part)?;
                }
            }
            Normal::ReplaceAll(pattern, to) => {
                let mut at = 0;
                for m in pattern.find_iter(text) {
                    out.push(text.get(at..m.start()).unwrap_or_default())?;
                    out.push(to)?;
                    at = m.end();
                }
                if at == 0 {
                    return Ok(None);
                }
                out.push(text.get(at..).unwrap_or_default())?;
            }
            Normal::Strip { left, right } => {
                let kept = if *left { text.trim_start() } else { text };
                let kept = if *right { kept.trim_end() } else { kept };
                if kept.len() == text.len() {
                    return Ok(None);
                }
                out.push(kept)?;
            }
            Normal::Form(_) if text.is_ascii() => return Ok(None),
            Normal::Form(form) => {
                let same = match form {
                    Form::C => is_nfc(text),
                    Form::D => is_nfd(text),
                    Form::KC => is_nfkc(text),
                    Form::KD => is_nfkd(text),
                };
                if same {
                    return Ok(None);
                }
                match form {
                    Form::C => out.chars(text.nfc())?,
                    Form::D => out.chars(text.nfd())?,
                    Form::KC => out.chars(text.nfkc())?,
                    Form::KD => out.chars(text.nfkd())?,
                }
            }
            Normal::Lowercase => out.chars(text.chars().flat_map(char::to_lowercase))?,
        }
        Ok(Some(out.0))
    }
}

/// A text that may not grow without bound: a file says what is put into it.
struct Bounded(String);

impl Bounded {
    fn push(&mut self, text: &str) -> Result<()> {
        self.check(text.len())?;
        self.0.push_str(text);
        Ok(())
    }

    fn chars(&mut self, chars: impl Iterator<Item = char>) -> Result<()> {
        for c in chars {
            self.check(c.len_utf8())?;
            self.0.push(c);
        }
        Ok(())
    }

    fn check(&self, more: usize) -> Result<()> {
        if self.0.len().saturating_add(more) > LONGEST {
            let what = format!("the normalizer makes a text of more than {LONGEST} bytes");
            return Err(Error::Tokenizer(what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(from: &str, to: &str) -> Normal {
        Normal::Replace(from.to_string(), to.to_string())
    }

    #[test]
    fn steps_follow_each_other() {
        let steps = [Normal::Prepend("_".into()), replace(" ", "_"), Normal::Form(Form::C)];
        assert_eq!(apply(&steps, " e\u{301} ").unwrap(), "__é_");
        assert_eq!(apply(&steps, "").unwrap(), "");
        assert_eq!(apply(&[Normal::Strip { left: true, right: false }], "  a ").unwrap(), "a ");
    }

    #[test]
    fn no_text_grows_without_bound() {
        let long = "b".repeat(1 << 20);
        let steps = [replace("a", &long), replace("b", &long)];
        assert!(apply(&steps, "aaaa").unwrap_err().to_string().contains("normalizer makes"));
    }
}
