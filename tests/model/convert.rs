//! A file again in other formats: what stays, what changes, and what is said of it.

use gllm_kernels::model::{
    Array, Conversion, Format, GgufWriter, Model, Nearness, Sink, Tensor, Value,
};
use gllm_kernels::{Error, Result};

/// Keeps what it is given, up to so many bytes.
struct Kept {
    bytes: Vec<u8>,
    most: usize,
    heard: Vec<(String, Format, Option<Nearness>)>,
}

impl Kept {
    fn up_to(most: usize) -> Kept {
        Kept { bytes: Vec::new(), most, heard: Vec::new() }
    }
}

impl Sink for Kept {
    fn put(&mut self, bytes: &[u8]) -> Result<bool> {
        self.bytes.extend(bytes);
        Ok(self.bytes.len() <= self.most)
    }

    fn done(&mut self, tensor: &Tensor, format: Format, near: Option<Nearness>) {
        self.heard.push((tensor.name.clone(), format, near));
    }
}

fn floats(n: usize, bad: Option<usize>) -> Vec<u8> {
    let value = |i: usize| if Some(i) == bad { f32::NAN } else { ((i * 7919) % 101) as f32 - 50.0 };
    (0..n).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// A file with keys of every kind and tensors of several shapes.
fn model(bad: Option<usize>, keys: impl FnOnce(GgufWriter) -> GgufWriter) -> Model {
    let writer = GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("general.alignment", Value::U32(64))
        .meta("odd.bytes", Value::Str(vec![0xff, 0, 0xfe]))
        .meta("odd.float", Value::F32(f32::from_bits(0x7fc0_1234)))
        .meta("odd.array", Value::Array(Array::Array(vec![Array::Bool(vec![true, false])])));
    let file = keys(writer)
        .tensor("a.weight", Format::F32, &[300, 512], &floats(300 * 512, bad))
        .tensor("b.bias", Format::F32, &[5], &floats(5, None))
        .tensor("c.weight", Format::F32, &[2, 3, 64], &floats(2 * 3 * 64, None))
        .finish();
    Model::from_static("test", file.leak()).unwrap()
}

fn converted(model: &Model, formats: &[Format], threads: usize) -> Kept {
    let conversion = Conversion::new(model, formats.to_vec(), formats[0]).unwrap();
    let mut kept = Kept::up_to(usize::MAX);
    assert!(conversion.run(threads, &mut kept).unwrap());
    assert_eq!(kept.bytes.len() as u64, conversion.bytes());
    kept
}

const FORMATS: [Format; 3] = [Format::Q4_K, Format::F32, Format::Q2_0];

#[test]
fn keys_stay_and_tensors_change() {
    let old = model(None, |w| w.meta("general.file_type", Value::U32(0)).meta("last", "key"));
    let kept = converted(&old, &FORMATS, 1);
    let new = Model::from_static("new", kept.bytes.clone().leak()).unwrap();
    let entries = |m: &Model| -> Vec<(String, String)> {
        // The debug form of a value shows every bit of it but a NaN's.
        m.meta().iter().map(|(k, v)| (k.to_string(), format!("{v:?}"))).collect()
    };
    let mut want = entries(&old);
    let at = want.iter().position(|(k, _)| k == "general.file_type").unwrap();
    want[at].1 = format!("{:?}", Value::U32(Format::Q4_K.file_type()));
    want.push(("general.quantization_version".into(), format!("{:?}", Value::U32(2))));
    assert_eq!(entries(&new), want);
    let Some(Value::F32(odd)) = new.meta().get("odd.float") else { panic!() };
    assert_eq!(odd.to_bits(), 0x7fc0_1234);

    for ((old_tensor, tensor), format) in old.tensors().iter().zip(new.tensors()).zip(FORMATS) {
        assert_eq!((&old_tensor.name, &old_tensor.dims), (&tensor.name, &tensor.dims));
        assert_eq!(tensor.format, format);
        assert!(tensor.offset().is_multiple_of(64));
    }
    let [a, b, c] = [0, 1, 2].map(|i| (&old.tensors()[i], &new.tensors()[i]));
    assert_eq!(old.bytes(b.0), new.bytes(b.1));
    for (old_tensor, tensor) in [a, c] {
        let mut bytes = vec![0; tensor.size()];
        let mut values = vec![0.0; tensor.elements()];
        old_tensor.format.decode(old.bytes(old_tensor), &mut values).unwrap();
        tensor.format.encode(&values, &mut bytes).unwrap();
        assert!(new.bytes(tensor) == bytes, "{}", tensor.name);
    }
}

#[test]
fn what_is_said_of_the_error_is_what_a_reader_finds() {
    let old = model(None, |w| w);
    let kept = converted(&old, &FORMATS, 2);
    let new = Model::from_static("new", kept.bytes.clone().leak()).unwrap();
    for (i, (name, format, near)) in kept.heard.iter().enumerate() {
        let (was, is) = (&old.tensors()[i], &new.tensors()[i]);
        assert_eq!((name, *format), (&is.name, is.format));
        let Some(near) = near else {
            assert_eq!(was.format, is.format);
            continue;
        };
        let (mut x, mut y) = (vec![0.0; was.elements()], vec![0.0; is.elements()]);
        was.format.decode(old.bytes(was), &mut x).unwrap();
        is.format.decode(new.bytes(is), &mut y).unwrap();
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            x.iter().zip(&y).map(|(x, y)| f(f64::from(*x), f64::from(*y)).powi(2)).sum()
        };
        let (errors, squares) = (sum(&|x, y| x - y), sum(&|x, _| x));
        assert!((near.errors - errors).abs() <= 1e-9 * errors && errors > 0.0);
        assert!((near.squares - squares).abs() <= 1e-9 * squares);
        assert!((near.relative() - (errors / squares).sqrt()).abs() < 1e-9);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let old = model(None, |w| w);
    let one = converted(&old, &FORMATS, 1);
    for threads in [2, 5] {
        let many = converted(&old, &FORMATS, threads);
        assert!(many.bytes == one.bytes && many.heard == one.heard);
    }
}

#[test]
fn a_second_time_nothing_is_lost() {
    let old = model(None, |w| w);
    let kept = converted(&old, &FORMATS, 2);
    let new = Model::from_static("new", kept.bytes.clone().leak()).unwrap();
    let again = converted(&new, &FORMATS, 2);
    assert!(again.bytes == kept.bytes);
    assert!(again.heard.iter().all(|(_, _, near)| near.is_none()));
}

#[test]
fn a_sink_ends_it() {
    let old = model(None, |w| w);
    let conversion = Conversion::new(&old, FORMATS.to_vec(), Format::Q4_K).unwrap();
    assert!(!conversion.run(2, &mut Kept::up_to(10)).unwrap());
    assert!(!conversion.run(2, &mut Kept::up_to(2000)).unwrap());
}

#[test]
fn what_does_not_fit_is_named() {
    let old = model(Some(299 * 512 + 7), |w| w);
    let refused = |formats: &[Format]| {
        Conversion::new(&old, formats.to_vec(), Format::Q4_K).err().map(|e: Error| e.to_string())
    };
    let error = refused(&[Format::F32, Format::F32, Format::Q4_K]).unwrap();
    assert_eq!(error, "tensor \"c.weight\": rows of 64 are not stored in Q4_K");
    assert!(refused(&FORMATS[..2]).unwrap().contains("2 formats for 3 tensors"));
    let conversion = Conversion::new(&old, FORMATS.to_vec(), Format::Q4_K).unwrap();
    let error = conversion.run(3, &mut Kept::up_to(usize::MAX)).unwrap_err().to_string();
    assert_eq!(error, "tensor \"a.weight\", row 299: element 7 is NaN");
    // Rows count from the tensor's first, however many are in memory at a time.
    let file = GgufWriter::new()
        .tensor("a.weight", Format::F32, &[4200, 512], &floats(4200 * 512, Some(4199 * 512 + 3)))
        .finish();
    let old = Model::from_static("test", file.leak()).unwrap();
    let conversion = Conversion::new(&old, vec![Format::Q8_0], Format::Q8_0).unwrap();
    let error = conversion.run(3, &mut Kept::up_to(usize::MAX)).unwrap_err().to_string();
    assert_eq!(error, "tensor \"a.weight\", row 4199: element 3 is NaN");
    let file = GgufWriter::new()
        .tensor("a.weight", Format::F32, &[1, 32], &f32::MAX.to_le_bytes().repeat(32))
        .finish();
    let old = Model::from_static("test", file.leak()).unwrap();
    let conversion = Conversion::new(&old, vec![Format::MXFP4], Format::MXFP4).unwrap();
    let error = conversion.run(3, &mut Kept::up_to(usize::MAX)).unwrap_err().to_string();
    assert_eq!(error, "tensor \"a.weight\", row 0: values are too large for MXFP4");
}
