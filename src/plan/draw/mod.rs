//! A plan as a page: graph, launches and the life of every value, for people to look at.
//!
//! The page is one file without links to others: drawings are inline, there is nothing to fetch. Alike
//! layers are drawn once ([`layers`]), so that a graph of thousands of nodes is a page to read; each
//! layer's own launches can be unfolded. Names come from model files and graph files: every text
//! passes [`esc`].

mod flow;
mod layers;
mod lives;

use super::{GroupKind, Plan, Role};
use crate::error::Size;
use crate::graph::Op;
pub(crate) use flow::title;
pub(crate) use layers::{Segment, segments, starred};
use std::fmt::{self, Write};

/// How every page begins: it may load nothing.
pub(crate) const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta \
    name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"Content-Security-Policy\" \
    content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">";

/// How every page looks.
pub(crate) const STYLE: &str = include_str!("page.css");

/// A page about a plan: its `Display` is HTML.
pub struct Page<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// What it is a plan of.
    pub title: &'a str,
    /// More about it, in a sentence.
    pub about: &'a str,
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = esc(&cut(self.title, 120));
        write!(f, "{HEAD}<title>{title}</title><style>{}</style></head><body>", STYLE)?;
        write!(f, "<header><h1>{title}</h1><p>{}</p></header>", esc(&cut(self.about, 400)))?;
        self.tiles(f)?;
        let segments = segments(self.plan);
        self.kinds(f, &segments)?;
        self.memory(f, &segments)?;
        write!(
            f,
            "<footer>Drawn by gllm {}.</footer><script>{}</script></body></html>",
            env!("CARGO_PKG_VERSION"),
            include_str!("page.js")
        )
    }
}

impl Page<'_> {
    fn tiles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plan, bytes) = (self.plan, self.plan.bytes());
        let limits = plan.limits();
        write!(f, "<div class=\"tiles\">")?;
        for (value, name) in [
            (plan.graph().nodes().len().to_string(), "nodes".to_string()),
            (plan.groups().len().to_string(), format!("launches a step on {}", plan.target)),
            (Size(bytes.weights).to_string(), "weights".to_string()),
            (Size(bytes.kv).to_string(), format!("caches of {} positions", limits.context)),
            (Size(bytes.scratch).to_string(), format!("arena for {} rows", limits.rows)),
            (Size(bytes.total()).to_string(), "in all".to_string()),
        ] {
            write!(f, "<div><b>{}</b><span>{}</span></div>", esc(&value), esc(&name))?;
        }
        write!(f, "</div>")
    }

    /// The kinds of segment, each drawn once.
    fn kinds(&self, f: &mut fmt::Formatter<'_>, segments: &[Segment]) -> fmt::Result {
        write!(
            f,
            "<section><h2>The step</h2><p>From left to right as it runs; layers of one colour are \
             alike and are drawn once below.</p><ol class=\"strip\">"
        )?;
        for s in segments {
            let name = s.layer.map_or("·".to_string(), |l| l.to_string());
            write!(f, "<li><a class=\"k{}\" href=\"#k{}\">{name}</a></li>", s.kind % 8, s.kind)?;
        }
        write!(f, "</ol><div class=\"legend\">")?;
        for kind in flow::kinds() {
            let what = match kind {
                GroupKind::Linear { .. } => {
                    "a product with what is done to its rows before and after"
                }
                GroupKind::Attend(_) => "attention",
                GroupKind::Rows(_) => "work on rows",
                GroupKind::Sample(_) => "sampling",
            };
            write!(f, "<span class=\"{0}\"><i></i>{0}: {what}</span>", kind.name())?;
        }
        write!(
            f,
            "<span><i class=\"plain\"></i>leaves its launch</span>\
             <span><i class=\"dash\"></i>read further down</span></div>"
        )?;
        let count = segments.iter().map(|s| s.kind + 1).max().unwrap_or(0);
        // What most layers are is what one came to see.
        let members = |kind: usize| segments.iter().filter(|s| s.kind == kind).count();
        let usual = (0..count).rev().max_by_key(|&kind| members(kind));
        for kind in 0..count {
            let own: Vec<&Segment> = segments.iter().filter(|s| s.kind == kind).collect();
            if let Some(first) = own.first() {
                self.kind(f, kind, first, &own, Some(kind) == usual)?;
            }
        }
        write!(f, "</section>")
    }

    fn kind(
        &self,
        f: &mut fmt::Formatter<'_>,
        kind: usize,
        first: &Segment,
        own: &[&Segment],
        open: bool,
    ) -> fmt::Result {
        let nodes = |s: &Segment| {
            let groups = self.plan.groups().get(s.groups.clone()).unwrap_or_default();
            groups.iter().map(|g| g.nodes().count()).sum::<usize>()
        };
        let name = match first.layer {
            Some(_) => {
                let numbers: Vec<usize> = own.iter().filter_map(|s| s.layer).collect();
                format!(
                    "{} {}",
                    if numbers.len() == 1 { "Layer" } else { "Layers" },
                    ranges(&numbers)
                )
            }
            None if first.groups.start == 0 => "Before the layers".to_string(),
            None => "After the layers".to_string(),
        };
        let alike = if own.len() > 1 { format!("{} alike · ", own.len()) } else { String::new() };
        let open = if open { " open" } else { "" };
        write!(
            f,
            "<details class=\"kind k{}\" id=\"k{kind}\"{open}><summary>{name}<span>{alike}{} · {} · weights \
             {}</span></summary>",
            kind % 8,
            counted(first.groups.len(), "launch", "es"),
            counted(nodes(first), "node", "s"),
            Size(self.weights(first))
        )?;
        write!(f, "<div class=\"scroll\">{}</div>", flow::flow(self.plan, first.groups.clone()))?;
        if first.groups.len() > 1 {
            let g = first.groups.clone();
            let marks: Vec<(usize, String)> = g.clone().map(|g| (g, g.to_string())).collect();
            let drawn = lives::lives(self.plan, g, 1160.0, 240.0, &marks, true);
            write!(
                f,
                "<h3>Values in the arena over these launches</h3><div class=\"scroll\">{drawn}</div>"
            )?;
        }
        write!(f, "<details class=\"all\"><summary>")?;
        match own.len() {
            1 => write!(f, "its launches as a list")?,
            n => write!(f, "the launches of all {n} as a list")?,
        }
        write!(f, "</summary><table><tr><th>launch<th>kind<th>nodes</tr>")?;
        for g in own.iter().flat_map(|s| s.groups.clone()) {
            let Some(group) = self.plan.groups().get(g) else { continue };
            let labels: Vec<String> = group.nodes().map(|n| self.plan.label(n)).collect();
            write!(
                f,
                "<tr><td class=\"num\">{g}<td>{}<td class=\"name\">{}</tr>",
                group.kind.name(),
                esc(&cut(&labels.join("  "), 600))
            )?;
        }
        write!(f, "</table></details></details>")
    }

    /// Bytes of the weights that a segment reads.
    fn weights(&self, s: &Segment) -> u64 {
        let graph = self.plan.graph();
        let groups = self.plan.groups().get(s.groups.clone()).unwrap_or_default();
        let args = groups.iter().flat_map(|g| g.nodes()).flat_map(|n| graph.node(n).args.clone());
        let mut read: Vec<_> =
            args.filter(|a| matches!(graph.node(*a).op, Op::Weight(_))).collect();
        read.sort_unstable();
        read.dedup();
        let bytes = read.into_iter().filter_map(|w| self.plan.place(w)).map(|b| b.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>, segments: &[Segment]) -> fmt::Result {
        let bytes = self.plan.bytes();
        let scratch = self.plan.buffers().iter().filter(|b| b.role == Role::Scratch);
        let (count, sum) = scratch.fold((0, 0u64), |(n, s), b| (n + 1, s.saturating_add(b.bytes)));
        write!(
            f,
            "<section><h2>Memory</h2><p>{count} values of {} leave their launches in a step and share \
             an arena of {}. A bar is a value: as long as it is needed, as high as its bytes, where \
             they lie. Its colour is the kind of launch that makes it; dashed ones take over the \
             place of what they were made of.</p>",
            Size(sum),
            Size(bytes.scratch)
        )?;
        let name = |s: &Segment| s.layer.map_or("·".to_string(), |l| l.to_string());
        let marks: Vec<(usize, String)> =
            segments.iter().map(|s| (s.groups.start, name(s))).collect();
        let groups = 0..self.plan.groups().len();
        let wide = (groups.len() as f64 * 7.0).clamp(1180.0, 6000.0);
        let drawn = lives::lives(self.plan, groups, wide, 320.0, &marks, false);
        write!(f, "<div class=\"scroll\">{drawn}</div><p>Numbers below are layers.</p>")?;
        let total = bytes.total().max(1);
        write!(f, "<table><tr><th>what<th class=\"num\">bytes<th class=\"num\"><th></tr>")?;
        for (name, part) in [
            ("weights", bytes.weights),
            ("caches", bytes.kv),
            ("arena", bytes.scratch),
            ("workspace", bytes.workspace),
            ("tables", bytes.tables),
            ("logits", bytes.logits),
            ("step state", bytes.step),
        ] {
            write!(
                f,
                "<tr><td>{name}<td class=\"num\">{part}<td class=\"num\">{}<td style=\"width:420px\">\
                 <span class=\"fill\" style=\"width:{:.2}%\"></span></tr>",
                Size(part),
                100.0 * part as f64 / total as f64
            )?;
        }
        write!(f, "</table></section>")
    }
}

/// Text that means nothing to HTML.
pub(crate) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            // Control characters, and those that turn text around.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                let _ = write!(out, "{}", c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

/// `1 launch`, `2 launches`.
fn counted(n: usize, what: &str, more: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { more })
}

/// At most `most` characters, with an ellipsis where some are missing.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// `0–4, 6, 8–9`.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match parts.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(n) => *end = n,
            _ => parts.push((n, n)),
        }
    }
    let part = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}–{b}") };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_and_cut() {
        let hostile = "</title><script>alert('x')</script>\u{202e}&\0";
        let escaped = esc(hostile);
        assert!(!escaped.contains('<') && !escaped.contains('\'') && !escaped.contains('\0'));
        assert!(escaped.ends_with("\\u{202e}&amp;\\u{0}"), "{escaped}");
        assert_eq!((cut("abcdef", 4), cut("abc", 4)), ("abc…".to_string(), "abc".to_string()));
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0–2, 5, 7–8");
        assert_eq!(ranges(&[]), "");
    }
}
