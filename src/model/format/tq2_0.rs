//! TQ2_0: 256 elements in 66 bytes.
//!
//! ```text
//! bytes   0             64 66
//!         |q0 …      q63|d |      d: f16
//! q[i]    for i in 0..32, bits 0-1 element i, 2-3 element i + 32, 4-5 element i + 64,
//!         6-7 element i + 96; q[32 + i] the same for elements 128 and up
//! value   d * (code - 1)
//! ```
//!
//! Made for codes 0, 1 and 2; a 3 stands for `2 d`.

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 35,
    file_type: 37,
    kind: Kind::Blocks(Quant {
        lo: 2,
        hi: 0,
        codes: Codes::Plain,
        group: 32,
        block: 256,
        bytes: 66,
        scale: Scale::One,
        min: Min::Zero(1),
        unpack,
        packing: Packing { codes: (0, 2), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    plane::<2, 32, 0>(&bytes[..64], &mut out.codes);
    out.d = f16_at(bytes, 64);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_plane::<2, 32, 0>(&block.codes, &mut out[..64]);
    put_f16(out, 64, block.d);
}
