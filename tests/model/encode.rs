//! What is written in a format: packed as it is unpacked, near to what was to be written, and
//! refused where it cannot be written.

use gllm_kernels::model::{Block, Format};

use crate::decode::fixtures;

/// Nearly normal numbers of variance 1.
fn normals(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// What a reader finds where `values` were written.
fn written(format: Format, values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0xaa; format.row_bytes(values.len()).unwrap()];
    format.encode(values, &mut bytes).unwrap();
    let mut again = vec![f32::NAN; values.len()];
    format.decode(&bytes, &mut again).unwrap();
    again
}

/// The root of the mean squared error over that of the mean square.
fn error(values: &[f32], again: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let errors: f64 =
        values.iter().zip(again).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let squares: f64 = values.iter().map(|a| square(f64::from(*a))).sum();
    (errors / squares).sqrt()
}

#[test]
fn packing_is_the_inverse_of_unpacking() {
    for (format, blocks, _) in fixtures() {
        let Some(quant) = format.quant() else { continue };
        let (mut block, mut again) = (Block::default(), Block::default());
        for bytes in blocks.chunks_exact(quant.bytes) {
            (quant.unpack)(bytes, &mut block);
            let mut packed = vec![0xaa; quant.bytes];
            (quant.packing.pack)(&block, &mut packed);
            // Several bytes of TQ1_0 mean the same five codes.
            if format != Format::TQ1_0 {
                assert_eq!(packed, bytes, "{}", format.name());
            }
            (quant.unpack)(&packed, &mut again);
            assert_eq!(again.codes, block.codes, "{}", format.name());
            assert_eq!((again.d, again.m), (block.d, block.m), "{}", format.name());
        }
    }
}

/// No worse than what llama.cpp's quantizer leaves of such numbers, in percent.
#[test]
fn the_error_is_small() {
    let values = normals(1 << 16);
    for (format, most) in [
        (Format::BF16, 0.2),
        (Format::F16, 0.03),
        (Format::F32, 0.0),
        (Format::Q8_0, 0.535),
        (Format::Q4_0, 8.58),
        (Format::Q4_1, 7.81),
        (Format::Q5_0, 4.26),
        (Format::Q5_1, 3.78),
        (Format::Q2_K, 29.6),
        (Format::Q3_K, 15.0),
        (Format::Q4_K, 7.13),
        (Format::Q5_K, 3.61),
        (Format::Q6_K, 1.773),
        (Format::IQ4_NL, 7.61),
        (Format::MXFP4, 11.4),
        (Format::TQ1_0, 80.7),
        (Format::TQ2_0, 80.7),
        (Format::Q1_0, 60.5),
        (Format::Q2_0, 71.7),
    ] {
        let error = 100.0 * error(&values, &written(format, &values));
        println!("{:>6} {error:8.4}%", format.name());
        assert!(error <= most, "{}: {error}%", format.name());
    }
}

#[test]
fn signs_and_sizes_do_not_matter() {
    let values = normals(1 << 12);
    for &format in Format::all() {
        let want = error(&values, &written(format, &values));
        for factor in [-1.0, 1e-2, -1e3] {
            let values: Vec<f32> = values.iter().map(|x| x * factor).collect();
            let error = error(&values, &written(format, &values));
            assert!(error <= want * 1.05 + 1e-3, "{} {factor}: {error}, {want}", format.name());
        }
    }
}

#[test]
fn odd_values_stay_near() {
    let ramp: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let spike: Vec<f32> = (0..256).map(|i| if i == 77 { -1000.0 } else { 0.001 }).collect();
    let cases: [(&str, Vec<f32>); 6] = [
        ("one value", vec![0.37; 256]),
        ("one below zero", vec![-0.37; 256]),
        ("two values", (0..256).map(|i| if i % 3 == 0 { 2.0 } else { -1.0 }).collect()),
        ("all above zero", ramp.iter().map(|x| x + 100.0).collect()),
        ("all below zero", ramp.iter().map(|x| -x - 100.0).collect()),
        ("a spike", spike),
    ];
    for &format in Format::all() {
        for (name, values) in &cases {
            let error = error(values, &written(format, values));
            // One bit cannot say that most are next to nothing.
            let most = if format == Format::Q1_0 { 1.0 } else { 0.6 };
            assert!(error <= most, "{} of {name}: {error}", format.name());
        }
        let zeros = written(format, &[0.0; 256]);
        assert!(zeros.iter().all(|x| *x == 0.0), "{}", format.name());
        if format.quant().is_some() {
            for size in [1e-45, 1e-38, 1e30, 2e38] {
                let again =
                    written(format, &ramp.iter().map(|x| x / 255.0 * size).collect::<Vec<_>>());
                assert!(again.iter().all(|x| x.is_finite()), "{} {size:e}", format.name());
            }
        }
    }
}

#[test]
fn what_cannot_be_written_is_named() {
    for &format in Format::all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 256];
            values[200] = bad;
            let mut bytes = vec![0; format.row_bytes(256).unwrap()];
            let error = format.encode(&values, &mut bytes).unwrap_err().to_string();
            assert!(error.contains("element 200"), "{error}");
            assert!(format.encode(&values, &mut bytes[1..]).is_err());
        }
    }
    let error = Format::F16.encode(&[1.0, 65504.0, -65520.0], &mut [0; 6]).unwrap_err();
    assert_eq!(error.to_string(), "element 2 is -65520, too large for F16");
}
