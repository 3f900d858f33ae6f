//! Any bytes give a model or an error: random damage to a sound file.

use super::memory::{allowance, peak};
use super::open;
use gllm_kernels::model::{Array, Format, GgufWriter, Strings};
use proptest::prelude::*;

fn sound() -> Vec<u8> {
    let tokens: Strings = [&b"<s>"[..], b"\xff", b"the"].into_iter().collect();
    GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("general.alignment", 32u32)
        .meta("split.count", 1u16)
        .meta("llama.block_count", 1u64)
        .meta("llama.rope.freq_base", 10_000f32)
        .meta("tokenizer.ggml.tokens", tokens)
        .meta("tokenizer.ggml.scores", vec![0f32, -1.0, -2.0])
        .meta("tokenizer.ggml.token_type", vec![3i32, 1, 1])
        .meta("tokenizer.ggml.add_bos_token", true)
        .meta("nested", Array::Array(vec![Array::Array(vec![Array::I8(vec![1])])]))
        .tensor("token_embd.weight", Format::Q8_0, &[3, 32], &[7; 3 * 34])
        .tensor("blk.0.attn_q.weight", Format::Q4_K, &[1, 256], &[9; 144])
        .tensor("output_norm.weight", Format::F32, &[32], &[0; 128])
        .finish()
}

/// One piece of damage.
#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Number(prop::sample::Index, u64, usize),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let numbers = prop_oneof![
        0..40u64,
        Just(u64::MAX),
        Just(u64::MAX - 31),
        Just(1 << 63),
        Just(1 << 62),
        Just(1 << 32),
        any::<u64>(),
    ];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(i, v)| Damage::Byte(i, v)),
        4 => (at(), numbers, prop_oneof![Just(4usize), Just(8)])
            .prop_map(|(i, v, n)| Damage::Number(i, v, n)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), at()).prop_map(|(a, b)| Damage::Repeat(a, b)),
    ]
}

fn apply(mut file: Vec<u8>, damage: &Damage) -> Vec<u8> {
    if file.is_empty() {
        return file;
    }
    match damage {
        Damage::Byte(i, v) => *i.get_mut(&mut file) = *v,
        Damage::Number(i, v, n) => {
            let at = i.index(file.len());
            file.iter_mut().skip(at).zip(&v.to_le_bytes()[..*n]).for_each(|(f, b)| *f = *b);
        }
        Damage::Cut(i) => file.truncate(i.index(file.len())),
        Damage::Repeat(a, b) => {
            let (a, b) = (a.index(file.len()), b.index(file.len()));
            let piece = file[a.min(b)..a.max(b)].to_vec();
            file.splice(b..b, piece);
        }
    }
    file
}

/// Opens a file and uses everything in it. The error or nothing.
fn walk(file: &[u8]) -> Option<String> {
    let (model, peak) = peak(|| open(file));
    assert!(peak <= allowance(file.len()), "{} bytes, {peak} allocated", file.len());
    let model = match model {
        Ok(model) => model,
        Err(e) => return Some(e.to_string()),
    };
    for (key, value) in model.meta().iter() {
        let shown = value.to_string();
        assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
        let m = model.meta();
        let _ = (m.get_u32(key), m.get_i64(key), m.get_f32(key), m.get_bool(key), m.get_str(key));
        let _ = (m.get_u32s(key), m.get_i32s(key), m.get_f32s(key), m.get_strs(key));
        assert_eq!(m.get(key).map(ToString::to_string), Some(shown));
    }
    for tensor in model.tensors() {
        let bytes = model.bytes(tensor);
        assert_eq!(
            (bytes.len(), model.tensor(&tensor.name).unwrap().offset()),
            (tensor.size(), tensor.offset())
        );
        tensor.format.decode(bytes, &mut vec![0.0; tensor.elements()]).unwrap();
    }
    None
}

#[test]
fn the_sound_file_is_sound() {
    assert_eq!(walk(&sound()), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) })]

    #[test]
    fn damage_never_panics(all in prop::collection::vec(damage(), 1..6)) {
        let file = all.iter().fold(sound(), apply);
        if let Some(line) = walk(&file) {
            prop_assert!(line.starts_with("m.gguf: "), "{}", line);
            prop_assert!(line.len() < 2000 && line.chars().all(|c| !c.is_control()), "{:?}", line);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let noise = [b"GGUF\x03\0\0\0", &bytes[..]].concat();
        walk(&noise);
        walk(&bytes);
    }
}
