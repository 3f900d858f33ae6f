//! Which experts the only row of a step picks: where that follows from logits in a usual way, blocks of the product with them make
//! it for themselves, and nothing is launched for it.

use super::{Lowering, count};
use crate::Result;
use crate::cuda::abi::*;
use crate::graph::{Graph, NodeId, Op};
use crate::plan::origin;

/// What is done to a number of each of many, if it makes shares of them.
fn shares(graph: &Graph, id: NodeId) -> Option<u32> {
    match graph.node(id).op {
        Op::Softmax(_) => Some(SOFTMAX),
        Op::Normalize(_) => Some(NORMALIZE),
        _ => None,
    }
}

/// A prologue that does nothing but pick.
struct Picking {
    logits: NodeId,
    picks: NodeId,
    /// What picks are mixed by.
    shares: NodeId,
    before: u32,
    after: u32,
}

fn picking(graph: &Graph, prologue: &[NodeId], id: NodeId) -> Option<Picking> {
    let arg = |id: NodeId, i: usize| Some(origin(graph, *graph.node(id).args.get(i)?));
    let op = |id: NodeId| &graph.node(id).op;
    let picks = arg(id, 1).filter(|id| matches!(op(*id), Op::TopK(_)))?;
    let all = arg(picks, 0)?;
    let (logits, before) = match shares(graph, all).filter(|_| prologue.contains(&all)) {
        Some(SOFTMAX) => (arg(all, 0)?, SOFTMAX),
        Some(_) => return None,
        None => (all, AS_IT_IS),
    };
    let of = |id: &&NodeId| matches!(op(**id), Op::Pick(_)) && arg(**id, 0) == Some(all);
    let picked = *prologue.iter().find(of)?;
    let last = |id: &&NodeId| shares(graph, **id).is_some() && arg(**id, 0) == Some(picked);
    let made = prologue.iter().find(last).copied();
    let nodes = 2 + usize::from(before != AS_IT_IS) + usize::from(made.is_some());
    let fits = graph.ty(logits).dims.len() == 1
        && graph.ty(logits).width() <= ROUTERS
        && graph.ty(picks).width() <= ROUTED
        && arg(picked, 1) == Some(picks)
        && !prologue.contains(&logits);
    let after = made.and_then(|id| shares(graph, id)).unwrap_or(AS_IT_IS);
    let shares = made.unwrap_or(picked);
    (fits && prologue.len() == nodes && prologue.contains(&picks)).then_some(Picking {
        logits,
        picks,
        shares,
        before,
        after,
    })
}

impl Lowering<'_> {
    /// How a product with experts picks them, if it does so itself: then that is all of its prologue.
    pub(super) fn route(&self, prologue: &[NodeId], id: NodeId) -> Result<Option<Route>> {
        if self.plan.limits().rows != 1 {
            return Ok(None);
        }
        let Some(p) = picking(self.graph, prologue, id) else { return Ok(None) };
        // Others see the picks and their shares, and nothing between.
        let mut seen = Vec::new();
        for &value in prologue {
            if self.put(value)?.is_some() {
                seen.push(value);
            }
        }
        seen.sort_unstable();
        let mut want = [p.picks, p.shares];
        want.sort_unstable();
        if seen != want || self.plan.place(p.logits).is_none() {
            return Ok(None);
        }
        Ok(Some(Route {
            logits: self.value(p.logits)?.at,
            ids: self.value(p.picks)?.at,
            shares: self.value(p.shares)?.at,
            count: count(self.graph.ty(p.logits).width())?,
            before: p.before,
            after: p.after,
            unused: 0,
        }))
    }
}
