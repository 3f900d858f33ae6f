//! Q2_K: 256 elements in 84 bytes, 16 groups of 16.
//!
//! ```text
//! bytes   0             16            80 82  84
//!         |s0 …      s15|q0 …      q63|d |dmin|      d, dmin: f16
//! s[g]    bits 0-3 the group's scale, bits 4-7 its minimum
//! q[i]    for i in 0..32, bits 0-1 element i, 2-3 element i + 32, 4-5 element i + 64,
//!         6-7 element i + 96; q[32 + i] the same for elements 128 and up
//! value   (d * scale) * code - dmin * minimum
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 10,
    file_type: 10,
    kind: Kind::Blocks(Quant {
        lo: 2,
        hi: 0,
        codes: Codes::Plain,
        group: 16,
        block: 256,
        bytes: 84,
        scale: Scale::Nibbles,
        min: Min::TwoLevel,
        unpack,
        packing: Packing { codes: (0, 3), scales: (0, 15), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    let groups = out.scales.iter_mut().zip(&mut out.mins);
    for ((scale, min), &s) in groups.zip(&bytes[..16]) {
        *scale = (s & 0x0f).cast_signed();
        *min = s >> 4;
    }
    plane::<2, 32, 0>(&bytes[16..80], &mut out.codes);
    out.d = f16_at(bytes, 80);
    out.m = f16_at(bytes, 82);
}

fn pack(block: &Block, out: &mut [u8]) {
    for (s, (scale, min)) in out.iter_mut().zip(block.scales.iter().zip(&block.mins)) {
        *s = scale.cast_unsigned() | min << 4;
    }
    put_plane::<2, 32, 0>(&block.codes, &mut out[16..80]);
    put_f16(out, 80, block.d);
    put_f16(out, 82, block.m);
}
