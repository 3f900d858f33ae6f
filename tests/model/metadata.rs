//! What the getters answer, and what they refuse.

use super::open;
use gllm_kernels::model::{Array, GgufWriter, Metadata, Strings, Value};

fn meta() -> Metadata {
    let tokens: Strings =
        [&b"a"[..], b"", b"\xff\xfe", "\u{2581}x".as_bytes()].into_iter().collect();
    let file = GgufWriter::new()
        .meta("z.u8", 200u8)
        .meta("i8", -5i8)
        .meta("u16", 65_535u16)
        .meta("i16", -300i16)
        .meta("u32", u32::MAX)
        .meta("i32", i32::MIN)
        .meta("u64", u64::MAX)
        .meta("i64", -1i64)
        .meta("f32", 1.5f32)
        .meta("f64", 1e-5f64)
        .meta("yes", true)
        .meta("text", "caf\u{e9}\u{1b}[0m")
        .meta("bytes", &b"\xf0\x28"[..])
        .meta("tokens", tokens)
        .meta("i32s", vec![3i32, 0, 7])
        .meta("negative", vec![3i32, -1])
        .meta("i64s", vec![1i64, 2, 3, 4, 5, 6, 7])
        .meta("f32s", vec![0.5f32, f32::INFINITY])
        .meta("f64s", vec![0.25f64])
        .meta("bools", vec![true, false])
        .meta("nested", Array::Array(vec![Array::U8(vec![1, 2]), Array::Str(Strings::new())]))
        .finish();
    open(&file).unwrap().meta().clone()
}

#[test]
fn integers_of_any_width_that_fit() {
    let m = meta();
    assert_eq!(m.get_u32("z.u8").unwrap(), Some(200));
    assert_eq!(m.get_i32("i8").unwrap(), Some(-5));
    assert_eq!(m.get_i32("u16").unwrap(), Some(65_535));
    assert_eq!(m.get_i64("i16").unwrap(), Some(-300));
    assert_eq!(m.get_u64("u32").unwrap(), Some(u64::from(u32::MAX)));
    assert_eq!(m.get_i32("i32").unwrap(), Some(i32::MIN));
    assert_eq!(m.require_u64("u64").unwrap(), u64::MAX);
    assert_eq!(m.get_u32("absent").unwrap(), None);
    for (key, line) in [
        ("i8", r#"m.gguf: key "i8", byte 41: i8 -5, expected an integer that fits u32"#),
        ("f32", r#"m.gguf: key "f32", byte 174: f32 1.5, expected an integer that fits u32"#),
    ] {
        assert_eq!(m.get_u32(key).unwrap_err().to_string(), line);
    }
    for key in ["u64", "i64", "yes", "text", "i32s"] {
        assert!(m.get_u32(key).is_err(), "{key}");
    }
    assert!(m.get_i64("u64").is_err());
}

#[test]
fn arrays_convert_whole_or_not() {
    let m = meta();
    assert_eq!(m.require_i32s("i32s").unwrap()[..], [3, 0, 7]);
    assert_eq!(m.require_u32s("i32s").unwrap()[..], [3, 0, 7]);
    assert_eq!(m.require_u64s("i64s").unwrap()[..], [1, 2, 3, 4, 5, 6, 7]);
    assert!(m.get_u32s("negative").is_err());
    assert!(m.get_u32s("f32s").is_err() && m.get_u32s("u32").is_err());
    assert_eq!(m.require_f32s("f32s").unwrap()[..], [0.5, f32::INFINITY]);
    assert_eq!(m.require_f32s("f64s").unwrap()[..], [0.25]);
    assert!(m.get_f32s("i32s").is_err());
    assert_eq!(m.require_bools("bools").unwrap(), [true, false]);
    assert_eq!(m.get_f32("f64").unwrap(), Some(1e-5));
    assert_eq!(m.get_bool("yes").unwrap(), Some(true));
    assert!(m.get_bool("z.u8").is_err());
}

#[test]
fn strings_are_bytes_and_text_on_request() {
    let m = meta();
    assert_eq!(m.require_str("text").unwrap(), "caf\u{e9}\u{1b}[0m");
    assert_eq!(m.require_bytes("bytes").unwrap(), b"\xf0\x28");
    let line = r#"key "bytes", byte 265: the string is not UTF-8 at its byte 0"#;
    assert_eq!(m.get_str("bytes").unwrap_err().to_string(), format!("m.gguf: {line}"));
    let tokens = m.require_strs("tokens").unwrap();
    let all: Vec<&[u8]> = tokens.iter().collect();
    assert_eq!(all, [&b"a"[..], b"", b"\xff\xfe", b"\xe2\x96\x81x"]);
    assert_eq!(tokens.iter().len(), 4);
    for (i, token) in all.iter().enumerate() {
        assert_eq!(tokens.get(i), Some(*token));
    }
    assert_eq!((tokens.get(4), tokens.len(), tokens.is_empty()), (None, 4, false));
    assert_eq!(tokens.text(2).unwrap(), "\u{fffd}\u{fffd}");
    assert!(m.get_strs("i32s").is_err() && m.get_str("tokens").is_err());
}

#[test]
fn what_must_be_there_is_named() {
    let line = r#"m.gguf: key "llama.block_count": missing"#;
    assert_eq!(meta().require_u32("llama.block_count").unwrap_err().to_string(), line);
    let line = r#"m.gguf: key "f32", byte 174: must be above 2"#;
    assert_eq!(meta().error("f32", "must be above 2").to_string(), line);
}

#[test]
fn entries_print_safely_in_the_order_of_the_file() {
    let m = meta();
    assert_eq!((m.len(), m.iter().len(), m.is_empty()), (21, 21, false));
    assert_eq!(m.iter().next().unwrap().0, "z.u8");
    let shown = |key: &str| m.get(key).unwrap().to_string();
    assert_eq!(shown("text"), r#""café\u{1b}[0m""#);
    assert_eq!(shown("tokens"), "[\"a\", \"\", \"\u{fffd}\u{fffd}\", \"\u{2581}x\"]");
    assert_eq!(shown("i64s"), "[1, 2, 3, 4, 5, 6, … 7 in all]");
    assert_eq!(shown("nested"), "[2 array of u8, 0 array of string]");
    let long = Value::from("\u{e9}".repeat(10_000).as_str()).to_string();
    assert_eq!(long, format!("\"{}…\"", "\u{e9}".repeat(64)));
}
