//! What a file says, as a tree.

use std::rc::Rc;

/// An expression and the line where it begins.
#[derive(Debug)]
pub(super) struct Expr {
    pub kind: Kind,
    pub line: u32,
    /// Levels of expressions, this one included.
    pub depth: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    Name(Rc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// A comprehension; two results make a dict.
    Each(Box<(Expr, Option<Expr>)>, Vec<Clause>),
    Minus(Box<Expr>),
    Not(Box<Expr>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Binary(&'static str, Box<(Expr, Expr)>),
    /// Condition, then, else.
    If(Box<(Expr, Expr, Expr)>),
    Call(Box<Expr>, Vec<(Option<Rc<str>>, Expr)>),
    Field(Box<Expr>, Rc<str>),
    Index(Box<(Expr, Expr)>),
    Slice(Box<(Expr, [Option<Expr>; 3])>),
}

#[derive(Debug)]
pub(super) enum Clause {
    For(Expr, Expr),
    If(Expr),
}

/// A function.
#[derive(Debug)]
pub(super) struct Def {
    pub name: Rc<str>,
    pub params: Vec<(Rc<str>, Option<Expr>)>,
    pub body: Vec<Stmt>,
}

#[derive(Debug)]
pub(super) struct Stmt {
    pub kind: Step,
    pub line: u32,
}

#[derive(Debug)]
pub(super) enum Step {
    Expr(Expr),
    Assign(Expr, Expr),
    Augment(&'static str, Expr, Expr),
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Expr, Expr, Vec<Stmt>),
    Def(Rc<Def>),
    Return(Option<Expr>),
    /// Module, then pairs of the name here and the name there.
    Load(Rc<str>, Vec<(Rc<str>, Rc<str>)>),
    Break,
    Continue,
    Pass,
}
