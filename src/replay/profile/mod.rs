//! Where the time of a decode step goes: launches as a session times them, joined to what they are in
//! the graph and to the bytes that they move.
//!
//! | file | holds |
//! |---|---|
//! | `moved` | bytes of a launch, by the plan |
//! | `table` | launches that are alike as one row, rows by the line of the script |
//! | `page` | a page with the step as a drawing |
//!
//! **Invariant:** nothing is lost in the joining: the rows' times sum to the launches', their bytes to
//! the plan's.

mod moved;
mod page;
mod table;

pub use moved::Moved;
pub use page::ProfilePage;
pub use table::Row;

use super::Generator;
use crate::graph::{NodeId, Op, Origin};
use crate::plan::{GroupKind, Part, Plan, Session, StepInput, Timed, Times, inputs, segments};
use crate::{Error, Result};

/// How far the sum of the launches may be from the step's own time, as a share of it.
pub const TOLERANCE: f64 = 0.03;

/// Positions that a session needs beyond the one that is timed.
pub const ROOM: usize = 64;

/// A decode step, launch by launch.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// Tokens in the context before the step.
    pub position: usize,
    /// What was measured.
    pub times: Times,
    /// What that is.
    pub launches: Vec<Launch>,
}

/// A launch, and what it is in the graph.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// What decides its time: the line of its product, or else of its first node.
    pub line: Origin,
    /// Where its other nodes are from.
    pub also: Vec<Origin>,
    /// The layer that it is a part of.
    pub layer: Option<usize>,
    /// Its nodes, with a star for the layer in the names of weights.
    pub name: String,
    /// The types of the matrices that it reads.
    pub formats: String,
    /// What it is: `linear`, `attend`, `rows` or `sample`.
    pub kind: &'static str,
    /// What it moves.
    pub moved: Moved,
}

/// Fills the context up to `position`, and times the step over one row there in so many rounds.
/// `None` when `go_on` said so. The session's plan for one row is `plan`.
///
/// # Errors
/// When the context does not hold as much, or the session fails or does not tell its launches apart.
pub fn profile<S: Session>(
    generator: &mut Generator<S>,
    plan: &Plan,
    position: usize,
    rounds: usize,
    go_on: impl FnMut() -> bool,
) -> Result<Option<Profile>> {
    let logits = plan.graph().outputs().first().map_or(1, |&l| plan.graph().ty(l).width());
    // What the tokens are does not matter, only that they differ.
    let token = |i: usize| (i.wrapping_mul(7919) % logits.max(1)) as u32;
    let before: Vec<u32> = (0..position).map(token).collect();
    generator.reset();
    if position > 0 && !generator.prefill(&before, go_on)? {
        return Ok(None);
    }
    let at = u32::try_from(position).map_err(|_| Error::Invalid("no such position".to_string()))?;
    let (tokens, positions) = ([token(position)], [at]);
    let input = StepInput { tokens: &tokens, positions: &positions, slots: &[0], outs: &[0] };
    let times = generator.session().profile(&input, rounds);
    generator.rewind(position)?;
    join(plan, position, times?).map(Some)
}

/// Joins what a session measured to the plan that it ran.
///
/// # Errors
/// When a launch is of no group of the plan.
pub fn join(plan: &Plan, position: usize, times: Times) -> Result<Profile> {
    let mut layers = vec![None; plan.groups().len()];
    for segment in segments(plan) {
        for layer in layers.iter_mut().take(segment.groups.end).skip(segment.groups.start) {
            *layer = segment.layer;
        }
    }
    let nodes: Vec<Vec<NodeId>> =
        (0..times.launches.len()).map(|i| nodes(plan, &times.launches, i)).collect();
    let mut launches = Vec::with_capacity(nodes.len());
    for (i, (timed, nodes)) in times.launches.iter().zip(&nodes).enumerate() {
        let unknown = || Error::Plan(format!("launch {i} is of no group of this plan"));
        let group = plan.groups().get(timed.group).ok_or_else(unknown)?;
        let graph = plan.graph();
        let decides = |id: &&NodeId| {
            let op = &graph.node(**id).op;
            matches!(op, Op::Linear(_) | Op::Experts(_) | Op::Attend(_) | Op::Sample(_))
        };
        let main = nodes.iter().find(decides).or(nodes.first()).ok_or_else(unknown)?;
        let line = graph.node(*main).origin.clone();
        let mut also: Vec<Origin> = nodes.iter().map(|&n| graph.node(n).origin.clone()).collect();
        also.retain(|o| *o != line);
        also.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        also.dedup();
        // Epilogues too long for one launch are several, of which one is said to write the caches.
        let again =
            times.launches.iter().take(i).any(|t| {
                (t.group, t.part) == (timed.group, Part::After) && timed.part == Part::After
            });
        let cached = if again { &[] } else { nodes.as_slice() };
        let users = users(plan, timed);
        let weights = weights(plan, timed, &users);
        let mut moved = Moved {
            weights: weights.iter().map(|&w| moved::weight(plan, &users, w)).sum(),
            cache: cached.iter().map(|&n| moved::cache(plan, n, position)).sum(),
            values: 0,
        };
        let kind = match timed.part {
            Part::Whole | Part::Product => group.kind.name(),
            Part::Before | Part::After => "rows",
        };
        // What a group takes in and leaves is with its product, or else with its first launch.
        let same = |t: &&Timed| t.group == timed.group;
        let mut siblings = times.launches.iter().filter(same);
        let has_product = siblings.any(|t| t.part == Part::Product);
        let first = |t: &Timed| t.part == Part::Product || !has_product;
        let bearer = times.launches.iter().position(|t| t.group == timed.group && first(t));
        if bearer == Some(i) {
            moved.values = moved::values(plan, &group.nodes().collect::<Vec<_>>());
        }
        let name = table::name(plan, nodes, &weights);
        let formats = table::formats(plan, &weights);
        let layer = layers.get(timed.group).copied().flatten();
        launches.push(Launch { line, also, layer, name, formats, kind, moved });
    }
    Ok(Profile { position, times, launches })
}

/// The nodes that launch `i` computes, in run order.
fn nodes(plan: &Plan, all: &[Timed], i: usize) -> Vec<NodeId> {
    let Some(timed) = all.get(i) else { return Vec::new() };
    let kind = |group: usize| plan.groups().get(group).map(|g| &g.kind);
    let within = |part: Part, group: usize| {
        all.iter().enumerate().filter(move |(_, t)| t.group == group && t.part == part)
    };
    // A later attention may do what comes after a product.
    let taken = |group: usize| all.iter().any(|t| t.takes_on && t.group == group + 1);
    let mut out = Vec::new();
    if let (true, Some(GroupKind::Linear { epilogue, .. })) =
        (timed.takes_on, timed.group.checked_sub(1).and_then(kind))
    {
        out.extend(epilogue);
    }
    match (kind(timed.group), timed.part) {
        (None, _) => {}
        (Some(GroupKind::Linear { prologue, .. }), Part::Before) => out.extend(prologue),
        (Some(GroupKind::Linear { epilogue, .. }), Part::After) => out.extend(epilogue),
        (Some(GroupKind::Linear { prologue, linear, epilogue }), Part::Product) => {
            let (mut before, after) =
                (within(Part::Before, timed.group), within(Part::After, timed.group).next());
            let first = within(Part::Product, timed.group).next().is_some_and(|(n, _)| n == i);
            let last = within(Part::Product, timed.group).next_back().is_some_and(|(n, _)| n == i);
            if first && before.next().is_none() {
                out.extend(prologue);
            }
            out.push(*linear);
            if last && after.is_none() && !taken(timed.group) {
                out.extend(epilogue);
            }
        }
        (Some(_), _) => {
            out.extend(plan.groups().get(timed.group).into_iter().flat_map(|g| g.nodes()))
        }
    }
    out
}

/// The nodes among which the users of a launch's weights are.
fn users(plan: &Plan, timed: &Timed) -> Vec<NodeId> {
    let first = if timed.takes_on { timed.group.saturating_sub(1) } else { timed.group };
    let groups = plan.groups().iter().take(timed.group + 1).skip(first);
    groups.flat_map(|g| g.nodes()).collect()
}

/// The weights that a launch reads, each once.
fn weights(plan: &Plan, timed: &Timed, users: &[NodeId]) -> Vec<NodeId> {
    let graph = plan.graph();
    let mut all = match &timed.weights {
        Some(named) => named.clone(),
        None => {
            let args = users.iter().flat_map(|&n| graph.node(n).args.iter().copied());
            args.filter(|&a| matches!(graph.node(a).op, Op::Weight(_))).collect()
        }
    };
    all.sort_unstable();
    all.dedup();
    all
}

impl Profile {
    /// Seconds of all launches together.
    pub fn total(&self) -> f64 {
        self.times.launches.iter().map(|t| t.seconds).sum()
    }

    /// How far that is from the step's own time, as a share of it.
    pub fn apart(&self) -> f64 {
        if self.times.replay > 0.0 { self.total() / self.times.replay - 1.0 } else { f64::INFINITY }
    }

    /// Whether the launches account for the step.
    pub fn adds_up(&self) -> bool {
        self.apart().abs() <= TOLERANCE
    }

    /// What the step moves.
    pub fn moved(&self) -> Moved {
        self.launches.iter().map(|l| l.moved).sum()
    }

    /// What those bytes are of the ceiling in so many seconds, as a share.
    pub fn share(&self, bytes: u64, seconds: f64) -> f64 {
        rate(bytes, seconds) / self.times.ceiling.bytes_per_second.max(1.0)
    }

    /// Launches with their times.
    pub fn timed(&self) -> impl Iterator<Item = (&Launch, &Timed)> {
        self.launches.iter().zip(&self.times.launches)
    }

    /// A warning where the sum of the launches is not the step.
    pub fn warning(&self) -> Option<String> {
        (!self.adds_up()).then(|| {
            format!(
                "the launches sum to {:.1}% {} than the step's own time: more than {:.0}%, so take \
                 them with care and measure again on a machine that does nothing else",
                100.0 * self.apart().abs(),
                if self.apart() > 0.0 { "more" } else { "less" },
                100.0 * TOLERANCE
            )
        })
    }
}

/// Bytes a second; none in no time.
fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 }
}

/// The matrices of a product, without its rows.
fn matrices(op: &Op, args: &[NodeId]) -> Vec<NodeId> {
    let first = inputs(op);
    if first == 0 { Vec::new() } else { args.iter().skip(first).copied().collect() }
}
