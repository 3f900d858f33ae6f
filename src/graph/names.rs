//! Names of tensors in one family of files, from those in another.
//!
//! A graph file calls tensors by one set of names and says what they are called elsewhere: a list of
//! patterns, `blk.*.attn_q` to `model.layers.*.self_attn.q_proj`. The first `*` stands for the digits
//! of a layer; one more on the right belongs to `stack(…)`. A pattern of a whole name goes before one
//! of a stem, which takes `.weight` or `.bias` along.

use super::near;

/// Patterns, and what to call what matches them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    pairs: Vec<(String, String)>,
    /// Whether names are expected to be others: no pattern for one is then worth a hint.
    foreign: bool,
}

impl Names {
    /// From pairs of a pattern and a name.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Names { pairs, foreign: true }
    }

    /// What a message adds about a name that should have been called something else, but is not.
    pub(super) fn unmapped(&self, name: &str) -> Option<String> {
        if !self.foreign || self.resolve(name) != name {
            return None;
        }
        if self.pairs.is_empty() {
            return Some("; the graph file has no NAMES for folders".to_string());
        }
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let parts = stem.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { "*" } else { part }
        });
        let stem = parts.collect::<Vec<_>>().join(".");
        let hint = near::hint(&stem, self.pairs.iter().map(|(from, _)| from.as_str()));
        Some(format!("; NAMES does not have it{hint}"))
    }

    /// What `name` is called; itself if nothing matches.
    pub fn resolve(&self, name: &str) -> String {
        let whole = self.pairs.iter().find_map(|(from, to)| Some((to, matched(from, name)?)));
        if let Some((to, layer)) = whole {
            return to.replacen('*', layer, 1);
        }
        let Some((stem, part)) = name.rsplit_once('.') else { return name.to_string() };
        let stem = self.pairs.iter().find_map(|(from, to)| Some((to, matched(from, stem)?)));
        let Some((to, layer)) = stem else { return name.to_string() };
        let to = to.replacen('*', layer, 1);
        let (inner, close) = to.split_at(to.find(')').unwrap_or(to.len()));
        format!("{inner}.{part}{close}")
    }
}

impl Names {
    /// Every name of a weight that the patterns know, with as many layers, and what it is called. Where
    /// two are called the same the last counts.
    pub fn all(&self, layers: usize) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (from, _) in &self.pairs {
            let weight = if from.ends_with(".weight") { "" } else { ".weight" };
            let layers = if from.contains('*') { layers } else { 1 };
            for layer in 0..layers {
                let name = from.replacen('*', &layer.to_string(), 1) + weight;
                let called = self.resolve(&name);
                all.push((name, called));
            }
        }
        all
    }
}

/// What the `*` of `pattern` is in `name`; empty where there is none.
fn matched<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    let Some((before, after)) = pattern.split_once('*') else {
        return (pattern == name).then_some("");
    };
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    let fine = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    fine.then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_layers_and_parts() {
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let names = Names::new(vec![
            pair("embed", "wte"),
            pair("blk.*.q", "transpose(h.*.attn.c)"),
            pair("blk.*.up", "stack(h.*.experts.*.up)"),
            pair("blk.*.sinks.weight", "h.*.sinks"),
        ]);
        for (name, wanted) in [
            ("embed.weight", "wte.weight"),
            ("blk.12.q.bias", "transpose(h.12.attn.c.bias)"),
            ("blk.3.up.weight", "stack(h.3.experts.*.up.weight)"),
            ("blk.3.sinks.weight", "h.3.sinks"),
            ("blk.x.q.weight", "blk.x.q.weight"),
            ("other", "other"),
        ] {
            assert_eq!(names.resolve(name), wanted);
        }
        assert_eq!(Names::default().resolve("blk.3.q.weight"), "blk.3.q.weight");
        let all = names.all(2);
        assert_eq!(all.len(), 1 + 3 * 2);
        assert_eq!(all[0], pair("embed.weight", "wte.weight"));
        assert_eq!(all[6], pair("blk.1.sinks.weight", "h.1.sinks"));
    }
}
