//! Small vocabularies, and a random generator with no dependency and a fixed seed.

use gllm_kernels::text::{Source, Tokenizer, Vocab};

/// Numbers that are random enough, the same in each run (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) as usize) % n
    }

    pub fn one<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Text of every kind: letters of the small vocabularies, spaces, and any scalar value.
    pub fn text(&mut self, longest: usize) -> String {
        let length = self.below(longest + 1);
        (0..length)
            .map(|_| match self.below(8) {
                0..4 => self.one(&['a', 'b', 'h', 'e', 'l', 'o', '<', '|', '>']),
                4 => self.one(&[' ', ' ', '\n', '\r', '\t', '\u{a0}', '\u{2581}']),
                5 => self.one(&['é', '日', '👩', '\u{200d}', '\u{301}', '1', '２', '\'']),
                _ => loop {
                    if let Some(c) = char::from_u32(self.below(0x110000) as u32) {
                        break c;
                    }
                },
            })
            .collect()
    }
}

/// What GPT-2's alphabet writes for each byte.
pub fn byte_chars() -> Vec<char> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|b| {
            let c = char::from(b);
            if c.is_ascii_graphic() || (b >= 0xa1 && b != 0xad) {
                return c;
            }
            next += 1;
            char::from_u32(next - 1).unwrap()
        })
        .collect()
}

/// A vocabulary in the making, owned.
#[derive(Clone, Default)]
pub struct Made {
    pub tokens: Vec<Vec<u8>>,
    pub scores: Vec<f32>,
    pub types: Vec<i32>,
    pub merges: Vec<Vec<u8>>,
}

impl Made {
    pub fn add(&mut self, text: impl AsRef<[u8]>, score: f32, kind: i32) -> u32 {
        self.tokens.push(text.as_ref().to_vec());
        self.scores.push(score);
        self.types.push(kind);
        self.tokens.len() as u32 - 1
    }

    pub fn source(&self, model: &'static str) -> Source<'_> {
        Source {
            model,
            pre: (model == "gpt2").then_some("gpt-2"),
            tokens: self.tokens.iter().map(Vec::as_slice).collect(),
            scores: Some((&self.scores).into()),
            token_type: Some((&self.types).into()),
            merges: self.merges.iter().map(Vec::as_slice).collect(),
            ..Source::default()
        }
    }

    pub fn tokenizer(&self, model: &'static str) -> Tokenizer {
        Tokenizer::new(Vocab::new(self.source(model)).unwrap()).unwrap()
    }
}

/// 256 bytes, a few merges, a control token and a user-defined one.
pub fn bpe() -> Made {
    let mut made = Made::default();
    for c in byte_chars() {
        made.add(c.to_string(), 0.0, 1);
    }
    for merge in ["h e", "l l", "he ll", "hell o", "Ġ hello", "a a", "aa aa", "b a"] {
        made.add(merge.replace(' ', ""), 0.0, 1);
        made.merges.push(merge.into());
    }
    made.add("<|im_end|>", 0.0, 3);
    made.add("<tool>", 0.0, 4);
    made
}

/// Pieces with scores, 256 bytes to fall back on, control tokens and a user-defined one.
pub fn spm() -> Made {
    let mut made = Made::default();
    made.add("<unk>", 0.0, 2);
    made.add("<s>", 0.0, 3);
    made.add("</s>", 0.0, 3);
    for b in 0..256 {
        made.add(format!("<0x{b:02X}>"), 0.0, 6);
    }
    for (i, piece) in [
        "he", "ll", "hell", "hello", "▁hello", "▁", "h", "e", "l", "o", "a", "aa", "aaaa", "<", ">",
    ]
    .iter()
    .enumerate()
    {
        made.add(piece, -(i as f32), 1);
    }
    made.add("  ", -1000.0, 4);
    made
}
