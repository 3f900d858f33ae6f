//! From values to blocks: one search for the least squared error, whatever the format.
//!
//! A format's file says how a [`Block`] is packed and which codes and scales are written
//! ([`Packing`]); which codes and scales to pick follows from its [`Quant`] alone:
//!
//! * **With given codes the best scale is known**: the least squares of `x` on what the codes stand
//!   for, less their zero. So only few scales need trying, those that make the farthest value a
//!   little more or less than the farthest code; each gives codes, these give a better scale, and
//!   the best of all wins. With minimums it is the same in two unknowns.
//! * **With two levels**, each group's best scale is found first, then the block's, by the same
//!   search over the groups' scales: an error in a group's scale counts by the squares of its codes.
//!   Then every group tries the integers next to its own, and the block's numbers are fitted once
//!   more to all that was picked.
//! * Numbers are rounded to what the file holds before the final codes are picked.

use half::f16;

use super::{Block, Codes, Min, Quant, Scale, exponent};

/// What a format's blocks are written with.
#[derive(Debug)]
pub struct Packing {
    /// The least and the greatest code.
    pub codes: (u8, u8),
    /// The least and the greatest integer scale; minimums go from 0 to the greatest.
    pub scales: (i8, i8),
    /// The inverse of [`Quant::unpack`].
    ///
    /// # Panics
    /// When it is given fewer bytes than a block has.
    pub pack: fn(&Block, &mut [u8]),
}

impl Quant {
    /// Writes the blocks that are nearest to `values`, which are finite and whole blocks, into
    /// `bytes`, which are as many blocks.
    pub(super) fn encode(&self, values: &[f32], bytes: &mut [u8]) {
        let fit = Fit { quant: self, levels: Levels::of(self) };
        let mut block = Block::default();
        let mut scaled = [0.0; MOST];
        let blocks = bytes.chunks_exact_mut(self.bytes);
        for (bytes, x) in blocks.zip(values.chunks_exact(self.block)) {
            // Squares of ordinary size, whatever the values': the file's numbers grow back later.
            let unit = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let inverse = inverse(unit);
            let unit = if inverse > 0.0 { unit } else { 1.0 };
            for (to, x) in scaled.iter_mut().zip(x) {
                *to = x * inverse;
            }
            let x = &scaled[..self.block];
            match (self.scale, self.min) {
                (Scale::One, Min::Zero(_)) => fit.scale(x, unit, &mut block),
                (Scale::One, _) => fit.scale_and_min(x, unit, &mut block),
                (Scale::TwoLevel | Scale::Nibbles, _) => fit.two_levels(x, unit, &mut block),
                (Scale::Exponent, _) => fit.exponents(x, unit, &mut block),
            }
            (self.packing.pack)(&block, bytes);
        }
    }
}

/// The most elements of a block.
const MOST: usize = 256;

/// What codes stand for, less their zero where that is a constant: whole numbers, ascending.
enum Levels {
    /// All from one to another.
    Steps(f32, f32),
    /// The first, and for each of the others where it begins to be nearer, and by how much it is
    /// greater than the one before.
    Table(f32, Vec<(f32, f32)>),
}

impl Levels {
    fn of(quant: &Quant) -> Levels {
        let zero = if let Min::Zero(z) = quant.min { z } else { 0 };
        let (low, high) = quant.packing.codes;
        let level = |code: u8| (i32::from(quant.codes.value(code)) - zero) as f32;
        if quant.codes == Codes::Plain {
            return Levels::Steps(level(low), level(high));
        }
        let mut all: Vec<f32> = (low..=high).map(level).collect();
        all.sort_by(f32::total_cmp);
        all.dedup();
        let rises = all.windows(2).map(|pair| ((pair[0] + pair[1]) / 2.0, pair[1] - pair[0]));
        Levels::Table(all[0], rises.collect())
    }

    /// The least and the greatest.
    fn ends(&self) -> (f32, f32) {
        match self {
            Levels::Steps(low, high) => (*low, *high),
            Levels::Table(first, rises) => (*first, rises.iter().fold(*first, |l, r| l + r.1)),
        }
    }

    /// How far the farthest are apart.
    fn step(&self) -> f32 {
        match self {
            Levels::Steps(..) => 1.0,
            Levels::Table(_, rises) => rises.last().map_or(1.0, |rise| rise.1),
        }
    }

    /// The levels nearest to `t * x + shift`.
    fn nearest(&self, x: &[f32], t: f32, shift: f32, out: &mut [f32]) {
        // Beyond 1.5 * 2²³ an f32 has no fraction.
        const WHOLE: f32 = 12_582_912.0;
        match self {
            Levels::Steps(low, high) => {
                for (out, x) in out.iter_mut().zip(x) {
                    let y = x * t + shift;
                    let y = if y > *low { y } else { *low };
                    let y = if y < *high { y } else { *high };
                    *out = (y + WHOLE) - WHOLE;
                }
            }
            Levels::Table(first, rises) => {
                // Elements share scales in multiples of 16: so many at once, level after level.
                let chunks = out.as_chunks_mut::<16>().0.iter_mut().zip(x.as_chunks::<16>().0);
                for (out, x) in chunks {
                    let y = x.map(|x| x * t + shift);
                    let mut level = [*first; 16];
                    for (at, rise) in rises {
                        for (level, y) in level.iter_mut().zip(&y) {
                            // As a mask: a choice would be made lane by lane.
                            let above = u32::from(*y > *at).wrapping_neg();
                            *level += f32::from_bits(rise.to_bits() & above);
                        }
                    }
                    *out = level;
                }
            }
        }
    }
}

/// Sums of products of two rows, in eight parts that the processor adds at once.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut parts = [0.0; 8];
    let (x, y) = (x.as_chunks::<8>().0, y.as_chunks::<8>().0);
    for (x, y) in x.iter().zip(y) {
        for ((part, x), y) in parts.iter_mut().zip(x).zip(y) {
            *part += x * y;
        }
    }
    parts.iter().sum()
}

/// The nearest f16 that is finite.
fn half(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// One over a scale; 0 for a scale of 0 and what is next to it.
fn inverse(scale: f32) -> f32 {
    let t = 1.0 / scale;
    if t.is_finite() { t } else { 0.0 }
}

/// The best so far of a search.
#[derive(Clone, Copy, Default)]
struct Best {
    scale: f32,
    min: f32,
    /// By how much it lessens the squares of what is to be represented.
    gain: f32,
}

/// How far the farthest value is tried to lie beyond the farthest level, in steps between levels.
fn tries((low, high): (f32, f32)) -> impl Iterator<Item = f32> {
    // With few levels it pays to cut the farthest values off.
    let most = if high - low < 4.0 { 30 } else { 9 };
    (-9..=most).step_by(2).map(|tenths| tenths as f32 / 10.0)
}

/// The scale that brings `levels` nearest to `x`, whose squares count by the weights `w`.
fn search(levels: &Levels, x: &[f32], w: &[f32]) -> Best {
    let mut best = Best::default();
    let (mut weighted, mut y, mut wy) = ([0.0; MOST], [0.0; MOST], [0.0; MOST]);
    let n = x.len();
    for ((weighted, x), w) in weighted.iter_mut().zip(x).zip(w) {
        *weighted = x * w;
    }
    let mut consider = |t: f32, best: &mut Best| {
        levels.nearest(x, t, 0.0, &mut y[..n]);
        for ((wy, y), w) in wy.iter_mut().zip(&y[..n]).zip(w) {
            *wy = y * w;
        }
        let (product, square) = (dot(&weighted[..n], &y[..n]), dot(&wy[..n], &y[..n]));
        let gain = product * product / square;
        let better = gain > best.gain;
        if better {
            *best = Best { scale: product / square, min: 0.0, gain };
        }
        better
    };
    let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let (low, high) = levels.ends();
    let reach = high.max(-low);
    let step = levels.step();
    let signs: &[f32] = if low == -high { &[1.0] } else { &[1.0, -1.0] };
    for sign in signs {
        for beyond in tries((low / step, high / step)) {
            consider(sign * (reach + beyond * step) * inverse(max), &mut best);
        }
    }
    for _ in 0..4 {
        if !consider(inverse(best.scale), &mut best) {
            break;
        }
    }
    best
}

/// The scale and the minimum, at most `most`, with which codes from 0 to `top` come nearest to `x`.
fn search_min(levels: &Levels, x: &[f32], most: f32) -> Best {
    let mut y = [0.0; MOST];
    let n = x.len();
    let y = &mut y[..n];
    let ones = &[1.0; MOST][..n];
    let count = n as f32;
    let sum = dot(x, ones);
    let (low, high) = x.iter().fold((most, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    let (_, top) = levels.ends();
    let mut best = Best { scale: 0.0, min: low, gain: f32::MIN };
    let mut consider = |scale: f32, min: f32, best: &mut Best| {
        let t = inverse(scale);
        levels.nearest(x, t, -min * t, y);
        let (cx, c, cc) = (dot(x, y), dot(y, ones), dot(y, y));
        let determinant = count * cc - c * c;
        let (mut scale, mut min) = match determinant > 0.0 {
            true => ((count * cx - c * sum) / determinant, (cc * sum - c * cx) / determinant),
            // One code for all.
            false => (0.0, sum / count),
        };
        if min > most {
            (scale, min) = (if cc > 0.0 { (cx - most * c) / cc } else { 0.0 }, most);
        }
        let gain = 2.0 * (scale * cx + min * sum)
            - (scale * (scale * cc + 2.0 * min * c) + count * min * min);
        let better = scale >= 0.0 && gain > best.gain;
        if better {
            *best = Best { scale, min, gain };
        }
        better
    };
    for beyond in tries((0.0, top)) {
        consider((high - low) / (top + beyond), low, &mut best);
    }
    for _ in 0..4 {
        let Best { scale, min, .. } = best;
        if !consider(scale, min, &mut best) {
            break;
        }
    }
    best
}

/// One format's way from values to a block. Values are in units of the block's greatest.
struct Fit<'q> {
    quant: &'q Quant,
    levels: Levels,
}

impl Fit<'_> {
    /// The codes of the levels nearest to `t * x + shift`.
    fn codes(&self, x: &[f32], t: f32, shift: f32, codes: &mut [u8]) {
        let mut y = [0.0; MOST];
        let y = &mut y[..x.len()];
        self.levels.nearest(x, t, shift, y);
        let zero = if let Min::Zero(z) = self.quant.min { z } else { 0 };
        for (code, y) in codes.iter_mut().zip(y) {
            let stands = *y as i32 + zero;
            *code = match self.quant.codes {
                Codes::Plain => stands as u8,
                Codes::Double => (stands / 2) as u8,
                Codes::Table(table) => {
                    let at = table.iter().position(|&entry| i32::from(entry) == stands);
                    at.unwrap_or_default() as u8
                }
            };
        }
    }

    fn scale(&self, x: &[f32], unit: f32, block: &mut Block) {
        let best = search(&self.levels, x, &[1.0; MOST][..x.len()]);
        block.d = half(best.scale * unit);
        let t = inverse(block.d.to_f32() / unit);
        self.codes(x, t, 0.0, &mut block.codes);
    }

    fn scale_and_min(&self, x: &[f32], unit: f32, block: &mut Block) {
        let best = search_min(&self.levels, x, f32::MAX);
        block.d = half(best.scale * unit);
        block.m = half(best.min * unit);
        let t = inverse(block.d.to_f32() / unit);
        let shift = -block.m.to_f32() * inverse(block.d.to_f32());
        self.codes(x, t, shift, &mut block.codes);
    }

    fn exponents(&self, x: &[f32], unit: f32, block: &mut Block) {
        let (_, reach) = self.levels.ends();
        // The power of two above what brings the farthest value to the farthest level.
        let exact = ((unit / reach).to_bits() >> 23) as i32 + 2;
        let mut least = f32::INFINITY;
        let mut y = [0.0; MOST];
        // The scales 0 and 1 are below the normal numbers, and so are their values.
        for e in (exact - 2..=exact).map(|e| e.clamp(2, 254) as u8) {
            let scale = exponent(e) / unit;
            self.levels.nearest(x, inverse(scale), 0.0, &mut y[..x.len()]);
            let error = x.iter().zip(&y).map(|(x, y)| (x - y * scale).powi(2)).sum::<f32>();
            if error < least || unit == 0.0 {
                least = error;
                block.scales[0] = e.cast_signed();
            }
        }
        let scale = exponent(block.scales[0].cast_unsigned());
        self.codes(x, inverse(scale / unit), 0.0, &mut block.codes);
    }

    fn two_levels(&self, x: &[f32], unit: f32, block: &mut Block) {
        let size = self.quant.group;
        let groups = x.len() / size;
        let mins = !matches!(self.quant.min, Min::Zero(_));
        let (low, high) = self.quant.packing.scales;
        let (low, high) = (f32::from(low), f32::from(high));
        let ones = &[1.0; MOST][..size];
        // What each group would have, and what an error in that costs.
        let (mut scale, mut weight, mut min) = ([0.0; 16], [0.0; 16], [0.0; 16]);
        let mut y = [0.0; MOST];
        let y = &mut y[..size];
        for (g, x) in x.chunks_exact(size).enumerate() {
            let best = match mins {
                true => search_min(&self.levels, x, 0.0),
                false => search(&self.levels, x, ones),
            };
            let t = inverse(best.scale);
            self.levels.nearest(x, t, -best.min * t, y);
            (scale[g], weight[g], min[g]) = (best.scale, dot(y, y), -best.min);
        }
        let integers = Levels::Steps(low, high);
        let d = search(&integers, &scale[..groups], &weight[..groups]).scale;
        let m = search(&Levels::Steps(0.0, high), &min[..groups], &[1.0; 16][..groups]).scale;
        let mut now = TwoLevel { d, m, scales: [0.0; 16], mins: [0.0; 16] };
        integers.nearest(&scale, inverse(d), 0.0, &mut now.scales);
        Levels::Steps(0.0, high).nearest(&min, inverse(m), 0.0, &mut now.mins);
        for _ in 0..2 {
            self.improve(x, mins, &mut now);
        }
        block.d = half(now.d * unit);
        block.m = half(now.m * unit);
        let (d, m) = (block.d.to_f32() / unit, block.m.to_f32() / unit);
        let groups = x.chunks_exact(size).zip(block.codes.chunks_exact_mut(size));
        for (g, (x, codes)) in groups.enumerate() {
            block.scales[g] = now.scales[g] as i8;
            block.mins[g] = now.mins[g] as u8;
            let t = inverse(d * now.scales[g]);
            self.codes(x, t, m * now.mins[g] * t, codes);
        }
    }

    /// Moves each group to the best integers next to its own, and fits the block's numbers anew.
    fn improve(&self, x: &[f32], mins: bool, now: &mut TwoLevel) {
        let size = self.quant.group;
        let (low, high) = self.quant.packing.scales;
        let ones = &[1.0; MOST][..size];
        let mut y = [0.0; MOST];
        let y = &mut y[..size];
        let steps = |mins: bool| if mins { -1i8..=1 } else { 0..=0 };
        let (mut ss, mut sm, mut mm, mut sx, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (g, x) in x.chunks_exact(size).enumerate() {
            let sum = dot(x, ones);
            let mut best = f32::MIN;
            let mut terms = [0.0; 5];
            let (scale, min) = (now.scales[g], now.mins[g]);
            for (i, j) in steps(true).flat_map(|i| steps(mins).map(move |j| (i, j))) {
                let (scale, min) = (scale + f32::from(i), min + f32::from(j));
                if scale < f32::from(low) || scale.max(min) > f32::from(high) || min < 0.0 {
                    continue;
                }
                let (s, m) = (now.d * scale, now.m * min);
                let t = inverse(s);
                self.levels.nearest(x, t, m * t, y);
                let (xy, yy, c) = (dot(x, y), dot(y, y), dot(y, ones));
                let gain =
                    2.0 * (s * xy - m * sum) - (s * (s * yy - 2.0 * m * c) + m * m * size as f32);
                if gain > best {
                    best = gain;
                    (now.scales[g], now.mins[g]) = (scale, min);
                    terms = [
                        scale * scale * yy,
                        -scale * min * c,
                        min * min * size as f32,
                        scale * xy,
                        -min * sum,
                    ];
                }
            }
            for (sum, term) in [&mut ss, &mut sm, &mut mm, &mut sx, &mut mx].into_iter().zip(terms)
            {
                *sum += term;
            }
        }
        let determinant = ss * mm - sm * sm;
        // With one unknown where there are no minimums, or none that differs from the scales.
        if determinant > 1e-6 * ss * mm {
            (now.d, now.m) = ((mm * sx - sm * mx) / determinant, (ss * mx - sm * sx) / determinant);
        } else if ss > 0.0 && mm <= 0.0 {
            now.d = sx / ss;
        }
    }
}

/// A block of two levels on the way.
struct TwoLevel {
    d: f32,
    m: f32,
    scales: [f32; 16],
    mins: [f32; 16],
}
