//! Stop strings in streamed text.
//!
//! Each stop is followed by its own automaton (Knuth, Morris, Pratt): how many of its bytes the
//! text so far ends with. The largest of these numbers is what must be held back, no byte more,
//! and a stop is found at the byte that completes it, however the text was cut into pushes. When
//! two are completed by the same byte the longer one counts.

use crate::error::{Error, Result};

/// The most stops, and the longest.
const MOST: usize = 64;
const LONGEST: usize = 4096;

/// What came of a push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found<'a> {
    /// Text that can be shown: no stop begins in it.
    pub text: &'a str,
    /// Whether a stop was completed. Nothing is shown from then on.
    pub stopped: bool,
}

/// Watches a text for the strings that end it.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    stops: Vec<Stop>,
    /// What `out` still holds back from its end.
    held: usize,
    /// The text of the last push, what was held before it in front.
    out: String,
    stopped: bool,
}

#[derive(Clone, Debug)]
struct Stop {
    text: Vec<u8>,
    /// For each prefix, the longest shorter prefix that it ends with.
    fallback: Vec<usize>,
    matched: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let mut stop = Stop { text: text.into(), fallback: vec![0], matched: 0 };
        for &byte in text.as_bytes().iter().skip(1) {
            stop.advance(byte);
            stop.fallback.push(stop.matched);
        }
        stop.matched = 0;
        stop
    }

    /// Takes one byte of text; says whether it completes the stop.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text.get(self.matched) != Some(&byte) {
            let before = self.fallback.get(self.matched - 1).copied();
            self.matched = before.unwrap_or(0);
        }
        if self.text.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        self.matched == self.text.len()
    }
}

impl Stops {
    /// Watches for any of `stops`, which may be none.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self> {
        let refuse = |what: String| Err(Error::Invalid(what));
        if stops.len() > MOST {
            return refuse(format!("{} stop strings are more than {MOST}", stops.len()));
        }
        let mut made = Vec::with_capacity(stops.len());
        for stop in stops.iter().map(AsRef::as_ref) {
            if stop.is_empty() {
                return refuse("a stop string is empty".into());
            }
            if stop.len() > LONGEST {
                return refuse(format!(
                    "a stop string of {} bytes is longer than {LONGEST}",
                    stop.len()
                ));
            }
            made.push(Stop::new(stop));
        }
        Ok(Stops { stops: made, ..Stops::default() })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Found<'_> {
        if self.stopped {
            return Found { text: "", stopped: true };
        }
        self.out.drain(..self.out.len() - self.held);
        let before = self.out.len();
        self.out.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let mut longest = 0;
            for stop in &mut self.stops {
                if stop.advance(byte) {
                    longest = longest.max(stop.text.len());
                }
            }
            if longest > 0 {
                self.stopped = true;
                self.held = 0;
                self.out.truncate(before + at + 1 - longest);
                return Found { text: &self.out, stopped: true };
            }
        }
        // A stop begins with a whole character, so what is held back does too.
        self.held = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        let shown = self.out.len() - self.held;
        Found { text: self.out.get(..shown).unwrap_or_default(), stopped: false }
    }

    /// The end of the text: what was held back turned out to be no stop.
    pub fn finish(&mut self) -> &str {
        let start = self.out.len() - self.held;
        self.held = 0;
        self.stops.iter_mut().for_each(|s| s.matched = 0);
        if self.stopped {
            return "";
        }
        self.out.get(start..).unwrap_or_default()
    }
}
