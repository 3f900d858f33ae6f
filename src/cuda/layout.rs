//! Weights as the kernels read them.
//!
//! Four outputs are a *panel*; a panel is what a warp multiplies at a time. It runs through the
//! inputs in *spans* of *units*, a unit a lane: up to 8 of 32 columns of a block format, or 32 of 16 bytes of a
//! float format. Codes and scales of a span lie together, so that a span is one copy. Floats are ordered
//! `[row][unit]`, and every part of a block format `[unit][row]`: so neighbours are read by lanes that have a row and a
//! unit each, and by those that have a row and a part of the same unit.
//!
//! ```text
//! span of a block format, n units       bytes a unit and row
//! |lo n x 4 rows |hi  |scales  |d  |    lo: 4 x bits (8 bits: all first halves of 16, then all second); hi: 4 x bits
//!
//! scales   one level: d: f16, with a minimum m: f16 beside it
//!          two levels: the unit's 1 or 2 integer scales, then its minimums, 8 bits each
//!          powers of two: the exponent, 8 bits
//! d        two levels only: d: f16, with the scale of the minimums m: f16 beside it
//! ```
//!
//! A plane of `b` bits keeps four neighbouring codes (a *quad*) in the four bytes of a word, at the
//! same bit of each, so that a shift and a mask give what a dot product of bytes takes. Quad `q` is in word
//! `q % b` at bit `q / b * b`: so quads 4 apart are in one word, 4 bits apart, where one lane of four takes every
//! fourth of a row's quads. Missing rows of the last panel, and missing columns of the last unit, are zeros.

use super::abi::{FLOATS_SPAN, Matrix, PANEL, PLANES_SPAN, TABLE};
use crate::error::{Error, Result};
use crate::model::format::{Block, Codes, Format, Min, Quant, Scale};

/// How a matrix of some format and shape lies in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    format: Format,
    quant: Option<&'static Quant>,
    pub rows: usize,
    pub cols: usize,
    /// Units of a row.
    pub units: usize,
    /// Spans of a row, the last one perhaps shorter.
    pub spans: usize,
    /// Bytes of a full span.
    pub span_bytes: usize,
    pub panel_bytes: usize,
    /// Panels of the matrix.
    pub panels: usize,
}

/// The kernels: one instance of the product for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Product {
    /// Planes of 8, 4, 2, 1 bits alone.
    P8,
    P4,
    P2,
    P1,
    /// 3, 5 and 6 bits.
    P21,
    P41,
    P42,
    F32,
    F16,
    Bf16,
}

impl Product {
    pub(super) const ALL: [Product; 10] = [
        Product::P8,
        Product::P4,
        Product::P2,
        Product::P1,
        Product::P21,
        Product::P41,
        Product::P42,
        Product::F32,
        Product::F16,
        Product::Bf16,
    ];

    pub(super) fn in_planes(self) -> bool {
        !matches!(self, Product::F32 | Product::F16 | Product::Bf16)
    }

    /// What its kernels' names end with.
    pub(super) fn name(self) -> &'static str {
        match self {
            Product::P8 => "8_0",
            Product::P4 => "4_0",
            Product::P2 => "2_0",
            Product::P1 => "1_0",
            Product::P21 => "2_1",
            Product::P41 => "4_1",
            Product::P42 => "4_2",
            Product::F32 => "f32",
            Product::F16 => "f16",
            Product::Bf16 => "bf16",
        }
    }
}

/// Columns of a unit of a block format.
pub(super) const UNIT: usize = 32;

impl Layout {
    /// `None` for an empty matrix, a size that cannot be counted, or a format without a kernel.
    pub(super) fn of(format: Format, rows: usize, cols: usize) -> Option<Layout> {
        let quant = format.quant();
        let unit = match (format, quant) {
            (Format::F32, _) => 4,
            (Format::F16 | Format::BF16, _) => 8,
            (_, Some(q)) if cols.is_multiple_of(q.block) && fits(q) => UNIT,
            _ => return None,
        };
        if rows == 0 || cols == 0 || u32::try_from(rows.max(cols)).is_err() {
            return None;
        }
        let units = cols.div_ceil(unit);
        let size = if quant.is_some() { PLANES_SPAN } else { FLOATS_SPAN };
        let spans = units.div_ceil(size);
        let full = span_bytes(quant, units.min(size));
        let last = span_bytes(quant, units - (spans - 1) * size);
        let panel_bytes = (spans - 1).checked_mul(full)?.checked_add(last)?;
        let panels = rows.div_ceil(PANEL);
        panel_bytes.checked_mul(panels)?;
        u32::try_from(panel_bytes).ok()?;
        let layout = Layout {
            format,
            quant,
            rows,
            cols,
            units,
            spans,
            span_bytes: full,
            panel_bytes,
            panels,
        };
        layout.product().map(|_| layout)
    }

    /// Bytes of the whole matrix.
    pub(super) fn bytes(&self) -> usize {
        self.panel_bytes * self.panels
    }

    /// Whether it is of a block format.
    pub(super) fn in_planes(&self) -> bool {
        self.quant.is_some()
    }

    /// Whether something is added to weights.
    pub(super) fn adds(&self) -> bool {
        self.quant.is_some_and(|q| !matches!(q.min, Min::Zero(_)))
    }

    /// Whether products of one row count its bits: of 1 and 2, a scale for 128 columns or more.
    pub(super) fn counts(&self) -> bool {
        self.quant.is_some_and(|q| {
            let scales = q.scale == Scale::One && matches!(q.min, Min::Zero(_));
            scales && q.block >= 4 * UNIT && q.hi == 0 && q.lo <= 2
        })
    }

    /// The kernel that multiplies with it.
    pub(super) fn product(&self) -> Option<Product> {
        Some(match (self.format, self.quant) {
            (Format::F32, _) => Product::F32,
            (Format::F16, _) => Product::F16,
            (Format::BF16, _) => Product::Bf16,
            (_, quant) => {
                let quant = quant?;
                match (quant.lo, quant.hi) {
                    (8, 0) => Product::P8,
                    (4, 0) => Product::P4,
                    (2, 0) => Product::P2,
                    (1, 0) => Product::P1,
                    (2, 1) => Product::P21,
                    (4, 1) => Product::P41,
                    (4, 2) => Product::P42,
                    _ => return None,
                }
            }
        })
    }

    /// As a kernel is told of it.
    pub(super) fn matrix(&self, data: u64) -> Matrix {
        let mut m = Matrix {
            data,
            rows: self.rows as u32,
            cols: self.cols as u32,
            units: self.units as u32,
            spans: self.spans as u32,
            span_bytes: self.span_bytes as u32,
            panel_bytes: self.panel_bytes as u32,
            kind: match self.format {
                Format::F32 => 0,
                Format::F16 => 1,
                Format::BF16 => 2,
                _ => 3,
            },
            halves: 1,
            ..Matrix::default()
        };
        if let Some(q) = self.quant {
            (m.lo, m.hi) = (q.lo, q.hi);
            m.halves = (UNIT / q.group) as u32;
            m.levels = match q.scale {
                Scale::One => 0,
                Scale::TwoLevel | Scale::Nibbles => 1,
                Scale::Exponent => 2,
            };
            (m.min, m.zero) = match q.min {
                Min::Zero(z) => (0, z),
                Min::One => (1, 0),
                Min::TwoLevel => (2, 0),
            };
            match q.codes {
                Codes::Plain => {}
                Codes::Table(table) => {
                    m.codes = TABLE;
                    let (table, zero) = centred(*table, m.zero);
                    m.zero = zero;
                    let words = table.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w));
                    m.table.iter_mut().zip(words).for_each(|(to, from)| *to = from);
                }
                Codes::Double => m.codes = 2,
            }
        }
        m
    }

    /// Writes panels `first ..` of the matrix at `src`, as many as `dst` holds.
    pub(super) fn repack(&self, src: &[u8], first: usize, dst: &mut [u8]) -> Result<()> {
        let row_bytes = self.format.row_bytes(self.cols);
        let row_bytes = row_bytes.filter(|b| b.checked_mul(self.rows) == Some(src.len()));
        let row_bytes = row_bytes.ok_or_else(|| {
            let (rows, cols) = (self.rows, self.cols);
            Error::Invalid(format!("{} bytes do not make {rows} x {cols}", src.len()))
        })?;
        dst.fill(0);
        let mut block = Block::default();
        for (panel, dst) in dst.chunks_exact_mut(self.panel_bytes).enumerate() {
            for r in 0..PANEL {
                let row = (first + panel) * PANEL + r;
                let Some(src) = src.get(row * row_bytes..(row + 1) * row_bytes) else { break };
                match self.quant {
                    Some(quant) => self.planes(quant, src, r, &mut block, dst),
                    None => self.floats(src, r, dst),
                }
            }
        }
        Ok(())
    }

    fn floats(&self, src: &[u8], r: usize, dst: &mut [u8]) {
        let spans = dst.chunks_mut(self.span_bytes).zip(src.chunks(FLOATS_SPAN * 16));
        for (dst, src) in spans {
            let n = dst.len() / (PANEL * 16);
            let row = dst.get_mut(r * n * 16..).unwrap_or_default();
            row.iter_mut().zip(src).for_each(|(to, from)| *to = *from);
        }
    }

    fn planes(&self, q: &Quant, src: &[u8], r: usize, block: &mut Block, dst: &mut [u8]) {
        let halves = UNIT / q.group;
        for (i, bytes) in src.chunks_exact(q.bytes).enumerate() {
            (q.unpack)(bytes, block);
            for (j, codes) in block.codes[..q.block].chunks_exact(UNIT).enumerate() {
                let unit = i * (q.block / UNIT) + j;
                let (span, lane) = (unit / PLANES_SPAN, unit % PLANES_SPAN);
                let n = (self.units - span * PLANES_SPAN).min(PLANES_SPAN);
                let Some(to) = dst.get_mut(span * self.span_bytes..) else { return };
                let (at, place) = (Parts::of(q, n), lane * PANEL + r);
                // The low plane; 8 bits come in two pieces.
                let mut lo = [0; 32];
                pack(q.lo, codes, 0, &mut lo);
                if q.lo == 8 {
                    for (piece, bytes) in lo.chunks_exact(16).enumerate() {
                        put(to, (piece * PANEL * n + place) * 16, bytes);
                    }
                } else {
                    let bytes = 4 * q.lo as usize;
                    put(to, place * bytes, &lo[..bytes]);
                }
                if q.hi > 0 {
                    let (mut hi, bytes) = ([0; 32], 4 * q.hi as usize);
                    pack(q.hi, codes, q.lo, &mut hi);
                    put(to, at.hi + place * bytes, &hi[..bytes]);
                }
                let scale = at.scales + place * scale_bytes(q);
                match q.scale {
                    Scale::One => {
                        put(to, scale, &block.d.to_le_bytes());
                        if q.min == Min::One {
                            put(to, scale + 2, &block.m.to_le_bytes());
                        }
                    }
                    Scale::Exponent => put(to, scale, &block.scales[j].to_le_bytes()),
                    Scale::TwoLevel | Scale::Nibbles => {
                        for h in 0..halves {
                            let group = j * halves + h;
                            put(to, scale + h, &block.scales[group].to_le_bytes());
                            if q.min == Min::TwoLevel {
                                put(to, scale + halves + h, &[block.mins[group]]);
                            }
                        }
                        let d = at.d + r * d_bytes(q);
                        put(to, d, &block.d.to_le_bytes());
                        if q.min == Min::TwoLevel {
                            put(to, d + 2, &block.m.to_le_bytes());
                        }
                    }
                }
            }
        }
    }
}

/// A table with its zero at 128, where products of few rows take it off in one subtraction; as it is if that is no byte.
fn centred(table: [u8; 16], zero: i32) -> ([u8; 16], i32) {
    let mut moved = table;
    for entry in &mut moved {
        let Ok(there) = u8::try_from(i32::from(*entry) + 128 - zero) else { return (table, zero) };
        *entry = there;
    }
    (moved, 128)
}

/// Whether a format's groups and blocks are such as the kernels take apart.
fn fits(q: &Quant) -> bool {
    let groups = q.group == 16 || q.group == 32;
    let blocks = match q.scale {
        Scale::One => q.block.is_multiple_of(UNIT) && q.group == UNIT && q.min != Min::TwoLevel,
        Scale::TwoLevel | Scale::Nibbles => q.block == 8 * UNIT && q.min != Min::One,
        Scale::Exponent => {
            q.block.is_multiple_of(UNIT) && q.group == UNIT && matches!(q.min, Min::Zero(_))
        }
    };
    let codes = match q.codes {
        Codes::Plain => true,
        Codes::Table(_) => (q.lo, q.hi) == (4, 0),
        Codes::Double => (q.lo, q.hi) == (1, 0),
    };
    // Of each kind of planes products of many rows know some kinds of scales, and how many sums a unit has
    // (kernels-src/shares.cuh).
    let one = q.scale == Scale::One && matches!(q.min, Min::Zero(_));
    let halves = q.group != UNIT && matches!(q.min, Min::Zero(_));
    let known = match (q.lo, q.hi) {
        (8, 0) => q.min == Min::Zero(128) && one,
        (1, 0) => one,
        (4, 0 | 1) => q.group == UNIT,
        (2, 1) | (4, 2) => halves,
        _ => true,
    };
    groups && blocks && codes && known && q.block <= 256
}

/// Bytes of the integer scales or of the scale of one unit of one row.
fn scale_bytes(q: &Quant) -> usize {
    let halves = UNIT / q.group;
    match q.scale {
        Scale::One => 2 * (1 + usize::from(q.min == Min::One)),
        Scale::Exponent => 1,
        Scale::TwoLevel | Scale::Nibbles => halves * (1 + usize::from(q.min == Min::TwoLevel)),
    }
}

/// Bytes of the scales of a span of one row.
fn d_bytes(q: &Quant) -> usize {
    match q.scale {
        Scale::One | Scale::Exponent => 0,
        Scale::TwoLevel | Scale::Nibbles => 2 * (1 + usize::from(q.min == Min::TwoLevel)),
    }
}

/// Where the parts of a span of `n` units begin.
struct Parts {
    hi: usize,
    scales: usize,
    d: usize,
    end: usize,
}

impl Parts {
    fn of(q: &Quant, n: usize) -> Parts {
        let hi = PANEL * n * 4 * q.lo as usize;
        let scales = hi + PANEL * n * 4 * q.hi as usize;
        let d = scales + PANEL * n * scale_bytes(q);
        Parts { hi, scales, d, end: d + PANEL * d_bytes(q) }
    }
}

/// Bytes of a span of `n` units, which copies want in sixteens.
fn span_bytes(quant: Option<&Quant>, n: usize) -> usize {
    match quant {
        Some(q) => Parts::of(q, n).end.next_multiple_of(16),
        None => PANEL * n * 16,
    }
}

/// The plane of `bits` bits that stands at bit `shift` of 32 codes.
fn pack(bits: u32, codes: &[u8], shift: u32, out: &mut [u8; 32]) {
    let mask = ((1u32 << bits) - 1) as u8;
    for (q, quad) in codes.chunks_exact(4).enumerate() {
        let (word, at) = (q % bits as usize, q as u32 / bits * bits);
        for (byte, &code) in out[4 * word..].iter_mut().zip(quad) {
            *byte |= ((code >> shift) & mask) << at;
        }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = to.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use half::f16;

    /// What the kernels read at a row and column, written down a second time.
    fn value_at(l: &Layout, data: &[u8], row: usize, col: usize) -> f32 {
        let m = l.matrix(0);
        let (r, panel) = (row % PANEL, row / PANEL);
        let per = [4, 8, 8, 32][m.kind as usize];
        let (unit, e) = (col / per, col % per);
        let size = if m.kind == 3 { 8 } else { 32 };
        let (span, lane) = (unit / size, unit % size);
        let n = (l.units - span * size).min(size);
        let p = &data[panel * l.panel_bytes + span * l.span_bytes..];
        let f32_at = |at: usize| f32::from_le_bytes(p[at..at + 4].try_into().unwrap());
        let f16_at = |at: usize| f16::from_le_bytes([p[at], p[at + 1]]).to_f32();
        match m.kind {
            0 => return f32_at((r * n + lane) * 16 + e * 4),
            1 => return f16_at((r * n + lane) * 16 + e * 2),
            2 => {
                let at = (r * n + lane) * 16 + e * 2;
                return f32::from_bits(u32::from(u16::from_le_bytes([p[at], p[at + 1]])) << 16);
            }
            _ => {}
        }
        let bits_of = |plane: usize, bits: usize| {
            let (word, shift) = (e / 4 % bits, e / 4 / bits * bits);
            let byte = word * 4 + e % 4;
            let at = if bits == 8 {
                (byte / 16 * 4 * n + lane * 4 + r) * 16 + byte % 16
            } else {
                (lane * 4 + r) * 4 * bits + byte
            };
            (u32::from(p[plane + at]) >> shift) & ((1 << bits) - 1)
        };
        let mut code = bits_of(0, m.lo as usize);
        let mut at = 4 * n * 4 * m.lo as usize;
        if m.hi > 0 {
            code |= bits_of(at, m.hi as usize) << m.lo;
            at += 4 * n * 4 * m.hi as usize;
        }
        let (halves, half) = (m.halves as usize, e / 16 * (m.halves as usize - 1));
        if m.codes == TABLE {
            code = m.table[code as usize / 4] >> (code % 4 * 8) & 0xff;
        } else if m.codes == 2 {
            code *= 2;
        }
        let c = (code as i32 - m.zero) as f32;
        if m.levels == 2 {
            return crate::model::format::exponent(p[at + lane * 4 + r]) * c;
        }
        if m.levels == 0 {
            let s = at + (lane * 4 + r) * if m.min == 1 { 4 } else { 2 };
            let v = f16_at(s) * c;
            return if m.min == 1 { v + f16_at(s + 2) } else { v };
        }
        let bytes = halves * if m.min == 2 { 2 } else { 1 };
        let s = at + (lane * 4 + r) * bytes;
        let wide = if m.min == 2 { 4 } else { 2 };
        let d = at + 4 * n * bytes + r * wide;
        let v = f16_at(d) * f32::from(p[s + half].cast_signed()) * c;
        if m.min == 2 { v - f16_at(d + 2) * f32::from(p[s + halves + half]) } else { v }
    }

    #[test]
    fn every_format_reads_back_bit_for_bit() {
        for &format in Format::all() {
            for (rows, cols) in [(1, 256), (7, 768), (9, 1280), (6, 2304)] {
                let layout = Layout::of(format, rows, cols).unwrap();
                let mut x = 12345u64;
                let mut bytes: Vec<u8> = (0..format.row_bytes(cols).unwrap() * rows)
                    .map(|_| {
                        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (x >> 56) as u8
                    })
                    .collect();
                if format.quant().is_none() {
                    // NaNs would not compare.
                    bytes.iter_mut().for_each(|b| *b &= 0x3f);
                }
                let mut want = vec![0.0; rows * cols];
                format.decode(&bytes, &mut want).unwrap();
                let mut packed = vec![0xff; layout.bytes()];
                layout.repack(&bytes, 0, &mut packed).unwrap();
                for row in 0..rows {
                    for col in 0..cols {
                        let (got, want) =
                            (value_at(&layout, &packed, row, col), want[row * cols + col]);
                        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                        assert!(same, "{} {row} {col}: {got} {want}", format.name());
                    }
                }
                // A part of the panels is the same bytes.
                if layout.panels > 1 {
                    let mut part = vec![0xff; layout.panel_bytes];
                    layout.repack(&bytes, 1, &mut part).unwrap();
                    assert_eq!(part, packed[layout.panel_bytes..2 * layout.panel_bytes]);
                }
            }
        }
    }

    #[test]
    fn tables_have_their_zero_where_kernels_take_it_off_fast() {
        let of = |format: Format| Layout::of(format, 4, 256).unwrap().matrix(0);
        let all: Vec<_> =
            Format::all().iter().map(|&f| of(f)).filter(|m| m.codes == TABLE).collect();
        assert!(all.len() >= 2 && all.iter().all(|m| m.zero == 128));
        // Where an entry would be no byte the table stays.
        assert_eq!(centred([255; 16], 12), ([255; 16], 12));
    }

    #[test]
    fn odd_columns_of_floats_end_in_zeros() {
        let layout = Layout::of(Format::BF16, 3, 50).unwrap();
        let mut packed = vec![0xff; layout.bytes()];
        layout.repack(&vec![0x3f; 300], 0, &mut packed).unwrap();
        assert_eq!((layout.units, layout.spans, layout.panel_bytes), (7, 1, 4 * 7 * 16));
        assert_eq!(packed[100..112], [0; 12]);
        assert_eq!(packed[3 * 112..], [0; 112]);
    }
}
