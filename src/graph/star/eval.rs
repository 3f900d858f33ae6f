//! Runs the tree of a script: its files, statements and calls.

use super::lex::Failed;
use super::tree::{Def, Expr, Kind, Step, Stmt};
use super::value::{Heap, Told, Value};
use crate::error::{Error, Result, quoted};
use crate::graph::{Builder, Origin, near};
use std::rc::Rc;
use std::sync::Arc;

/// Expressions, statements and calls inside each other: bounds the stack.
const MAX_DEPTH: usize = 200;

/// The files of a script and what it has made.
pub(super) struct Script<'a, 'w> {
    pub heap: Heap,
    pub modules: Vec<Module>,
    functions: Vec<Function>,
    /// Where the last `return` stands: after `build` has run, its own.
    pub(super) returned: Option<(usize, u32)>,
    /// Functions that run, by index: none may run twice at once.
    running: Vec<usize>,
    pub(super) depth: usize,
    pub builder: Option<&'a mut Builder<'w>>,
    pub config: Option<&'a crate::graph::arch::Config<'a>>,
}

/// A loaded file.
pub(super) struct Module {
    pub file: Arc<str>,
    pub globals: Vec<(Rc<str>, Value)>,
}

struct Function {
    def: Rc<Def>,
    module: usize,
    defaults: Vec<Option<Value>>,
}

/// Where code runs.
pub(super) struct Frame {
    pub module: usize,
    /// Names of the running function; `None` at the top of a file, whose names are the module's.
    pub(super) locals: Option<Vec<(Rc<str>, Value)>>,
    /// Where the names of the innermost comprehension begin: it changes no others.
    pub(super) scope: usize,
}

/// Arguments of a call.
#[derive(Default)]
pub(super) struct Args {
    pub given: Vec<Value>,
    pub named: Vec<(Rc<str>, Value)>,
}

/// What a statement does to the flow.
enum Flow {
    Next,
    Break,
    Continue,
    Return(Value),
}

impl<'w> Script<'_, 'w> {
    pub fn new() -> Self {
        Script {
            heap: Heap::default(),
            modules: Vec::new(),
            functions: Vec::new(),
            returned: None,
            running: Vec::new(),
            depth: 0,
            builder: None,
            config: None,
        }
    }

    /// An error at a line of a module.
    pub fn error(&self, module: usize, line: u32, what: impl Into<String>) -> Error {
        let file = self.modules.get(module).map_or("", |m| &m.file);
        Error::Script { origin: format!("{file}:{line}"), what: what.into() }
    }

    pub(super) fn at<T>(&self, frame: &Frame, line: u32, told: Told<T>) -> Result<T> {
        told.map_err(|what| self.error(frame.module, line, what))
    }

    pub fn origin(&self, frame: &Frame, line: u32) -> Origin {
        let file = self.modules.get(frame.module).map_or_else(|| "".into(), |m| m.file.clone());
        Origin { file, line }
    }

    /// Runs the top of a file; `load` gives the module of a name.
    pub fn run(
        &mut self,
        file: &str,
        source: &str,
        load: &mut dyn FnMut(&mut Self, &str) -> Result<usize>,
    ) -> Result<usize> {
        let module = self.modules.len();
        self.modules.push(Module { file: file.into(), globals: Vec::new() });
        let place = |(line, what): Failed| self.error(module, line, what);
        let tree = super::parse::parse(source).map_err(place)?;
        let mut frame = Frame { module, locals: None, scope: 0 };
        for stmt in &tree {
            if let Step::Load(name, names) = &stmt.kind {
                let other = load(self, name).map_err(|e| match e {
                    Error::Invalid(what) => self.error(module, stmt.line, what),
                    e => e,
                })?;
                for (here, there) in names {
                    let found = self.global(other, there);
                    let missing = || {
                        let globals = self.modules.get(other).map_or(&[][..], |m| &m.globals);
                        let hint = near::hint(there, globals.iter().map(|(n, _)| &**n));
                        format!("{} has no {}{hint}", quoted(name), quoted(there))
                    };
                    let value = self.at(&frame, stmt.line, found.ok_or_else(missing))?;
                    self.set(&mut frame, here, value);
                }
                continue;
            }
            self.exec(&mut frame, stmt)?;
        }
        self.heap.freeze();
        Ok(module)
    }

    /// A name at the top of a module.
    pub fn global(&self, module: usize, name: &str) -> Option<Value> {
        let globals = self.modules.get(module)?.globals.iter();
        globals.rev().find(|(n, _)| **n == *name).map(|(_, v)| *v)
    }

    fn set(&mut self, frame: &mut Frame, name: &Rc<str>, value: Value) {
        let names = match (&mut frame.locals, self.modules.get_mut(frame.module)) {
            (Some(locals), _) => locals,
            (None, Some(module)) => &mut module.globals,
            (None, None) => return,
        };
        match names.iter_mut().skip(frame.scope).rev().find(|(n, _)| n == name) {
            Some(found) => found.1 = value,
            None => names.push((name.clone(), value)),
        }
    }

    /// How many names there are to look through.
    pub(super) fn names(&self, frame: &Frame) -> usize {
        let globals = self.modules.get(frame.module).map_or(0, |m| m.globals.len());
        frame.locals.as_ref().map_or(globals, |l| l.len() + globals)
    }

    pub(super) fn lookup(&self, frame: &Frame, name: &str) -> Option<Value> {
        let local = frame.locals.iter().flatten().rev().find(|(n, _)| **n == *name);
        local
            .map(|(_, v)| *v)
            .or_else(|| self.global(frame.module, name))
            .or_else(|| super::builtins::find(name))
    }

    /// That there is no such name, and what was probably meant.
    pub(super) fn no_name(&self, frame: &Frame, name: &str) -> String {
        let hint = match name {
            "print" => "; fail(x) ends with the value shown".to_string(),
            "true" => "; write True".to_string(),
            "false" => "; write False".to_string(),
            "none" | "null" => "; write None".to_string(),
            "math" | "np" | "torch" => "; functions stand alone: sqrt(x), g.silu(x)".to_string(),
            "g" | "c" => format!("; {name} is there inside of build(g, c)"),
            _ => match super::library::helper(name) {
                Some(file) => format!("; load({file:?}, {name:?}) brings it"),
                None => {
                    let locals = frame.locals.iter().flatten();
                    let globals = self.modules.get(frame.module).map_or(&[][..], |m| &m.globals);
                    let names = locals.chain(globals).map(|(n, _)| &**n);
                    near::hint(name, names.chain(super::builtins::NAMES))
                }
            },
        };
        format!("there is no name {}{hint}", quoted(name).trim_matches('"'))
    }

    /// Counts a step and a level; whoever calls it leaves the level again.
    pub(super) fn enter(&mut self, frame: &Frame, line: u32) -> Result<()> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(frame.module, line, "too many calls inside each other"));
        }
        let ticked = self.heap.tick(1);
        self.at(frame, line, ticked)?;
        self.depth += 1;
        Ok(())
    }

    fn block(&mut self, frame: &mut Frame, block: &[Stmt]) -> Result<Flow> {
        for stmt in block {
            match self.exec(frame, stmt)? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn exec(&mut self, frame: &mut Frame, stmt: &Stmt) -> Result<Flow> {
        self.enter(frame, stmt.line)?;
        let flow = self.step(frame, stmt);
        self.depth -= 1;
        flow
    }

    fn step(&mut self, frame: &mut Frame, stmt: &Stmt) -> Result<Flow> {
        match &stmt.kind {
            Step::Expr(e) => {
                self.eval(frame, e)?;
            }
            Step::Assign(target, value) => {
                let value = self.eval(frame, value)?;
                self.assign(frame, target, value)?;
            }
            Step::Augment(op, target, value) => self.augment(frame, op, target, value)?,
            Step::If(arms, rest) => {
                for (condition, body) in arms {
                    let holds = self.eval(frame, condition)?;
                    if self.heap.truth(holds) {
                        return self.block(frame, body);
                    }
                }
                return self.block(frame, rest);
            }
            Step::For(target, over, body) => {
                let over = self.eval(frame, over)?;
                let len = self.heap.len(over);
                let len = self.at(frame, stmt.line, len)?;
                self.heap.looped(over, true);
                let flow = self.rounds(frame, target, over, len, body, stmt.line);
                self.heap.looped(over, false);
                return flow;
            }
            Step::Def(def) => {
                let mut defaults = Vec::new();
                for (_, default) in &def.params {
                    let value = default.as_ref().map(|d| self.eval(frame, d)).transpose()?;
                    defaults.push(value);
                }
                let charged = self.heap.charge(128);
                self.at(frame, stmt.line, charged)?;
                let function = Function { def: def.clone(), module: frame.module, defaults };
                self.functions.push(function);
                let value = Value::Function((self.functions.len() - 1) as u32);
                self.set(frame, &def.name, value);
            }
            Step::Return(value) => {
                let value = match value {
                    Some(value) => self.eval(frame, value)?,
                    None => Value::None,
                };
                self.returned = Some((frame.module, stmt.line));
                return Ok(Flow::Return(value));
            }
            Step::Break => return Ok(Flow::Break),
            Step::Continue => return Ok(Flow::Continue),
            // Loads stand at the top of a file and are done there.
            Step::Pass | Step::Load(..) => {}
        }
        Ok(Flow::Next)
    }

    fn rounds(
        &mut self,
        frame: &mut Frame,
        target: &Expr,
        over: Value,
        len: usize,
        body: &[Stmt],
        line: u32,
    ) -> Result<Flow> {
        for i in 0..len {
            let ticked = self.heap.tick(1);
            self.at(frame, line, ticked)?;
            let Some(item) = self.heap.item(over, i) else { break };
            self.assign(frame, target, item)?;
            match self.block(frame, body)? {
                Flow::Next | Flow::Continue => {}
                Flow::Break => break,
                flow @ Flow::Return(_) => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    pub(super) fn assign(&mut self, frame: &mut Frame, target: &Expr, value: Value) -> Result<()> {
        match &target.kind {
            Kind::Name(name) => {
                self.set(frame, name, value);
                Ok(())
            }
            Kind::Index(pair) => {
                let of = self.eval(frame, &pair.0)?;
                let index = self.eval(frame, &pair.1)?;
                let set = self.set_item(of, index, value);
                self.at(frame, target.line, set)
            }
            Kind::Tuple(targets) | Kind::List(targets) => {
                let items = self.heap.all(value);
                let items = self.at(frame, target.line, items)?;
                if items.len() != targets.len() {
                    let what = format!("{} values for {} names", items.len(), targets.len());
                    return Err(self.error(frame.module, target.line, what));
                }
                targets.iter().zip(items).try_for_each(|(t, v)| self.assign(frame, t, v))
            }
            _ => Err(self.error(frame.module, target.line, "cannot assign to this")),
        }
    }

    fn augment(
        &mut self,
        frame: &mut Frame,
        op: &'static str,
        target: &Expr,
        value: &Expr,
    ) -> Result<()> {
        let line = target.line;
        if let Kind::Index(pair) = &target.kind {
            let of = self.eval(frame, &pair.0)?;
            let index = self.eval(frame, &pair.1)?;
            let old = self.get_item(of, index);
            let old = self.at(frame, line, old)?;
            let value = self.eval(frame, value)?;
            let new = self.binary(frame, line, op, old, value)?;
            let set = self.set_item(of, index, new);
            return self.at(frame, line, set);
        }
        let old = self.eval(frame, target)?;
        let value = self.eval(frame, value)?;
        // As in Python, a list is extended where it is.
        if let (Value::List(list), "+") = (old, op) {
            let more = self.heap.all(value);
            let more = self.at(frame, line, more)?;
            let items = self.heap.list_mut(list, more.len()).map(|items| items.extend(more));
            return self.at(frame, line, items);
        }
        let new = self.binary(frame, line, op, old, value)?;
        self.assign(frame, target, new)
    }

    pub(super) fn call_expr(
        &mut self,
        frame: &mut Frame,
        f: &Expr,
        list: &[(Option<Rc<str>>, Expr)],
        line: u32,
    ) -> Result<Value> {
        // A method is found when it is called; it is no value of its own.
        let (of, name) = match &f.kind {
            Kind::Field(of, name) => (self.eval(frame, of)?, Some(name)),
            _ => (self.eval(frame, f)?, None),
        };
        let mut args = Args::default();
        for (name, e) in list {
            let value = self.eval(frame, e)?;
            match name {
                Some(name) => args.named.push((name.clone(), value)),
                None => args.given.push(value),
            }
        }
        match (of, name) {
            (Value::Graph, Some(name)) => self.graph_method(frame, line, name, args),
            (Value::Config, Some(name)) => self.config_method(frame, line, name, args),
            (of, Some(name)) => {
                let made = self.method(of, name, args);
                self.at(frame, line, made)
            }
            (Value::Builtin(name), None) => {
                let made = self.builtin(name, args);
                self.at(frame, line, made)
            }
            (Value::Function(f), None) => self.call(frame.module, line, f as usize, args),
            (other, None) => {
                let what = format!("{} cannot be called", self.heap.brief(other));
                Err(self.error(frame.module, line, what))
            }
        }
    }

    /// The last line of a function.
    pub fn last_line(&self, index: usize) -> u32 {
        let last = self.functions.get(index).and_then(|f| f.def.body.last());
        last.map_or(1, |stmt| stmt.line)
    }

    /// Calls a function of the script from a line of `module`.
    pub fn call(&mut self, module: usize, line: u32, index: usize, args: Args) -> Result<Value> {
        let Some(function) = self.functions.get(index) else { return Ok(Value::None) };
        let (def, home) = (function.def.clone(), function.module);
        let fail = |what: String| self.error(module, line, what);
        if self.running.contains(&index) {
            return Err(fail(format!("{} calls itself; recursion is not allowed", def.name)));
        }
        let mut locals: Vec<(Rc<str>, Value)> = Vec::with_capacity(def.params.len());
        if args.given.len() > def.params.len() {
            let (takes, got) = (def.params.len(), args.given.len());
            let s = if takes == 1 { "" } else { "s" };
            return Err(fail(format!("{} takes {takes} argument{s}, got {got}", def.name)));
        }
        if let Some((name, _)) =
            args.named.iter().find(|(n, _)| !def.params.iter().any(|(p, _)| p == n))
        {
            let takes: Vec<&str> = def.params.iter().map(|(p, _)| &**p).collect();
            let takes = takes.join(", ");
            return Err(fail(format!("{} has no parameter {name}; it takes {takes}", def.name)));
        }
        for (i, ((name, _), default)) in def.params.iter().zip(&function.defaults).enumerate() {
            let named = args.named.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
            let value = match (args.given.get(i), named) {
                (Some(_), Some(_)) => {
                    return Err(fail(format!("{} got {name} twice", def.name)));
                }
                (Some(&given), None) => given,
                (None, Some(named)) => named,
                (None, None) => match default {
                    Some(default) => *default,
                    None => return Err(fail(format!("{} needs {name}", def.name))),
                },
            };
            locals.push((name.clone(), value));
        }
        let mut frame = Frame { module: home, locals: Some(locals), scope: 0 };
        self.running.push(index);
        let flow = self.block(&mut frame, &def.body);
        self.running.pop();
        match flow {
            Ok(Flow::Return(value)) => Ok(value),
            Ok(_) => {
                // Nothing was returned, at the end of the function.
                self.returned = None;
                Ok(Value::None)
            }
            Err(e) if home == module => Err(e),
            // From another file: say who called.
            Err(e) => {
                let from = self.modules.get(module).map_or("", |m| &m.file);
                let add = |what: String| format!("{what} (called from {from}:{line})");
                Err(match e {
                    Error::Graph { origin, op, what } => {
                        Error::Graph { origin, op, what: add(what) }
                    }
                    Error::Script { origin, what } => Error::Script { origin, what: add(what) },
                    e => e,
                })
            }
        }
    }

    /// `left op right`.
    pub(super) fn binary(
        &mut self,
        frame: &Frame,
        line: u32,
        op: &'static str,
        left: Value,
        right: Value,
    ) -> Result<Value> {
        if matches!(left, Value::Node(_)) || matches!(right, Value::Node(_)) {
            return self.node_binary(frame, line, op, left, right);
        }
        let told = self.plain_binary(op, left, right);
        self.at(frame, line, told)
    }
}

pub(super) fn overflow() -> String {
    "the result does not fit 64 bits".to_string()
}
