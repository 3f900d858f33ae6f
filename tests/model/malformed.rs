//! Files that are wrong in one way each, and the very line that says so.

use super::open;
use gllm_kernels::Error;
use gllm_kernels::model::{Array, Format, GgufWriter, Strings, Value};

/// One key `k` = 7u32 and one tensor `t`, 2 rows of 4 floats.
///
/// ```text
/// 0 magic  4 version  8 tensors  16 keys  24 key length  32 "k"  33 type  37 value
/// 41 name length  49 "t"  50 dimensions  54 4  62 2  70 type  74 offset  82 zeros  96 data  128
/// ```
fn small() -> Vec<u8> {
    writer().tensor("t", Format::F32, &[2, 4], &[1; 32]).finish()
}

fn writer() -> GgufWriter {
    GgufWriter::new().meta("k", 7u32)
}

/// `small` with other bytes at one place.
fn patch(at: usize, bytes: &[u8]) -> Vec<u8> {
    patched(small(), at, bytes)
}

fn patched(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn u64s(v: u64) -> [u8; 8] {
    v.to_le_bytes()
}

fn u32s(v: u32) -> [u8; 4] {
    v.to_le_bytes()
}

/// A file of one key.
fn key(name: &str, value: impl Into<Value>) -> Vec<u8> {
    GgufWriter::new().meta(name, value).finish()
}

/// `u8`s within `depth` arrays.
fn nested(depth: usize) -> Array {
    (1..depth).fold(Array::U8(vec![5]), |inner, _| Array::Array(vec![inner]))
}

fn with_tensor(name: &str, format: Format, dims: &[usize]) -> Vec<u8> {
    writer().tensor(name, format, dims, &[0; 64]).finish()
}

/// What is wrong with the file, and the error after `m.gguf: `.
fn cases() -> Vec<(Vec<u8>, String)> {
    let strings: Strings = ["ab", "c"].into_iter().collect();
    let long_key = "k".repeat(65_536);
    let long_name = "t".repeat(256);
    let level = [&u32s(9)[..], &u64s(1)].concat();
    let deep = [&key("k", vec![1u8])[..37], &level.repeat(100_000)].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        // The first 24 bytes.
        (vec![], "header, byte 0: magic of 4 bytes, 0 are left"),
        (b"GGU".to_vec(), "header, byte 0: magic of 4 bytes, 3 are left"),
        (patch(0, b"\x7fELF"), r#"header, byte 0: magic "\u{7f}ELF", expected "GGUF""#),
        (
            patch(0, b"PK\x03\x04"),
            r#"header, byte 0: magic "PK\u{3}\u{4}" (a zip archive, perhaps of pickles, which are never opened), expected "GGUF""#,
        ),
        (
            patch(0, b"tjgg"),
            r#"header, byte 0: magic "tjgg" (a GGML file from before GGUF), expected "GGUF""#,
        ),
        (small()[..6].to_vec(), "header, byte 4: version of 4 bytes, 2 are left"),
        (patch(4, &u32s(0)), "header, byte 4: GGUF version 0; versions 2 and 3 are read"),
        (patch(4, &u32s(1)), "header, byte 4: GGUF version 1; versions 2 and 3 are read"),
        (patch(4, &u32s(4)), "header, byte 4: GGUF version 4; versions 2 and 3 are read"),
        (
            patch(4, &3u32.to_be_bytes()),
            "header, byte 4: big-endian GGUF (version 3), only little-endian is read",
        ),
        (small()[..15].to_vec(), "header, byte 8: count of 8 bytes, 7 are left"),
        (
            patch(8, &u64s(u64::MAX)),
            "header, byte 8: 18446744073709551615 tensors of 33 bytes or more, 112 bytes are left",
        ),
        (patch(8, &u64s(4)), "header, byte 8: 4 tensors of 33 bytes or more, 112 bytes are left"),
        (
            patch(16, &u64s(1 << 60)),
            "header, byte 16: 1152921504606846976 keys of 14 bytes or more, 104 bytes are left",
        ),
        (patch(16, &u64s(8)), "header, byte 16: 8 keys of 14 bytes or more, 104 bytes are left"),
        // A key's name.
        (
            patch(24, &u64s(u64::MAX)),
            "key 1 of 1, byte 24: key of 18446744073709551615 bytes, expected 1 to 65535",
        ),
        (patch(24, &u64s(0)), "key 1 of 1, byte 24: key of 0 bytes, expected 1 to 65535"),
        (key(&long_key, 1u32), "key 1 of 1, byte 24: key of 65536 bytes, expected 1 to 65535"),
        (patch(24, &u64s(100)), "key 1 of 1, byte 32: key of 100 bytes, 96 are left"),
        (patch(32, &[0xff]), "key 1 of 1, byte 32: key is not UTF-8"),
        (writer().meta("k", 8u32).finish(), r#"key "k", byte 41: the same key as at byte 24"#),
        (
            patched(key("\u{1b}[2J", 1u32), 36, &u32s(99)),
            r#"key "\u{1b}[2J", byte 36: value type 99 is not known"#,
        ),
        // A key's value.
        (patch(33, &u32s(13)), r#"key "k", byte 33: value type 13 is not known"#),
        (patched(key("k", true), 37, &[2]), r#"key "k", byte 37: 2 is not a bool"#),
        (key("k", 1u64)[..44].to_vec(), r#"key "k", byte 37: u64 of 8 bytes, 7 are left"#),
        (
            patched(key("k", "abc"), 37, &u64s(1 << 40)),
            r#"key "k", byte 45: string of 1099511627776 bytes, 19 are left"#,
        ),
        (
            patched(key("k", "abc"), 37, &u64s(u64::MAX)),
            r#"key "k", byte 45: string of 18446744073709551615 bytes, 19 are left"#,
        ),
        // Arrays.
        (
            patched(key("k", vec![1u32]), 37, &u32s(13)),
            r#"key "k", byte 37: element type 13 is not known"#,
        ),
        (
            patched(key("k", vec![1u32]), 41, &u64s(1 << 62)),
            r#"key "k", byte 41: 4611686018427387904 elements of 4 bytes or more, 15 bytes are left"#,
        ),
        (
            patched(key("k", vec![1u64]), 41, &u64s(3)),
            r#"key "k", byte 41: 3 elements of 8 bytes or more, 15 bytes are left"#,
        ),
        (patched(key("k", vec![true, false]), 50, &[7]), r#"key "k", byte 50: 7 is not a bool"#),
        (
            patched(key("k", vec![true]), 41, &u64s(u64::MAX)),
            r#"key "k", byte 41: 18446744073709551615 elements of 1 bytes or more, 15 bytes are left"#,
        ),
        (
            patched(key("k", strings.clone()), 41, &u64s(6)),
            r#"key "k", byte 41: 6 strings of 8 bytes or more, 47 bytes are left"#,
        ),
        (
            patched(key("k", strings), 59, &u64s(1 << 33)),
            r#"key "k", byte 67: string of 8589934592 bytes, 29 are left"#,
        ),
        (
            patched(key("k", nested(2)), 41, &u64s(99)),
            r#"key "k", byte 41: 99 arrays of 12 bytes or more, 15 bytes are left"#,
        ),
        (key("k", nested(4)), r#"key "k", byte 61: arrays nested more than 3 deep"#),
        (deep, r#"key "k", byte 61: arrays nested more than 3 deep"#),
        // Keys that the file's reading depends on.
        (
            key("general.alignment", 3u32),
            r#"key "general.alignment", byte 24: 3 is not a power of two from 8 to 65536"#,
        ),
        (
            key("general.alignment", 0u32),
            r#"key "general.alignment", byte 24: 0 is not a power of two from 8 to 65536"#,
        ),
        (
            key("general.alignment", 4u32),
            r#"key "general.alignment", byte 24: 4 is not a power of two from 8 to 65536"#,
        ),
        (
            patched(key("general.alignment", 32u32), 53, &u32s(131_072)),
            r#"key "general.alignment", byte 24: 131072 is not a power of two from 8 to 65536"#,
        ),
        (
            key("general.alignment", -32i32),
            r#"key "general.alignment", byte 24: i32 -32, expected an integer that fits u64"#,
        ),
        (
            key("general.alignment", "32"),
            r#"key "general.alignment", byte 24: string "32", expected an integer that fits u64"#,
        ),
        (
            key("split.count", 3u16),
            r#"key "split.count", byte 24: one of 3 parts of a model; merge them into one file first"#,
        ),
        // A tensor's description.
        (
            patch(41, &u64s(1 << 50)),
            "tensor 1 of 1, byte 41: tensor name of 1125899906842624 bytes, expected 1 to 255",
        ),
        (
            with_tensor("", Format::F32, &[1]),
            "tensor 1 of 1, byte 41: tensor name of 0 bytes, expected 1 to 255",
        ),
        (
            with_tensor(&long_name, Format::F32, &[1]),
            "tensor 1 of 1, byte 41: tensor name of 256 bytes, expected 1 to 255",
        ),
        (patch(49, &[0x80]), "tensor 1 of 1, byte 49: tensor name is not UTF-8"),
        (
            with_tensor("t", Format::F32, &[]),
            r#"tensor "t", byte 50: 0 dimensions, expected 1 to 4"#,
        ),
        (
            with_tensor("t", Format::F32, &[1; 5]),
            r#"tensor "t", byte 50: 5 dimensions, expected 1 to 4"#,
        ),
        (
            patch(50, &u32s(u32::MAX)),
            r#"tensor "t", byte 50: 4294967295 dimensions, expected 1 to 4"#,
        ),
        (with_tensor("t", Format::F32, &[2, 0]), r#"tensor "t", byte 54: a dimension of 0"#),
        (with_tensor("t", Format::F32, &[0, 2]), r#"tensor "t", byte 62: a dimension of 0"#),
        (patch(70, &u32s(16)), r#"tensor "t", byte 70: type IQ2_XXS is not supported"#),
        (patch(70, &u32s(4)), r#"tensor "t", byte 70: type 4 is not known"#),
        (patch(70, &u32s(u32::MAX)), r#"tensor "t", byte 70: type 4294967295 is not known"#),
        (patch(70, &u32s(2)), r#"tensor "t", byte 54: rows of 4 elements, Q4_0 has blocks of 32"#),
        (
            with_tensor("t", Format::Q6_K, &[255]),
            r#"tensor "t", byte 54: rows of 255 elements, Q6_K has blocks of 256"#,
        ),
        (
            with_tensor("t", Format::F32, &[1 << 40, 1 << 40]),
            r#"tensor "t", byte 54: the size of [1099511627776, 1099511627776] overflows"#,
        ),
        (
            with_tensor("t", Format::F32, &[1 << 62]),
            r#"tensor "t", byte 54: the size of [4611686018427387904] overflows"#,
        ),
        (
            patch(74, &u64s(5)),
            r#"tensor "t", byte 74: offset 5 is not a multiple of the alignment, 32"#,
        ),
        // Where tensors lie.
        (patch(74, &u64s(32)), r#"tensor "t", byte 41: bytes 128 to 160 of a file of 128"#),
        (
            patch(74, &u64s(u64::MAX - 31)),
            r#"tensor "t", byte 41: offset 18446744073709551584 and size overflow"#,
        ),
        (patch(62, &u64s(3)), r#"tensor "t", byte 41: bytes 96 to 144 of a file of 128"#),
        (small()[..127].to_vec(), r#"tensor "t", byte 41: bytes 96 to 128 of a file of 127"#),
        (
            writer().info("t", 0, &[1 << 40], 0).finish(),
            r#"tensor "t", byte 41: bytes 96 to 4398046511200 of a file of 96"#,
        ),
        (
            writer().tensor("a", Format::F32, &[16], &[0; 64]).info("b", 0, &[4], 32).finish(),
            r#"tensor "b", byte 74: shares bytes with tensor "a""#,
        ),
        (
            writer().tensor("a", Format::F32, &[8], &[0; 32]).info("b", 0, &[8], 0).finish(),
            r#"tensor "b", byte 74: shares bytes with tensor "a""#,
        ),
        (
            writer()
                .tensor("a", Format::F32, &[8], &[0; 32])
                .tensor("b", Format::F32, &[8], &[0; 32])
                .tensor("a", Format::F32, &[8], &[0; 32])
                .finish(),
            r#"tensor "a", byte 107: the same name as at byte 41"#,
        ),
    ];
    cases.into_iter().map(|(file, line)| (file, line.to_string())).collect()
}

#[test]
fn each_fault_has_its_line() {
    let mut wrong = Vec::new();
    for (file, line) in cases() {
        match open(&file) {
            Ok(_) => wrong.push(format!("accepted, expected: {line}")),
            Err(e) if e.to_string() == format!("m.gguf: {line}") => {}
            Err(e) => wrong.push(format!("{e}\n  expected: {line}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The negative control: the files that the cases are made from are sound.
#[test]
fn unbroken_files_are_accepted() {
    open(&small()).unwrap();
    open(&GgufWriter::new().finish()).unwrap();
    open(&writer().version(2).tensor("t", Format::F32, &[1], &[0; 4]).finish()).unwrap();
    open(&key("k", nested(3))).unwrap();
    open(&key(&"k".repeat(65_535), 1u32)).unwrap();
    open(&with_tensor(&"t".repeat(255), Format::F32, &[1, 2, 4, 2])).unwrap();
    open(&key("split.count", 1u16)).unwrap();
    for alignment in [8u32, 64, 65_536] {
        let file = writer()
            .meta("general.alignment", alignment)
            .tensor("a", Format::F32, &[1], &[1, 2, 3, 4])
            .tensor("b", Format::F32, &[1], &[5, 6, 7, 8])
            .finish();
        let model = open(&file).unwrap();
        let (a, b) = (&model.tensors()[0], &model.tensors()[1]);
        assert_eq!((model.bytes(a), model.bytes(b)), (&[1, 2, 3, 4][..], &[5, 6, 7, 8][..]));
        assert_eq!(a.offset() % alignment as usize, 0);
        assert_eq!(b.offset() - a.offset(), alignment as usize);
    }
}

#[test]
fn what_this_build_lacks_is_not_called_broken() {
    for file in [
        patch(4, &u32s(1)),
        patch(4, &2u32.to_be_bytes()),
        patch(70, &u32s(16)),
        key("split.count", 2u16),
    ] {
        assert!(matches!(open(&file), Err(Error::Unsupported(_))));
    }
    assert!(matches!(open(&patch(70, &u32s(4))), Err(Error::File { .. })));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let strings: Strings = ["<s>", "", "\u{2581}the"].into_iter().collect();
    let file = writer()
        .meta("general.name", "cut me")
        .meta("tokens", strings)
        .meta("scores", vec![0.5f32, -1.0])
        .meta("flags", vec![true, false])
        .meta("nested", nested(3))
        .tensor("a", Format::Q4_0, &[2, 32], &[3; 36])
        .tensor("b", Format::F32, &[4], &[0; 16])
        .finish();
    open(&file).unwrap();
    for len in 0..file.len() {
        let error = open(&file[..len]).expect_err("a cut file").to_string();
        // The place of the fault is one that the cut file still has, or its end.
        let (_, rest) = error.split_once(", byte ").expect(&error);
        let at: usize = rest.split_once(':').unwrap().0.parse().unwrap();
        assert!(at <= len, "cut at {len}: {error}");
        assert!(error.starts_with("m.gguf: "), "{error}");
    }
}

#[test]
fn the_path_is_escaped() {
    let error = gllm_kernels::model::Model::from_static("a\u{1b}\n.gguf", b"").unwrap_err();
    let line = r"a\u{1b}\n.gguf: header, byte 0: magic of 4 bytes, 0 are left";
    assert_eq!(error.to_string(), line);
}
