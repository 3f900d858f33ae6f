//! Q6_K: 256 elements in 210 bytes, 16 groups of 16.
//!
//! ```text
//! bytes   0             128           192           208 210
//!         |q0 …     q127|h0 …      h63|s0 …      s15|d |      d: f16; s: i8
//! q[i]    for i in 0..64, bits 0-3 of elements i (low nibble) and i + 64 (high nibble);
//!         q[64 + i] the same for elements 128 and up
//! h[i]    for i in 0..32, bits 0-1: bits 4-5 of element i; 2-3: of i + 32; 4-5: of i + 64;
//!         6-7: of i + 96; h[32 + i] the same for elements 128 and up
//! value   (d * s) * (code - 32)
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 14,
    file_type: 18,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 2,
        codes: Codes::Plain,
        group: 16,
        block: 256,
        bytes: 210,
        scale: Scale::TwoLevel,
        min: Min::Zero(32),
        unpack,
        packing: Packing { codes: (0, 63), scales: (-128, 127), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    plane::<4, 64, 0>(&bytes[..128], &mut out.codes);
    plane::<2, 32, 4>(&bytes[128..192], &mut out.codes);
    for (scale, &s) in out.scales.iter_mut().zip(&bytes[192..208]) {
        *scale = s.cast_signed();
    }
    out.d = f16_at(bytes, 208);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_plane::<4, 64, 0>(&block.codes, &mut out[..128]);
    put_plane::<2, 32, 4>(&block.codes, &mut out[128..192]);
    for (s, scale) in out[192..208].iter_mut().zip(&block.scales) {
        *s = scale.cast_unsigned();
    }
    put_f16(out, 208, block.d);
}
