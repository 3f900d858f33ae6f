//! The text form: a line a node, written to be read by people and read back to the same graph.
//!
//! ```text
//! gllm-graph 1
//! %0 = input(kind="tokens") : u32[R] @ "llama.rs:21"
//! %1 = weight(name="token_embd.weight") : q4_1[49152, 576] @ "llama.rs:21"
//! %2 = embed(%1, %0) : f32[R, 576] @ "llama.rs:21"
//! output %2
//! ```
//!
//! Nodes are numbered in order, without gaps. A type is what the author believed: it must be what
//! the op infers, and only sources (weights, caches) take it over. Empty lines and lines that
//! begin with `#` are skipped.

use super::op::{AttrReader, Op, unescape};
use super::{Args, Graph, NodeId, Origin, TensorType};
use crate::error::{Error, Result, quoted};
use std::collections::btree_map::Entry;
use std::fmt;

/// The first line; the number changes when an old reader would misread a new text.
const VERSION: &str = "gllm-graph 1";

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{VERSION}")?;
        for (id, node) in self.iter() {
            let args = node.args.iter().map(NodeId::to_string);
            let attrs = node.op.attrs();
            let attrs = attrs.0.iter().map(|(key, value)| format!("{key}={value}"));
            let inner = args.chain(attrs).collect::<Vec<_>>().join(", ");
            let origin = node.origin.to_string();
            writeln!(f, "{id} = {}({inner}) : {} @ {origin:?}", node.op.name(), node.ty)?;
        }
        for id in self.outputs() {
            writeln!(f, "output {id}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Graph {
    type Err = Error;

    /// Reads the text form.
    ///
    /// # Errors
    /// What is wrong, with the number of the line.
    fn from_str(text: &str) -> Result<Graph> {
        let mut graph = Graph::default();
        let mut lines = text.lines().zip(1u32..);
        let fail = |line: u32, what: String| Error::Graph {
            origin: format!("line {line}"),
            op: "text",
            what,
        };
        match lines.next() {
            Some((first, _)) if first.trim_end() == VERSION => {}
            _ => return Err(fail(1, format!("the first line is not {VERSION:?}"))),
        }
        for (line, number) in lines {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(id) = line.strip_prefix("output ") {
                let id = node_id(id.trim()).filter(|id| id.index() < graph.nodes.len());
                let id = id.ok_or_else(|| fail(number, format!("no node: {}", quoted(line))))?;
                graph.mark_output(id);
            } else {
                let node = parse_node(line, graph.nodes.len()).map_err(|e| fail(number, e))?;
                let ParsedNode { op, args, ty, origin } = node;
                let id = graph.push(op, args, Some(ty.clone()), origin).map_err(|e| match e {
                    Error::Graph { op, what, .. } => fail(number, format!("{op}: {what}")),
                    other => other,
                })?;
                let inferred = graph.ty(id);
                if *inferred != ty {
                    return Err(fail(number, format!("is {inferred}, the text says {ty}")));
                }
            }
        }
        Ok(graph)
    }
}

struct ParsedNode {
    op: Op,
    args: Args,
    ty: TensorType,
    origin: Origin,
}

/// Reads `%5 = rms_norm(%3, %4, eps=1e-5) : f32[R, 576] @ "llama.rs:21"`.
fn parse_node(line: &str, number: usize) -> std::result::Result<ParsedNode, String> {
    let bad = |what: &str| format!("{what} in {}", quoted(line));
    let (id, rest) = line.split_once('=').ok_or_else(|| bad("no '='"))?;
    if node_id(id.trim()).map(NodeId::index) != Some(number) {
        return Err(format!("{} should be %{number}", quoted(id.trim())));
    }
    let (name, rest) = rest.split_once('(').ok_or_else(|| bad("no '('"))?;
    let mut args = Args::new();
    let mut attrs = AttrReader::default();
    let mut rest = rest.trim_start();
    loop {
        let end = item_end(rest).ok_or_else(|| bad("no ')'"))?;
        let (item, after) = rest.split_at(end);
        let item = item.trim();
        if let Some((key, value)) = item.split_once('=').filter(|_| !item.starts_with('%')) {
            match attrs.0.entry(key.trim().to_string()) {
                Entry::Vacant(free) => free.insert(value.trim().to_string()),
                Entry::Occupied(_) => return Err(bad("an attribute twice")),
            };
        } else if !item.is_empty() {
            args.push(node_id(item).ok_or_else(|| format!("{} is no argument", quoted(item)))?);
        }
        let mut after = after.chars();
        let delimiter = after.next();
        rest = after.as_str();
        if delimiter == Some(')') {
            break;
        }
    }
    let rest = rest.trim_start().strip_prefix(':').ok_or_else(|| bad("no ':'"))?;
    let (ty, origin) = rest.split_once('@').ok_or_else(|| bad("no '@'"))?;
    let op = Op::parse(name.trim(), &mut attrs)?;
    attrs.finish().map_err(|e| format!("{}: {e}", op.name()))?;
    let origin = parse_origin(origin.trim()).ok_or_else(|| bad("no origin"))?;
    Ok(ParsedNode { op, args, ty: ty.parse()?, origin })
}

/// Where an argument or attribute ends: at a comma or the closing parenthesis, outside of quotes.
fn item_end(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' | ')' if !quoted => return Some(i),
            _ => {}
        }
    }
    None
}

fn node_id(text: &str) -> Option<NodeId> {
    let digits = text.strip_prefix('%').filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().map(NodeId)
}

/// Reads `"llama.rs:21"`.
fn parse_origin(text: &str) -> Option<Origin> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let whole = unescape(inner)?;
    let (file, line) = whole.rsplit_once(':')?;
    Some(Origin { file: file.into(), line: line.parse().ok()? })
}
