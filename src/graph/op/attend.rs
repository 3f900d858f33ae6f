//! `attend q, keys, values, positions, slots`: causal attention over a cache.

use super::linear::dot;
use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};

/// Each query head attends to the positions of its slot up to and including its own; heads share
/// keys and values in groups of `q heads / kv heads`.
///
/// `y = softmax(cap(q · k * scale)) · v`, where `cap(s) = softcap * tanh(s / softcap)` if there is
/// a softcap. A head's sink, if it has one, is one more score under the softmax.
#[derive(Clone, PartialEq, Debug)]
pub struct Attend {
    /// Factor on the dot products.
    pub scale: f32,
    /// How many positions are seen, the own one included; all of them if `None`.
    pub window: Option<usize>,
    /// Bound on the scores.
    pub softcap: Option<f32>,
    /// Whether far positions count less, head by head: [`alibi_slope`].
    pub alibi: Option<f32>,
}

/// What a head of `heads` adds to a score for each position between: the first of the slopes
/// `2^(-max i / n)`, where `n` is the greatest power of two that is not above `heads`, then every
/// second of those for `2 n`.
pub fn alibi_slope(max: f32, head: usize, heads: usize) -> f32 {
    let n = 1usize << heads.max(1).ilog2();
    let power = if head < n {
        (head + 1) as f64 / n as f64
    } else {
        (2 * (head - n) + 1) as f64 / (2 * n) as f64
    };
    (-f64::from(max) * power).exp2() as f32
}

impl OpDef for Attend {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        // The sinks of the heads, if there are any, come last.
        let (args, sinks) = match args {
            [args @ .., sinks] if args.len() == 5 => (args, Some(sinks)),
            args => (args, None),
        };
        let [q, k, v, positions, slots] = arity(args)?;
        activation("the queries", q)?;
        if k.lead != Lead::Cache || k != v {
            return Err(format!("keys {k} and values {v} must be caches of one type"));
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
        if self.alibi.is_some_and(|a| !positive(a)) {
            return Err("alibi must be positive".to_string());
        }
        if let Some(sinks) = sinks
            && (sinks.lead != Lead::Fixed || sinks.dims.as_slice() != [q.dims[0]])
        {
            return Err(format!("sinks {sinks} do not fit the heads of {q}"));
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
        if let Some(alibi) = self.alibi {
            out.float("alibi", alibi);
        }
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let scale = attrs.float("scale")?;
        let window = if attrs.has("window") { Some(attrs.count("window")?) } else { None };
        let softcap = if attrs.has("softcap") { Some(attrs.float("softcap")?) } else { None };
        let alibi = if attrs.has("alibi") { Some(attrs.float("alibi")?) } else { None };
        Ok(Attend { scale, window, softcap, alibi })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (q, q_ty, kv_ty) = (env.arg_f32(id, 0), env.arg_ty(id, 0), env.arg_ty(id, 1));
        let (keys, values) = (env.arg_cache(id, 1), env.arg_cache(id, 2));
        let (positions, slots) = (env.arg_u32(id, 3), env.arg_u32(id, 4));
        let sinks = (env.arg_count(id) == 6).then(|| env.arg_f32(id, 5));
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
                let s = self.softcap.map_or(s, |c| c * (s / c).tanh());
                let slope = self.alibi.map_or(0.0, |max| alibi_slope(max, head, heads));
                scores.push(s - slope * (last - p) as f32);
            }
            // A sink is one more score, of a position without a value.
            let sink = sinks.map_or(f32::NEG_INFINITY, |s| s[head]);
            let max = scores.iter().copied().fold(sink, f32::max);
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let total = scores.iter().sum::<f32>() + (sink - max).exp();
            for (p, s) in (first..=last).zip(&scores) {
                let v = &values[at(p)..at(p) + dim];
                y.iter_mut().zip(v).for_each(|(y, v)| *y += s / total * v);
            }
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}
