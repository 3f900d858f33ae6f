//! Text out of a stream of tokens, whole characters only.
//!
//! A token is bytes, and a character may be spread over several. What is complete is given out at
//! once; the beginning of a character waits for its rest. Bytes that no continuation can make
//! UTF-8 become U+FFFD, exactly where decoding all of them at once would put it.

use super::tokenizer::Tokenizer;

/// Decodes ids one by one; made by [`Tokenizer::stream`]. Its buffers are kept, so that a step
/// allocates only when a token is longer than any before.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes that may yet become a character.
    waiting: Vec<u8>,
    out: String,
}

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Detokenizer { tokenizer, waiting: Vec::with_capacity(256), out: String::with_capacity(256) }
    }

    /// The text that this token completes, perhaps none.
    pub fn push(&mut self, id: u32) -> &str {
        self.waiting.extend_from_slice(self.tokenizer.piece(id));
        self.out.clear();
        let mut done = 0;
        while let Some(rest) = self.waiting.get(done..).filter(|r| !r.is_empty()) {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.out.push_str(text);
                    done = self.waiting.len();
                }
                Err(e) => {
                    let valid = rest.get(..e.valid_up_to()).unwrap_or_default();
                    self.out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    done += e.valid_up_to();
                    let Some(wrong) = e.error_len() else { break };
                    self.out.push(char::REPLACEMENT_CHARACTER);
                    done += wrong;
                }
            }
        }
        self.waiting.drain(..done);
        &self.out
    }

    /// The end of the text: a character that was never completed becomes U+FFFD.
    pub fn flush(&mut self) -> &str {
        self.out.clear();
        if !self.waiting.is_empty() {
            self.waiting.clear();
            self.out.push(char::REPLACEMENT_CHARACTER);
        }
        &self.out
    }
}
