//! `store cache, x, positions, slots`: writes a row a token into a cache.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::Env;
use crate::graph::{DType, Lead, NodeId, TensorType};

/// Elements of a head that share a scale in a cache of 8 bits.
const GROUP: usize = 32;

/// Puts row `r` of `x` at `(slots[r], positions[r])` of the cache; its value is that cache.
#[derive(Clone, PartialEq, Debug)]
pub struct Store;

impl OpDef for Store {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [cache, x, positions, slots] = arity(args)?;
        activation("the input", x)?;
        if cache.lead != Lead::Cache || cache.dims != x.dims {
            return Err(format!("cannot store {x} in {cache}"));
        }
        for ty in [positions, slots] {
            if ty.dtype != DType::U32 || ty.lead != x.lead {
                return Err(format!("positions and slots must be u32 rows as {x}, one is {ty}"));
            }
        }
        Ok(cache.clone())
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Store)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (width, head) = (env.ty(id).width(), env.ty(id).last());
        let q8 = env.ty(id).dtype == DType::Q8_0;
        let halves = env.rounds && env.ty(id).dtype == DType::F16;
        let cache = env.cache_of(id);
        let mut kept = env.take_cache(cache);
        let (x, positions, slots) = (env.arg_f32(id, 1), env.arg_u32(id, 2), env.arg_u32(id, 3));
        for ((x, &p), &s) in x.chunks_exact(width).zip(positions).zip(slots) {
            let at = (s as usize * env.context + p as usize) * width;
            if let Some(row) = kept.get_mut(at..at + width) {
                row.copy_from_slice(x);
                if q8 {
                    let groups = row.chunks_mut(head).flat_map(|h| h.chunks_mut(GROUP));
                    groups.for_each(round_to_8_bits);
                }
                if halves {
                    row.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32());
                }
            }
        }
        env.put_cache(cache, kept);
        Ok(())
    }
}

/// What is left of a group in 8 bits: whole multiples, up to 127, of a scale in half precision.
fn round_to_8_bits(group: &mut [f32]) {
    let finite = group.iter().all(|x| x.is_finite());
    let most = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = half::f16::from_f32(if finite { most / 127.0 } else { f32::NAN }).to_f32();
    for x in group {
        let code =
            if scale > 0.0 { (*x / scale).round_ties_even().clamp(-127.0, 127.0) } else { 0.0 };
        *x = code * scale;
    }
}
