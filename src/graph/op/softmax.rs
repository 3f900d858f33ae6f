//! `softmax` and `normalize`: rows that sum to 1.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{NodeId, TensorType};

/// `e^x / Σ e^x` over the last dimension.
#[derive(Clone, PartialEq, Debug)]
pub struct Softmax;

/// `x / Σ x` over the last dimension.
#[derive(Clone, PartialEq, Debug)]
pub struct Normalize;

impl OpDef for Softmax {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [x] = arity(args)?;
        activation("the input", x)?;
        Ok(x.clone())
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Softmax)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let mut y = env.arg_f32(id, 0).to_vec();
        for row in y.chunks_exact_mut(env.ty(id).last()) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = (*x - max).exp());
            share(row);
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}

impl OpDef for Normalize {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        Softmax.infer(args, None)
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Normalize)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let mut y = env.arg_f32(id, 0).to_vec();
        y.chunks_exact_mut(env.ty(id).last()).for_each(share);
        env.set(id, Value::F32(y));
        Ok(())
    }
}

fn share(row: &mut [f32]) {
    let total: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= total);
}
