//! Q3_K: 256 elements in 110 bytes, 16 groups of 16.
//!
//! ```text
//! bytes   0             32            96           108 110
//!         |h0 …      h31|q0 …      q63|s0 …     s11|d |      d: f16
//! h[i]    bit b: bit 2 of element i + 32 * b
//! q[i]    for i in 0..32, bits 0-1 element i, 2-3 element i + 32, 4-5 element i + 64,
//!         6-7 element i + 96; q[32 + i] the same for elements 128 and up
//! s       sixteen 6-bit scales about 32:
//!         s[g]      g in 0..8   bits 0-3: bits 0-3 of scale g; bits 4-7: of scale g + 8
//!         s[8 + g]  g in 0..4   bits 0-1: bits 4-5 of scale g; 2-3: of g + 4; 4-5: of g + 8;
//!                               6-7: of g + 12
//! value   (d * (scale - 32)) * (code - 4)
//! ```

use super::{
    Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, plane, put_f16, put_plane,
};

pub(super) static ROW: Row = Row {
    ggml: 11,
    file_type: 11,
    kind: Kind::Blocks(Quant {
        lo: 2,
        hi: 1,
        codes: Codes::Plain,
        group: 16,
        block: 256,
        bytes: 110,
        scale: Scale::TwoLevel,
        min: Min::Zero(4),
        unpack,
        packing: Packing { codes: (0, 7), scales: (-32, 31), pack },
    }),
};

fn unpack(bytes: &[u8], out: &mut Block) {
    plane::<2, 32, 0>(&bytes[32..96], &mut out.codes);
    plane::<1, 32, 2>(&bytes[..32], &mut out.codes);
    // The scales are planes too: 4 + 2 bits.
    let mut scales = [0; 16];
    plane::<4, 8, 0>(&bytes[96..104], &mut scales);
    plane::<2, 4, 4>(&bytes[104..108], &mut scales);
    out.scales = scales.map(|s| s.cast_signed() - 32);
    out.d = f16_at(bytes, 108);
}

fn pack(block: &Block, out: &mut [u8]) {
    put_plane::<1, 32, 2>(&block.codes, &mut out[..32]);
    put_plane::<2, 32, 0>(&block.codes, &mut out[32..96]);
    let scales = block.scales.map(|s| (s + 32).cast_unsigned());
    put_plane::<4, 8, 0>(&scales, &mut out[96..104]);
    put_plane::<2, 4, 4>(&scales, &mut out[104..108]);
    put_f16(out, 108, block.d);
}
