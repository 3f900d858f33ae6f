//! Every architecture, as the tiny models of its fixture: the reference's logits and transformers'
//! 64 greedy tokens.

use crate::common::{cuda, nmse};
use crate::tiny::{fixture, fixtures, model, reference_logits};
use gllm_kernels::Result;
use gllm_kernels::cuda::CudaBackend;
use gllm_kernels::graph::arch;
use gllm_kernels::plan::{Limits, Session, StepInput};
use gllm_kernels::replay::{Generator, Plans};

/// Of all rows of the prompt, run in chunks of so many, the error of the logits.
fn logits(backend: &CudaBackend, name: &str, chunk: usize) -> Result<f64> {
    let fixture = fixture(name);
    let model = model(&format!("{name}-cuda"), &fixture, "F32", 1);
    let context = if name.ends_with("-long") { 96 } else { 0 };
    let library = arch::Library::embedded();
    let graph = arch::build_for(model.meta(), &model, &library, context)?;
    let want = reference_logits(&graph, &model, &fixture.prompt);
    let limits = Limits { rows: chunk, outs: chunk, slots: 1, context: 96 };
    let mut session = Plans::new(&graph, backend, limits)?.load(backend, &model)?;
    let (mut got, mut position) = (Vec::new(), 0);
    for tokens in fixture.prompt.chunks(chunk) {
        let n = tokens.len() as u32;
        let positions: Vec<u32> = (position..position + n).collect();
        let (outs, slots): (Vec<u32>, _) = ((0..n).collect(), vec![0; tokens.len()]);
        session.run(&StepInput { tokens, positions: &positions, slots: &slots, outs: &outs })?;
        got.extend(session.peek(0).unwrap());
        position += n;
    }
    Ok(nmse(&got, &want))
}

/// Tokens after the prompt that are transformers', of 64.
fn greedy(backend: &CudaBackend, name: &str) -> Result<usize> {
    let fixture = fixture(name);
    let model = model(&format!("{name}-cuda"), &fixture, "F32", 1);
    let graph = arch::build_for(
        model.meta(),
        &model,
        &arch::Library::embedded(),
        if name.ends_with("-long") { 96 } else { 0 },
    )?;
    let limits = Limits { rows: 5, outs: 1, slots: 1, context: 96 };
    let mut generator = Generator::new(Plans::new(&graph, backend, limits)?.load(backend, &model)?);
    generator.prefill(&fixture.prompt, || true)?;
    let mut same = 0;
    for &want in &fixture.greedy {
        if generator.next_token()? != want {
            break;
        }
        same += 1;
    }
    Ok(same)
}

#[test]
#[ignore = "needs a CUDA device"]
fn every_architecture() {
    let backend = cuda();
    let (names, mut failed) = (fixtures(), Vec::new());
    assert!(names.len() > 30, "{names:?}");
    for name in &names {
        let error = |chunk| match logits(&backend, name, chunk) {
            Ok(error) => error,
            Err(e) => {
                println!("{name}: {e}");
                f64::INFINITY
            }
        };
        let (one, many) = (error(1), error(64));
        let same = greedy(&backend, name).unwrap_or_else(|e| {
            println!("{name}: {e}");
            0
        });
        println!("{name:<20} one row {one:.1e}, many {many:.1e}, {same} of 64 tokens");
        // Caches are f16.
        if one > 2e-6 || many > 2e-6 || same != 64 {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
