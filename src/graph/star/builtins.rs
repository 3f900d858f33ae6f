//! Functions that every script can call.

use super::eval::{Args, Script, overflow};
use super::value::{Told, Value};
use crate::error::quoted;
use std::rc::Rc;

/// Functions that are always there: those of Starlark, then a little mathematics.
pub(super) const NAMES: [&str; 29] = [
    "abs",
    "all",
    "any",
    "bool",
    "dict",
    "enumerate",
    "fail",
    "float",
    "int",
    "len",
    "list",
    "max",
    "min",
    "range",
    "repr",
    "reversed",
    "sorted",
    "str",
    "tuple",
    "type",
    "zip",
    "ceil",
    "cos",
    "exp",
    "floor",
    "log",
    "pow",
    "sin",
    "sqrt",
];

/// The function of that name.
pub(super) fn find(name: &str) -> Option<Value> {
    NAMES.iter().find(|n| **n == name).map(|n| Value::Builtin(n))
}

impl Args {
    /// Takes the next argument without a name, or the one of that name.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        if let Some(at) = self.named.iter().position(|(n, _)| **n == *name) {
            return Some(self.named.remove(at).1);
        }
        (!self.given.is_empty()).then(|| self.given.remove(0))
    }

    /// Takes an argument by name only.
    pub fn named(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(n, _)| **n == *name)?;
        Some(self.named.remove(at).1)
    }

    pub fn need(&mut self, name: &str) -> Told<Value> {
        self.take(name).ok_or_else(|| format!("needs {name}"))
    }

    /// Refuses what no one took.
    pub fn finish(&self) -> Told<()> {
        match (self.named.first(), self.given.len()) {
            (Some((name, _)), _) => Err(format!("has no parameter {name}")),
            (None, 0) => Ok(()),
            (None, n) => Err(format!("got {n} arguments too many")),
        }
    }
}

impl Script<'_, '_> {
    pub(super) fn to_float(&self, value: Value) -> Told<f64> {
        match value {
            Value::Int(i) => Ok(i as f64),
            Value::Float(x) => Ok(x),
            other => Err(format!("{} is no number", self.heap.brief(other))),
        }
    }

    pub(super) fn to_int(&self, value: Value) -> Told<i64> {
        match value {
            Value::Int(i) => Ok(i),
            other => Err(format!("{} is no int", self.heap.brief(other))),
        }
    }

    pub(super) fn to_text(&self, value: Value) -> Told<Rc<str>> {
        match value {
            Value::Text(t) => Ok(self.heap.get_text(t)),
            other => Err(format!("{} is no string", self.heap.brief(other))),
        }
    }

    pub(super) fn builtin(&mut self, name: &'static str, args: Args) -> Told<Value> {
        self.builtin_of(name, args).map_err(|what| format!("{name}: {what}"))
    }

    fn builtin_of(&mut self, name: &'static str, mut args: Args) -> Told<Value> {
        let value = match name {
            "range" => return self.range(args),
            "min" | "max" => return self.extreme(name == "max", args),
            "zip" => return self.zip(args),
            "pow" => {
                let (x, y) = (args.need("x")?, args.need("y")?);
                let power = self.to_float(x)?.powf(self.to_float(y)?);
                finite(power)?
            }
            "sqrt" | "exp" | "log" | "sin" | "cos" | "floor" | "ceil" => {
                let x = args.need("x")?;
                let x = self.to_float(x)?;
                match name {
                    "sqrt" => finite(x.sqrt())?,
                    "exp" => finite(x.exp())?,
                    "log" => finite(x.ln())?,
                    "sin" => finite(x.sin())?,
                    "cos" => finite(x.cos())?,
                    "floor" => whole(x.floor())?,
                    _ => whole(x.ceil())?,
                }
            }
            "abs" => match args.need("x")? {
                Value::Int(i) => i.checked_abs().map(Value::Int).ok_or_else(overflow)?,
                x => Value::Float(self.to_float(x)?.abs()),
            },
            "fail" => {
                let parts: Told<Vec<String>> =
                    args.given.iter().map(|&v| self.heap.show(v, false)).collect();
                let text = parts?.join(" ");
                return Err(text.chars().take(400).flat_map(char::escape_debug).collect());
            }
            "len" => {
                let x = args.need("x")?;
                let len = match x {
                    Value::Text(t) => self.heap.get_text(t).chars().count(),
                    x => self.heap.len(x)?,
                };
                Value::Int(i64::try_from(len).map_err(|_| overflow())?)
            }
            "all" | "any" => {
                let x = args.need("x")?;
                let items = self.heap.all(x)?;
                let truth = |v: &Value| self.heap.truth(*v);
                Value::Bool(if name == "all" {
                    items.iter().all(truth)
                } else {
                    items.iter().any(truth)
                })
            }
            "bool" => Value::Bool(args.take("x").is_some_and(|x| self.heap.truth(x))),
            "float" => match args.need("x")? {
                Value::Bool(b) => Value::Float(f64::from(u8::from(b))),
                Value::Text(t) => {
                    let text = self.heap.get_text(t);
                    let number = text.trim().parse::<f64>().ok();
                    finite(number.ok_or_else(|| format!("{} is no number", quoted(&text)))?)?
                }
                x => Value::Float(self.to_float(x)?),
            },
            "int" => match args.need("x")? {
                Value::Bool(b) => Value::Int(i64::from(b)),
                Value::Float(x) => whole(x.trunc())?,
                Value::Text(t) => {
                    let text = self.heap.get_text(t);
                    let number = text.trim().parse::<i64>().ok().map(Value::Int);
                    number.ok_or_else(|| format!("{} is no int", quoted(&text)))?
                }
                x => Value::Int(self.to_int(x)?),
            },
            "str" | "repr" => match (args.need("x")?, name) {
                (text @ Value::Text(_), "str") => text,
                (x, _) => {
                    let text = self.heap.show(x, true)?;
                    self.heap.text(&text)?
                }
            },
            "type" => {
                let x = args.need("x")?;
                let kind = self.heap.kind(x);
                self.heap.text(kind)?
            }
            "list" | "tuple" | "reversed" | "sorted" => {
                let mut items = match args.take("x") {
                    Some(x) => self.heap.all(x)?,
                    None => Vec::new(),
                };
                let mut backwards = name == "reversed";
                if name == "sorted" {
                    backwards = args.named("reverse").is_some_and(|r| self.heap.truth(r));
                    items = self.sort(items)?;
                }
                if backwards {
                    items.reverse();
                }
                if name == "tuple" { self.heap.tuple(items)? } else { self.heap.list(items)? }
            }
            "enumerate" => {
                let x = args.need("x")?;
                let from = match args.take("start") {
                    Some(start) => self.to_int(start)?,
                    None => 0,
                };
                let items = self.heap.all(x)?;
                let mut pairs = Vec::new();
                for (i, item) in (from..).zip(items) {
                    pairs.push(self.heap.tuple(vec![Value::Int(i), item])?);
                }
                self.heap.list(pairs)?
            }
            "dict" => {
                let dict = self.heap.dict()?;
                if let Some(from) = (!args.given.is_empty()).then(|| args.given.remove(0)) {
                    self.update(dict, from)?;
                }
                for (key, value) in std::mem::take(&mut args.named) {
                    let key = self.heap.shared_text(&key)?;
                    self.set_item(dict, key, value)?;
                }
                dict
            }
            _ => return Err("is not there".to_string()),
        };
        args.finish()?;
        Ok(value)
    }

    fn range(&mut self, args: Args) -> Told<Value> {
        let numbers: Told<Vec<i64>> = args.given.iter().map(|&v| self.to_int(v)).collect();
        let range = match numbers?[..] {
            [stop] => [0, stop, 1],
            [start, stop] => [start, stop, 1],
            [start, stop, step] if step != 0 && step != i64::MIN => [start, stop, step],
            _ => return Err("takes one to three ints, the third not 0".to_string()),
        };
        Args { given: Vec::new(), named: args.named }.finish()?;
        self.heap.range(range)
    }

    fn extreme(&mut self, greatest: bool, args: Args) -> Told<Value> {
        let items = match args.given[..] {
            [one] => self.heap.all(one)?,
            _ => args.given,
        };
        self.heap.tick(items.len())?;
        let mut best: Option<Value> = None;
        for item in items {
            let better = match best {
                None => true,
                Some(best) => {
                    let order = self.heap.order(item, best)?;
                    if greatest { order.is_gt() } else { order.is_lt() }
                }
            };
            if better {
                best = Some(item);
            }
        }
        best.ok_or_else(|| "nothing to choose from".to_string())
    }

    fn zip(&mut self, args: Args) -> Told<Value> {
        let lens: Told<Vec<usize>> = args.given.iter().map(|&v| self.heap.len(v)).collect();
        let mut rows = Vec::new();
        for i in 0..lens?.into_iter().min().unwrap_or(0) {
            let row = args.given.iter().filter_map(|&v| self.heap.item(v, i)).collect();
            rows.push(self.heap.tuple(row)?);
        }
        self.heap.list(rows)
    }

    fn sort(&self, mut items: Vec<Value>) -> Told<Vec<Value>> {
        self.heap.tick(items.len().saturating_mul(items.len().max(1).ilog2() as usize + 1))?;
        let mut failed = None;
        items.sort_by(|&a, &b| {
            self.heap.order(a, b).unwrap_or_else(|what| {
                failed = Some(what);
                std::cmp::Ordering::Equal
            })
        });
        failed.map_or(Ok(items), Err)
    }

    pub(super) fn update(&mut self, dict: Value, from: Value) -> Told<()> {
        let pairs = match from {
            Value::Dict(d) => self.heap.get_dict(d).to_vec(),
            other => {
                let mut pairs = Vec::new();
                for pair in self.heap.all(other)? {
                    match self.heap.all(pair)?[..] {
                        [key, value] => pairs.push((key, value)),
                        _ => return Err("a dict is made of pairs".to_string()),
                    }
                }
                pairs
            }
        };
        pairs.into_iter().try_for_each(|(key, value)| self.set_item(dict, key, value))
    }
}

pub(super) fn finite(x: f64) -> Told<Value> {
    if x.is_finite() { Ok(Value::Float(x)) } else { Err("the result is not finite".to_string()) }
}

pub(super) fn whole(x: f64) -> Told<Value> {
    // Every f64 below 2^63 that is whole is an i64.
    if x.abs() < 9.0e18 { Ok(Value::Int(x as i64)) } else { Err(overflow()) }
}
