//! Lists of operations on rows.

use super::machine::{Machine, NO_EXPERT, binary, halves, unary};
use crate::cuda::abi::*;
use half::f16;
use std::collections::BTreeSet;

impl Machine {
    pub(super) fn rows(&mut self, p: &RowList, row: u64, block: u32, shared: usize) {
        let jobs = &p.job[..p.jobs as usize];
        let job = jobs.iter().rev().find(|j| block >= j.first_block).unwrap();
        let col = u64::from((block - job.first_block) * job.unit);
        // What was not written is not a number that anything should read.
        let mut regs = vec![f32::from_bits(0x7fc0_dead); shared / 4];
        for op in &p.op[job.op as usize..(job.op + job.ops) as usize] {
            let len = op.len as usize;
            let (n0, n1, n2) = (op.n0 as usize, op.n1 as usize, op.n2 as usize);
            let seen = std::cell::RefCell::new(BTreeSet::new());
            let read = |m: &Machine, regs: &[f32], o: &Operand, e: usize| match o.place {
                REGISTER => {
                    seen.borrow_mut().insert(o.n as usize * FOUR + e);
                    regs[o.n as usize * FOUR + e]
                }
                _ => m.get(m.place(o, row, col) + 4 * e as u64),
            };
            let a = |m: &Machine, regs: &[f32], e: usize| read(m, regs, &op.a, e);
            let mut out: Vec<(usize, f32)> = Vec::new();
            match op.what {
                R_EMBED => {
                    let table = &p.table[op.kind as usize];
                    for e in 0..len {
                        let first = col as usize + e;
                        let id = match op.n0 {
                            TOKENS => self.word(p.tokens + 4 * row),
                            POSITIONS => self.word(p.positions + 4 * row),
                            PICKS => a(self, &regs, e / n1).to_bits(),
                            _ => (first / n1) as u32,
                        };
                        let (which, id) = (id / table.rows, (id % table.rows) as usize);
                        let there = op.n0 == ALL || which == 0;
                        let v = if there {
                            let (_, cols, w) = self.matrix(table, op.aux * u64::from(which));
                            w[id * cols + first % n1]
                        } else {
                            0.0
                        };
                        out.push((e, v));
                    }
                }
                R_SELECT => {
                    let from = u64::from(self.word(p.outs + 4 * row));
                    for e in 0..len {
                        let at = op.a.at + 4 * (from * u64::from(op.a.n) + e as u64);
                        out.push((e, self.get(at)));
                    }
                }
                R_NORM if op.kind & FACTORED != 0 => {
                    let x: Vec<f32> = (0..len).map(|e| a(self, &regs, e)).collect();
                    self.leave_squares(op.aux2, row, n0, col, &x);
                    let weight = |e: usize| self.get(op.aux + 4 * (col + e as u64));
                    out.extend(x.iter().enumerate().map(|(e, v)| (e, v * weight(e))));
                }
                R_NORM => {
                    assert_eq!(len % n0, 0);
                    for h in (0..len).step_by(n0) {
                        let x: Vec<f32> = (h..h + n0).map(|e| a(self, &regs, e)).collect();
                        let sum: f32 = if op.kind & 1 != 0 { x.iter().sum() } else { 0.0 };
                        let mean = sum / n0 as f32;
                        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n0 as f32;
                        for (i, v) in x.iter().enumerate() {
                            let e = if op.kind & 2 != 0 { col + (h + i) as u64 } else { i as u64 };
                            let mut v = (v - mean) / (var + op.c).sqrt();
                            if op.aux != 0 {
                                v *= self.get(op.aux + 4 * e);
                            }
                            if op.aux2 != 0 {
                                v += self.get(op.aux2 + 4 * e);
                            }
                            out.push((h + i, v));
                        }
                    }
                }
                R_SHARES => {
                    assert_eq!(len % n0, 0);
                    for h in (0..len).step_by(n0) {
                        let mut x: Vec<f32> = (h..h + n0).map(|e| a(self, &regs, e)).collect();
                        if op.kind == 1 {
                            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                            x.iter_mut().for_each(|v| *v = (*v - most).exp());
                        }
                        let sum: f32 = x.iter().sum();
                        out.extend(x.iter().enumerate().map(|(i, v)| (h + i, v / sum)));
                    }
                }
                R_TOP_K => {
                    let x: Vec<f32> = (0..n0).map(|e| a(self, &regs, e)).collect();
                    let mut picks = vec![0; len];
                    crate::graph::op::top_k(&x, &mut picks);
                    out.extend(picks.iter().enumerate().map(|(i, &p)| (i, f32::from_bits(p))));
                }
                R_PICK => {
                    for e in 0..len {
                        let id = read(self, &regs, &op.b, e).to_bits();
                        out.push((e, if id < op.n0 { a(self, &regs, id as usize) } else { 0.0 }));
                    }
                }
                R_MIX => {
                    for e in 0..len {
                        // Weights are those of all columns.
                        let by = |k: usize| match op.b.place {
                            REGISTER => read(self, &regs, &op.b, k),
                            _ => self.get(self.place(&op.b, row, 0) + 4 * k as u64),
                        };
                        let part = |k: usize| by(k) * a(self, &regs, k * n1 + e);
                        out.push((e, (0..n0).map(part).sum()));
                    }
                }
                R_JOIN => {
                    for e in 0..len {
                        out.push((e / n1 * n2 + n0 + e % n1, a(self, &regs, e)));
                    }
                }
                R_ROPE => {
                    let half = n1 / 2;
                    let position = u64::from(self.word(p.positions + 4 * row));
                    for e in 0..len {
                        let (h, mut v) = (e % n0, a(self, &regs, e));
                        if h < n1 {
                            let halves = op.kind == 1;
                            let first = if halves { h < half } else { h % 2 == 0 };
                            let pair = if halves { h % half } else { h / 2 };
                            let away = if halves { half } else { 1 };
                            let turn = op.aux + 8 * (position * half as u64 + pair as u64);
                            let (cos, sin) = (self.get(turn), self.get(turn + 4));
                            v = if first {
                                v * cos - a(self, &regs, e + away) * sin
                            } else {
                                a(self, &regs, e - away) * sin + v * cos
                            };
                        }
                        out.push((e, v));
                    }
                }
                R_UNARY => {
                    for e in 0..len {
                        let d = f32::from_bits(op.b.n);
                        out.push((e, unary(op.kind, a(self, &regs, e), op.c, d)));
                    }
                }
                R_BINARY => {
                    for e in 0..len {
                        let b = read(self, &regs, &op.b, e);
                        out.push((e, binary(op.kind, a(self, &regs, e), b)));
                    }
                }
                R_SLICE => {
                    out.extend((0..len).map(|e| (e, a(self, &regs, e / n1 * n2 + n0 + e % n1))));
                }
                R_PUT => {
                    let values: Vec<f32> = (0..len).map(|e| a(self, &regs, e)).collect();
                    let at = self.place(&op.b, row, col);
                    for (e, v) in values.into_iter().enumerate() {
                        self.set(at + 4 * e as u64, v);
                    }
                }
                R_STORE => {
                    let position = u64::from(self.word(p.positions + 4 * row));
                    let slot = u64::from(self.word(p.slots + 4 * row));
                    if op.kind == 1 {
                        let groups = n0.div_ceil(32);
                        for h in 0..len / n0 {
                            let head = col as usize / n0 + h;
                            let kept = (slot * u64::from(op.n2) + head as u64) * u64::from(op.n1)
                                + position;
                            for g in 0..groups {
                                let end = (32 * g + 32).min(n0);
                                let x: Vec<f32> =
                                    (32 * g..end).map(|d| a(self, &regs, h * n0 + d)).collect();
                                let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                                let scale = f16::from_f32(most / 127.0);
                                let at = op.aux + 2 * (kept * groups as u64 + g as u64);
                                self.memory[at as usize..][..2]
                                    .copy_from_slice(&scale.to_le_bytes());
                                for (i, v) in x.iter().enumerate() {
                                    let code = (v / scale.to_f32()).round_ties_even() as i8;
                                    let at = op.aux2 + kept * n0 as u64 + (32 * g + i) as u64;
                                    self.memory[at as usize] = code.cast_unsigned();
                                }
                            }
                        }
                        continue;
                    }
                    for e in 0..len {
                        let (head, d) = ((col as usize + e) / n0, (col as usize + e) % n0);
                        let at = (slot * u64::from(op.n2) + head as u64) * u64::from(op.n1);
                        let at = op.aux2 + 2 * ((at + position) * n0 as u64 + d as u64);
                        let v = f16::from_f32(a(self, &regs, e)).to_le_bytes();
                        self.memory[at as usize..][..2].copy_from_slice(&v);
                    }
                }
                R_SPLIT => {
                    for e in 0..n0 {
                        let v = if e < len { a(self, &regs, e) } else { 0.0 };
                        let e = e + col as usize;
                        if op.kind != PLAIN_ROWS {
                            let (at, sums) = (op.aux, op.aux2);
                            let to = SplitTiles { at, sums, groups: op.n1, order: op.kind };
                            for i in 0..u64::from(op.n2) {
                                let place = self.word(op.b.at + 4 * (row * n2 as u64 + i));
                                let v = if place & NO_EXPERT == 0 { v } else { 0.0 };
                                self.split(&to, u64::from(place & !NO_EXPERT), e as u64, v);
                            }
                            if op.n2 == 0 {
                                self.split(&to, row, e as u64, v);
                            }
                            continue;
                        }
                        let (high, low) = halves(v);
                        let at = 2 * (row as usize * n0 + e);
                        for (to, part) in [(op.aux, high), (op.aux2, low)] {
                            self.memory[to as usize + at..][..2]
                                .copy_from_slice(&part.to_le_bytes());
                        }
                    }
                }
                what => panic!("operation {what}"),
            }
            // Threads do not wait for each other within an operation: each may write over what it
            // alone reads.
            let alone = matches!(op.what, R_UNARY | R_BINARY | R_NORM | R_SHARES);
            let same = |o: &Operand| o.place != REGISTER || o.n == op.to;
            let seen = seen.into_inner();
            for (e, v) in out {
                let at = op.to as usize * FOUR + e;
                let safe = alone && (same(&op.a) || op.what == R_BINARY && same(&op.b));
                assert!(safe || !seen.contains(&at), "{op:?} writes over what it reads");
                regs[at] = v;
            }
        }
    }
}
