//! Architectures: what they build, and which files they refuse.

use crate::models::{self, Tiny};
use gllm_kernels::graph::{Op, arch};
use gllm_kernels::model::{Array, Format, GgufWriter, Model, Value};

#[test]
fn gemma3_sees_a_window_but_for_each_sixth_layer() {
    let graph = arch::build(&models::gemma3().model()).unwrap();
    let windows: Vec<_> = graph
        .nodes()
        .iter()
        .filter_map(|n| if let Op::Attend(a) = &n.op { Some(a.window) } else { None })
        .collect();
    assert_eq!(windows, [Some(4), Some(4), Some(4), Some(4), Some(4), None, Some(4)]);
    let bases: Vec<f32> = graph
        .nodes()
        .iter()
        .filter_map(|n| if let Op::Rope(r) = &n.op { Some(r.base) } else { None })
        .collect();
    assert_eq!(bases[8..12], [1e4, 1e4, 1e6, 1e6]);
}

#[test]
fn llama_takes_the_head_and_the_biases_that_there_are() {
    let graph = arch::build(&models::llama().model()).unwrap();
    let names: Vec<&str> = graph
        .nodes()
        .iter()
        .filter_map(|n| if let Op::Weight(w) = &n.op { Some(w.name.as_str()) } else { None })
        .collect();
    for wanted in ["output.weight", "blk.1.attn_q.bias", "rope_freqs.weight"] {
        assert_eq!(names.iter().filter(|n| **n == wanted).count(), 1, "{wanted}");
    }
    // All but the sampling that every graph ends with.
    let (last, others) = graph.nodes().split_last().unwrap();
    assert!(others.iter().all(|n| n.origin.file.ends_with(".star")), "{last:?}");
}

/// The error of a llama that `change` spoiled.
fn spoiled(change: impl Fn(&mut Tiny)) -> String {
    let mut tiny = models::llama();
    change(&mut tiny);
    arch::build(&tiny.model()).expect_err("it was spoiled").to_string()
}

/// A file of keys alone, but for the embedding.
fn keys(pairs: &[(&str, Value)]) -> String {
    let mut writer = GgufWriter::new();
    for (key, value) in pairs {
        writer = writer.meta(key, value.clone());
    }
    let file = writer.tensor("token_embd.weight", Format::F32, &[4, 16], &[0; 256]).finish();
    let model = Model::from_static("keys", file.leak()).unwrap();
    arch::build(&model).expect_err("no layers").to_string()
}

#[test]
fn hyper_parameters_are_checked() {
    let sound: Vec<(&str, Value)> = vec![
        ("general.architecture", "llama".into()),
        ("llama.block_count", 1u32.into()),
        ("llama.embedding_length", 16u32.into()),
        ("llama.attention.head_count", 4u32.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
    ];
    assert!(keys(&sound).contains("llama.star:"), "{}", keys(&sound));
    assert!(keys(&sound).ends_with("there is no tensor blk.0.attn_norm.weight"));
    for (key, value, wanted) in [
        (
            "general.architecture",
            "qwen9\n".into(),
            r#""qwen9\n" is unknown, --graph FILE brings one; there are "#,
        ),
        ("llama.block_count", 0u32.into(), "0 is too few"),
        ("llama.block_count", u64::MAX.into(), "is more than"),
        ("llama.block_count", (-1i32).into(), "block_count"),
        ("llama.embedding_length", 32u32.into(), "token_embd.weight has rows of 16"),
        ("llama.attention.head_count", 3u32.into(), "do not divide among 3"),
        ("llama.attention.head_count", 0u32.into(), "0 is too few"),
        ("llama.attention.head_count_kv", 3u32.into(), "not a multiple of 3"),
        ("llama.attention.value_length", 8u32.into(), "heads have 4"),
        ("llama.rope.dimension_count", 3u32.into(), "cannot turn in pairs"),
        ("llama.rope.dimension_count", 6u32.into(), "cannot turn in pairs"),
        ("llama.rope.freq_base", 0f32.into(), "not a positive number"),
        ("llama.rope.freq_base", f32::INFINITY.into(), "not a positive number"),
        ("llama.attention.layer_norm_rms_epsilon", f32::NAN.into(), "not a positive number"),
        ("llama.vocab_size", 5u32.into(), "has 4 rows"),
        (
            "tokenizer.ggml.tokens",
            Value::Array(Array::Str(["a"].into_iter().collect())),
            "1 tokens",
        ),
    ] {
        let mut pairs = sound.clone();
        pairs.retain(|(k, _)| *k != key);
        pairs.push((key, value));
        let error = keys(&pairs);
        assert!(error.contains(wanted), "{key}: {error}");
    }
    for (missing, _) in &sound {
        let pairs: Vec<_> = sound.iter().filter(|(k, _)| k != missing).cloned().collect();
        assert!(keys(&pairs).contains(missing), "{missing}: {}", keys(&pairs));
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let error = spoiled(|tiny| tiny.tensor("blk.2.attn_norm.weight", &[16]));
    assert!(error.contains("2 layers, but there is a tensor blk.2.attn_norm"), "{error}");
    let error = spoiled(|tiny| tiny.tensor("blk.0.attn_k.bias", &[3]));
    assert!(error.contains("blk.0.attn_k.bias: f32[R, 8] and f32[3] do not match"), "{error}");
}
