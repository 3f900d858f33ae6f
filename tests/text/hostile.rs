//! Vocabularies that contradict themselves: an error or a repair, never a panic.

use std::borrow::Cow;

use gllm_kernels::text::{Encode, Source, Tokenizer, Vocab};

use crate::common::{Random, bpe, spm};

const ALL: Encode = Encode { bos: true, special: true };

fn refused(source: Source<'_>) -> String {
    Vocab::new(source).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_repaired_is_an_error() {
    let (b, s) = (bpe(), spm());
    let with = |f: &dyn Fn(&mut Source<'_>)| {
        let mut source = s.source("llama");
        f(&mut source);
        refused(source)
    };
    assert!(with(&|s| s.tokens.clear()).contains("empty"));
    assert!(with(&|s| s.model = "bert\u{1b}[31m").contains(r"bert\u{1b}"));
    assert!(with(&|s| s.scores = None).contains("without scores"));
    assert!(with(&|s| s.scores = Some(Cow::Owned(vec![0.0]))).contains("1 scores for"));
    assert!(with(&|s| s.token_type = Some(Cow::Owned(vec![1]))).contains("1 token types for"));
    let mut source = b.source("gpt2");
    source.pre = Some("nonesuch");
    assert!(refused(source).contains("known are default, gpt-2"));
    assert!(Vocab::new(b.source("gpt2")).is_ok() && Vocab::new(s.source("llama")).is_ok());
}

#[test]
fn ids_past_the_end_are_dropped() {
    let made = spm();
    let mut source = made.source("llama");
    source.bos = Some(u32::MAX);
    source.eos = Some(made.tokens.len() as u32);
    source.eot = Some(7_000_000);
    source.unknown = Some(u32::MAX);
    let vocab = Vocab::new(source).unwrap();
    assert_eq!((vocab.bos(), vocab.eos(), vocab.unknown()), (None, None, None));
    assert!(vocab.end_ids().is_empty());
    // The control: the last id is inside.
    let mut source = made.source("llama");
    source.eos = Some(made.tokens.len() as u32 - 1);
    assert_eq!(Vocab::new(source).unwrap().end_ids().len(), 1);
}

#[test]
fn empty_twice_and_malformed_are_repaired() {
    let mut made = bpe();
    let first = made.tokens.iter().position(|t| t == b"hello").unwrap() as u32;
    made.add("hello", 0.0, 1);
    made.add("", 0.0, 1);
    made.add("", 0.0, 3);
    made.add([0xff, 0xfe], 0.0, 4);
    made.add([0xc3], 0.0, 3);
    made.add("x".repeat(5000), 0.0, 4);
    for merge in [&b""[..], b" ", b"  ", b"nospace", b"h  e", b" h", b"h ", b"\xff \xfe", b"q zz"] {
        made.merges.push(merge.to_vec());
    }
    let t = made.tokenizer("gpt2");
    assert_eq!(t.encode("hello", ALL).unwrap(), [first]);
    assert_eq!(t.decode(&t.encode(&"x".repeat(6000), ALL).unwrap()).len(), 6000);
    assert_eq!((t.token_text(u32::MAX), t.decode(&[u32::MAX, first])), (None, "hello".into()));
}

#[test]
fn text_without_a_token_is_an_error_or_the_unknown_token() {
    let mut made = bpe();
    made.tokens[usize::from(b'q')] = b"gone".to_vec();
    let e = made.tokenizer("gpt2").encode("aq", ALL).unwrap_err().to_string();
    assert!(e.contains("0x71"), "{e}");
    let mut source = made.source("gpt2");
    source.unknown = Some(5);
    let t = Tokenizer::new(Vocab::new(source).unwrap()).unwrap();
    assert_eq!(t.encode("aq", ALL).unwrap(), [97, 5]);
}

#[test]
fn scores_that_are_no_numbers_order_all_the_same() {
    let mut made = spm();
    for (score, odd) in made.scores.iter_mut().zip(
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MIN_POSITIVE, -f32::NAN]
            .into_iter()
            .cycle(),
    ) {
        *score = odd;
    }
    let t = made.tokenizer("llama");
    assert_eq!(t.decode(&t.encode("hello aaaa", ALL).unwrap()), "hello aaaa");
}

#[test]
fn random_damage_never_panics() {
    let mut random = Random::new(3);
    for round in 0..300 {
        let model = if round % 2 == 0 { "gpt2" } else { "llama" };
        let mut made = if round % 2 == 0 { bpe() } else { spm() };
        for _ in 0..random.below(200) {
            let at = random.below(made.tokens.len());
            match random.below(4) {
                0 => made.types[at] = random.below(9) as i32 - 1,
                1 => made.scores[at] = f32::from_bits(random.below(1 << 32) as u32),
                2 => made.tokens[at] = random.text(3).into_bytes(),
                _ => {
                    made.tokens[at] =
                        (0..random.below(4)).map(|_| random.below(256) as u8).collect();
                }
            }
        }
        for _ in 0..random.below(50) {
            made.merges.push(random.text(4).into_bytes());
        }
        let mut source = made.source(model);
        source.bos = Some(random.below(600) as u32);
        source.unknown = Some(random.below(600) as u32);
        let t = Tokenizer::new(Vocab::new(source).unwrap()).unwrap();
        for _ in 0..20 {
            let Ok(ids) = t.encode(&random.text(30), ALL) else { continue };
            assert!(ids.iter().all(|&id| (id as usize) < t.vocab_size()));
            let mut stream = t.stream();
            let mut text: String = ids.iter().map(|&id| stream.push(id).to_string()).collect();
            text.push_str(stream.flush());
        }
    }
}
