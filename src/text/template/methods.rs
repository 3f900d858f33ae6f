//! Python's methods of strings and dicts, and `tojson` as `json.dumps` writes it.
//!
//! The engine charges for what a method returns, but only once it exists; so each method here
//! pays for its input first, and `replace` and `join` for the exact length of what they will
//! make.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

type Result<T> = std::result::Result<T, Error>;

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Pays for `bytes` bytes of work.
fn pay(state: &State, bytes: usize) -> Result<()> {
    state.consume_fuel(1 + bytes as u64 / 64)
}

/// A method that the engine does not know.
pub(super) fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().ok_or_else(unknown)?;
            pay(state, text.len())?;
            string(state, text, name, args)?.ok_or_else(unknown)
        }
        ValueKind::Map => map(state, value, name, args)?.ok_or_else(unknown),
        ValueKind::Seq => sequence(state, value, name, args)?.ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

fn string(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>> {
    let all = |f: fn(char) -> bool| !text.is_empty() && text.chars().all(f);
    let cased =
        |f: fn(char) -> bool, g: fn(char) -> bool| text.chars().any(f) && !text.chars().any(g);
    Ok(Some(match name {
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "title" => Value::from(title(text)),
        "capitalize" => {
            let mut chars = text.chars();
            let first = chars.next().into_iter().flat_map(char::to_uppercase);
            Value::from(first.chain(chars.flat_map(char::to_lowercase)).collect::<String>())
        }
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            // At worst every character of the text is looked for in the whole set.
            pay(state, text.len().saturating_mul(set.map_or(1, str::len)))?;
            let cut = |c: char| set.map_or(c.is_whitespace(), |s| s.contains(c));
            Value::from(match name {
                "strip" => text.trim_matches(cut),
                "lstrip" => text.trim_start_matches(cut),
                _ => text.trim_end_matches(cut),
            })
        }
        "startswith" | "endswith" => {
            let (what,): (Value,) = from_args(args)?;
            let fits = |w: &str| match name {
                "startswith" => text.starts_with(w),
                _ => text.ends_with(w),
            };
            match what.as_str() {
                Some(w) => Value::from(fits(w)),
                None => {
                    let mut any = false;
                    for w in what.try_iter()? {
                        let w = w.as_str().ok_or_else(|| invalid("expected strings"))?;
                        pay(state, w.len())?;
                        any |= fits(w);
                    }
                    Value::from(any)
                }
            }
        }
        "removeprefix" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(what).unwrap_or(text))
        }
        "removesuffix" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(what).unwrap_or(text))
        }
        "replace" => {
            let (old, new, most): (&str, &str, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let found = text.matches(old).take(most).count();
            pay(state, found.saturating_mul(new.len()))?;
            Value::from(text.replacen(old, new, most))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if name.starts_with('r') { text.rfind(what) } else { text.find(what) };
            // Python counts characters.
            match at.and_then(|at| text.get(..at)) {
                Some(before) => Value::from(before.chars().count()),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.matches(what).count())
        }
        "split" | "rsplit" => split(state, text, name, args)?,
        "splitlines" => {
            let lines: Vec<Value> = paid(state, text.lines())?;
            Value::from(lines)
        }
        "join" => {
            let (parts,): (Value,) = from_args(args)?;
            let mut out = String::new();
            for (i, part) in parts.try_iter()?.enumerate() {
                let part = part.as_str().map(str::to_string);
                let part = part.ok_or_else(|| invalid("join expects strings"))?;
                pay(state, text.len() + part.len())?;
                if i > 0 {
                    out.push_str(text);
                }
                out.push_str(&part);
            }
            Value::from(out)
        }
        "isdigit" | "isnumeric" | "isdecimal" => Value::from(all(char::is_numeric)),
        "isalpha" => Value::from(all(char::is_alphabetic)),
        "isalnum" => Value::from(all(char::is_alphanumeric)),
        "isspace" => Value::from(all(char::is_whitespace)),
        "isascii" => Value::from(text.is_ascii()),
        "isupper" => Value::from(cased(char::is_uppercase, char::is_lowercase)),
        "islower" => Value::from(cased(char::is_lowercase, char::is_uppercase)),
        _ => return Ok(None),
    }))
}

fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Strings as values, each paid for.
fn paid<'a>(state: &State, parts: impl Iterator<Item = &'a str>) -> Result<Vec<Value>> {
    let mut out = Vec::new();
    for part in parts {
        pay(state, part.len())?;
        out.push(Value::from(part));
    }
    Ok(out)
}

fn split(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value> {
    let (by, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let by = match by {
        Some(by) => Some(by),
        None => named.get::<Option<Value>>("sep")?,
    };
    let most = match most {
        Some(most) => Some(most),
        None => named.get::<Option<i64>>("maxsplit")?,
    };
    named.assert_all_used()?;
    let most = most.and_then(|n| usize::try_from(n).ok());
    let limit = most.map_or(usize::MAX, |n| n.saturating_add(1));
    let by = by.filter(|b| !b.is_none());
    let parts = match by.as_ref().map(|b| b.as_str().ok_or_else(|| invalid("not a string"))) {
        Some(by) => {
            let by = by?;
            if by.is_empty() {
                return Err(invalid("empty separator"));
            }
            if name == "rsplit" {
                let mut parts = paid(state, text.rsplitn(limit, by))?;
                parts.reverse();
                parts
            } else {
                paid(state, text.splitn(limit, by))?
            }
        }
        None if most.is_none() => paid(state, text.split_whitespace())?,
        None => return Err(invalid("maxsplit needs a separator")),
    };
    Ok(Value::from(parts))
}

fn map(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>> {
    if name == "get" {
        let (key, otherwise): (Value, Option<Value>) = from_args(args)?;
        let found = value.get_item(&key)?;
        let otherwise = || otherwise.unwrap_or(Value::from(()));
        return Ok(Some(if found.is_undefined() { otherwise() } else { found }));
    }
    if !matches!(name, "keys" | "values" | "items") {
        return Ok(None);
    }
    let () = from_args(args)?;
    let mut out = Vec::new();
    for key in value.try_iter()? {
        pay(state, 64)?;
        out.push(match name {
            "keys" => key,
            "values" => value.get_item(&key)?,
            _ => {
                let item = value.get_item(&key)?;
                Value::from(vec![key, item])
            }
        });
    }
    Ok(Some(Value::from(out)))
}

fn sequence(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>> {
    if !matches!(name, "count" | "index") {
        return Ok(None);
    }
    let (what,): (Value,) = from_args(args)?;
    // Deep comparison has no bound of its own, so only what compares in one step is.
    let simple = |v: &Value| !matches!(v.kind(), ValueKind::Seq | ValueKind::Map);
    if !simple(&what) {
        return Err(invalid("only plain values can be looked for"));
    }
    let mut count = 0usize;
    for (i, item) in value.try_iter()?.enumerate() {
        pay(state, what.as_str().map_or(0, str::len))?;
        if simple(&item) && item == what {
            if name == "index" {
                return Ok(Some(Value::from(i)));
            }
            count += 1;
        }
    }
    if name == "index" { Err(invalid("not in the list")) } else { Ok(Some(Value::from(count))) }
}

/// How deep JSON may nest.
const DEEPEST: usize = 100;

/// `tojson`: what Python's `json.dumps(value, ensure_ascii=False, indent=…)` writes.
pub(super) fn tojson(state: &State, value: Value, named: Kwargs) -> Result<Value> {
    let indent: Option<usize> = named.get("indent")?;
    _ = named.get::<Option<Value>>("ensure_ascii")?;
    _ = named.get::<Option<Value>>("sort_keys")?;
    _ = named.get::<Option<Value>>("separators")?;
    named.assert_all_used()?;
    let mut out = String::new();
    let json = Json { state, indent: indent.map(|n| n.min(16)) };
    json.write(&value, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

struct Json<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    indent: Option<usize>,
}

impl Json<'_, '_, '_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        pay(self.state, 64)?;
        if depth > DEEPEST {
            return Err(invalid("a value nests too deep for JSON"));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out)?,
            ValueKind::Map => {
                out.push('{');
                let mut empty = true;
                for key in value.try_iter()? {
                    self.gap(empty, depth + 1, out)?;
                    empty = false;
                    match key.as_str() {
                        Some(key) => self.text(key, out)?,
                        None => match key.kind() {
                            ValueKind::Number => self.text(&key.to_string(), out)?,
                            _ => return Err(invalid("a key that JSON cannot have")),
                        },
                    }
                    out.push_str(": ");
                    self.write(&value.get_item(&key)?, depth + 1, out)?;
                }
                self.close(empty, depth, '}', out)?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.gap(empty, depth + 1, out)?;
                    empty = false;
                    self.write(&item, depth + 1, out)?;
                }
                self.close(empty, depth, ']', out)?;
            }
            _ => return Err(invalid("a value that JSON cannot have")),
        }
        Ok(())
    }

    /// What stands before an element.
    fn gap(&self, first: bool, depth: usize, out: &mut String) -> Result<()> {
        match self.indent {
            None => out.push_str(if first { "" } else { ", " }),
            Some(_) => {
                out.push_str(if first { "" } else { "," });
                self.line(depth, out)?;
            }
        }
        Ok(())
    }

    fn close(&self, empty: bool, depth: usize, bracket: char, out: &mut String) -> Result<()> {
        if !empty && self.indent.is_some() {
            self.line(depth, out)?;
        }
        out.push(bracket);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) -> Result<()> {
        let spaces = self.indent.unwrap_or(0) * depth;
        pay(self.state, spaces)?;
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', spaces));
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) -> Result<()> {
        pay(self.state, text.len().saturating_mul(2))?;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(())
    }
}
