//! The embedded model's text, which is the same on any processor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use super::CpuBackend;
use super::simd::Isa;
use crate::embedded;
use crate::graph::{DType, arch};
use crate::plan::{Limits, Session as _};
use crate::replay::{Generator, Plans};
use crate::text::{Encode, Tokenizer};

const PROMPT: &str = "The old man looked out over the sea, and";

/// What follows, as x86-64 with AVX-512 wrote it.
const TEXT: &str = " saw the old man standing in the water, and the old man nodded to him, and \
                    said, \"It is a";

#[test]
fn every_instruction_set_writes_the_same_text() {
    let model = embedded::tiny().unwrap();
    let tokenizer = Tokenizer::of(&model).unwrap();
    let prompt = tokenizer.encode(PROMPT, Encode { bos: true, special: false }).unwrap();
    for caches in [DType::F16, DType::Q8_0] {
        let graph = arch::build(&model).unwrap().with_caches(|_| caches).unwrap();
        let mut first: Option<Vec<u32>> = None;
        for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 2)]) {
            let backend = CpuBackend::detect().with_threads(threads).unwrap();
            let backend = backend.with_isa(isa).unwrap();
            let limits = Limits { rows: 8, outs: 1, slots: 1, context: 64 };
            let session = Plans::new(&graph, &backend, limits).unwrap();
            let mut generator = Generator::new(session.load(&backend, &model).unwrap());
            assert!(generator.prefill(&prompt, || true).unwrap());
            let tokens: Vec<u32> = (0..24).map(|_| generator.next_token().unwrap()).collect();
            let mut stream = tokenizer.stream();
            let mut text = String::new();
            tokens.iter().for_each(|id| text.push_str(stream.push(*id)));
            text.push_str(stream.flush());
            assert_eq!(text, TEXT, "{isa:?}, {caches:?}");
            println!("{} wrote the same text", isa.name());
            let logits = generator.session().peek(0).unwrap();
            let bits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
            assert!(*first.get_or_insert(bits.clone()) == bits, "{isa:?}, {caches:?}");
        }
    }
}
