//! `rms_norm x, weight`: root-mean-square normalization.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{Lead, NodeId, TensorType};

/// `y = x / sqrt(mean(x²) + eps) * weight` over the last dimension.
#[derive(Clone, PartialEq, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl OpDef for RmsNorm {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x, w] = arity(args)?;
        activation("the input", x)?;
        if w.lead != Lead::Fixed || w.dims.as_slice() != [x.last()] {
            return Err(format!("the weight {w} does not fit the last dimension of {x}"));
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(format!("eps {} is not a small positive number", self.eps));
        }
        Ok(x.clone())
    }

    fn attrs(&self, out: &mut Attrs) {
        out.float("eps", self.eps);
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(RmsNorm { eps: attrs.float("eps")? })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (x, w) = (env.arg_f32(id, 0), env.arg_f32(id, 1));
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(w.len()) {
            let mean = row.iter().map(|v| v * v).sum::<f32>() / w.len() as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            y.extend(row.iter().zip(w).map(|(v, w)| v * scale * w));
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}
