//! The shapes of weights that the kernel is made for.

use crate::cpu::repack::GROUP;
use crate::model::format::{Codes, Min, Quant, Scale};

/// Where a kernel finds its scales: one a group,
pub(super) const ONE: u8 = 0;
/// one for several groups,
pub(super) const SHARED: u8 = 1;
/// an integer a group, times the block's,
pub(super) const TWO: u8 = 2;
/// the same with minimums in the upper halves of the bytes,
pub(super) const NIBBLES: u8 = 3;
/// or a power of two a group.
pub(super) const EXPONENT: u8 = 4;

/// The kernels' shapes: bits of the low and the high plane, whether a scale is shared by 16
/// instead of 32, whether there are minimums, where the scales are, and the bits of what codes
/// stand for where that is in a table. Codes of one bit alone count double.
const SHAPE: [(u32, u32, bool, bool, u8, u32); SHAPES] = [
    (1, 0, false, false, SHARED, 0),
    (2, 0, false, false, SHARED, 0),
    (2, 0, true, true, NIBBLES, 0),
    (2, 1, true, false, TWO, 0),
    (4, 0, false, false, ONE, 0),
    (4, 0, false, false, EXPONENT, 5),
    (4, 0, false, false, ONE, 8),
    (4, 0, false, true, ONE, 0),
    (4, 0, false, true, TWO, 0),
    (4, 1, false, false, ONE, 0),
    (4, 1, false, true, ONE, 0),
    (4, 1, false, true, TWO, 0),
    (4, 2, true, false, TWO, 0),
    (8, 0, false, false, ONE, 0),
];

/// How many shapes there are.
pub(in crate::cpu) const SHAPES: usize = 14;

/// The index of a format's kernels, if it has any.
pub(in crate::cpu) fn shape_index(quant: &Quant) -> Option<usize> {
    let min = !matches!(quant.min, Min::Zero(_));
    let scale = match quant.scale {
        Scale::One if quant.block > GROUP => SHARED,
        Scale::One => ONE,
        Scale::TwoLevel => TWO,
        Scale::Nibbles => NIBBLES,
        Scale::Exponent => EXPONENT,
    };
    let table = match quant.codes {
        Codes::Table(table) if table.iter().all(|value| *value < 1 << 5) => 5,
        Codes::Table(_) => 8,
        _ => 0,
    };
    let double = (quant.lo, quant.hi) == (1, 0);
    let shape = (quant.lo, quant.hi, quant.group != GROUP, min, scale, table);
    let fits = double == (quant.codes == Codes::Double);
    SHAPE.iter().position(|s| fits && *s == shape)
}
