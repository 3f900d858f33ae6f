//! `rope x, positions [, factors]`: rotary position embedding.

use super::{AttrReader, Attrs, OpDef, activation};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};

/// Which elements of a head turn together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RopeLayout {
    /// Elements `2i` and `2i + 1`.
    Neighbour,
    /// Elements `i` and `i + dim / 2`.
    Half,
}

/// Turns pair `i` of the first `dim` elements of each head by
/// `position * scale * base^(-2i / dim) / factors[i]` radians.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    /// Elements that turn; the rest of the head passes through. Even.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Factor on positions; 1 where the model was not stretched.
    pub scale: f32,
    /// Which elements form a pair.
    pub layout: RopeLayout,
    /// Factor on what has turned; 1 but for some stretched models.
    pub gain: f32,
    /// Divides the frequency of each pair, as the tensor does; empty for none.
    pub factors: Vec<f32>,
}

impl Rope {
    /// The angle of pair `i` at `position`, in f64 so that far positions keep their digits.
    pub fn angle(&self, position: u32, pair: usize, factor: f32) -> f64 {
        let exponent = -2.0 * pair as f64 / self.dim as f64;
        let own = self.factors.get(pair).copied().unwrap_or(1.0);
        let frequency = f64::from(self.base).powf(exponent) / f64::from(factor) / f64::from(own);
        f64::from(position) * f64::from(self.scale) * frequency
    }

    /// Cosine and sine of that angle, times the gain.
    pub fn turn(&self, angle: f64) -> (f32, f32) {
        let gain = f64::from(self.gain);
        ((angle.cos() * gain) as f32, (angle.sin() * gain) as f32)
    }

    /// The two elements of pair `i`.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        match self.layout {
            RopeLayout::Neighbour => (2 * i, 2 * i + 1),
            RopeLayout::Half => (i, i + self.dim / 2),
        }
    }
}

impl OpDef for Rope {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let (x, positions, factors) = match args {
            [x, p] => (x, p, None),
            [x, p, f] => (x, p, Some(f)),
            _ => return Err(format!("takes 2 or 3 arguments, got {}", args.len())),
        };
        activation("the input", x)?;
        if positions.dtype == DType::U32 && x.lead == Lead::Outs {
            return Err(format!("x is {x}, rows that were selected; select after the last layer"));
        }
        if x.dims.len() == 1 {
            return Err(format!(
                "cannot turn {} elements of {x}, which has no heads; heads makes them",
                self.dim
            ));
        }
        if positions.dtype != DType::U32 || positions.lead != x.lead {
            return Err(format!("positions are {positions}, x is {x}"));
        }
        if x.dims.len() != 2 || self.dim == 0 || !self.dim.is_multiple_of(2) || self.dim > x.last()
        {
            return Err(format!("cannot turn {} elements of each head of {x}", self.dim));
        }
        if !(self.base.is_finite() && self.base > 0.0 && self.scale.is_finite()) {
            return Err(format!("base {} and scale {} are unfit", self.base, self.scale));
        }
        let positive = |x: &f32| x.is_finite() && *x > 0.0;
        if !positive(&self.gain) || !self.factors.iter().all(positive) {
            return Err("gain and factors must be positive".to_string());
        }
        if !self.factors.is_empty() && self.factors.len() != self.dim / 2 {
            let (n, pairs) = (self.factors.len(), self.dim / 2);
            return Err(format!("{n} factors do not fit {pairs} pairs"));
        }
        if let Some(f) = factors
            && (f.lead != Lead::Fixed || f.dims.as_slice() != [self.dim / 2])
        {
            return Err(format!("factors {f} do not fit {} pairs", self.dim / 2));
        }
        Ok((*x).clone())
    }

    fn attrs(&self, out: &mut Attrs) {
        out.count("dim", self.dim);
        out.float("base", self.base);
        out.float("scale", self.scale);
        let half = self.layout == RopeLayout::Half;
        out.text("layout", if half { "half" } else { "neighbour" });
        if self.gain != 1.0 {
            out.float("gain", self.gain);
        }
        if !self.factors.is_empty() {
            let factors: Vec<String> = self.factors.iter().map(|f| format!("{f:?}")).collect();
            out.text("factors", &factors.join(" "));
        }
    }

    fn parse(attrs: &mut AttrReader) -> Result<Self, String> {
        let (dim, base) = (attrs.count("dim")?, attrs.float("base")?);
        let scale = attrs.float("scale")?;
        let layout = match attrs.text("layout")?.as_str() {
            "half" => RopeLayout::Half,
            "neighbour" => RopeLayout::Neighbour,
            other => return Err(format!("no layout {}", crate::error::quoted(other))),
        };
        let gain = if attrs.has("gain") { attrs.float("gain")? } else { 1.0 };
        let factors = if attrs.has("factors") { attrs.text("factors")? } else { String::new() };
        let factors: Result<Vec<f32>, _> = factors.split_whitespace().map(str::parse).collect();
        let factors = factors.map_err(|_| "factors are not numbers".to_string())?;
        Ok(Rope { dim, base, scale, layout, gain, factors })
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (mut y, positions) = (env.arg_f32(id, 0).to_vec(), env.arg_u32(id, 1));
        let factors = (env.arg_count(id) == 3).then(|| env.arg_f32(id, 2));
        let (width, head) = (env.ty(id).width(), env.ty(id).last());
        for (row, &position) in y.chunks_exact_mut(width).zip(positions) {
            for i in 0..self.dim / 2 {
                let factor = factors.map_or(1.0, |f| f[i]);
                let (cos, sin) = self.turn(self.angle(position, i, factor));
                let (a, b) = self.pair(i);
                for x in row.chunks_exact_mut(head) {
                    (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
                }
            }
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}
