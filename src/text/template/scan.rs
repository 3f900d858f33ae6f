//! How deep a template nests, counted before it is parsed.
//!
//! The engine has a limit of its own that counts its own recursion; ours counts what a reader
//! sees, brackets within one tag and blocks within blocks, and says so in the error. It reads
//! tags as the engine does (strings, comments, raw blocks), but nothing depends on the two
//! agreeing about every odd source: what slips through meets the engine's limit and the stack.

use crate::error::{Error, Result};

const DEEPEST: usize = 100;
/// Bytes of one tag. An expression of a hundred thousand terms is a tree as deep.
const LONGEST_TAG: usize = 16 << 10;

/// Blocks that last until their own `end…`. A `set` does so only without `=`.
const BLOCKS: [&str; 8] =
    ["if", "for", "macro", "call", "filter", "with", "autoescape", "generation"];

/// Refuses a source that nests deeper than a hundred, or has an endless expression.
pub(super) fn check(source: &str) -> Result<()> {
    let mut rest = source;
    let mut blocks = 0usize;
    while let Some(at) = rest.find('{') {
        rest = rest.get(at + 1..).unwrap_or_default();
        let Some(kind) = rest.bytes().next() else { break };
        match kind {
            b'#' => rest = rest.split_once("#}").map_or("", |(_, after)| after),
            b'{' | b'%' => {
                let tag = rest.get(1..).unwrap_or_default();
                let (inside, after) = tag_end(tag, kind == b'%')?;
                rest = after;
                if kind == b'{' {
                    continue;
                }
                let name = inside.trim_start_matches(['-', '+']).trim_start();
                let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                let (word, body) = name.split_at(end.unwrap_or(name.len()));
                if word == "raw" {
                    rest = rest.find("endraw").and_then(|at| rest.get(at..)).unwrap_or_default();
                } else if BLOCKS.contains(&word) || word == "set" && !body.contains('=') {
                    blocks += 1;
                    if blocks > DEEPEST {
                        return Err(too_deep("blocks nest"));
                    }
                } else if word.starts_with("end") {
                    blocks = blocks.saturating_sub(1);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn too_deep(what: &str) -> Error {
    Error::Template(format!("{what} more than {DEEPEST} deep"))
}

/// Splits after the end of a tag whose beginning is already taken.
fn tag_end(tag: &str, block: bool) -> Result<(&str, &str)> {
    let bytes = tag.as_bytes();
    let (mut depth, mut quote, mut skip) = (0usize, None, false);
    for (at, &b) in bytes.iter().enumerate() {
        if skip {
            skip = false;
            continue;
        }
        if let Some(q) = quote {
            match b {
                b'\\' => skip = true,
                _ if b == q => quote = None,
                _ => {}
            }
            continue;
        }
        if at > LONGEST_TAG {
            return Err(Error::Template(format!("a tag is longer than {LONGEST_TAG} bytes")));
        }
        let closes = if block { b"%}" } else { b"}}" };
        if depth == 0 && bytes.get(at..at + 2) == Some(closes) {
            let inside = tag.get(..at).unwrap_or_default();
            return Ok((inside, tag.get(at + 2..).unwrap_or_default()));
        }
        match b {
            b'\'' | b'"' => quote = Some(b),
            b'(' | b'[' | b'{' => {
                depth += 1;
                if depth > DEEPEST {
                    return Err(too_deep("brackets nest"));
                }
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok((tag, ""))
}
