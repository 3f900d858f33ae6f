//! Text to tokens: indentation becomes [`Token::Indent`] and [`Token::Dedent`], as in Python.

use std::rc::Rc;

/// A token.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Token {
    Name(Rc<str>),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    /// A keyword, operator or delimiter.
    Sign(&'static str),
    Newline,
    Indent,
    Dedent,
    End,
}

/// Keywords of the language, and words it keeps free for others.
const KEYWORDS: [&str; 16] = [
    "def", "for", "in", "if", "elif", "else", "return", "pass", "break", "continue", "and", "or",
    "not", "load", "lambda", "while",
];
/// Words of Python that are no names here.
const RESERVED: [&str; 17] = [
    "as", "assert", "async", "await", "class", "del", "except", "finally", "from", "global",
    "import", "is", "nonlocal", "raise", "try", "with", "yield",
];
/// Operators, longer ones before their beginnings.
const SIGNS: [&str; 36] = [
    "//=", "**", "+=", "-=", "*=", "/=", "%=", "//", "==", "!=", "<=", ">=", "<<", ">>", "+", "-",
    "*", "/", "%", "<", ">", "=", "(", ")", "[", "]", "{", "}", ",", ":", ".", ";", "|", "&", "^",
    "~",
];

/// A source longer than this is a mistake.
pub(super) const MAX_SOURCE: usize = 1 << 20;
/// Blocks inside blocks.
const MAX_INDENTS: usize = 24;

/// An error with its line.
pub(super) type Failed = (u32, String);

/// The tokens of `source`, each with its line.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, u32)>, Failed> {
    if source.len() > MAX_SOURCE {
        return Err((1, format!("the file is longer than {MAX_SOURCE} bytes")));
    }
    let mut lexer = Lexer { rest: source, line: 1, depth: 0, indents: vec![0], out: Vec::new() };
    lexer.run()?;
    Ok(lexer.out)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    /// Open brackets: inside of them line ends mean nothing.
    depth: usize,
    indents: Vec<usize>,
    out: Vec<(Token, u32)>,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) -> Result<(), Failed> {
        let mut line_start = true;
        loop {
            if line_start && self.depth == 0 {
                self.indentation()?;
            }
            line_start = false;
            self.rest = self.rest.trim_start_matches([' ', '\r']);
            if self.rest.starts_with('#') {
                self.rest = self.rest.trim_start_matches(|c| c != '\n');
            }
            let Some(c) = self.rest.chars().next() else { break };
            match c {
                '\n' => {
                    if self.depth == 0
                        && !matches!(
                            self.out.last(),
                            None | Some((Token::Newline | Token::Indent | Token::Dedent, _))
                        )
                    {
                        self.push(Token::Newline);
                    }
                    self.take(1);
                    self.line += 1;
                    line_start = true;
                }
                '\\' if self.rest.starts_with("\\\n") => {
                    self.take(2);
                    self.line += 1;
                }
                '\t' => return Err(self.fail("a tab; indent with spaces")),
                '"' | '\'' => self.text(c, false)?,
                c if c.is_ascii_digit() => self.number()?,
                '.' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number()?,
                c if c.is_ascii_alphabetic() || c == '_' => self.word()?,
                _ => self.sign()?,
            }
        }
        if self.depth > 0 {
            return Err(self.fail("a bracket is never closed"));
        }
        if !matches!(self.out.last(), None | Some((Token::Newline | Token::Dedent, _))) {
            self.push(Token::Newline);
        }
        while self.indents.len() > 1 {
            self.indents.pop();
            self.push(Token::Dedent);
        }
        self.push(Token::End);
        Ok(())
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (head, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        head
    }

    fn fail(&self, what: impl Into<String>) -> Failed {
        (self.line, what.into())
    }

    /// At the start of a line that is neither empty nor a remark, indents or dedents.
    fn indentation(&mut self) -> Result<(), Failed> {
        let body = self.rest.trim_start_matches(' ');
        let width = self.rest.len() - body.len();
        if body.is_empty() || body.starts_with(['\n', '#', '\r']) {
            return Ok(());
        }
        self.rest = body;
        let mut now = self.indents.last().copied().unwrap_or(0);
        if width > now {
            if self.indents.len() > MAX_INDENTS {
                return Err(self.fail(format!("more than {MAX_INDENTS} blocks inside each other")));
            }
            self.indents.push(width);
            self.push(Token::Indent);
        }
        while width < now {
            self.indents.pop();
            self.push(Token::Dedent);
            now = self.indents.last().copied().unwrap_or(0);
            if width > now {
                return Err(self.fail("the indentation is that of no open block"));
            }
        }
        Ok(())
    }

    fn word(&mut self) -> Result<(), Failed> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let line = self.line;
        let word = self.take(end.unwrap_or(self.rest.len()));
        if word == "r" && self.rest.starts_with(['"', '\'']) {
            let quote = if self.rest.starts_with('"') { '"' } else { '\'' };
            return self.text(quote, true);
        }
        if word == "f" && self.rest.starts_with(['"', '\'']) {
            let what = "f-strings are not part of this language; write \"blk.%d.\" % i";
            return Err((line, what.to_string()));
        }
        let keyword = KEYWORDS.iter().find(|k| **k == word);
        if RESERVED.contains(&word) {
            let hint = match word {
                "is" => "; write == or !=",
                "import" | "from" => "; load(\"hf.star\", \"names\") reads another graph file",
                _ => "",
            };
            return Err((line, format!("{word} is not part of this language{hint}")));
        }
        let token = match keyword {
            Some(keyword) => Token::Sign(keyword),
            None => Token::Name(word.into()),
        };
        self.push(token);
        Ok(())
    }

    fn number(&mut self) -> Result<(), Failed> {
        let text = self.rest;
        let bytes = text.as_bytes();
        let digits =
            |from: usize| bytes.iter().skip(from).take_while(|b| b.is_ascii_digit()).count() + from;
        if let Some(hex) = text.strip_prefix("0x") {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let value = i64::from_str_radix(&hex[..end], 16);
            let value = value.map_err(|_| self.fail("not a number of 64 bits"))?;
            self.take(end + 2);
            self.push(Token::Int(value));
            return Ok(());
        }
        let mut end = digits(0);
        let mut float = false;
        if bytes.get(end) == Some(&b'.') {
            (float, end) = (true, digits(end + 1));
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let after = digits(end + 1 + sign);
            if after > end + 1 + sign {
                (float, end) = (true, after);
            }
        }
        let text = self.take(end).to_string();
        let token = if float {
            text.parse().ok().filter(|v: &f64| v.is_finite()).map(Token::Float)
        } else {
            text.parse().ok().map(Token::Int)
        };
        let token = token.ok_or_else(|| self.fail("not a number of 64 bits"))?;
        self.push(token);
        Ok(())
    }

    fn text(&mut self, quote: char, raw: bool) -> Result<(), Failed> {
        let line = self.line;
        let long: String = std::iter::repeat_n(quote, 3).collect();
        let end = if self.rest.starts_with(&long) { long } else { quote.to_string() };
        self.take(end.len());
        let mut out = String::new();
        while !self.rest.starts_with(&end) {
            let Some(c) = self.rest.chars().next() else {
                return Err((line, "a text is never closed".to_string()));
            };
            self.take(c.len_utf8());
            match c {
                '\n' if end.len() == 1 => {
                    return Err((line, "a text is never closed".to_string()));
                }
                '\\' if !raw => {
                    let Some(c) = self.rest.chars().next() else { continue };
                    self.take(c.len_utf8());
                    match c {
                        'n' => out.push('\n'),
                        't' => out.push('\t'),
                        'r' => out.push('\r'),
                        '\\' | '"' | '\'' => out.push(c),
                        '\n' => self.line += 1,
                        _ => return Err(self.fail(format!("no escape \\{}", c.escape_debug()))),
                    }
                }
                c => {
                    if c == '\n' {
                        self.line += 1;
                    }
                    out.push(c);
                }
            }
        }
        self.take(end.len());
        self.out.push((Token::Text(out.into()), line));
        Ok(())
    }

    fn sign(&mut self) -> Result<(), Failed> {
        let Some(sign) = SIGNS.iter().find(|s| self.rest.starts_with(**s)) else {
            let c = self.rest.chars().next().unwrap_or(' ');
            let hint = match c {
                '@' => "; g.linear(x, name) multiplies by a weight",
                _ => "",
            };
            return Err(self.fail(format!("no sign {}{hint}", c.escape_debug())));
        };
        self.take(sign.len());
        match *sign {
            "(" | "[" | "{" => self.depth += 1,
            ")" | "]" | "}" => match self.depth.checked_sub(1) {
                Some(depth) => self.depth = depth,
                None => return Err(self.fail("a bracket closes nothing")),
            },
            _ => {}
        }
        self.push(Token::Sign(sign));
        Ok(())
    }
}
