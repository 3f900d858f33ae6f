//! The reference backend: repeatable, and blind to how rows are cut into steps and slots.

use crate::models::{self, VOCABULARY};
use gllm_kernels::graph::op::Sampler;
use gllm_kernels::graph::reference::{Reference, Sampling, StepInput};
use gllm_kernels::graph::{Builder, Graph, MemoryWeights, NodeId, arch};
use gllm_kernels::model::Model;

const CONTEXT: usize = 24;

fn prompt(seed: u32) -> Vec<u32> {
    (0..20).map(|i| (i * 7 + seed * 11 + i * i) % VOCABULARY as u32).collect()
}

fn logits(graph: &Graph) -> NodeId {
    graph.outputs()[0]
}

/// Logits of each position of `tokens`, taken in steps of `chunk` rows in `slot`.
fn chunked(model: &Model, tokens: &[u32], chunk: usize, slot: u32) -> Vec<f32> {
    let graph = arch::build(model).unwrap();
    let mut reference = Reference::new(&graph, model, CONTEXT, 3).unwrap();
    let mut all = Vec::new();
    for (i, tokens) in tokens.chunks(chunk).enumerate() {
        let outs: Vec<u32> = (0..tokens.len() as u32).collect();
        let positions: Vec<u32> = outs.iter().map(|r| r + (i * chunk) as u32).collect();
        let slots = vec![slot; tokens.len()];
        let step = StepInput {
            tokens,
            positions: &positions,
            slots: &slots,
            outs: &outs,
            ..StepInput::default()
        };
        reference.step(&step).unwrap();
        all.extend_from_slice(reference.value(logits(&graph)).unwrap());
    }
    all
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    for model in [models::llama().model(), models::gemma3().model()] {
        let tokens = prompt(0);
        let whole = chunked(&model, &tokens, 20, 0);
        assert_eq!(whole.len(), 20 * VOCABULARY);
        assert!(whole.iter().all(|x| x.is_finite()));
        for (chunk, slot) in [(20, 0), (1, 0), (7, 2), (3, 1)] {
            assert_eq!(chunked(&model, &tokens, chunk, slot), whole, "{chunk} rows a step");
        }
        assert_ne!(chunked(&model, &prompt(1), 20, 0), whole);
    }
}

#[test]
fn sequences_in_one_batch_do_not_touch() {
    for model in [models::llama().model(), models::gemma3().model()] {
        let graph = arch::build(&model).unwrap();
        let mut reference = Reference::new(&graph, &model, CONTEXT, 3).unwrap();
        let prompts = [prompt(3), prompt(4), prompt(5)];
        let alone: Vec<_> = prompts.iter().map(|p| chunked(&model, p, 20, 0)).collect();
        for at in 0..20u32 {
            let tokens = [2, 0, 1].map(|s: usize| prompts[s][at as usize]);
            let step = StepInput {
                tokens: &tokens,
                positions: &[at; 3],
                slots: &[2, 0, 1],
                outs: &[0, 1, 2],
                ..StepInput::default()
            };
            reference.step(&step).unwrap();
            let rows = reference.value(logits(&graph)).unwrap().chunks(VOCABULARY);
            for (row, slot) in rows.zip([2, 0, 1]) {
                assert_eq!(row, &alone[slot][at as usize * VOCABULARY..][..VOCABULARY]);
            }
        }
    }
}

#[test]
fn tokens_are_sampled_as_asked() {
    let model = models::llama().model();
    let graph = arch::build(&model).unwrap();
    let mut reference = Reference::new(&graph, &model, CONTEXT, 2).unwrap();
    let hot = Sampler { temperature: 100.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampler::greedy() };
    let mut seen = std::collections::BTreeSet::new();
    for draw in 0..20 {
        let sampling = [Sampling { sampler: &hot, recent: &[], step: draw }];
        let step = StepInput {
            tokens: &[1, 2],
            positions: &[0, 0],
            slots: &[0, 1],
            outs: &[0, 1],
            sampling: &sampling,
        };
        reference.step(&step).unwrap();
        let row = &reference.value(logits(&graph)).unwrap()[VOCABULARY..];
        let best = (0..VOCABULARY).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let ids = reference.ids(graph.outputs()[1]).unwrap();
        assert_eq!(ids[1], best as u32);
        seen.insert(ids[0]);
    }
    assert!(seen.len() > 5, "a hot draw came to {seen:?}");
}

#[test]
fn a_step_that_does_not_fit_is_an_error() {
    let model = models::llama().model();
    let graph = arch::build(&model).unwrap();
    let mut reference = Reference::new(&graph, &model, 4, 1).unwrap();
    let fine = StepInput { tokens: &[1], positions: &[3], slots: &[0], outs: &[0], sampling: &[] };
    reference.step(&fine).unwrap();
    for (bad, wanted) in [
        (StepInput { positions: &[4], ..fine }, "position 4"),
        (StepInput { slots: &[1], ..fine }, "slot 1"),
        (StepInput { outs: &[1], ..fine }, "row 1"),
        (StepInput { tokens: &[40], ..fine }, "token 40"),
        (StepInput { tokens: &[u32::MAX], ..fine }, "token 4294967295"),
        (StepInput { tokens: &[1, 2], ..fine }, "2 tokens"),
    ] {
        let error = reference.step(&bad).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(Reference::new(&graph, &model, usize::MAX, 2).is_err());
    assert!(Reference::new(&graph, &model, usize::MAX / 64, 1).is_err());
    assert!(Reference::new(&graph, &MemoryWeights::new(), 4, 1).is_err());
}

#[test]
fn a_logit_that_is_not_finite_names_its_place() {
    let mut weights = MemoryWeights::new();
    weights.insert("e.weight", &[2, 2], &[1.0, 2.0, f32::INFINITY, 0.0]).unwrap();
    let mut b = Builder::new(&weights);
    let x = b.embed("e").unwrap();
    let x = b.select(x).unwrap();
    b.sample(x).unwrap();
    let mut reference = Reference::new(&b.finish(), &weights, 9, 1).unwrap();
    let step = |tokens| StepInput {
        tokens,
        positions: &[7, 8],
        slots: &[0, 0],
        outs: &[1],
        sampling: &[],
    };
    reference.step(&step(&[1, 0])).unwrap();
    let error = reference.step(&step(&[0, 1])).unwrap_err().to_string();
    assert_eq!(error, "step 0: the logits are not finite (position 8)");
}
