//! Launches that are alike as one row, and rows in the order of the script; the report that
//! `gllm profile` prints.

use super::{Launch, Moved, Profile, matrices, rate};
use crate::graph::{NodeId, Op, Origin, TensorType};
use crate::plan::{Plan, cut, median, starred, title};
use std::fmt;

/// Launches of all layers that do the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// One of them.
    pub launch: Launch,
    /// The kernel that runs.
    pub kernel: String,
    /// Which of the profile's launches they are.
    pub members: Vec<usize>,
    /// The median of their times.
    pub median: f64,
    /// The sum of their times.
    pub seconds: f64,
    /// What workers stood waiting, of that.
    pub waits: Option<f64>,
    /// What they move together.
    pub moved: Moved,
}

/// What the nodes of a launch are called: `rms_norm linear(blk.*.attn_q, attn_k) rope`. Views and the
/// slices of a merged product go without saying.
pub(super) fn name(plan: &Plan, nodes: &[NodeId], weights: &[NodeId]) -> String {
    let graph = plan.graph();
    let mut words: Vec<(String, usize)> = Vec::new();
    for &id in nodes {
        let node = graph.node(id);
        let merged = |a: &NodeId| matches!(graph.node(*a).op, Op::Linear(_) | Op::Experts(_));
        match &node.op {
            Op::Reshape(_) => continue,
            Op::Slice(_) if node.args.first().is_some_and(merged) => continue,
            _ => {}
        }
        let reads = match &node.op {
            Op::Embed(_) => node.args.iter().take(1).copied().collect(),
            op => matrices(op, &node.args),
        };
        let reads = reads.into_iter().filter(|w| weights.contains(w));
        let names: Vec<String> = reads
            .filter_map(|w| match &graph.node(w).op {
                Op::Weight(w) => Some(starred(&w.name)),
                _ => None,
            })
            .map(|n| n.strip_suffix(".weight").map(str::to_string).unwrap_or(n))
            .collect();
        let word = match names.as_slice() {
            [] => title(&node.op),
            _ => format!("{}({})", node.op.name(), listed(&names)),
        };
        match words.last_mut() {
            Some((last, n)) if *last == word => *n += 1,
            _ => words.push((word, 1)),
        }
    }
    let words = words.into_iter().map(|(w, n)| if n > 1 { format!("{n} x {w}") } else { w });
    let all: String = words.collect::<Vec<_>>().join(" ").escape_debug().collect();
    cut(&all, 200)
}

/// Names, each without what it shares with the first up to a dot.
fn listed(names: &[String]) -> String {
    let Some(first) = names.first() else { return String::new() };
    let own = first.rfind('.').map_or(0, |dot| dot + 1);
    let shared = first.get(..own).unwrap_or_default();
    let rest = names.iter().skip(1).map(|n| n.strip_prefix(shared).unwrap_or(n));
    std::iter::once(first.as_str()).chain(rest).collect::<Vec<_>>().join(", ")
}

/// The types of the matrices among these weights.
pub(super) fn formats(plan: &Plan, weights: &[NodeId]) -> String {
    let graph = plan.graph();
    let matrices = weights.iter().map(|&w| graph.ty(w)).filter(|ty| ty.dims.len() > 1);
    let ty = |ty: &TensorType| ty.to_string().split('[').next().unwrap_or_default().to_string();
    let mut names: Vec<String> = matrices.map(ty).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" ")
}

impl Profile {
    /// Rows in the order in which they first run.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for (i, (launch, timed)) in self.timed().enumerate() {
            let same = |r: &&mut Row| {
                let l = &r.launch;
                let key = (&l.line, &l.name, &l.formats, l.kind);
                key == (&launch.line, &launch.name, &launch.formats, launch.kind)
                    && r.kernel == timed.kernel
            };
            let row = match rows.iter_mut().find(same) {
                Some(row) => row,
                None => {
                    rows.push(Row {
                        launch: launch.clone(),
                        kernel: timed.kernel.clone(),
                        members: Vec::new(),
                        median: 0.0,
                        seconds: 0.0,
                        waits: timed.waits.map(|_| 0.0),
                        moved: Moved::default(),
                    });
                    match rows.last_mut() {
                        Some(row) => row,
                        None => continue,
                    }
                }
            };
            row.members.push(i);
            row.seconds += timed.seconds;
            row.waits = row.waits.zip(timed.waits).map(|(a, b)| a + b);
            row.moved = row.moved + launch.moved;
        }
        for row in &mut rows {
            let time = |&i: &usize| self.times.launches.get(i).map(|t| t.seconds);
            row.median = median(row.members.iter().filter_map(time).collect());
        }
        rows
    }

    /// Rows by the line that decides their time, lines in the order in which they first run.
    pub fn lines(&self) -> Vec<(Origin, Vec<Row>)> {
        let mut lines: Vec<(Origin, Vec<Row>)> = Vec::new();
        for row in self.rows() {
            match lines.iter_mut().find(|(line, _)| *line == row.launch.line) {
                Some((_, rows)) => rows.push(row),
                None => lines.push((row.launch.line.clone(), vec![row])),
            }
        }
        lines
    }
}

/// Other lines of a launch: those of the same file by number alone.
pub(super) fn also(launch: &Launch) -> String {
    let own = &launch.line.file;
    let shown =
        launch.also.iter().map(|o| if o.file == *own { o.line.to_string() } else { o.to_string() });
    shown.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (times, moved, total) = (&self.times, self.moved(), self.total());
        let us = |seconds: f64| seconds * 1e6;
        let gb = |bytes: u64, seconds: f64| rate(bytes, seconds) / 1e9;
        writeln!(
            f,
            "a step over one row at position {}: {} launches, {} steps watched",
            self.position,
            self.launches.len(),
            times.steps
        )?;
        writeln!(
            f,
            "  sum of the launches {:>10.1} us\n  the step itself     {:>10.1} us, {:+.1}% apart",
            us(total),
            us(times.replay),
            100.0 * self.apart()
        )?;
        if times.token != times.replay {
            writeln!(
                f,
                "  from token to token {:>10.1} us, {:.1} of them the host's and the clock's",
                us(times.token),
                us(times.token - times.replay)
            )?;
        }
        if let Some(empty) = times.empty {
            writeln!(
                f,
                "  empty launches      {:>10.1} us, {:.2} each: as many, with nothing to do",
                us(empty),
                us(empty) / self.launches.len().max(1) as f64
            )?;
        }
        let waits: Option<f64> = times.launches.iter().map(|t| t.waits).sum();
        if let Some(waits) = waits {
            writeln!(
                f,
                "  waiting             {:>10.1} us that a worker stands at barriers, of the sum",
                us(waits)
            )?;
        }
        writeln!(
            f,
            "  bytes               {:>10.1} MB (weights {:.1}, cache {:.1}, values {:.1}): {:.1} GB/s, \
             {:.0}% of the ceiling",
            moved.total() as f64 / 1e6,
            moved.weights as f64 / 1e6,
            moved.cache as f64 / 1e6,
            moved.values as f64 / 1e6,
            gb(moved.total(), total),
            100.0 * self.share(moved.total(), total)
        )?;
        for (name, rate) in
            [("ceiling", Some(&times.ceiling)), ("beside it", times.beside.as_ref())]
        {
            if let Some(rate) = rate {
                let gb = rate.bytes_per_second / 1e9;
                writeln!(f, "  {name:<19} {gb:>10.1} GB/s: {}", rate.how)?;
            }
        }
        writeln!(
            f,
            "\n{:>6} {:>10} {:>10} {:>7} {:>9} {:>8} {:>8} {:>8}  line, and what runs",
            "times", "each us", "all us", "of step", "MB", "GB/s", "of roof", "waits"
        )?;
        for (line, rows) in self.lines() {
            let (all, moved) = (
                rows.iter().map(|r| r.seconds).sum::<f64>(),
                rows.iter().map(|r| r.moved).sum::<Moved>().total(),
            );
            let numbers = |each: Option<f64>,
                           count: usize,
                           s: f64,
                           bytes: u64,
                           waits: Option<f64>| {
                let each = each.map_or(String::new(), |e| format!("{:.2}", us(e)));
                let waits = waits.map_or(String::new(), |w| format!("{:.0}%", 100.0 * w / s));
                format!(
                    "{count:>6} {each:>10} {:>10.1} {:>6.1}% {:>9.2} {:>8.1} {:>7.0}% {waits:>8}",
                    us(s),
                    100.0 * s / total,
                    bytes as f64 / 1e6,
                    gb(bytes, s),
                    100.0 * self.share(bytes, s)
                )
            };
            let count = rows.iter().map(|r| r.members.len()).sum();
            if rows.len() > 1 {
                writeln!(f, "{}  {line}", numbers(None, count, all, moved, None))?;
            }
            for row in &rows {
                let n = numbers(
                    Some(row.median),
                    row.members.len(),
                    row.seconds,
                    row.moved.total(),
                    row.waits,
                );
                let place = if rows.len() > 1 { "  ".to_string() } else { format!("{line}  ") };
                let also = also(&row.launch);
                let also =
                    if also.is_empty() { also } else { format!(" (also {})", cut(&also, 60)) };
                let formats = &row.launch.formats;
                let space = if formats.is_empty() { "" } else { " " };
                writeln!(
                    f,
                    "{n}  {place}{}{space}{formats}, {}{also}",
                    cut(&row.launch.name, 90),
                    row.kernel
                )?;
            }
        }
        Ok(())
    }
}
