//! Q2_0: 64 elements in 18 bytes.
//!
//! ```text
//! bytes   0  2                18
//!         |d |q0 q1 …      q15|      d: f16
//! q[i]    bits 2 * b and up: element 4 * i + b
//! value   d * (code - 1)
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 42,
    file_type: 41,
    kind: Kind::Blocks(Quant {
        lo: 2,
        hi: 0,
        codes: Codes::Plain,
        group: 32,
        block: 64,
        bytes: 18,
        scale: Scale::One,
        min: Min::Zero(1),
        unpack,
        packing: Packing { codes: (0, 3), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    plane::<2, 1, 0>(&bytes[2..18], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_plane::<2, 1, 0>(&block.codes[..64], &mut out[2..18]);
}
