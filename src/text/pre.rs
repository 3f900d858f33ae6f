//! Pre-tokenizers: how a BPE vocabulary cuts text into words before it merges within them.
//!
//! A file names its pre-tokenizer; the names are a table here, and one that is not in it is an
//! error, since guessing would change the ids of every prompt. A pre-tokenizer is a list of
//! stages, each cutting the pieces of the one before; what a stage's pattern passes over is a
//! piece too.
//!
//! The published patterns need a look ahead for one thing only: `\s+(?!\S)|\s+`, spaces before a
//! word, of which the last goes with the word. A backtracking engine pays for that with a step
//! limit or a stack that a megabyte of spaces fills. Here it is a second pattern, a plain `\s+`
//! tried after the first, and its match gives its last character back when more text follows; so
//! a linear engine serves, without look-around and without a limit.

use std::borrow::Cow;

use regex_automata::meta::{Config, Regex};
use regex_automata::{Anchored, Input, PatternID};

use crate::error::{Error, Result, quoted};

/// A pre-tokenizer of the table.
#[derive(Debug)]
pub(super) struct Pre {
    names: &'static [&'static str],
    stages: &'static [Stage],
    /// Whether a word that is a token is taken as it is, before any merge.
    pub whole_words: bool,
    /// Whether such models want BOS where their file does not say.
    pub add_bos: bool,
}

impl Pre {
    /// Its stages, in order.
    pub fn stages(&self) -> Vec<Stage> {
        self.stages.to_vec()
    }
}

/// A pattern, and what becomes of its matches.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub pattern: Cow<'static, str>,
    /// Whether runs of spaces are cut as the module says.
    pub spaces: bool,
    pub keep: Keep,
    /// Whether the matches are what lies between those of the pattern.
    pub invert: bool,
}

/// What becomes of matches and of what lies between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// Each is a piece.
    Isolated,
    /// Matches are left out.
    Removed,
    /// A match belongs to what is before it, if that is none.
    WithPrevious,
    /// A match belongs to what is after it, if that is none.
    WithNext,
    /// Neighbouring matches are one piece.
    Contiguous,
}

const fn stage(pattern: &'static str, spaces: bool) -> Stage {
    Stage { pattern: Cow::Borrowed(pattern), spaces, keep: Keep::Isolated, invert: false }
}

const fn plain(pattern: &'static str) -> Stage {
    stage(pattern, false)
}

const fn spaced(pattern: &'static str) -> Stage {
    stage(pattern, true)
}

pub(super) const GPT2: Stage =
    spaced(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const DIGIT: Stage = plain(r"\p{N}");
const THREE_ASCII: Stage = plain("[0-9][0-9][0-9]");

/// A pattern of the family that began with GPT-4's: contractions in any case, words with one
/// sign before them, digits in groups, signs with the newlines after them, newlines.
macro_rules! words {
    ($digits:literal, $signs:literal) => {
        concat!(
            r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]",
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?",
            $signs,
            r"|\s*[\r\n]+"
        )
    };
}

/// The same with words cut where small letters end and capitals begin.
macro_rules! cased {
    ($after:literal, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $after,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $after,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
        )
    };
}

const TABLE: &[Pre] = &[
    Pre {
        names: &["default"],
        stages: &[plain(r"[\p{P}$+<=>^~|]+"), GPT2, plain(r"\p{N}+"), THREE_ASCII],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
        stages: &[GPT2],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        stages: &[DIGIT, GPT2],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["falcon"],
        stages: &[plain(r"[\p{P}$+<=>^~|`]+"), GPT2, THREE_ASCII],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        stages: &[spaced(words!(r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]+[\r\n]*"))],
        whole_words: true,
        add_bos: true,
    },
    Pre {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        stages: &[spaced(words!(r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]+[\r\n]*"))],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"],
        stages: &[spaced(words!(r"\p{N}", r"[^\s\p{L}\p{N}]+[\r\n]*"))],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["seed-coder"],
        stages: &[spaced(words!(r"\p{N}", r"[^\s\p{L}\p{N}\r\n]+"))],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["tekken"],
        stages: &[spaced(cased!("", r"\p{N}"))],
        whole_words: true,
        add_bos: true,
    },
    Pre {
        names: &["gpt-4o", "llama4"],
        stages: &[spaced(cased!(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
            r"\p{N}{1,3}"
        ))],
        whole_words: false,
        add_bos: false,
    },
    Pre {
        names: &["deepseek-v3"],
        stages: &[
            plain(r"\p{N}{1,3}"),
            plain("[一-龥\u{3040}-ゟ゠-ヿ]+"),
            spaced(concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
            )),
        ],
        whole_words: false,
        add_bos: false,
    },
];

/// The pre-tokenizer of a name; a file without one means the default.
pub(super) fn find(name: Option<&str>) -> Result<&'static Pre> {
    let name = name.unwrap_or("default");
    TABLE.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = TABLE.iter().flat_map(|p| p.names).copied().collect();
        Error::Unsupported(format!(
            "pre-tokenizer {} is not known; known are {}",
            quoted(name),
            known.join(", ")
        ))
    })
}

/// The stages of a pre-tokenizer, compiled.
#[derive(Debug)]
pub(super) struct Splitter {
    stages: Vec<Cutter>,
}

#[derive(Debug)]
struct Cutter {
    regex: Regex,
    keep: Keep,
    invert: bool,
}

/// Compiles patterns; the size of what comes of one is bounded, for it may be a file's.
pub(super) fn compile(patterns: &[&str]) -> Result<Regex> {
    Regex::builder()
        .configure(Config::new().nfa_size_limit(Some(4 << 20)))
        .build_many(patterns)
        .map_err(|e| Error::Tokenizer(reason(&e)))
}

/// What the engine says of a pattern and why, in a line.
fn reason(e: &dyn std::error::Error) -> String {
    let mut last = e;
    while let Some(source) = last.source() {
        last = source;
    }
    // The message of a syntax error draws the pattern over several lines; its last names the fault.
    let text = last.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string()
}

impl Splitter {
    pub fn new(stages: &[Stage]) -> Result<Self> {
        let compile = |stage: &Stage| {
            let both: &[&str] = &[&stage.pattern, r"\s+"];
            let patterns = if stage.spaces { both } else { both.split_at(1).0 };
            Ok(Cutter { regex: compile(patterns)?, keep: stage.keep, invert: stage.invert })
        };
        Ok(Splitter { stages: stages.iter().map(compile).collect::<Result<_>>()? })
    }

    /// Whether there is nothing to split by.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Calls `word` with each word of `text` in order; together they are the text, but for what a
    /// stage leaves out.
    pub fn split(&self, text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        cut(&self.stages, text, word)
    }
}

fn cut(stages: &[Cutter], text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let Some((stage, rest)) = stages.split_first() else {
        return if text.is_empty() { Ok(()) } else { word(text) };
    };
    let piece = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    if stage.keep == Keep::Isolated {
        return stage.matches(text, &mut |start, end, _| cut(rest, piece(start, end), word));
    }
    let mut all: Vec<(usize, usize, bool)> = Vec::new();
    stage.matches(text, &mut |start, end, matched| {
        let matched = matched != stage.invert;
        match (stage.keep, all.last_mut()) {
            (Keep::Removed, _) if matched => {}
            (Keep::Contiguous, Some(last)) if last.2 == matched => last.1 = end,
            // A match that was joined counts as one: the next match stays alone.
            (Keep::WithPrevious, Some(last)) if matched && !last.2 => {
                (last.1, last.2) = (end, true)
            }
            (Keep::WithNext, Some(last)) if last.2 && !matched => (last.1, last.2) = (end, false),
            _ => all.push((start, end, matched)),
        }
        Ok(())
    })?;
    all.into_iter().try_for_each(|(start, end, _)| cut(rest, piece(start, end), word))
}

impl Cutter {
    /// Calls `piece` with start and end of each match and of what lies between, in order, and
    /// whether it is a match. None is empty.
    fn matches(
        &self,
        text: &str,
        piece: &mut dyn FnMut(usize, usize, bool) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < text.len() {
            // Most words follow each other without a gap, and an anchored search need not look for
            // where its match began.
            let here = Input::new(text).range(at..);
            let found = self
                .regex
                .search(&here.clone().anchored(Anchored::Yes))
                .or_else(|| self.regex.search(&here.anchored(Anchored::No)));
            let Some(m) = found else { break };
            let (start, mut end) = (m.start(), m.end());
            if m.pattern() != PatternID::ZERO && end < text.len() {
                let run = text.get(start..end).unwrap_or_default();
                let last = run.chars().next_back().map_or(0, char::len_utf8);
                if last < run.len() {
                    end -= last;
                }
            }
            if end <= at {
                // No pattern of the table matches nothing; were one to, this is the way out.
                break;
            }
            if at < start {
                piece(at, start, false)?;
            }
            piece(start, end, true)?;
            at = end;
        }
        if at < text.len() { piece(at, text.len(), false) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let splitter = Splitter::new(&find(Some(pre)).unwrap().stages()).unwrap();
        let mut out = Vec::new();
        let mut keep = |w: &str| {
            out.push(w.to_string());
            Ok(())
        };
        splitter.split(text, &mut keep).unwrap();
        assert_eq!(out.concat(), text);
        out
    }

    #[test]
    fn every_row_compiles_and_loses_nothing() {
        for name in TABLE.iter().flat_map(|p| p.names) {
            words(name, "It's 12345 o'clock!!\r\n\r\n  — naïve  \t x\u{a0} 日本語1２३½ \n\n y ");
        }
    }

    #[test]
    fn the_last_space_goes_with_the_word() {
        assert_eq!(words("gpt-2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(words("gpt-2", "a\n\nb\nc "), ["a", "\n", "\n", "b", "\n", "c", " "]);
        assert_eq!(words("llama3", "a  \n  b"), ["a", "  \n", " ", " b"]);
        assert_eq!(words("qwen2", "x12\t\ty"), ["x", "1", "2", "\t", "\ty"]);
    }

    #[test]
    fn digits_are_cut_as_named() {
        assert_eq!(words("smollm", "no  12"), ["no", "  ", "1", "2"]);
        assert_eq!(words("llama3", "12345"), ["123", "45"]);
        assert_eq!(words("default", "12345!"), ["123", "45", "!"]);
        assert_eq!(words("gpt-2", "12345"), ["12345"]);
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let e = find(Some("nonesuch\u{1b}")).unwrap_err().to_string();
        assert!(e.contains(r#""nonesuch\u{1b}""#) && e.contains("smollm"), "{e}");
    }
}
