//! The generator's own rules.

use crate::common::{CONTEXT, PROMPT, generator, session};
use gllm_kernels::Error;
use gllm_kernels::graph::op::Sampler;
use gllm_kernels::plan::{Session, StepInput};
use gllm_kernels::replay::Generator;

#[test]
fn a_full_context_is_an_error_that_says_what_would_do() {
    let mut generator = generator(1, 16);
    let long = vec![5; CONTEXT];
    let error = generator.prefill(&long, || true).unwrap_err();
    assert!(matches!(error, Error::Context { context: CONTEXT, wants: 1111, .. }), "{error}");
    // Nothing was run, so the sequence goes on.
    assert_eq!(generator.position(), PROMPT.len());
    let mut tokens = 0;
    let error = loop {
        match generator.next_token() {
            Ok(_) => tokens += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Context { .. }), "{error}");
    // The last token needs no place in the cache.
    assert_eq!(tokens, CONTEXT - PROMPT.len() + 1);
}

#[test]
fn many_tokens_are_those_of_one_after_the_other() {
    let drawing = || {
        let mut generator = generator(1, 16);
        generator.set_sampler(&Sampler { seed: 3, ..Sampler::default() }).unwrap();
        generator
    };
    let (mut one, mut many) = (drawing(), drawing());
    let want: Vec<u32> = (0..24).map(|_| one.next_token().unwrap()).collect();
    let mut got = Vec::new();
    many.tokens(0, |_| panic!("none was wanted")).unwrap();
    for stop in [1, 6, 10] {
        many.tokens(100, |token| {
            got.push(token);
            got.len() < stop
        })
        .unwrap();
        assert_eq!(got.len(), stop);
    }
    got.push(many.next_token().unwrap());
    let whole = |token| {
        got.push(token);
        true
    };
    many.tokens(13, whole).unwrap();
    assert_eq!((got, many.position()), (want, one.position()));
    // What fits comes before the error.
    let mut left = 0;
    let error = many.tokens(usize::MAX, |_| {
        left += 1;
        true
    });
    assert!(matches!(error, Err(Error::Context { .. })));
    assert_eq!((left, many.position()), (CONTEXT - one.position(), CONTEXT));
}

#[test]
fn a_prompt_can_be_interrupted_between_chunks() {
    let mut generator = Generator::new(session(1, 4, 1));
    let mut chunks = 0;
    let finished = generator.prefill(&PROMPT, || {
        chunks += 1;
        chunks < 3
    });
    assert!(!finished.unwrap());
    assert_eq!(generator.position(), 8);
    assert!(generator.next_token().is_err(), "nothing was sampled");
}

#[test]
fn an_empty_prompt_is_refused() {
    let mut generator = Generator::new(session(1, 4, 1));
    assert!(generator.prefill(&[], || true).is_err());
    assert!(generator.next_token().is_err());
}

#[test]
fn rows_outside_the_limits_are_refused() {
    let mut session = session(1, 4, 2);
    let good = StepInput { tokens: &[1, 2], positions: &[0, 1], slots: &[0, 1], outs: &[1] };
    session.run(&good).unwrap();
    for bad in [
        StepInput { tokens: &[], positions: &[], slots: &[], outs: &[] },
        StepInput { tokens: &[1; 5], positions: &[0; 5], slots: &[0; 5], outs: &[] },
        StepInput { tokens: &[4096, 2], ..good },
        StepInput { positions: &[0, CONTEXT as u32], ..good },
        StepInput { positions: &[0], ..good },
        StepInput { slots: &[0, 2], ..good },
        StepInput { slots: &[0], ..good },
        StepInput { outs: &[2], ..good },
        StepInput { outs: &[1, 0], ..good },
        StepInput { outs: &[1, 1], ..good },
    ] {
        assert!(session.run(&bad).is_err(), "{bad:?}");
    }
    session.run(&good).unwrap();
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let draw = |seed| {
        let mut generator = generator(1, 16);
        // The token after the prompt was picked greedily already.
        generator.set_sampler(&Sampler { seed, ..Sampler::default() }).unwrap();
        (0..40).map(|_| generator.next_token().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_rewound_sequence_goes_on_as_if_the_rest_had_never_been() {
    let mut generator = generator(1, 4);
    let want: Vec<u32> = (0..6).map(|_| generator.next_token().unwrap()).collect();
    generator.rewind(5).unwrap();
    assert_eq!(generator.position(), 5);
    assert!(generator.next_token().is_err(), "a prompt comes first");
    assert!(generator.rewind(6).is_err(), "there are no six tokens");
    generator.prefill(&[1, 2, 3], || true).unwrap();
    generator.rewind(5).unwrap();
    generator.prefill(&PROMPT[5..], || true).unwrap();
    let again: Vec<u32> = (0..6).map(|_| generator.next_token().unwrap()).collect();
    assert_eq!(again, want);
}
