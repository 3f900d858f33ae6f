//! Names that look like one that is not there, for messages: what was meant is often among them.

use crate::error::quoted;

/// Names that a message tells.
const MOST: usize = 3;
/// Longer names are not looked at, so that a hostile file costs no time.
const LONGEST: usize = 256;
/// What two names must have in common, of all pairs of neighbouring characters.
const ALIKE: f32 = 0.55;

/// `; near is …`, of the names that look most like `name`; empty when none does.
pub(crate) fn hint<'n>(name: &str, there: impl IntoIterator<Item = &'n str>) -> String {
    let found = near(name, there);
    match found.as_slice() {
        [] => String::new(),
        [one] => format!("; near is {}", shown(one)),
        all => {
            let all: Vec<String> = all.iter().map(|n| shown(n)).collect();
            format!("; near are {}", all.join(", "))
        }
    }
}

/// The names that look most like `name`, the nearest first; of equals the first that is given.
pub(crate) fn near<'n>(name: &str, there: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
    if name.len() > LONGEST {
        return Vec::new();
    }
    // What nearly all tensors end in makes no two of them alike.
    let wanted = pairs(stem(name));
    let mut found: Vec<(f32, &str)> = Vec::new();
    for other in there.into_iter().filter(|n| n.len() <= LONGEST && *n != name) {
        let alike = share(&wanted, &pairs(stem(other))) - other_part(name, other);
        // Of names that differ in numbers alone, such as those of layers, the nearest says enough.
        let kin = found.iter().position(|(_, n)| letters(n).eq(letters(other)));
        if alike < ALIKE || kin.is_some_and(|k| found.get(k).is_some_and(|(a, _)| *a >= alike)) {
            continue;
        }
        if let Some(kin) = kin {
            found.remove(kin);
        }
        let at = found.iter().position(|(a, _)| alike > *a).unwrap_or(found.len());
        found.insert(at, (alike, other));
        found.truncate(MOST);
    }
    // One that is much nearer stands alone.
    let best = found.first().map_or(0.0, |(a, _)| *a);
    found.into_iter().filter(|(a, _)| *a > best - 0.15).map(|(_, n)| n).collect()
}

/// A name as it stands if it is plain, else escaped and cut.
pub(crate) fn shown(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-()*".contains(&b);
    if name.len() <= 64 && name.bytes().all(plain) { name.to_string() } else { quoted(name) }
}

/// Neighbouring bytes, small letters for large ones, sorted. The end counts as a neighbour.
fn pairs(name: &str) -> Vec<[u8; 2]> {
    let bytes = name.bytes().map(|b| b.to_ascii_lowercase());
    let mut pairs: Vec<[u8; 2]> =
        bytes.clone().zip(bytes.skip(1).chain([b' '])).map(|(a, b)| [a, b]).collect();
    pairs.sort_unstable();
    pairs
}

/// Without what nearly all tensors end in, which makes no two of them alike.
fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name)
}

/// A bias is a little further from a weight than another weight.
fn other_part(a: &str, b: &str) -> f32 {
    let parts = (a.strip_prefix(stem(a)), b.strip_prefix(stem(b)));
    if parts.0 == parts.1 { 0.0 } else { 0.2 }
}

fn letters(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().filter(|b| !b.is_ascii_digit())
}

/// The share that two sorted lists have in common: 1 for the same.
fn share(a: &[[u8; 2]], b: &[[u8; 2]]) -> f32 {
    let (mut left, mut right, mut common) = (a.iter().peekable(), b.iter().peekable(), 0usize);
    while let (Some(x), Some(y)) = (left.peek(), right.peek()) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => drop(left.next()),
            std::cmp::Ordering::Greater => drop(right.next()),
            std::cmp::Ordering::Equal => {
                common += 1;
                left.next();
                right.next();
            }
        }
    }
    2.0 * common as f32 / (a.len() + b.len()).max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::{hint, near};

    #[test]
    fn what_was_meant_is_near() {
        let ops = ["relu", "relu_squared", "layer_norm", "rms_norm", "linear", "silu"];
        assert_eq!(near("layernorm", ops), ["layer_norm"]);
        assert_eq!(near("relu2", ops)[0], "relu");
        assert_eq!(near("dropout", ops), [""; 0]);
        assert_eq!(near("linear", ops), [""; 0]);
        let keys = ["vocab_size", "norm_eps", "hidden_act"];
        assert_eq!(hint("rms_norm_eps", keys), "; near is norm_eps");
        assert_eq!(hint("a\u{1b}bcdef", ["a\u{1b}bcdefg"]), "; near is \"a\\u{1b}bcdefg\"");
        let long = "x".repeat(1000);
        assert_eq!(hint(&long, [format!("{long}y").as_str()]), "");
        let parts = ["up_proj.bias", "up_proj.weight"];
        assert_eq!(near("upproj.weight", parts), ["up_proj.weight"]);
        // Of a layer's names alone that of the same layer.
        let layers = ["blk.0.attn_output.weight", "blk.1.attn_output.weight"];
        assert_eq!(near("blk.1.attn_out.weight", layers), [layers[1]]);
    }
}
