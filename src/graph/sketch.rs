//! A model that is not there: tensors of given shapes, and noise in them.
//!
//! Whoever writes a graph file has a `config.json` long before weights. [`Sketch`] answers for tensors
//! that were described ([`arch::sketch`](super::arch::sketch) asks the graph file for them), so that
//! the graph can be built; [`Sketch::noise`] then makes numbers for those that it reads, the same on
//! every machine.

use super::weights::find_made;
use super::{Dims, Graph, MemoryWeights, Op, Weights};
use crate::error::{Error, Result};
use crate::model::Format;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Shapes of tensors by name; a `*` in a name stands for a layer's number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sketch(BTreeMap<String, Dims>);

impl Sketch {
    /// Tensors of these names and dimensions, slowest first. What is no whole name (it does not end
    /// in `.weight` or `.bias`) is a weight.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let whole = |name: String| match name.rsplit_once('.') {
            Some((_, "weight" | "bias")) => name,
            _ => name + ".weight",
        };
        Sketch(tensors.into_iter().map(|(n, dims)| (whole(n), Dims::from_vec(dims))).collect())
    }

    /// Noise for every tensor that `graph` reads: matrices so that a product has about the size of
    /// its rows, tables within 1, vectors around 1, biases around 0. It depends on a tensor's name
    /// and shape alone.
    ///
    /// # Errors
    /// When the graph reads what is not here, or memory does not suffice.
    pub fn noise(&self, graph: &Graph) -> Result<MemoryWeights> {
        let mut out = MemoryWeights::new();
        let users = graph.users();
        for (id, node) in graph.iter() {
            let Op::Weight(weight) = &node.op else { continue };
            let name = own_name(&weight.name);
            let missing = || Error::Invalid(format!("there is no tensor {name}"));
            let (_, dims) = self.find(name).ok_or_else(missing)?;
            let only_looked_up = users
                .get(id.index())
                .is_some_and(|u| u.iter().all(|&u| matches!(graph.node(u).op, Op::Embed(_))));
            let cols = dims.last().copied().unwrap_or(1);
            let (middle, size) = match node.ty.dims.len() {
                _ if name.ends_with(".bias") => (0.0, 0.25),
                0 | 1 => (1.0, 0.25),
                _ if only_looked_up => (0.0, 1.0),
                _ => (0.0, 1.7 / (cols as f32).sqrt()),
            };
            let mut values = Vec::new();
            let count = dims.iter().product::<usize>();
            values.try_reserve_exact(count).map_err(|_| Error::Memory {
                what: format!("noise for {name}"),
                needs: (count as u64).saturating_mul(4),
                has: 0,
                hint: "the memory could not be had; try fewer layers".to_string(),
            })?;
            let mut state = seed(name);
            values.extend((0..count).map(|_| middle + size * next(&mut state)));
            out.insert(name, &dims, &values)?;
        }
        Ok(out)
    }
}

/// The tensor that a name made of another stands for.
fn own_name(mut name: &str) -> &str {
    while let Some(inner) = name.strip_prefix("row(").and_then(|n| n.strip_suffix(')')) {
        name = inner;
    }
    name
}

fn seed(name: &str) -> u64 {
    let mix = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// Between -1 and 1.
fn next(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

impl Weights for Sketch {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn find(&self, name: &str) -> Option<(Format, Dims)> {
        let any_layer = || {
            let (before, rest) = name.split_once('.')?;
            let (layer, after) = rest.split_once('.')?;
            let is_layer = !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit());
            is_layer.then(|| format!("{before}.*.{after}"))
        };
        let found = self.0.get(name).or_else(|| self.0.get(&any_layer()?));
        found.map(|dims| (Format::F32, dims.clone())).or_else(|| find_made(self, name))
    }

    fn bytes(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
}
