//! `reshape`, `slice` and `select`: the same numbers, seen otherwise.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Dims, Lead, NodeId, TensorType};

/// The same elements of each row under other dimensions.
#[derive(Clone, PartialEq, Debug)]
pub struct Reshape {
    /// The new dimensions of a row.
    pub dims: Dims,
}

impl OpDef for Reshape {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x] = arity(args)?;
        activation("the input", x)?;
        let ty = TensorType::new(x.dtype, x.lead, &self.dims);
        ty.check()?;
        if ty.width() == x.width() { Ok(ty) } else { Err(format!("cannot see {x} as {ty}")) }
    }

    fn attrs(&self, out: &mut Attrs) {
        let dims: Vec<String> = self.dims.iter().map(usize::to_string).collect();
        out.text("dims", &dims.join("x"));
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let text = attrs.text("dims")?;
        let parts = text.split('x').filter(|_| !text.is_empty());
        let dims: Result<Dims, _> = parts.map(str::parse).collect();
        let dims =
            dims.map_err(|_| format!("{} are no dimensions", crate::error::quoted(&text)))?;
        Ok(Reshape { dims })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let y = env.arg_f32(id, 0).to_vec();
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// Elements `start .. start + len` of the last dimension.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl OpDef for Slice {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x] = arity(args)?;
        activation("the input", x)?;
        let fits = self.start.checked_add(self.len).is_some_and(|end| end <= x.last());
        if x.dims.is_empty() || self.len == 0 || !fits {
            return Err(format!(
                "no elements {} to {}+{} in {x}",
                self.start, self.start, self.len
            ));
        }
        let mut ty = x.clone();
        if let Some(last) = ty.dims.last_mut() {
            *last = self.len;
        }
        Ok(ty)
    }

    fn attrs(&self, out: &mut Attrs) {
        out.count("start", self.start);
        out.count("len", self.len);
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Slice { start: attrs.count("start")?, len: attrs.count("len")? })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, last) = (env.arg_f32(id, 0), env.arg_ty(id, 0).last());
        let rows = x.chunks_exact(last);
        let y = rows.flat_map(|row| &row[self.start..self.start + self.len]).copied().collect();
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// Values side by side in the last dimension.
#[derive(Clone, PartialEq, Debug)]
pub struct Concat;

impl OpDef for Concat {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let Some((first, rest)) = args.split_first().filter(|(_, rest)| !rest.is_empty()) else {
            return Err("takes at least two values".to_string());
        };
        activation("the input", first)?;
        let mut ty = (*first).clone();
        for x in rest {
            let alike = x.dtype == ty.dtype && x.lead == ty.lead && x.dims.len() == ty.dims.len();
            let (Some((last, outer)), true) = (x.dims.split_last(), alike) else {
                return Err(format!("{first} and {x} do not match"));
            };
            match ty.dims.split_last_mut() {
                Some((end, dims)) if *dims == *outer => *end = end.saturating_add(*last),
                _ => return Err(format!("{first} and {x} do not match")),
            }
        }
        Ok(ty)
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Concat)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let last = env.ty(id).last();
        let mut y = Vec::new();
        let rows = env.arg_f32(id, 0).len() / env.arg_ty(id, 0).last();
        y.resize(rows * last, 0.0);
        let mut start = 0;
        for i in 0..env.arg_count(id) {
            let len = env.arg_ty(id, i).last();
            for (y, x) in y.chunks_exact_mut(last).zip(env.arg_f32(id, i).chunks_exact(len)) {
                y[start..start + len].copy_from_slice(x);
            }
            start += len;
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// The rows whose logits are wanted: `R` rows in, `O` rows out.
#[derive(Clone, PartialEq, Debug)]
pub struct Select;

impl OpDef for Select {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x, outs] = arity(args)?;
        activation("the input", x)?;
        if x.lead != Lead::Rows || outs.lead != Lead::Outs || outs.dtype != DType::U32 {
            let hint = if x.lead == Lead::Outs { ", which are selected already" } else { "" };
            return Err(format!("cannot select rows {outs} of {x}{hint}"));
        }
        Ok(TensorType::new(x.dtype, Lead::Outs, &x.dims))
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Select)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, width) = (env.arg_f32(id, 0), env.ty(id).width());
        let rows = env.arg_u32(id, 1).iter();
        let y = rows.flat_map(|&r| &x[r as usize * width..][..width]).copied().collect();
        env.set(id, Value::F32(y));
        Ok(())
    }
}
