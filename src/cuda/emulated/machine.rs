//! Memory, products and attention.

use crate::cuda::abi::*;
use crate::cuda::program::{Bases, Parameters};
use crate::graph::{BinaryKind, UnaryKind};
use half::{bf16, f16};
use std::collections::BTreeMap;

/// In a pair's place: its pick names no expert.
pub(super) const NO_EXPERT: u32 = 1 << 31;

pub(super) struct Machine {
    pub memory: Vec<u8>,
    /// Rows, columns and values of the matrices that begin at an address.
    pub matrices: BTreeMap<u64, (usize, usize, Vec<f32>)>,
    pub bases: Bases,
}

pub(super) fn unary(kind: u32, x: f32, c: f32, d: f32) -> f32 {
    let kind = match kind {
        0 => UnaryKind::Silu,
        1 => UnaryKind::Gelu,
        2 => UnaryKind::Relu,
        3 => UnaryKind::Sigmoid,
        4 => UnaryKind::Tanh,
        5 => UnaryKind::Scale(c),
        6 => UnaryKind::Softcap(c),
        7 => UnaryKind::GeluErf,
        8 => UnaryKind::GeluQuick,
        9 => UnaryKind::ReluSquared,
        10 => UnaryKind::Shift(c),
        11 => UnaryKind::Clamp(c, d),
        12 => UnaryKind::Exp,
        13 => UnaryKind::Softplus,
        14 => UnaryKind::Over(c),
        _ => panic!("function {kind}"),
    };
    kind.apply(x)
}

pub(super) fn binary(kind: u32, a: f32, b: f32) -> f32 {
    BinaryKind::NAMED[kind as usize].0.apply(a, b)
}

impl Machine {
    pub(super) fn word(&self, at: u64) -> u32 {
        let at = at as usize;
        u32::from_le_bytes(self.memory[at..at + 4].try_into().unwrap())
    }

    pub(super) fn get(&self, at: u64) -> f32 {
        f32::from_bits(self.word(at))
    }

    pub(super) fn set(&mut self, at: u64, v: f32) {
        self.memory[at as usize..][..4].copy_from_slice(&v.to_bits().to_le_bytes());
    }

    pub(super) fn half(&self, at: u64) -> f32 {
        f16::from_le_bytes(self.memory[at as usize..][..2].try_into().unwrap()).to_f32()
    }

    pub(super) fn matrix(&self, m: &Matrix, skip: u64) -> &(usize, usize, Vec<f32>) {
        let found = &self.matrices[&(m.data + skip)];
        assert_eq!((found.0, found.1), (m.rows as usize, m.cols as usize));
        found
    }

    pub(super) fn run(&mut self, p: &Parameters, grid: (u32, u32), shared: usize, n: usize) {
        match p {
            Parameters::Rows(p) => {
                assert_eq!(grid.1 as usize, n);
                for row in 0..grid.1 {
                    for block in 0..grid.0.min(p.blocks) {
                        let part = if p.fold > 1 { block } else { 0 };
                        self.rows(p, u64::from(row * p.fold + part), block, shared);
                    }
                }
            }
            Parameters::Gemv(p) => {
                assert_eq!(n, 1);
                let x = self.normed(p.x, p.cols, p.norm, p.eps);
                self.product(0, &x, &p.domain[..p.domains as usize], &p.part, 0);
            }
            Parameters::Several(p) => {
                assert!((2..=SEVERAL).contains(&n));
                for row in 0..n as u64 {
                    let at = p.x + 4 * row * u64::from(p.stride);
                    let x = self.normed(at, p.cols, p.norm, p.eps);
                    self.product(row, &x, &p.domain[..p.domains as usize], &p.part, 0);
                }
            }
            Parameters::Picks(p) => self.sort(p, n),
            Parameters::Gemm(p) => {
                // Where rows are, whose weights they meet, and where what they come to goes.
                let all: Vec<(u64, u32, u64)> = match p.picks {
                    0 => (0..n as u64).map(|row| (row, 0, row)).collect(),
                    _ => self.sorted(p, grid.0),
                };
                for (row, expert, to) in all {
                    let at = |c: u32| 2 * (row * u64::from(p.stride) + u64::from(c));
                    let order = if p.part[0].lo == 0 { EIGHTS } else { FOURS };
                    let tiles = SplitTiles { at: p.high, sums: p.sums, groups: p.groups, order };
                    let mut x: Vec<f32> = (0..p.stride)
                        .map(|c| match p.groups {
                            0 => self.bf16(p.high + at(c)) + self.bf16(p.low + at(c)),
                            _ => self.split_at(&tiles, row, u64::from(c)),
                        })
                        .collect();
                    // What is added to weights goes with those.
                    assert_eq!(p.sums != 0, p.groups != 0 && p.part.iter().any(|m| m.min != 0));
                    for (unit, x) in x.chunks(32).enumerate().filter(|_| p.sums != 0) {
                        let at = sums_place(&tiles, row, unit as u64);
                        for (at, n) in [(at, 32), (at + 128, 16)] {
                            let sum: f32 = x[..n].iter().sum();
                            let most: f32 = x[..n].iter().map(|v| v.abs()).sum();
                            let there = self.bf16(at) + self.bf16(at + 2);
                            assert!((there - sum).abs() <= 2e-5 * most, "{there}, not {sum}");
                        }
                    }
                    if p.squares != 0 {
                        let n = x.len() / SQUARED;
                        let at = p.squares + 4 * row * squares_stride(x.len()) as u64;
                        let sum: f32 = (0..n as u64).map(|i| self.get(at + 4 * i)).sum();
                        let factor = 1.0 / (sum / x.len() as f32 + p.eps).sqrt();
                        x.iter_mut().for_each(|v| *v *= factor);
                    }
                    let at = self.memory.len() as u64;
                    let mut domains = p.domain;
                    let e = &mut domains[0].epilogue;
                    let (out, stride) = (e.out, e.out_stride);
                    if p.left.at != 0 {
                        // A row of its own, which is then split.
                        self.memory.resize(at as usize + 4 * stride as usize, 0xff);
                        (e.out, e.out_stride) = (at, 0);
                    }
                    self.product(to, &x, &domains[..p.domains as usize], &p.part, expert);
                    assert!(p.norm == 0 || p.left.at != 0);
                    let mut x = Vec::new();
                    for e in 0..if p.left.at == 0 { 0 } else { u64::from(stride) } {
                        let v = self.get(at + 4 * e);
                        let by = if p.norm == 0 { 1.0 } else { self.get(p.norm + 4 * e) };
                        self.split(&p.left, row, e, v * by);
                        x.push(v);
                        if out != 0 {
                            self.set(out + 4 * (row * u64::from(stride) + e), v);
                        }
                    }
                    self.memory.truncate(at as usize);
                    if p.norm != 0 {
                        self.leave_squares(p.left_squares, row, x.len(), 0, &x);
                    }
                }
            }
            Parameters::Experts(p) => {
                assert_eq!(grid.0, n as u32 * p.picks);
                if p.route.logits != 0 {
                    assert_eq!((n, p.ids), (1, p.route.ids));
                    self.route(&p.route, p.picks as usize);
                }
                for block in 0..u64::from(grid.0) {
                    let (row, pick) = (block / u64::from(p.picks), block % u64::from(p.picks));
                    let id = self.word(p.ids + 4 * (row * u64::from(p.id_row) + pick));
                    let x = p.x + 4 * (row * u64::from(p.x_row) + pick * u64::from(p.x_pick));
                    let x = self.normed(x, p.cols, p.norm, p.eps);
                    let out =
                        p.out + 4 * (row * u64::from(p.out_row) + pick * u64::from(p.out_pick));
                    let of = |m: &Self, i: usize, o: u64| {
                        if id >= p.experts {
                            return 0.0;
                        }
                        let (_, cols, w) = m.matrix(&p.part[i], u64::from(id) * p.bytes[i]);
                        dot(&x, &w[o as usize * cols..][..*cols])
                    };
                    for i in 0..if p.gated == 0 { p.parts as usize } else { 1 } {
                        for o in 0..u64::from(p.part[i].rows) {
                            let mut v = of(self, i, o);
                            if p.gated != 0 {
                                v = unary(p.kind, v, p.c, p.d) * of(self, 1, o);
                            }
                            self.set(out + 4 * (u64::from(p.column[i]) + o), v);
                        }
                    }
                    let panels: u32 =
                        p.part[..p.parts as usize].iter().map(|m| m.rows.div_ceil(4)).sum();
                    assert_eq!(p.first[p.parts as usize], panels);
                }
            }
            Parameters::Attend(p) => self.attend(p, n),
            Parameters::AttendOne(p) => self.attend_one(p),
            Parameters::AttendFew(p) => self.attend_few(p, n),
            Parameters::Chain(p) => {
                for link in &p.links {
                    self.run(&link.parameters, link.shape.grid, link.shape.shared as usize, n);
                }
            }
            Parameters::Sample(_) => {}
        }
    }

    /// A row behind its norm, if it has one.
    fn normed(&self, at: u64, cols: u32, weights: u64, eps: f32) -> Vec<f32> {
        let mut x: Vec<f32> = (0..cols).map(|c| self.get(at + 4 * u64::from(c))).collect();
        if weights != 0 {
            self.norm(&mut x, weights, eps);
        }
        x
    }

    fn norm(&self, x: &mut [f32], weights: u64, eps: f32) {
        let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for (c, v) in x.iter_mut().enumerate() {
            *v *= scale * self.get(weights + 4 * c as u64);
        }
    }

    /// Leaves what columns of a row of `cols`, from `col` on, come to squared, 64 of them at a time.
    pub(super) fn leave_squares(&mut self, at: u64, row: u64, cols: usize, col: u64, x: &[f32]) {
        let at = at + 4 * (row * squares_stride(cols) as u64 + col / SQUARED as u64);
        for (i, x) in x.chunks(SQUARED).enumerate() {
            self.set(at + 4 * i as u64, x.iter().map(|v| v * v).sum());
        }
    }

    fn bf16(&self, at: u64) -> f32 {
        let at = at as usize;
        let bits = [self.memory[at], self.memory[at + 1]];
        f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16)
    }

    /// Leaves a number as two bf16, so many bytes apart.
    fn leave_halves(&mut self, at: u64, apart: u64, v: f32) {
        let (high, low) = halves(v);
        for (at, part) in [(at, high), (at + apart, low)] {
            self.memory[at as usize..][..2].copy_from_slice(&part.to_le_bytes());
        }
    }

    /// An element of a row in tiles.
    fn split_at(&self, to: &SplitTiles, row: u64, e: u64) -> f32 {
        let at = to.at + tile_place(to, row, e);
        self.bf16(at) + self.bf16(at + 1024)
    }

    /// Leaves an element of a row in tiles, and behind the last of a unit what its inputs come to.
    pub(super) fn split(&mut self, to: &SplitTiles, row: u64, e: u64, v: f32) {
        self.leave_halves(to.at + tile_place(to, row, e), 1024, v);
        if to.sums != 0 && e % 32 == 31 {
            let sum = |n| (e - 31..).take(n).map(|e| self.split_at(to, row, e)).sum();
            let (all, first) = (sum(32), sum(16));
            let at = sums_place(to, row, e / 32);
            self.leave_halves(at, 2, all);
            self.leave_halves(at + 128, 2, first);
        }
    }

    pub(super) fn place(&self, o: &Operand, row: u64, col: u64) -> u64 {
        match o.place {
            ROWS | FRESH => o.at + 4 * (row * u64::from(o.n) + col),
            VECTOR => o.at + 4 * col,
            _ => panic!("a register"),
        }
    }

    /// Picks experts, and makes shares of what they were picked by.
    fn route(&mut self, r: &Route, picks: usize) {
        let shares = |x: &mut Vec<f32>, kind: u32| {
            if kind == SOFTMAX {
                let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                x.iter_mut().for_each(|v| *v = (*v - most).exp());
            }
            let sum: f32 = if kind == AS_IT_IS { 1.0 } else { x.iter().sum() };
            x.iter_mut().for_each(|v| *v /= sum);
        };
        let mut x: Vec<f32> = (0..r.count).map(|i| self.get(r.logits + 4 * u64::from(i))).collect();
        shares(&mut x, r.before);
        let mut ids = vec![0; picks];
        crate::graph::op::top_k(&x, &mut ids);
        let mut of: Vec<f32> = ids.iter().map(|&id| x[id as usize]).collect();
        shares(&mut of, r.after);
        for (i, (id, of)) in (0..).zip(ids.into_iter().zip(of)) {
            self.set(r.ids + 4 * i, f32::from_bits(id));
            self.set(r.shares + 4 * i, of);
        }
    }

    /// Sorts picks: pairs of an expert in turn, from a multiple of eight on.
    fn sort(&mut self, p: &Picks, n: usize) {
        assert_eq!(p.rows as usize, n);
        let pair = |i: u32| p.ids + 4 * u64::from(i / p.picks * p.id_row + i % p.picks);
        let mut of = vec![Vec::new(); p.experts as usize + 1];
        for i in 0..p.rows * p.picks {
            of[self.word(pair(i)).min(p.experts) as usize].push(i);
        }
        let (mut tiles, mut place) = (Vec::new(), 0u32);
        for (expert, pairs) in (0..).zip(of) {
            for (i, pair) in (0..).zip(&pairs) {
                let none = if expert == p.experts { NO_EXPERT } else { 0 };
                self.set(p.pairs + 4 * u64::from(place + i), f32::from_bits(*pair));
                let to = f32::from_bits((place + i) | none);
                self.set(p.places + 4 * u64::from(*pair), to);
            }
            for (i, some) in (0..).zip(pairs.chunks(p.tile as usize)) {
                let named = expert.min(p.experts - 1);
                tiles.push([named, place + i * p.tile, some.len() as u32, 0]);
            }
            place += (pairs.len() as u32).next_multiple_of(8);
        }
        assert!(tiles.len() <= p.most as usize);
        tiles.resize(p.most as usize, [0; 4]);
        for (i, word) in (0..).zip(tiles.into_iter().flatten()) {
            self.set(p.tiles + 4 * i, f32::from_bits(word));
        }
    }

    /// The places of tiles, their experts and their pairs.
    fn sorted(&self, p: &Gemm, tiles: u32) -> Vec<(u64, u32, u64)> {
        let tile = |i| [0, 1, 2].map(|k| self.word(p.tiles + 4 * (u64::from(i) * 4 + k)));
        let places = |[expert, first, rows]: [u32; 3]| {
            assert!(rows <= p.tile && first + rows <= 8 * p.groups);
            (first..first + rows).map(move |at| (u64::from(at), expert))
        };
        let all = (0..tiles).map(tile).flat_map(places);
        all.map(|(at, expert)| (at, expert, u64::from(self.word(p.pairs + 4 * at)))).collect()
    }

    fn product(&mut self, row: u64, x: &[f32], domains: &[Domain], parts: &[Matrix], expert: u32) {
        for d in domains {
            let e = &d.epilogue;
            for col in 0..u64::from(parts[d.part[0] as usize].rows) {
                let mut regs = [0.0f32; MAX_REGISTERS];
                for (i, &part) in d.part[..d.parts as usize].iter().enumerate() {
                    let part = &parts[part as usize];
                    let (_, cols, w) = self.matrix(part, u64::from(expert) * bytes(part));
                    regs[i] = dot(&x[..*cols], &w[col as usize * cols..][..*cols]);
                }
                let out = e.out + 4 * (row * u64::from(e.out_stride) + col);
                match e.form {
                    STORE => self.set(out, regs[0]),
                    RESIDUAL => {
                        let early = self.get(self.place(&e.residual, row, col));
                        self.set(out, early + regs[0]);
                    }
                    GATED => self.set(out, unary(e.kind, regs[0], e.c, e.d) * regs[1]),
                    _ => {
                        for op in &e.ops[..e.count as usize] {
                            let read = |o: &Operand| match o.place {
                                REGISTER => regs[o.n as usize],
                                _ => self.get(self.place(o, row, col)),
                            };
                            let a = read(&op.a);
                            match op.what {
                                PUT => self.set(self.place(&op.b, row, col), a),
                                UNARY => {
                                    let d = f32::from_bits(op.b.n);
                                    regs[op.to as usize] = unary(op.kind, a, op.c, d);
                                }
                                _ => regs[op.to as usize] = binary(op.kind, a, read(&op.b)),
                            }
                        }
                    }
                }
            }
        }
    }

    /// Makes the row's own heads, and attends as the other kernel does.
    fn attend_one(&mut self, p: &AttendOne) {
        let many = Attend {
            out: p.out,
            keys: p.keys,
            values: p.values,
            positions: p.positions,
            slots: p.slots,
            sinks: p.sinks,
            heads: p.kv_heads * p.group,
            kv_heads: p.kv_heads,
            dim: p.dim,
            context: p.context,
            window: p.window,
            scale: p.scale,
            softcap: p.softcap,
            share: 1,
            ..Attend::default()
        };
        self.attend_few(&AttendFew { many, q: p.q, k: p.k, v: p.v }, 1);
    }

    /// Makes the heads of all rows, and attends as the other kernel does.
    fn attend_few(&mut self, p: &AttendFew, n: usize) {
        let (many, dim, mut q) = (&p.many, p.many.dim as usize, Vec::new());
        let kv_heads = many.kv_heads / many.share;
        for row in 0..n as u64 {
            let position = self.word(many.positions + 4 * row);
            let slot = u64::from(self.word(many.slots + 4 * row));
            let of = |h: &Heads| Heads { raw: h.raw + 4 * row * u64::from(h.stride), ..*h };
            q.extend((0..many.heads).flat_map(|n| self.head(&of(&p.q), n, dim, position)));
            for (h, cache) in [(&p.k, many.keys), (&p.v, many.values)] {
                for n in (0..kv_heads).filter(|_| h.raw != 0) {
                    let kept = slot * u64::from(kv_heads) + u64::from(n);
                    let kept = kept * u64::from(many.context) + u64::from(position);
                    for (d, v) in self.head(&of(h), n, dim, position).into_iter().enumerate() {
                        let at = cache as usize + 2 * (kept as usize * dim + d);
                        self.memory[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
                    }
                }
            }
        }
        let at = self.memory.len() as u64;
        self.memory.resize(self.memory.len() + 4 * q.len(), 0xff);
        q.iter().enumerate().for_each(|(i, &v)| self.set(at + 4 * i as u64, v));
        self.attend(&Attend { q: at, q_stride: many.heads * many.dim, ..*many }, n);
        self.memory.truncate(at as usize);
    }

    fn head(&self, h: &Heads, n: u32, dim: usize, position: u32) -> Vec<f32> {
        let at = |base: u64, i: usize| base + 4 * i as u64;
        let first = n as usize * dim;
        let mut x: Vec<f32> = (0..dim).map(|d| self.get(at(h.raw, first + d))).collect();
        for (d, v) in x.iter_mut().enumerate().filter(|_| h.bias != 0) {
            *v += self.get(at(h.bias, first + d));
        }
        if h.norm != 0 {
            self.norm(&mut x, h.norm, h.eps);
        }
        let pairs = if h.turns == 0 { 0 } else { h.turn as usize / 2 };
        for i in 0..pairs {
            let turn = h.turns + 8 * (u64::from(position) * pairs as u64 + i as u64);
            let (cos, sin) = (self.get(turn), self.get(turn + 4));
            let (a, b) = if h.halves == 1 { (i, i + pairs) } else { (2 * i, 2 * i + 1) };
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
        x
    }

    fn attend(&mut self, p: &Attend, n: usize) {
        let (dim, group) = (u64::from(p.dim), p.heads / p.kv_heads);
        for row in 0..n as u64 {
            let position = self.word(p.positions + 4 * row);
            let slot = u64::from(self.word(p.slots + 4 * row));
            let first = if p.window > 0 { (position + 1).saturating_sub(p.window) } else { 0 };
            for head in 0..p.heads {
                let kv = slot * u64::from(p.kv_heads / p.share) + u64::from(head / group / p.share);
                let at = |m: &Machine, kept: u64, scales: u64, position: u32, d: u64| {
                    let row = kv * u64::from(p.context) + u64::from(position);
                    if scales == 0 {
                        return m.half(kept + 2 * (row * dim + d));
                    }
                    let code = m.memory[(kept + row * dim + d) as usize].cast_signed();
                    f32::from(code) * m.half(scales + 2 * (row * dim.div_ceil(32) + d / 32))
                };
                let key = |m: &Machine, n, d| at(m, p.keys, p.key_scales, n, d);
                let value = |m: &Machine, n, d| at(m, p.values, p.value_scales, n, d);
                let q = p.q + 4 * (row * u64::from(p.q_stride) + u64::from(head) * dim);
                let score = |position_of_key: u32| {
                    let s: f32 =
                        (0..dim).map(|d| self.get(q + 4 * d) * key(self, position_of_key, d)).sum();
                    let s = s * p.scale;
                    let s = if p.softcap > 0.0 { p.softcap * (s / p.softcap).tanh() } else { s };
                    let (i, all) = (head as usize, p.heads as usize);
                    let slope = if p.alibi > 0.0 {
                        crate::graph::op::alibi_slope(p.alibi, i, all)
                    } else {
                        0.0
                    };
                    s - slope * (position - position_of_key) as f32
                };
                let scores: Vec<f32> = (first..=position).map(score).collect();
                let sink = if p.sinks == 0 {
                    f32::NEG_INFINITY
                } else {
                    self.get(p.sinks + 4 * u64::from(head))
                };
                let most = scores.iter().copied().fold(sink, f32::max);
                let total: f32 =
                    scores.iter().map(|s| (s - most).exp()).sum::<f32>() + (sink - most).exp();
                for d in 0..dim {
                    let v: f32 = (first..=position)
                        .zip(&scores)
                        .map(|(k, s)| (s - most).exp() / total * value(self, k, d))
                        .sum();
                    let e = u64::from(head) * dim + d;
                    if p.out != 0 {
                        self.set(p.out + 4 * (row * u64::from(p.out_stride) + e), v);
                    }
                    if p.left.at != 0 {
                        self.split(&p.left, row, e, v);
                    }
                }
            }
        }
    }
}

/// Two bf16 that add up to a number, or nearly so.
pub(super) fn halves(v: f32) -> (bf16, bf16) {
    let high = bf16::from_f32(v);
    (high, bf16::from_f32(v - high.to_f32()))
}

/// Where the high part of an element of a row lies in tiles: by the lane `q` of four and the instruction
/// that take it, which is its `j`th of four.
fn tile_place(to: &SplitTiles, row: u64, e: u64) -> u64 {
    let (block, e) = (e / 128, e % 128);
    let (q, instruction) = match to.order {
        FOURS => (e % 16 / 4, e / 16),
        _ => (e % 32 / 8, e / 32 * 2 + e % 8 / 4),
    };
    let j = e % 4;
    let column = instruction % 4 * 16 + 2 * q + j % 2 + 8 * (j / 2);
    let group = (2 * block + instruction / 4) * u64::from(to.groups) + row / 8;
    let piece = (column / 8) ^ (row % 8);
    group * 2048 + row % 8 * 128 + piece * 16 + column % 8 * 2
}

/// Where the sum of a row over a unit lies.
fn sums_place(to: &SplitTiles, row: u64, unit: u64) -> u64 {
    to.sums
        + (unit / 4 * u64::from(to.groups) + row / 8) * SUMS as u64
        + row % 8 * 16
        + unit % 4 * 4
}

/// Bytes of a whole matrix.
fn bytes(m: &Matrix) -> u64 {
    u64::from(m.rows.div_ceil(PANEL as u32)) * u64::from(m.panel_bytes)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}
