//! Q4_0: 32 elements in 18 bytes.
//!
//! ```text
//! bytes   0  2                18
//!         |d |q0 q1 …      q15|      d: f16
//! q[i]    bits 0-3 element i, bits 4-7 element i + 16
//! value   d * (code - 8)
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 2,
    file_type: 2,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 0,
        codes: Codes::Plain,
        group: 32,
        block: 32,
        bytes: 18,
        scale: Scale::One,
        min: Min::Zero(8),
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
