//! MXFP4: 32 elements in 17 bytes.
//!
//! ```text
//! bytes   0 1                17
//!         |e|q0 q1 …      q15|      e: u8
//! q[i]    bits 0-3 element i, bits 4-7 element i + 16
//! value   2^(e - 128) * the code's entry in 0 1 2 3 4 6 8 12 0 -1 -2 -3 -4 -6 -8 -12
//! ```
//!
//! A code is a float of a sign, two bits of exponent and one of fraction; the table has them twice
//! as large, so that they are integers, and is kept 12 above, without signs. `2^(e - 128)` is below
//! the normal numbers for the least two `e`, and with the greatest a value may be infinite.

use super::{Block, Codes, Kind, Min, Packing, Quant, Row, Scale, plane, put_plane};

const TABLE: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

pub(super) static ROW: Row = Row {
    ggml: 39,
    file_type: 38,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 0,
        codes: Codes::Table(&TABLE),
        group: 32,
        block: 32,
        bytes: 17,
        scale: Scale::Exponent,
        min: Min::Zero(12),
        unpack,
        packing: Packing { codes: (0, 15), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.scales[0] = bytes[0].cast_signed();
    plane::<4, 16, 0>(&bytes[1..17], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    out[0] = block.scales[0].cast_unsigned();
    put_plane::<4, 16, 0>(&block.codes[..32], &mut out[1..17]);
}
