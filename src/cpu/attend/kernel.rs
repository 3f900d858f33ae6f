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
    pub(super) unsafe fn clear<L: Lanes>(self, wide: usize) {
        // SAFETY: a state holds LANES + wide elements.
        unsafe {
            *self.data = f32::NEG_INFINITY;
            *self.data.add(1) = 0.0;
            for i in (LANES..LANES + wide).step_by(LANES) {
                L::splat(0.0).store(self.data.add(i));
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
            // The factor of the greater is 1.
            let (top, low) = if a > b { (a, b) } else { (b, a) };
            let factor = exp_of::<L>(low - top);
            let (a, b) = if a > b { (1.0, factor) } else { (factor, 1.0) };
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

    /// Makes of dot products the scores of what is seen, and counts the greatest in the state; returns
    /// the greatest before and now.
    #[inline(always)]
    pub(super) unsafe fn greatest<L: Lanes>(
        self,
        scores: &mut [f32; BLOCK],
        seen: &Range<usize>,
        scale: f32,
        softcap: Option<f32>,
        bias: Option<(f32, f32)>,
    ) -> (f32, f32) {
        const COUNT: [f32; LANES] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        // SAFETY: TILES vectors of LANES make a block; the state is whole.
        unsafe {
            let nothing = L::splat(f32::NEG_INFINITY);
            let mut x = [nothing; TILES];
            for (t, x) in x.iter_mut().enumerate() {
                let to = scores.as_mut_ptr().add(t * LANES);
                let mut s = L::load(to).mul(L::splat(scale));
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
                s.store(to);
                *x = s;
            }
            let before = *self.data;
            let top = x[0].max(x[1]).max(x[2].max(x[3])).greatest();
            let top = if before > top { before } else { top };
            *self.data = top;
            (before, top)
        }
    }

    /// Turns those scores into weights and counts them in the state; returns the factor on what the
    /// state has summed so far.
    #[inline(always)]
    pub(super) unsafe fn weigh<L: Lanes>(
        self,
        scores: &mut [f32; BLOCK],
        (before, top): (f32, f32),
    ) -> f32 {
        // SAFETY: TILES vectors of LANES make a block; the state is whole.
        unsafe {
            let mut x = [L::splat(0.0); TILES];
            for (t, x) in x.iter_mut().enumerate() {
                let to = scores.as_mut_ptr().add(t * LANES);
                *x = exp(L::load(to).sub(L::splat(top)));
                x.store(to);
            }
            let sum = x[0].add(x[1]).add(x[2].add(x[3])).sum();
            let factor = exp_of::<L>(before - top);
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

/// What keys and values are read as: halves, codes with scales, or either of them opened to f32.
///
/// A block of keys or values of `dim` elements holds `64 dim` elements and behind them, if there
/// are scales, those of its groups, `[group][64]`. Codes meet queries and weights as they are: the
/// scale of a key meets the sum of its group, that of a value the weight.
pub(super) trait Source: Copy {
    /// Elements that a scale takes, 0 if there are none.
    const SCALE: usize;
    /// Whether it lies in the cache, and so perhaps far away.
    const KEPT: bool;
    /// The same, opened.
    type Open: Source;

    unsafe fn load<L: Lanes>(p: *const Self) -> L;

    /// Scales of sixteen positions.
    unsafe fn load_scales<L: Lanes>(p: *const Self) -> L;

    /// From a block to the next, in elements.
    #[inline(always)]
    fn block(dim: usize) -> usize {
        BLOCK * (dim + dim.div_ceil(GROUP) * Self::SCALE)
    }

    /// From the beginning of a block to the scales of a group and tile, in elements.
    #[inline(always)]
    fn scales_at(dim: usize, group: usize, tile: usize) -> usize {
        BLOCK * dim + (BLOCK * group + LANES * tile) * Self::SCALE
    }

    /// Asks for the lines of `n` elements that come so many bytes behind these.
    #[inline(always)]
    unsafe fn ask<L: Lanes>(p: *const Self, n: usize, ahead: usize) {
        // Where memory comes in time by itself, nothing is asked for.
        if const { Self::KEPT } && ahead > 0 {
            for line in (0..n * size_of::<Self>()).step_by(LINE) {
                // SAFETY: the caller has the instruction set; a prefetch touches nothing.
                unsafe { L::prefetch(p.cast::<u8>().wrapping_add(ahead + line)) };
            }
        }
    }
}

/// A code, opened.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Code(f32);

/// A source from its scale's width, whether it is kept, what it opens to, and how both are read.
macro_rules! source {
    ($of:ty, $scale:literal, $kept:literal, $open:ty, $load:expr, $scales:expr) => {
        impl Source for $of {
            const SCALE: usize = $scale;
            const KEPT: bool = $kept;
            type Open = $open;

            #[inline(always)]
            unsafe fn load<L: Lanes>(p: *const $of) -> L {
                // SAFETY: the caller's promise.
                unsafe { $load(p.cast()) }
            }

            #[inline(always)]
            unsafe fn load_scales<L: Lanes>(p: *const $of) -> L {
                // SAFETY: the caller's promise.
                unsafe { $scales(p.cast()) }
            }
        }
    };
}

/// No scale.
#[inline(always)]
unsafe fn none<L: Lanes>(_: *const f32) -> L {
    // SAFETY: the caller's promise.
    unsafe { L::splat(1.0) }
}

source!(u16, 0, true, f32, L::load_half, none::<L>);
source!(f32, 0, false, f32, L::load, none::<L>);
source!(i8, 2, true, Code, L::load_i8, L::load_half);
source!(Code, 1, false, Code, L::load, L::load);

/// Opens the keys of tiles `tiles` of a block.
#[inline(always)]
pub(super) unsafe fn open_keys<L: Lanes, S: Source>(
    from: *const S,
    dim: usize,
    tiles: Range<usize>,
    to: *mut f32,
) {
    for tile in tiles {
        // SAFETY: the tile is inside both blocks.
        unsafe {
            for at in (0..dim).map(|d| d * BLOCK + tile * LANES) {
                S::load::<L>(from.add(at)).store(to.add(at));
            }
            open_scales::<L, S>(from, dim, tile, to);
        }
    }
}

/// Opens the values at positions `rows` of a block.
#[inline(always)]
pub(super) unsafe fn open_values<L: Lanes, S: Source>(
    from: *const S,
    wide: usize,
    rows: Range<usize>,
    to: *mut f32,
) {
    // SAFETY: the rows are inside both blocks, and a block is whole tiles.
    unsafe {
        for at in (rows.start * wide..rows.end * wide).step_by(LANES) {
            S::load::<L>(from.add(at)).store(to.add(at));
        }
        for tile in 0..TILES {
            open_scales::<L, S>(from, wide, tile, to);
        }
    }
}

/// Opens the scales of one tile of a block.
#[inline(always)]
unsafe fn open_scales<L: Lanes, S: Source>(from: *const S, dim: usize, tile: usize, to: *mut f32) {
    if const { S::SCALE > 0 } {
        for group in 0..dim.div_ceil(GROUP) {
            // SAFETY: the tile is inside both blocks.
            unsafe {
                let scales = S::load_scales::<L>(from.add(S::scales_at(dim, group, tile)));
                scales.store(to.add(S::Open::scales_at(dim, group, tile)));
            }
        }
    }
}

/// A block of keys or values.
#[derive(Clone, Copy)]
pub(super) struct Block<S> {
    pub(super) data: *const S,
    /// Elements of a key or value.
    pub(super) dim: usize,
    /// How many bytes ahead of those it reads a kernel asks for the next.
    pub(super) ahead: usize,
}

/// Dot products of `M` queries with the keys of `T` tiles, each one chain of fused steps in order
/// of element; with scales one chain a group, and one over the groups. Returns `T`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "several arrays by one index")]
pub(super) unsafe fn scores<L: Lanes, S: Source, const M: usize, const T: usize>(
    q: &[*const f32; M],
    keys: Block<S>,
    tile: usize,
    out: &mut [[f32; BLOCK]; M],
) -> usize {
    let Block { data: keys, dim, ahead } = keys;
    // SAFETY: tiles `tile..tile + T` are inside the block, `dim` elements in each query.
    unsafe {
        // So far on this way through the block, which passes by other tiles.
        let ahead = ahead * TILES / T;
        let mut all = [[L::splat(0.0); T]; M];
        let group = if S::SCALE > 0 { GROUP } else { dim };
        for start in (0..dim).step_by(group) {
            let mut sums = [[L::splat(0.0); T]; M];
            for d in start..dim.min(start + group) {
                let keys = keys.add(d * BLOCK + tile * LANES);
                S::ask::<L>(keys, T * LANES, ahead);
                let mut k = [L::splat(0.0); T];
                for t in 0..T {
                    k[t] = S::load(keys.add(t * LANES));
                }
                for m in 0..M {
                    let x = L::splat(*q[m].add(d));
                    for t in 0..T {
                        sums[m][t] = k[t].fma(x, sums[m][t]);
                    }
                }
            }
            if const { S::SCALE == 0 } {
                all = sums;
                continue;
            }
            for t in 0..T {
                let scale = S::load_scales(keys.add(S::scales_at(dim, start / group, tile + t)));
                for m in 0..M {
                    all[m][t] = sums[m][t].fma(scale, all[m][t]);
                }
            }
        }
        for m in 0..M {
            for t in 0..T {
                all[m][t].store(out[m].as_mut_ptr().add((tile + t) * LANES));
            }
        }
    }
    T
}

/// Adds the weighted values to the states of `M` queries, elements `at..at + 16 T`, each one chain
/// in order of position. A scale meets the weight first. Returns `16 T`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "several arrays by one index")]
pub(super) unsafe fn sums<L: Lanes, S: Source, const M: usize, const T: usize>(
    weights: &[[f32; BLOCK]; M],
    factors: &[f32; M],
    seen: &Range<usize>,
    values: Block<S>,
    at: usize,
    states: &[State; M],
) -> usize {
    let Block { data: values, dim: wide, ahead } = values;
    // SAFETY: `seen` is inside the block, `at + 16 T <= wide`.
    unsafe {
        // The vectors begin with a group, or are one: they touch no more than these.
        let mut scaled = [[[0.0f32; BLOCK]; M]; 2];
        for (i, scaled) in scaled.iter_mut().enumerate().take(T.div_ceil(GROUP / LANES)) {
            for tile in 0..if S::SCALE > 0 { TILES } else { 0 } {
                let scale = S::scales_at(wide, at / GROUP + i, tile);
                let scale = S::load_scales::<L>(values.add(scale));
                for m in 0..M {
                    let weight = L::load(weights[m].as_ptr().add(tile * LANES));
                    weight.mul(scale).store(scaled[m].as_mut_ptr().add(tile * LANES));
                }
            }
        }
        let mut sums = [[L::splat(0.0); T]; M];
        for m in 0..M {
            for t in 0..T {
                let sum = L::load(states[m].data.add(LANES + at + t * LANES));
                sums[m][t] = sum.mul(L::splat(factors[m]));
            }
        }
        let ahead = ahead * wide / (T * LANES);
        for p in seen.clone() {
            let values = values.add(p * wide + at);
            S::ask::<L>(values, T * LANES, ahead);
            let mut v = [L::splat(0.0); T];
            for t in 0..T {
                v[t] = S::load(values.add(t * LANES));
            }
            for m in 0..M {
                for t in 0..T {
                    let scaled = &scaled[t * LANES / GROUP][m];
                    let weights = if S::SCALE > 0 { scaled } else { &weights[m] };
                    let w = L::splat(*weights.as_ptr().add(p));
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
