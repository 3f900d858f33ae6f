//! Q5_K: 256 elements in 176 bytes, 8 groups of 32.
//!
//! ```text
//! bytes   0  2    4             16            48            176
//!         |d |dmin|s0 …      s11|h0 …      h31|q0 …     q127|      d, dmin: f16
//! s       scales and minimums, as in Q4_K
//! h[i]    bit g: bit 4 of element i of group g
//! q       32 bytes a pair of groups: low nibbles the first group, high nibbles the second
//! value   (d * scale) * code - dmin * minimum
//! ```

use super::q4_k::scales_and_mins;
use super::{Block, Codes, Kind, Min, Quant, Row, Scale, f16_at, plane};

pub(super) static ROW: Row = Row {
    ggml: 13,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 1,
        codes: Codes::Plain,
        group: 32,
        block: 256,
        bytes: 176,
        scale: Scale::TwoLevel,
        min: Min::TwoLevel,
        unpack,
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    out.m = f16_at(bytes, 2);
    scales_and_mins(&bytes[4..16], out);
    plane::<4, 32, 0>(&bytes[48..176], &mut out.codes);
    plane::<1, 32, 4>(&bytes[16..48], &mut out.codes);
}
