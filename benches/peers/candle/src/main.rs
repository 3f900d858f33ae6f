//! Candle's quantized models, measured as `gllm bench` measures: prefill of 512 tokens in one go,
//! 128 steps of one token from an empty context, medians after a round that warms up.
//!
//! ```sh
//! RUSTFLAGS="-C target-cpu=native" cargo build --release --manifest-path benches/peers/candle/Cargo.toml
//! RAYON_NUM_THREADS=2 benches/peers/candle/target/release/beside-candle MODEL.gguf
//! ```

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama};
use std::time::Instant;

const PROMPT: usize = 512;
const DECODE: usize = 128;
const REPEAT: usize = 3;

enum Model {
    Llama(quantized_llama::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl Model {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        let x = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Model::Llama(model) => model.forward(&x, position)?,
            Model::Gemma3(model) => model.forward(&x, position)?,
        };
        // Computed on the spot; looked at so that nothing is left out.
        assert!(logits.flatten_all()?.to_vec1::<f32>()?[0].is_finite());
        Ok(())
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).expect("a GGUF file");
    let mut file = std::fs::File::open(&path)?;
    let content = Content::read(&mut file)?;
    let architecture = content.metadata["general.architecture"].to_string()?.clone();
    let mut model = match architecture.as_str() {
        "gemma3" => {
            let model = quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu);
            Model::Gemma3(model?)
        }
        _ => Model::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
    };
    let tokens: Vec<u32> = (0..PROMPT).map(|i| (i * 7919 % 32000) as u32).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..=REPEAT {
        // Position 0 empties the cache.
        let start = Instant::now();
        model.forward(&tokens, 0)?;
        prefill.push(PROMPT as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        for (position, token) in tokens.iter().take(DECODE).enumerate() {
            model.forward(&[*token], position)?;
        }
        decode.push(DECODE as f64 / start.elapsed().as_secs_f64());
    }
    let (prefill, decode) = (median(prefill.split_off(1)), median(decode.split_off(1)));
    println!("{{\"model\": {path:?}, \"pp512\": {prefill:.1}, \"tg128\": {decode:.1}}}");
    Ok(())
}
