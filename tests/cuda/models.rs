//! Models: the embedded one always, the two real ones where GLLM_MODELS has them.

use crate::common::{cuda, nmse};
use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::embedded;
use gllm_kernels::graph::arch;
use gllm_kernels::model::{Conversion, Format, Model, Nearness, Sink, Tensor};
use gllm_kernels::plan::{Backend, Limits, Session};
use gllm_kernels::replay::{Generator, Plans};
use gllm_kernels::text::{Encode, Tokenizer};
use std::path::Path;

/// Logits after the prompt, and tokens that follow it.
fn greedy<B: Backend>(
    backend: &B,
    model: &Model,
    prompt: &[u32],
    n: usize,
    rows: usize,
) -> (Vec<f32>, Vec<u32>) {
    let limits = Limits { rows, outs: 1, slots: 1, context: prompt.len() + n + 1 };
    let plans = Plans::new(&arch::build(model).unwrap(), backend, limits).unwrap();
    let mut generator = Generator::new(plans.load(backend, model).unwrap());
    assert!(generator.prefill(prompt, || true).unwrap());
    let logits = generator.session().peek(0).unwrap();
    (logits, (0..n).map(|_| generator.next_token().unwrap()).collect())
}

struct Kept(Vec<u8>);

impl Sink for Kept {
    fn put(&mut self, bytes: &[u8]) -> gllm_kernels::Result<bool> {
        self.0.extend(bytes);
        Ok(true)
    }

    fn done(&mut self, _: &Tensor, _: Format, _: Option<Nearness>) {}
}

/// The same model with its weights in f32.
fn exact(model: &Model) -> Model {
    let formats = vec![Format::F32; model.tensors().len()];
    let conversion = Conversion::new(model, formats, Format::F32).unwrap();
    let mut kept = Kept(Vec::new());
    assert!(conversion.run(8, &mut kept).unwrap());
    Model::from_static("exact", kept.0.leak()).unwrap()
}

fn compare(model: &Model, prompts: &[&str], n: usize) {
    let tokenizer = Tokenizer::from_metadata(model.meta()).unwrap();
    let (cuda, cpu) = (cuda(), CpuBackend::detect());
    let exact = exact(model);
    for text in prompts {
        let prompt = tokenizer.encode(text, Encode { bos: true, special: false }).unwrap();
        let (of_cpu, tokens) = greedy(&cpu, model, &prompt, n, 64);
        let (of_floats, _) = greedy(&cpu, &exact, &prompt, 0, 64);
        for rows in [1, 64, 512] {
            let (got, same) = greedy(&cuda, model, &prompt, n, rows);
            // One row is in integers of 16 bits as on the CPU, which may be further from floats than rows in two bf16 are.
            let (cpu, floats) = (nmse(&got, &of_cpu), nmse(&got, &of_floats));
            println!(
                "{} rows {rows}: logits {cpu:.1e} of the CPU's, {floats:.1e} of floats'",
                model.name()
            );
            let error = if rows == 1 { cpu } else { floats };
            assert!(error < 1e-6, "{text:?}, rows {rows}: {error:.1e}");
            assert_eq!(same, tokens, "{text:?}, rows {rows}");
        }
    }
}

const PROMPTS: [&str; 3] =
    ["The old man looked at the sea and", "Once upon a time", "In the year 1805"];

#[test]
#[ignore = "needs a CUDA device"]
fn the_embedded_model_writes_what_the_cpu_writes() {
    compare(&embedded::tiny().unwrap(), &PROMPTS, 64);
}

#[test]
#[ignore = "needs a CUDA device, and the models of tests/real/fetch.sh in GLLM_MODELS"]
fn real_models_write_what_the_cpu_writes() {
    let folder = std::env::var_os("GLLM_MODELS").expect("GLLM_MODELS names no folder");
    let mut found = 0;
    for name in ["smollm2-135m-instruct-q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let path = Path::new(&folder).join(name);
        if path.exists() {
            compare(&Model::open(&path).unwrap(), &PROMPTS, 64);
            found += 1;
        } else {
            println!("{name} is not there");
        }
    }
    assert!(found > 0);
}
