//! Quantized checkpoints of Hugging Face folders: GPTQ, AWQ, BitNet's packed ternary and gpt-oss'
//! MXFP4.
//!
//! Their weights are integers of 2, 4 or 8 bits in words along one dimension, with a scale (and a
//! zero) for a run of inputs. Each is brought to a block format of the table that holds the same
//! numbers: with `c` the code and `z` its zero, a weight is `s (c - z)`, and `c - z` fits the codes of
//! the format next wider.
//!
//! | bits | all zeros in the middle | other zeros |
//! |---|---|---|
//! | 2 | Q2_0: scale `-s`, code `3 - c` | Q4_0: code `c - z + 8` |
//! | 4 | Q4_0: code `c` | Q5_0: code `c - z + 16` |
//! | 8 | Q8_0: code `c` | F16 |
//! | ternary | TQ2_0, or Q2_0 where blocks of 256 do not fit | |
//! | MXFP4 | MXFP4, the same codes in another order | |
//!
//! What fits no block is F16: groups that are no multiple of 32 inputs, and groups whose inputs lie
//! scattered (GPTQ's act-order), for a block has one scale.
//!
//! Shapes, and which zeros and groups there are, are checked when the folder is opened: an error names
//! the tensor.

use std::collections::{BTreeMap, HashMap};

use half::f16;
use smallvec::{SmallVec, smallvec};

use super::format::{Block, Format};
use super::meta::Metadata;
use super::{Data, Tensor};
use crate::error::{Error, Result, quoted};

/// A tensor of integers, which only this module reads.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub name: String,
    pub kind: Integers,
    pub dims: Vec<usize>,
    pub start: usize,
    pub size: usize,
    pub shard: usize,
}

/// How integers are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Integers {
    U8,
    I32,
}

/// A weight that is made of several tensors.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What it is called: the name that it would have as floats.
    pub name: String,
    /// The format that it is read in.
    pub format: Format,
    /// Outputs and inputs; experts before them, if there are several.
    pub dims: SmallVec<[usize; 4]>,
    codes: Raw,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    /// GPTQ or AWQ.
    Groups(Box<Groups>),
    /// Ternary codes with one scale.
    Ternary(f32),
    /// MXFP4: the exponents of blocks of 32 inputs.
    Exponents(Raw),
}

#[derive(Clone, Debug)]
struct Groups {
    layout: Layout,
    bits: usize,
    /// Inputs that share a scale.
    group: usize,
    zeros: Raw,
    /// What is added to a stored zero.
    plus: u32,
    scales: Tensor,
    /// The group of each input, where they lie scattered.
    order: Option<Raw>,
}

/// Which dimension a word of 32 bits runs along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    /// GPTQ: inputs.
    Inputs,
    /// AWQ: outputs, in [`AWQ_PLACE`].
    Outputs,
}

/// Where in a word AWQ keeps the code of each of eight outputs.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Tensors and bytes of a folder.
pub(super) struct Parts<'a> {
    pub name: &'a str,
    pub meta: &'a Metadata,
    pub tensors: HashMap<&'a str, &'a Tensor>,
    pub raw: BTreeMap<&'a str, &'a Raw>,
    pub data: &'a Data,
}

impl Data {
    fn raw(&self, raw: &Raw) -> &[u8] {
        self.bytes(raw.shard).get(raw.start..raw.start + raw.size).unwrap_or_default()
    }

    fn floats(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.bytes(tensor.shard).get(tensor.start..tensor.start + tensor.size);
        let mut out = vec![0.0; tensor.elements()];
        tensor.format.decode(bytes.unwrap_or_default(), &mut out)?;
        Ok(out)
    }
}

/// Word `i`, or 0 past the end.
fn word(bytes: &[u8], i: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(i).map_or(0, |w| u32::from_le_bytes(*w))
}

/// The weights that a folder's tensors make, as its config says.
pub(super) fn find(parts: &Parts<'_>) -> Result<Vec<Packed>> {
    let key = |name: &str| format!("quantization_config.{name}");
    let text = |name: &str| parts.meta.get_str(&key(name));
    let Some(method) = text("quant_method")? else { return Ok(Vec::new()) };
    let unsupported = |name: &str, value: &str, known: &str| {
        let what = format!("{} is not known; known are {known}", quoted(value));
        Err(parts.meta.error(&key(name), what))
    };
    match method {
        "gptq" => {
            let plus = match text("checkpoint_format")?.unwrap_or("gptq") {
                "gptq" => 1,
                "gptq_v2" => 0,
                other => return unsupported("checkpoint_format", other, "gptq, gptq_v2"),
            };
            let bits = parts.meta.require_u32(&key("bits"))?;
            if !matches!(bits, 2 | 4 | 8) {
                return unsupported("bits", &bits.to_string(), "2, 4, 8");
            }
            parts.each("qweight", |stem, codes| {
                parts.groups(stem, codes, Layout::Inputs, bits as usize, plus)
            })
        }
        "awq" => {
            let version = text("version")?.unwrap_or("gemm");
            if !version.eq_ignore_ascii_case("gemm") {
                return unsupported("version", version, "gemm");
            }
            let bits = parts.meta.get_u32(&key("bits"))?.unwrap_or(4);
            if bits != 4 {
                return unsupported("bits", &bits.to_string(), "4");
            }
            parts.each("qweight", |stem, codes| parts.groups(stem, codes, Layout::Outputs, 4, 0))
        }
        "bitnet" => {
            let mode = text("quantization_mode")?.unwrap_or("offline");
            if mode != "offline" {
                return unsupported("quantization_mode", mode, "offline");
            }
            let multiplies = text("linear_class")? == Some("autobitlinear");
            parts.each("weight", |stem, codes| parts.ternary(stem, codes, multiplies))
        }
        "mxfp4" => parts.exponents(),
        other => unsupported("quant_method", other, "gptq, awq, bitnet, mxfp4"),
    }
}

impl Parts<'_> {
    /// What `make` makes of each tensor of integers that is called so.
    fn each(
        &self,
        part: &str,
        make: impl Fn(&str, &Raw) -> Result<Option<Packed>>,
    ) -> Result<Vec<Packed>> {
        let mut all = Vec::new();
        for raw in self.raw.values() {
            if let Some((stem, end)) = raw.name.rsplit_once('.')
                && end == part
            {
                all.extend(make(stem, raw)?);
            }
        }
        self.finish(all)
    }

    /// Sorted by name; none may be there as floats as well.
    fn finish(&self, mut all: Vec<Packed>) -> Result<Vec<Packed>> {
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let taken = all.iter().find(|p| self.tensors.contains_key(p.name.as_str()));
        match taken {
            Some(twice) => Err(self.bad(&twice.name, "comes packed and as floats".to_string())),
            None => Ok(all),
        }
    }

    fn bad(&self, tensor: &str, what: String) -> Error {
        Error::file(self.name, format!("tensor {}", quoted(tensor)), what)
    }

    fn integers(&self, name: &str, kind: Integers) -> Result<&Raw> {
        let found = self.raw.get(name).filter(|r| r.kind == kind);
        found.copied().ok_or_else(|| self.bad(name, format!("missing, or not of {kind:?}")))
    }

    fn floats(&self, name: &str) -> Result<&Tensor> {
        let found = self.tensors.get(name);
        found.copied().ok_or_else(|| self.bad(name, "missing, or no floats".to_string()))
    }

    fn groups(
        &self,
        stem: &str,
        codes: &Raw,
        layout: Layout,
        bits: usize,
        plus: u32,
    ) -> Result<Option<Packed>> {
        let per_word = 32 / bits;
        let shape = |name: &str, dims: &[usize], wanted: &[usize]| match dims == wanted {
            true => Ok(()),
            false => Err(self.bad(name, format!("{dims:?}, expected {wanted:?}"))),
        };
        let (&[rows, cols], Integers::I32) = (codes.dims.as_slice(), codes.kind) else {
            return Err(self.bad(&codes.name, "no matrix of 32-bit words".to_string()));
        };
        // The product of a tensor that is there: 32 codes are 4 bytes at least.
        let (inputs, outputs) = match layout {
            Layout::Inputs => (rows * per_word, cols),
            Layout::Outputs => (rows, cols * per_word),
        };
        let part = |part: &str| format!("{stem}.{part}");
        let scales = self.floats(&part("scales"))?;
        let zeros = self.integers(&part("qzeros"), Integers::I32)?;
        let key = "quantization_config.group_size";
        let group = match self.meta.get_i64(key)?.unwrap_or(-1) {
            -1 => inputs,
            size => usize::try_from(size)
                .ok()
                .filter(|&s| s > 0)
                .ok_or_else(|| self.meta.error(key, format!("{size} inputs make no group")))?,
        };
        let count = inputs.div_ceil(group);
        shape(&scales.name, &scales.dims, &[count, outputs])?;
        shape(&zeros.name, &zeros.dims, &[count, outputs.div_ceil(per_word)])?;
        let order = match layout {
            Layout::Inputs => self.raw.get(part("g_idx").as_str()).copied(),
            Layout::Outputs => None,
        };
        let mut scattered = false;
        if let Some(order) = order {
            shape(&order.name, &order.dims, &[inputs])?;
            let bytes = self.data.raw(order);
            for i in 0..inputs {
                let of = word(bytes, i) as usize;
                if order.kind != Integers::I32 || of >= count {
                    let what = format!("input {i} is in group {of} of {count}");
                    return Err(self.bad(&order.name, what));
                }
                scattered |= of != i / group;
            }
        }
        let order = order.filter(|_| scattered).cloned();
        let (zeros, scales) = (zeros.clone(), scales.clone());
        let groups = Groups { layout, bits, group, zeros, plus, scales, order };
        let format = groups.format(inputs, self.data.raw(&groups.zeros), outputs);
        let (name, codes) = (part("weight"), codes.clone());
        let how = How::Groups(Box::new(groups));
        let dims = smallvec![outputs, inputs];
        Ok(Some(Packed { name, format, dims, codes, how }))
    }

    /// MXFP4: `NAME_blocks` has `[…, outputs, blocks, 16]` bytes of two codes, the lower first, and
    /// `NAME_scales` an exponent for each block. As floats they would be `NAME`, with inputs before
    /// outputs; what is read is its transpose, and is called so.
    fn exponents(&self) -> Result<Vec<Packed>> {
        let mut all = Vec::new();
        for codes in self.raw.values() {
            let Some(stem) = codes.name.strip_suffix("_blocks") else { continue };
            let (&[ref rows @ .., blocks, 16], Integers::U8) = (codes.dims.as_slice(), codes.kind)
            else {
                let what = format!("{:?}, expected blocks of 16 bytes", codes.dims);
                return Err(self.bad(&codes.name, what));
            };
            if rows.is_empty() {
                return Err(self.bad(&codes.name, "no matrix".to_string()));
            }
            let scales = self.integers(&format!("{stem}_scales"), Integers::U8)?;
            let wanted = codes.dims.get(..codes.dims.len() - 1).unwrap_or_default();
            if scales.dims != wanted {
                let what = format!("{:?}, expected {wanted:?}", scales.dims);
                return Err(self.bad(&scales.name, what));
            }
            // Twice the bytes that are there.
            let dims = rows.iter().copied().chain([blocks * 32]).collect();
            let (name, format) = (format!("transpose({stem})"), Format::MXFP4);
            let (codes, how) = ((*codes).clone(), How::Exponents(scales.clone()));
            all.push(Packed { name, format, dims, codes, how });
        }
        self.finish(all)
    }

    /// BitNet: each byte holds two bits of four rows, a quarter of all apart.
    fn ternary(&self, stem: &str, codes: &Raw, multiplies: bool) -> Result<Option<Packed>> {
        let (&[rows, inputs], Integers::U8) = (codes.dims.as_slice(), codes.kind) else {
            return Err(self.bad(&codes.name, "no matrix of bytes".to_string()));
        };
        let scale = self.floats(&format!("{stem}.weight_scale"))?;
        let &[stored] = self.data.floats(scale)?.as_slice() else {
            return Err(self.bad(&scale.name, format!("{:?}, expected one number", scale.dims)));
        };
        let scale_of = f16::from_f32(if multiplies { stored } else { 1.0 / stored });
        if !scale_of.is_finite() {
            return Err(self.bad(&scale.name, format!("{stored} is no scale")));
        }
        let fits = |f: &Format| f.row_bytes(inputs).is_some();
        let format = [Format::TQ2_0, Format::Q2_0].into_iter().find(fits).unwrap_or(Format::F16);
        let (name, dims) = (codes.name.clone(), smallvec![rows * 4, inputs]);
        let how = How::Ternary(scale_of.to_f32());
        Ok(Some(Packed { name, format, dims, codes: codes.clone(), how }))
    }
}

impl Groups {
    /// The zero of a group of an output.
    fn zero(&self, zeros: &[u8], group: usize, output: usize, outputs: usize) -> i32 {
        let (per_word, words) = (32 / self.bits, outputs.div_ceil(32 / self.bits));
        let place = self.place(output % per_word);
        let word = word(zeros, group * words + output / per_word);
        (word >> (place * self.bits) & mask(self.bits)).wrapping_add(self.plus).cast_signed()
    }

    fn place(&self, of: usize) -> usize {
        match self.layout {
            Layout::Inputs => of,
            Layout::Outputs => AWQ_PLACE.get(of).copied().unwrap_or(0),
        }
    }

    /// The format that holds the same numbers, or F16.
    fn format(&self, inputs: usize, zeros: &[u8], outputs: usize) -> Format {
        let middle = 1i32 << (self.bits - 1);
        let groups = inputs.div_ceil(self.group);
        let centred =
            (0..groups).all(|g| (0..outputs).all(|o| self.zero(zeros, g, o, outputs) == middle));
        let format = match (self.bits, centred) {
            (2, true) => [Format::Q2_0, Format::Q4_0],
            (2, false) | (4, true) => [Format::Q4_0; 2],
            (4, false) => [Format::Q5_0; 2],
            (_, true) => [Format::Q8_0; 2],
            (_, false) => [Format::F16; 2],
        };
        let fits = |f: &Format| {
            let blocks = self.group.is_multiple_of(f.block_len()) || groups == 1;
            blocks && f.row_bytes(inputs).is_some()
        };
        let whole = format.into_iter().find(fits).filter(|_| self.order.is_none());
        whole.unwrap_or(Format::F16)
    }
}

fn mask(bits: usize) -> u32 {
    (1 << bits) - 1
}

impl Packed {
    /// How many bytes it takes in its format.
    pub fn size(&self) -> usize {
        let (outputs, inputs) = self.rows();
        self.format.row_bytes(inputs).unwrap_or(0).saturating_mul(outputs)
    }

    /// How many rows there are, and their length.
    fn rows(&self) -> (usize, usize) {
        match self.dims.as_slice() {
            [rows @ .., inputs] => (rows.iter().product(), *inputs),
            [] => (0, 0),
        }
    }

    /// The weight in its format.
    pub(super) fn bytes(&self, data: &Data) -> Option<Vec<u8>> {
        let (outputs, inputs) = self.rows();
        let row_bytes = self.format.row_bytes(inputs)?;
        let mut out = Vec::new();
        out.try_reserve_exact(row_bytes.checked_mul(outputs)?).ok()?;
        out.resize(row_bytes * outputs, 0);
        let codes = data.raw(&self.codes);
        let rows = out.chunks_exact_mut(row_bytes).enumerate();
        match &self.how {
            How::Ternary(scale) => {
                let quarter = outputs / 4;
                let mut row = vec![0u8; inputs];
                for (o, bytes) in rows {
                    let packed = codes.get(o % quarter * inputs..)?;
                    for (code, byte) in row.iter_mut().zip(packed) {
                        *code = byte >> (2 * (o / quarter)) & 3;
                    }
                    let levels = row.iter().map(|&c| (i32::from(c) - 1, *scale));
                    put(self.format, levels, bytes);
                }
            }
            How::Exponents(scales) => {
                let (scales, blocks) = (data.raw(scales), out.chunks_exact_mut(17));
                let codes = codes.as_chunks::<16>().0;
                for ((block, exponent), codes) in blocks.zip(scales).zip(codes) {
                    let Some((first, rest)) = block.split_first_mut() else { continue };
                    *first = *exponent;
                    interleave(codes, rest);
                }
            }
            How::Groups(groups) => {
                let zeros = data.raw(&groups.zeros);
                let order = groups.order.as_ref().map(|order| data.raw(order));
                let scales = data.floats(&groups.scales).ok()?;
                let count = scales.len() / outputs.max(1);
                let mut row = vec![(0, 0.0); inputs];
                let mut of = vec![(0, 0.0); count];
                for (o, bytes) in rows {
                    for (g, of) in of.iter_mut().enumerate() {
                        let scale = scales.get(g * outputs + o).copied().unwrap_or(0.0);
                        *of = (groups.zero(zeros, g, o, outputs), scale);
                    }
                    groups.codes(codes, o, outputs, &mut row);
                    for (i, (level, scale)) in row.iter_mut().enumerate() {
                        let group = order.map_or(i / groups.group, |bytes| word(bytes, i) as usize);
                        let (zero, own) = of.get(group).copied()?;
                        (*level, *scale) = (*level - zero, own);
                    }
                    put(self.format, row.iter().copied(), bytes);
                }
            }
        }
        Some(out)
    }
}

impl Groups {
    /// The codes of one output.
    fn codes(&self, words: &[u8], output: usize, outputs: usize, row: &mut [(i32, f32)]) {
        let (per_word, mask) = (32 / self.bits, mask(self.bits));
        match self.layout {
            Layout::Inputs => {
                for (at, run) in row.chunks_mut(per_word).enumerate() {
                    let mut word = word(words, at * outputs + output);
                    for (level, _) in run {
                        *level = (word & mask).cast_signed();
                        word = word.unbounded_shr(self.bits as u32);
                    }
                }
            }
            Layout::Outputs => {
                let shift = self.place(output % per_word) * self.bits;
                for (i, (level, _)) in row.iter_mut().enumerate() {
                    let word = word(words, i * (outputs / per_word) + output / per_word);
                    *level = (word >> shift & mask).cast_signed();
                }
            }
        }
    }
}

/// Codes of neighbours, two a byte, to bytes of codes that are 16 apart.
fn interleave(codes: &[u8; 16], out: &mut [u8]) {
    let code = |i: usize| codes.get(i / 2).map_or(0, |b| b >> (4 * (i % 2)) & 15);
    for (i, out) in out.iter_mut().enumerate() {
        *out = code(i) | code(i + 16) << 4;
    }
}

/// Writes a row of integers with their scales in a format that holds them.
fn put(format: Format, mut levels: impl Iterator<Item = (i32, f32)>, bytes: &mut [u8]) {
    let Some(quant) = format.quant() else {
        for (to, (level, scale)) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(levels) {
            *to = f16::from_f32(scale * level as f32).to_le_bytes();
        }
        return;
    };
    let length = quant.block;
    let mut block = Block::default();
    let mut all = [0i32; 256];
    for bytes in bytes.chunks_exact_mut(quant.bytes) {
        let (mut scale, mut low) = (0.0, 0);
        for (to, (level, own)) in all.iter_mut().zip(levels.by_ref().take(length)) {
            (*to, scale, low) = (level, own, low.min(level));
        }
        // Levels of two bits end at 2 above the zero there, or at 2 below it with a scale turned over.
        let turned = format == Format::Q2_0 && low < -1;
        let (sign, zero) = (if turned { -1 } else { 1 }, zero(format));
        block.d = f16::from_f32(scale * sign as f32);
        for (code, level) in block.codes.iter_mut().zip(&all).take(length) {
            *code = (level * sign + zero).clamp(0, 255) as u8;
        }
        (quant.packing.pack)(&block, bytes);
    }
}

/// The code of a format that stands for nothing.
fn zero(format: Format) -> i32 {
    match format.quant().map(|q| q.min) {
        Some(super::Min::Zero(zero)) => zero,
        _ => 0,
    }
}
