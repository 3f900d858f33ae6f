//! F32, F16 and BF16: one little-endian float an element, and no blocks.
//!
//! ```text
//! F32   S EEEEEEEE MMMMMMMMMMMMMMMMMMMMMMM
//! F16   S EEEEE MMMMMMMMMM
//! BF16  S EEEEEEEE MMMMMMM      an F32 without its lower 16 bits
//! ```
//!
//! Each F16 and each BF16 is an f32 exactly, so decoding them rounds nothing.

use half::{bf16, f16};

use super::{Kind, Row};

pub(super) static F32: Row = Row {
    ggml: 0,
    file_type: 0,
    kind: Kind::Float { bytes: 4, decode: decode_f32, encode: encode_f32 },
};

pub(super) static F16: Row = Row {
    ggml: 1,
    file_type: 1,
    kind: Kind::Float { bytes: 2, decode: decode_f16, encode: encode_f16 },
};

pub(super) static BF16: Row = Row {
    ggml: 30,
    file_type: 32,
    kind: Kind::Float { bytes: 2, decode: decode_bf16, encode: encode_bf16 },
};

fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *o = f32::from_le_bytes(*b);
    }
}

fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *o = f16::from_le_bytes(*b).to_f32();
    }
}

fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        // By bits: `half` would quiet a signalling NaN, and the published decoding does not.
        *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

fn encode_f32(values: &[f32], bytes: &mut [u8]) {
    for (b, v) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *b = v.to_le_bytes();
    }
}

fn encode_f16(values: &[f32], bytes: &mut [u8]) {
    for (b, v) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *b = f16::from_f32(*v).to_le_bytes();
    }
}

fn encode_bf16(values: &[f32], bytes: &mut [u8]) {
    for (b, v) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *b = bf16::from_f32(*v).to_le_bytes();
    }
}
