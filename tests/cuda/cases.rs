//! Graphs of few ops, one for each thing that an op may be asked for, over one set of weights.

use gllm_kernels::Result;
use gllm_kernels::graph::{
    AttendExtras, AttendOptions, BinaryKind, Builder, DType, Graph, MemoryWeights, NodeId,
    RopeOptions, UnaryKind,
};
use gllm_kernels::model::Format;

/// Tokens that there are, and columns of a token's row: heads of 16, blocks of 256.
pub const TOKENS: usize = 150;
pub const WIDTH: usize = 256;
const HEADS: usize = 16;
const HEAD: usize = 16;
const EXPERTS: usize = 6;
const INNER: usize = 256;

/// Numbers from -1 to 1.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// All tensors; `q` makes bytes of a format out of a seed, a count and a size.
pub fn weights(q: &dyn Fn(Format, u64, usize, f32) -> Vec<u8>) -> MemoryWeights {
    let mut w = MemoryWeights::new();
    let mut seed = 10;
    let mut all = |w: &mut MemoryWeights, name: &str, dims: &[usize], size: f32, middle: f32| {
        seed += 1;
        let n = dims.iter().product();
        let values: Vec<f32> = numbers(seed, n).iter().map(|v| middle + size * v).collect();
        w.insert(name, dims, &values).unwrap();
    };
    all(&mut w, "x.weight", &[TOKENS, WIDTH], 1.0, 0.0);
    all(&mut w, "place.weight", &[512, WIDTH], 1.0, 0.0);
    all(&mut w, "bias.weight", &[WIDTH], 0.5, 0.0);
    all(&mut w, "grid.weight", &[HEADS, HEAD], 0.5, 1.0);
    all(&mut w, "cube.weight", &[2, 3, 2], 0.5, 1.0);
    all(&mut w, "row.weight", &[WIDTH], 0.25, 1.0);
    all(&mut w, "row.bias", &[WIDTH], 0.25, 0.0);
    all(&mut w, "head.weight", &[HEAD], 0.25, 1.0);
    all(&mut w, "head.bias", &[HEAD], 0.25, 0.0);
    all(&mut w, "each.weight", &[HEADS, HEAD], 0.25, 1.0);
    all(&mut w, "each.bias", &[HEADS, HEAD], 0.25, 0.0);
    all(&mut w, "sinks.weight", &[HEADS], 1.0, 0.5);
    all(&mut w, "six.weight", &[6], 1.0, 0.5);
    for name in ["a", "b", "c"] {
        all(&mut w, &format!("{name}.weight"), &[WIDTH, WIDTH], 0.12, 0.0);
    }
    all(&mut w, "down.weight", &[96, WIDTH], 0.12, 0.0);
    all(&mut w, "router.weight", &[EXPERTS, WIDTH], 0.2, 0.0);
    // More to pick from than there are experts.
    all(&mut w, "wide_router.weight", &[EXPERTS + 2, WIDTH], 0.2, 0.0);
    // These experts have biases.
    all(&mut w, "gate.q8_0.bias", &[EXPERTS, INNER], 0.5, 0.0);
    all(&mut w, "out.bf16.bias", &[EXPERTS, WIDTH], 0.5, 0.0);
    all(&mut w, "odd.q4_k.bias", &[EXPERTS, 5], 0.5, 0.0);
    all(&mut w, "many.weight", &[71 * 32, WIDTH], 0.12, 0.0);
    for (name, format) in [
        ("codes", Format::Q4_0),
        ("others", Format::Q4_1),
        ("bytes", Format::Q8_0),
        ("halves", Format::F16),
    ] {
        let bytes = q(format, WIDTH as u64 + 1, WIDTH * WIDTH, 0.1);
        w.insert_bytes(&format!("{name}.weight"), format, &[WIDTH, WIDTH], bytes).unwrap();
    }
    for (name, outputs, inputs) in
        [("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("out", WIDTH, INNER), ("odd", 5, WIDTH)]
    {
        for &format in Format::all() {
            let name = format!("{name}.{}.weight", format.name().to_lowercase());
            let n = EXPERTS * outputs * inputs;
            let bytes = q(format, n as u64 + outputs as u64, n, 0.1);
            w.insert_bytes(&name, format, &[EXPERTS, outputs, inputs], bytes).unwrap();
        }
    }
    w
}

type B<'a, 'w> = &'a mut Builder<'w>;
type Build = fn(B<'_, '_>, NodeId) -> Result<NodeId>;
type BoxedBuild = Box<dyn Fn(B<'_, '_>, NodeId) -> Result<NodeId>>;

/// How a graph is made of rows of tokens.
pub struct Case {
    pub name: String,
    /// Whether a cache is between its rows and what is read of them.
    pub caches: bool,
    build: BoxedBuild,
}

impl Case {
    pub fn graph(&self, w: &MemoryWeights) -> Graph {
        let mut b = Builder::new(w);
        let x = b.embed("x").unwrap();
        let y = (self.build)(&mut b, x).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        b.output(y);
        let graph = b.finish();
        if self.name.ends_with("8 bits") {
            graph.with_caches(|_| DType::Q8_0).unwrap()
        } else {
            graph
        }
    }
}

fn heads(b: B<'_, '_>, x: NodeId) -> Result<NodeId> {
    b.heads(x, HEADS)
}

fn positive(b: B<'_, '_>, x: NodeId) -> Result<NodeId> {
    b.sigmoid(x)
}

/// Picks and their shares, as Mixtral has them.
fn route(b: B<'_, '_>, x: NodeId, k: usize) -> Result<(NodeId, NodeId)> {
    let logits = b.linear(x, "router")?;
    let shares = b.softmax(logits)?;
    let picks = b.top_k(shares, k)?;
    let picked = b.pick(shares, picks)?;
    Ok((picks, b.normalize(picked)?))
}

fn mixture(b: B<'_, '_>, x: NodeId, k: usize, format: &str) -> Result<NodeId> {
    let (picks, shares) = route(b, x, k)?;
    let gate = b.experts(x, picks, &format!("gate.{format}"))?;
    let up = b.experts(x, picks, &format!("up.{format}"))?;
    let gate = b.silu(gate)?;
    let y = b.mul(gate, up)?;
    let y = b.experts(y, picks, &format!("out.{format}"))?;
    let y = b.mix(y, shares)?;
    b.add(x, y)
}

/// With biases, a bounded gate, and gate and up by turns, as gpt-oss has them.
fn bounded_mixture(b: B<'_, '_>, x: NodeId) -> Result<NodeId> {
    let logits = b.linear(x, "router")?;
    let picks = b.top_k(logits, 3)?;
    let picked = b.pick(logits, picks)?;
    let shares = b.softmax(picked)?;
    let both = b.experts(x, picks, "gate.q8_0")?;
    let pairs = b.reshape(both, &[3, INNER / 2, 2])?;
    let (gate, up) = (b.slice(pairs, 0, 1)?, b.slice(pairs, 1, 1)?);
    let (gate, up) = (b.reshape(gate, &[3, INNER / 2])?, b.reshape(up, &[3, INNER / 2])?);
    let gate = b.unary(gate, UnaryKind::Clamp(f32::MIN, 0.4))?;
    let up = b.unary(up, UnaryKind::Clamp(-0.4, 0.4))?;
    let up = b.unary(up, UnaryKind::Shift(1.0))?;
    let gate = b.unary(gate, UnaryKind::GeluQuick)?;
    let y = b.mul(up, gate)?;
    let y = b.concat(&[y, up])?;
    let y = b.experts(y, picks, "out.bf16")?;
    b.mix(y, shares)
}

/// Attention over rows as queries, keys and values, with what few models add.
fn attention(
    b: B<'_, '_>,
    x: NodeId,
    (heads, kv): (usize, usize),
    window: Option<usize>,
    extras: AttendExtras<'_>,
) -> Result<NodeId> {
    let q = b.linear(x, "a")?;
    let (q, kv_rows) = (b.slice(q, 0, heads * HEAD)?, b.linear(x, "down")?);
    let k = b.slice(kv_rows, 0, kv * HEAD)?;
    let (q, k) = (b.heads(q, heads)?, b.heads(k, kv)?);
    let v = b.slice(x, 0, kv * HEAD)?;
    let v = b.heads(v, kv)?;
    let q = b.rope(q, RopeOptions::default())?;
    let options = AttendOptions { layer: 0, scale: 0.25, window, softcap: None };
    b.attend_with(q, k, v, options, extras)
}

/// Attention over products of its own, whose queries and values get a bias: a row of it, or a head's
/// for each head.
fn biased(b: B<'_, '_>, x: NodeId, each: bool) -> Result<NodeId> {
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        let y = b.linear(x, name)?;
        let bias = b.weight(if each { "grid" } else { "bias" })?;
        let y = if name != "b" && !each { b.add(y, bias)? } else { y };
        let y = b.heads(y, HEADS)?;
        made.push(if name != "b" && each { b.add(y, bias)? } else { y });
    }
    let q = b.rms_norm(made[0], "head", 1e-5)?;
    let (q, k) = (b.rope(q, RopeOptions::default())?, b.rope(made[1], RopeOptions::default())?);
    let options = AttendOptions { layer: 0, scale: 0.25, window: None, softcap: None };
    b.attend(q, k, made[2], options)
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    let mut add = |name: &str, build: BoxedBuild| {
        let caches = ["sinks", "slopes", "attention", "one head"].iter().any(|c| name.contains(c));
        all.push(Case { name: name.to_string(), caches, build });
    };
    let constants = [
        UnaryKind::Scale(-0.7),
        UnaryKind::Softcap(0.6),
        UnaryKind::Shift(0.3),
        UnaryKind::Clamp(-0.4, 0.6),
        UnaryKind::Clamp(-0.2, f32::INFINITY),
    ];
    for kind in UnaryKind::PLAIN.iter().map(|k| k.0).chain(constants) {
        add(
            &format!("{kind:?}"),
            Box::new(move |b, x| {
                let x = b.scale(x, 5.0)?;
                b.unary(x, kind)
            }),
        );
        add(
            &format!("{kind:?} after a product"),
            Box::new(move |b, x| {
                let x = b.linear(x, "a")?;
                b.unary(x, kind)
            }),
        );
        add(
            &format!("{kind:?} as a gate"),
            Box::new(move |b, x| {
                let (gate, up) = (b.linear(x, "a")?, b.linear(x, "b")?);
                let gate = b.unary(gate, kind)?;
                b.mul(gate, up)
            }),
        );
    }
    add(
        "over what is far from 0",
        Box::new(|b, x| {
            let x = b.unary(x, UnaryKind::Exp)?;
            b.unary(x, UnaryKind::Over(0.7))
        }),
    );
    for (kind, name) in BinaryKind::NAMED {
        add(
            &format!("{name} of rows"),
            Box::new(move |b, x| {
                let (y, bias) = (positive(b, x)?, b.weight("row")?);
                let y = b.binary(kind, x, y)?;
                b.binary(kind, y, bias)
            }),
        );
        add(
            &format!("{name} of products"),
            Box::new(move |b, x| {
                let (y, z) = (b.linear(x, "a")?, b.linear(x, "b")?);
                let (z, bias) = (positive(b, z)?, b.weight("row")?);
                let y = b.binary(kind, y, z)?;
                b.binary(kind, y, bias)
            }),
        );
        add(
            &format!("{name} of heads and a weight for them"),
            Box::new(move |b, x| {
                let (y, w) = (heads(b, x)?, b.weight("grid")?);
                b.binary(kind, y, w)
            }),
        );
        add(
            &format!("{name} of a product's heads and a weight for them"),
            Box::new(move |b, x| {
                let y = b.linear(x, "a")?;
                let (y, w) = (heads(b, y)?, b.weight("grid")?);
                let y = b.binary(kind, y, w)?;
                b.rms_norm(y, "head", 1e-5)
            }),
        );
    }
    let plain: [(&str, Build); 53] = [
        ("a weight of three dimensions", |b, x| {
            let x = b.slice(x, 7, 12)?;
            let (x, w) = (b.reshape(x, &[2, 3, 2])?, b.weight("cube")?);
            b.mul(x, w)
        }),
        ("rms norm without a weight", |b, x| b.rms_norm_plain(x, 1e-5)),
        ("rms norm without a weight before a product", |b, x| {
            let x = b.rms_norm_plain(x, 1e-5)?;
            b.linear(x, "a")
        }),
        ("rms norm of heads", |b, x| {
            let x = heads(b, x)?;
            b.rms_norm(x, "head", 1e-5)
        }),
        ("rms norm with a weight for each head", |b, x| {
            let x = heads(b, x)?;
            b.rms_norm(x, "each", 1e-5)
        }),
        ("rms norm with a weight for each head of a product", |b, x| {
            let y = b.linear(x, "a")?;
            let y = heads(b, y)?;
            b.rms_norm(y, "each", 1e-5)
        }),
        ("rms norm without a weight of a product's heads", |b, x| {
            let y = b.linear(x, "a")?;
            let y = heads(b, y)?;
            b.rms_norm_plain(y, 1e-5)
        }),
        ("layer norm", |b, x| b.layer_norm(x, None, 1e-5)),
        ("layer norm with a weight and a bias", |b, x| b.layer_norm(x, Some("row"), 1e-5)),
        ("layer norm with a weight", |b, x| b.layer_norm(x, Some("bias"), 1e-5)),
        ("layer norm before a product", |b, x| {
            let x = b.layer_norm(x, Some("row"), 1e-5)?;
            b.linear(x, "a")
        }),
        ("layer norm of heads", |b, x| {
            let x = heads(b, x)?;
            b.layer_norm(x, Some("head"), 1e-5)
        }),
        ("layer norm with a weight for each head", |b, x| {
            let x = heads(b, x)?;
            b.layer_norm(x, Some("each"), 1e-5)
        }),
        ("layer norm of a product's heads", |b, x| {
            let y = b.linear(x, "a")?;
            let y = heads(b, y)?;
            b.layer_norm(y, Some("head"), 1e-5)
        }),
        ("layer norm with a weight for each head of a product", |b, x| {
            let y = b.linear(x, "a")?;
            let y = heads(b, y)?;
            b.layer_norm(y, Some("each"), 1e-5)
        }),
        ("layer norm of far rows", |b, x| {
            let x = b.unary(x, UnaryKind::Shift(100.0))?;
            b.layer_norm(x, Some("row"), 1e-5)
        }),
        ("softmax", |b, x| {
            let x = b.scale(x, 9.0)?;
            b.softmax(x)
        }),
        ("softmax of heads", |b, x| {
            let x = b.scale(x, 9.0)?;
            let x = heads(b, x)?;
            b.softmax(x)
        }),
        ("softmax of a product", |b, x| {
            let x = b.linear(x, "down")?;
            b.softmax(x)
        }),
        ("normalize", |b, x| {
            let x = positive(b, x)?;
            b.normalize(x)
        }),
        ("normalize of heads", |b, x| {
            let x = positive(b, x)?;
            let x = heads(b, x)?;
            b.normalize(x)
        }),
        ("concat", |b, x| {
            let (y, z) = (b.slice(x, 3, 17)?, b.linear(x, "down")?);
            b.concat(&[y, x, z, y])
        }),
        ("concat of heads", |b, x| {
            let y = b.scale(x, 2.0)?;
            let (x, y) = (heads(b, x)?, heads(b, y)?);
            let y = b.slice(y, 5, 7)?;
            b.concat(&[y, x])
        }),
        ("slices of slices", |b, x| {
            let y = b.linear(x, "a")?;
            let y = b.softmax(y)?;
            let y = b.slice(y, 10, 200)?;
            let (u, v) = (b.slice(y, 3, 90)?, b.slice(y, 101, 90)?);
            let u = b.mul(u, v)?;
            b.slice(u, 1, 80)
        }),
        ("positions", |b, x| {
            let y = b.embed_positions("place")?;
            b.add(x, y)
        }),
        ("picks", |b, x| {
            let picks = b.top_k(x, 9)?;
            b.pick(x, picks)
        }),
        ("picks of a product", |b, x| {
            // Of what is nearly equal either may come first: the values say so little of it.
            let y = b.linear(x, "down")?;
            let picks = b.top_k(y, 64)?;
            b.pick(y, picks)
        }),
        ("picks among equals", |b, x| {
            let y = b.unary(x, UnaryKind::Clamp(-0.1, 0.1))?;
            let picks = b.top_k(y, 40)?;
            b.pick(x, picks)
        }),
        ("picks that are not there", |b, x| {
            let y = b.slice(x, 100, 156)?;
            let picks = b.top_k(x, 20)?;
            b.pick(y, picks)
        }),
        ("experts with biases, mixed", |b, x| {
            let logits = b.linear(x, "router")?;
            let picks = b.top_k(logits, 4)?;
            let rows = b.experts(x, picks, "out.bf16")?;
            let shares = b.pick(logits, picks)?;
            b.mix(rows, shares)
        }),
        ("experts with biases, each normed", |b, x| {
            let logits = b.linear(x, "router")?;
            let picks = b.top_k(logits, 4)?;
            let rows = b.experts(x, picks, "gate.q8_0")?;
            let rows = b.rms_norm_plain(rows, 1e-5)?;
            let (gate, up) = (b.slice(rows, 0, 128)?, b.slice(rows, 128, 128)?);
            b.mul(gate, up)
        }),
        ("mix", |b, x| {
            let y = heads(b, x)?;
            let w = b.slice(x, 50, HEADS)?;
            b.mix(y, w)
        }),
        ("experts that are not there", |b, x| {
            let logits = b.linear(x, "wide_router")?;
            let picks = b.top_k(logits, 5)?;
            b.experts(x, picks, "gate.f32")
        }),
        ("experts alone", |b, x| {
            let picks = b.top_k(x, 1)?;
            b.experts(x, picks, "gate.f32")
        }),
        ("experts of few outputs, two formats", |b, x| {
            let logits = b.linear(x, "router")?;
            let picks = b.top_k(logits, 2)?;
            let (y, z) = (b.experts(x, picks, "odd.q4_k")?, b.experts(x, picks, "gate.q6_k")?);
            b.concat(&[y, z])
        }),
        ("all experts", |b, x| mixture(b, x, EXPERTS, "f32")),
        ("experts with biases", bounded_mixture),
        ("sinks", |b, x| {
            let extras = AttendExtras { sinks: Some("sinks"), alibi: None };
            attention(b, x, (16, 2), None, extras)
        }),
        ("sinks and a window", |b, x| {
            let extras = AttendExtras { sinks: Some("sinks"), alibi: None };
            attention(b, x, (16, 4), Some(20), extras)
        }),
        ("slopes", |b, x| {
            let extras = AttendExtras { sinks: None, alibi: Some(8.0) };
            attention(b, x, (16, 2), None, extras)
        }),
        ("slopes of heads that are no power of two", |b, x| {
            let extras = AttendExtras { sinks: None, alibi: Some(8.0) };
            attention(b, x, (6, 3), None, extras)
        }),
        ("slopes and sinks", |b, x| {
            let extras = AttendExtras { sinks: Some("six"), alibi: Some(4.0) };
            attention(b, x, (6, 2), Some(70), extras)
        }),
        ("plain attention", |b, x| attention(b, x, (12, 4), None, AttendExtras::default())),
        ("plain attention over 8 bits", |b, x| {
            attention(b, x, (12, 4), None, AttendExtras::default())
        }),
        ("sinks, slopes and a window over 8 bits", |b, x| {
            let extras = AttendExtras { sinks: Some("six"), alibi: Some(8.0) };
            attention(b, x, (6, 1), Some(66), extras)
        }),
        ("attention of more heads than a block holds", |b, x| {
            let q = b.linear(x, "many")?;
            let (q, k) = (b.heads(q, 71)?, b.slice(x, 0, 32)?);
            let (k, v) = (b.heads(k, 1)?, b.slice(x, 32, 32)?);
            let v = b.heads(v, 1)?;
            let options = AttendOptions { layer: 0, scale: 0.2, window: Some(90), softcap: None };
            b.attend(q, k, v, options)
        }),
        ("attention of wide heads over 8 bits", |b, x| {
            let y = b.linear(x, "a")?;
            let (q, k) = (b.heads(y, 2)?, b.slice(x, 0, 128)?);
            let (k, v) = (b.heads(k, 1)?, b.slice(x, 128, 128)?);
            let v = b.heads(v, 1)?;
            let options = AttendOptions { layer: 0, scale: 0.1, window: None, softcap: Some(3.0) };
            b.attend(q, k, v, options)
        }),
        ("attention of odd heads over 8 bits", |b, x| {
            let x = b.slice(x, 0, 240)?;
            let x = b.heads(x, 3)?;
            let options = AttendOptions { layer: 0, scale: 0.1, window: None, softcap: None };
            b.attend(x, x, x, options)
        }),
        ("products of planes and of floats", |b, x| {
            let (y, z, v) = (b.linear(x, "codes")?, b.linear(x, "halves")?, b.linear(x, "bytes")?);
            let y = b.mul(y, z)?;
            b.add(y, v)
        }),
        ("a gate of other scales than what it is for", |b, x| {
            let (gate, up) = (b.linear(x, "codes")?, b.linear(x, "others")?);
            let gate = b.unary(gate, UnaryKind::Silu)?;
            b.mul(gate, up)
        }),
        ("attention of heads with biases", |b, x| biased(b, x, false)),
        ("attention of heads with a bias each", |b, x| biased(b, x, true)),
        ("one head", |b, x| {
            attention(b, x, (1, 1), None, AttendExtras { sinks: None, alibi: Some(8.0) })
        }),
    ];
    for (name, build) in plain {
        add(name, Box::new(build));
    }
    for &format in Format::all() {
        let format = format.name().to_lowercase();
        add(&format!("mixture in {format}"), Box::new(move |b, x| mixture(b, x, 2, &format)));
    }
    all
}
