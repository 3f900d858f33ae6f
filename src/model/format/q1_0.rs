//! Q1_0: 128 elements in 18 bytes.
//!
//! ```text
//! bytes   0  2                18
//!         |d |q0 q1 …      q15|      d: f16
//! q[i]    bit b: element 8 * i + b
//! value   d where the bit is set, else -d
//! ```
//!
//! The codes' zero lies halfway between them, so they count double: `d * (2 * code - 1)`.

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 41,
    file_type: 40,
    kind: Kind::Blocks(Quant {
        lo: 1,
        hi: 0,
        codes: Codes::Double,
        group: 32,
        block: 128,
        bytes: 18,
        scale: Scale::One,
        min: Min::Zero(1),
        unpack,
        packing: Packing { codes: (0, 1), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    plane::<1, 1, 0>(&bytes[2..18], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_plane::<1, 1, 0>(&block.codes[..128], &mut out[2..18]);
}
