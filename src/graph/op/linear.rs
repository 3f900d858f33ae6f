//! `linear x, w0, w1, …`: rows times the transpose of weights, outputs side by side.

use super::{AttrReader, Attrs, OpDef, activation};
use crate::graph::reference::{Env, Value};
use crate::graph::{Lead, NodeId, TensorType};

/// `y[r] = [w0 · x[r], w1 · x[r], …]` for weights `wi[outputs, inputs]`.
///
/// A builder gives one weight; several come from the planner's merge pass, which reads an
/// activation once for all matrices that it meets (query, key and value; gate and up). They may
/// differ in format.
#[derive(Clone, PartialEq, Debug)]
pub struct Linear;

impl OpDef for Linear {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let Some((x, weights)) = args.split_first().filter(|(_, w)| !w.is_empty()) else {
            return Err("takes rows and at least one weight".to_string());
        };
        activation("the input", x)?;
        let mut outputs = 0usize;
        for w in weights {
            if w.lead != Lead::Fixed || w.dims.len() != 2 {
                return Err(format!("a weight must be a matrix, is {w}"));
            }
            if x.dims.len() != 1 || w.dims[1] != x.width() {
                return Err(format!("the weight {w} takes {} inputs, x is {x}", w.dims[1]));
            }
            outputs = outputs.saturating_add(w.dims[0]);
        }
        Ok(TensorType::new(x.dtype, x.lead, &[outputs]))
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Linear)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let outputs = env.ty(id).width();
        let x = env.arg_f32(id, 0);
        let inputs = env.arg_ty(id, 0).width();
        let rows = x.len() / inputs;
        let mut y = vec![0.0; rows * outputs];
        let mut first = 0;
        for i in 1..env.arg_count(id) {
            let w = env.arg_f32(id, i);
            // Weight row by weight row, so that one is read once for all rows of the step.
            let columns = columns(x, w, inputs);
            for (o, column) in columns.chunks_exact(rows.max(1)).enumerate() {
                for (y, value) in y.chunks_exact_mut(outputs).zip(column) {
                    y[first + o] = *value;
                }
            }
            first += env.arg_ty(id, i).dims[0];
        }
        env.set(id, Value::F32(y));
        Ok(())
    }
}

/// `w · x` with the outputs of each weight row together. Threads share the weight rows; each
/// output is one thread's alone, so their number changes nothing.
pub(super) fn columns(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let mut y = vec![0.0; rows * outputs];
    let fill = |w: &[f32], y: &mut [f32]| {
        for (w, y) in w.chunks_exact(inputs).zip(y.chunks_exact_mut(rows.max(1))) {
            for (x, y) in x.chunks_exact(inputs).zip(y) {
                *y = dot(x, w);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = outputs.div_ceil(threads).max(1);
    if rows * w.len() < SMALL {
        fill(w, &mut y);
        return y;
    }
    std::thread::scope(|scope| {
        for (w, y) in w.chunks(share * inputs).zip(y.chunks_mut(share * rows)) {
            scope.spawn(|| fill(w, y));
        }
    });
    y
}

/// Multiplications below which a thread costs more than it saves.
const SMALL: usize = 1 << 20;

/// 16 partial sums, which keeps rounding small and lets the compiler use lanes.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a16.zip(b16) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}
