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
    ("attention.layer_norm_epsilon", &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
    (
        "rope.freq_base",
        &["rope_parameters.rope_theta", "rope_parameters.full_attention.rope_theta"],
    ),
    ("rope.scaling.factor", &["rope_parameters.factor"]),
    ("rope.scaling.yarn_beta_fast", &["rope_parameters.beta_fast"]),
    ("rope.scaling.yarn_beta_slow", &["rope_parameters.beta_slow"]),
    ("attn_logit_softcapping", &["attn_logit_softcapping"]),
    ("final_logit_softcapping", &["final_logit_softcapping"]),
    ("attention.scale", &["attention_multiplier"]),
    ("embedding_scale", &["embedding_multiplier"]),
    ("residual_scale", &["residual_multiplier"]),
    ("logit_scale", &["logits_scaling", "logit_scale"]),
];

/// Converters that write no base of the rotation: it is the usual one.
const NO_BASE: &[&str] = &["falcon", "gemma", "gemma2", "stablelm"];
/// Converters that write how much of a head turns no more than the base one does: all of it.
const NO_PART: &[&str] = &["bitnet-b1.58", "falcon", "gemma", "gemma2", "gpt-oss", "starcoder2"];

/// What a file does to a model's rows and numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// What the converter does where halves of a head turn.
    Half,
    /// Rows of queries and keys are in the order for which neighbours turn.
    Neighbour,
    /// What the converter does to this architecture is left out: another model.
    Undone,
}
use Order::{Half, Neighbour, Undone};

/// Rows in another order: `to(row)` is where a row goes.
fn reordered(bytes: &[u8], rows: usize, to: impl Fn(usize) -> usize) -> Vec<u8> {
    let each = bytes.len() / rows;
    let mut out = vec![0; bytes.len()];
    for (row, data) in bytes.chunks_exact(each).enumerate() {
        out[to(row) * each..][..each].copy_from_slice(data);
    }
    out
}

/// Gate and up out of one tensor of `experts`, where they take turns.
fn split(bytes: &[u8], experts: usize, rows: usize, order: Order) -> [Vec<u8>; 2] {
    let apart = |row: usize| {
        let (expert, row) = (row / rows, row % rows);
        let half = rows / 2;
        let (part, row) =
            if order == Undone { (row / half, row % half) } else { (row % 2, row / 2) };
        (part * experts + expert) * half + row
    };
    let both = reordered(bytes, experts * rows, apart);
    let (gate, up) = both.split_at(both.len() / 2);
    [gate.to_vec(), up.to_vec()]
}

/// What pairs of a head are slowed down by, which a file has as tensors.
fn factors(config: &serde_json::Value, head_dim: usize) -> Vec<(&'static str, Vec<f32>)> {
    let rope = |key: &str| number(config, &[&format!("rope_parameters.{key}")]);
    let mut all = Vec::new();
    for (key, name) in
        [("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight")]
    {
        let list = config.pointer(&format!("/rope_parameters/{key}")).and_then(|l| l.as_array());
        let list = list.map(|l| l.iter().map(|x| x.as_f64().unwrap() as f32).collect());
        all.extend(list.map(|list| (name, list)));
    }
    if let (Some(low), Some(high)) = (rope("low_freq_factor"), rope("high_freq_factor")) {
        let [base, old, factor] =
            ["rope_theta", "original_max_position_embeddings", "factor"].map(|k| rope(k).unwrap());
        let of = |pair: usize| {
            let length =
                2.0 * std::f64::consts::PI * base.powf((2 * pair) as f64 / head_dim as f64);
            // Between the two lengths, from one to the other.
            let kept = ((old / length - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        all.push(("rope_freqs.weight", (0..head_dim / 2).map(of).collect()));
    }
    all
}

/// The fixture's model as a file.
fn gguf(name: &str, architecture: &str, order: Order) -> Vec<u8> {
    let fixture = fixture(name);
    let hub = model(&format!("{name}-to-gguf"), &fixture, "F32", 1);
    let config = &fixture.config;
    let like = arch::sketch(hub.meta(), &arch::Library::embedded(), None).unwrap();
    let key = |key: &str| format!("{architecture}.{key}");
    let mut file = GgufWriter::new().meta("general.architecture", architecture);
    // Without a vocabulary: llama.cpp loads and runs such a file, with tokens of its choice.
    file = file.meta("tokenizer.ggml.model", "none");
    // Of llama3's factors there is a tensor, and no key.
    let rope = config.pointer("/rope_parameters/rope_type").and_then(|t| t.as_str());
    let unsaid = |name: &str| rope == Some("llama3") && name.starts_with("rope.scaling.");
    for (name, names) in COUNTS {
        // Configs of GPT-2 and Falcon do not say how wide the MLP is, Falcon's not how long texts are.
        let n = match (architecture, *name) {
            ("gpt2" | "falcon", "feed_forward_length") => {
                number(config, &["n_embd", "hidden_size"]).map(|n| 4.0 * n)
            }
            ("falcon", "context_length") => Some(2048.0),
            ("gpt-oss", "expert_feed_forward_length") => number(config, &["intermediate_size"]),
            _ => number(config, names),
        };
        if let Some(n) = n.filter(|_| !unsaid(name)) {
            file = file.meta(&key(name), n as u32);
        }
    }
    for (name, names) in NUMBERS {
        if unsaid(name) || *name == "rope.freq_base" && NO_BASE.contains(&architecture) {
            continue;
        }
        if let Some(x) = number(config, names) {
            file = file.meta(&key(name), x as f32);
        }
    }
    let heads = number(config, &["num_attention_heads", "n_head"]).unwrap() as usize;
    let dim = number(config, &["hidden_size", "n_embd"]).unwrap() as usize;
    let kv_heads = match architecture {
        // Old ones have one key, which their configs on the hub do not say.
        "falcon" if config.get("new_decoder_architecture").unwrap() == false => 1,
        "falcon" => number(config, &["num_kv_heads"]).unwrap() as usize,
        _ => number(config, &["num_key_value_heads"]).unwrap() as usize,
    };
    let head_dim = number(config, &["head_dim"]).map_or(dim / heads, |d| d as usize);
    // GPT-2 has as many keys as queries, whatever its config says.
    if architecture != "gpt2" {
        file = file.meta(&key("attention.head_count_kv"), kv_heads as u32);
        let part = number(config, &["rope_parameters.partial_rotary_factor"]).unwrap_or(1.0);
        if !NO_PART.contains(&architecture) {
            file = file.meta(&key("rope.dimension_count"), (part * head_dim as f64) as u32);
        }
    }
    // Of a Mistral left undone is the window.
    let windowed = ["gemma2", "gemma3", "gpt-oss", "phi3"].contains(&architecture);
    if windowed || architecture == "mistral" && order != Undone {
        // Phi 4, which has none, says 0.
        let window = number(config, &["sliding_window"]).unwrap_or_default();
        file = file.meta(&key("attention.sliding_window"), window as u32);
    }
    if let Some(parallel) = config.get("use_parallel_residual").and_then(|p| p.as_bool()) {
        file = file.meta(&key("use_parallel_residual"), parallel);
    }
    if let Some(kind) = rope.filter(|kind| ["linear", "yarn"].contains(kind)) {
        file = file.meta(&key("rope.scaling.type"), kind);
    }
    if rope == Some("longrope") {
        let [old, new] =
            ["rope_parameters.original_max_position_embeddings", "max_position_embeddings"]
                .map(|k| number(config, &[k]).unwrap());
        let gain = (1.0 + (new / old).ln() / old.ln()).sqrt();
        file = file.meta(&key("rope.scaling.attn_factor"), gain as f32);
    }
    for (name, list) in factors(config, head_dim).into_iter().filter(|_| order != Undone) {
        let bytes: Vec<u8> = list.iter().flat_map(|x| x.to_le_bytes()).collect();
        file = file.tensor(name, Format::F32, &[list.len()], &bytes);
    }
    // Names as the converter has them, but its name is that of older models with another activation,
    // and it rounds weights to three numbers, which these are not.
    if architecture == "bitnet-b1.58" {
        file = file.meta(&key("rope.scaling.type"), "linear");
        file = file.meta(&key("rope.scaling.factor"), 1.0f32);
    }
    for (own, there) in like.names {
        // Gemma's norms without the 1.
        let inner = there.strip_prefix("plus1(").and_then(|t| t.strip_suffix(')'));
        let there = inner.filter(|_| order == Undone).map_or(there.clone(), str::to_owned);
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
        // Group by group the queries that share a key, the key, the value: likewise.
        let groups = |row: usize| {
            let each = heads / kv_heads;
            let (head, d) = (row / head_dim, row % head_dim);
            let (group, kind) = (head / (each + 2), head % (each + 2));
            let head = match kind.checked_sub(each) {
                None => group * each + kind,
                Some(kind) => heads + kind * kv_heads + group,
            };
            head * head_dim + d
        };
        let tensor = own.split('.').nth(2).unwrap_or_default();
        let bytes = match (architecture, tensor) {
            (_, "attn_q" | "attn_k") if order == Neighbour || architecture == "mistral" => {
                reordered(&bytes, dims[0], turn)
            }
            ("gptneox", "attn_qkv") => reordered(&bytes, dims[0], apart),
            ("falcon", "attn_qkv") if order != Undone => reordered(&bytes, dims[0], groups),
            ("stablelm", "attn_q_norm" | "attn_k_norm") if order == Undone => {
                reordered(&bytes, dims[0], |head| dims[0] - 1 - head)
            }
            // No key says what scores are divided by when it is not a head's length: queries take it.
            ("gemma2", "attn_q") => {
                let scalar = number(config, &["query_pre_attn_scalar"]).unwrap();
                let by = (head_dim as f64 / scalar).sqrt() as f32;
                let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) * by);
                values.flat_map(f32::to_le_bytes).collect()
            }
            _ => bytes.into_owned(),
        };
        if architecture == "gpt-oss" && tensor == "ffn_gate_up_exps" {
            let mut dims = dims.clone();
            let parts = split(&bytes, dims[0], dims[1], order);
            dims[1] /= 2;
            for (part, bytes) in ["gate", "up"].iter().zip(parts) {
                file = file.tensor(&own.replace("gate_up", part), Format::F32, &dims, &bytes);
            }
            continue;
        }
        // What files of the hub call otherwise, or call as another architecture's.
        let own = match (architecture, tensor) {
            ("gemma", "post_attention_norm") => own.replace(tensor, "ffn_norm"),
            ("gpt-oss", "ffn_norm") => own.replace(tensor, "post_attention_norm"),
            ("falcon", "attn_norm_attn") => own.replace(tensor, "attn_norm_2"),
            ("falcon", "attn_norm_mlp") => own.replace(tensor, "attn_norm"),
            _ => own,
        };
        // One number a row: the converter keeps a vector.
        let dims = if dims[0] == 1 && dims.len() == 2 { &dims[1..] } else { &dims[..] };
        file = file.tensor(&own, Format::F32, dims, &bytes);
    }
    file.finish()
}

/// The greatest difference of the file's logits from those of transformers.
fn error(name: &str, architecture: &str, order: Order) -> f32 {
    let path = folder(&format!("gguf-{name}-{architecture}-{order:?}")).join("model.gguf");
    fs::write(&path, gguf(name, architecture, order)).unwrap();
    let model = Model::open(&path).unwrap();
    let context = if name.ends_with("-long") { 96 } else { 0 };
    let graph = arch::build_for(model.meta(), &model, &arch::Library::embedded(), context)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let fixture = fixture(name);
    let vocabulary = graph.ty(graph.outputs()[0]).width();
    let all = reference_logits(&graph, &model, &fixture.prompt);
    // The converter leaves StarCoder 2's window out: the same model up to the window's length.
    let seen = match architecture {
        "starcoder2" => number(&fixture.config, &["sliding_window"]).unwrap() as usize,
        _ => usize::MAX,
    };
    let seen: Vec<usize> = fixture.rows.iter().copied().take_while(|&r| r < seen).collect();
    let rows = seen.iter().flat_map(|&r| all[r * vocabulary..][..vocabulary].to_vec());
    let wanted = wanted_logits(&fixture);
    difference(&rows.collect::<Vec<f32>>(), &wanted[..seen.len() * vocabulary])
}

#[test]
fn files_of_the_converter_give_the_same_logits() {
    for (name, architecture, order) in [
        ("llama", "llama", Neighbour),
        ("llama-yarn", "llama", Neighbour),
        ("llama-linear", "llama", Neighbour),
        ("llama3", "llama", Neighbour),
        ("mixtral", "llama", Neighbour),
        ("granite", "granite", Neighbour),
        ("smollm3", "smollm3", Neighbour),
        ("qwen2", "qwen2", Half),
        ("qwen2moe", "qwen2moe", Half),
        ("qwen3", "qwen3", Half),
        ("qwen3moe", "qwen3moe", Half),
        ("gemma3", "gemma3", Half),
        ("phi2", "phi2", Half),
        ("phi3", "phi3", Half),
        ("phi4", "phi3", Half),
        ("phi4-long", "phi3", Half),
        ("gpt2", "gpt2", Half),
        ("gptneox", "gptneox", Half),
        ("olmo2", "olmo2", Half),
        ("olmoe", "olmoe", Half),
        ("cohere", "command-r", Half),
        ("cohere-plus", "command-r", Half),
        ("gptneox-serial", "gptneox", Half),
        ("gemma", "gemma", Half),
        ("gemma2", "gemma2", Half),
        ("falcon", "falcon", Half),
        ("falcon-new", "falcon", Half),
        ("stablelm", "stablelm", Half),
        ("stablelm-parallel", "stablelm", Half),
        ("starcoder2", "starcoder2", Half),
        ("gpt-oss", "gpt-oss", Half),
        ("bitnet", "bitnet-b1.58", Half),
        ("bitnet-silu", "bitnet", Half),
        ("mistral", "mistral", Neighbour),
    ] {
        let error = error(name, architecture, order);
        println!("{name}: {error:e}");
        assert!(error <= REFERENCE, "{name}: {error:e} from transformers");
    }
    // What is done to rows and numbers matters: one way for another is another model.
    for (name, architecture, order) in [
        ("llama", "llama", Half),
        ("qwen3", "qwen3", Neighbour),
        ("phi4", "phi3", Undone),
        ("phi4-long", "phi3", Undone),
        ("gemma", "gemma", Undone),
        ("gemma2", "gemma2", Undone),
        ("falcon-new", "falcon", Undone),
        ("stablelm", "stablelm", Neighbour),
        ("stablelm-parallel", "stablelm", Undone),
        ("starcoder2", "starcoder2", Neighbour),
        ("gpt-oss", "gpt-oss", Undone),
        ("bitnet", "bitnet-b1.58", Neighbour),
        ("bitnet", "bitnet", Half),
        ("bitnet-silu", "bitnet-b1.58", Half),
        ("mistral", "mistral", Undone),
    ] {
        let error = error(name, architecture, order);
        println!("not {name} but {order:?}: {error:e}");
        assert!(error > 100.0 * REFERENCE, "{name}, {order:?}: {error:e} from transformers");
    }
}
