//! IQ4_NL: 32 elements in 18 bytes.
//!
//! ```text
//! bytes   0  2                18
//!         |d |q0 q1 …      q15|      d: f16
//! q[i]    bits 0-3 element i, bits 4-7 element i + 16
//! value   d * the code's entry in -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
//! ```
//!
//! The table's entries lie closer where weights are more. It is kept 128 above, without signs.

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

const TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

pub(super) static ROW: Row = Row {
    ggml: 20,
    file_type: 25,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 0,
        codes: Codes::Table(&TABLE),
        group: 32,
        block: 32,
        bytes: 18,
        scale: Scale::One,
        min: Min::Zero(128),
        unpack,
        packing: Packing { codes: (0, 15), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    plane::<4, 16, 0>(&bytes[2..18], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_plane::<4, 16, 0>(&block.codes[..32], &mut out[2..18]);
}
