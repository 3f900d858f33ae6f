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
    /// `x Φ(x)`, with the normal distribution's own Φ.
    GeluErf,
    /// `x / (1 + e^(-1.702 x))`.
    GeluQuick,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `tanh x`.
    Tanh,
    /// `e^x`.
    Exp,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `c x`.
    Scale(f32),
    /// `c tanh(x / c)`.
    Softcap(f32),
    /// `x + c`.
    Shift(f32),
    /// `c / x`.
    Over(f32),
    /// `x`, but no less than the first and no more than the second.
    Clamp(f32, f32),
}

impl UnaryKind {
    /// Functions without a constant, with their names.
    pub const PLAIN: [(UnaryKind, &'static str); 10] = [
        (UnaryKind::Silu, "silu"),
        (UnaryKind::Gelu, "gelu"),
        (UnaryKind::GeluErf, "gelu_erf"),
        (UnaryKind::GeluQuick, "gelu_quick"),
        (UnaryKind::Relu, "relu"),
        (UnaryKind::ReluSquared, "relu_squared"),
        (UnaryKind::Sigmoid, "sigmoid"),
        (UnaryKind::Tanh, "tanh"),
        (UnaryKind::Exp, "exp"),
        (UnaryKind::Softplus, "softplus"),
    ];

    /// The function at `x`.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            UnaryKind::Silu => x / (1.0 + (-x).exp()),
            UnaryKind::Gelu => {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
            }
            UnaryKind::GeluErf => x * normal(x),
            UnaryKind::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
            UnaryKind::ReluSquared => {
                let x = UnaryKind::Relu.apply(x);
                x * x
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
            UnaryKind::Exp => x.exp(),
            // Neither far from 0 nor near it are digits lost.
            UnaryKind::Softplus => {
                let positive = if x < 0.0 { 0.0 } else { x };
                positive + (-x.abs()).exp().ln_1p()
            }
            UnaryKind::Scale(c) => c * x,
            UnaryKind::Softcap(c) => c * (x / c).tanh(),
            UnaryKind::Shift(c) => x + c,
            UnaryKind::Over(c) => c / x,
            UnaryKind::Clamp(low, high) => {
                if x < low {
                    low
                } else if x > high {
                    high
                } else {
                    x
                }
            }
        }
    }
}

/// The share of a normal distribution below `x`: half the complementary error function of
/// `-x / √2`. For `x < 0` it is `e^(-x²/2) q(t)`, `t = 1 / (1 + |x| / 4)`, with a polynomial that was
/// fitted to relative errors below 1e-7 up to |x| = 13.5, where the result leaves f32.
fn normal(x: f32) -> f32 {
    let x = f64::from(x);
    let t = 1.0 / (1.0 + 0.25 * x.abs());
    let q = NORMAL_TAIL.iter().rev().fold(0.0, |q, &c| q * t + f64::from(c)) * t;
    let tail = (-0.5 * x * x).exp() * q;
    (if x < 0.0 { tail } else { 1.0 - tail }) as f32
}

/// Coefficients of [`normal`]'s polynomial, the lowest power first.
pub const NORMAL_TAIL: [f32; 9] = [
    0.099_802_665,
    0.098_432_675,
    0.104_322_7,
    0.030_755_378,
    0.206_705_39,
    -0.212_761_13,
    0.302_087_87,
    -0.155_642_29,
    0.026_296_698,
];

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
            UnaryKind::Shift(c) if !c.is_finite() => Err(format!("shift {c} is not finite")),
            UnaryKind::Over(c) if !c.is_finite() => Err(format!("{c} over x is not finite")),
            UnaryKind::Clamp(low, high)
                if low.is_nan() || high.is_nan() || low > high || low.is_infinite() =>
            {
                Err(format!("cannot clamp to {low} .. {high}"))
            }
            _ => Ok(x.clone()),
        }
    }

    fn attrs(&self, out: &mut Attrs) {
        match self.kind {
            UnaryKind::Scale(c) => out.float("scale", c),
            UnaryKind::Softcap(c) => out.float("softcap", c),
            UnaryKind::Shift(c) => out.float("shift", c),
            UnaryKind::Over(c) => out.float("over", c),
            UnaryKind::Clamp(low, high) => {
                out.float("low", low);
                out.float("high", high);
            }
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
        } else if attrs.has("shift") {
            UnaryKind::Shift(attrs.float("shift")?)
        } else if attrs.has("over") {
            UnaryKind::Over(attrs.float("over")?)
        } else if attrs.has("low") {
            UnaryKind::Clamp(attrs.float("low")?, attrs.float("high")?)
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
