//! Loading a graph file and building its graph: a hundred layers, from metadata and header alone.
//!
//! `cargo bench --bench graphs`. Aim: under 20 ms (`SPEC/graph-files.md`). The library looks through
//! all files for the one that serves the model, so that is in the time.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use gllm_kernels::graph::arch::{self, Library};
use gllm_kernels::graph::{MemoryWeights, Weights};
use gllm_kernels::model::Metadata;

/// A small model of a hundred layers as a folder of the hub has it.
fn model(kind: &str, more: &str) -> (Metadata, MemoryWeights) {
    let path = std::env::temp_dir().join(format!("gllm-bench-{}-{kind}.json", std::process::id()));
    let config = format!(
        r#"{{"model_type": "{kind}", "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 100,
            "vocab_size": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": false{more}}}"#
    );
    std::fs::write(&path, config).unwrap();
    let meta = Metadata::from_config(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let like = arch::sketch(&meta, &Library::embedded(), None).unwrap();
    assert!(like.cut.is_empty());
    let mut weights = MemoryWeights::new();
    for (own, hub) in like.names {
        let (_, dims) = like.sketch.find(&own).unwrap();
        // What is stacked or changed on the way is in parts in such a folder.
        let part = |name: &str| name.trim_start_matches("plus1(").trim_end_matches(')').to_string();
        match hub.strip_prefix("stack(").and_then(|n| n.strip_suffix(')')) {
            Some(stack) => {
                let zeros = vec![0.0; dims[1..].iter().product()];
                for i in 0..dims[0] {
                    let name = stack.replacen('*', &i.to_string(), 1);
                    weights.insert(&name, &dims[1..], &zeros).unwrap();
                }
            }
            None => {
                let zeros = vec![0.0; dims.iter().product()];
                weights.insert(&part(&hub), &dims, &zeros).unwrap();
            }
        }
    }
    (meta, weights)
}

fn graphs(c: &mut Criterion) {
    let mut group = c.benchmark_group("100 layers");
    for (kind, more) in [
        ("llama", ""),
        ("gemma3_text", r#", "head_dim": 16, "sliding_window": 32"#),
        (
            "qwen3_moe",
            r#", "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16, "moe_intermediate_size": 32"#,
        ),
    ] {
        let (meta, weights) = model(kind, more);
        let library = Library::embedded();
        let nodes = arch::build_with(&meta, &weights, &library).unwrap().nodes().len();
        group.bench_function(format!("{kind}, {nodes} nodes"), |b| {
            b.iter(|| arch::build_with(&meta, &weights, &library).unwrap());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = graphs
}
criterion_main!(benches);
