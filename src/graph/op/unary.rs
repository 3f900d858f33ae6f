//! `unary x`: elementwise functions.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{NodeId, TensorType};

/// The function.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum UnaryKind {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `tanh x`.
    Tanh,
    /// `c x`.
    Scale(f32),
    /// `c tanh(x / c)`.
    Softcap(f32),
}

impl UnaryKind {
    /// Functions without a constant, with their names.
    pub const PLAIN: [(UnaryKind, &'static str); 5] = [
        (UnaryKind::Silu, "silu"),
        (UnaryKind::Gelu, "gelu"),
        (UnaryKind::Relu, "relu"),
        (UnaryKind::Sigmoid, "sigmoid"),
        (UnaryKind::Tanh, "tanh"),
    ];

    /// The function at `x`.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            UnaryKind::Silu => x / (1.0 + (-x).exp()),
            UnaryKind::Gelu => {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
            }
            // Not f32::max, which would turn NaN into 0.
            UnaryKind::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryKind::Tanh => x.tanh(),
            UnaryKind::Scale(c) => c * x,
            UnaryKind::Softcap(c) => c * (x / c).tanh(),
        }
    }
}

/// One function on each element.
#[derive(Clone, PartialEq, Debug)]
pub struct Unary {
    /// Which one.
    pub kind: UnaryKind,
}

impl OpDef for Unary {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x] = arity(args)?;
        activation("the input", x)?;
        match self.kind {
            UnaryKind::Scale(c) if !c.is_finite() => Err(format!("factor {c} is not finite")),
            UnaryKind::Softcap(c) if !(c.is_finite() && c > 0.0) => {
                Err(format!("softcap {c} is not positive"))
            }
            _ => Ok(x.clone()),
        }
    }

    fn attrs(&self, out: &mut Attrs) {
        match self.kind {
            UnaryKind::Scale(c) => out.float("scale", c),
            UnaryKind::Softcap(c) => out.float("softcap", c),
            kind => {
                for (plain, name) in UnaryKind::PLAIN {
                    if plain == kind {
                        out.text("kind", name);
                    }
                }
            }
        }
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let kind = if attrs.has("scale") {
            UnaryKind::Scale(attrs.float("scale")?)
        } else if attrs.has("softcap") {
            UnaryKind::Softcap(attrs.float("softcap")?)
        } else {
            let name = attrs.text("kind")?;
            let found = UnaryKind::PLAIN.iter().find(|(_, n)| *n == name);
            found.ok_or_else(|| format!("no function {}", crate::error::quoted(&name)))?.0
        };
        Ok(Unary { kind })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let y = env.arg_f32(id, 0).iter().map(|&x| self.kind.apply(x)).collect();
        env.set(id, Value::F32(y));
        Ok(())
    }
}
