//! `embed table, ids`: the rows of a table that tokens, positions or picks name.

use super::{AttrReader, Attrs, OpDef, arity};
use crate::graph::reference::{Env, Value};
use crate::graph::{DType, Lead, NodeId, TensorType};

/// Looks up one row of `table[count, dim]` for each token, position or pick.
#[derive(Clone, PartialEq, Debug)]
pub struct Embed;

impl OpDef for Embed {
    fn infer(&self, args: &[&TensorType], _: Option<&TensorType>) -> Result<TensorType, String> {
        let [table, tokens] = arity(args)?;
        if table.lead != Lead::Fixed || table.dims.len() != 2 {
            return Err(format!("the table must be a matrix, is {table}"));
        }
        // Tokens or positions, or the experts that a row picked.
        if tokens.dtype != DType::U32 || tokens.dims.len() > 1 {
            return Err(format!("tokens must be u32[R], is {tokens}"));
        }
        let mut dims = tokens.dims.clone();
        dims.push(table.dims[1]);
        Ok(TensorType::new(DType::F32, tokens.lead, &dims))
    }

    fn attrs(&self, _: &mut Attrs) {}

    fn parse(_: &mut AttrReader) -> Result<Self, String> {
        Ok(Embed)
    }

    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
        let (table, dim) = (env.arg_f32(id, 0), env.ty(id).last());
        let mut out = Vec::new();
        for &token in env.arg_u32(id, 1) {
            let start = token as usize * dim;
            let row = table.get(start..start + dim).ok_or_else(|| {
                crate::Error::Invalid(format!("token {token} is outside the vocabulary"))
            })?;
            out.extend_from_slice(row);
        }
        env.set(id, Value::F32(out));
        Ok(())
    }
}
