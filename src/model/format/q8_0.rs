//! Q8_0: 32 elements in 34 bytes.
//!
//! ```text
//! bytes   0  2                    34
//!         |d |q0 q1 …          q31|      d: f16; q: i8
//! value   d * q
//! ```
//!
//! Codes are unsigned like everyone's: `q + 128`, with the zero at 128.

use super::{Block, Codes, Kind, Min, Quant, Row, Scale, f16_at};

pub(super) static ROW: Row = Row {
    ggml: 8,
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
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    for (code, &q) in out.codes.iter_mut().zip(&bytes[2..34]) {
        // Two's complement plus 128 is the same byte with its sign bit flipped.
        *code = q ^ 0x80;
    }
}
