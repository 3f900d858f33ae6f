//! `rms_norm x [, weight]`: root-mean-square normalization.

use super::{AttrReader, Attrs, OpDef, activation};
use crate::graph::reference::{Env, Value};
use crate::graph::{Lead, NodeId, TensorType};

/// `y = x / sqrt(mean(x²) + eps) * weight` over the last dimension; the weight may be one for all
/// heads of a row or have its own part for each.
#[derive(Clone, PartialEq, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl OpDef for RmsNorm {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let (x, w) = match args {
            [x] => (x, None),
            [x, w] => (x, Some(w)),
            _ => return Err(format!("takes 1 or 2 arguments, got {}", args.len())),
        };
        activation("the input", x)?;
        if let Some(w) = w {
            norm_weight(x, w)?;
        }
        check_eps(self.eps)?;
        Ok((*x).clone())
    }

    fn attrs(&self, out: &mut Attrs) {
        out.float("eps", self.eps);
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(RmsNorm { eps: attrs.float("eps")? })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, dim) = (env.arg_f32(id, 0), env.ty(id).last());
        let w = repeated(env, id, 1, 1.0);
        let mut y = Vec::with_capacity(x.len());
        for (i, row) in x.chunks_exact(dim).enumerate() {
            let mean = row.iter().map(|v| v * v).sum::<f32>() / dim as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            let w = w.iter().cycle().skip(i * dim % w.len());
            y.extend(row.iter().zip(w).map(|(v, w)| v * scale * w));
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// Refuses a weight that is neither one for the last dimension nor one for the whole row.
pub(super) fn norm_weight(x: &TensorType, w: &TensorType) -> Result<(), String> {
    let fits = w.dims.as_slice() == [x.last()] || w.dims.as_slice() == [x.width()];
    if w.lead != Lead::Fixed || !fits {
        return Err(format!("the weight {w} does not fit the last dimension of {x}"));
    }
    Ok(())
}

pub(super) fn check_eps(eps: f32) -> Result<(), String> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(format!("eps {eps} is not a small positive number"))
}

/// Argument `i`, or one `default` where there is none: either repeats.
pub(super) fn repeated(env: &Env<'_>, id: NodeId, i: usize, default: f32) -> Vec<f32> {
    if i < env.arg_count(id) { env.arg_f32(id, i).to_vec() } else { vec![default] }
}
