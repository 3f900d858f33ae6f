//! Sources: what the caller gives, what the file holds, what stays between steps.

use super::{AttrReader, Attrs, OpDef, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};

/// Which per-row number of the step an [`Input`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InputKind {
    /// Token ids, `u32[R]`.
    Tokens,
    /// Positions in the sequence, from 0, `u32[R]`.
    Positions,
    /// Slots, from 0, `u32[R]`.
    Slots,
    /// Indices of the rows whose logits are wanted, ascending, `u32[O]`.
    Outs,
}

impl InputKind {
    const NAMED: [(InputKind, &'static str); 4] = [
        (InputKind::Tokens, "tokens"),
        (InputKind::Positions, "positions"),
        (InputKind::Slots, "slots"),
        (InputKind::Outs, "outs"),
    ];
}

/// A number a row, set before each step.
#[derive(Clone, PartialEq, Debug)]
pub struct Input {
    /// Which one.
    pub kind: InputKind,
}

impl OpDef for Input {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [] = arity(args)?;
        let lead = if self.kind == InputKind::Outs { Lead::Outs } else { Lead::Rows };
        Ok(TensorType::new(DType::U32, lead, &[]))
    }

    fn attrs(&self, out: &mut Attrs) {
        for (kind, name) in InputKind::NAMED {
            if kind == self.kind {
                out.text("kind", name);
            }
        }
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let name = attrs.text("kind")?;
        let found = InputKind::NAMED.iter().find(|(_, n)| *n == name);
        let (kind, _) = found.ok_or_else(|| format!("no input {}", crate::error::quoted(&name)))?;
        Ok(Input { kind: *kind })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let values = match self.kind {
            InputKind::Tokens => env.step.tokens,
            InputKind::Positions => env.step.positions,
            InputKind::Slots => env.step.slots,
            InputKind::Outs => env.step.outs,
        };
        env.set(id, Value::U32(values.to_vec()));
        Ok(())
    }
}

/// A tensor of the model.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// Its name in the file.
    pub name: String,
}

impl OpDef for Weight {
    fn infer(
        &self,
        args: &[&TensorType],
        declared: Option<&TensorType>,
    ) -> Result<TensorType, String> {
        let [] = arity(args)?;
        match declared {
            Some(ty) if ty.lead == Lead::Fixed && matches!(ty.dtype, DType::Weight(_)) => {
                Ok(ty.clone())
            }
            _ => Err("a weight's type is declared".to_string()),
        }
    }

    fn attrs(&self, out: &mut Attrs) {
        out.text("name", &self.name);
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Weight { name: attrs.text("name")? })
    }

    fn eval(&self, _: NodeId, _: &mut Env<'_>) -> crate::Result<()> {
        // Read once when the reference is made, not in each step.
        Ok(())
    }
}

/// Keys or values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CachePart {
    /// What queries are compared with.
    Key,
    /// What attention sums.
    Value,
}

/// The keys or values of a layer: `f16[S, kv heads, head dim]`, or `q8_0` of those.
#[derive(Clone, PartialEq, Debug)]
pub struct Cache {
    /// The layer, from 0.
    pub layer: usize,
    /// Keys or values.
    pub part: CachePart,
}

impl OpDef for Cache {
    fn infer(
        &self,
        args: &[&TensorType],
        declared: Option<&TensorType>,
    ) -> Result<TensorType, String> {
        let [] = arity(args)?;
        match declared {
            Some(ty)
                if ty.lead == Lead::Cache
                    && matches!(ty.dtype, DType::F16 | DType::Q8_0)
                    && ty.dims.len() == 2 =>
            {
                Ok(ty.clone())
            }
            _ => Err("a cache is declared as f16[S, heads, dim] or q8_0".to_string()),
        }
    }

    fn attrs(&self, out: &mut Attrs) {
        out.count("layer", self.layer);
        out.text("part", if self.part == CachePart::Key { "key" } else { "value" });
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let layer = attrs.count("layer")?;
        let part = match attrs.text("part")?.as_str() {
            "key" => CachePart::Key,
            "value" => CachePart::Value,
            other => return Err(format!("no cache part {}", crate::error::quoted(other))),
        };
        Ok(Cache { layer, part })
    }

    fn eval(&self, _: NodeId, _: &mut Env<'_>) -> crate::Result<()> {
        Ok(())
    }
}
