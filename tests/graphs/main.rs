//! Every architecture beside transformers: tiny random models, their logits and 64 greedy tokens.
//!
//! `make.py` says how the fixtures were made. Weights are not in them; [`numbers`] makes the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod gguf;
mod packed;
mod tiny;

use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::graph::reference::Reference;
use gllm_kernels::graph::{Encoded, Graph, Op, Weights, arch};
use gllm_kernels::model::{Format, Model};
use gllm_kernels::plan::{Limits, Session, StepInput};
use gllm_kernels::replay::{Generator, Plans};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tiny::{difference, fixture, folder, model, reference_logits, safetensors, wanted_logits};

/// Reference against transformers: order of f32 sums.
const REFERENCE: f32 = 2e-5;
/// CPU against reference: caches in f16.
const CPU: f32 = 2e-3;

fn check(name: &str) {
    let fixture = fixture(name);
    let model = model(name, &fixture, "F32", 1);
    let build = |context| {
        arch::build_for(model.meta(), &model, &arch::Library::embedded(), context)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let long = name.ends_with("-long");
    let graph = build(if long { 96 } else { 0 });
    assert_eq!(graph.to_string() != build(0).to_string(), long, "{name}");
    let vocabulary = graph.ty(graph.outputs()[0]).width();
    let all = reference_logits(&graph, &model, &fixture.prompt);
    let rows = |all: &[f32]| {
        fixture
            .rows
            .iter()
            .flat_map(|&r| all[r * vocabulary..][..vocabulary].to_vec())
            .collect::<Vec<f32>>()
    };
    let error = difference(&rows(&all), &wanted_logits(&fixture));
    println!("{name}: reference {error:e}");
    assert!(error <= REFERENCE, "{name}: reference {error:e} from transformers");

    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let n = fixture.prompt.len();
    let limits = Limits { rows: n, outs: n, slots: 1, context: 96 };
    let mut session = Plans::new(&graph, &backend, limits).unwrap().load(&backend, &model).unwrap();
    let positions: Vec<u32> = (0..n as u32).collect();
    let slots = vec![0; n];
    let input = StepInput {
        tokens: &fixture.prompt,
        positions: &positions,
        slots: &slots,
        outs: &positions,
    };
    session.run(&input).unwrap();
    let error = difference(&session.peek(0).unwrap(), &all);
    println!("{name}: cpu {error:e}");
    assert!(error <= CPU, "{name}: cpu {error:e} from the reference");

    let limits = Limits { rows: 5, outs: 1, slots: 1, context: 96 };
    let session = Plans::new(&graph, &backend, limits).unwrap().load(&backend, &model).unwrap();
    let mut generator = Generator::new(session);
    generator.prefill(&fixture.prompt, || true).unwrap();
    let tokens: Vec<u32> = (0..64).map(|_| generator.next_token().unwrap()).collect();
    assert_eq!(tokens, fixture.greedy, "{name}");
    // The reference picks them too, each after the ones before.
    let all: Vec<u32> = fixture.prompt.iter().chain(&fixture.greedy).copied().collect();
    let logits = reference_logits(&graph, &model, &all);
    let rows = logits.chunks_exact(vocabulary).skip(n - 1);
    let best = |row: &[f32]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let picked: Vec<u32> = rows.take(64).filter_map(best).map(|i| i as u32).collect();
    assert_eq!(picked, fixture.greedy, "{name}: reference");
}

macro_rules! architectures {
    ($($test:ident $name:literal),* $(,)?) => {
        $(#[test] fn $test() { check($name); })*

        #[test]
        fn every_fixture_is_tested() {
            for name in tiny::fixtures() {
                assert!([$($name),*].contains(&name.as_str()), "{name}");
            }
        }
    };
}

architectures! {
    llama "llama", llama3 "llama3", llama_linear "llama-linear", llama_yarn "llama-yarn",
    mistral "mistral", mixtral "mixtral", qwen2 "qwen2", qwen2moe "qwen2moe", qwen3 "qwen3",
    qwen3moe "qwen3moe", gemma "gemma", gemma2 "gemma2", gemma3 "gemma3", phi2 "phi2", phi3 "phi3",
    phi4 "phi4", phi4_long "phi4-long", gpt2 "gpt2", gptneox "gptneox", gptneox_serial "gptneox-serial", falcon "falcon",
    falcon_new "falcon-new", stablelm "stablelm", stablelm_parallel "stablelm-parallel",
    olmo2 "olmo2", olmoe "olmoe", granite "granite", starcoder2 "starcoder2", cohere "cohere",
    cohere_plus "cohere-plus", smollm3 "smollm3", gpt_oss "gpt-oss", bitnet "bitnet",
    bitnet_silu "bitnet-silu",
}

#[test]
fn shards_and_halves_are_read() {
    let fixture = fixture("qwen3moe");
    let logits = |dtype, shards| {
        let model = model("qwen3moe", &fixture, dtype, shards);
        reference_logits(&arch::build(&model).unwrap(), &model, &fixture.prompt)
    };
    let whole = logits("F32", 1);
    assert_eq!(logits("F32", 3), whole);
    // The same numbers, rounded before they are written as f32.
    assert_eq!(logits("F16", 2), logits("F32 of F16", 1));
    assert_eq!(logits("BF16", 1), logits("F32 of BF16", 2));
    assert_ne!(logits("F16", 1), whole);
}

#[test]
fn hostile_folders_are_refused() {
    let fixture = fixture("llama");
    let good = safetensors(fixture.tensors.iter(), "F32");
    let header =
        |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0; 64]].concat();
    let one = |t: &str| header(&format!("{{\"a\":{t}}}"));
    for (what, bytes, wanted) in [
        ("empty", vec![], "header: too short"),
        ("length", vec![255; 16], "header: 18446744073709551615 bytes"),
        ("json", header("{"), "header: column"),
        ("list", header("[]"), "header: column"),
        (
            "offsets",
            one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,4096]}"#),
            "tensor \"a\": bytes 0 to 4096 of 64",
        ),
        ("backwards", one(r#"{"dtype":"F32","shape":[4],"data_offsets":[16,0]}"#), "bytes 16 to 0"),
        (
            "size",
            one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,16]}"#),
            "16 bytes do not make F32 of [5]",
        ),
        (
            "overflow",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
            "do not make",
        ),
        ("zero", one(r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#), "one of 0"),
        (
            "twice",
            header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            ),
            "comes twice",
        ),
        (
            "over",
            header(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            ),
            "lie over each other",
        ),
        ("cut", good[..good.len() / 2].to_vec(), "bytes "),
    ] {
        let folder = folder(&format!("hostile-{what}"));
        fs::write(folder.join("config.json"), fixture.config.to_string()).unwrap();
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
        let error = Model::open(&folder).expect_err(what).to_string();
        assert!(error.contains(wanted), "{what}: {error}");
    }
    // Any cut of a header is an error, not a panic.
    let folder = folder("hostile-cuts");
    fs::write(folder.join("config.json"), fixture.config.to_string()).unwrap();
    for end in (0..600).step_by(7) {
        fs::write(folder.join("model.safetensors"), &good[..end]).unwrap();
        assert!(Model::open(&folder).is_err());
    }
    for (config, wanted) in
        [("{", "not JSON"), ("[]", "not an object"), ("{}", "\"model_type\": missing")]
    {
        fs::write(folder.join("config.json"), config).unwrap();
        let error = Model::open(&folder).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn names_lead_nowhere_else() {
    let fixture = fixture("llama");
    let outside = folder("outside");
    let secret = outside.join("secret.safetensors");
    fs::write(&secret, safetensors(fixture.tensors.iter(), "F32")).unwrap();
    let folder = folder("names");
    fs::write(folder.join("config.json"), fixture.config.to_string()).unwrap();
    let index = |file: &str| {
        let index = serde_json::json!({"weight_map": {"a": file}});
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        Model::open(&folder).map(drop).unwrap_err().to_string()
    };
    for bad in ["../outside/secret.safetensors", "/etc/passwd", "..", "", "a/b", "a\0b"] {
        assert!(index(bad).contains("not the bare name"), "{bad}: {}", index(bad));
    }
    std::os::unix::fs::symlink(&secret, folder.join("link.safetensors")).unwrap();
    assert!(index("link.safetensors").contains("leads out of the folder"));
    fs::create_dir(folder.join("dir.safetensors")).unwrap();
    assert!(index("dir.safetensors").contains("not a regular file"));
    // The hub's own cache: a snapshot of links to blobs.
    let hub = folder.join("hub");
    let (snapshot, blobs) = (hub.join("snapshots/abc"), hub.join("blobs"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("1"), fixture.config.to_string()).unwrap();
    fs::copy(&secret, blobs.join("2")).unwrap();
    std::os::unix::fs::symlink("../../blobs/1", snapshot.join("config.json")).unwrap();
    std::os::unix::fs::symlink("../../blobs/2", snapshot.join("model.safetensors")).unwrap();
    Model::open(&snapshot).unwrap();
}

/// A folder with a `tokenizer.json` from the command line: its text is the fixture's tokens.
#[test]
fn a_folder_runs_from_the_command_line() {
    let fixture = fixture("llama");
    let model = model("llama-text", &fixture, "F32", 1);
    let letter = |id: u32| char::from_u32(0x4e00 + id).unwrap().to_string();
    let vocab: serde_json::Map<_, _> = (0..61u32).map(|id| (letter(id), id.into())).collect();
    let tokenizer = serde_json::json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": [],
    });
    fs::write(Path::new(model.name()).join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let run = |args: &[&str]| {
        let gllm = std::process::Command::new(env!("CARGO_BIN_EXE_gllm"))
            .args(args)
            .args(["--threads", "1"])
            .output()
            .unwrap();
        assert!(gllm.status.success(), "{}", String::from_utf8_lossy(&gllm.stderr));
        String::from_utf8(gllm.stdout).unwrap()
    };
    let text = |ids: &[u32]| ids.iter().map(|&id| letter(id)).collect::<String>();
    let out = run(&["run", model.name(), "-p", &text(&fixture.prompt), "-n", "30", "--json"]);
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    // Token 2 ends a generation, as config.json says.
    let wanted: Vec<u32> =
        fixture.greedy.iter().copied().take(30).take_while(|&id| id != 2).collect();
    assert!(wanted.len() > 5);
    assert_eq!(out["prompt_ids"], serde_json::json!(fixture.prompt));
    assert_eq!(out["ids"], serde_json::json!(wanted));
    assert_eq!(out["text"], text(&wanted));
    let out = run(&["bench", model.name(), "-p", "8", "-n", "4", "-r", "1", "--json"]);
    assert!(out.contains("\"tg4\""), "{out}");
    let file = Path::new(model.name()).join("text.txt");
    fs::write(&file, text(&fixture.greedy)).unwrap();
    let file = file.to_str().unwrap();
    let out = run(&["perplexity", model.name(), file, "--window", "16", "--json"]);
    assert!(out.contains("\"tokens\": 28"), "{out}");
}

/// What a folder's weights become while they are loaded: which by the names that the graph file gives,
/// what by the encoder.
#[test]
fn a_folder_is_quantized_by_its_graph_file() {
    let config = serde_json::json!({
        "model_type": "qwen3_moe", "hidden_size": 256, "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 61,
        "num_experts": 2, "num_experts_per_tok": 1,
    });
    let mut tensors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut add = |name: &str, dims: &[usize]| drop(tensors.insert(name.into(), dims.to_vec()));
    add("model.embed_tokens.weight", &[61, 256]);
    add("model.norm.weight", &[256]);
    for layer in 0..2 {
        let mut own =
            |name: &str, dims: &[usize]| add(&format!("model.layers.{layer}.{name}.weight"), dims);
        own("input_layernorm", &[256]);
        own("post_attention_layernorm", &[256]);
        own("self_attn.q_proj", &[256, 256]);
        own("self_attn.k_proj", &[128, 256]);
        own("self_attn.v_proj", &[128, 256]);
        own("self_attn.o_proj", &[256, 256]);
        own("mlp.gate", &[2, 256]);
        for expert in 0..2 {
            own(&format!("mlp.experts.{expert}.gate_proj"), &[96, 256]);
            own(&format!("mlp.experts.{expert}.up_proj"), &[96, 256]);
            own(&format!("mlp.experts.{expert}.down_proj"), &[256, 96]);
        }
    }
    let mut fixture = fixture("llama");
    (fixture.config, fixture.tensors) = (config, tensors);
    let model = model("on-load", &fixture, "F32", 1);
    let (names, layers) = arch::names(model.meta(), &arch::Library::embedded()).unwrap();
    let encoded = Encoded::new(&model, Format::Q2_K, &names, layers, 2);
    for (name, wanted) in [
        // The head as well, since there is no other.
        ("model.embed_tokens.weight", Format::Q6_K),
        ("model.norm.weight", Format::F32),
        ("model.layers.1.input_layernorm.weight", Format::F32),
        ("model.layers.1.self_attn.q_proj.weight", Format::Q2_K),
        ("model.layers.1.self_attn.v_proj.weight", Format::Q3_K),
        ("model.layers.1.self_attn.o_proj.weight", Format::Q3_K),
        // It picks experts.
        ("model.layers.1.mlp.gate.weight", Format::F32),
        ("stack(model.layers.1.mlp.experts.*.up_proj.weight)", Format::Q2_K),
        // Rows of 96 are no blocks of 256.
        ("stack(model.layers.1.mlp.experts.*.down_proj.weight)", Format::IQ4_NL),
    ] {
        let (format, dims) = encoded.find(name).unwrap();
        assert_eq!(format, wanted, "{name}");
        let (plain, floats) = (Weights::bytes(&model, name).unwrap(), dims.iter().product());
        let mut values = vec![0.0; floats];
        Format::F32.decode(&plain, &mut values).unwrap();
        let row = format.row_bytes(*dims.last().unwrap()).unwrap();
        let mut bytes = vec![0; floats / dims.last().unwrap() * row];
        format.encode(&values, &mut bytes).unwrap();
        assert!(encoded.bytes(name).unwrap() == bytes, "{name}");
    }
    let graph = arch::build_with(model.meta(), &encoded, &arch::Library::embedded()).unwrap();
    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let limits = Limits { rows: 4, outs: 1, slots: 1, context: 32 };
    let session = Plans::new(&graph, &backend, limits).unwrap().load(&backend, &encoded).unwrap();
    let mut generator = Generator::new(session);
    generator.prefill(&[1, 2, 3], || true).unwrap();
    assert!(generator.next_token().unwrap() < 61);
    assert!(encoded.failure().is_none());
    // A weight that is no number: an error that names it, rather than a tensor that is not there.
    let file = Path::new(model.name()).join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data..data + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let damaged = Model::open(Path::new(model.name())).unwrap();
    let encoded = Encoded::new(&damaged, Format::Q2_K, &names, layers, 1);
    assert!(encoded.bytes("model.embed_tokens.weight").is_none());
    let error = encoded.failure().unwrap().to_string();
    assert!(
        error.contains("tensor \"model.embed_tokens.weight\", row 0: element 0 is NaN"),
        "{error}"
    );
}

/// What a graph file's `tensors(c)` says is what the hub's model has: the graph that is built from the
/// config alone is the model's, node by node, but for what tensors are called.
#[test]
fn a_config_alone_gives_the_same_graph() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/fixtures");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let name = file.trim_end_matches(".json");
        let fixture = fixture(name);
        let model = model(&format!("{name}-config"), &fixture, "F32", 1);
        let whole = arch::build(&model).unwrap();
        let like = arch::sketch(model.meta(), &arch::Library::embedded(), None)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(like.cut.is_empty(), "{name}: {:?}", like.cut);
        let plain = |graph: &Graph| {
            let nodes = graph.nodes().iter().map(|n| match n.op {
                Op::Weight(_) => format!("weight {}", n.ty),
                _ => format!("{:?} {:?} {} {}", n.op, n.args, n.ty, n.origin),
            });
            nodes.collect::<Vec<_>>()
        };
        assert_eq!(plain(&like.graph), plain(&whole), "{name}");
        // And the names that it gives are the model's.
        let weights = whole.nodes().iter().filter_map(|n| match &n.op {
            Op::Weight(w) => Some(w.name.clone()),
            _ => None,
        });
        let given: Vec<String> = like.names.into_iter().map(|(_, hub)| hub).collect();
        assert_eq!(given, weights.collect::<Vec<_>>(), "{name}");
        let noise = like.sketch.noise(&like.graph).unwrap();
        Reference::new(&like.graph, &noise, 4, 1).unwrap();
        seen += 1;
    }
    assert!(seen > 30);
}
