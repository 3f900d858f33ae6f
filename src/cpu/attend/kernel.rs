//! The arithmetic of one block: scores, softmax, weighted sums.
//!
//! Scores and sums take up to four queries and four vectors at once, so that each vector read
//! serves all queries and sixteen chains run beside one another; where registers are fewer, fewer
//! vectors. How many changes no chain, and so no bit.

use crate::cpu::lanes::{LANES, Lanes, exp, tanh};
use std::ops::Range;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Positions of one softmax.
pub(super) const BLOCK: usize = 64;
/// Tiles of a block.
const TILES: usize = BLOCK / LANES;

/// The softmax of one query over some positions, unfinished.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// `[greatest score, sum of weights, …]`, then the weighted sum of values from
    /// [`LANES`] on.
    pub(super) data: *mut f32,
}

impl State {
    #[inline(always)]
    pub(super) unsafe fn clear(self, wide: usize) {
        // SAFETY: a state holds LANES + wide elements.
        unsafe {
            *self.data = f32::NEG_INFINITY;
            *self.data.add(1) = 0.0;
            for i in 0..wide {
                *self.data.add(LANES + i) = 0.0;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn copy_to(self, to: State, wide: usize) {
        // SAFETY: two states of the same size, apart.
        unsafe { std::ptr::copy_nonoverlapping(self.data, to.data, LANES + wide) }
    }

    /// Adds what later positions gave.
    #[inline(always)]
    pub(super) unsafe fn join<L: Lanes>(self, later: State, wide: usize) {
        // SAFETY: two states of the same size, apart.
        unsafe {
            let (a, b) = (*self.data, *later.data);
            let top = if a > b { a } else { b };
            let (a, b) = (exp_of::<L>(a - top), exp_of::<L>(b - top));
            *self.data = top;
            *self.data.add(1) = *self.data.add(1) * a + *later.data.add(1) * b;
            for i in (LANES..LANES + wide).step_by(LANES) {
                let mine = L::load(self.data.add(i)).mul(L::splat(a));
                L::load(later.data.add(i)).fma(L::splat(b), mine).store(self.data.add(i));
            }
        }
    }

    /// Writes the mean of the values.
    #[inline(always)]
    pub(super) unsafe fn finish<L: Lanes>(self, out: *mut f32, dim: usize, sink: Option<f32>) {
        // SAFETY: a state holds its head, rounded up to whole vectors; `out` holds `dim`.
        unsafe {
            let (mut total, mut factor) = (*self.data.add(1), None);
            if let Some(sink) = sink {
                // One more score that brings no value.
                let before = *self.data;
                let top = if sink > before { sink } else { before };
                let kept = exp_of::<L>(before - top);
                total = total * kept + exp_of::<L>(sink - top);
                factor = Some(kept);
            }
            let total = L::splat(total);
            for i in (0..dim).step_by(LANES) {
                let mut mean = L::load(self.data.add(LANES + i));
                if let Some(factor) = factor {
                    mean = mean.mul(L::splat(factor));
                }
                let mean = mean.div(total);
                if i + LANES <= dim {
                    mean.store(out.add(i));
                } else {
                    mean.store(self.data.add(LANES + i));
                    std::ptr::copy_nonoverlapping(self.data.add(LANES + i), out.add(i), dim - i);
                }
            }
        }
    }

    /// Turns scores into weights and counts them in the state; returns the factor on what the
    /// state has summed so far.
    #[inline(always)]
    pub(super) unsafe fn softmax<L: Lanes>(
        self,
        scores: &mut [f32; BLOCK],
        seen: &Range<usize>,
        scale: f32,
        softcap: Option<f32>,
        bias: Option<(f32, f32)>,
    ) -> f32 {
        const COUNT: [f32; LANES] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        // SAFETY: TILES vectors of LANES make a block; the state is whole.
        unsafe {
            let nothing = L::splat(f32::NEG_INFINITY);
            let mut x = [nothing; TILES];
            for (t, x) in x.iter_mut().enumerate() {
                let mut s = L::load(scores.as_ptr().add(t * LANES)).mul(L::splat(scale));
                if let Some(cap) = softcap {
                    s = L::splat(cap).mul(tanh(s.div(L::splat(cap))));
                }
                if let Some((slope, from)) = bias {
                    let at = L::load(COUNT.as_ptr()).add(L::splat((t * LANES) as f32 + from));
                    s = at.fma(L::splat(slope), s);
                }
                if seen.len() < BLOCK {
                    let at = L::load(COUNT.as_ptr()).add(L::splat((t * LANES) as f32));
                    s = at.if_less(L::splat(seen.start as f32), nothing, s);
                    s = at.if_less(L::splat(seen.end as f32), s, nothing);
                }
                *x = s;
            }
            let before = *self.data;
            let top = x[0].max(x[1]).max(x[2].max(x[3])).greatest();
            let top = if before > top { before } else { top };
            for (t, x) in x.iter_mut().enumerate() {
                *x = exp(x.sub(L::splat(top)));
                x.store(scores.as_mut_ptr().add(t * LANES));
            }
            let sum = x[0].add(x[1]).add(x[2].add(x[3])).sum();
            let factor = exp_of::<L>(before - top);
            *self.data = top;
            *self.data.add(1) = *self.data.add(1) * factor + sum;
            factor
        }
    }
}

/// [`exp`] of one number: the same bits as in a lane.
#[inline(always)]
unsafe fn exp_of<L: Lanes>(x: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { exp(L::splat(x)).first() }
}

/// Elements that share a scale, where there are scales.
pub(super) const GROUP: usize = 32;

/// What keys and values are read as: halves, floats, or codes with scales.
///
/// A block of keys or values of `dim` elements holds `64 dim` elements and behind them, if there
/// are scales, those of its groups, `[group][64]`. A code of 8 bits times a half is exact in f32,
/// so whoever reads a code, and when, sees the same number.
pub(super) trait Source: Copy {
    const SCALED: bool;
    /// Whether it lies in the cache, and so perhaps not near.
    const KEPT: bool = true;

    /// Asks for the lines of `n` elements that come so many bytes behind these.
    #[inline(always)]
    unsafe fn ask<L: Lanes>(p: *const Self, n: usize, ahead: usize) {
        if const { Self::KEPT } {
            for line in (0..n * size_of::<Self>()).step_by(LINE) {
                // SAFETY: the caller's promise for the instruction set; a prefetch touches nothing.
                unsafe { L::prefetch(p.cast::<u8>().wrapping_add(ahead + line)) };
            }
        }
    }

    unsafe fn load<L: Lanes>(p: *const Self) -> L;

    /// From a block to the next, in elements.
    #[inline(always)]
    fn block(dim: usize) -> usize {
        let scales = if Self::SCALED { dim.div_ceil(GROUP) * BLOCK } else { 0 };
        dim * BLOCK + scales * (size_of::<u16>() / size_of::<Self>())
    }

    /// The scales of a group, a lane a position of the tile.
    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const Self, dim: usize, group: usize, tile: usize) -> L {
        // SAFETY: the caller's promise; scales lie behind the codes.
        unsafe {
            if Self::SCALED {
                let scales = block.add(dim * BLOCK).cast::<u16>();
                L::load_half(scales.add(group * BLOCK + tile * LANES))
            } else {
                L::splat(1.0)
            }
        }
    }

    #[inline(always)]
    unsafe fn read<L: Lanes>(p: *const Self, scale: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { if Self::SCALED { Self::load::<L>(p).mul(scale) } else { Self::load(p) } }
    }
}

impl Source for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const i8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_i8(p) }
    }
}

impl Source for u16 {
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u16) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_half(p) }
    }
}

impl Source for f32 {
    const SCALED: bool = false;
    const KEPT: bool = false;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(p) }
    }
}

/// The keys of tiles `tiles` of a block in f32.
#[inline(always)]
pub(super) unsafe fn widen_keys<L: Lanes, S: Source>(
    from: *const S,
    dim: usize,
    tiles: Range<usize>,
    to: *mut f32,
) {
    for tile in tiles {
        for start in (0..dim).step_by(GROUP) {
            // SAFETY: the tile is inside both blocks.
            unsafe {
                let scale = S::scales::<L>(from, dim, start / GROUP, tile);
                for d in start..dim.min(start + GROUP) {
                    let at = d * BLOCK + tile * LANES;
                    S::read(from.add(at), scale).store(to.add(at));
                }
            }
        }
    }
}

/// The values at positions `rows` of a block in f32.
#[inline(always)]
pub(super) unsafe fn widen_values<L: Lanes, S: Source>(
    from: *const S,
    wide: usize,
    rows: Range<usize>,
    to: *mut f32,
) {
    for i in (0..wide).step_by(LANES) {
        // SAFETY: the rows are inside both blocks.
        unsafe {
            let scales = value_scales::<L, S>(from, wide, i / GROUP);
            for p in rows.clone() {
                let scale = L::splat(scales[p]);
                S::read(from.add(p * wide + i), scale).store(to.add(p * wide + i));
            }
        }
    }
}

/// The scales of a group of all values of a block.
#[inline(always)]
unsafe fn value_scales<L: Lanes, S: Source>(
    values: *const S,
    wide: usize,
    group: usize,
) -> [f32; BLOCK] {
    let mut scales = [1.0; BLOCK];
    if S::SCALED {
        for tile in 0..TILES {
            // SAFETY: a block is whole tiles.
            unsafe {
                let of_tile = S::scales::<L>(values, wide, group, tile);
                of_tile.store(scales.as_mut_ptr().add(tile * LANES));
            }
        }
    }
    scales
}

/// Dot products of `M` queries with the keys of `T` tiles, each one chain of fused steps in order
/// of element. Returns `T`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "several arrays by one index")]
pub(super) unsafe fn scores<L: Lanes, S: Source, const M: usize, const T: usize>(
    q: &[*const f32; M],
    keys: *const S,
    dim: usize,
    tile: usize,
    ahead: usize,
    out: &mut [[f32; BLOCK]; M],
) -> usize {
    // SAFETY: tiles `tile..tile + T` are inside the block, `dim` elements in each query.
    unsafe {
        let mut sums = [[L::splat(0.0); T]; M];
        let group = if S::SCALED { GROUP } else { dim };
        for start in (0..dim).step_by(group) {
            let mut scales = [L::splat(1.0); T];
            for t in 0..T {
                scales[t] = S::scales(keys, dim, start / group, tile + t);
            }
            for d in start..dim.min(start + group) {
                S::ask::<L>(keys.add(d * BLOCK + tile * LANES), T * LANES, ahead);
                let mut k = [L::splat(0.0); T];
                for t in 0..T {
                    k[t] = S::read(keys.add(d * BLOCK + (tile + t) * LANES), scales[t]);
                }
                for m in 0..M {
                    let x = L::splat(*q[m].add(d));
                    for t in 0..T {
                        sums[m][t] = k[t].fma(x, sums[m][t]);
                    }
                }
            }
        }
        for m in 0..M {
            for t in 0..T {
                sums[m][t].store(out[m].as_mut_ptr().add((tile + t) * LANES));
            }
        }
    }
    T
}

/// Adds the weighted values to the states of `M` queries, elements `at..at + 16 T`, each one chain
/// in order of position. Returns `16 T`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "several arrays by one index")]
pub(super) unsafe fn sums<L: Lanes, S: Source, const M: usize, const T: usize>(
    weights: &[[f32; BLOCK]; M],
    factors: &[f32; M],
    seen: &Range<usize>,
    values: *const S,
    wide: usize,
    at: usize,
    ahead: usize,
    states: &[State; M],
) -> usize {
    // SAFETY: `seen` is inside the block, `at + 16 T <= wide`.
    unsafe {
        // The vectors begin with a group, or are one: they touch no more than these.
        let mut scales = [[1.0f32; BLOCK]; 2];
        for (i, scales) in scales.iter_mut().enumerate().take(T.div_ceil(GROUP / LANES)) {
            *scales = value_scales::<L, S>(values, wide, at / GROUP + i);
        }
        let mut sums = [[L::splat(0.0); T]; M];
        for m in 0..M {
            for t in 0..T {
                let sum = L::load(states[m].data.add(LANES + at + t * LANES));
                sums[m][t] = sum.mul(L::splat(factors[m]));
            }
        }
        for p in seen.clone() {
            S::ask::<L>(values.add(p * wide + at), T * LANES, ahead);
            let mut v = [L::splat(0.0); T];
            for t in 0..T {
                let scale = L::splat(*scales[t * LANES / GROUP].as_ptr().add(p));
                v[t] = S::read(values.add(p * wide + at + t * LANES), scale);
            }
            for m in 0..M {
                let w = L::splat(*weights[m].as_ptr().add(p));
                for t in 0..T {
                    sums[m][t] = v[t].fma(w, sums[m][t]);
                }
            }
        }
        for m in 0..M {
            for t in 0..T {
                sums[m][t].store(states[m].data.add(LANES + at + t * LANES));
            }
        }
    }
    T * LANES
}
