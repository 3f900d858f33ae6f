#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::cpu::pool::{Pool, Worker};
use crate::graph::DType;
use crate::graph::op::alibi_slope;
use half::f16;

/// Greatest difference from attention in f64 over the same cache, for values within 1.
const ERROR: f64 = 2e-6;

struct Cache {
    kv: KvLayout,
    keys: Vec<u16>,
    values: Vec<u16>,
    /// What was stored, `[slot][position][head][dim]`, as the cache keeps it.
    stored: [Vec<f32>; 2],
    isa: Isa,
}

fn number(a: usize, b: usize) -> f32 {
    let mut x = (a as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (b as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

const KEPT: [DType; 2] = [DType::F16, DType::Q8_0];

/// What the format says is left of a head.
fn rounded(x: &[f32], dtype: DType) -> Vec<f32> {
    if dtype == DType::F16 {
        return x.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    }
    let group = |x: &[f32]| {
        let most = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let scale = f16::from_f32(most / 127.0).to_f32();
        let code = |x: f32| (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
        x.iter().map(|&x| f32::from(code(x)) * scale).collect::<Vec<f32>>()
    };
    x.chunks(32).flat_map(group).collect()
}

impl Cache {
    /// Every half, or every scale, a NaN until something is stored.
    fn poisoned(
        isa: Isa,
        slots: usize,
        context: usize,
        heads: usize,
        dim: usize,
        dtype: DType,
    ) -> Cache {
        let kv = KvLayout::new(context, heads, dim, dtype).unwrap();
        let empty = || vec![0.0; slots * context * heads * dim];
        let (keys, values) =
            (vec![0x7e55; slots * kv.key_bytes() / 2], slots * kv.value_bytes() / 2);
        Cache { kv, keys, values: vec![0xfe01; values], stored: [empty(), empty()], isa }
    }

    fn store(&mut self, slot: usize, position: usize) {
        let KvLayout { context, kv_heads, dim, .. } = self.kv;
        for head in 0..kv_heads {
            let at = ((slot * context + position) * kv_heads + head) * dim;
            let k: Vec<f32> = (0..dim).map(|d| 3.0 * number(at + d, 1)).collect();
            let v: Vec<f32> = (0..dim).map(|d| number(at + d, 2)).collect();
            let dtype = if self.kv.q8 { DType::Q8_0 } else { DType::F16 };
            self.stored[0][at..at + dim].copy_from_slice(&rounded(&k, dtype));
            self.stored[1][at..at + dim].copy_from_slice(&rounded(&v, dtype));
            let (keys, values) = (self.keys.as_mut_ptr().cast(), self.values.as_mut_ptr().cast());
            // SAFETY: the buffers hold every slot.
            unsafe {
                self.kv.store_key(self.isa, keys, slot, position, head, k.as_ptr());
                self.kv.store_value(self.isa, values, slot, position, head, v.as_ptr());
            }
        }
    }
}

fn queries(heads: usize, dim: usize, rows: &[(u32, u32)]) -> Vec<f32> {
    let row = |&(slot, position): &(u32, u32)| {
        let row = (slot as usize + 1) << 40 | (position as usize) << 20;
        (0..heads * dim).map(move |i| number(row + i, 3))
    };
    rows.iter().flat_map(row).collect()
}

/// Attention of rows `(slot, position)` on `threads` workers.
fn attend(
    cache: &Cache,
    op: &Attend,
    heads: usize,
    rows: &[(u32, u32)],
    threads: usize,
) -> Vec<f32> {
    let dim = cache.kv.dim;
    let attention = Attention::new(op, heads, cache.kv).unwrap();
    let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
    let q = queries(heads, dim, rows);
    let mut out = vec![-5.0f32; q.len() + 1];
    let bytes = attention.scratch_bytes(rows.len(), threads).unwrap();
    // A line more at the end shows a write past it; zeros first, then whatever was left.
    let mut scratch = vec![[0u64; 8]; bytes.div_ceil(64) + 1];
    *scratch.last_mut().unwrap() = [9; 8];
    let data = scratch.as_mut_ptr() as usize;
    let to = out.as_mut_ptr() as usize;
    let (from, keys, values) = (q.as_ptr() as usize, cache.keys.as_ptr(), cache.values.as_ptr());
    let (keys, values) = (keys as usize, values as usize);
    let mut pool = Pool::new(threads).unwrap();
    for _ in 0..2 {
        pool.run(&|w: &Worker<'_>| {
            let call = AttendCall {
                q: from as *const f32,
                q_stride: heads * dim,
                keys: keys as *const u8,
                values: values as *const u8,
                out: to as *mut f32,
                out_stride: heads * dim,
                positions: &positions,
                slots: &slots,
                sinks: op.alibi.map(|_| SINKS.as_ptr()),
            };
            // SAFETY: the buffers above; the scratch is 8-aligned and all lanes load unaligned.
            unsafe { attention.run(cache.isa, &call, w.index, w.count, data as *mut u8) };
        })
        .unwrap();
    }
    assert_eq!(*scratch.last().unwrap(), [9; 8], "wrote past the scratch");
    assert!(scratch[..COUNTERS / 16].iter().all(|line| *line == [0; 8]), "counters not 0 again");
    assert_eq!(out.pop(), Some(-5.0), "wrote past the end");
    out
}

/// The op's meaning in f64.
fn meaning(cache: &Cache, op: &Attend, heads: usize, rows: &[(u32, u32)]) -> Vec<f64> {
    let KvLayout { context, kv_heads, dim, .. } = cache.kv;
    let q = queries(heads, dim, rows);
    let mut out = Vec::new();
    for (r, &(slot, position)) in rows.iter().enumerate() {
        for head in 0..heads {
            let q = &q[(r * heads + head) * dim..][..dim];
            let last = position as usize;
            let first = op.window.map_or(0, |w| (last + 1).saturating_sub(w));
            let at = |p: usize| {
                ((slot as usize * context + p) * kv_heads + head / (heads / kv_heads)) * dim
            };
            let score = |p: usize| {
                let k = &cache.stored[0][at(p)..][..dim];
                let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                let s = dot * f64::from(op.scale);
                let s = op.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh());
                let slope = op.alibi.map_or(0.0, |max| alibi_slope(max, head, heads));
                s - f64::from(slope) * (last - p) as f64
            };
            let scores: Vec<f64> = (first..=last).map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sink = op.alibi.map_or(0.0, |_| (f64::from(SINKS[head % 32]) - top).exp());
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum::<f64>() + sink;
            for d in 0..dim {
                let weighted = scores
                    .iter()
                    .zip(first..)
                    .map(|(s, p)| (s - top).exp() / total * f64::from(cache.stored[1][at(p) + d]));
                out.push(weighted.sum());
            }
        }
    }
    out
}

/// Sinks of the heads, for attention with slopes.
static SINKS: [f32; 32] = {
    let mut sinks = [0.5; 32];
    let mut i = 0;
    while i < 32 {
        sinks[i] = i as f32 * 0.75 - 3.0;
        i += 1;
    }
    sinks
};

const OPS: [Attend; 6] = [
    Attend { scale: 0.2, window: None, softcap: None, alibi: Some(8.0) },
    Attend { scale: 0.3, window: Some(70), softcap: Some(9.0), alibi: Some(3.0) },
    Attend { scale: 0.2, window: None, softcap: None, alibi: None },
    Attend { scale: 0.125, window: Some(70), softcap: None, alibi: None },
    Attend { scale: 0.3, window: None, softcap: Some(2.0), alibi: None },
    Attend { scale: 0.25, window: Some(1), softcap: Some(30.0), alibi: None },
];

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn near(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= ERROR, "{what}: element {i} is {got}, not {want}");
    }
}

#[test]
fn matches_its_meaning_on_every_instruction_set() {
    let shapes =
        [(3, 3, 64), (9, 3, 64), (4, 1, 256), (5, 1, 17), (2, 2, 7), (6, 1, 96), (1, 1, 1)];
    for ((heads, kv_heads, dim), dtype) in shapes.into_iter().flat_map(|s| KEPT.map(|k| (s, k))) {
        for op in &OPS {
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut cache = Cache::poisoned(isa, 1, 300, kv_heads, dim, dtype);
                let mut all = Vec::new();
                let mut stored = 0;
                for last in [0, 1, 14, 15, 16, 17, 62, 63, 64, 65, 127, 128, 200, 299] {
                    (stored..=last).for_each(|p| cache.store(0, p));
                    stored = last + 1;
                    let rows = [(0, last as u32)];
                    let out = attend(&cache, op, heads, &rows, 1);
                    let what =
                        format!("{isa:?} {heads}/{kv_heads}/{dim} {dtype:?} {op:?} at {last}");
                    near(&out, &meaning(&cache, op, heads, &rows), &what);
                    all.extend(bits(&out));
                }
                let first = first.get_or_insert_with(|| all.clone());
                assert!(
                    *first == all,
                    "{isa:?} differs from scalar: {heads}/{kv_heads}/{dim} {dtype:?} {op:?}"
                );
            }
        }
    }
}

/// Rows at positions up to `last` of one slot, and behind them some of another, all at once and cut
/// into steps of so many rows on so many threads.
fn cut(
    (heads, kv_heads, dim): (usize, usize, usize),
    ops: &[Attend],
    last: u32,
    cuts: &[(usize, usize)],
) {
    for (op, dtype) in ops.iter().flat_map(|op| KEPT.map(|k| (op, k))) {
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let context = last as usize + 10;
            let mut cache = Cache::poisoned(isa, 2, context, kv_heads, dim, dtype);
            (0..last).for_each(|p| cache.store(1, p as usize));
            (0..last / 4).for_each(|p| cache.store(0, p as usize));
            let mut rows: Vec<(u32, u32)> = (0..last).map(|p| (1, p)).collect();
            rows.extend((last / 4 - 20..last / 4).map(|p| (0, p)));
            let whole = attend(&cache, op, heads, &rows, 1);
            let what = format!("{isa:?} {dtype:?} {op:?}");
            near(&whole, &meaning(&cache, op, heads, &rows), &what);
            assert!(first.get_or_insert_with(|| bits(&whole)) == &bits(&whole), "{what}");
            if isa == Isa::Scalar {
                continue;
            }
            for &(each, threads) in cuts {
                let cut = rows.chunks(each);
                let parts: Vec<f32> =
                    cut.flat_map(|rows| attend(&cache, op, heads, rows, threads)).collect();
                assert!(bits(&whole) == bits(&parts), "{what} by {each}, {threads}");
            }
        }
    }
}

#[test]
fn rows_do_not_know_of_one_another() {
    // Cut anywhere (few rows are split by chunk, many are not), on any threads.
    let cuts = [(1, 1), (1, 3), (5, 2), (16, 4), (17, 2), (100, 3)];
    for shape in [(9, 3, 64), (4, 1, 40), (2, 2, 16)] {
        cut(shape, &OPS, 280, &cuts);
    }
}

/// The same for an emulator, which the other takes too long for.
#[test]
fn some_rows_do_not_know_of_one_another() {
    cut((4, 1, 40), &OPS[1..3], 130, &[(1, 3), (17, 2)]);
}

#[test]
fn a_batch_of_slots_is_each_alone() {
    let isa = Isa::detect();
    for dtype in KEPT {
        let mut cache = Cache::poisoned(isa, 5, 300, 2, 32, dtype);
        let rows: Vec<(u32, u32)> = vec![(3, 299), (0, 0), (1, 130), (4, 131), (2, 64)];
        for &(slot, position) in &rows {
            (0..=position as usize).for_each(|p| cache.store(slot as usize, p));
        }
        for op in &OPS {
            let together = attend(&cache, op, 6, &rows, 2);
            let alone: Vec<f32> =
                rows.chunks(1).flat_map(|r| attend(&cache, op, 6, r, 1)).collect();
            assert_eq!(bits(&together), bits(&alone), "{dtype:?} {op:?}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let isa = Isa::detect();
    for dtype in KEPT {
        let mut cache = Cache::poisoned(isa, 1, 128, 1, 16, dtype);
        (0..100).for_each(|p| cache.store(0, p));
        let row = if dtype == DType::F16 { [f32::NAN; 16] } else { one_of_16(f32::NAN) };
        let values = cache.values.as_mut_ptr().cast();
        // SAFETY: the buffer holds the slot.
        unsafe { cache.kv.store_value(isa, values, 0, 90, 0, row.as_ptr()) };
        let rows: Vec<(u32, u32)> = (60..100).map(|p| (0, p)).collect();
        let out = attend(&cache, &OPS[0], 4, &rows, 2);
        for (row, &(_, position)) in out.chunks(64).zip(&rows) {
            assert_eq!(row.iter().all(|x| x.is_nan()), position >= 90, "{dtype:?} {position}");
            assert_eq!(row.iter().any(|x| x.is_nan()), position >= 90, "{dtype:?} {position}");
        }
    }
}

fn one_of_16(x: f32) -> [f32; 16] {
    let mut row = [0.5; 16];
    row[5] = x;
    row
}

#[test]
fn codes_of_odd_groups() {
    let kv = KvLayout::new(64, 1, 16, DType::Q8_0).unwrap();
    // A group of zeros, of numbers below any scale, of hardly a half, of the greatest there are.
    let rows = [0.0, 1e-9, 1e-5, -3e6, 8e6].map(one_of_16);
    let rows = rows.map(|mut row| {
        let most = row[5].abs();
        row.iter_mut().for_each(|x| *x = x.clamp(-most, most));
        row
    });
    for isa in Isa::available() {
        for (row, poison) in rows
            .iter()
            .map(|r| (*r, false))
            .chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 9e6].map(|x| (one_of_16(x), true)))
        {
            let mut values = vec![0u16; kv.value_bytes() / 2];
            // SAFETY: the buffer holds the slot.
            unsafe { kv.store_value(isa, values.as_mut_ptr().cast(), 0, 3, 0, row.as_ptr()) };
            let scale = f16::from_bits(values[64 * 16 / 2 + 3]).to_f32();
            let codes = values[3 * 8..4 * 8].iter().flat_map(|v| v.to_ne_bytes());
            let got: Vec<f32> = codes.map(|c| f32::from(c as i8) * scale).collect();
            if poison {
                assert!(got.iter().all(|x| x.is_nan()), "{isa:?} {row:?}: {got:?}");
            } else if scale == 0.0 {
                assert!(got.iter().all(|x| *x == 0.0), "{isa:?} {row:?}: {got:?}");
            } else {
                assert_eq!(got, rounded(&row, DType::Q8_0), "{isa:?}");
            }
        }
    }
}

#[test]
fn sizes_are_exact_and_misfits_are_refused() {
    let kv = KvLayout::new(100, 3, 20, DType::F16).unwrap();
    assert_eq!((kv.key_bytes(), kv.value_bytes()), (128 * 3 * 20 * 2, 128 * 3 * 32 * 2));
    // A scale for each 32 elements, the last of which may be fewer.
    let q8 = |dim| KvLayout::new(100, 3, dim, DType::Q8_0).unwrap();
    assert_eq!((q8(20).key_bytes(), q8(20).value_bytes()), (128 * 3 * 22, 128 * 3 * 34));
    assert_eq!((q8(64).key_bytes(), q8(64).value_bytes()), (128 * 3 * 68, 128 * 3 * 68));
    for (context, heads, dim) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (usize::MAX, 1, 1)] {
        assert_eq!(KvLayout::new(context, heads, dim, DType::F16), None);
    }
    assert_eq!(KvLayout::new(1 << 40, 1 << 20, 1 << 10, DType::Q8_0), None);
    assert_eq!(KvLayout::new(1, 1, 1, DType::F32), None);
    let op = &OPS[0];
    assert!(Attention::new(op, 6, kv).is_some() && Attention::new(op, 0, kv).is_none());
    assert!(
        Attention::new(op, 7, kv).is_none() && Attention::new(op, usize::MAX / 3 * 3, kv).is_none()
    );
    assert_eq!(Attention::new(op, 6, kv).unwrap().scratch_bytes(1, usize::MAX), None);
    // A position outside the context writes nothing.
    for dtype in KEPT {
        let mut cache = Cache::poisoned(Isa::detect(), 1, 100, 3, 20, dtype);
        let (x, before) = ([1.0f32; 20], cache.keys.clone());
        let (kv, keys) = (cache.kv, cache.keys.as_mut_ptr().cast());
        // SAFETY: the buffers hold the slot.
        unsafe {
            kv.store_key(cache.isa, keys, 0, 100, 0, x.as_ptr());
            kv.store_key(cache.isa, keys, 0, 0, 3, x.as_ptr());
            let values = cache.values.as_mut_ptr().cast();
            kv.store_value(cache.isa, values, 0, usize::MAX, 0, x.as_ptr());
        }
        assert!(cache.keys == before && cache.values.iter().all(|&v| v == 0xfe01));
    }
}
