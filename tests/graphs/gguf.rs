//! The same models as GGUF files, with names, orders and keys as the converter of llama.cpp writes
//! them: `gguf-py` for the names, `conversion/` for the orders. What a graph file does for GGUF and not
//! for the hub's folders is tried here.

use super::{REFERENCE, difference, fixture, folder, model, reference_logits, wanted_logits};
use gllm_kernels::graph::{Weights, arch};
use gllm_kernels::model::{Format, GgufWriter, Model};
use std::fs;

/// A number of a config under the first of these names; a dot leads into an object.
fn number(config: &serde_json::Value, names: &[&str]) -> Option<f64> {
    names.iter().find_map(|name| {
        let path = format!("/{}", name.replace('.', "/"));
        config.pointer(&path).and_then(serde_json::Value::as_f64)
    })
}

/// Counts that every converter writes, and what configs call them.
const COUNTS: &[(&str, &[&str])] = &[
    ("vocab_size", &["vocab_size"]),
    ("block_count", &["num_hidden_layers", "n_layer"]),
    ("context_length", &["max_position_embeddings", "n_positions"]),
    ("embedding_length", &["hidden_size", "n_embd"]),
    ("feed_forward_length", &["intermediate_size"]),
    ("expert_shared_feed_forward_length", &["shared_expert_intermediate_size"]),
    ("attention.head_count", &["num_attention_heads", "n_head"]),
    ("attention.key_length", &["head_dim"]),
    ("attention.value_length", &["head_dim"]),
    ("expert_count", &["num_local_experts", "num_experts"]),
    ("expert_used_count", &["num_experts_per_tok"]),
    ("expert_feed_forward_length", &["moe_intermediate_size"]),
    ("rope.scaling.original_context_length", &["rope_parameters.original_max_position_embeddings"]),
];

const NUMBERS: &[(&str, &[&str])] = &[
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    ("attention.layer_norm_epsilon", &["layer_norm_eps", "layer_norm_epsilon"]),
    (
        "rope.freq_base",
        &["rope_parameters.rope_theta", "rope_parameters.full_attention.rope_theta"],
    ),
    ("rope.scaling.factor", &["rope_parameters.factor"]),
    ("attention.scale", &["attention_multiplier"]),
    ("embedding_scale", &["embedding_multiplier"]),
    ("residual_scale", &["residual_multiplier"]),
    ("logit_scale", &["logits_scaling", "logit_scale"]),
];

/// Rows in another order: `to(row)` is where a row goes.
fn reordered(bytes: &[u8], rows: usize, to: impl Fn(usize) -> usize) -> Vec<u8> {
    let each = bytes.len() / rows;
    let mut out = vec![0; bytes.len()];
    for (row, data) in bytes.chunks_exact(each).enumerate() {
        out[to(row) * each..][..each].copy_from_slice(data);
    }
    out
}

/// The fixture's model as a file. `turned`: rows of queries and keys are in the order for which
/// neighbours turn.
fn gguf(name: &str, architecture: &str, turned: bool) -> Vec<u8> {
    let fixture = fixture(name);
    let hub = model(&format!("{name}-to-gguf"), &fixture, "F32", 1);
    let config = &fixture.config;
    let like = arch::sketch(hub.meta(), &arch::Library::embedded(), None).unwrap();
    let key = |key: &str| format!("{architecture}.{key}");
    let mut file = GgufWriter::new().meta("general.architecture", architecture);
    // Without a vocabulary: llama.cpp loads and runs such a file, with tokens of its choice.
    file = file.meta("tokenizer.ggml.model", "none");
    for (name, names) in COUNTS {
        // GPT-2's config does not say how wide its MLP is.
        let n = match (architecture, *name) {
            ("gpt2", "feed_forward_length") => number(config, &["n_embd"]).map(|n| 4.0 * n),
            _ => number(config, names),
        };
        if let Some(n) = n {
            file = file.meta(&key(name), n as u32);
        }
    }
    for (name, names) in NUMBERS {
        if let Some(x) = number(config, names) {
            file = file.meta(&key(name), x as f32);
        }
    }
    let heads = number(config, &["num_attention_heads", "n_head"]).unwrap() as usize;
    let dim = number(config, &["hidden_size", "n_embd"]).unwrap() as usize;
    let kv_heads = number(config, &["num_key_value_heads"]).unwrap() as usize;
    let head_dim = number(config, &["head_dim"]).map_or(dim / heads, |d| d as usize);
    // GPT-2 has as many keys as queries, whatever its config says.
    if architecture != "gpt2" {
        file = file.meta(&key("attention.head_count_kv"), kv_heads as u32);
        let part = number(config, &["rope_parameters.partial_rotary_factor"]).unwrap_or(1.0);
        file = file.meta(&key("rope.dimension_count"), (part * head_dim as f64) as u32);
    }
    if ["gemma3", "phi3"].contains(&architecture) {
        let window = number(config, &["sliding_window"]).unwrap();
        file = file.meta(&key("attention.sliding_window"), window as u32);
    }
    if let Some(parallel) = config.get("use_parallel_residual").and_then(|p| p.as_bool()) {
        file = file.meta(&key("use_parallel_residual"), parallel);
    }
    if config.pointer("/rope_parameters/rope_type").is_some_and(|t| t == "yarn") {
        file = file.meta(&key("rope.scaling.type"), "yarn");
    }
    for (own, there) in like.names {
        let (format, dims) = hub.find(&there).unwrap();
        assert_eq!(format, Format::F32, "{there}");
        let bytes = Weights::bytes(&hub, &there).unwrap();
        let half = head_dim / 2;
        // The halves of each head, turn by turn.
        let turn = |row: usize| {
            let (head, in_head) = (row / head_dim, row % head_dim);
            head * head_dim + 2 * (in_head % half) + in_head / half
        };
        // Head by head its query, key and value: all queries, all keys, all values.
        let apart = |row: usize| {
            let (head, kind, d) = (row / (3 * head_dim), row / head_dim % 3, row % head_dim);
            (kind * heads + head) * head_dim + d
        };
        let bytes = match own.split('.').nth(2).unwrap_or_default() {
            "attn_q" | "attn_k" if turned => reordered(&bytes, dims[0], turn),
            "attn_qkv" if architecture == "gptneox" => reordered(&bytes, dims[0], apart),
            _ => bytes.into_owned(),
        };
        // One number a row: the converter keeps a vector.
        let dims = if dims[0] == 1 && dims.len() == 2 { &dims[1..] } else { &dims[..] };
        file = file.tensor(&own, Format::F32, dims, &bytes);
    }
    file.finish()
}

/// The greatest difference of the file's logits from those of transformers.
fn error(name: &str, architecture: &str, turned: bool) -> f32 {
    let path = folder(&format!("gguf-{name}-{turned}")).join("model.gguf");
    fs::write(&path, gguf(name, architecture, turned)).unwrap();
    let model = Model::open(&path).unwrap();
    let graph = arch::build(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
    let fixture = fixture(name);
    let vocabulary = graph.ty(graph.outputs()[0]).width();
    let all = reference_logits(&graph, &model, &fixture.prompt);
    let rows = fixture.rows.iter().flat_map(|&r| all[r * vocabulary..][..vocabulary].to_vec());
    difference(&rows.collect::<Vec<f32>>(), &wanted_logits(&fixture))
}

#[test]
fn files_of_the_converter_give_the_same_logits() {
    for (name, architecture, turned) in [
        ("llama", "llama", true),
        ("llama-yarn", "llama", true),
        ("mixtral", "llama", true),
        ("granite", "granite", true),
        ("smollm3", "smollm3", true),
        ("qwen2", "qwen2", false),
        ("qwen2moe", "qwen2moe", false),
        ("qwen3", "qwen3", false),
        ("qwen3moe", "qwen3moe", false),
        ("gemma3", "gemma3", false),
        ("phi2", "phi2", false),
        ("phi3", "phi3", false),
        ("gpt2", "gpt2", false),
        ("gptneox", "gptneox", false),
        ("olmo2", "olmo2", false),
        ("olmoe", "olmoe", false),
        ("cohere", "command-r", false),
    ] {
        let error = error(name, architecture, turned);
        println!("{name}: {error:e}");
        assert!(error <= REFERENCE, "{name}: {error:e} from transformers");
    }
    // The order of rows matters: one for another is another model.
    assert!(error("llama", "llama", false) > 100.0 * REFERENCE);
    assert!(error("qwen3", "qwen3", true) > 100.0 * REFERENCE);
}
