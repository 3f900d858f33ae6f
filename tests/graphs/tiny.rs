//! The tiny models of the fixtures, which other tests run as well.

use gllm_kernels::graph::Graph;
use gllm_kernels::graph::reference::{self, Reference};
use gllm_kernels::model::Model;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
pub struct Fixture {
    pub config: serde_json::Value,
    pub tensors: BTreeMap<String, Vec<usize>>,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    pub rows: Vec<usize>,
    pub logits: String,
}

/// Numbers that depend on the tensor's name and shape alone: `numbers` of `make.py`.
fn numbers(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for byte in name.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let (size, middle) = if let [.., a, b] = *shape {
        let table = ["embed", "wte", "wpe"].iter().any(|part| name.contains(part));
        let size = if table { 1.0 } else { 1.7 / (a.max(b) as f64).sqrt() };
        (size as f32, 0.0f32)
    } else if name.ends_with("weight") {
        (0.25, 1.0)
    } else {
        (0.25, 0.0)
    };
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..shape.iter().product()).map(|_| middle + size * next()).collect()
}

/// Bits of a half or a bfloat of a number that is one exactly, or as near as can be.
fn bytes(values: &[f32], dtype: &str) -> Vec<u8> {
    match dtype {
        "F32" => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        "F32 of F16" => {
            values.iter().flat_map(|v| half::f16::from_f32(*v).to_f32().to_le_bytes()).collect()
        }
        "F32 of BF16" => {
            values.iter().flat_map(|v| half::bf16::from_f32(*v).to_f32().to_le_bytes()).collect()
        }
        "F16" => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// A safetensors file.
pub fn safetensors<'a>(
    tensors: impl Iterator<Item = (&'a String, &'a Vec<usize>)>,
    dtype: &str,
) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        data.extend(bytes(&numbers(name, shape), dtype));
        let entry = serde_json::json!({"dtype": dtype.split(' ').next(), "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The names of all fixtures.
pub fn fixtures() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/fixtures");
    let files =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.map(|f| f.trim_end_matches(".json").to_string()).collect();
    names.sort();
    names
}

pub fn fixture(name: &str) -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/fixtures");
    serde_json::from_slice(&fs::read(path.join(format!("{name}.json"))).unwrap()).unwrap()
}

pub fn folder(name: &str) -> PathBuf {
    let base = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = base.join("graphs").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The fixture's model as a folder.
pub fn model(name: &str, fixture: &Fixture, dtype: &str, shards: usize) -> Model {
    let folder = folder(&format!("{name}-{dtype}-{shards}"));
    fs::write(folder.join("config.json"), fixture.config.to_string()).unwrap();
    if shards == 1 {
        fs::write(folder.join("model.safetensors"), safetensors(fixture.tensors.iter(), dtype))
            .unwrap();
    } else {
        let mut map = serde_json::Map::new();
        for shard in 0..shards {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
            let own = || fixture.tensors.iter().skip(shard).step_by(shards);
            own().for_each(|(name, _)| drop(map.insert(name.clone(), file.clone().into())));
            fs::write(folder.join(&file), safetensors(own(), dtype)).unwrap();
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
    Model::open(&folder).unwrap()
}

pub fn wanted_logits(fixture: &Fixture) -> Vec<f32> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => b - b'A',
        b'a'..=b'z' => b - b'a' + 26,
        b'0'..=b'9' => b - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let text = fixture.logits.trim_end_matches('=').as_bytes();
    let bits = text.chunks(4).flat_map(|four| {
        let word =
            four.iter().fold(0u32, |w, &b| w << 6 | u32::from(digit(b))) << (6 * (4 - four.len()));
        word.to_be_bytes()[1..four.len()].to_vec()
    });
    let bytes: Vec<u8> = bits.collect();
    bytes.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect()
}

pub fn reference_logits(graph: &Graph, model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut reference = Reference::new(graph, model, tokens.len(), 1).unwrap();
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let slots = vec![0; tokens.len()];
    let input = reference::StepInput {
        tokens,
        positions: &positions,
        slots: &slots,
        outs: &positions,
        sampling: &[],
    };
    reference.step(&input).unwrap();
    reference.value(graph.outputs()[0]).unwrap().to_vec()
}

/// The greatest difference, relative to the greatest logit.
pub fn difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let top = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(wanted).fold(0.0f32, |m, (g, w)| m.max((g - w).abs())) / top
}
