//! Q5_1: 32 elements in 24 bytes.
//!
//! ```text
//! bytes   0  2  4     8                24
//!         |d |m |h0-h3|q0 q1 …      q15|      d, m: f16
//! h       bit i of the four bytes, lowest byte first: bit 4 of element i
//! q[i]    bits 0-3 of elements i (low nibble) and i + 16 (high nibble)
//! value   d * code + m
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 7,
    file_type: 9,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 1,
        codes: Codes::Plain,
        group: 32,
        block: 32,
        bytes: 24,
        scale: Scale::One,
        min: Min::One,
        unpack,
        packing: Packing { codes: (0, 31), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    out.m = f16_at(bytes, 2);
    plane::<4, 16, 0>(&bytes[8..24], &mut out.codes);
    plane::<1, 1, 4>(&bytes[4..8], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_f16(out, 2, block.m);
    put_plane::<1, 1, 4>(&block.codes[..32], &mut out[4..8]);
    put_plane::<4, 16, 0>(&block.codes[..32], &mut out[8..24]);
}
