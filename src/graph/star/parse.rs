//! Tokens to a tree. Every loop and every nesting is bounded, so a hostile file costs what its
//! length costs.

use super::lex::{Failed, Token, tokens};
use super::tree::{Clause, Def, Expr, Kind, Step, Stmt};
use std::rc::Rc;

/// Levels of an expression.
const MAX_DEPTH: usize = 48;

/// Binary operators by strength, the weakest first.
const LEVELS: [&[&str]; 3] =
    [&["==", "!=", "<", "<=", ">", ">=", "in", "not in"], &["+", "-"], &["*", "/", "//", "%"]];

/// The statements of a file.
pub(super) fn parse(source: &str) -> Result<Vec<Stmt>, Failed> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, at: 0, in_def: false, in_loop: false, nested: 0 };
    let mut out = Vec::new();
    while *parser.peek() != Token::End {
        parser.statement(&mut out)?;
    }
    Ok(out)
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    in_def: bool,
    in_loop: bool,
    /// Brackets and operators that are open in the parser itself.
    nested: usize,
}

type Parsed<T> = Result<T, Failed>;

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(t, _)| t)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Parsed<()> {
        if self.accept(sign) { Ok(()) } else { Err(self.unexpected(&format!("{sign:?}"))) }
    }

    fn unexpected(&self, wanted: &str) -> Failed {
        let found = match self.peek() {
            Token::Name(name) => format!("the name {}", crate::error::quoted(name)),
            Token::Int(_) | Token::Float(_) => "a number".to_string(),
            Token::Text(_) => "a text".to_string(),
            Token::Sign(sign) => format!("{sign:?}"),
            Token::Newline => "the end of the line".to_string(),
            Token::Indent => "an indented line".to_string(),
            Token::Dedent => "the end of the block".to_string(),
            Token::End => "the end of the file".to_string(),
        };
        (self.line(), format!("expected {wanted}, found {found}"))
    }

    fn name(&mut self) -> Parsed<Rc<str>> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn text(&mut self) -> Parsed<Rc<str>> {
        match self.next() {
            Token::Text(text) => Ok(text),
            _ => {
                self.at -= 1;
                Err(self.unexpected("a text"))
            }
        }
    }

    fn newline(&mut self) -> Parsed<()> {
        match self.peek() {
            Token::Newline => {
                self.at += 1;
                Ok(())
            }
            Token::End => Ok(()),
            _ => Err(self.unexpected("the end of the line")),
        }
    }

    /// `:` and the statements that belong under it.
    fn block(&mut self) -> Parsed<Vec<Stmt>> {
        self.expect(":")?;
        let mut out = Vec::new();
        if *self.peek() != Token::Newline {
            self.simple_line(&mut out)?;
            return Ok(out);
        }
        self.newline()?;
        if *self.peek() != Token::Indent {
            return Err(self.unexpected("an indented block"));
        }
        self.at += 1;
        while *self.peek() != Token::Dedent {
            if *self.peek() == Token::End {
                break;
            }
            self.statement(&mut out)?;
        }
        self.at += 1;
        Ok(out)
    }

    fn statement(&mut self, out: &mut Vec<Stmt>) -> Parsed<()> {
        let line = self.line();
        let at_top = !self.in_def;
        let kind = match self.peek() {
            Token::Sign("def") => {
                if self.in_def {
                    return Err((line, "a def inside a def; write it beside".to_string()));
                }
                Step::Def(Rc::new(self.def()?))
            }
            Token::Sign(word @ ("if" | "for" | "while")) if at_top => {
                return Err((line, format!("{word} stands in a function, not at the top")));
            }
            Token::Sign("while") => {
                return Err((line, "while is not part of this language".to_string()));
            }
            Token::Sign("if") => {
                self.at += 1;
                let mut arms = vec![(self.test()?, self.block()?)];
                while self.accept("elif") {
                    arms.push((self.test()?, self.block()?));
                }
                let rest = if self.accept("else") { self.block()? } else { Vec::new() };
                Step::If(arms, rest)
            }
            Token::Sign("for") => {
                self.at += 1;
                let target = self.targets()?;
                self.expect("in")?;
                let over = self.tests()?;
                let outer = std::mem::replace(&mut self.in_loop, true);
                let body = self.block();
                self.in_loop = outer;
                Step::For(target, over, body?)
            }
            Token::Indent => return Err(self.unexpected("a statement")),
            _ => return self.simple_line(out),
        };
        out.push(Stmt { kind, line });
        Ok(())
    }

    fn def(&mut self) -> Parsed<Def> {
        self.at += 1;
        let name = self.name()?;
        self.expect("(")?;
        let params = self.params()?;
        self.expect(")")?;
        self.in_def = true;
        let body = self.block();
        self.in_def = false;
        Ok(Def { name, params, body: body? })
    }

    fn params(&mut self) -> Parsed<Vec<(Rc<str>, Option<Expr>)>> {
        let mut params: Vec<(Rc<str>, Option<Expr>)> = Vec::new();
        while !self.is(")") {
            if self.is("*") || self.is("**") {
                return Err((self.line(), "parameters with * are not supported".to_string()));
            }
            let name = self.name()?;
            if params.iter().any(|(n, _)| *n == name) {
                return Err((self.line(), format!("the parameter {name} twice")));
            }
            let default = if self.accept("=") { Some(self.test()?) } else { None };
            if default.is_none() && params.last().is_some_and(|(_, d)| d.is_some()) {
                let what = format!("the parameter {name} needs a default, as the one before it");
                return Err((self.line(), what));
            }
            params.push((name, default));
            if !self.accept(",") {
                break;
            }
        }
        Ok(params)
    }

    /// Small statements up to the end of the line.
    fn simple_line(&mut self, out: &mut Vec<Stmt>) -> Parsed<()> {
        loop {
            let line = self.line();
            let kind = self.simple()?;
            out.push(Stmt { kind, line });
            if !self.accept(";") || matches!(self.peek(), Token::Newline | Token::End) {
                return self.newline();
            }
        }
    }

    fn simple(&mut self) -> Parsed<Step> {
        let line = self.line();
        if self.accept("pass") {
            return Ok(Step::Pass);
        }
        for (word, step) in [("break", Step::Break), ("continue", Step::Continue)] {
            if self.accept(word) {
                return if self.in_loop {
                    Ok(step)
                } else {
                    Err((line, format!("{word} outside of a loop")))
                };
            }
        }
        if self.accept("return") {
            if !self.in_def {
                return Err((line, "return outside of a function".to_string()));
            }
            let none = matches!(self.peek(), Token::Newline | Token::End) || self.is(";");
            return Ok(Step::Return(if none { None } else { Some(self.tests()?) }));
        }
        if self.accept("load") {
            return self.load(line);
        }
        let left = self.tests()?;
        if self.accept("=") {
            check_target(&left)?;
            let right = self.tests()?;
            return Ok(Step::Assign(left, right));
        }
        for (sign, op) in
            [("+=", "+"), ("-=", "-"), ("*=", "*"), ("/=", "/"), ("//=", "//"), ("%=", "%")]
        {
            if self.accept(sign) {
                if matches!(left.kind, Kind::Tuple(_) | Kind::List(_)) {
                    return Err((line, "cannot assign to this".to_string()));
                }
                check_target(&left)?;
                let right = self.tests()?;
                return Ok(Step::Augment(op, left, right));
            }
        }
        Ok(Step::Expr(left))
    }

    fn load(&mut self, line: u32) -> Parsed<Step> {
        if self.in_def {
            return Err((line, "load inside of a function".to_string()));
        }
        self.expect("(")?;
        let module = self.text()?;
        let mut names = Vec::new();
        while self.accept(",") {
            if self.is(")") {
                break;
            }
            if let Token::Name(here) = self.peek().clone() {
                self.at += 1;
                self.expect("=")?;
                names.push((here, self.text()?));
            } else {
                let name = self.text()?;
                names.push((name.clone(), name));
            }
        }
        self.expect(")")?;
        if let Some((_, name)) = names.iter().find(|(_, name)| name.starts_with('_')) {
            return Err((line, format!("{} is private to its file", crate::error::quoted(name))));
        }
        Ok(Step::Load(module, names))
    }

    /// What stands left of `=` or `in` of a for.
    fn targets(&mut self) -> Parsed<Expr> {
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
    fn tests(&mut self) -> Parsed<Expr> {
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

    fn test(&mut self) -> Parsed<Expr> {
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

fn check_target(target: &Expr) -> Parsed<()> {
    match &target.kind {
        Kind::Name(_) | Kind::Index(_) => Ok(()),
        Kind::Tuple(all) | Kind::List(all) if !all.is_empty() => {
            all.iter().try_for_each(check_target)
        }
        _ => Err((target.line, "cannot assign to this".to_string())),
    }
}
