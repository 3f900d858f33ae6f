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

use regex_automata::meta::Regex;
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

#[derive(Debug)]
struct Stage {
    pattern: &'static str,
    /// Whether runs of spaces are cut as the module says.
    spaces: bool,
}

const fn plain(pattern: &'static str) -> Stage {
    Stage { pattern, spaces: false }
}

const fn spaced(pattern: &'static str) -> Stage {
    Stage { pattern, spaces: true }
}

const GPT2: Stage = spaced(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
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
    stages: Vec<Regex>,
}

impl Splitter {
    pub fn new(pre: &Pre) -> Result<Self> {
        let compile = |stage: &Stage| {
            let patterns: &[&str] =
                if stage.spaces { &[stage.pattern, r"\s+"] } else { &[stage.pattern] };
            Regex::new_many(patterns).map_err(|e| Error::Tokenizer(e.to_string()))
        };
        Ok(Splitter { stages: pre.stages.iter().map(compile).collect::<Result<_>>()? })
    }

    /// Calls `word` with each word of `text` in order; together they are the text.
    pub fn split(&self, text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        cut(&self.stages, text, word)
    }
}

fn cut(stages: &[Regex], text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let Some((stage, rest)) = stages.split_first() else {
        return if text.is_empty() { Ok(()) } else { word(text) };
    };
    let mut at = 0;
    while at < text.len() {
        // Most words follow each other without a gap, and an anchored search need not look for
        // where its match began.
        let here = Input::new(text).range(at..);
        let found = stage
            .search(&here.clone().anchored(Anchored::Yes))
            .or_else(|| stage.search(&here.anchored(Anchored::No)));
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
        cut(rest, text.get(at..start).unwrap_or_default(), word)?;
        cut(rest, text.get(start..end).unwrap_or_default(), word)?;
        at = end;
    }
    cut(rest, text.get(at..).unwrap_or_default(), word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let splitter = Splitter::new(find(Some(pre)).unwrap()).unwrap();
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
