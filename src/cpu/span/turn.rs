//! Rope over heads. What must hold of pointers is said at [the module above](super).

use crate::cpu::lanes::Lanes;
use crate::graph::RopeLayout;

/// Plain loops: products and sums are rounded one by one as in the op's meaning, so the result is
/// the same to the bit, and the compiler finds the vectors.
#[inline(always)]
pub(super) unsafe fn rope<L: Lanes>(
    x: *const f32,
    out: *mut f32,
    turn: *const f32,
    heads: usize,
    head_dim: usize,
    dim: usize,
    layout: RopeLayout,
) {
    let half = dim / 2;
    let (stride, apart) = match layout {
        RopeLayout::Neighbour => (2, 1),
        RopeLayout::Half => (1, half),
    };
    // SAFETY: the caller's promise: indices stay inside heads * head_dim, those of `turn` inside
    // dim; both elements of a pair are read before either is written.
    unsafe {
        for head in 0..heads {
            let (x, out) = (x.add(head * head_dim), out.add(head * head_dim));
            for i in 0..half {
                let (cos, sin) = (*turn.add(i), *turn.add(half + i));
                let (a, b) = (*x.add(i * stride), *x.add(i * stride + apart));
                *out.add(i * stride) = a * cos - b * sin;
                *out.add(i * stride + apart) = a * sin + b * cos;
            }
            for i in dim..head_dim {
                *out.add(i) = *x.add(i);
            }
        }
    }
}
