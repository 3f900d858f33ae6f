//! `binary a, b`: elementwise arithmetic.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{Lead, NodeId, TensorType};

/// The operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BinaryKind {
    /// `a + b`.
    Add,
    /// `a * b`.
    Mul,
    /// `a - b`.
    Sub,
    /// `a / b`.
    Div,
}

impl BinaryKind {
    /// All operations, with their names.
    pub const NAMED: [(BinaryKind, &'static str); 4] = [
        (BinaryKind::Add, "add"),
        (BinaryKind::Mul, "mul"),
        (BinaryKind::Sub, "sub"),
        (BinaryKind::Div, "div"),
    ];

    /// The operation on one pair.
    pub fn apply(self, a: f32, b: f32) -> f32 {
        match self {
            BinaryKind::Add => a + b,
            BinaryKind::Mul => a * b,
            BinaryKind::Sub => a - b,
            BinaryKind::Div => a / b,
        }
    }
}

/// Arithmetic on elements of two values of one type, or of rows and one weight for all rows
/// (a bias).
#[derive(Clone, PartialEq, Debug)]
pub struct Binary {
    /// Which one.
    pub kind: BinaryKind,
}

impl OpDef for Binary {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [a, b] = arity(args)?;
        activation("the left side", a)?;
        let bias = b.lead == Lead::Fixed && b.dims == a.dims;
        if a == b || bias { Ok(a.clone()) } else { Err(format!("{a} and {b} do not match")) }
    }

    fn attrs(&self, out: &mut Attrs) {
        for (kind, name) in BinaryKind::NAMED {
            if kind == self.kind {
                out.text("kind", name);
            }
        }
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let name = attrs.text("kind")?;
        let found = BinaryKind::NAMED.iter().find(|(_, n)| *n == name);
        let found = found.ok_or_else(|| format!("no operation {}", crate::error::quoted(&name)))?;
        Ok(Binary { kind: found.0 })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (a, b) = (env.arg_f32(id, 0), env.arg_f32(id, 1));
        // A bias repeats for each row; otherwise both sides are equally long.
        let y = a.iter().zip(b.iter().cycle()).map(|(&a, &b)| self.kind.apply(a, b)).collect();
        env.set(id, Value::F32(y));
        Ok(())
    }
}
