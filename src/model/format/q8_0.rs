//! Q8_0: 32 elements in 34 bytes.
//!
//! ```text
//! bytes   0  2                    34
//!         |d |q0 q1 …          q31|      d: f16; q: i8
//! value   d * q
//! ```
//!
//! Codes are unsigned like everyone's: `q + 128`, with the zero at 128.

use super::{Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, put_f16};

pub(super) static ROW: Row = Row {
    ggml: 8,
    file_type: 7,
    kind: Kind::Blocks(Quant {
        lo: 8,
        hi: 0,
        codes: Codes::Plain,
        group: 32,
        block: 32,
        bytes: 34,
        scale: Scale::One,
        min: Min::Zero(128),
        unpack,
        packing: Packing { codes: (1, 255), scales: (0, 0), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    for (code, &q) in out.codes.iter_mut().zip(&bytes[2..34]) {
        // Two's complement plus 128 is the same byte with its sign bit flipped.
        *code = q ^ 0x80;
    }
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    for (q, code) in out[2..34].iter_mut().zip(&block.codes) {
        *q = code ^ 0x80;
    }
}
