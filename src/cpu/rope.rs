//! The angles of rope, worked out before the first token.
//!
//! A row of the table holds the cosines and sines of one position, so a step computes no angle.
//! They are made as the op says, in f64, and rounded once.

use crate::error::{Error, Result};
use crate::graph::RopeLayout;
use crate::graph::op::Rope;

/// Cosines and sines for each position of a context.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeTable {
    dim: usize,
    layout: RopeLayout,
    turns: Vec<f32>,
}

impl RopeTable {
    /// The table of `rope` for positions below `context`; `factors`, if there are any, divide the
    /// frequency of each pair.
    ///
    /// # Errors
    /// The factors do not fit, or the table is too large.
    pub fn new(rope: &Rope, factors: Option<&[f32]>, context: usize) -> Result<RopeTable> {
        let half = rope.dim / 2;
        if let Some(f) = factors.filter(|f| f.len() != half) {
            return Err(Error::Invalid(format!("{} rope factors for {half} pairs", f.len())));
        }
        let too_large = || Error::Memory {
            what: format!("a rope table of {} elements for {context} positions", rope.dim),
            needs: Self::bytes(rope.dim, context).map_or(u64::MAX, |b| b as u64),
            has: 0,
            hint: "try a smaller --ctx".to_string(),
        };
        if u32::try_from(context).is_err() {
            return Err(too_large());
        }
        let bytes = Self::bytes(rope.dim, context).ok_or_else(too_large)?;
        let mut turns = Vec::new();
        turns.try_reserve_exact(bytes / size_of::<f32>()).map_err(|_| too_large())?;
        // The frequency of a pair is its angle at position 1 before the scale: the same factors in
        // the same order as `Rope::angle`, with the power taken once a pair.
        let unscaled = Rope { scale: 1.0, ..rope.clone() };
        let frequency = |i: usize| unscaled.angle(1, i, factors.map_or(1.0, |f| f[i]));
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        for position in 0..context {
            let scaled = position as f64 * f64::from(rope.scale);
            turns.extend(frequencies.iter().map(|f| rope.turn(scaled * f).0));
            turns.extend(frequencies.iter().map(|f| rope.turn(scaled * f).1));
        }
        Ok(RopeTable { dim: 2 * half, layout: rope.layout, turns })
    }

    /// What a table takes; `None` if no number holds it.
    pub fn bytes(dim: usize, context: usize) -> Option<usize> {
        (dim / 2 * 2).checked_mul(context)?.checked_mul(size_of::<f32>())
    }

    /// `dim` numbers: the cosine of each pair, then the sine of each; `None` past the context.
    pub fn row(&self, position: u32) -> Option<&[f32]> {
        let start = (position as usize).checked_mul(self.dim)?;
        self.turns.get(start..start.checked_add(self.dim)?)
    }

    /// How many elements of a head turn.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Which of them form a pair.
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::cpu::simd::Isa;
    use crate::cpu::span::SpanKernels;

    /// The op's own words, element by element.
    fn meaning(rope: &Rope, f: Option<&[f32]>, position: u32, head: usize, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        for i in 0..rope.dim / 2 {
            let (cos, sin) = rope.turn(rope.angle(position, i, f.map_or(1.0, |f| f[i])));
            let (a, b) = rope.pair(i);
            for y in y.chunks_exact_mut(head) {
                (y[a], y[b]) = (y[a] * cos - y[b] * sin, y[a] * sin + y[b] * cos);
            }
        }
        y
    }

    #[test]
    fn turns_are_those_of_the_op_to_the_bit() {
        for (heads, head, dim) in [(3, 64, 64), (2, 256, 256), (1, 7, 2), (4, 80, 34), (2, 6, 6)] {
            for layout in [RopeLayout::Neighbour, RopeLayout::Half] {
                let own = if dim == 64 { vec![1.25; 32] } else { Vec::new() };
                let gain = if dim == 256 { 1.2 } else { 1.0 };
                let rope = Rope { dim, base: 1e5, scale: 0.125, layout, gain, factors: own };
                let factors: Vec<f32> = (0..dim / 2).map(|i| 1.0 + i as f32 / 3.0).collect();
                for factors in [None, Some(&factors[..])] {
                    let table = RopeTable::new(&rope, factors, 600).unwrap();
                    let x: Vec<f32> = (0..heads * head).map(|i| (i as f32 * 0.7).sin()).collect();
                    for position in [0, 1, 63, 599] {
                        let want = meaning(&rope, factors, position, head, &x);
                        let turn = table.row(position).unwrap().as_ptr();
                        for isa in Isa::available() {
                            let k = SpanKernels::of(isa);
                            let (mut y, mut same) = (vec![0.0; x.len()], x.clone());
                            // SAFETY: spans of heads * head elements; the row holds dim.
                            unsafe {
                                (k.rope)(
                                    x.as_ptr(),
                                    y.as_mut_ptr(),
                                    turn,
                                    heads,
                                    head,
                                    dim,
                                    layout,
                                );
                                let p = same.as_mut_ptr();
                                (k.rope)(p, p, turn, heads, head, dim, layout);
                            }
                            assert_eq!(y, want, "{isa:?} {layout:?} {position}");
                            assert_eq!(same, want, "{isa:?} {layout:?} {position} in place");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (layout, factors) = (RopeLayout::Half, Vec::new());
        let rope = Rope { dim: 8, base: 1e4, scale: 1.0, layout, gain: 1.0, factors };
        assert!(RopeTable::new(&rope, Some(&[1.0; 3]), 4).is_err());
        assert!(RopeTable::new(&rope, None, usize::MAX).is_err());
        assert_eq!(RopeTable::bytes(8, usize::MAX), None);
        let table = RopeTable::new(&rope, None, 4).unwrap();
        assert!(table.row(3).is_some() && table.row(4).is_none() && table.row(u32::MAX).is_none());
    }
}
