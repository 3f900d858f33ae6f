//! Packed tiles against a scatter of one code after the other, byte for byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use super::*;

/// Tiles as the drawing at the top of [`super`] says, with no thought of speed.
fn scattered(layout: &Layout, src: &[u8]) -> Vec<u8> {
    let mut tiles = vec![0; layout.bytes()];
    let rows = src.chunks_exact(layout.row_bytes());
    for (row, bytes) in rows.enumerate() {
        let tile = &mut tiles[row / TILE * layout.tile_bytes()..][..layout.tile_bytes()];
        match layout.store {
            Store::Planes(quant, _) => scatter(layout, quant, tile, row % TILE, bytes),
            Store::Floats(width) => {
                let size = width.bytes() * width.columns();
                let to = tile.chunks_exact_mut(size).skip(row % TILE).step_by(TILE);
                for (to, from) in to.zip(bytes.chunks(size)) {
                    to[..from.len()].copy_from_slice(from);
                }
            }
        }
    }
    tiles
}

/// Writes one row of blocks into its lane of a tile.
fn scatter(layout: &Layout, quant: &Quant, tile: &mut [u8], lane: usize, row: &[u8]) {
    let mut block = Block::default();
    let mut blocks = row.chunks_exact(quant.bytes);
    for (at, groups) in layout.spans(quant) {
        let span = Span::of(quant, groups);
        let tile = &mut tile[at..at + span.bytes];
        let f16s = |i: usize| 2 * (TILE * i + lane);
        let per_block = quant.block / GROUP;
        for (i, bytes) in blocks.by_ref().take(groups / per_block).enumerate() {
            (quant.unpack)(bytes, &mut block);
            let at = f16s(i);
            if quant.scale != Scale::Exponent {
                tile[at..at + 2].copy_from_slice(&block.d.to_le_bytes());
            }
            if !matches!(quant.min, Min::Zero(_)) {
                tile[span.m + at..span.m + at + 2].copy_from_slice(&block.m.to_le_bytes());
            }
            if quant.scale != Scale::One {
                let scales = &block.scales[..quant.block / quant.group];
                for (g, scale) in (i * scales.len()..).zip(scales) {
                    tile[span.scales + TILE * g + lane] = scale.cast_unsigned();
                }
            }
            if quant.min == Min::TwoLevel {
                for (g, min) in block.mins[..quant.block / quant.group].iter().enumerate() {
                    match quant.scale {
                        Scale::Nibbles => tile[span.scales + TILE * g + lane] |= min << 4,
                        _ => tile[span.mins + TILE * g + lane] = *min,
                    }
                }
            }
            let planes = &mut tile[span.codes + i * per_block * span.group..];
            let groups = planes.chunks_exact_mut(span.group).zip(block.codes.as_chunks().0);
            for (planes, codes) in groups.take(per_block) {
                let (lo, hi) = planes.split_at_mut(LINE * quant.lo as usize);
                scatter_plane(lo, codes, quant.lo, 0, lane);
                scatter_plane(hi, codes, quant.hi, quant.lo, lane);
            }
        }
    }
}

/// Adds to a plane of zeros in one lane the `bits` bits from `from` on of a group's codes.
fn scatter_plane(plane: &mut [u8], codes: &[u8; GROUP], bits: u32, from: u32, lane: usize) {
    let Some(quads) = 8u32.checked_div(bits) else { return };
    let field = u32::from_ne_bytes([mask(bits); 4]);
    let loads = codes.chunks_exact(4 * quads as usize).zip(plane.chunks_exact_mut(LINE));
    for (codes, load) in loads {
        let mut word = 0;
        for (i, quad) in (0..).zip(codes.as_chunks().0) {
            word |= (u32::from_le_bytes(*quad) >> from & field) << (i * bits);
        }
        load[4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Any bytes: every one is a weight of every format.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

#[test]
fn packed_is_scattered_in_every_format_and_shape() {
    let mut packed_formats = 0;
    for &format in Format::all() {
        let block = format.block_len();
        let blocks: &[usize] =
            if block == 1 { &[1, 7, 63, 64, 65, 4097] } else { &[1, 2, 3, 7, 9] };
        for (&cols, rows) in blocks.iter().flat_map(|c| [1, 7, 15, 16, 17, 33].map(|r| (c, r))) {
            let cols = cols * block;
            let Some(layout) = Layout::of(format, rows, cols) else { continue };
            let src = noise(layout.row_bytes() * rows, (rows * cols) as u64);
            let mut packed = vec![0xaa; layout.bytes()];
            // In two parts, as two threads would.
            let half = layout.tiles() / 2;
            let (first, second) = packed.split_at_mut(half * layout.tile_bytes());
            repack_tiles(&layout, &src, first, 0..half).unwrap();
            repack_tiles(&layout, &src, second, half..layout.tiles()).unwrap();
            let wants = scattered(&layout, &src);
            let differs = packed.iter().zip(&wants).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{} {rows} x {cols}: first byte", format.name());
            packed_formats += usize::from(rows == 33);
        }
    }
    // Three kinds of floats in six lengths, and each block format in five.
    assert_eq!(packed_formats, 3 * 6 + (Format::all().len() - 3) * 5);
}
