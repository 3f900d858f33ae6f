//! `layer_norm x [, weight [, bias]]`: normalization to mean 0 and variance 1.

use super::rms_norm::{check_eps, norm_weight, repeated};
use super::{AttrReader, Attrs, OpDef, activation};
use crate::graph::reference::{Env, Value};
use crate::graph::{NodeId, TensorType};

/// `y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension; the weight may
/// be one for all heads of a row or have its own part for each.
#[derive(Clone, PartialEq, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl OpDef for LayerNorm {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let (Some((x, params)), true) = (args.split_first(), args.len() <= 3) else {
            return Err(format!("takes 1 to 3 arguments, got {}", args.len()));
        };
        activation("the input", x)?;
        for w in params {
            norm_weight(x, w)?;
            if w.dims != params[0].dims {
                return Err(format!("weight {} and bias {w} are not alike", params[0]));
            }
        }
        check_eps(self.eps)?;
        Ok((*x).clone())
    }

    fn attrs(&self, out: &mut Attrs) {
        out.float("eps", self.eps);
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(LayerNorm { eps: attrs.float("eps")? })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, dim) = (env.arg_f32(id, 0), env.ty(id).last());
        let w = repeated(env, id, 1, 1.0);
        let b = repeated(env, id, 2, 0.0);
        let mut y = Vec::with_capacity(x.len());
        for (i, row) in x.chunks_exact(dim).enumerate() {
            let mean = row.iter().sum::<f32>() / dim as f32;
            let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / dim as f32;
            let scale = 1.0 / (var + self.eps).sqrt();
            let at = |w: &[f32], j: usize| w[(i * dim + j) % w.len()];
            y.extend(
                row.iter().enumerate().map(|(j, v)| (v - mean) * scale * at(&w, j) + at(&b, j)),
            );
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}
