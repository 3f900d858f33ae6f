//! `store cache, x, positions, slots`: writes a row a token into a cache.

use super::{AttrReader, Attrs, OpDef, activation, arity};
use crate::graph::reference::Env;
use crate::graph::{DType, Lead, NodeId, TensorType};

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
        let width = env.ty(id).width();
        let cache = env.cache_of(id);
        let mut kept = env.take_cache(cache);
        let (x, positions, slots) = (env.arg_f32(id, 1), env.arg_u32(id, 2), env.arg_u32(id, 3));
        for ((x, &p), &s) in x.chunks_exact(width).zip(positions).zip(slots) {
            let at = (s as usize * env.context + p as usize) * width;
            if let Some(row) = kept.get_mut(at..at + width) {
                row.copy_from_slice(x);
            }
        }
        env.put_cache(cache, kept);
        Ok(())
    }
}
