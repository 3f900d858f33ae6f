//! The nodes of some launches as a drawing: a frame a launch, in it the nodes from top to bottom.
//!
//! A node stands below what it reads, as near under it as its neighbours allow. A value that crosses
//! more than one line of nodes goes around them in a gutter on the left. Views are left out: they
//! cost nothing. Weights and caches are written into the node that reads them.

use super::super::{Group, GroupKind, Plan, is_source};
use super::layers::starred;
use super::{cut, esc};
use crate::error::Size;
use crate::graph::op::CachePart;
use crate::graph::{Graph, NodeId, Op};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

const WIDE: f64 = 196.0;
const GAP_X: f64 = 18.0;
const GAP_Y: f64 = 22.0;
const LINE: f64 = 14.0;
const PAD: f64 = 12.0;
const HEAD: f64 = 24.0;
/// Room between launches, and for values that come and go.
const BETWEEN: f64 = 18.0;
/// How far below a line of nodes its values turn away.
const OUT: f64 = 9.0;
const LANE: f64 = 9.0;
/// Characters of a line.
const FITS: usize = 27;

/// A node in its place.
struct Card {
    x: f64,
    y: f64,
    high: f64,
    lines: Vec<(&'static str, String)>,
    /// Everything, for who points at it.
    about: String,
    leaves: bool,
    row: usize,
}

/// Draws the launches `groups`.
pub(super) fn flow(plan: &Plan, groups: Range<usize>) -> String {
    let graph = plan.graph();
    let mut cards: BTreeMap<NodeId, Card> = BTreeMap::new();
    let mut frames = Vec::new();
    let (mut y, mut row) = (BETWEEN + 10.0, 0);
    for (g, group) in plan.groups().iter().enumerate().take(groups.end).skip(groups.start) {
        let top = y;
        y += HEAD;
        for level in levels(graph, group) {
            place(plan, &mut cards, &level, y, row);
            let high = level.iter().filter_map(|n| cards.get(n)).fold(0.0f64, |h, c| h.max(c.high));
            y += high + GAP_Y;
            row += 1;
        }
        y += PAD - GAP_Y;
        frames.push((g, group, top, y - top));
        y += BETWEEN;
    }
    let left = cards.values().fold(0.0f64, |m, c| m.min(c.x));
    let right = cards.values().fold(WIDE, |m, c| m.max(c.x + WIDE));
    let (wires, lanes) = wires(graph, &cards, left - PAD - LANE, y);
    let left = left - PAD - LANE * (lanes as f64 + 2.0);
    let wide = right + PAD + 4.0 - left;
    let mut out = format!(
        "<svg class=\"flow\" viewBox=\"{left:.0} 0 {wide:.0} {y:.0}\" width=\"{wide:.0}\" \
         height=\"{y:.0}\" role=\"img\" aria-label=\"launches {} to {}\">",
        groups.start,
        groups.end.saturating_sub(1)
    );
    for (g, group, top, high) in frames {
        let x = cards.values().fold(0.0f64, |m, c| m.min(c.x)) - PAD;
        let _ = write!(
            out,
            "<g class=\"frame {kind}\"><rect x=\"{x:.0}\" y=\"{top:.0}\" width=\"{w:.0}\" \
             height=\"{high:.0}\" rx=\"8\"/><text class=\"end\" x=\"{tx:.0}\" y=\"{ty:.0}\">{g} · {kind}</text></g>",
            kind = group.kind.name(),
            w = right + PAD - x,
            tx = right,
            ty = top + 16.0
        );
    }
    out += &wires;
    for (id, card) in &cards {
        let class = if card.leaves { "card stored" } else { "card" };
        let product = matches!(graph.node(*id).op, Op::Linear(_) | Op::Experts(_) | Op::Attend(_));
        let class = if product { format!("{class} product") } else { class.to_string() };
        let _ = write!(
            out,
            "<g class=\"{class}\" data-n=\"{}\"><title>{}</title><rect x=\"{:.0}\" y=\"{:.0}\" \
             width=\"{WIDE}\" height=\"{:.0}\" rx=\"5\"/>",
            id.0,
            esc(&card.about),
            card.x,
            card.y,
            card.high
        );
        for (i, (class, line)) in card.lines.iter().enumerate() {
            let _ = write!(
                out,
                "<text class=\"{class}\" x=\"{:.0}\" y=\"{:.0}\">{}</text>",
                card.x + 8.0,
                card.y + 15.0 + LINE * i as f64,
                esc(line)
            );
        }
        out += "</g>";
    }
    out + "</svg>"
}

/// The nodes of a group in lines, each below what it reads.
fn levels(graph: &Graph, group: &Group) -> Vec<Vec<NodeId>> {
    let mut level_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut levels: Vec<Vec<NodeId>> = Vec::new();
    for id in group.nodes() {
        let args = graph.node(id).args.iter().map(|&a| through_views(graph, a));
        let level = args.filter_map(|a| level_of.get(&a)).max().map_or(0, |l| l + 1);
        level_of.insert(id, level);
        if levels.len() <= level {
            levels.resize(level + 1, Vec::new());
        }
        if let Some(level) = levels.get_mut(level) {
            level.push(id);
        }
    }
    levels
}

fn through_views(graph: &Graph, mut id: NodeId) -> NodeId {
    while let (Op::Reshape(_), Some(&arg)) = (&graph.node(id).op, graph.node(id).args.first()) {
        id = arg;
    }
    id
}

/// Puts a line of nodes side by side, each as near as can be under what it reads.
fn place(plan: &Plan, cards: &mut BTreeMap<NodeId, Card>, level: &[NodeId], y: f64, row: usize) {
    let graph = plan.graph();
    let wish = |id: &NodeId, cards: &BTreeMap<NodeId, Card>| {
        let args = graph.node(*id).args.iter().map(|&a| through_views(graph, a));
        let above: Vec<f64> = args.filter_map(|a| cards.get(&a)).map(|c| c.x).collect();
        if above.is_empty() { 0.0 } else { above.iter().sum::<f64>() / above.len() as f64 }
    };
    let mut wanted: Vec<(f64, NodeId)> = level.iter().map(|id| (wish(id, cards), *id)).collect();
    wanted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut at: Vec<f64> = Vec::new();
    for (x, _) in &wanted {
        at.push(at.last().map_or(*x, |last: &f64| x.max(last + WIDE + GAP_X)));
    }
    let off = |sum: f64| sum / wanted.len().max(1) as f64;
    let shift = off(wanted.iter().map(|w| w.0).sum()) - off(at.iter().sum());
    for (x, (_, id)) in at.iter().zip(&wanted) {
        let mut card = card(plan, *id);
        (card.x, card.y, card.row) = ((x + shift).round(), y, row);
        cards.insert(*id, card);
    }
}

/// What a node is called: by its function, if it has several.
pub(crate) fn title(op: &Op) -> String {
    let attrs = op.attrs();
    let kind = attrs.0.iter().find(|(key, _)| *key == "kind").map(|(_, v)| v.trim_matches('"'));
    let by = attrs.0.first().map(|(key, _)| *key);
    match op {
        Op::Unary(_) => kind.or(by).unwrap_or(op.name()).to_string(),
        _ => kind.unwrap_or(op.name()).to_string(),
    }
}

/// What a node's card says.
fn card(plan: &Plan, id: NodeId) -> Card {
    let graph = plan.graph();
    let node = graph.node(id);
    let attrs = node.op.attrs();
    let others = attrs.0.iter().filter(|(key, _)| *key != "kind" && *key != "factors");
    let others: Vec<String> = others.map(|(k, v)| format!("{k}={}", v.trim_matches('"'))).collect();
    let mut lines = vec![("op", title(&node.op))];
    let mut about = format!("{id} {} : {} @ {}", node.op.name(), node.ty, node.origin);
    for (key, value) in &attrs.0 {
        about += &format!("\n{key}={value}");
    }
    if !others.is_empty() {
        lines.push(("attr", cut(&others.join(" "), FITS)));
    }
    for &arg in &node.args {
        let source = graph.node(super::super::origin(graph, arg));
        let (name, ty) = match &source.op {
            Op::Weight(weight) => (starred(&weight.name), &source.ty),
            Op::Cache(cache) => {
                let part = if cache.part == CachePart::Key { "keys" } else { "values" };
                (format!("{part} of the layer"), &source.ty)
            }
            _ => continue,
        };
        let bytes = plan.place(arg).map_or(0, |b| b.bytes);
        about += &format!("\n{name} : {ty}, {}", Size(bytes));
        lines.push(("weight", cut(name.strip_suffix(".weight").unwrap_or(&name), FITS)));
        lines.push(("type", cut(&format!("  {ty}"), FITS)));
    }
    lines.push(("type", cut(&format!("→ {}", node.ty), FITS)));
    lines.push(("line", cut(&node.origin.to_string(), FITS)));
    let leaves = plan.buffers().iter().find(|b| b.value == id);
    if let Some(b) = leaves {
        let (from, to) = b.live;
        about += &format!("\nkept from launch {from} to {to}: {} at {}", Size(b.bytes), b.offset);
    }
    let high = 8.0 + LINE * lines.len() as f64;
    Card { x: 0.0, y: 0.0, high, lines, about: cut(&about, 1500), leaves: leaves.is_some(), row: 0 }
}

/// Lines between cards, and how many lanes of the gutter are in use.
fn wires(
    graph: &Graph,
    cards: &BTreeMap<NodeId, Card>,
    gutter: f64,
    bottom: f64,
) -> (String, usize) {
    let mut out = String::new();
    // For each lane of the gutter, down to where it is taken.
    let mut lanes: Vec<f64> = Vec::new();
    let mut lane = |from: f64, to: f64| {
        let free = lanes.iter().position(|&end| end + 4.0 < from);
        let i = free.unwrap_or(lanes.len());
        if i == lanes.len() {
            lanes.push(to);
        } else if let Some(end) = lanes.get_mut(i) {
            *end = to;
        }
        (gutter - LANE * i as f64, lanes.len())
    };
    let bottom_of = |row: usize| {
        let cards = cards.values().filter(|c| c.row == row);
        cards.fold(0.0f64, |m, c| m.max(c.y + c.high))
    };
    let mut used = 0;
    let mut around: BTreeMap<NodeId, (f64, f64, bool, Vec<NodeId>)> = BTreeMap::new();
    let mut read: BTreeMap<NodeId, bool> = BTreeMap::new();
    for (&id, card) in cards {
        let mut seen: Vec<NodeId> = Vec::new();
        for &arg in &graph.node(id).args {
            let from = through_views(graph, arg);
            if is_source(&graph.node(from).op) || seen.contains(&from) {
                continue;
            }
            seen.push(from);
            read.insert(from, true);
            match cards.get(&from) {
                Some(above) if card.row == above.row + 1 => {
                    let (x1, y1) = (above.x + WIDE / 2.0, above.y + above.high);
                    let (x2, y2) = (card.x + WIDE / 2.0, card.y);
                    let half = (y2 - y1) / 2.0;
                    let _ = write!(
                        out,
                        "<path class=\"wire\" data-a=\"{}\" data-b=\"{}\" d=\"M{x1:.0} {y1:.0}C{x1:.0} \
                         {:.0} {x2:.0} {:.0} {x2:.0} {y2:.0}\"/>",
                        from.0,
                        id.0,
                        y1 + half,
                        y2 - half
                    );
                }
                above => {
                    let start = above.map_or(0.0, |a| bottom_of(a.row) + OUT);
                    let entry = around.entry(from).or_insert((start, start, false, Vec::new()));
                    entry.1 = entry.1.max(card.y - 10.0);
                    entry.3.push(id);
                }
            }
        }
    }
    // What nothing here reads is read below.
    for (&id, card) in cards {
        let is_store = matches!(graph.node(id).op, Op::Store(_));
        if !read.contains_key(&id) && card.leaves && !is_store {
            let y = bottom_of(card.row) + OUT;
            around.entry(id).or_insert((y, bottom, true, Vec::new()));
        }
    }
    let mut ordered: Vec<_> = around.into_iter().collect();
    ordered.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
    for (from, (start, end, goes_on, readers)) in ordered {
        let (x, lanes) = lane(start, end);
        used = used.max(lanes);
        // Lines that run side by side keep a little apart.
        let apart = 2.0 * (((gutter - x) / LANE) % 3.0);
        let above = |card: &Card| card.y - 6.0 - apart;
        let down = readers.iter().filter_map(|r| cards.get(r)).map(above);
        let end = if goes_on { end } else { down.fold(0.0, f64::max) };
        let mut path = match cards.get(&from) {
            Some(c) => {
                let (from, out) = (c.y + c.high, start - apart);
                format!("M{:.0} {from:.0}V{out:.0}H{x:.0}V{end:.0}", c.x + 14.0)
            }
            None => format!("M{x:.0} 0V{end:.0}"),
        };
        for card in readers.iter().filter_map(|r| cards.get(r)) {
            let above = above(card);
            let _ = write!(path, "M{x:.0} {above:.0}H{0:.0}V{1:.0}", card.x + 14.0, card.y - 3.0);
        }
        let reader = readers.iter().map(|r| r.0.to_string()).collect::<Vec<_>>().join(" ");
        let class = if goes_on { "wire out" } else { "wire" };
        let _ = write!(
            out,
            "<path class=\"{class}\" data-a=\"{}\" data-b=\"{reader}\" d=\"{path}\"><title>{}</title></path>",
            from.0,
            esc(&format!("{from} {}", graph.ty(from)))
        );
        for card in readers.iter().filter_map(|r| cards.get(r)) {
            let tip = card.x + 14.0;
            let _ = write!(out, "<path class=\"tip\" d=\"M{tip:.0} {:.0}l-3.5 -6h7z\"/>", card.y);
        }
    }
    (out, used)
}

/// The kinds of launch, for the legend.
pub(super) fn kinds() -> [GroupKind; 4] {
    let id = NodeId(0);
    let linear = GroupKind::Linear { prologue: Vec::new(), linear: id, epilogue: Vec::new() };
    [linear, GroupKind::Attend(id), GroupKind::Rows(Vec::new()), GroupKind::Sample(id)]
}
