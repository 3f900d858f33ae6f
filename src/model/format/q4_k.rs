//! Q4_K: 256 elements in 144 bytes, 8 groups of 32.
//!
//! ```text
//! bytes   0  2    4             16            144
//!         |d |dmin|s0 …      s11|q0 …     q127|      d, dmin: f16
//! s       eight 6-bit scales and eight 6-bit minimums, for g in 0..4:
//!         s[g]      bits 0-5: scale g;                      6-7: bits 4-5 of scale g + 4
//!         s[4 + g]  bits 0-5: minimum g;                    6-7: bits 4-5 of minimum g + 4
//!         s[8 + g]  bits 0-3: bits 0-3 of scale g + 4;      4-7: bits 0-3 of minimum g + 4
//! q       32 bytes a pair of groups: low nibbles the first group, high nibbles the second
//! value   (d * scale) * code - dmin * minimum
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 12,
    file_type: 14,
    kind: Kind::Blocks(Quant {
        lo: 4,
        hi: 0,
        codes: Codes::Plain,
        group: 32,
        block: 256,
        bytes: 144,
        scale: Scale::TwoLevel,
        min: Min::TwoLevel,
        unpack,
        packing: Packing { codes: (0, 15), scales: (0, 63), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    out.d = f16_at(bytes, 0);
    out.m = f16_at(bytes, 2);
    scales_and_mins(&bytes[4..16], out);
    plane::<4, 32, 0>(&bytes[16..144], &mut out.codes);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_f16(out, 0, block.d);
    put_f16(out, 2, block.m);
    put_scales_and_mins(block, &mut out[4..16]);
    put_plane::<4, 32, 0>(&block.codes, &mut out[16..144]);
}

/// The twelve bytes of scales and minimums, which Q5_K has as well.
pub(super) fn scales_and_mins(s: &[u8], out: &mut Block) {
    for g in 0..4 {
        let (a, b, c) = (s[g], s[4 + g], s[8 + g]);
        out.scales[g] = (a & 0x3f).cast_signed();
        out.mins[g] = b & 0x3f;
        out.scales[4 + g] = ((c & 0x0f) | ((a >> 2) & 0x30)).cast_signed();
        out.mins[4 + g] = (c >> 4) | ((b >> 2) & 0x30);
    }
}

/// The inverse of [`scales_and_mins`].
pub(super) fn put_scales_and_mins(block: &Block, s: &mut [u8]) {
    let scale = |g: usize| block.scales[g].cast_unsigned();
    for g in 0..4 {
        s[g] = scale(g) | (scale(4 + g) & 0x30) << 2;
        s[4 + g] = block.mins[g] | (block.mins[4 + g] & 0x30) << 2;
        s[8 + g] = (scale(4 + g) & 0x0f) | block.mins[4 + g] << 4;
    }
}
