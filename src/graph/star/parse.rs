//! Tokens to a tree: statements. Every loop and every nesting is bounded, so a hostile file costs what its
//! length costs.

use super::lex::{Failed, Token, tokens};
use super::tree::{Def, Expr, Kind, Step, Stmt};
use std::rc::Rc;

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

pub(super) struct Parser {
    pub(super) tokens: Vec<(Token, u32)>,
    pub(super) at: usize,
    in_def: bool,
    in_loop: bool,
    /// Brackets and operators that are open in the parser itself.
    pub(super) nested: usize,
}

pub(super) type Parsed<T> = Result<T, Failed>;

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(t, _)| t)
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    pub(super) fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    pub(super) fn accept(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, sign: &str) -> Parsed<()> {
        if self.accept(sign) { Ok(()) } else { Err(self.unexpected(&format!("{sign:?}"))) }
    }

    pub(super) fn unexpected(&self, wanted: &str) -> Failed {
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
        let hint = match self.peek() {
            Token::Sign("**") => "; write pow(x, y), of a node x * x",
            Token::Sign("|" | "&" | "^" | "~" | "<<" | ">>") => "; there are no operators of bits",
            Token::Sign("if") if self.after_else() => "; write elif",
            Token::Sign("=") if wanted.contains(')') => "; == compares",
            Token::Sign(":") if wanted.contains(')') => "; types cannot be written",
            _ => "",
        };
        (self.line(), format!("expected {wanted}, found {found}{hint}"))
    }

    fn after_else(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        matches!(before, Some((Token::Sign("else"), _)))
    }

    pub(super) fn name(&mut self) -> Parsed<Rc<str>> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    pub(super) fn text(&mut self) -> Parsed<Rc<str>> {
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
}

pub(super) fn check_target(target: &Expr) -> Parsed<()> {
    match &target.kind {
        Kind::Name(_) | Kind::Index(_) => Ok(()),
        Kind::Tuple(all) | Kind::List(all) if !all.is_empty() => {
            all.iter().try_for_each(check_target)
        }
        _ => Err((target.line, "cannot assign to this".to_string())),
    }
}
