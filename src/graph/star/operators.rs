//! Operators, indices and slices.

use super::builtins::{finite, whole};
use super::eval::{Script, overflow};
use super::value::{Told, Value};

impl Script<'_, '_> {
    /// The place that index `i` of `len` means; negative ones count from the end.
    fn place(i: i64, len: usize) -> Option<usize> {
        let len = i64::try_from(len).ok()?;
        let i = if i < 0 { i.checked_add(len)? } else { i };
        usize::try_from(i).ok().filter(|_| i < len)
    }

    pub(super) fn get_item(&mut self, of: Value, index: Value) -> Told<Value> {
        match of {
            Value::Dict(d) => {
                let at = self.heap.find(d, index)?;
                let found = at.and_then(|at| self.heap.get_dict(d).get(at)).map(|e| e.1);
                found.ok_or_else(|| format!("the dict has no key {}", self.heap.brief(index)))
            }
            Value::Text(t) => {
                let (text, i) = (self.heap.get_text(t), self.to_int(index)?);
                self.heap.tick(text.len() / 16)?;
                let at = Self::place(i, text.chars().count());
                let c = at.and_then(|at| text.chars().nth(at));
                let c = c.ok_or_else(|| format!("no index {i} in this string"))?;
                self.heap.text(c.encode_utf8(&mut [0; 4]))
            }
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => {
                let (len, i) = (self.heap.len(of)?, self.to_int(index)?);
                let item = Self::place(i, len).and_then(|at| self.heap.item(of, at));
                item.ok_or_else(|| format!("no index {i} among {len} items"))
            }
            // Says why not.
            other => self.heap.len(other).map(|_| Value::None),
        }
    }

    pub(super) fn set_item(&mut self, of: Value, index: Value, value: Value) -> Told<()> {
        match of {
            Value::Dict(d) => self.heap.insert(d, index, value),
            Value::List(l) => {
                let i = self.to_int(index)?;
                let items = self.heap.list_mut(l, 0)?;
                let len = items.len();
                match Self::place(i, len).and_then(|at| items.get_mut(at)) {
                    Some(item) => *item = value,
                    None => return Err(format!("no index {i} among {len} items")),
                }
                Ok(())
            }
            other => Err(format!("the items of {} cannot be set", self.heap.brief(other))),
        }
    }

    pub(super) fn slice(&mut self, of: Value, bounds: [Option<i64>; 3]) -> Told<Value> {
        let [start, stop, step] = bounds;
        let step = step.unwrap_or(1);
        let text = if let Value::Text(t) = of { Some(self.heap.get_text(t)) } else { None };
        let items: Vec<char> = text.iter().flat_map(|t| t.chars()).collect();
        self.heap.charge(items.len() * 4)?;
        let len = if text.is_some() { items.len() } else { self.heap.len(of)? };
        let len = i64::try_from(len).map_err(|_| overflow())?;
        if step == 0 {
            return Err("a slice with steps of 0".to_string());
        }
        // Where Python would begin and end, whatever the sign of the step.
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let bound = |b: Option<i64>, default: i64| match b {
            None => default,
            Some(b) => (if b < 0 { b.saturating_add(len) } else { b }).clamp(low, high),
        };
        let (start, stop) = if step > 0 {
            (bound(start, 0), bound(stop, len))
        } else {
            (bound(start, len - 1), bound(stop, -1))
        };
        let (mut at, mut picked) = (start, Vec::new());
        while if step > 0 { at < stop } else { at > stop } {
            picked.push(usize::try_from(at).map_err(|_| overflow())?);
            at = at.saturating_add(step);
        }
        self.heap.charge(picked.len() * 8)?;
        if text.is_some() {
            let text: String = picked.iter().filter_map(|&i| items.get(i)).collect();
            return self.heap.text(&text);
        }
        let picked = picked.into_iter().filter_map(|i| self.heap.item(of, i)).collect();
        match of {
            Value::Tuple(_) => self.heap.tuple(picked),
            _ => self.heap.list(picked),
        }
    }

    pub(super) fn plain_binary(
        &mut self,
        op: &'static str,
        left: Value,
        right: Value,
    ) -> Told<Value> {
        use Value::{Float, Int, List, Text, Tuple};
        let compare = |o: std::cmp::Ordering| match op {
            "<" => o.is_lt(),
            "<=" => o.is_le(),
            ">" => o.is_gt(),
            _ => o.is_ge(),
        };
        match (op, left, right) {
            ("==", ..) => return self.heap.equal(left, right).map(Value::Bool),
            ("!=", ..) => return self.heap.equal(left, right).map(|e| Value::Bool(!e)),
            ("<" | "<=" | ">" | ">=", ..) => {
                return self.heap.order(left, right).map(|o| Value::Bool(compare(o)));
            }
            ("in" | "not in", ..) => {
                let found = self.contains(left, right)?;
                return Ok(Value::Bool(found == (op == "in")));
            }
            ("%", Text(t), _) => return self.percent(t, right),
            ("+", Text(a), Text(b)) => {
                let (a, b) = (self.heap.get_text(a), self.heap.get_text(b));
                self.heap.charge(a.len().saturating_add(b.len()))?;
                return self.heap.text(&format!("{a}{b}"));
            }
            ("+", List(_), List(_)) | ("+", Tuple(_), Tuple(_)) => {
                let mut items = self.heap.all(left)?;
                items.extend(self.heap.all(right)?);
                return if matches!(left, List(_)) {
                    self.heap.list(items)
                } else {
                    self.heap.tuple(items)
                };
            }
            ("*", Text(_) | List(_) | Tuple(_), Int(n)) => return self.repeat(left, n),
            ("*", Int(n), Text(_) | List(_) | Tuple(_)) => return self.repeat(right, n),
            (_, Int(a), Int(b)) if op != "/" => {
                if b == 0 && matches!(op, "//" | "%") {
                    return Err("division by zero".to_string());
                }
                let value = match op {
                    "+" => a.checked_add(b),
                    "-" => a.checked_sub(b),
                    "*" => a.checked_mul(b),
                    // Rounded down, as in Python, whatever the signs.
                    "//" => a
                        .checked_div(b)
                        .and_then(|q| q.checked_sub(i64::from(a % b != 0 && (a < 0) != (b < 0)))),
                    "%" => a
                        .checked_rem(b)
                        .map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
                    _ => None,
                };
                return value.map(Int).ok_or_else(overflow);
            }
            (_, Int(_) | Float(_), Int(_) | Float(_)) => {
                let (a, b) = (self.to_float(left)?, self.to_float(right)?);
                if b == 0.0 && matches!(op, "/" | "//" | "%") {
                    return Err("division by zero".to_string());
                }
                return finite(match op {
                    "+" => a + b,
                    "-" => a - b,
                    "*" => a * b,
                    "/" => a / b,
                    "//" => (a / b).floor(),
                    _ => a - b * (a / b).floor(),
                });
            }
            _ => {}
        }
        let (a, b) = (self.heap.kind(left), self.heap.kind(right));
        Err(format!("no {op} between {a} and {b}"))
    }

    fn contains(&self, x: Value, of: Value) -> Told<bool> {
        match of {
            Value::Text(t) => {
                let (text, part) = (self.heap.get_text(t), self.to_text(x)?);
                self.heap.tick(text.len() / 4)?;
                Ok(text.contains(&*part))
            }
            Value::Dict(d) => Ok(self.heap.find(d, x)?.is_some()),
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => {
                for i in 0..self.heap.len(of)? {
                    if let Some(item) = self.heap.item(of, i)
                        && self.heap.equal(item, x)?
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            other => Err(format!("{} has no items", self.heap.brief(other))),
        }
    }

    fn repeat(&mut self, of: Value, n: i64) -> Told<Value> {
        let n = usize::try_from(n).unwrap_or(0);
        if let Value::Text(t) = of {
            let text = self.heap.get_text(t);
            self.heap.charge(text.len().saturating_mul(n))?;
            return self.heap.text(&text.repeat(n));
        }
        let items = self.heap.all(of)?;
        self.heap.charge(items.len().saturating_mul(n).saturating_mul(size_of::<Value>()))?;
        let items = items.repeat(n);
        if let Value::List(_) = of { self.heap.list(items) } else { self.heap.tuple(items) }
    }

    /// `text % values`.
    fn percent(&mut self, text: u32, values: Value) -> Told<Value> {
        let text = self.heap.get_text(text);
        let values = match values {
            Value::Tuple(_) => self.heap.all(values)?,
            one => vec![one],
        };
        let (mut values, mut out) = (values.into_iter(), String::new());
        let mut rest = &*text;
        while let Some((before, after)) = rest.split_once('%') {
            out.push_str(before);
            let mut chars = after.chars();
            let how = chars.next();
            rest = chars.as_str();
            if how == Some('%') {
                out.push('%');
                continue;
            }
            let value = values.next().ok_or_else(|| "too few values for the text".to_string())?;
            let shown = match how {
                Some('d') => match value {
                    Value::Float(x) => self.heap.show(whole(x.trunc())?, false)?,
                    x => self.to_int(x)?.to_string(),
                },
                Some('s') => self.heap.show(value, false)?,
                Some('r') => self.heap.show(value, true)?,
                Some('f') => format!("{:.6}", self.to_float(value)?),
                _ => return Err("a % that is none of %d %s %r %f %%".to_string()),
            };
            self.heap.charge(shown.len())?;
            out.push_str(&shown);
        }
        out.push_str(rest);
        if values.next().is_some() {
            return Err("too many values for the text".to_string());
        }
        self.heap.text(&out)
    }
}
