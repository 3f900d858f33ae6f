//! Tokens to a tree: expressions, the weakest operator first.

use super::lex::Token;
use super::parse::{Parsed, Parser, check_target};
use super::tree::{Clause, Expr, Kind};
use std::rc::Rc;

/// Levels of an expression.
const MAX_DEPTH: usize = 48;

/// Binary operators by strength, the weakest first.
const LEVELS: [&[&str]; 3] =
    [&["==", "!=", "<", "<=", ">", ">=", "in", "not in"], &["+", "-"], &["*", "/", "//", "%"]];

impl Parser {
    /// What stands left of `=` or `in` of a for.
    pub(super) fn targets(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let first = self.postfix()?;
        let target = if self.is(",") {
            let mut all = vec![first];
            while self.accept(",") {
                if self.is("in") {
                    break;
                }
                all.push(self.postfix()?);
            }
            self.made(Kind::Tuple(all), line)?
        } else {
            first
        };
        check_target(&target)?;
        Ok(target)
    }

    /// One expression, or several with commas: a tuple.
    pub(super) fn tests(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let first = self.test()?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.accept(",") {
            let done =
                matches!(self.peek(), Token::Newline | Token::End | Token::Sign("=" | ":" | ")"));
            if done {
                break;
            }
            all.push(self.test()?);
        }
        self.made(Kind::Tuple(all), line)
    }

    /// Guards the parser's own stack.
    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.nested >= MAX_DEPTH {
            return Err((self.line(), format!("more than {MAX_DEPTH} levels inside each other")));
        }
        self.nested += 1;
        let parsed = parse(self);
        self.nested -= 1;
        parsed
    }

    pub(super) fn test(&mut self) -> Parsed<Expr> {
        self.deeper(|p| {
            let line = p.line();
            if p.is("lambda") {
                return Err((line, "lambda is not supported; write a def".to_string()));
            }
            let then = p.or()?;
            if !p.accept("if") {
                return Ok(then);
            }
            let condition = p.or()?;
            p.expect("else")?;
            let other = p.test()?;
            p.made(Kind::If(Box::new((condition, then, other))), line)
        })
    }

    fn or(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.accept("or") {
            let right = self.and()?;
            left = self.made(Kind::Or(Box::new((left, right))), line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.accept("and") {
            let right = self.not()?;
            left = self.made(Kind::And(Box::new((left, right))), line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        let line = self.line();
        if self.accept("not") {
            let x = self.deeper(Self::not)?;
            return self.made(Kind::Not(Box::new(x)), line);
        }
        self.binary(0)
    }

    fn binary(&mut self, level: usize) -> Parsed<Expr> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let line = self.line();
        let mut left = self.binary(level + 1)?;
        let mut chained = false;
        loop {
            let found = match self.peek() {
                Token::Sign("not") if level == 0 => {
                    if matches!(self.tokens.get(self.at + 1), Some((Token::Sign("in"), _))) {
                        self.at += 1;
                        Some("not in")
                    } else {
                        None
                    }
                }
                Token::Sign(sign) => operators.iter().find(|o| *o == sign).copied(),
                _ => None,
            };
            let Some(operator) = found else { return Ok(left) };
            self.at += 1;
            if level == 0 && std::mem::replace(&mut chained, true) {
                return Err((line, "comparisons do not chain; use and".to_string()));
            }
            let right = self.binary(level + 1)?;
            left = self.made(Kind::Binary(operator, Box::new((left, right))), line)?;
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let line = self.line();
        if self.accept("-") {
            let x = self.deeper(Self::unary)?;
            return self.made(Kind::Minus(Box::new(x)), line);
        }
        if self.accept("+") {
            return self.deeper(Self::unary);
        }
        self.postfix()
    }

    fn postfix(&mut self) -> Parsed<Expr> {
        let mut x = self.atom()?;
        loop {
            let line = self.line();
            let kind = if self.accept(".") {
                Kind::Field(Box::new(x), self.name()?)
            } else if self.accept("(") {
                let args = self.arguments()?;
                Kind::Call(Box::new(x), args)
            } else if self.accept("[") {
                self.subscript(x)?
            } else {
                return Ok(x);
            };
            x = self.made(kind, line)?;
        }
    }

    fn arguments(&mut self) -> Parsed<Vec<(Option<Rc<str>>, Expr)>> {
        let mut args: Vec<(Option<Rc<str>>, Expr)> = Vec::new();
        while !self.accept(")") {
            if self.is("*") || self.is("**") {
                return Err((self.line(), "arguments with * are not supported".to_string()));
            }
            let named = matches!(self.tokens.get(self.at + 1), Some((Token::Sign("="), _)));
            let name = match self.peek() {
                Token::Name(name) if named => {
                    let name = name.clone();
                    self.at += 2;
                    Some(name)
                }
                _ => None,
            };
            if name.is_none() && args.last().is_some_and(|(n, _)| n.is_some()) {
                return Err((self.line(), "an argument without a name after one with".to_string()));
            }
            if name.is_some() && args.iter().any(|(n, _)| *n == name) {
                return Err((self.line(), "an argument twice".to_string()));
            }
            args.push((name, self.test()?));
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(args)
    }

    fn subscript(&mut self, x: Expr) -> Parsed<Kind> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        for (i, part) in parts.iter_mut().enumerate() {
            if !self.is(":") && !self.is("]") {
                *part = Some(self.test()?);
            }
            if i == 2 || !self.accept(":") {
                break;
            }
            colons += 1;
        }
        self.expect("]")?;
        match (colons, parts) {
            (0, [Some(index), _, _]) => Ok(Kind::Index(Box::new((x, index)))),
            (0, _) => Err(self.unexpected("an index")),
            (_, parts) => Ok(Kind::Slice(Box::new((x, parts)))),
        }
    }

    fn atom(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let kind = match self.next() {
            Token::Name(name) => match &*name {
                "None" => Kind::None,
                "True" => Kind::Bool(true),
                "False" => Kind::Bool(false),
                _ => Kind::Name(name),
            },
            Token::Int(i) => Kind::Int(i),
            Token::Float(x) => Kind::Float(x),
            Token::Text(text) => Kind::Text(text),
            Token::Sign("(") => {
                if self.accept(")") {
                    Kind::Tuple(Vec::new())
                } else {
                    let inner = self.deeper(Self::tests)?;
                    self.expect(")")?;
                    return Ok(inner);
                }
            }
            Token::Sign("[") => self.deeper(Self::list)?,
            Token::Sign("{") => self.deeper(Self::dict)?,
            _ => {
                self.at -= 1;
                return Err(self.unexpected("an expression"));
            }
        };
        self.made(kind, line)
    }

    fn list(&mut self) -> Parsed<Kind> {
        let mut all = Vec::new();
        while !self.accept("]") {
            all.push(self.test()?);
            if all.len() == 1 && self.is("for") {
                let clauses = self.clauses("]")?;
                let body = all.pop().map(|x| Box::new((x, None)));
                return body
                    .map(|b| Kind::Each(b, clauses))
                    .ok_or_else(|| self.unexpected("a value"));
            }
            if !self.accept(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Kind::List(all))
    }

    fn dict(&mut self) -> Parsed<Kind> {
        let mut all = Vec::new();
        while !self.accept("}") {
            let key = self.test()?;
            self.expect(":")?;
            let value = self.test()?;
            if all.is_empty() && self.is("for") {
                let clauses = self.clauses("}")?;
                return Ok(Kind::Each(Box::new((key, Some(value))), clauses));
            }
            all.push((key, value));
            if !self.accept(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Kind::Dict(all))
    }

    fn clauses(&mut self, end: &str) -> Parsed<Vec<Clause>> {
        let mut clauses = Vec::new();
        while !self.accept(end) {
            if clauses.len() == 8 {
                return Err((self.line(), "more than 8 clauses".to_string()));
            }
            clauses.push(if self.accept("for") {
                let target = self.targets()?;
                self.expect("in")?;
                Clause::For(target, self.or()?)
            } else if self.accept("if") {
                Clause::If(self.or()?)
            } else {
                return Err(self.unexpected(&format!("{end:?}")));
            });
        }
        Ok(clauses)
    }

    /// An expression, if it is not too deep.
    fn made(&self, kind: Kind, line: u32) -> Parsed<Expr> {
        let of = |list: &[Expr]| list.iter().map(|e| e.depth).max().unwrap_or(0);
        let inner = match &kind {
            Kind::List(list) | Kind::Tuple(list) => of(list),
            Kind::Dict(pairs) => pairs.iter().map(|(k, v)| k.depth.max(v.depth)).max().unwrap_or(0),
            Kind::Each(body, clauses) => {
                let clause = |c: &Clause| match c {
                    Clause::For(a, b) => a.depth.max(b.depth),
                    Clause::If(a) => a.depth,
                };
                let second = body.1.as_ref().map_or(0, |e| e.depth);
                let most = clauses.iter().map(clause).max().unwrap_or(0);
                body.0.depth.max(second).max(most) + clauses.len()
            }
            Kind::Minus(x) | Kind::Not(x) | Kind::Field(x, _) => x.depth,
            Kind::And(p) | Kind::Or(p) | Kind::Binary(_, p) | Kind::Index(p) => {
                p.0.depth.max(p.1.depth)
            }
            Kind::If(p) => p.0.depth.max(p.1.depth).max(p.2.depth),
            Kind::Call(f, args) => {
                args.iter().map(|(_, e)| e.depth).max().unwrap_or(0).max(f.depth)
            }
            Kind::Slice(p) => {
                p.1.iter().flatten().map(|e| e.depth).max().unwrap_or(0).max(p.0.depth)
            }
            _ => 0,
        };
        if inner >= MAX_DEPTH {
            return Err((line, format!("more than {MAX_DEPTH} levels inside each other")));
        }
        Ok(Expr { kind, line, depth: inner + 1 })
    }
}
