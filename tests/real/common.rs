//! The models, what others say about them, and how ours are run.

use gllm_kernels::cpu::{CpuBackend, CpuSession};
use gllm_kernels::graph::reference::{Reference, StepInput};
use gllm_kernels::graph::{DType, arch};
use gllm_kernels::model::Model;
use gllm_kernels::plan::{self, Limits, Session};
use gllm_kernels::replay::{Generator, Plans};
use gllm_kernels::text::{Encode, Tokenizer};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub const NAMES: [&str; 2] = ["smollm2", "gemma3"];

/// Positions of running text.
const POSITIONS: usize = 512;

#[derive(Deserialize)]
pub struct Said {
    model: String,
    logit_ids: Vec<u32>,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub struct Prompt {
    pub name: String,
    pub text: Option<String>,
    pub messages: Option<Vec<Turn>>,
    pub chat_text: Option<String>,
    pub ids: Vec<u32>,
    /// Logits at `logit_ids`, after the last token.
    pub at: Vec<f32>,
    pub top: Vec<(u32, f32)>,
    pub max_abs: f32,
    pub greedy: Greedy,
}

#[derive(Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: String,
}

#[derive(Deserialize)]
pub struct Greedy {
    pub ids: Vec<u32>,
}

/// A model and what is known of it.
pub struct Case {
    pub model: Model,
    pub logit_ids: Vec<u32>,
    pub prompts: Vec<Prompt>,
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(here().join(file)).unwrap()
}

impl Case {
    pub fn open(name: &str) -> Case {
        let said: Said = serde_json::from_str(&read(&format!("{name}.json"))).unwrap();
        let mut prompts = said.prompts;
        // The texts are kept once, for both models.
        let texts: Vec<Value> = serde_json::from_str(&read("prompts.json")).unwrap();
        for prompt in &mut prompts {
            let source = texts.iter().find(|t| t["name"] == prompt.name.as_str()).unwrap();
            prompt.text = source["text"].as_str().map(str::to_string);
            prompt.messages = serde_json::from_value(source["messages"].clone()).unwrap();
        }
        let folder = std::env::var_os("GLLM_MODELS").expect("GLLM_MODELS names no folder");
        let model = Model::open(&Path::new(&folder).join(said.model)).unwrap();
        Case { model, logit_ids: said.logit_ids, prompts }
    }

    pub fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_metadata(self.model.meta()).unwrap()
    }
}

pub fn running_ids(case: &Case) -> Vec<u32> {
    let text = read("running.txt");
    let mut ids = case.tokenizer().encode(&text, Encode { bos: true, special: false }).unwrap();
    assert!(ids.len() > POSITIONS);
    ids.truncate(POSITIONS);
    ids
}

/// f32 logits of all positions.
pub fn reference_rows(case: &Case, ids: &[u32]) -> Vec<f32> {
    let graph = arch::build(&case.model).unwrap();
    let mut reference = Reference::new(&graph, &case.model, ids.len(), 1).unwrap();
    let mut all = Vec::new();
    let (mut at, slots) = (0, vec![0; 64]);
    for chunk in ids.chunks(64) {
        let n = chunk.len() as u32;
        let positions: Vec<u32> = (at..at + n).collect();
        let outs: Vec<u32> = (0..n).collect();
        let slots = &slots[..chunk.len()];
        let step = StepInput {
            tokens: chunk,
            positions: &positions,
            slots,
            outs: &outs,
            ..StepInput::default()
        };
        reference.step(&step).unwrap();
        all.extend_from_slice(reference.value(graph.outputs()[0]).unwrap());
        at += n;
    }
    all
}

/// The CPU backend's logits of all positions, so many rows a step.
pub fn chunked(case: &Case, ids: &[u32], rows: usize) -> Vec<f32> {
    chunked_with(DType::F16, case, ids, rows)
}

/// [`chunked`] with caches kept in this way.
pub fn chunked_with(caches: DType, case: &Case, ids: &[u32], rows: usize) -> Vec<f32> {
    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let limits = Limits { rows, outs: rows, slots: 1, context: ids.len() };
    let graph = arch::build(&case.model).unwrap().with_caches(|_| caches).unwrap();
    let plans = Plans::new(&graph, &backend, limits).unwrap();
    let mut session = plans.load(&backend, &case.model).unwrap();
    let mut all = Vec::new();
    let (mut at, slots) = (0, vec![0; rows]);
    for chunk in ids.chunks(rows) {
        let n = chunk.len() as u32;
        let positions: Vec<u32> = (at..at + n).collect();
        let outs: Vec<u32> = (0..n).collect();
        let slots = &slots[..chunk.len()];
        let step = plan::StepInput { tokens: chunk, positions: &positions, slots, outs: &outs };
        session.run(&step).unwrap();
        all.extend(session.peek(0).unwrap());
        at += n;
    }
    all
}

pub fn generator(
    case: &Case,
    rows: usize,
    threads: usize,
    context: usize,
) -> Generator<CpuSession> {
    let backend = CpuBackend::detect().with_threads(threads).unwrap();
    let limits = Limits { rows, outs: 1, slots: 1, context };
    let plans = Plans::new(&arch::build(&case.model).unwrap(), &backend, limits).unwrap();
    Generator::new(plans.load(&backend, &case.model).unwrap())
}

pub fn logits(generator: &mut Generator<CpuSession>) -> Vec<f32> {
    generator.session().peek(0).unwrap()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// How close logits are to those of the reference.
pub struct Quality {
    /// Mean KL(reference || other) in nats.
    pub kl: f64,
    /// Share of positions with the same likeliest token.
    pub top1: f64,
}

pub fn mean_kl(want: &[f32], got: &[f32], vocabulary: usize) -> Quality {
    assert_eq!(want.len(), got.len());
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
        row.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
    };
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|b| b.0);
    let (mut kl, mut same) = (0.0, 0usize);
    for (want, got) in want.chunks_exact(vocabulary).zip(got.chunks_exact(vocabulary)) {
        let (p, q) = (log_softmax(want), log_softmax(got));
        kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        same += usize::from(best(want) == best(got));
    }
    let rows = (want.len() / vocabulary) as f64;
    Quality { kl: kl / rows, top1: same as f64 / rows }
}

fn peers(name: &str) -> Value {
    serde_json::from_str::<Value>(&read("peer.json")).unwrap()[name].clone()
}

/// llama.cpp's distance on the same positions, in one batch or token by token.
pub fn peer(name: &str, prefill: bool) -> Quality {
    let said = &peers(name)[if prefill { "prefill" } else { "decode" }];
    Quality { kl: said["mean_kl"].as_f64().unwrap(), top1: said["top1"].as_f64().unwrap() }
}

/// Greedy tokens on which llama.cpp agrees with f32.
pub fn peer_agrees(name: &str, prompt: &str) -> usize {
    let all = peers(name);
    let found = all["greedy"].as_array().unwrap().iter().find(|g| g["name"] == prompt).unwrap();
    found["agree"].as_u64().unwrap() as usize
}
