//! Mixtures of experts: which experts a row goes to, what each makes of it, and their sum.
//!
//! Router and weights are ordinary values, so every way of routing is a composition: logits,
//! [`Softmax`] or sigmoid, [`TopK`], [`Pick`], perhaps [`Normalize`].

use super::linear::columns;
use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};

/// The `k` greatest of a row: their indices, the greatest first; of equals the lower index.
#[derive(Clone, PartialEq, Debug)]
pub struct TopK {
    /// How many.
    pub k: usize,
}

/// Writes the indices of the greatest of `x`, as many as `out` holds. A NaN is below all numbers.
pub fn top_k(x: &[f32], out: &mut [u32]) {
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v };
    for i in 0..out.len() {
        let (before, rest) = out.split_at_mut(i);
        let mut best: Option<(f32, u32)> = None;
        for (at, &v) in (0u32..).zip(x) {
            let better = best.is_none_or(|(top, _)| key(v) > top);
            if better && !before.contains(&at) {
                best = Some((key(v), at));
            }
        }
        if let (Some(out), Some((_, at))) = (rest.first_mut(), best) {
            *out = at;
        }
    }
}

impl OpDef for TopK {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x] = arity(args)?;
        activation("the input", x)?;
        if x.dims.len() != 1 || self.k == 0 || self.k > x.last() || self.k > MOST_PICKS {
            return Err(format!("cannot pick {} of {x}", self.k));
        }
        Ok(TensorType::new(DType::U32, x.lead, &[self.k]))
    }

    fn attrs(&self, out: &mut Attrs) {
        out.count("k", self.k);
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(TopK { k: attrs.count("k")? })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, width) = (env.arg_f32(id, 0), env.arg_ty(id, 0).width());
        let mut ids = vec![0; x.len() / width * self.k];
        for (x, ids) in x.chunks_exact(width).zip(ids.chunks_exact_mut(self.k)) {
            top_k(x, ids);
        }
        env.set(id, Value::U32(ids));
        Ok(())
    }
}

/// Experts of a row, at most.
pub const MOST_PICKS: usize = 64;

/// Demands indices that a row has made: `u32[R, k]`.
fn picks<'a>(ids: &'a TensorType, x: &TensorType) -> Result<&'a usize, String> {
    match ids.dims.as_slice() {
        [k] if ids.dtype == DType::U32 && ids.lead == x.lead => Ok(k),
        _ => Err(format!("picks must be u32 rows as {x}, are {ids}")),
    }
}

/// The elements of a row that were picked.
#[derive(Clone, PartialEq, Debug)]
pub struct Pick;

impl OpDef for Pick {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x, ids] = arity(args)?;
        activation("the input", x)?;
        let &k = picks(ids, x)?;
        if x.dims.len() != 1 {
            return Err(format!("cannot pick elements of {x}"));
        }
        Ok(TensorType::new(x.dtype, x.lead, &[k]))
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Pick)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, width, k) = (env.arg_f32(id, 0), env.arg_ty(id, 0).width(), env.ty(id).width());
        let rows = x.chunks_exact(width).zip(env.arg_u32(id, 1).chunks_exact(k));
        let at = |x: &[f32], i: u32| x.get(i as usize).copied().unwrap_or(0.0);
        let y = rows.flat_map(|(x, ids)| ids.iter().map(move |&i| at(x, i))).collect();
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// Rows times the weights of the experts they picked: for weights `wi[experts, outputs, inputs]`,
/// `y[r, j] = [w0[ids[r, j]] · x, w1[ids[r, j]] · x, …]`, where `x` is `x[r]`, the same for each
/// pick, or `x[r, j]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Experts;

impl OpDef for Experts {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x, ids, weights @ ..] = args else {
            return Err("takes rows, picks and at least one weight".to_string());
        };
        if weights.is_empty() {
            return Err("takes rows, picks and at least one weight".to_string());
        }
        activation("the input", x)?;
        let &k = picks(ids, x)?;
        if !(x.dims.len() == 1 || x.dims.len() == 2 && x.dims[0] == k) {
            return Err(format!("x must be a row, or one for each of {k} picks, is {x}"));
        }
        let mut outputs = 0usize;
        for w in weights {
            if w.lead != Lead::Fixed || w.dims.len() != 3 {
                return Err(format!("a weight must be experts of matrices, is {w}"));
            }
            if w.dims[2] != x.last() {
                return Err(format!("the weight {w} takes {} inputs, x is {x}", w.dims[2]));
            }
            if w.dims[0] != weights[0].dims[0] {
                return Err(format!("{w} and {} have not as many experts", weights[0]));
            }
            outputs = outputs.saturating_add(w.dims[1]);
        }
        Ok(TensorType::new(x.dtype, x.lead, &[k, outputs]))
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Experts)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, ids, x_ty) = (env.arg_f32(id, 0), env.arg_u32(id, 1), env.arg_ty(id, 0));
        let (inputs, outputs) = (x_ty.last(), env.ty(id).last());
        let k = env.ty(id).dims[0];
        let each = x_ty.dims.len() == 2;
        let mut y = vec![0.0; ids.len() * outputs];
        for (i, (&expert, y)) in ids.iter().zip(y.chunks_exact_mut(outputs)).enumerate() {
            let x = &x[if each { i } else { i / k } * inputs..][..inputs];
            let mut first = 0;
            for a in 2..env.arg_count(id) {
                let len = env.arg_ty(id, a).dims[1];
                let start = expert as usize * len * inputs;
                // An expert that is not there adds nothing.
                if let Some(w) = env.arg_f32(id, a).get(start..start + len * inputs) {
                    y[first..first + len].copy_from_slice(&columns(x, w, inputs));
                }
                first += len;
            }
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// The weighted sum of the rows of a row: `y[r] = Σ w[r, j] x[r, j]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Mix;

impl OpDef for Mix {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x, w] = arity(args)?;
        activation("the input", x)?;
        activation("the weights", w)?;
        match (x.dims.as_slice(), w.dims.as_slice()) {
            (&[k, dim], &[n]) if k == n && x.lead == w.lead => {
                Ok(TensorType::new(x.dtype, x.lead, &[dim]))
            }
            _ => Err(format!("{x} and weights {w} do not match")),
        }
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Mix)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, w) = (env.arg_f32(id, 0), env.arg_f32(id, 1));
        let (dim, k) = (env.ty(id).width(), env.arg_ty(id, 1).width());
        let mut y = vec![0.0; w.len() / k * dim];
        let rows = x.chunks_exact(k * dim).zip(w.chunks_exact(k));
        for ((x, w), y) in rows.zip(y.chunks_exact_mut(dim)) {
            for (x, w) in x.chunks_exact(dim).zip(w) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
            }
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}
