//! What a graph file has in its hands: `g`, the graph that is built, and `c`, the model's
//! hyper-parameters.

use super::eval::{Args, Frame, Script};
use super::value::{Told, Value};
use crate::error::{Error, Result, quoted};
use crate::graph::{
    AttendExtras, AttendOptions, BinaryKind, Builder, NodeId, Origin, RopeLayout, RopeOptions,
    UnaryKind, near,
};
use crate::model::Array;
use std::rc::Rc;

/// Nodes that a graph file may make: a model of 1,000 layers has about 60,000.
const MAX_NODES: usize = 1 << 17;

/// Fields of `c`.
const FIELDS: [&str; 12] = [
    "layers",
    "dim",
    "heads",
    "kv_heads",
    "head_dim",
    "rope_dim",
    "rope_base",
    "rope_scale",
    "eps",
    "context",
    "hf",
    "arch",
];
/// Methods of `c`.
const QUESTIONS: [&str; 5] = ["count", "number", "flag", "text", "list"];

/// Methods of `g` beside the functions of each element, and what they take.
const METHODS: &[(&str, &[&str])] = &[
    ("attend", &["q", "k", "v", "layer", "scale", "window", "softcap", "sinks", "alibi"]),
    ("clamp", &["x", "low", "high"]),
    ("concat", &["values"]),
    ("dims", &["x"]),
    ("embed", &["name", "by"]),
    ("experts", &["x", "picks", "name"]),
    ("has", &["name", "part"]),
    ("heads", &["x", "n"]),
    ("layer_norm", &["x", "name", "eps"]),
    ("linear", &["x", "name"]),
    ("merge", &["x"]),
    ("mix", &["x", "weights"]),
    ("normalize", &["x"]),
    ("pick", &["x", "picks"]),
    ("reshape", &["x", "dims"]),
    ("rms_norm", &["x", "name", "eps"]),
    ("rope", &["x", "base", "layout", "dim", "scale", "factors", "gain"]),
    ("scale", &["x", "by"]),
    ("select", &["x"]),
    ("slice", &["x", "start", "len"]),
    ("softcap", &["x", "cap"]),
    ("softmax", &["x"]),
    ("top_k", &["x", "k"]),
    ("weight", &["name"]),
];

/// Refuses a method that is not there and an argument that it does not take, before what is missing.
fn check_names(name: &str, args: &Args) -> Told<()> {
    let plain = || UnaryKind::PLAIN.iter().any(|(_, n)| *n == name).then_some(&["x"][..]);
    let found = METHODS.iter().find(|(n, _)| *n == name).map(|(_, takes)| *takes);
    let Some(takes) = found.or_else(plain) else {
        let all = METHODS.iter().map(|(n, _)| *n).chain(UnaryKind::PLAIN.iter().map(|(_, n)| *n));
        return Err(format!("there is no such op{}", near::hint(name, all)));
    };
    match args.named.iter().find(|(n, _)| !takes.contains(&&**n)) {
        Some((n, _)) => Err(format!("has no parameter {n}; it takes {}", takes.join(", "))),
        None => Ok(()),
    }
}

impl<'w> Script<'_, 'w> {
    /// Arguments that are read one by one, each with its name in messages.
    fn node(&self, args: &mut Args, name: &str) -> Told<NodeId> {
        match args.need(name)? {
            Value::Node(id) => Ok(id),
            other => Err(format!("{name} is {}, not a node", self.heap.brief(other))),
        }
    }

    fn text_arg(&self, args: &mut Args, name: &str) -> Told<Rc<str>> {
        let value = args.need(name)?;
        self.to_text(value).map_err(|what| format!("{name}: {what}"))
    }

    fn maybe_text(&self, args: &mut Args, name: &str) -> Told<Option<Rc<str>>> {
        match args.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => self.to_text(value).map(Some).map_err(|what| format!("{name}: {what}")),
        }
    }

    fn number(&self, args: &mut Args, name: &str, default: Option<f32>) -> Told<f32> {
        match args.take(name) {
            Some(Value::None) if default.is_none() => Err(format!("{name} is None, not a number")),
            None | Some(Value::None) => default.ok_or_else(|| format!("needs {name}")),
            Some(value) => {
                let x = self.to_float(value).map_err(|what| format!("{name}: {what}"))? as f32;
                if x.is_finite() { Ok(x) } else { Err(format!("{name} does not fit an f32")) }
            }
        }
    }

    fn maybe_number(&self, args: &mut Args, name: &str) -> Told<Option<f32>> {
        match args.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => {
                args.named.push((name.into(), value));
                self.number(args, name, None).map(Some)
            }
        }
    }

    fn count_of(&self, name: &str, value: Value) -> Told<usize> {
        let i = self.to_int(value).map_err(|what| format!("{name}: {what}"))?;
        usize::try_from(i).map_err(|_| format!("{name}: {i} is negative"))
    }

    fn count(&self, args: &mut Args, name: &str) -> Told<usize> {
        let value = args.need(name)?;
        self.count_of(name, value)
    }

    fn maybe_count(&self, args: &mut Args, name: &str) -> Told<Option<usize>> {
        match args.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => self.count_of(name, value).map(Some),
        }
    }

    fn built(
        &mut self,
        origin: &Origin,
        make: impl FnOnce(&mut Builder<'w>) -> Result<NodeId>,
    ) -> Result<Value> {
        let Some(b) = &mut self.builder else {
            let what = "the graph is only there while build runs".to_string();
            return Err(Error::Script { origin: origin.to_string(), what });
        };
        if b.graph().nodes().len() >= MAX_NODES {
            let what = format!("the graph has more than {MAX_NODES} nodes");
            return Err(Error::Script { origin: origin.to_string(), what });
        }
        b.at(origin.clone(), make).map(Value::Node)
    }

    /// A method of `g`.
    pub(super) fn graph_method(
        &mut self,
        frame: &Frame,
        line: u32,
        name: &str,
        args: Args,
    ) -> Result<Value> {
        let origin = self.origin(frame, line);
        match check_names(name, &args).and_then(|()| self.graph_call(&origin, name, args)) {
            Ok(made) => made,
            Err(what) => {
                Err(Error::Script { origin: origin.to_string(), what: format!("{name}: {what}") })
            }
        }
    }

    /// Arguments that do not fit are the outer error, what the builder refuses the inner one.
    fn graph_call(&mut self, origin: &Origin, name: &str, mut args: Args) -> Told<Result<Value>> {
        let a = &mut args;
        let made = match name {
            "has" => {
                let tensor = self.text_arg(a, "name")?;
                let part = match a.take("part") {
                    Some(part) => self.to_text(part)?,
                    None => "weight".into(),
                };
                let full = format!("{tensor}.{part}");
                Ok(Value::Bool(self.builder.as_ref().is_some_and(|b| b.has_tensor(&full))))
            }
            "dims" => {
                let x = self.node(a, "x")?;
                let dims = self.builder.as_ref().map(|b| b.dims(x).to_vec()).unwrap_or_default();
                let dims =
                    dims.into_iter().map(|d| Value::Int(i64::try_from(d).unwrap_or(i64::MAX)));
                Ok(self.heap.list(dims.collect())?)
            }
            "weight" => {
                let tensor = self.text_arg(a, "name")?;
                a.finish()?;
                self.built(origin, |b| b.weight(&tensor))
            }
            "embed" => {
                let tensor = self.text_arg(a, "name")?;
                let by = a.named("by").map(|by| self.to_text(by)).transpose()?;
                a.finish()?;
                match by.as_deref() {
                    None | Some("tokens") => self.built(origin, |b| b.embed(&tensor)),
                    Some("positions") => self.built(origin, |b| b.embed_positions(&tensor)),
                    _ => return Err("by is \"tokens\" or \"positions\"".to_string()),
                }
            }
            "linear" => {
                let (x, tensor) = (self.node(a, "x")?, self.text_arg(a, "name")?);
                a.finish()?;
                self.built(origin, |b| b.linear(x, &tensor))
            }
            "heads" => {
                let (x, n) = (self.node(a, "x")?, self.count(a, "n")?);
                a.finish()?;
                self.built(origin, |b| b.heads(x, n))
            }
            "merge" => {
                let x = self.node(a, "x")?;
                a.finish()?;
                self.built(origin, |b| b.merge(x))
            }
            "reshape" => {
                let x = self.node(a, "x")?;
                let dims = a.need("dims")?;
                let dims = self.heap.all(dims)?;
                let dims: Told<Vec<usize>> =
                    dims.into_iter().map(|d| self.count_of("dims", d)).collect();
                let dims = dims?;
                a.finish()?;
                self.built(origin, |b| b.reshape(x, &dims))
            }
            "rms_norm" => {
                let (x, tensor) = (self.node(a, "x")?, self.maybe_text(a, "name")?);
                let eps = self.number(a, "eps", None)?;
                a.finish()?;
                self.built(origin, |b| match tensor {
                    Some(tensor) => b.rms_norm(x, &tensor, eps),
                    None => b.rms_norm_plain(x, eps),
                })
            }
            "layer_norm" => {
                let (x, tensor) = (self.node(a, "x")?, self.maybe_text(a, "name")?);
                let eps = self.number(a, "eps", None)?;
                a.finish()?;
                self.built(origin, |b| b.layer_norm(x, tensor.as_deref(), eps))
            }
            "concat" => {
                let list = a.need("values")?;
                let mut values = Vec::new();
                for value in self.heap.all(list)? {
                    match value {
                        Value::Node(id) => values.push(id),
                        other => return Err(format!("{} is not a node", self.heap.brief(other))),
                    }
                }
                a.finish()?;
                self.built(origin, |b| b.concat(&values))
            }
            "softmax" | "normalize" => {
                let x = self.node(a, "x")?;
                a.finish()?;
                let softmax = name == "softmax";
                self.built(origin, |b| if softmax { b.softmax(x) } else { b.normalize(x) })
            }
            "top_k" => {
                let (x, k) = (self.node(a, "x")?, self.count(a, "k")?);
                a.finish()?;
                self.built(origin, |b| b.top_k(x, k))
            }
            "pick" => {
                let (x, picks) = (self.node(a, "x")?, self.node(a, "picks")?);
                a.finish()?;
                self.built(origin, |b| b.pick(x, picks))
            }
            "experts" => {
                let (x, picks) = (self.node(a, "x")?, self.node(a, "picks")?);
                let tensor = self.text_arg(a, "name")?;
                a.finish()?;
                self.built(origin, |b| b.experts(x, picks, &tensor))
            }
            "mix" => {
                let (x, w) = (self.node(a, "x")?, self.node(a, "weights")?);
                a.finish()?;
                self.built(origin, |b| b.mix(x, w))
            }
            "clamp" => {
                let x = self.node(a, "x")?;
                let low = self.number(a, "low", Some(f32::MIN))?;
                let high = self.number(a, "high", Some(f32::MAX))?;
                a.finish()?;
                self.built(origin, |b| b.unary(x, UnaryKind::Clamp(low, high)))
            }
            "rope" => return self.rope(origin, args),
            "attend" => return self.attend(origin, args),
            "scale" => {
                let (x, by) = (self.node(a, "x")?, self.number(a, "by", None)?);
                a.finish()?;
                self.built(origin, |b| b.scale(x, by))
            }
            "softcap" => {
                let (x, cap) = (self.node(a, "x")?, self.number(a, "cap", None)?);
                a.finish()?;
                self.built(origin, |b| b.softcap(x, cap))
            }
            "slice" => {
                let x = self.node(a, "x")?;
                let (start, len) = (self.count(a, "start")?, self.count(a, "len")?);
                a.finish()?;
                self.built(origin, |b| b.slice(x, start, len))
            }
            "select" => {
                let x = self.node(a, "x")?;
                a.finish()?;
                self.built(origin, |b| b.select(x))
            }
            _ => {
                // Functions of each element go by their names.
                let Some((kind, _)) = UnaryKind::PLAIN.iter().find(|(_, n)| *n == name) else {
                    return Err("there is no such op".to_string());
                };
                let x = self.node(a, "x")?;
                a.finish()?;
                self.built(origin, |b| b.unary(x, *kind))
            }
        };
        args.finish()?;
        Ok(made)
    }

    fn rope(&mut self, origin: &Origin, mut args: Args) -> Told<Result<Value>> {
        let a = &mut args;
        let x = self.node(a, "x")?;
        let base = self.number(a, "base", None)?;
        let dim = self.maybe_count(a, "dim")?;
        let scale = self.number(a, "scale", Some(1.0))?;
        let layout = match a.take("layout") {
            // No default: models that look alike differ in it.
            None => return Err("needs layout, \"half\" or \"neighbour\"".to_string()),
            Some(layout) => match &*self.to_text(layout)? {
                "neighbour" => RopeLayout::Neighbour,
                "half" => RopeLayout::Half,
                _ => {
                    let layout = self.heap.brief(layout);
                    return Err(format!("layout is \"half\" or \"neighbour\", not {layout}"));
                }
            },
        };
        // A tensor's name, or numbers.
        let (mut factors, mut divide) = (None, Vec::new());
        match a.take("factors") {
            None | Some(Value::None) => {}
            Some(tensor @ Value::Text(_)) => factors = Some(self.to_text(tensor)?),
            Some(list) => {
                for value in self.heap.all(list)? {
                    divide.push(self.to_float(value)? as f32);
                }
            }
        }
        let gain = self.number(a, "gain", Some(1.0))?;
        args.finish()?;
        Ok(self.built(origin, |b| {
            let (factors, divide) = (factors.as_deref(), &divide[..]);
            b.rope(x, RopeOptions { base, dim, scale, layout, factors, divide, gain })
        }))
    }

    fn attend(&mut self, origin: &Origin, mut args: Args) -> Told<Result<Value>> {
        let a = &mut args;
        let (q, k, v) = (self.node(a, "q")?, self.node(a, "k")?, self.node(a, "v")?);
        let (layer, scale) = (self.count(a, "layer")?, self.number(a, "scale", None)?);
        let (window, softcap) = (self.maybe_count(a, "window")?, self.maybe_number(a, "softcap")?);
        let (sinks, alibi) = (self.maybe_text(a, "sinks")?, self.maybe_number(a, "alibi")?);
        args.finish()?;
        let options = AttendOptions { layer, scale, window, softcap };
        Ok(self.built(origin, |b| {
            let extras = AttendExtras { sinks: sinks.as_deref(), alibi };
            b.attend_with(q, k, v, options, extras)
        }))
    }

    /// An operator of which one side is a node.
    pub(super) fn node_binary(
        &mut self,
        frame: &Frame,
        line: u32,
        op: &'static str,
        left: Value,
        right: Value,
    ) -> Result<Value> {
        let origin = self.origin(frame, line);
        let number = |v: Value| self.to_float(v).ok().map(|x| x as f32).filter(|x| x.is_finite());
        let kind = match op {
            "+" => Some(BinaryKind::Add),
            "*" => Some(BinaryKind::Mul),
            "-" => Some(BinaryKind::Sub),
            "/" => Some(BinaryKind::Div),
            _ => None,
        };
        match (op, left, right) {
            (_, Value::Node(a), Value::Node(b)) if kind.is_some() => {
                let kind = kind.unwrap_or(BinaryKind::Add);
                self.built(&origin, |g| g.binary(kind, a, b))
            }
            ("+", Value::Node(x), c) | ("+", c, Value::Node(x)) if number(c).is_some() => {
                let c = number(c).unwrap_or(0.0);
                self.built(&origin, |g| g.unary(x, UnaryKind::Shift(c)))
            }
            ("-", c, Value::Node(x)) if number(c).is_some() => {
                let c = number(c).unwrap_or(0.0);
                self.built(&origin, |g| {
                    let minus = g.scale(x, -1.0)?;
                    g.unary(minus, UnaryKind::Shift(c))
                })
            }
            ("/", c, Value::Node(x)) if number(c).is_some() => {
                let c = number(c).unwrap_or(1.0);
                self.built(&origin, |g| g.unary(x, UnaryKind::Over(c)))
            }
            ("-", Value::Node(x), c) if number(c).is_some() => {
                let c = number(c).unwrap_or(0.0);
                self.built(&origin, |g| g.unary(x, UnaryKind::Shift(-c)))
            }
            ("/", Value::Node(x), c) if number(c).is_some_and(|c| c != 0.0) => {
                let c = number(c).unwrap_or(1.0);
                self.built(&origin, |g| g.scale(x, 1.0 / c))
            }
            ("*", Value::Node(x), c) | ("*", c, Value::Node(x)) if number(c).is_some() => {
                let c = number(c).unwrap_or(1.0);
                self.built(&origin, |g| g.scale(x, c))
            }
            ("==" | "!=", ..) => Ok(Value::Bool((left == right) == (op == "=="))),
            _ => {
                let (a, b) = (self.heap.kind(left), self.heap.kind(right));
                // What a node will hold is known when the graph runs, not while it is built.
                let hint = if matches!(op, "<" | "<=" | ">" | ">=" | "in" | "not in") {
                    "; a node has no value while the graph is built"
                } else {
                    ""
                };
                Err(Error::Script {
                    origin: origin.to_string(),
                    what: format!("no {op} between {a} and {b}{hint}"),
                })
            }
        }
    }

    /// A field of `c`.
    pub(super) fn config_field(&mut self, frame: &Frame, line: u32, name: &str) -> Result<Value> {
        let Some(c) = self.config else { return Ok(Value::None) };
        let int = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let float = |x: f32| Value::Float(f64::from(x));
        Ok(match name {
            "layers" => int(c.layers),
            "context" => int(c.context),
            "dim" => int(c.dim),
            "heads" => int(c.heads),
            "kv_heads" => int(c.kv_heads),
            "head_dim" => int(c.head_dim),
            "rope_dim" => int(c.rope_dim),
            "rope_base" => c.rope_base.map_or(Value::None, float),
            "rope_scale" => float(c.rope_scale),
            "eps" => match c.eps {
                Some(eps) => float(eps),
                None => return Err(self.asked(frame, line, c.missing(crate::graph::arch::EPS))),
            },
            "hf" => Value::Bool(c.is_hf()),
            "arch" => {
                let text = self.heap.text(c.name());
                return text.map_err(|what| self.error(frame.module, line, what));
            }
            _ => {
                let hint = near::hint(name, FIELDS);
                let what = format!(
                    "c has no field {name}{hint}; it has {}, and asks for others: c.count({})",
                    FIELDS.join(" "),
                    quoted(name)
                );
                return Err(self.error(frame.module, line, what));
            }
        })
    }

    /// An error about a key, with the line that asked for it.
    fn asked(&self, frame: &Frame, line: u32, error: Error) -> Error {
        self.error(frame.module, line, error.to_string())
    }

    fn array(&mut self, array: &Array) -> Told<Value> {
        let mut items = Vec::new();
        if let Array::Str(texts) = array {
            for text in texts.iter() {
                items.push(self.heap.text(&String::from_utf8_lossy(text))?);
            }
        } else if let Array::Bool(all) = array {
            items.extend(all.iter().map(|&b| Value::Bool(b)));
        } else if let Some(all) = array.integers::<i64>() {
            items.extend(all.iter().map(|&i| Value::Int(i)));
        } else if let Some(all) = array.floats() {
            items.extend(all.iter().map(|&x| Value::Float(f64::from(x))));
        }
        self.heap.list(items)
    }

    /// A method of `c`.
    pub(super) fn config_method(
        &mut self,
        frame: &Frame,
        line: u32,
        name: &str,
        mut args: Args,
    ) -> Result<Value> {
        let fail =
            |this: &Self, what: String| this.error(frame.module, line, format!("c.{name}: {what}"));
        if FIELDS.contains(&name) {
            let what = format!("c.{name} is a value, it cannot be called");
            return Err(self.error(frame.module, line, what));
        }
        if !QUESTIONS.contains(&name) {
            let what = format!("there is no such question; there are {}", QUESTIONS.join(" "));
            return Err(fail(self, what));
        }
        let key = self.text_arg(&mut args, "key").map_err(|what| fail(self, what))?;
        let default = args.take("default");
        args.finish().map_err(|what| fail(self, what))?;
        let Some(c) = self.config else { return Ok(Value::None) };
        let asked = |this: &Self, e: Error| this.asked(frame, line, e);
        let int = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let found = match name {
            "count" => c.count(&key).map_err(|e| asked(self, e))?.map(int),
            "number" => {
                c.float(&key).map_err(|e| asked(self, e))?.map(|x| Value::Float(f64::from(x)))
            }
            "flag" => c.flag(&key).map_err(|e| asked(self, e))?.map(Value::Bool),
            "text" => match c.text(&key).map_err(|e| asked(self, e))? {
                Some(text) => Some(self.heap.text(text).map_err(|what| fail(self, what))?),
                None => None,
            },
            "list" => match c.value(&key).and_then(|v| v.as_array()) {
                Some(array) => Some(self.array(array).map_err(|what| fail(self, what))?),
                None => None,
            },
            _ => return Err(fail(self, "there is no such question".to_string())),
        };
        match found.or(default) {
            Some(value) => Ok(value),
            None => Err(asked(self, c.missing(&key))),
        }
    }
}
