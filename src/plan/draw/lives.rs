//! The life of every value: a bar from the launch that makes it to the last that reads it, as high as
//! its bytes, where it lies in the arena.

use super::super::{Plan, Role};
use super::flow::title;
use super::{cut, esc};
use crate::error::Size;
use std::fmt::Write;
use std::ops::Range;

const LEFT: f64 = 64.0;
const BOTTOM: f64 = 22.0;
const TOP: f64 = 6.0;

/// Draws the arena over the launches `groups`; `marks` are launches where something begins, with its
/// name. Bars are labelled if `labels`.
pub(super) fn lives(
    plan: &Plan,
    groups: Range<usize>,
    wide: f64,
    high: f64,
    marks: &[(usize, String)],
    labels: bool,
) -> String {
    let arena = plan.bytes().scratch.max(1) as f64;
    let count = groups.len().max(1) as f64;
    let x = |g: f64| LEFT + (g - groups.start as f64) / count * (wide - LEFT - 8.0);
    let y = |byte: u64| TOP + (1.0 - byte as f64 / arena) * (high - TOP - BOTTOM);
    let mut out = format!(
        "<svg class=\"lives\" viewBox=\"0 0 {wide:.0} {high:.0}\" width=\"{wide:.0}\" \
         height=\"{high:.0}\" role=\"img\" aria-label=\"lifetimes of values in the arena\">"
    );
    for part in 0..=4u64 {
        let byte = (plan.bytes().scratch / 4).saturating_mul(part);
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {0:.1}H{1:.0}\"/><text class=\"axis end\" x=\"{2:.0}\" \
             y=\"{3:.1}\">{4}</text>",
            y(byte),
            wide - 8.0,
            LEFT - 6.0,
            y(byte) + 4.0,
            Size(byte)
        );
    }
    let mut free = f64::MIN;
    for (g, name) in marks.iter().filter(|(g, _)| groups.contains(g)) {
        let at = x(*g as f64);
        let _ =
            write!(out, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{:.0}\"/>", high - BOTTOM + 4.0);
        // As many names as there is room for.
        if at >= free {
            let name = cut(name, 18);
            let _ = write!(
                out,
                "<text class=\"axis\" x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                at + 3.0,
                high - 6.0,
                esc(&name)
            );
            free = at + 14.0 + 6.5 * name.chars().count() as f64;
        }
    }
    for b in plan.buffers().iter().filter(|b| b.role == Role::Scratch) {
        let (from, to) = (b.live.0.max(groups.start), (b.live.1 + 1).min(groups.end));
        if from >= to {
            continue;
        }
        let node = plan.graph().node(b.value);
        let (x1, x2) = (x(from as f64), x(to as f64));
        let (y1, y2) = (y(b.offset.saturating_add(b.bytes)), y(b.offset));
        let mut about = format!(
            "{} {} {}\nlaunches {} to {}, {} at {}\n{}",
            b.value,
            node.op.name(),
            node.ty,
            b.live.0,
            b.live.1,
            Size(b.bytes),
            b.offset,
            node.origin
        );
        if let Some(old) = b.in_place_of {
            about += &format!("\nin place of {old}");
        }
        let kind = plan.groups().get(b.live.0).map_or("rows", |g| g.kind.name());
        let in_place = if b.in_place_of.is_some() { " inplace" } else { "" };
        let _ = write!(
            out,
            "<g class=\"bar {kind}{in_place}\" data-n=\"{}\"><title>{}</title><rect x=\"{:.1}\" \
             y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>",
            b.value.0,
            esc(&about),
            x1 + 0.5,
            y1 + 0.5,
            (x2 - x1 - 1.0).max(0.5),
            (y2 - y1 - 1.0).max(0.5)
        );
        let room = ((x2 - x1 - 8.0) / 6.4).max(0.0) as usize;
        if labels && y2 - y1 >= 13.0 && room >= 5 {
            let label = cut(&format!("{} {} {}", b.value, title(&node.op), node.ty), room);
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x1 + 5.0,
                (y1 + y2) / 2.0 + 4.0,
                esc(&label)
            );
        }
        out += "</g>";
    }
    out + "</svg>"
}
