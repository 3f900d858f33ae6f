//! A profile as a page: the step from left to right, each launch as wide as its time and as full as
//! the memory was busy with its bytes. What is empty is lost.
//!
//! The page is one file without links and without scripts. Every text passes [`esc`].

use super::table::also;
use super::{Launch, Moved, Profile, rate};
use crate::error::Size;
use crate::plan::{HEAD, Plan, STYLE, Timed, cut, esc, segments};
use std::fmt::{self, Write};

/// A page about a profile: its `Display` is HTML.
pub struct ProfilePage<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// The plan that it was measured of.
    pub plan: &'a Plan,
    /// What it is a profile of.
    pub title: &'a str,
    /// More about it, in a sentence.
    pub about: &'a str,
}

/// What the page has beyond the style of all.
const OWN: &str = ".time .box { fill: color-mix(in srgb, var(--c) 14%, var(--card)); stroke: var(--c); stroke-width: .5; }
.time .full { fill: var(--c); opacity: .85; } .time g:hover .box { stroke: var(--ink); stroke-width: 1.5; }
.time .axis { fill: var(--soft); font-size: 10.5px; } .time .grid { stroke: var(--rule); fill: none; }
.time .roof { stroke: var(--ink); stroke-dasharray: 3 3; fill: none; opacity: .5; }
.time .name { font-size: 11px; font-weight: 600; } .time .sub { fill: var(--soft); font-size: 10.5px; }
.warn { color: #b3261e; font-weight: 600; } tr.line td { font-weight: 600; background: color-mix(in srgb, var(--rule) 35%, transparent); }
table.ops { width: 100%; } table.ops .num { white-space: nowrap; } td .fill { background: var(--c, var(--linear)); } td.bar { min-width: 90px; width: 110px; }
.lost { background: color-mix(in srgb, var(--c, var(--linear)) 14%, var(--card)); height: 9px; margin-top: 5px; border-radius: 2px; }
.lost .fill { margin: 0; }";

const LEFT: f64 = 12.0;
const TOP: f64 = 16.0;
const HIGH: f64 = 120.0;

/// A launch to draw.
struct Drawn<'a> {
    launch: &'a Launch,
    kernel: &'a str,
    seconds: f64,
    waits: Option<f64>,
}

impl fmt::Display for ProfilePage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = esc(&cut(self.title, 120));
        write!(f, "{HEAD}<title>{title}</title><style>{STYLE}{OWN}</style></head><body>")?;
        write!(f, "<header><h1>{title}</h1><p>{}</p></header>", esc(&cut(self.about, 400)))?;
        self.tiles(f)?;
        if let Some(warning) = self.profile.warning() {
            write!(f, "<p class=\"warn\">{}</p>", esc(&warning))?;
        }
        self.step(f)?;
        self.layer(f)?;
        self.table(f)?;
        write!(f, "<footer>Drawn by gllm {}.</footer></body></html>", env!("CARGO_PKG_VERSION"))
    }
}

/// Time in what it is told best in.
fn time(seconds: f64) -> String {
    if seconds.abs() >= 1e-3 {
        format!("{:.3} ms", seconds * 1e3)
    } else {
        format!("{:.2} µs", seconds * 1e6)
    }
}

impl ProfilePage<'_> {
    fn tiles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.profile;
        let (moved, total) = (p.moved().total(), p.total());
        let mut tiles = vec![
            (time(p.times.replay), "the step itself".to_string()),
            (time(total), format!("its launches, {:+.1}% apart", 100.0 * p.apart())),
            (p.launches.len().to_string(), "launches".to_string()),
            (Size(moved).to_string(), "move in a step".to_string()),
            (
                format!("{:.0}%", 100.0 * p.share(moved, total)),
                format!("of {:.1} GB/s", p.times.ceiling.bytes_per_second / 1e9),
            ),
        ];
        if p.times.token != p.times.replay {
            tiles.push((time(p.times.token), "from token to token".to_string()));
        }
        if let Some(empty) = p.times.empty {
            tiles.push((time(empty), "as many empty launches".to_string()));
        }
        let waits: Option<f64> = p.times.launches.iter().map(|t| t.waits).sum();
        if let Some(waits) = waits {
            tiles.push((time(waits), "waiting at barriers".to_string()));
        }
        write!(f, "<div class=\"tiles\">")?;
        for (value, name) in tiles {
            write!(f, "<div><b>{}</b><span>{}</span></div>", esc(&value), esc(&name))?;
        }
        write!(f, "</div>")?;
        write!(f, "<p>The ceiling is {}", esc(p.times.ceiling.how))?;
        if let Some(rate) = &p.times.beside {
            write!(f, "; beside it, {:.0} GB/s is {}", rate.bytes_per_second / 1e9, esc(rate.how))?;
        }
        write!(f, ".</p>")
    }

    /// The whole step.
    fn step(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drawn: Vec<Drawn<'_>> = self.profile.timed().map(drawn).collect();
        write!(
            f,
            "<section><h2>The step</h2><p>From left to right as it runs. A launch is as wide as its \
             time and as full as the memory was busy with its bytes: to the top at the ceiling. What \
             is pale is lost.</p><div class=\"legend\">"
        )?;
        for (kind, what) in [
            ("linear", "products"),
            ("attend", "attention"),
            ("rows", "work on rows"),
            ("sample", "sampling"),
        ] {
            let seconds: f64 =
                drawn.iter().filter(|d| d.launch.kind == kind).map(|d| d.seconds).sum();
            if !drawn.iter().any(|d| d.launch.kind == kind) {
                continue;
            }
            let share = 100.0 * seconds / self.profile.total();
            write!(
                f,
                "<span class=\"{kind}\"><i></i>{what}: {} ({share:.0}%)</span>",
                time(seconds)
            )?;
        }
        let wide = (drawn.len() as f64 * 9.0).clamp(1180.0, 6000.0);
        write!(f, "</div><div class=\"scroll\">{}</div>", self.timeline(&drawn, wide, false))?;
        write!(f, "<p>Numbers below are layers.</p></section>")
    }

    /// A layer of the usual kind, each of its launches the median of all such layers.
    fn layer(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = segments(self.plan);
        let kinds = segments.iter().filter(|s| s.layer.is_some()).map(|s| s.kind);
        let count =
            |kind: usize| segments.iter().filter(|s| s.kind == kind && s.layer.is_some()).count();
        let Some(usual) = kinds.max_by_key(|&k| count(k)) else { return Ok(()) };
        let own: Vec<Vec<usize>> = segments
            .iter()
            .filter(|s| s.kind == usual && s.layer.is_some())
            .map(|s| {
                let launches = self.profile.times.launches.iter().enumerate();
                launches.filter(|(_, t)| s.groups.contains(&t.group)).map(|(i, _)| i).collect()
            })
            .collect();
        let Some(first) = own.first() else { return Ok(()) };
        let mut all = Vec::new();
        for (i, &at) in first.iter().enumerate() {
            let (Some(launch), Some(timed)) =
                (self.profile.launches.get(at), self.profile.times.launches.get(at))
            else {
                continue;
            };
            let of = |part: fn(&Timed) -> Option<f64>| {
                let members = own.iter().filter_map(|m| m.get(i));
                let times = members.filter_map(|&m| self.profile.times.launches.get(m));
                let mut values: Vec<f64> = times.filter_map(part).collect();
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied()
            };
            let seconds = of(|t| Some(t.seconds)).unwrap_or(0.0);
            all.push(Drawn { launch, kernel: &timed.kernel, seconds, waits: of(|t| t.waits) });
        }
        let sum: f64 = all.iter().map(|d| d.seconds).sum();
        write!(
            f,
            "<section><h2>A layer</h2><p>The median of {} layers that are alike, launch by launch: {} \
             in all.</p><div class=\"scroll\">{}</div></section>",
            own.len(),
            time(sum),
            self.timeline(&all, 1180.0, true)
        )
    }

    /// Launches side by side.
    fn timeline(&self, all: &[Drawn<'_>], wide: f64, names: bool) -> String {
        let p = self.profile;
        let total: f64 = all.iter().map(|d| d.seconds.max(0.0)).sum::<f64>().max(1e-12);
        let scale = (wide - 2.0 * LEFT) / total;
        // With names, each launch has a line of its own below.
        let below = if names { 24.0 + 34.0 * all.len() as f64 } else { 40.0 };
        let high = TOP + HIGH + below;
        let mut out = format!(
            "<svg class=\"time\" viewBox=\"0 0 {wide:.0} {high:.0}\" width=\"{wide:.0}\" \
             height=\"{high:.0}\" role=\"img\" aria-label=\"launches by time\">"
        );
        for (at, tick) in ticks(total) {
            let x = LEFT + at * scale;
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{:.0}\"/><text class=\"axis\" x=\"{x:.1}\" \
                 y=\"11\">{}</text>",
                TOP + HIGH,
                esc(&tick)
            );
        }
        let (mut x, mut layer, mut free) = (LEFT, None, f64::MIN);
        for (i, d) in all.iter().enumerate() {
            // What came out below zero has no width.
            let w = d.seconds.max(0.0) * scale;
            let bytes = d.launch.moved.total();
            let full = HIGH * p.share(bytes, d.seconds).clamp(0.0, 1.0);
            let _ = write!(
                out,
                "<g class=\"{}\"><title>{}</title><rect class=\"box\" x=\"{x:.2}\" y=\"{TOP}\" \
                 width=\"{w:.2}\" height=\"{HIGH}\"/><rect class=\"full\" x=\"{x:.2}\" y=\"{:.2}\" \
                 width=\"{w:.2}\" height=\"{full:.2}\"/></g>",
                d.launch.kind,
                esc(&self.about(d)),
                TOP + HIGH - full
            );
            if names {
                let y = TOP + HIGH + 24.0 + 34.0 * i as f64;
                let mid = x + w / 2.0;
                let (anchor, at) =
                    if mid < wide * 0.6 { ("", mid + 6.0) } else { (" end", mid - 6.0) };
                let _ = write!(
                    out,
                    "<path class=\"grid\" d=\"M{mid:.1} {:.0}V{y:.0}\"/><text class=\"name{anchor}\" \
                     x=\"{at:.1}\" y=\"{y:.0}\">{} {}</text><text class=\"sub{anchor}\" x=\"{at:.1}\" \
                     y=\"{:.0}\">{}</text>",
                    TOP + HIGH,
                    esc(&cut(&d.launch.name, 84)),
                    esc(&d.launch.formats),
                    y + 13.0,
                    esc(&format!(
                        "{} · {} · {:.0} GB/s, {:.0}% · {}",
                        d.launch.line,
                        time(d.seconds),
                        rate(bytes, d.seconds) / 1e9,
                        100.0 * p.share(bytes, d.seconds),
                        d.kernel
                    ))
                );
            } else if d.launch.layer != layer {
                layer = d.launch.layer;
                let name = layer.map_or("·".to_string(), |l| l.to_string());
                let _ = write!(
                    out,
                    "<path class=\"grid\" d=\"M{x:.1} {:.0}V{:.0}\"/>",
                    TOP + HIGH,
                    TOP + HIGH + 8.0
                );
                if x >= free {
                    let y = TOP + HIGH + 20.0;
                    let _ =
                        write!(out, "<text class=\"axis\" x=\"{x:.1}\" y=\"{y:.0}\">{name}</text>");
                    free = x + 8.0 + 7.0 * name.chars().count() as f64;
                }
            }
            x += w;
        }
        let end = LEFT + total * scale;
        let _ = write!(out, "<path class=\"roof\" d=\"M{LEFT} {TOP}H{end:.1}\"/>");
        out + "</svg>"
    }

    /// All that is known of a launch.
    fn about(&self, d: &Drawn<'_>) -> String {
        let (l, bytes) = (d.launch, d.launch.moved.total());
        let mut text = format!("{} {}\n{}", l.name, l.formats, l.line);
        let others = also(l);
        if !others.is_empty() {
            text += &format!(", also {others}");
        }
        if let Some(layer) = l.layer {
            text += &format!("\nlayer {layer}");
        }
        text += &format!(
            "\n{}, {}\nweights {}, cache {}, values {}\n{:.1} GB/s, {:.0}% of the ceiling",
            d.kernel,
            time(d.seconds),
            Size(l.moved.weights),
            Size(l.moved.cache),
            Size(l.moved.values),
            rate(bytes, d.seconds) / 1e9,
            100.0 * self.profile.share(bytes, d.seconds)
        );
        if let Some(waits) = d.waits {
            text += &format!("\n{} of it waiting", time(waits));
        }
        cut(&text, 900)
    }

    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.profile;
        let total = p.total();
        write!(
            f,
            "<section><h2>By line of the script</h2><p>A launch is with the line of its product, or \
             of its first node; other lines that it computes are behind it. Layers that are alike are \
             one row.</p><table class=\"ops\"><tr><th>what runs<th class=\"num\">times<th class=\"num\">each\
             <th class=\"num\">all<th class=\"num\">of the step<th class=\"num\">bytes<th class=\"num\">GB/s\
             <th class=\"num\">of ceiling<th></tr>"
        )?;
        for (line, rows) in p.lines() {
            let seconds: f64 = rows.iter().map(|r| r.seconds).sum();
            let moved: Moved = rows.iter().map(|r| r.moved).sum();
            write!(f, "<tr class=\"line\"><td>{}<td><td>", esc(&cut(&line.to_string(), 100)))?;
            self.numbers(f, seconds, total, moved.total())?;
            write!(f, "<td></tr>")?;
            for row in rows {
                let others = also(&row.launch);
                let others = if others.is_empty() { others } else { format!(" · also {others}") };
                write!(
                    f,
                    "<tr class=\"{}\"><td class=\"name\">{} {}<br>{}{}<td class=\"num\">{}<td \
                     class=\"num\">{}",
                    row.launch.kind,
                    esc(&row.launch.name),
                    esc(&row.launch.formats),
                    esc(&row.kernel),
                    esc(&cut(&others, 200)),
                    row.members.len(),
                    time(row.median)
                )?;
                let bytes = row.moved.total();
                self.numbers(f, row.seconds, total, bytes)?;
                let wide = (100.0 * row.seconds / total.max(1e-12)).clamp(0.0, 100.0);
                let full = (100.0 * p.share(bytes, row.seconds)).clamp(0.0, 100.0);
                write!(
                    f,
                    "<td class=\"bar\"><div class=\"lost\" style=\"width:{wide:.2}%\"><span \
                     class=\"fill\" style=\"width:{full:.1}%\"></span></div></tr>"
                )?;
            }
        }
        write!(f, "</table></section>")
    }

    fn numbers(&self, f: &mut fmt::Formatter<'_>, s: f64, total: f64, bytes: u64) -> fmt::Result {
        write!(
            f,
            "<td class=\"num\">{}<td class=\"num\">{:.1}%<td class=\"num\">{}<td class=\"num\">{:.1}<td \
             class=\"num\">{:.0}%",
            time(s),
            100.0 * s / total,
            Size(bytes),
            rate(bytes, s) / 1e9,
            100.0 * self.profile.share(bytes, s)
        )
    }
}

fn drawn<'a>((launch, timed): (&'a Launch, &'a Timed)) -> Drawn<'a> {
    Drawn { launch, kernel: &timed.kernel, seconds: timed.seconds, waits: timed.waits }
}

/// About ten marks of a length of time, and what they are called.
fn ticks(total: f64) -> Vec<(f64, String)> {
    let rough = total / 10.0;
    let power = 10f64.powf(rough.max(1e-12).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough);
    let step = step.unwrap_or(rough);
    let count = if step > 0.0 { (total / step) as usize } else { 0 };
    let name = |t: f64| {
        if total >= 1e-3 { format!("{:.3} ms", t * 1e3) } else { format!("{:.1} µs", t * 1e6) }
    };
    (0..=count.min(20)).map(|i| i as f64 * step).map(|t| (t, name(t))).collect()
}
