//! `attend q, keys, values, positions, slots`: causal attention over a cache.

use super::linear::dot;
use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};

/// Each query head attends to the positions of its slot up to and including its own; heads share
/// keys and values in groups of `q heads / kv heads`.
///
/// `y = softmax(cap(q · k * scale)) · v`, where `cap(s) = softcap * tanh(s / softcap)` if there is
/// a softcap.
#[derive(Clone, PartialEq, Debug)]
pub struct Attend {
    /// Factor on the dot products.
    pub scale: f32,
    /// How many positions are seen, the own one included; all of them if `None`.
    pub window: Option<usize>,
    /// Bound on the scores.
    pub softcap: Option<f32>,
}

impl OpDef for Attend {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [q, k, v, positions, slots] = arity(args)?;
        activation("the queries", q)?;
        if k.lead != Lead::Cache || k != v {
            return Err(format!("keys {k} and values {v} must be caches of one shape"));
        }
        if q.dims.len() != 2 || q.dims[1] != k.dims[1] || q.dims[0] % k.dims[0] != 0 {
            return Err(format!("queries {q} do not fit keys {k}"));
        }
        for ty in [positions, slots] {
            if ty.dtype != DType::U32 || ty.lead != q.lead {
                return Err(format!("positions and slots must be u32 rows as {q}, one is {ty}"));
            }
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !positive(self.scale) || self.softcap.is_some_and(|c| !positive(c)) {
            return Err("scale and softcap must be positive".to_string());
        }
        if self.window == Some(0) {
            return Err("a window of 0 sees nothing".to_string());
        }
        Ok(q.clone())
    }

    fn attrs(&self, out: &mut Attrs) {
        out.float("scale", self.scale);
        if let Some(window) = self.window {
            out.count("window", window);
        }
        if let Some(softcap) = self.softcap {
            out.float("softcap", softcap);
        }
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let scale = attrs.float("scale")?;
        let window = if attrs.has("window") { Some(attrs.count("window")?) } else { None };
        let softcap = if attrs.has("softcap") { Some(attrs.float("softcap")?) } else { None };
        Ok(Attend { scale, window, softcap })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (q, q_ty, kv_ty) = (env.arg_f32(id, 0), env.arg_ty(id, 0), env.arg_ty(id, 1));
        let (keys, values) = (env.arg_cache(id, 1), env.arg_cache(id, 2));
        let (positions, slots) = (env.arg_u32(id, 3), env.arg_u32(id, 4));
        let (heads, dim) = (q_ty.dims[0], q_ty.dims[1]);
        let (group, kv_width) = (heads / kv_ty.dims[0], kv_ty.width());
        let mut y = vec![0.0f32; q.len()];
        let mut scores = Vec::new();
        for (r, (q, y)) in q.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).enumerate() {
            let (row, head) = (r / heads, r % heads);
            let last = positions[row] as usize;
            let first = self.window.map_or(0, |w| (last + 1).saturating_sub(w));
            let base = slots[row] as usize * env.context;
            let at = |p: usize| (base + p) * kv_width + head / group * dim;
            scores.clear();
            for p in first..=last {
                let k = &keys[at(p)..at(p) + dim];
                let s = dot(q, k) * self.scale;
                scores.push(self.softcap.map_or(s, |c| c * (s / c).tanh()));
            }
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let total: f32 = scores.iter().sum();
            for (p, s) in (first..=last).zip(&scores) {
                let v = &values[at(p)..at(p) + dim];
                y.iter_mut().zip(v).for_each(|(y, v)| *y += s / total * v);
            }
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}
