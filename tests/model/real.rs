//! The two real models, where they have been fetched.

use gllm_kernels::model::{Format, Model};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

fn load(file: &str) -> Model {
    let folder = std::env::var_os("GLLM_MODELS").expect("GLLM_MODELS names the models' folder");
    let path = PathBuf::from(folder).join(file);
    let start = Instant::now();
    let model = Model::open(&path).unwrap();
    println!("{file}: header read in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    model
}

fn formats(model: &Model) -> BTreeMap<Format, usize> {
    model.tensors().iter().fold(BTreeMap::new(), |mut counts, t| {
        *counts.entry(t.format).or_default() += 1;
        counts
    })
}

/// Every tensor's bytes are where the header says, and the last ends within the file.
fn check_data(model: &Model) {
    for t in model.tensors() {
        assert_eq!(model.bytes(t).len(), t.size());
        let (&cols, rows) = t.dims.split_last().unwrap();
        let rows: usize = rows.iter().product();
        assert_eq!(t.format.row_bytes(cols).unwrap() * rows, t.size());
        let row = &model.bytes(t)[..t.format.row_bytes(cols).unwrap()];
        let mut values = vec![0.0; cols];
        t.format.decode(row, &mut values).unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{}", t.name);
    }
    model.verify_unchanged().unwrap();
}

#[test]
#[ignore = "needs the models: tests/real/fetch.sh DIRECTORY, then GLLM_MODELS=DIRECTORY"]
fn smollm2_is_read() {
    let model = load("smollm2-135m-instruct-q4_1.gguf");
    let expected = [(Format::F32, 61), (Format::Q8_0, 1), (Format::Q4_1, 210)];
    assert_eq!(formats(&model), expected.into());
    let m = model.meta();
    assert_eq!(m.require_str("general.architecture").unwrap(), "llama");
    assert_eq!(m.require_u32("llama.block_count").unwrap(), 30);
    assert_eq!(m.require_strs("tokenizer.ggml.tokens").unwrap().len(), 49_152);
    assert_eq!(model.tensor("token_embd.weight").unwrap().dims[..], [49_152, 576]);
    assert_eq!(model.tensor("blk.0.ffn_down.weight").unwrap().dims[..], [576, 1536]);
    assert_eq!(model.file_bytes(), 98_362_432);
    check_data(&model);
}

#[test]
#[ignore = "needs the models: tests/real/fetch.sh DIRECTORY, then GLLM_MODELS=DIRECTORY"]
fn gemma3_is_read() {
    let model = load("gemma-3-270m-q4_k_m.gguf");
    let expected = [
        (Format::F32, 109),
        (Format::Q8_0, 10),
        (Format::Q5_0, 81),
        (Format::Q4_K, 27),
        (Format::Q6_K, 9),
    ];
    assert_eq!(formats(&model), expected.into());
    let m = model.meta();
    assert_eq!(m.require_str("general.architecture").unwrap(), "gemma3");
    let tokens = m.require_strs("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens.get(2)), (262_144, Some(&b"<bos>"[..])));
    assert_eq!(m.require_f32s("tokenizer.ggml.scores").unwrap().len(), 262_144);
    assert_eq!(m.require_i32s("tokenizer.ggml.token_type").unwrap().len(), 262_144);
    assert_eq!(model.tensor("token_embd.weight").unwrap().dims[..], [262_144, 640]);
    assert_eq!(model.file_bytes(), 253_113_024);
    check_data(&model);
}
