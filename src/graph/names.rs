//! Names of tensors in one family of files, from those in another.
//!
//! A graph file calls tensors by one set of names and says what they are called elsewhere: a list of
//! patterns, `blk.*.attn_q` to `model.layers.*.self_attn.q_proj`. The first `*` stands for the digits
//! of a layer; one more on the right belongs to `stack(…)`. A pattern of a whole name goes before one
//! of a stem, which takes `.weight` or `.bias` along.

/// Patterns, and what to call what matches them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    /// From pairs of a pattern and a name.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Names(pairs)
    }

    /// What `name` is called; itself if nothing matches.
    pub fn resolve(&self, name: &str) -> String {
        let whole = self.0.iter().find_map(|(from, to)| Some((to, matched(from, name)?)));
        if let Some((to, layer)) = whole {
            return to.replacen('*', layer, 1);
        }
        let Some((stem, part)) = name.rsplit_once('.') else { return name.to_string() };
        let stem = self.0.iter().find_map(|(from, to)| Some((to, matched(from, stem)?)));
        let Some((to, layer)) = stem else { return name.to_string() };
        let to = to.replacen('*', layer, 1);
        let (inner, close) = to.split_at(to.find(')').unwrap_or(to.len()));
        format!("{inner}.{part}{close}")
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
    }
}
