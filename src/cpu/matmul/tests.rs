//! Every instruction set against the scalar one, bit for bit, and that one against f64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use half::f16;

use super::*;
use crate::cpu::quantize::{Precision, activation_bytes};
use crate::cpu::repack::{repack_tiles, row_f32};
use crate::model::format::{Block, Format, Quant, Scale};

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Nearly normal, of variance 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A weight matrix, its layout and its packed form.
struct Weights {
    name: String,
    layout: Layout,
    packed: Vec<u8>,
    values: Vec<f32>,
}

/// Where in a block its scale and its minimum are: the bytes they change with.
fn scale_bytes(quant: &Quant) -> Vec<usize> {
    let mut block = Block::default();
    let bits = |bytes: &[u8], block: &mut Block| {
        (quant.unpack)(bytes, block);
        (block.d.to_bits(), block.m.to_bits())
    };
    let mut bytes = vec![0; quant.bytes];
    let zero = bits(&bytes, &mut block);
    (0..quant.bytes)
        .filter(|&i| {
            bytes[i] = 1;
            let changed = bits(&bytes, &mut block) != zero;
            bytes[i] = 0;
            changed
        })
        .collect()
}

impl Weights {
    /// Blocks of what `byte` gives, with scales of a sane size.
    fn blocks(
        name: &str,
        quant: &'static Quant,
        layout: Layout,
        random: &mut Random,
        mut byte: impl FnMut(&mut Random) -> u8,
    ) -> Weights {
        let at = scale_bytes(quant);
        let blocks = layout.rows() * layout.cols() / quant.block;
        let (mut src, mut values) = (Vec::new(), vec![0.0; layout.rows() * layout.cols()]);
        let mut block = Block::default();
        for values in values.chunks_exact_mut(quant.block).take(blocks) {
            let mut bytes: Vec<u8> = (0..quant.bytes).map(|_| byte(random)).collect();
            if quant.scale == Scale::Exponent {
                bytes[0] = 120 + bytes[0] % 8;
            }
            for pair in at.chunks_exact(2) {
                let scale = f16::from_f32(random.normal() * 0.1).to_le_bytes();
                bytes[pair[0]] = scale[0];
                bytes[pair[1]] = scale[1];
            }
            (quant.unpack)(&bytes, &mut block);
            quant.values(&block, values);
            src.extend(bytes);
        }
        Weights::pack(name, layout, &src, values)
    }

    fn pack(name: &str, layout: Layout, src: &[u8], values: Vec<f32>) -> Weights {
        // In two parts, as two threads would.
        let mut packed = vec![0xaa; layout.bytes()];
        let half = layout.tiles() / 2;
        let (first, second) = packed.split_at_mut(half * layout.tile_bytes());
        repack_tiles(&layout, src, first, 0..half).unwrap();
        repack_tiles(&layout, src, second, half..layout.tiles()).unwrap();
        Weights { name: name.into(), layout, packed, values }
    }

    fn random(format: Format, rows: usize, cols: usize, random: &mut Random) -> Weights {
        let layout = Layout::of(format, rows, cols).unwrap();
        if let Some(quant) = format.quant() {
            let byte = |random: &mut Random| (random.next() >> 32) as u8;
            return Weights::blocks(format.name(), quant, layout, random, byte);
        }
        let mut src = Vec::new();
        for x in random.normals(rows * cols) {
            match format {
                Format::F16 => src.extend(f16::from_f32(x).to_le_bytes()),
                Format::BF16 => src.extend(&x.to_le_bytes()[2..]),
                _ => src.extend(x.to_le_bytes()),
            }
        }
        let mut values = vec![0.0; rows * cols];
        format.decode(&src, &mut values).unwrap();
        Weights::pack(format.name(), layout, &src, values)
    }

    /// Every format that has rows of this length.
    fn all(rows: usize, cols: usize, random: &mut Random) -> Vec<Weights> {
        let fits = |format: &&Format| Layout::of(**format, rows, cols).is_some();
        let formats = Format::all().iter().filter(fits);
        formats.map(|f| Weights::random(*f, rows, cols, random)).collect()
    }
}

/// Memory at a multiple of 64.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "memory")] [u8; 64]);

/// The product for `rows` rows of `x`, in an instruction set.
fn product(isa: Isa, weights: &Weights, x: &[f32], rows: usize) -> Vec<f32> {
    let Weights { layout, packed, .. } = weights;
    let bytes = activation_bytes(layout.precision(), layout.cols(), rows).unwrap();
    let mut memory = vec![Line([0xaa; 64]); bytes.div_ceil(64)];
    let mut out = vec![f32::NAN; rows * layout.rows()];
    // SAFETY: as many bytes as they need.
    let acts = unsafe {
        let data = memory.as_mut_ptr().cast();
        Activations::new(data, layout.precision(), layout.cols(), rows)
    };
    for (r, x) in x.chunks_exact(layout.cols()).take(rows).enumerate() {
        let half = acts.groups() / 2;
        // SAFETY: the tests only pass available instruction sets, and one thread does it all.
        unsafe {
            acts.quantize(isa, r, x, half..acts.groups());
            acts.quantize(isa, r, x, 0..half);
        }
    }
    matmul_all(isa, layout, packed, &acts, &mut out);
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Mean squared error over mean square.
fn nmse(weights: &Weights, x: &[f32], y: &[f32]) -> f64 {
    let Weights { layout, values, .. } = weights;
    let (mut error, mut square) = (0.0, 0.0);
    for (x, y) in x.chunks_exact(layout.cols()).zip(y.chunks_exact(layout.rows())) {
        for (w, y) in values.chunks_exact(layout.cols()).zip(y) {
            // BF16 weights meet activations that are rounded likewise, and are exact in them.
            let pair = |x: &f32| match layout.precision() {
                Precision::Bf16 => half::bf16::from_f32(*x).to_f64(),
                _ => f64::from(*x),
            };
            let dot: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * pair(x)).sum();
            error += (f64::from(*y) - dot).powi(2);
            square += dot.powi(2);
        }
    }
    // Both are 0 where the products cancel.
    error / square.max(1e-30)
}

const ROWS: [usize; 8] = [1, 7, 15, 16, 17, 63, 64, 65];
const COLS: [usize; 9] = [32, 64, 128, 160, 256, 288, 384, 576, 1024];

#[test]
fn all_instruction_sets_and_row_counts_give_the_same_bits() {
    let mut random = Random(1);
    for (rows, cols) in ROWS.into_iter().flat_map(|r| COLS.map(|c| (r, c))) {
        let x = random.normals(19 * cols);
        for weights in Weights::all(rows, cols, &mut random) {
            let want = bits(&product(Isa::Scalar, &weights, &x, 19));
            for isa in Isa::available() {
                for n in (1..=9).chain([19]) {
                    let got = bits(&product(isa, &weights, &x, n));
                    let name = &weights.name;
                    assert!(got == want[..n * rows], "{name} {rows} x {cols}, {n}, {isa:?}");
                }
            }
        }
    }
}

#[test]
fn extremes_do_not_saturate() {
    let mut random = Random(2);
    let (rows, cols) = (17, 256);
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let inputs: [Vec<f32>; 3] =
        [vec![3.0; cols], vec![-3.0; cols], (0..cols).map(|i| 3.0 * sign(i)).collect()];
    for (name, quant, layout) in Format::all()
        .iter()
        .filter_map(|f| Some((f.name(), f.quant()?, Layout::of(*f, rows, cols)?)))
    {
        // The last bytes are Q6_K's scales, whose least times its least code is the greatest of integers.
        for (byte, last) in [(0x00, 0x00), (0xff, 0xff), (0x7f, 0x7f), (0x80, 0x80), (0x00, 0x80)] {
            let mut at = (0..quant.bytes).cycle();
            let weights = Weights::blocks(name, quant, layout, &mut random, |_| {
                if at.next().unwrap() + 18 < quant.bytes { byte } else { last }
            });
            for x in &inputs {
                let want = product(Isa::Scalar, &weights, x, 1);
                assert!(nmse(&weights, x, &want) < 1e-9 * coarse(quant), "{name} {byte:#x}");
                for (isa, n) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 64)]) {
                    let got = bits(&product(isa, &weights, &x.repeat(n), n));
                    assert!(got == bits(&want).repeat(n), "{name} {byte:#x} {isa:?} {n}");
                }
            }
        }
    }
}

#[test]
fn rows_come_back_as_published() {
    let mut random = Random(3);
    for (rows, cols) in ROWS.into_iter().flat_map(|r| COLS.map(|c| (r, c))) {
        for weights in Weights::all(rows, cols, &mut random) {
            let mut out = vec![0.0; cols];
            for (row, want) in weights.values.chunks_exact(cols).enumerate() {
                row_f32(&weights.layout, &weights.packed, row, &mut out).unwrap();
                assert!(bits(&out) == bits(want), "{} {rows} x {cols}, {row}", weights.name);
            }
        }
    }
}

/// How much greater the squared error is with one digit of the activations than with two.
fn coarse(quant: &Quant) -> f64 {
    if quant.scale == Scale::Nibbles { 255.0 * 255.0 } else { 1.0 }
}

#[test]
fn products_are_near_f64() {
    let mut random = Random(4);
    for (rows, cols) in [(17, 256), (48, 1024), (64, 2048)] {
        let x = random.normals(8 * cols);
        for weights in Weights::all(rows, cols, &mut random) {
            let error = nmse(&weights, &x, &product(Isa::detect(), &weights, &x, 8));
            println!("{:>6} {rows} x {cols}: {error:.2e}", weights.name);
            let bound = match weights.layout.store {
                Store::Planes(quant, _) => 2e-9 * coarse(quant),
                Store::Floats(_) => 1e-12,
            };
            assert!(error < bound, "{} {rows} x {cols}: {error:e}", weights.name);
        }
    }
}

#[test]
fn a_wrong_bit_is_noticed() {
    let mut random = Random(5);
    let x = random.normals(256);
    for mut weights in Weights::all(16, 256, &mut random) {
        let want = bits(&product(Isa::detect(), &weights, &x, 1));
        let at = weights.packed.len() - 1;
        weights.packed[at] ^= 0x40;
        let got = product(Isa::detect(), &weights, &x, 1);
        assert!(bits(&got) != want, "{}", weights.name);
    }
}

#[test]
fn tiles_can_be_shared_out_and_padding_is_not_written() {
    let mut random = Random(6);
    let (rows, cols, n, stride) = (33, 256, 3, 40);
    let x = random.normals(n * cols);
    for weights in Weights::all(rows, cols, &mut random) {
        let Weights { layout, packed, .. } = &weights;
        let want = product(Isa::Scalar, &weights, &x, n);
        let bytes = activation_bytes(layout.precision(), cols, n).unwrap();
        let mut memory = vec![Line([0; 64]); bytes.div_ceil(64)];
        let mut out = vec![7.0; n * stride];
        let isa = Isa::detect();
        // SAFETY: memory of the size asked for, outputs inside `out`, one thread.
        unsafe {
            let data = memory.as_mut_ptr().cast();
            let acts = Activations::new(data, layout.precision(), cols, n);
            for (r, x) in x.chunks_exact(cols).enumerate() {
                acts.quantize(isa, r, x, 0..acts.groups());
            }
            for tiles in [2..3, 0..1, 1..1, 1..2] {
                matmul(isa, layout, packed, &acts, tiles, out.as_mut_ptr(), stride);
            }
        }
        for (out, want) in out.chunks_exact(stride).zip(want.chunks_exact(rows)) {
            assert!(bits(&out[..rows]) == bits(want), "{}", weights.name);
            assert!(out[rows..].iter().all(|x| *x == 7.0), "{}", weights.name);
        }
    }
}

#[test]
fn many_outputs() {
    let mut random = Random(9);
    let (rows, cols) = (4097, 256);
    let x = random.normals(cols);
    for weights in Weights::all(rows, cols, &mut random) {
        let want = bits(&product(Isa::Scalar, &weights, &x, 1));
        for isa in Isa::available() {
            assert!(bits(&product(isa, &weights, &x, 1)) == want, "{} {isa:?}", weights.name);
        }
    }
}

#[test]
fn every_exponent() {
    // An output an exponent, of one weight that is not 0.
    let (rows, cols) = (256, 32);
    let quant = Format::MXFP4.quant().unwrap();
    let layout = Layout::of(Format::MXFP4, rows, cols).unwrap();
    let block = |e| (0..17u8).map(move |i| [e, 1, 0][usize::from(i.min(2))]);
    let src: Vec<u8> = (0..=255).flat_map(block).collect();
    let mut values = vec![0.0; rows * cols];
    Format::MXFP4.decode(&src, &mut values).unwrap();
    let weights = Weights::pack("exponents", layout, &src, values);
    assert_eq!(quant.scale, Scale::Exponent);
    let x: Vec<f32> = (0..cols).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
    let want = product(Isa::Scalar, &weights, &x, 1);
    for (e, y) in (0..).zip(&want) {
        let power = 2f64.powi(e - 128);
        assert!((f64::from(*y) - power).abs() <= power * 1e-6 + 2f64.powi(-149), "{e}: {y:e}");
    }
    for isa in Isa::available() {
        assert!(bits(&product(isa, &weights, &x, 1)) == bits(&want), "{isa:?}");
    }
}

#[test]
fn odd_columns_of_floats() {
    let mut random = Random(7);
    let formats = [Format::F32, Format::F16, Format::BF16];
    for cols in [1, 2, 31, 33, 255, 257, 300, 513] {
        // Few rows, and many: three tiles and a part of one, a last block more than half full.
        for (outputs, rows) in [(17, 9), (50, 22)] {
            let x = random.normals(rows * cols);
            for weights in formats.map(|f| Weights::random(f, outputs, cols, &mut random)) {
                let want = product(Isa::Scalar, &weights, &x, rows);
                let error = nmse(&weights, &x, &want);
                let name = format!("{} {outputs} x {cols}, {rows}", weights.name);
                assert!(error < 1e-11, "{name}: {error:e}");
                for isa in Isa::available() {
                    let got = product(isa, &weights, &x, rows);
                    assert!(bits(&got) == bits(&want), "{name} {isa:?}");
                }
            }
        }
    }
}

#[test]
fn odd_activations() {
    let mut random = Random(8);
    let weights = Weights::random(Format::Q4_1, 16, 64, &mut random);
    for isa in Isa::available() {
        for tiny in [0.0, -0.0, 1e-45, 1e-38] {
            let y = product(isa, &weights, &[tiny; 64], 1);
            assert!(y.iter().all(|y| y.abs() < 1e-30), "{tiny:e} {isa:?}");
        }
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.normals(128);
            x[64 + 40] = bad;
            let y = product(isa, &weights, &x, 2);
            assert!(y[..16].iter().all(|y| y.is_finite()), "{isa:?}");
            assert!(y[16..].iter().all(|y| y.is_nan()), "{isa:?}");
        }
        let y = product(isa, &weights, &[1e34; 64], 1);
        assert!(nmse(&weights, &[1e34; 64], &y) < 1e-9, "{isa:?}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    assert!(Layout::of(Format::Q4_0, 16, 48).is_none());
    assert!(Layout::of(Format::Q4_K, 16, 32).is_none());
    assert!(Layout::of(Format::Q1_0, 16, 64).is_none());
    assert!(Layout::of(Format::Q4_0, 0, 32).is_none());
    assert!(Layout::of(Format::F32, 16, 0).is_none());
    assert!(Layout::of(Format::Q8_0, usize::MAX, 32).is_none());
    assert!(Layout::of(Format::F32, 1, usize::MAX).is_none());
    assert!(activation_bytes(Precision::Int8, usize::MAX, 2).is_none());
    let layout = Layout::of(Format::Q4_0, 17, 32).unwrap();
    let mut dst = vec![0; layout.bytes()];
    assert!(repack_tiles(&layout, &[0; 17 * 18 - 1], &mut dst, 0..2).is_err());
    assert!(repack_tiles(&layout, &[0; 17 * 18], &mut dst, 0..1).is_err());
    assert!(repack_tiles(&layout, &[0; 17 * 18], &mut dst, 1..3).is_err());
    assert!(row_f32(&layout, &dst, 17, &mut [0.0; 32]).is_err());
    assert!(row_f32(&layout, &dst, 16, &mut [0.0; 31]).is_err());
}

#[test]
fn names() {
    for isa in Isa::available() {
        assert_eq!(Isa::from_name(isa.name()), Some(isa));
    }
    println!("available: {:?}", Isa::available().collect::<Vec<_>>());
}

#[test]
fn many_rows() {
    let mut random = Random(10);
    // One tile and two, a tile that is not whole; spans that are not whole; rows with and without
    // whole blocks.
    for (outputs, cols) in [(57, 288), (32, 512)] {
        let x = random.normals(133 * cols);
        for weights in Weights::all(outputs, cols, &mut random) {
            let want = bits(&product(Isa::Scalar, &weights, &x, 133));
            for isa in Isa::available() {
                for n in [63, 64, 70, 133] {
                    let got = bits(&product(isa, &weights, &x, n));
                    let name = &weights.name;
                    assert!(got == want[..n * outputs], "{name} {outputs} x {cols}, {n}, {isa:?}");
                }
            }
        }
    }
}
