//! Methods of texts, lists and dicts.

use super::eval::{Args, Script};
use super::value::{Told, Value};
use std::rc::Rc;

impl Script<'_, '_> {
    /// A method of a text, a list or a dict.
    pub(super) fn method(&mut self, of: Value, name: &str, args: Args) -> Told<Value> {
        let made = match of {
            Value::Text(t) => {
                let text = self.heap.get_text(t);
                self.text_method(&text, name, args)
            }
            Value::List(l) => self.list_method(l, name, args),
            Value::Dict(d) => self.dict_method(d, name, args),
            Value::Node(_) => Err(format!("a node has no methods; write g.{name}(x)")),
            _ => Err("is not there".to_string()),
        };
        made.map_err(|what| format!("{}.{name}: {what}", self.heap.kind(of)))
    }

    fn text_method(&mut self, text: &Rc<str>, name: &str, mut args: Args) -> Told<Value> {
        self.heap.tick(text.len() / 16)?;
        let value = match name {
            "startswith" | "endswith" => {
                let x = args.need("x")?;
                let x = self.to_text(x)?;
                Value::Bool(if name == "startswith" {
                    text.starts_with(&*x)
                } else {
                    text.ends_with(&*x)
                })
            }
            "removeprefix" | "removesuffix" => {
                let x = args.need("x")?;
                let x = self.to_text(x)?;
                let rest = if name == "removeprefix" {
                    text.strip_prefix(&*x)
                } else {
                    text.strip_suffix(&*x)
                };
                self.heap.text(rest.unwrap_or(text))?
            }
            "lower" => self.heap.text(&text.to_ascii_lowercase())?,
            "upper" => self.heap.text(&text.to_ascii_uppercase())?,
            "strip" => self.heap.text(text.trim())?,
            "replace" => {
                let (from, to) = (args.need("old")?, args.need("new")?);
                let (from, to) = (self.to_text(from)?, self.to_text(to)?);
                let grows = text.matches(&*from).count().saturating_mul(to.len());
                self.heap.charge(grows)?;
                self.heap.text(&text.replace(&*from, &to))?
            }
            "split" => {
                let by = args.take("sep").map(|s| self.to_text(s)).transpose()?;
                let parts: Vec<&str> = match &by {
                    Some(by) if by.is_empty() => return Err("an empty separator".to_string()),
                    Some(by) => text.split(&**by).collect(),
                    None => text.split_whitespace().collect(),
                };
                let mut items = Vec::new();
                for part in parts {
                    items.push(self.heap.text(part)?);
                }
                self.heap.list(items)?
            }
            "join" => {
                let list = args.need("parts")?;
                let mut out = String::new();
                for (i, part) in self.heap.all(list)?.into_iter().enumerate() {
                    let part = self.to_text(part)?;
                    self.heap.charge(part.len().saturating_add(text.len()))?;
                    out.push_str(if i > 0 { text } else { "" });
                    out.push_str(&part);
                }
                self.heap.text(&out)?
            }
            "format" => {
                let mut out = String::new();
                let mut rest = &**text;
                while let Some((before, after)) = rest.split_once('{') {
                    out.push_str(before);
                    let Some((field, after)) = after.split_once('}') else {
                        return Err("a { without }".to_string());
                    };
                    let value = if field.is_empty() { args.take("") } else { args.named(field) };
                    let value = value
                        .ok_or_else(|| format!("no value for {{{}}}", field.escape_debug()))?;
                    let shown = self.heap.show(value, false)?;
                    self.heap.charge(shown.len())?;
                    out.push_str(&shown);
                    rest = after;
                }
                out.push_str(rest);
                self.heap.text(&out)?
            }
            _ => return Err("is not there".to_string()),
        };
        args.finish()?;
        Ok(value)
    }

    fn list_method(&mut self, list: u32, name: &str, mut args: Args) -> Told<Value> {
        match name {
            "append" => {
                let x = args.need("x")?;
                self.heap.list_mut(list, 1)?.push(x);
            }
            "extend" => {
                let more = args.need("items")?;
                let more = self.heap.all(more)?;
                self.heap.list_mut(list, more.len())?.extend(more);
            }
            "index" => {
                let x = args.need("x")?;
                for (i, item) in (0..).zip(self.heap.get_list(list)) {
                    if self.heap.equal(*item, x)? {
                        return Ok(Value::Int(i));
                    }
                }
                return Err(format!("{} is not in it", self.heap.brief(x)));
            }
            _ => return Err("is not there".to_string()),
        }
        args.finish()?;
        Ok(Value::None)
    }

    fn dict_method(&mut self, dict: u32, name: &str, mut args: Args) -> Told<Value> {
        let value = match name {
            "get" | "pop" => {
                let (key, default) = (args.need("key")?, args.take("default"));
                let found = if name == "pop" {
                    self.heap.remove(dict, key)?
                } else {
                    let at = self.heap.find(dict, key)?;
                    at.and_then(|at| self.heap.get_dict(dict).get(at)).map(|e| e.1)
                };
                match (found.or(default), name) {
                    (Some(value), _) => value,
                    (None, "get") => Value::None,
                    (None, _) => return Err(format!("there is no {}", self.heap.brief(key))),
                }
            }
            "keys" | "values" | "items" => {
                let entries = self.heap.get_dict(dict).to_vec();
                let mut items = Vec::new();
                for (key, value) in entries {
                    items.push(match name {
                        "keys" => key,
                        "values" => value,
                        _ => self.heap.tuple(vec![key, value])?,
                    });
                }
                self.heap.list(items)?
            }
            "update" => {
                if let Some(from) = (!args.given.is_empty()).then(|| args.given.remove(0)) {
                    self.update(Value::Dict(dict), from)?;
                }
                for (key, value) in std::mem::take(&mut args.named) {
                    let key = self.heap.shared_text(&key)?;
                    self.heap.insert(dict, key, value)?;
                }
                Value::None
            }
            "setdefault" => {
                let (key, default) = (args.need("key")?, args.take("default"));
                let at = self.heap.find(dict, key)?;
                match at.and_then(|at| self.heap.get_dict(dict).get(at)) {
                    Some(entry) => entry.1,
                    None => {
                        let value = default.unwrap_or(Value::None);
                        self.heap.insert(dict, key, value)?;
                        value
                    }
                }
            }
            _ => return Err("is not there".to_string()),
        };
        args.finish()?;
        Ok(value)
    }
}
