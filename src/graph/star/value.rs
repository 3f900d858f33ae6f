//! Values of a script, and the one place where they live.
//!
//! A [`Value`] is a number or an index into the [`Heap`], which only grows until the script ends:
//! there is nothing to free one by one, so no chain of values can be too long to drop, and what a
//! script takes in all is what it may take.

use crate::error::quoted;
use crate::graph::NodeId;
use std::cell::Cell;
use std::rc::Rc;

/// A value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(u32),
    List(u32),
    Tuple(u32),
    Dict(u32),
    Range(u32),
    Function(u32),
    Builtin(&'static str),
    /// A value of the step that is being built.
    Node(NodeId),
    /// The graph that is being built.
    Graph,
    /// The model's hyper-parameters.
    Config,
}

/// Bytes of all values a script makes.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// What a script may do in all: an expression or statement is a step, and so are a few items or
/// bytes that an operation goes through.
pub(super) const MAX_STEPS: u64 = 5_000_000;
/// Lists inside lists that are compared or printed.
const MAX_NESTING: usize = 16;

#[derive(Default)]
pub(super) struct List {
    pub items: Vec<Value>,
    /// Loops that run over it; it may not change meanwhile.
    pub loops: usize,
}

#[derive(Default)]
pub(super) struct Dict {
    pub entries: Vec<(Value, Value)>,
    pub loops: usize,
}

/// What a script has made.
#[derive(Default)]
pub(super) struct Heap {
    texts: Vec<Rc<str>>,
    lists: Vec<List>,
    tuples: Vec<Rc<[Value]>>,
    dicts: Vec<Dict>,
    ranges: Vec<[i64; 3]>,
    bytes: usize,
    steps: Cell<u64>,
    /// Lists and dicts before these belong to files that are loaded: they never change again.
    frozen: (usize, usize),
}

/// A message without a place; whoever runs the script adds it.
pub(super) type Told<T> = Result<T, String>;

impl Heap {
    /// Counts memory before it is taken.
    pub fn charge(&mut self, bytes: usize) -> Told<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_BYTES {
            return Err(format!("the script's values take more than {} MiB", MAX_BYTES >> 20));
        }
        self.tick(bytes / 64)
    }

    /// Counts work before it is done.
    pub fn tick(&self, steps: usize) -> Told<()> {
        let steps = self.steps.get().saturating_add(steps as u64);
        self.steps.set(steps);
        if steps > MAX_STEPS {
            return Err(format!("the script takes more than {MAX_STEPS} steps"));
        }
        Ok(())
    }

    fn items(&mut self, count: usize) -> Told<()> {
        self.charge(count.saturating_mul(size_of::<Value>()).saturating_add(64))
    }

    pub fn text(&mut self, text: &str) -> Told<Value> {
        self.charge(text.len().saturating_add(48))?;
        self.texts.push(text.into());
        Ok(Value::Text((self.texts.len() - 1) as u32))
    }

    /// A text that the file itself holds: no copy.
    pub fn shared_text(&mut self, text: &Rc<str>) -> Told<Value> {
        self.charge(16)?;
        self.texts.push(text.clone());
        Ok(Value::Text((self.texts.len() - 1) as u32))
    }

    pub fn list(&mut self, items: Vec<Value>) -> Told<Value> {
        self.items(items.len())?;
        self.lists.push(List { items, loops: 0 });
        Ok(Value::List((self.lists.len() - 1) as u32))
    }

    pub fn tuple(&mut self, items: Vec<Value>) -> Told<Value> {
        self.items(items.len())?;
        self.tuples.push(items.into());
        Ok(Value::Tuple((self.tuples.len() - 1) as u32))
    }

    pub fn dict(&mut self) -> Told<Value> {
        self.items(0)?;
        self.dicts.push(Dict::default());
        Ok(Value::Dict((self.dicts.len() - 1) as u32))
    }

    pub fn range(&mut self, range: [i64; 3]) -> Told<Value> {
        self.charge(32)?;
        self.ranges.push(range);
        Ok(Value::Range((self.ranges.len() - 1) as u32))
    }

    pub fn get_text(&self, i: u32) -> Rc<str> {
        self.texts.get(i as usize).cloned().unwrap_or_else(|| "".into())
    }

    pub fn get_list(&self, i: u32) -> &[Value] {
        self.lists.get(i as usize).map_or(&[], |l| &l.items)
    }

    pub fn get_tuple(&self, i: u32) -> Rc<[Value]> {
        self.tuples.get(i as usize).cloned().unwrap_or_else(|| Rc::from([]))
    }

    pub fn get_dict(&self, i: u32) -> &[(Value, Value)] {
        self.dicts.get(i as usize).map_or(&[], |d| &d.entries)
    }

    pub fn get_range(&self, i: u32) -> [i64; 3] {
        self.ranges.get(i as usize).copied().unwrap_or([0, 0, 1])
    }

    /// A list that may change, with room for `more` items.
    pub fn list_mut(&mut self, i: u32, more: usize) -> Told<&mut Vec<Value>> {
        self.items(more)?;
        if (i as usize) < self.frozen.0 {
            return Err("the list belongs to a loaded file and cannot change".to_string());
        }
        match self.lists.get_mut(i as usize) {
            Some(List { items, loops: 0 }) => Ok(items),
            _ => Err("the list cannot change while a loop runs over it".to_string()),
        }
    }

    fn dict_mut(&mut self, i: u32) -> Told<&mut Vec<(Value, Value)>> {
        self.items(2)?;
        if (i as usize) < self.frozen.1 {
            return Err("the dict belongs to a loaded file and cannot change".to_string());
        }
        match self.dicts.get_mut(i as usize) {
            Some(Dict { entries, loops: 0 }) => Ok(entries),
            _ => Err("the dict cannot change while a loop runs over it".to_string()),
        }
    }

    /// Sets a key of a dict.
    pub fn insert(&mut self, i: u32, key: Value, value: Value) -> Told<()> {
        self.check_key(key)?;
        let at = self.find(i, key)?;
        let entries = self.dict_mut(i)?;
        match at.and_then(|at| entries.get_mut(at)) {
            Some(entry) => entry.1 = value,
            None => entries.push((key, value)),
        }
        Ok(())
    }

    /// Takes a key out of a dict.
    pub fn remove(&mut self, i: u32, key: Value) -> Told<Option<Value>> {
        let at = self.find(i, key)?;
        let entries = self.dict_mut(i)?;
        Ok(at.filter(|&at| at < entries.len()).map(|at| entries.remove(at).1))
    }

    /// Where a key is in a dict.
    pub fn find(&self, i: u32, key: Value) -> Told<Option<usize>> {
        for (at, (k, _)) in self.get_dict(i).iter().enumerate() {
            if std::mem::discriminant(k) != std::mem::discriminant(&key) {
                continue;
            }
            if self.equal(*k, key)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn check_key(&self, key: Value) -> Told<()> {
        match key {
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Text(_) => Ok(()),
            Value::Tuple(i) => self.get_tuple(i).iter().try_for_each(|&k| match k {
                Value::Tuple(_) => Err("a tuple of tuples cannot be a key".to_string()),
                k => self.check_key(k),
            }),
            other => Err(format!("{} cannot be a key", self.kind(other))),
        }
    }

    /// Notes that a loop over it begins or ends.
    pub fn looped(&mut self, value: Value, begins: bool) {
        let loops = match value {
            Value::List(i) => self.lists.get_mut(i as usize).map(|l| &mut l.loops),
            Value::Dict(i) => self.dicts.get_mut(i as usize).map(|d| &mut d.loops),
            _ => None,
        };
        if let Some(loops) = loops {
            *loops = if begins { loops.saturating_add(1) } else { loops.saturating_sub(1) };
        }
    }

    /// What is there now never changes again.
    pub fn freeze(&mut self) {
        self.frozen = (self.lists.len(), self.dicts.len());
    }

    /// Item `i` of what can be looped over.
    pub fn item(&self, of: Value, i: usize) -> Option<Value> {
        match of {
            Value::List(l) => self.get_list(l).get(i).copied(),
            Value::Tuple(t) => self.tuples.get(t as usize)?.get(i).copied(),
            Value::Dict(d) => self.get_dict(d).get(i).map(|e| e.0),
            Value::Range(r) => {
                let [start, _, step] = self.get_range(r);
                let i = i64::try_from(i).ok().filter(|&i| i < self.range_len(r))?;
                start.checked_add(step.checked_mul(i)?).map(Value::Int)
            }
            _ => None,
        }
    }

    /// How many items something has.
    pub fn len(&self, of: Value) -> Told<usize> {
        Ok(match of {
            Value::List(l) => self.get_list(l).len(),
            Value::Tuple(t) => self.get_tuple(t).len(),
            Value::Dict(d) => self.get_dict(d).len(),
            Value::Range(r) => usize::try_from(self.range_len(r)).unwrap_or(0),
            Value::Node(_) => {
                let what = "a node has no items; g.slice takes a part of it, [x, y] makes a list";
                return Err(what.to_string());
            }
            other => return Err(format!("{} has no items", self.kind(other))),
        })
    }

    fn range_len(&self, r: u32) -> i64 {
        let [start, stop, step] = self.get_range(r).map(i128::from);
        let len = if step > 0 {
            (stop - start + step - 1) / step
        } else {
            (start - stop - step - 1) / -step.min(-1)
        };
        i64::try_from(len.max(0)).unwrap_or(i64::MAX)
    }

    /// The items of what can be looped over.
    pub fn all(&mut self, of: Value) -> Told<Vec<Value>> {
        let len = self.len(of)?;
        self.items(len)?;
        Ok((0..len).filter_map(|i| self.item(of, i)).collect())
    }

    /// Whether a condition holds.
    pub fn truth(&self, of: Value) -> bool {
        match of {
            Value::None => false,
            Value::Bool(b) => b,
            Value::Int(i) => i != 0,
            Value::Float(x) => x != 0.0,
            Value::Text(t) => !self.get_text(t).is_empty(),
            Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Range(_) => {
                self.len(of).is_ok_and(|n| n > 0)
            }
            _ => true,
        }
    }

    /// What kind of value it is.
    pub fn kind(&self, of: Value) -> &'static str {
        match of {
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "string",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Range(_) => "range",
            Value::Function(_) => "function",
            Value::Builtin(_) => "builtin_function",
            Value::Node(_) => "node",
            Value::Graph => "graph",
            Value::Config => "config",
        }
    }

    /// `a == b`.
    pub fn equal(&self, a: Value, b: Value) -> Told<bool> {
        self.equal_within(a, b, MAX_NESTING)
    }

    fn equal_within(&self, a: Value, b: Value, nesting: usize) -> Told<bool> {
        let Some(inner) = nesting.checked_sub(1) else {
            return Err("the values are too deep to compare".to_string());
        };
        self.tick(1)?;
        let all = |a: &[Value], b: &[Value]| {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (&a, &b) in a.iter().zip(b) {
                if !self.equal_within(a, b, inner)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match (a, b) {
            (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => {
                Ok(a as f64 == b)
            }
            (Value::Text(a), Value::Text(b)) => {
                let (a, b) = (self.get_text(a), self.get_text(b));
                self.tick(a.len().min(b.len()) / 64)?;
                Ok(a == b)
            }
            (Value::List(a), Value::List(b)) => all(self.get_list(a), self.get_list(b)),
            (Value::Tuple(a), Value::Tuple(b)) => all(&self.get_tuple(a), &self.get_tuple(b)),
            (Value::Dict(a), Value::Dict(b)) => {
                if self.get_dict(a).len() != self.get_dict(b).len() {
                    return Ok(false);
                }
                for &(key, value) in self.get_dict(a) {
                    let other = self.find(b, key)?.and_then(|at| self.get_dict(b).get(at));
                    match other {
                        Some(&(_, other)) if self.equal_within(value, other, inner)? => {}
                        _ => return Ok(false),
                    }
                }
                Ok(true)
            }
            (Value::Range(a), Value::Range(b)) => Ok(self.get_range(a) == self.get_range(b)),
            _ => Ok(a == b),
        }
    }

    /// How `a` and `b` are ordered.
    pub fn order(&self, a: Value, b: Value) -> Told<std::cmp::Ordering> {
        let number = |v: Value| match v {
            Value::Int(i) => Some(i as f64),
            Value::Float(x) => Some(x),
            _ => None,
        };
        match (a, b) {
            (Value::Int(a), Value::Int(b)) => Ok(a.cmp(&b)),
            (Value::Text(a), Value::Text(b)) => Ok(self.get_text(a).cmp(&self.get_text(b))),
            _ => match (number(a), number(b)) {
                (Some(a), Some(b)) => Ok(a.total_cmp(&b)),
                _ => Err(format!("{} and {} have no order", self.kind(a), self.kind(b))),
            },
        }
    }

    /// The value as text: bare with `str`, as written in a file with `repr`.
    pub fn show(&self, of: Value, repr: bool) -> Told<String> {
        let mut out = String::new();
        self.show_in(&mut out, of, repr, MAX_NESTING)?;
        Ok(out)
    }

    fn show_in(&self, out: &mut String, of: Value, repr: bool, nesting: usize) -> Told<()> {
        let Some(inner) = nesting.checked_sub(1) else {
            return Err("the value is too deep to be shown".to_string());
        };
        self.tick(1)?;
        if out.len() > MAX_SHOWN {
            return Err(format!("the value takes more than {MAX_SHOWN} bytes as text"));
        }
        let list = |out: &mut String, items: &[Value], open: &str, close: &str| {
            out.push_str(open);
            for (i, &item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                self.show_in(out, item, true, inner)?;
            }
            out.push_str(close);
            Ok(())
        };
        match of {
            Value::None => out.push_str("None"),
            Value::Bool(b) => out.push_str(if b { "True" } else { "False" }),
            Value::Int(i) => out.push_str(&i.to_string()),
            Value::Float(x) => out.push_str(&format!("{x:?}")),
            Value::Text(t) => {
                let text = self.get_text(t);
                self.tick(text.len() / 16)?;
                if repr { out.push_str(&format!("{text:?}")) } else { out.push_str(&text) }
            }
            Value::List(l) => return list(out, self.get_list(l), "[", "]"),
            Value::Tuple(t) => {
                let items = self.get_tuple(t);
                return list(out, &items, "(", if items.len() == 1 { ",)" } else { ")" });
            }
            Value::Dict(d) => {
                out.push('{');
                for (i, &(key, value)) in self.get_dict(d).iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    self.show_in(out, key, true, inner)?;
                    out.push_str(": ");
                    self.show_in(out, value, true, inner)?;
                }
                out.push('}');
            }
            Value::Range(r) => {
                let [start, stop, step] = self.get_range(r);
                out.push_str(&format!("range({start}, {stop}, {step})"));
            }
            Value::Function(_) => out.push_str("<function>"),
            Value::Builtin(name) => out.push_str(&format!("<function {name}>")),
            Value::Node(id) => out.push_str(&id.to_string()),
            Value::Graph => out.push_str("<graph>"),
            Value::Config => out.push_str("<config>"),
        }
        Ok(())
    }

    /// A value in a message: short and safe.
    pub fn brief(&self, of: Value) -> String {
        match of {
            Value::Text(t) => quoted(&self.get_text(t)),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                self.show(of, true).unwrap_or_default()
            }
            other => format!("a {}", self.kind(other)),
        }
    }
}

/// Bytes of one value as text.
const MAX_SHOWN: usize = 1 << 20;
