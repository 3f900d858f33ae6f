//! Block formats as data: what one is, and how it falls into planes of 1, 2, 4 and 8 bits.
//!
//! A quantized tensor is a string of blocks; a block is a run of elements of one row that share
//! scales. However oddly a format packs its bits, three facts are enough to compute with it:
//!
//! * an unsigned **code** an element, `lo + hi` bits wide. `lo` is 1, 2, 4 or 8 and is the width
//!   a kernel is made for; `hi` is 0, or the width of a second plane above the first. So 3 bits
//!   are 2 + 1, 5 are 4 + 1 and 6 are 4 + 2, and no width needs a kernel of its own. A code counts
//!   as itself, or stands for another integer ([`Codes`]);
//! * a **scale** a group: the block's `d`, or `d` times a small integer, or a power of two;
//! * where the codes' **zero** lies: at a constant, or at a minimum that the group brings along.
//!
//! [`Quant`] states the three, and its `unpack` turns a block's bytes into a [`Block`] that holds
//! nothing else. Kernels repack from there, and [`Format::decode`] computes from the same data, so
//! a format cannot mean one thing to the reference and another to a kernel.
//!
//! Adding a format is its file, with the block drawn bit by bit, and its line in `formats!`.

mod encode;
mod float;
mod iq4_nl;
mod mxfp4;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

pub use encode::Packing;
use half::f16;

use crate::error::{Error, Result};

/// Makes [`Format`] and its table out of one line a format.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident = $row:path;)*) => {
        /// How the elements of a tensor are stored. The names are those of the files themselves.
        #[allow(non_camel_case_types, reason = "the formats' own names")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        pub enum Format {
            $($(#[$doc])* $name,)*
        }

        const ALL: &[Format] = &[$(Format::$name),*];

        impl Format {
            /// The name that files and people use: `"Q4_K"`.
            pub fn name(self) -> &'static str {
                match self { $(Format::$name => stringify!($name),)* }
            }

            fn row(self) -> &'static Row {
                match self { $(Format::$name => &$row,)* }
            }
        }
    };
}

formats! {
    /// IEEE binary32.
    F32 = float::F32;
    /// IEEE binary16.
    F16 = float::F16;
    /// The upper half of a binary32.
    BF16 = float::BF16;
    /// 8 bits, a scale every 32.
    Q8_0 = q8_0::ROW;
    /// 4 bits about 8, a scale every 32.
    Q4_0 = q4_0::ROW;
    /// 4 bits above a minimum, a scale every 32.
    Q4_1 = q4_1::ROW;
    /// 5 bits about 16, a scale every 32.
    Q5_0 = q5_0::ROW;
    /// 5 bits above a minimum, a scale every 32.
    Q5_1 = q5_1::ROW;
    /// 2 bits, 4-bit scales and minimums every 16, two levels.
    Q2_K = q2_k::ROW;
    /// 3 bits about 4, 6-bit scales every 16, two levels.
    Q3_K = q3_k::ROW;
    /// 4 bits, 6-bit scales and minimums every 32, two levels.
    Q4_K = q4_k::ROW;
    /// 5 bits, 6-bit scales and minimums every 32, two levels.
    Q5_K = q5_k::ROW;
    /// 6 bits about 32, 8-bit scales every 16, two levels.
    Q6_K = q6_k::ROW;
    /// 4 bits through a table, a scale every 32.
    IQ4_NL = iq4_nl::ROW;
    /// 4-bit floats, a power of two every 32.
    MXFP4 = mxfp4::ROW;
    /// -1, 0 and 1, five a byte, a scale every 256.
    TQ1_0 = tq1_0::ROW;
    /// 2 bits about 1, a scale every 256.
    TQ2_0 = tq2_0::ROW;
    /// A sign, a scale every 128.
    Q1_0 = q1_0::ROW;
    /// 2 bits about 1, a scale every 64.
    Q2_0 = q2_0::ROW;
}

/// What the table says of one format.
struct Row {
    /// The type's number in GGUF files.
    ggml: u32,
    /// What `general.file_type` says of a file that mostly has this type.
    file_type: u32,
    kind: Kind,
}

enum Kind {
    /// One element a block, `bytes` long.
    Float {
        bytes: usize,
        decode: fn(&[u8], &mut [f32]),
        encode: fn(&[f32], &mut [u8]),
    },
    Blocks(Quant),
}

/// How a block format maps onto planes: the kernels read nothing else of a format.
///
/// With `c` what an element's code stands for ([`Codes`]), `g` its group within the block and all
/// arithmetic in f32, one operation at a time, an element's value is `s * (c - z)`, `s * c + m` or
/// `s * c - m`, where [`Scale`] says what `s` is, and [`Min`] which of the three it is and what `z`
/// or `m` is.
#[derive(Debug)]
pub struct Quant {
    /// Bits of the low plane of a code: 1, 2, 4 or 8.
    pub lo: u32,
    /// Bits of the plane above it: 0 when there is none, else 1 or 2.
    pub hi: u32,
    /// What a code stands for.
    pub codes: Codes,
    /// Elements of a group: 16 or 32.
    pub group: usize,
    /// Elements of a block: a power of two from 32 to 256.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Where a group's scale comes from.
    pub scale: Scale,
    /// Where the codes' zero lies.
    pub min: Min,
    /// Fills a [`Block`] from the [`bytes`](Quant::bytes) bytes of one block. Codes past the
    /// block's elements, and scales or minimums the format does not have, are left as they were.
    ///
    /// # Panics
    /// When it is given fewer bytes than a block has.
    pub unpack: fn(&[u8], &mut Block),
    /// How blocks are written.
    pub packing: Packing,
}

/// What a code stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codes {
    /// Itself.
    Plain,
    /// Its double, so that the zero of codes of one bit can lie between them, at 1.
    Double,
    /// Its entry here: codes have four bits.
    Table(&'static [u8; 16]),
}

impl Codes {
    /// What `code` stands for.
    fn value(self, code: u8) -> u8 {
        match self {
            Codes::Plain => code,
            Codes::Double => code << 1,
            Codes::Table(table) => table[usize::from(code & 0x0f)],
        }
    }
}

/// Where a group's scale `s` comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// `s = d`, for all groups of the block.
    One,
    /// `s = d * scales[g]`, rounded to f32.
    TwoLevel,
    /// As [`TwoLevel`](Scale::TwoLevel), of scales and [minimums](Min::TwoLevel) below 16.
    Nibbles,
    /// `s = 2^(e - 128)`, where `e` is `scales[g]` without a sign.
    Exponent,
}

/// Where the zero of a group's codes lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Min {
    /// A constant `z`: the value is `s * (c - z)`.
    Zero(i32),
    /// The block's minimum `m`: the value is `s * c + m`. One group a block.
    One,
    /// The group's minimum: the value is `s * c - m * mins[g]`, the product rounded to f32 first.
    TwoLevel,
}

/// One block, taken apart. What a format lacks (see [`Scale`] and [`Min`]) is not to be read.
#[derive(Clone, Debug)]
pub struct Block {
    /// Unsigned codes in the order of the elements, each below `2^(lo + hi)`.
    pub codes: [u8; 256],
    /// The integer scale of each group, for every [`Scale`] but [`Scale::One`].
    pub scales: [i8; 16],
    /// The integer minimum of each group, for [`Min::TwoLevel`].
    pub mins: [u8; 16],
    /// The block's scale.
    pub d: f16,
    /// The block's minimum, for [`Min::One`]; the scale of the minimums, for [`Min::TwoLevel`].
    pub m: f16,
}

impl Default for Block {
    fn default() -> Self {
        Block { codes: [0; 256], scales: [0; 16], mins: [0; 16], d: f16::ZERO, m: f16::ZERO }
    }
}

impl Quant {
    /// The values of one block as f32, bit for bit as published. Writes as many as `out` holds,
    /// at most [`block`](Quant::block).
    pub fn values(&self, block: &Block, out: &mut [f32]) {
        let (d, m) = (block.d.to_f32(), block.m.to_f32());
        let groups = out.chunks_mut(self.group).zip(block.codes.chunks(self.group));
        for ((out, codes), (&scale, &min)) in groups.zip(block.scales.iter().zip(&block.mins)) {
            let s = match self.scale {
                Scale::One => d,
                Scale::TwoLevel | Scale::Nibbles => d * f32::from(scale),
                Scale::Exponent => exponent(scale.cast_unsigned()),
            };
            let elements = out.iter_mut().zip(codes.iter().map(|&c| self.codes.value(c)));
            match self.min {
                Min::Zero(z) => elements.for_each(|(o, c)| *o = s * (i32::from(c) - z) as f32),
                Min::One => elements.for_each(|(o, c)| *o = s * f32::from(c) + m),
                Min::TwoLevel => {
                    let m = m * f32::from(min);
                    elements.for_each(|(o, c)| *o = s * f32::from(c) - m);
                }
            }
        }
    }
}

/// `2^(e - 128)`, which is below the normal numbers for 0 and 1.
pub(crate) fn exponent(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

impl Format {
    /// Every format there is.
    pub fn all() -> &'static [Format] {
        ALL
    }

    /// The format of that name, in either case.
    pub fn from_name(name: &str) -> Option<Format> {
        ALL.iter().copied().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// The format that GGUF files give this number.
    pub fn from_ggml(id: u32) -> Option<Format> {
        ALL.iter().copied().find(|f| f.ggml() == id)
    }

    /// The number of this format in GGUF files.
    pub fn ggml(self) -> u32 {
        self.row().ggml
    }

    /// What `general.file_type` says of a file that mostly has this format.
    pub fn file_type(self) -> u32 {
        self.row().file_type
    }

    /// Elements of a block: 1 for a float format.
    pub fn block_len(self) -> usize {
        self.quant().map_or(1, |q| q.block)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match &self.row().kind {
            Kind::Float { bytes, .. } => *bytes,
            Kind::Blocks(quant) => quant.bytes,
        }
    }

    /// Bytes of a row of `cols` elements. `None` when they do not fill whole blocks, or when the
    /// bytes cannot be counted.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The elements in `bytes` as f32, bit for bit as published. `bytes` must be whole blocks and
    /// `out` as long as they have elements.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        if self.row_bytes(out.len()) != Some(bytes.len()) {
            return Err(Error::Invalid(format!(
                "{}: {} bytes do not hold {} elements",
                self.name(),
                bytes.len(),
                out.len()
            )));
        }
        match &self.row().kind {
            Kind::Float { decode, .. } => decode(bytes, out),
            Kind::Blocks(quant) => {
                let mut block = Block::default();
                let blocks = bytes.chunks_exact(quant.bytes);
                for (bytes, out) in blocks.zip(out.chunks_exact_mut(quant.block)) {
                    (quant.unpack)(bytes, &mut block);
                    quant.values(&block, out);
                }
            }
        }
        Ok(())
    }

    /// Writes `values` into `bytes`: the blocks, or the floats, that are nearest. `values` must be
    /// whole blocks and `bytes` as long as these are.
    ///
    /// # Errors
    /// When they are not, and when a value is not finite or beyond the format.
    pub fn encode(self, values: &[f32], bytes: &mut [u8]) -> Result<()> {
        if self.row_bytes(values.len()) != Some(bytes.len()) {
            return Err(Error::Invalid(format!(
                "{}: {} elements do not fill {} bytes",
                self.name(),
                values.len(),
                bytes.len()
            )));
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::Invalid(format!("element {at} is {}", values[at])));
        }
        match &self.row().kind {
            Kind::Float { encode, .. } => {
                encode(values, bytes);
                let infinite = |x: &f32| f16::from_f32(*x).is_infinite();
                if self == Format::F16
                    && let Some(at) = values.iter().position(infinite)
                {
                    let what = format!("element {at} is {}, too large for F16", values[at]);
                    return Err(Error::Invalid(what));
                }
            }
            Kind::Blocks(quant) => quant.encode(values, bytes),
        }
        Ok(())
    }

    /// The planes of a block format; `None` for a float format.
    pub fn quant(self) -> Option<&'static Quant> {
        match &self.row().kind {
            Kind::Float { .. } => None,
            Kind::Blocks(quant) => Some(quant),
        }
    }
}

/// The types other programs write into GGUF files and this table lacks, for a message that names
/// them.
pub(super) fn foreign_name(id: u32) -> Option<&'static str> {
    const NAMES: &[(u32, &str)] = &[
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (40, "NVFP4"),
    ];
    NAMES.iter().find(|(n, _)| *n == id).map(|(_, name)| *name)
}

/// A little-endian f16 at the start of `bytes`.
fn f16_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads one plane of the codes: `BITS` bits an element, to stand at bit `SHIFT` of its code.
///
/// Every format here packs a plane the same way and differs only in `RUN`. A run of `RUN` bytes
/// holds `8 / BITS` stretches of `RUN` elements: the lowest `BITS` bits of the bytes are the first
/// stretch, the next are the second, and so on. The plane at bit 0 must be read first, since it
/// clears what the codes held.
#[inline(always)]
fn plane<const BITS: u32, const RUN: usize, const SHIFT: u32>(bytes: &[u8], codes: &mut [u8]) {
    let mask = (1 << BITS) - 1;
    let stretches = (8 / BITS) as usize;
    if RUN == 1 {
        for (byte, codes) in bytes.iter().zip(codes.chunks_exact_mut(stretches)) {
            let mut below = [0; 8];
            if SHIFT > 0 {
                below[..stretches].copy_from_slice(codes);
            }
            let all = u64::from_le_bytes(below) | spread::<BITS>(*byte) << SHIFT;
            codes.copy_from_slice(&all.to_le_bytes()[..stretches]);
        }
        return;
    }
    let runs = bytes.as_chunks::<RUN>().0;
    for (run, codes) in runs.iter().zip(codes.chunks_exact_mut(RUN * stretches)) {
        let mut rest = *run;
        for stretch in codes.as_chunks_mut::<RUN>().0 {
            for (code, byte) in stretch.iter_mut().zip(&mut rest) {
                let field = (*byte & mask) << SHIFT;
                *code = if SHIFT == 0 { field } else { *code | field };
                *byte = byte.unbounded_shr(BITS);
            }
        }
    }
}

/// The fields of a byte, `BITS` each, in bytes of their own, the lowest first: the upper half moves
/// away from the lower until every field is alone.
#[inline(always)]
fn spread<const BITS: u32>(byte: u8) -> u64 {
    let mut x = u64::from(byte);
    // Bytes that a part will take up, and bits that it has.
    let (mut bytes, mut bits) = (8 / BITS, 8);
    while bytes > 1 {
        (bytes, bits) = (bytes / 2, bits / 2);
        x |= x << (8 * bytes - bits);
        let part = (1u64 << bits) - 1;
        x &= (0..8 / bytes).fold(0, |mask, i| mask | part << (8 * bytes * i));
    }
    x
}

fn put_f16(bytes: &mut [u8], at: usize, x: f16) {
    bytes[at..at + 2].copy_from_slice(&x.to_le_bytes());
}

/// The inverse of [`plane`]: writes the `BITS` bits from `SHIFT` on of the codes.
fn put_plane<const BITS: u32, const RUN: usize, const SHIFT: u32>(codes: &[u8], bytes: &mut [u8]) {
    let mask = (1 << BITS) - 1;
    let stretches = (8 / BITS) as usize;
    for (run, codes) in bytes.chunks_exact_mut(RUN).zip(codes.chunks_exact(RUN * stretches)) {
        run.fill(0);
        for (i, stretch) in (0..).zip(codes.chunks_exact(RUN)) {
            for (byte, code) in run.iter_mut().zip(stretch) {
                *byte |= (code >> SHIFT & mask) << (i * BITS);
            }
        }
    }
}
