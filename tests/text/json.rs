//! `tokenizer.json`: tokenizers of every kind that is read beside Hugging Face's own (`make.py`), and
//! files that are broken, hostile or ask for what is not known.

use std::fs;
use std::path::{Path, PathBuf};

use gllm_kernels::Result;
use gllm_kernels::model::Model;
use gllm_kernels::text::{Encode, Tokenizer};
use serde_json::{Value, json};

/// A folder with a model of no weights.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizers").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), r#"{"model_type": "llama", "eos_token_id": [2, 7]}"#)
        .unwrap();
    let header = b"{}";
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
    folder
}

fn read(name: &str, tokenizer: impl AsRef<[u8]>) -> Result<Tokenizer> {
    let folder = folder(name);
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    Tokenizer::of(&Model::open(&folder)?)
}

fn fixtures() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/fixtures/tokenizers.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The chain of that name.
fn fixture(name: &str) -> Value {
    let all = fixtures();
    all["tokenizers"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap()["tokenizer"]
        .clone()
}

#[test]
fn ids_and_texts_are_those_of_tokenizers() {
    let all = fixtures();
    let texts = all["texts"].as_array().unwrap();
    let (mut differing, mut compared) = (Vec::new(), 0);
    for fixture in all["tokenizers"].as_array().unwrap() {
        let name = fixture["name"].as_str().unwrap();
        let t =
            read(name, fixture["tokenizer"].to_string()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (text, case) in texts.iter().zip(fixture["cases"].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let wanted: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let got = t.encode(text, Encode { bos: true, special: true }).unwrap();
            let show = |ids: &[u32]| {
                let texts =
                    ids.iter().map(|&id| String::from_utf8_lossy(t.token_text(id).unwrap_or(b"?")));
                texts.collect::<Vec<_>>().join("|")
            };
            if got != wanted {
                differing.push(format!("{name}: {text:?}:\n  {}\n  {}", show(&got), show(&wanted)));
            } else if t.decode(&got) != case["text"].as_str().unwrap() {
                differing.push(format!(
                    "{name}: {text:?}: {:?}, wanted {}",
                    t.decode(&got),
                    case["text"]
                ));
            }
            compared += 1;
        }
    }
    assert!(compared > 600);
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

fn refused(name: &str, tokenizer: impl AsRef<[u8]>) -> String {
    let error = read(name, tokenizer).map(|_| ()).expect_err(name).to_string();
    assert!(!error.contains(['\n', '\u{1b}']) && error.len() < 700, "{error}");
    assert!(error.contains("tokenizer.json"), "{error}");
    error
}

#[test]
fn what_is_not_known_names_file_and_field() {
    let stage = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
    let mut nested = json!({"type": "Lowercase"});
    for _ in 0..25 {
        nested = json!({"type": "Sequence", "normalizers": [nested, {"type": "NFC"}, {"type": "NFC"}, {"type": "NFC"}]});
    }
    let two = json!({"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>"}}, {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<s>": {"ids": [1]}}});
    for (i, (place, value, wanted)) in [
        ("/model/type", json!("WordPiece\u{1b}"), r#"model.type: "WordPiece\u{1b}" is not known"#),
        ("/model/type", json!("Unigram"), r#"model.type: "Unigram" is not known"#),
        ("/model/dropout", json!(0.1), "model.dropout"),
        ("/model/end_of_word_suffix", json!("</w>"), "model: a prefix or suffix"),
        ("/model/unk_token", json!("<none>"), r#"model.unk_token: "<none>" is no token"#),
        ("/model/merges", json!([["a", "b"], ["a b"]]), "two tokens"),
        ("/model/merges", json!(["ab"]), "model.merges[0]: not two tokens"),
        ("/model/vocab", json!({"a": 4_000_000_000u32}), "has id 4000000000"),
        ("/model/vocab", json!({"a": -1}), "line 1"),
        ("/model/vocab", json!({"a": 1, "b": 1}), r#"id 1 is "a" and "b""#),
        ("/model/vocab", json!({"<s>": 1}), r#"added_tokens: "<s>" has ids 1 and 420"#),
        (
            "/normalizer",
            json!({"type": "Precompiled"}),
            r#"normalizer: "Precompiled" is not known"#,
        ),
        ("/normalizer", json!({"kind": 3}), "normalizer: there is no type"),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {}, "content": ""}),
            "normalizer.Replace.pattern",
        ),
        ("/normalizer", nested, "normalizer: more than 64 steps"),
        (
            "/pre_tokenizer",
            json!({"type": "BertPreTokenizer"}),
            "pre_tokenizer: \"BertPreTokenizer\"",
        ),
        ("/pre_tokenizer", stage(r"(?<=a)b"), "not a regular expression of the linear engine"),
        ("/pre_tokenizer", stage(r"a(?=b)"), "not a regular expression of the linear engine"),
        ("/pre_tokenizer", stage(r"(a)\1"), "not a regular expression of the linear engine"),
        ("/pre_tokenizer", stage(r"a++b"), "gives nothing back"),
        ("/pre_tokenizer", stage(r"a|b?"), "matches nothing at all"),
        ("/pre_tokenizer", stage(r"\bab"), "an anchor or a boundary"),
        ("/pre_tokenizer", stage(r"(?s).+"), "an option"),
        ("/pre_tokenizer", stage(r"((\p{L}{1,1000}){1,1000}){1,1000}"), "tokenizer"),
        ("/pre_tokenizer", stage(&"a".repeat(20_000)), "longer than 16384 bytes"),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"String": "a"}, "behavior": "Odd"}),
            "Split.behavior",
        ),
        ("/pre_tokenizer", json!({"type": "Metaspace", "replacement": "_"}), "another replacement"),
        ("/decoder", json!({"type": "CTC"}), "decoder: \"CTC\" is not known"),
        ("/decoder", json!({"type": "Metaspace"}), "decoder.Metaspace: not known here"),
        ("/post_processor", json!({"type": "Odd"}), "post_processor: \"Odd\" is not known"),
        ("/post_processor", json!({"type": "TemplateProcessing"}), "no template `single`"),
        ("/post_processor", two, "more than one token before a text"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut t = fixture("gpt2");
        *t.pointer_mut(place).unwrap() = value;
        let error = refused(&format!("odd-{i}"), t.to_string());
        assert!(error.contains(wanted), "{place}: {error}, wanted {wanted}");
    }
    // The control: unchanged it is read.
    read("sound", fixture("gpt2").to_string()).unwrap();
}

#[test]
fn broken_files_are_errors() {
    for (i, text) in
        ["", "{", "null", "[]", "{}", r#"{"model": {"vocab": {"a": 0}, "merges": [3]}}"#]
            .into_iter()
            .enumerate()
    {
        refused(&format!("broken-{i}"), text);
    }
    let deep = "[".repeat(100_000);
    refused("deep", format!(r#"{{"model": {{"vocab": {{"a": 0}}}}, "normalizer": {deep}"#));
    refused("empty", r#"{"model": {"vocab": {}}}"#);
    let folder = folder("none");
    let model = Model::open(&folder).unwrap();
    let error = Tokenizer::of(&model).unwrap_err().to_string();
    assert!(error.contains("none/tokenizer.json: missing"), "{error}");
    // A link that leads out of the folder, and what is no file.
    std::os::unix::fs::symlink("/etc/passwd", folder.join("tokenizer.json")).unwrap();
    let error = Tokenizer::of(&model).unwrap_err().to_string();
    assert!(error.contains("leads out of the folder"), "{error}");
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    fs::create_dir(folder.join("tokenizer.json")).unwrap();
    assert!(Tokenizer::of(&model).unwrap_err().to_string().contains("not a regular file"));
    fs::remove_dir(folder.join("tokenizer.json")).unwrap();
    fs::File::create(folder.join("tokenizer.json")).unwrap().set_len(200 << 20).unwrap();
    assert!(Tokenizer::of(&model).unwrap_err().to_string().contains("longer than"));
}

/// Bytes changed, cut out and doubled at random: a tokenizer or an error, and no panic in either.
#[test]
fn random_damage_never_panics() {
    let mut random = crate::common::Random::new(11);
    let (mut read_anyway, mut refused) = (0, 0);
    for name in ["llama3", "phi3", "falcon", "normal forms"] {
        let mut sound = fixture(name);
        // A short vocabulary, so that the damage falls on the chain as well.
        let vocab = sound.pointer_mut("/model/vocab").unwrap().as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64().unwrap() < 270);
        sound.pointer_mut("/model/merges").unwrap().as_array_mut().unwrap().truncate(3);
        let sound = sound.to_string().into_bytes();
        for _ in 0..150 {
            let mut bytes = sound.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] = random.one(b"\"{}[]:,0-9aT\\\x80"),
                    1 => {
                        drop(bytes.drain(at..(at + random.below(40)).min(sound.len() / 2).max(at)))
                    }
                    _ => bytes.insert(at, random.one(b"19,\"e{[")),
                }
            }
            match read("damaged", bytes) {
                Ok(t) => {
                    read_anyway += 1;
                    let text = random.text(60);
                    if let Ok(ids) = t.encode(&text, Encode { bos: true, special: true }) {
                        t.decode(&ids);
                    }
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read_anyway > 50 && refused > 50, "{read_anyway} {refused}");
}

#[test]
fn names_and_templates_come_from_the_files_beside() {
    let folder = folder("beside");
    let write = |file: &str, json: Value| fs::write(folder.join(file), json.to_string()).unwrap();
    write("tokenizer.json", fixture("gpt2"));
    write(
        "tokenizer_config.json",
        json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true,
            "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}),
    );
    write("generation_config.json", json!({"eos_token_id": [5, 4_000_000]}));
    let open = || Tokenizer::of(&Model::open(&folder).unwrap()).unwrap();
    let t = open();
    let id = |text: &str| t.vocab().id(text.as_bytes());
    assert_eq!((t.vocab().bos(), t.vocab().eos()), (id("<s>"), id("</s>")));
    assert_eq!(t.encode("", Encode { bos: true, special: false }).unwrap(), [id("<s>").unwrap()]);
    // By name, by both configs, and what is a control token of that name.
    let ends: Vec<u32> = [2, 5, 7].into_iter().chain(id("</s>")).chain(id("<|im_end|>")).collect();
    assert_eq!(t.vocab().end_ids(), ends);
    assert_eq!(t.vocab().chat_template(), Some("d"));
    fs::write(folder.join("chat_template.jinja"), "j").unwrap();
    assert_eq!(open().vocab().chat_template(), Some("j"));
    // A template of the tokenizer says more than the config: nothing comes before a text there.
    let mut plain = fixture("gpt2");
    plain["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}], "special_tokens": {}});
    write("tokenizer.json", plain);
    assert!(open().encode("", Encode { bos: true, special: false }).unwrap().is_empty());
}

/// Not quadratic: see `a_megabyte_of_anything_takes_linear_time`.
#[test]
fn a_megabyte_takes_linear_time() {
    for name in ["phi3", "falcon", "normal forms", "merged_with_next"] {
        let t = read(&format!("long-{name}"), fixture(name).to_string()).unwrap();
        for part in ["a", " ", "\n", "<tool>", "1", "é", "e\u{301}", "日本語 text. "] {
            let text = part.repeat((1 << 20) / part.len());
            let start = std::time::Instant::now();
            let ids = t.encode(&text, Encode { bos: true, special: true }).unwrap();
            println!("{name}, {part:?}: {} ids, {:?}", ids.len(), start.elapsed());
            assert!(start.elapsed().as_secs() < 60);
        }
    }
}
