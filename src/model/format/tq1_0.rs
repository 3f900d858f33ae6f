//! TQ1_0: 256 elements in 54 bytes.
//!
//! ```text
//! bytes   0             32            48       52 54
//!         |q0 …      q31|q32 …     q47|h0 …  h3|d |      d: f16
//! q, h    five codes 0, 1 or 2 a byte, or four in h. As a fraction of 256, a byte is a number in
//!         base 3: 0.c0 c1 c2 c3 c4, so tripling it brings up one code after the other
//! q[i]    i in 0..32: elements i, i + 32, i + 64, i + 96, i + 128
//! q[32+i] i in 0..16: elements 160 + i, 176 + i, 192 + i, 208 + i, 224 + i
//! h[i]    i in 0..4: elements 240 + i, 244 + i, 248 + i, 252 + i
//! value   d * (code - 1)
//! ```

use super::{Block, Codes, Kind, Min, Packing, Quant, Row, Scale, f16_at, put_f16};

pub(super) static ROW: Row = Row {
    ggml: 34,
    file_type: 36,
    kind: Kind::Blocks(Quant {
        lo: 2,
        hi: 0,
        codes: Codes::Plain,
        group: 32,
        block: 256,
        bytes: 54,
        scale: Scale::One,
        min: Min::Zero(1),
        unpack,
        packing: Packing { codes: (0, 2), scales: (0, 0), pack },
    }),
};

/// The stretches of bytes that are packed together: the first byte, how many bytes, and the first
/// element.
const RUNS: [(usize, usize, usize); 3] = [(0, 32, 0), (32, 16, 160), (48, 4, 240)];

fn unpack(bytes: &[u8], out: &mut Block) {
    for (at, run, first) in RUNS {
        // The last run ends with the block, one code a byte early.
        for (n, codes) in out.codes[first..].chunks_exact_mut(run).take(5).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(&bytes[at..at + run]) {
                let rest = byte.wrapping_mul(3u8.pow(n as u32));
                *code = ((u16::from(rest) * 3) >> 8) as u8;
            }
        }
    }
    out.d = f16_at(bytes, 52);
}

fn pack(block: &Block, out: &mut [u8]) {
    for (at, run, first) in RUNS {
        for (i, byte) in out[at..at + run].iter_mut().enumerate() {
            let codes = block.codes[first + i..].iter().step_by(run);
            // Of four codes, as if a fifth were 0.
            let count = if run == 4 { 4 } else { 5 };
            let codes = codes.take(count).chain(std::iter::repeat_n(&0, 5 - count));
            let number = codes.fold(0, |number, code| 3 * number + u32::from(*code));
            // The least fraction of 256 that is at least that of 243.
            *byte = (number * 256).div_ceil(243) as u8;
        }
    }
    put_f16(out, 52, block.d);
}
