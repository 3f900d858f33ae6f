//! Q5_0: 32 elements in 22 bytes.
//!
//! ```text
//! bytes   0  2     6                22
//!         |d |h0-h3|q0 q1 …      q15|      d: f16
//! h       bit i of the four bytes, lowest byte first: bit 4 of element i
//! q[i]    bits 0-3 of elements i (low nibble) and i + 16 (high nibble)
//! value   d * (code - 16)
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 6,
    file_type: 8,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 1,
        codes: Codes::Plain,
        group: 32,
        block: 32,
        bytes: 22,
        scale: Scale::One,
        min: Min::Zero(16),
        unpack,
        packing: Packing { codes: (0, 31), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    plane::<4, 16, 0>(&bytes[6..22], &mut out.codes);
    plane::<1, 1, 4>(&bytes[2..6], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_plane::<1, 1, 4>(&block.codes[..32], &mut out[2..6]);
    put_plane::<4, 16, 0>(&block.codes[..32], &mut out[6..22]);
}
