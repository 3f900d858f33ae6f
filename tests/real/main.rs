//! Two real models against two other programs.
//!
//! `smollm2.json` and `gemma3.json` hold what llama.cpp and transformers say (token ids, f32 logits,
//! greedy text; `reference.py` wrote them), `peer.json` how far llama.cpp itself is from the f32
//! model on the same quantized files (`peer.py`). All tests need the models of `fetch.sh` in the
//! folder that GLLM_MODELS names, and are ignored without being asked for:
//!
//! ```text
//! tests/real/fetch.sh target/models
//! GLLM_MODELS=$PWD/target/models cargo test --release --test real -- --include-ignored
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{Case, NAMES, Quality, chunked, chunked_with, generator, mean_kl, peer, running_ids};
use gllm_kernels::graph::reference::{Reference, StepInput};
use gllm_kernels::graph::{DType, arch};
use gllm_kernels::text::{ChatTemplate, Encode, Message};

#[test]
#[ignore = "needs the models of tests/real/fetch.sh in GLLM_MODELS"]
fn prompts_have_the_ids_of_llama_cpp_and_transformers() {
    for name in NAMES {
        let case = Case::open(name);
        let tokenizer = case.tokenizer();
        let vocab = tokenizer.vocab();
        for prompt in &case.prompts {
            let ids = match (&prompt.text, &prompt.messages) {
                (Some(text), _) => tokenizer.encode(text, Encode { bos: true, special: false }),
                (None, Some(messages)) => {
                    let token = |id: Option<u32>| {
                        let text = id.and_then(|id| vocab.text(id)).unwrap_or_default();
                        String::from_utf8(text.to_vec()).unwrap()
                    };
                    let template = ChatTemplate::new(vocab.chat_template().unwrap()).unwrap();
                    let messages: Vec<Message> =
                        messages.iter().map(|m| Message::new(&m.role, &m.content)).collect();
                    let (bos, eos) = (token(vocab.bos()), token(vocab.eos()));
                    let text = template.render(&messages, true, &bos, &eos).unwrap();
                    assert_eq!(Some(&text), prompt.chat_text.as_ref(), "{name} {}", prompt.name);
                    tokenizer.encode(&text, Encode { bos: true, special: true })
                }
                _ => panic!("{}: neither text nor messages", prompt.name),
            };
            assert_eq!(ids.unwrap(), prompt.ids, "{name} {}", prompt.name);
        }
        assert!(case.prompts.len() >= 20, "{name}");
    }
}

/// How far a logit may be off, as a share of the greatest. Correct code is off by 4e-6; a sliding
/// window that is short by one position, by 7e-4.
const LOGIT: f32 = 2e-5;

#[test]
#[ignore = "needs the models of tests/real/fetch.sh in GLLM_MODELS"]
fn reference_logits_match_transformers_in_f32() {
    for name in NAMES {
        let case = Case::open(name);
        let graph = arch::build(&case.model).unwrap();
        let longest = case.prompts.iter().map(|p| p.ids.len()).max().unwrap();
        let mut reference = Reference::new(&graph, &case.model, longest, 1).unwrap();
        let mut worst = 0.0f32;
        for prompt in &case.prompts {
            let n = prompt.ids.len() as u32;
            let positions: Vec<u32> = (0..n).collect();
            let slots = vec![0; prompt.ids.len()];
            let step = StepInput {
                tokens: &prompt.ids,
                positions: &positions,
                slots: &slots,
                outs: &[n - 1],
                ..StepInput::default()
            };
            reference.step(&step).unwrap();
            let logits = reference.value(graph.outputs()[0]).unwrap();
            let at = case.logit_ids.iter().copied().zip(prompt.at.iter().copied());
            for (id, want) in at.chain(prompt.top.iter().copied()) {
                let error = (logits[id as usize] - want).abs() / prompt.max_abs;
                assert!(error <= LOGIT, "{name} {}: logit {id} is off by {error}", prompt.name);
                worst = worst.max(error);
            }
        }
        println!("{name}: worst relative error of a logit {worst:.2e}");
    }
}

#[test]
#[ignore = "needs the models of tests/real/fetch.sh in GLLM_MODELS"]
fn cpu_logits_are_as_close_to_f32_as_llama_cpp() {
    for name in NAMES {
        let case = Case::open(name);
        let ids = running_ids(&case);
        let want = common::reference_rows(&case, &ids);
        let vocabulary = want.len() / ids.len();
        for rows in [32, 1] {
            let got = chunked(&case, &ids, rows);
            let Quality { kl, top1 } = mean_kl(&want, &got, vocabulary);
            let peer = peer(name, rows > 1);
            println!(
                "{name} by {rows}: KL {kl:.3e} top-1 {top1:.4}; llama.cpp {:.3e} {:.4}",
                peer.kl, peer.top1
            );
            assert!(kl <= peer.kl, "{name}: KL {kl} > {}", peer.kl);
        }
    }
}

/// Mean KL in nats of caches of 8 bits from halves, at most.
const KL_OF_8_BITS: f64 = 6e-4;

#[test]
#[ignore = "needs the models of tests/real/fetch.sh in GLLM_MODELS"]
fn caches_of_8_bits_are_close_to_halves() {
    for name in NAMES {
        let case = Case::open(name);
        let ids = running_ids(&case);
        let want = chunked(&case, &ids, 32);
        let got = chunked_with(DType::Q8_0, &case, &ids, 32);
        let Quality { kl, top1 } = mean_kl(&want, &got, want.len() / ids.len());
        println!("{name}: KL {kl:.3e} top-1 {top1:.4}");
        assert!(kl > 0.0 && kl <= KL_OF_8_BITS, "{name}: KL {kl}");
    }
}

#[test]
#[ignore = "needs the models of tests/real/fetch.sh in GLLM_MODELS"]
fn greedy_text_agrees_with_f32_as_long_as_llama_cpp_does() {
    for name in NAMES {
        let case = Case::open(name);
        let mut generator = generator(&case, 512, 2, 1024);
        let (mut ours, mut theirs) = (0, 0);
        for prompt in &case.prompts {
            generator.reset();
            generator.prefill(&prompt.ids, || true).unwrap();
            let want = &prompt.greedy.ids;
            let got: Vec<u32> = want.iter().map(|_| generator.next_token().unwrap()).collect();
            let agree = got.iter().zip(want).take_while(|(a, b)| a == b).count();
            let peer = common::peer_agrees(name, &prompt.name);
            println!("{name} {}: {agree} of {}, llama.cpp {peer}", prompt.name, want.len());
            ours += agree;
            theirs += peer;
        }
        println!("{name}: {ours} greedy tokens agree, llama.cpp's {theirs}");
        assert!(ours >= theirs, "{name}: {ours} < {theirs}");
    }
}

#[test]
#[ignore = "needs the models of tests/real/fetch.sh in GLLM_MODELS"]
fn chunks_and_threads_change_no_token() {
    for name in NAMES {
        let case = Case::open(name);
        let prompt = case.prompts.iter().find(|p| p.name == "long_story").unwrap();
        let mut texts = Vec::new();
        for (threads, rows) in [(1, 512), (2, 512), (1, 7), (2, 7), (2, 1)] {
            let mut generator = generator(&case, rows, threads, 512);
            generator.prefill(&prompt.ids, || true).unwrap();
            let logits = common::bits(&common::logits(&mut generator));
            let text: Vec<u32> = (0..24).map(|_| generator.next_token().unwrap()).collect();
            texts.push((logits, text));
        }
        assert!(texts.iter().all(|t| t == &texts[0]), "{name}");
    }
}
