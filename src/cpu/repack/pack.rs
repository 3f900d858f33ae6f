//! Tiles out of rows, as fast as memory takes them.
//!
//! A tile is a matrix of 32-bit words turned on its side: a row of the file brings a word to each of
//! many lines, and a line holds that word of 16 rows. So rows are brought into words first, a
//! stretch of each of the 16 into a [`Stage`] that stays in L1, and then the stage is turned, four
//! words of four lanes at a time, into whole lines. What becomes a word is all that formats differ
//! in: four bytes of floats as they are, or the codes of a group, [folded](fold) until a byte is
//! full.

use std::hint::black_box;

use super::{GROUP, LINE, Layout, SPAN, Span, Store, TILE, Width};
use crate::model::format::{Block, Min, Quant, Scale};

/// Words of a lane in a stage: those of a span of 8-bit codes.
const WORDS: usize = SPAN * GROUP / 4;

/// A stretch of 16 rows, in words.
#[repr(align(64))]
struct Stage([[u32; WORDS]; TILE]);

/// Packs tiles, each from the bytes of its rows; all have 16 rows but the last.
pub(super) fn tiles<'a>(
    layout: &Layout,
    rows: impl Iterator<Item = &'a [u8]>,
    tiles: impl Iterator<Item = &'a mut [u8]>,
) {
    let mut stage = Stage([[0; WORDS]; TILE]);
    let row_bytes = layout.row_bytes();
    for (i, (rows, tile)) in rows.zip(tiles).enumerate() {
        // What follows takes a stretch of each of 16 rows in turn, which is more than a prefetcher
        // follows, and asks for the same of the next tile. The first has to be asked for itself,
        // line by line, front to back.
        if i == 0 || !cfg!(target_arch = "x86_64") {
            black_box(rows.iter().step_by(LINE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
        }
        let lanes = rows.len() / row_bytes;
        // What no row writes.
        stage.0[lanes..].fill([0; WORDS]);
        let rows = rows.chunks_exact(row_bytes);
        match layout.store {
            Store::Floats(width) => floats(width, rows, tile, &mut stage),
            Store::Planes(quant, _) => {
                let planes = match (quant.lo, quant.hi) {
                    (1, _) => planes::<1, 0>,
                    (2, 0) => planes::<2, 0>,
                    (2, _) => planes::<2, 1>,
                    (4, 0) => planes::<4, 0>,
                    (4, 1) => planes::<4, 1>,
                    (4, _) => planes::<4, 2>,
                    _ => planes::<8, 0>,
                };
                planes(layout, quant, rows, tile, &mut stage);
            }
        }
    }
}

/// Asks for what `row[from..to]` is in the next tile, if there is one.
#[inline(always)]
fn ask_for_next(row: &[u8], from: usize, to: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (TILE * row.len() + from..TILE * row.len() + to).step_by(LINE) {
        use std::arch::x86_64::*;
        // SAFETY: every x86-64 processor has SSE; this is a hint, and the address need not exist.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, from, to);
}

type Rows<'a> = std::slice::ChunksExact<'a, u8>;

fn floats(width: Width, rows: Rows<'_>, tile: &mut [u8], stage: &mut Stage) {
    const STRETCH: usize = 4 * WORDS;
    let lines = tile.chunks_mut(WORDS * LINE);
    for (from, lines) in (0..).step_by(STRETCH).zip(lines) {
        for (row, words) in rows.clone().zip(&mut stage.0) {
            ask_for_next(row, from, row.len().min(from + STRETCH));
            let (whole, rest) = row[from..row.len().min(from + STRETCH)].as_chunks();
            for (word, bytes) in words.iter_mut().zip(whole) {
                *word = u32::from_le_bytes(*bytes);
            }
            // Of an odd number of columns the last has a word for itself.
            if let ([a, b], Some(word)) = (rest, words.get_mut(whole.len())) {
                *word = u32::from_le_bytes([*a, *b, 0, 0]);
            }
        }
        let (lines, _) = lines.as_chunks_mut();
        turn(stage, lines);
        if width == Width::F16 {
            lines.iter_mut().for_each(part);
        }
    }
}

/// Takes a line of pairs apart: the first of all, then the second.
fn part(line: &mut [u8; LINE]) {
    let mut halves = [[0u16; TILE]; 2];
    let [first, second] = &mut halves;
    for ((a, b), pair) in first.iter_mut().zip(second).zip(line.as_chunks().0) {
        let [a0, a1, b0, b1] = *pair;
        (*a, *b) = (u16::from_le_bytes([a0, a1]), u16::from_le_bytes([b0, b1]));
    }
    let halves = halves.as_flattened().iter();
    for (to, half) in line.as_chunks_mut().0.iter_mut().zip(halves) {
        *to = half.to_le_bytes();
    }
}

fn planes<const LO: usize, const HI: usize>(
    layout: &Layout,
    quant: &Quant,
    rows: Rows<'_>,
    tile: &mut [u8],
    stage: &mut Stage,
) {
    let per_block = quant.block / GROUP;
    // All of a span before they are folded: what was just written in small pieces is not read at
    // once in large ones.
    let mut blocks: [Block; SPAN] = std::array::from_fn(|_| Block::default());
    let mut from = 0;
    for (at, groups) in layout.spans(quant) {
        let span = Span::of(quant, groups);
        let bytes = groups / per_block * quant.bytes;
        let (header, lines) = tile[at..at + span.bytes].split_at_mut(span.codes);
        header.fill(0);
        let blocks = &mut blocks[..groups / per_block];
        for (lane, (row, stage)) in rows.clone().zip(&mut stage.0).enumerate() {
            ask_for_next(row, from, from + bytes);
            unpack(quant, &row[from..from + bytes], blocks);
            head(quant, &span, blocks, lane, header);
            let staged = stage.chunks_exact_mut(per_block * (LO + HI));
            for (words, block) in staged.zip(&*blocks) {
                let groups = words.chunks_exact_mut(LO + HI).zip(block.codes.as_chunks().0);
                for (words, codes) in groups {
                    let (lo, hi) = words.split_at_mut(LO);
                    fold::<LO>(codes, 0, lo);
                    fold::<HI>(codes, LO, hi);
                }
            }
        }
        turn(stage, lines.as_chunks_mut().0);
        from += bytes;
    }
}

#[inline(never)]
fn unpack(quant: &Quant, src: &[u8], blocks: &mut [Block]) {
    for (bytes, block) in src.chunks_exact(quant.bytes).zip(blocks) {
        (quant.unpack)(bytes, block);
    }
}

/// Writes to a span's header, which was zeros, what the blocks of a lane have beside their codes.
#[inline(never)]
fn head(quant: &Quant, span: &Span, blocks: &[Block], lane: usize, header: &mut [u8]) {
    let mut halves = |from: usize, half: fn(&Block) -> [u8; 2]| {
        let lines = header[from + 2 * lane..].chunks_mut(2 * TILE);
        for (to, block) in lines.zip(blocks) {
            to[..2].copy_from_slice(&half(block));
        }
    };
    if quant.scale != Scale::Exponent {
        halves(0, |block| block.d.to_le_bytes());
    }
    if !matches!(quant.min, Min::Zero(_)) {
        halves(span.m, |block| block.m.to_le_bytes());
    }
    if quant.scale == Scale::One {
        return;
    }
    let groups = quant.block / quant.group;
    let nibbles = quant.scale == Scale::Nibbles;
    let apart = quant.min == Min::TwoLevel && !nibbles;
    for (i, block) in blocks.iter().enumerate() {
        let at = TILE * groups * i;
        let scales = header[span.scales + at..].chunks_exact_mut(TILE);
        for (to, (scale, min)) in scales.zip(block.scales.iter().zip(&block.mins)).take(groups) {
            to[lane] = scale.cast_unsigned() | if nibbles { min << 4 } else { 0 };
        }
        if apart {
            let mins = header[span.mins + at..].chunks_exact_mut(TILE);
            for (to, min) in mins.zip(&block.mins).take(groups) {
                to[lane] = *min;
            }
        }
    }
}

/// The `BITS` bits from `from` on of a group's codes, as the words of one lane of a plane: of two
/// neighbours the second moves above the first, until the bytes are full.
#[inline(always)]
fn fold<const BITS: usize>(codes: &[u8; GROUP], from: usize, words: &mut [u32]) {
    let Some(words) = words.first_chunk_mut::<BITS>().filter(|_| BITS > 0) else { return };
    let field = u32::from_ne_bytes([super::mask(BITS as u32); 4]);
    let mut quads = [0u32; GROUP / 4];
    for (quad, codes) in quads.iter_mut().zip(codes.as_chunks().0) {
        *quad = u32::from_le_bytes(*codes) >> from & field;
    }
    let mut bits = BITS;
    while bits < 8 {
        for i in 0..4 * BITS / bits {
            quads[i] = quads[2 * i] | quads[2 * i + 1] << bits;
        }
        bits *= 2;
    }
    *words = std::array::from_fn(|i| quads[i]);
}

/// Writes as many words of all lanes as there are lines, each a line.
fn turn(stage: &Stage, lines: &mut [[u8; LINE]]) {
    for (at, lines) in (0..WORDS / 4).zip(lines.chunks_mut(4)) {
        for (lane, rows) in stage.0.as_chunks::<4>().0.iter().enumerate() {
            let turned = turn4(rows.each_ref().map(|row| &row.as_chunks().0[at]));
            for (line, words) in lines.iter_mut().zip(turned) {
                line.as_chunks_mut().0[lane] = words;
            }
        }
    }
}

/// Four rows of four words, by columns. Left to itself, the compiler moves one word at a time, which
/// takes four times as long.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turn4(rows: [&[u32; 4]; 4]) -> [[u8; 16]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: every x86-64 processor has SSE2; each load is of 16 bytes that are there, and a
    // vector is as many bytes.
    unsafe {
        let [a, b, c, d] = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
        let low = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let high = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        std::mem::transmute::<[__m128i; 4], [[u8; 16]; 4]>([
            _mm_unpacklo_epi64(low.0, low.1),
            _mm_unpackhi_epi64(low.0, low.1),
            _mm_unpacklo_epi64(high.0, high.1),
            _mm_unpackhi_epi64(high.0, high.1),
        ])
    }
}

/// Four rows of four words, by columns.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turn4(rows: [&[u32; 4]; 4]) -> [[u8; 16]; 4] {
    std::array::from_fn(|i| {
        let words = rows.map(|row| row[i].to_le_bytes());
        std::array::from_fn(|byte| words[byte / 4][byte % 4])
    })
}
