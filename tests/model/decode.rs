//! Each format against the published `gguf` package, bit for bit (see `fixtures.py`).

use gllm_kernels::model::Format;

macro_rules! fixtures {
    ($($name:ident)*) => {
        [$((
            Format::$name,
            &include_bytes!(concat!("fixtures/", stringify!($name), ".blocks"))[..],
            &include_bytes!(concat!("fixtures/", stringify!($name), ".f32"))[..],
        )),*]
    };
}

/// Format, blocks, and what they decode to.
pub(crate) fn fixtures() -> Vec<(Format, &'static [u8], Vec<u32>)> {
    let all = fixtures! {
        F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K
        IQ4_NL MXFP4 TQ1_0 TQ2_0 Q1_0 Q2_0
    };
    let bits = |b: &[u8]| b.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    all.into_iter().map(|(format, blocks, values)| (format, blocks, bits(values))).collect()
}

fn decoded(format: Format, blocks: &[u8], count: usize) -> Vec<u32> {
    let mut out = vec![f32::NAN; count];
    format.decode(blocks, &mut out).unwrap();
    out.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_format_decodes_as_published() {
    let fixtures = fixtures();
    assert_eq!(fixtures.iter().map(|f| f.0).collect::<Vec<_>>(), Format::all());
    for (format, blocks, expected) in fixtures {
        assert!(expected.len() >= 256 && format.row_bytes(expected.len()) == Some(blocks.len()));
        let got = decoded(format, blocks, expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let (a, b) = (f32::from_bits(*got), f32::from_bits(*expected));
            assert_eq!(got, expected, "{} element {i}: {a:e}, published {b:e}", format.name());
        }
    }
}

/// The negative control of the test above: no bit of any block is without effect. A byte of TQ1_0
/// has more values than five codes: only
/// its highest bit is sure to change one.
#[test]
fn every_bit_of_a_block_counts() {
    for (format, blocks, _) in fixtures() {
        let len = format.block_len();
        // A block with ordinary scales, lest a zero or an overflow hide what its codes do.
        let block = &blocks[blocks.len() - format.block_bytes()..];
        let before = decoded(format, block, len);
        for bit in 0..block.len() * 8 {
            if format == Format::TQ1_0 && bit < 8 * 52 && bit % 8 != 7 {
                continue;
            }
            let mut changed = block.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(before, decoded(format, &changed, len), "{} bit {bit}", format.name());
        }
    }
}

#[test]
fn codes_stay_below_their_width() {
    for (format, blocks, _) in fixtures() {
        let Some(quant) = format.quant() else { continue };
        let mut block = gllm_kernels::model::Block::default();
        for bytes in blocks.chunks_exact(quant.bytes) {
            (quant.unpack)(bytes, &mut block);
            let top = u32::from(*block.codes[..quant.block].iter().max().unwrap());
            assert!(top < 1 << (quant.lo + quant.hi), "{} {top}", format.name());
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    for &format in Format::all() {
        let (len, bytes) = (format.block_len(), format.block_bytes());
        assert_eq!(format.row_bytes(3 * len), Some(3 * bytes));
        assert!(len == 1 || format.row_bytes(len + 1).is_none());
        let huge = usize::MAX / len * len;
        assert!(format.row_bytes(huge).is_none() == (bytes > len));
        for (bytes, len) in [(bytes - 1, len), (bytes, len + 1), (bytes, 0), (0, len)] {
            let error = format.decode(&vec![0; bytes], &mut vec![0.0; len]).unwrap_err();
            let name = format.name();
            assert_eq!(
                error.to_string(),
                format!("{name}: {bytes} bytes do not hold {len} elements")
            );
        }
        assert_eq!(Format::from_ggml(format.ggml()), Some(format));
        assert_eq!(Format::from_name(&format.name().to_lowercase()), Some(format));
    }
}
