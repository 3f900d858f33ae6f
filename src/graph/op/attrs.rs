//! Attributes of an op as the text form writes them: `eps=1e-5, layout="half"`.

use crate::error::quoted;
use std::collections::BTreeMap;

/// Attributes in the order the op gave them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attrs(pub(crate) Vec<(&'static str, String)>);

impl Attrs {
    /// A count.
    pub fn count(&mut self, key: &'static str, value: usize) {
        self.0.push((key, value.to_string()));
    }

    /// A number, in the shortest form that reads back as the same f32.
    pub fn float(&mut self, key: &'static str, value: f32) {
        self.0.push((key, format!("{value:?}")));
    }

    /// Text, quoted and escaped.
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.0.push((key, format!("{value:?}")));
    }
}

/// Attributes as read from the text form; each is taken once, and none may be left.
#[derive(Debug, Default)]
pub struct AttrReader(pub(crate) BTreeMap<String, String>);

impl AttrReader {
    fn raw(&mut self, key: &str) -> Result<String, String> {
        self.0.remove(key).ok_or_else(|| format!("attribute {key} is missing"))
    }

    /// Whether an attribute is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A count.
    pub fn count(&mut self, key: &str) -> Result<usize, String> {
        let raw = self.raw(key)?;
        raw.parse().map_err(|_| format!("{key}={} is not a count", quoted(&raw)))
    }

    /// A finite number.
    pub fn float(&mut self, key: &str) -> Result<f32, String> {
        let raw = self.raw(key)?;
        let value = raw.parse::<f32>().ok().filter(|v| v.is_finite());
        value.ok_or_else(|| format!("{key}={} is not a finite number", quoted(&raw)))
    }

    /// Text.
    pub fn text(&mut self, key: &str) -> Result<String, String> {
        let raw = self.raw(key)?;
        raw.strip_prefix('"')
            .and_then(|r| r.strip_suffix('"'))
            .and_then(unescape)
            .ok_or_else(|| format!("{key}={} is not quoted text", quoted(&raw)))
    }

    /// Refuses what no one asked for.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("unknown attribute {}", quoted(key))),
        }
    }
}

/// Undoes what `{:?}` of a string does.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            '0' => out.push('\0'),
            c @ ('\\' | '"' | '\'') => out.push(c),
            'u' => {
                let rest = chars.as_str().strip_prefix('{')?;
                let (hex, after) = rest.split_once('}')?;
                out.push(char::from_u32(u32::from_str_radix(hex, 16).ok()?)?);
                chars = after.chars();
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives() {
        for text in ["", "blk.0.w", "a\"b\\c\n\t\u{1b}é🙂\u{200d}"] {
            let mut attrs = Attrs::default();
            attrs.text("name", text);
            let map = attrs.0.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
            assert_eq!(AttrReader(map).text("name").unwrap(), text);
        }
    }
}
