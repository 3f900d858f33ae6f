//! Streamed text is whole UTF-8 at every step and, put together, what decoding at once gives.

use gllm_kernels::text::Encode;

use crate::common::{Random, bpe, spm};

#[test]
fn characters_wait_until_they_are_whole() {
    let t = bpe().tokenizer("gpt2");
    let ids = t.encode("é👩!", Encode::default()).unwrap();
    let mut stream = t.stream();
    let shown: Vec<String> = ids.iter().map(|&id| stream.push(id).to_string()).collect();
    assert_eq!(shown, ["", "é", "", "", "", "👩", "!"]);
    assert_eq!(stream.flush(), "");
    assert_eq!(stream.push(u32::from(0xf0u8)), "");
    assert_eq!(stream.push(u32::from(b'a')), "\u{fffd}a");
    assert_eq!(stream.push(u32::from(0xe2u8)), "");
    assert_eq!(stream.flush(), "\u{fffd}");
    assert_eq!(stream.flush(), "");
}

/// Random bytes, most of them not UTF-8, split into tokens at every place.
#[test]
fn any_bytes_stream_as_they_decode() {
    let t = bpe().tokenizer("gpt2");
    let lead = [0x41, 0x80, 0xbf, 0xc0, 0xc3, 0xe2, 0xed, 0xa0, 0xf0, 0x9f, 0xf4, 0x90, 0xff];
    let mut random = Random::new(11);
    for _ in 0..5000 {
        let ids: Vec<u32> = (0..random.below(12)).map(|_| random.one(&lead)).collect();
        let mut stream = t.stream();
        let mut text = String::new();
        for &id in &ids {
            text.push_str(stream.push(id));
        }
        text.push_str(stream.flush());
        assert_eq!(text, t.decode(&ids), "{ids:x?}");
    }
}

/// A continuation keeps the space that a text's beginning loses.
#[test]
fn a_stream_continues() {
    let t = spm().tokenizer("llama");
    let ids = t.encode("hello", Encode::default()).unwrap();
    assert_eq!((t.decode(&ids).as_str(), t.stream().push(ids[0])), ("hello", " hello"));
}
