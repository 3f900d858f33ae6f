//! What an expression of a script is worth.

use super::eval::{Frame, Script, overflow};
use super::tree::{Clause, Expr, Kind};
use super::value::Value;
use crate::error::{Result, quoted};

impl Script<'_, '_> {
    pub(super) fn eval(&mut self, frame: &mut Frame, e: &Expr) -> Result<Value> {
        self.enter(frame, e.line)?;
        let value = self.value(frame, e);
        self.depth -= 1;
        value
    }

    fn values(&mut self, frame: &mut Frame, list: &[Expr]) -> Result<Vec<Value>> {
        list.iter().map(|e| self.eval(frame, e)).collect()
    }

    fn value(&mut self, frame: &mut Frame, e: &Expr) -> Result<Value> {
        let line = e.line;
        let told = match &e.kind {
            Kind::None => Ok(Value::None),
            Kind::Bool(b) => Ok(Value::Bool(*b)),
            Kind::Int(i) => Ok(Value::Int(*i)),
            Kind::Float(x) => Ok(Value::Float(*x)),
            Kind::Text(text) => self.heap.shared_text(text),
            Kind::Name(name) => self
                .heap
                .tick(self.names(frame) / 64)
                .and_then(|()| self.lookup(frame, name).ok_or_else(|| self.no_name(frame, name))),
            Kind::List(list) => {
                let items = self.values(frame, list)?;
                self.heap.list(items)
            }
            Kind::Tuple(list) => {
                let items = self.values(frame, list)?;
                self.heap.tuple(items)
            }
            Kind::Dict(pairs) => {
                let dict = self.heap.dict();
                let dict = self.at(frame, line, dict)?;
                for (key, value) in pairs {
                    let key = self.eval(frame, key)?;
                    let value = self.eval(frame, value)?;
                    let set = self.set_item(dict, key, value);
                    self.at(frame, line, set)?;
                }
                Ok(dict)
            }
            Kind::Each(body, clauses) => return self.comprehension(frame, body, clauses, line),
            Kind::Minus(x) => match self.eval(frame, x)? {
                Value::Int(i) => i.checked_neg().map(Value::Int).ok_or_else(overflow),
                Value::Float(x) => Ok(Value::Float(-x)),
                x @ Value::Node(_) => {
                    return self.binary(frame, line, "*", Value::Int(-1), x);
                }
                other => Err(format!("cannot negate {}", self.heap.brief(other))),
            },
            Kind::Not(x) => {
                let x = self.eval(frame, x)?;
                Ok(Value::Bool(!self.heap.truth(x)))
            }
            Kind::And(pair) => {
                let left = self.eval(frame, &pair.0)?;
                return if self.heap.truth(left) { self.eval(frame, &pair.1) } else { Ok(left) };
            }
            Kind::Or(pair) => {
                let left = self.eval(frame, &pair.0)?;
                return if self.heap.truth(left) { Ok(left) } else { self.eval(frame, &pair.1) };
            }
            Kind::Binary(op, pair) => {
                let left = self.eval(frame, &pair.0)?;
                let right = self.eval(frame, &pair.1)?;
                return self.binary(frame, line, op, left, right);
            }
            Kind::If(parts) => {
                let holds = self.eval(frame, &parts.0)?;
                let part = if self.heap.truth(holds) { &parts.1 } else { &parts.2 };
                return self.eval(frame, part);
            }
            Kind::Call(f, args) => return self.call_expr(frame, f, args, line),
            Kind::Field(of, name) => {
                let of = self.eval(frame, of)?;
                match of {
                    Value::Config => return self.config_field(frame, line, name),
                    Value::Node(_) => {
                        let what = "has no fields; g.dims(x) gives the dimensions of its rows";
                        Err(format!("{}: a node {what}", quoted(name).trim_matches('"')))
                    }
                    other => Err(format!(
                        "a {} has no field {name}; methods can only be called",
                        self.heap.kind(other)
                    )),
                }
            }
            Kind::Index(pair) => {
                let of = self.eval(frame, &pair.0)?;
                let index = self.eval(frame, &pair.1)?;
                self.get_item(of, index)
            }
            Kind::Slice(parts) => {
                let of = self.eval(frame, &parts.0)?;
                let mut bounds = [None; 3];
                for (bound, part) in bounds.iter_mut().zip(&parts.1) {
                    if let Some(part) = part {
                        *bound = match self.eval(frame, part)? {
                            Value::Int(i) => Some(i),
                            Value::None => None,
                            other => {
                                let what = format!("{} is no index", self.heap.brief(other));
                                return Err(self.error(frame.module, line, what));
                            }
                        };
                    }
                }
                self.slice(of, bounds)
            }
        };
        self.at(frame, line, told)
    }

    fn comprehension(
        &mut self,
        frame: &mut Frame,
        body: &(Expr, Option<Expr>),
        clauses: &[Clause],
        line: u32,
    ) -> Result<Value> {
        // Its names are its own: a scope over those of the frame, gone at its end.
        let at_top = frame.locals.is_none();
        let locals = frame.locals.get_or_insert_default().len();
        let outer = std::mem::replace(&mut frame.scope, locals);
        let mut found = Vec::new();
        let made = self.clauses(frame, body, clauses, &mut found);
        frame.scope = outer;
        if let Some(names) = &mut frame.locals {
            names.truncate(locals);
        }
        if at_top {
            frame.locals = None;
        }
        made?;
        if body.1.is_none() {
            let list = self.heap.list(found.into_iter().map(|(v, _)| v).collect());
            return self.at(frame, line, list);
        }
        let dict = self.heap.dict();
        let dict = self.at(frame, line, dict)?;
        for (key, value) in found {
            let set = self.set_item(dict, key, value);
            self.at(frame, line, set)?;
        }
        Ok(dict)
    }

    fn clauses(
        &mut self,
        frame: &mut Frame,
        body: &(Expr, Option<Expr>),
        clauses: &[Clause],
        found: &mut Vec<(Value, Value)>,
    ) -> Result<()> {
        let Some((clause, rest)) = clauses.split_first() else {
            let key = self.eval(frame, &body.0)?;
            let value = match &body.1 {
                Some(value) => self.eval(frame, value)?,
                None => Value::None,
            };
            let charged = self.heap.charge(2 * size_of::<Value>());
            self.at(frame, body.0.line, charged)?;
            found.push((key, value));
            return Ok(());
        };
        match clause {
            Clause::If(condition) => {
                let holds = self.eval(frame, condition)?;
                if self.heap.truth(holds) { self.clauses(frame, body, rest, found) } else { Ok(()) }
            }
            Clause::For(target, over) => {
                let line = over.line;
                let over = self.eval(frame, over)?;
                let len = self.heap.len(over);
                let len = self.at(frame, line, len)?;
                self.heap.looped(over, true);
                let mut done = Ok(());
                for i in 0..len {
                    let Some(item) = self.heap.item(over, i) else { break };
                    done = self
                        .assign(frame, target, item)
                        .and_then(|()| self.clauses(frame, body, rest, found));
                    if done.is_err() {
                        break;
                    }
                }
                self.heap.looped(over, false);
                done
            }
        }
    }
}
