//! The two real models: ids as llama.cpp and transformers give them, and templates as the latter
//! writes them. Fetched by `tests/real/fetch.sh`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use gllm_kernels::model::Model;
use gllm_kernels::text::{ChatTemplate, Encode, Message, Tokenizer};
use serde_json::Value;

fn models() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models");
    std::env::var_os("GLLM_MODELS").map_or(default, PathBuf::from)
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn tokenizer(file: &str) -> Tokenizer {
    let model = Model::open(&models().join(file)).unwrap();
    let start = Instant::now();
    let t = Tokenizer::from_metadata(model.meta()).unwrap();
    println!("{file}: tokenizer of {} made in {:?}", t.vocab_size(), start.elapsed());
    t
}

fn text_of(t: &Tokenizer, id: Option<u32>) -> String {
    String::from_utf8(t.token_text(id.unwrap()).unwrap().to_vec()).unwrap()
}

fn ids_agree(t: &Tokenizer, wanted: &str, damage: bool) -> usize {
    let prompts = fixture("prompts.json");
    let prompts = prompts.as_array().unwrap();
    let mut differing = 0;
    for want in fixture(wanted)["prompts"].as_array().unwrap() {
        let name = &want["name"];
        let prompt = prompts.iter().find(|p| p["name"] == *name).unwrap();
        let ids: Vec<u32> =
            want["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        let mut text = match prompt["messages"].as_array() {
            None => prompt["text"].as_str().unwrap().to_string(),
            Some(messages) => {
                let part = |m: &Value, key: &str| m[key].as_str().unwrap().to_string();
                let talk: Vec<Message> = messages
                    .iter()
                    .map(|m| Message::new(part(m, "role"), part(m, "content")))
                    .collect();
                let template = ChatTemplate::new(t.vocab().chat_template().unwrap()).unwrap();
                let (bos, eos) = (text_of(t, t.vocab().bos()), text_of(t, t.vocab().eos()));
                let text = template.render(&talk, true, &bos, &eos).unwrap();
                assert_eq!(Some(text.as_str()), want["chat_text"].as_str(), "{name}");
                text
            }
        };
        if damage {
            text = text.replacen('e', "E", 1);
        }
        let special = prompt["messages"].is_array();
        let got = t.encode(&text, Encode { bos: true, special }).unwrap();
        if got != ids {
            let at = got.iter().zip(&ids).take_while(|(a, b)| a == b).count();
            let around = |v: &[u32]| {
                let near = v.iter().skip(at).take(4);
                near.map(|&i| String::from_utf8_lossy(t.token_text(i).unwrap_or(b"?")).into_owned())
                    .collect::<Vec<_>>()
            };
            if !damage {
                println!("{name}: at {at}: {:?}, wanted {:?}", around(&got), around(&ids));
            }
            differing += 1;
        }
        if !special && !damage {
            assert_eq!(t.decode(&got), text, "{name}");
        }
    }
    differing
}

#[test]
#[ignore = "needs the models of tests/real/fetch.sh"]
fn smollm2_ids() {
    let t = tokenizer("smollm2-135m-instruct-q4_1.gguf");
    assert_eq!(ids_agree(&t, "smollm2.json", false), 0);
    assert!(
        ids_agree(&t, "smollm2.json", true) > 10,
        "the comparison does not see a changed letter"
    );
    assert!(t.is_end(2) && t.is_end(0) && !t.is_end(1));
}

#[test]
#[ignore = "needs the models of tests/real/fetch.sh"]
fn gemma3_ids() {
    let t = tokenizer("gemma-3-270m-q4_k_m.gguf");
    assert_eq!(ids_agree(&t, "gemma3.json", false), 0);
    assert!(
        ids_agree(&t, "gemma3.json", true) > 10,
        "the comparison does not see a changed letter"
    );
    assert!(t.is_end(1) && !t.is_end(2));
}

/// Reports; see `a_megabyte_of_anything_takes_linear_time`.
#[test]
#[ignore = "needs the models of tests/real/fetch.sh"]
fn speed() {
    let story = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/running.txt"),
    );
    let story = story.unwrap();
    let letters: String = story.chars().filter(|c| c.is_alphabetic()).collect();
    let cases = [
        ("prose", story.repeat(1_000_000 / story.len())),
        ("one letter", "a".repeat(1_000_000)),
        ("no spaces", letters.repeat(1_000_000 / letters.len())),
        ("spaces", " ".repeat(1_000_000)),
        ("newlines", "\n".repeat(1_000_000)),
    ];
    for file in ["smollm2-135m-instruct-q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let t = tokenizer(file);
        for (name, text) in &cases {
            let start = Instant::now();
            let ids = t.encode(text, Encode::default()).unwrap();
            println!("  {name}: {} bytes, {} ids, {:?}", text.len(), ids.len(), start.elapsed());
            assert_eq!(t.decode(&ids), *text, "{name}");
        }
    }
}
