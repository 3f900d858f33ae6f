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

use super::q4_k::{put_scales_and_mins, scales_and_mins};
use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 13,
    file_type: 16,
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
        packing: Packing { codes: (0, 31), scales: (0, 63), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    out.m = f16_at(bytes, 2);
    scales_and_mins(&bytes[4..16], out);
    plane::<4, 32, 0>(&bytes[48..176], &mut out.codes);
    plane::<1, 32, 4>(&bytes[16..48], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_f16(out, 2, block.m);
    put_scales_and_mins(block, &mut out[4..16]);
    put_plane::<1, 32, 4>(&block.codes, &mut out[16..48]);
    put_plane::<4, 32, 0>(&block.codes, &mut out[48..176]);
}
