//! What can go wrong, as values: every error says where it happened and what would help.
//!
//! Text that comes from a file is hostile until shown otherwise: it reaches a message only
//! through [`quoted`], escaped and cut.

use std::fmt;
use std::path::Path;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. The message of each is one line for a person to read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to open, read or map a file.
    #[error("{path}: {source}")]
    Io {
        /// The file, as the caller named it.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file breaks its own format.
    #[error("{path}: {place}: {what}")]
    File {
        /// The file, as the caller named it.
        path: String,
        /// Section, key or tensor, with the byte offset where that helps.
        place: String,
        /// What is wrong there.
        what: String,
    },
    /// A sound input asks for something this build does not have.
    #[error("{0}")]
    Unsupported(String),
    /// A graph that does not type-check.
    #[error("{origin}: {op}: {what}")]
    Graph {
        /// The source line that made the node.
        origin: String,
        /// The op's name.
        op: &'static str,
        /// What does not fit, with both shapes.
        what: String,
    },
    /// A graph file that does not run.
    #[error("{origin}: {what}")]
    Script {
        /// The file and its line.
        origin: String,
        /// What is wrong there.
        what: String,
    },
    /// A plan that cannot be made, or that its verifier refuses.
    #[error("plan: {0}")]
    Plan(String),
    /// More memory is needed than there is; nothing was allocated.
    #[error("needs {} ({what}), {} are available; {hint}", Size(*needs), Size(*has))]
    Memory {
        /// The parts of the need.
        what: String,
        /// Bytes needed.
        needs: u64,
        /// Bytes there are.
        has: u64,
        /// What would make it fit.
        hint: String,
    },
    /// A prompt and its continuation do not fit the context.
    #[error("context of {context} tokens is full ({what}); try --ctx {wants}")]
    Context {
        /// Tokens the session was planned for.
        context: usize,
        /// Which request did not fit.
        what: String,
        /// A context that would fit it.
        wants: usize,
    },
    /// A logit was not finite: the request ends, no token is made of it.
    #[error("step {step}: the logits are not finite (position {position})")]
    NonFinite {
        /// Steps since the session began.
        step: u64,
        /// The position of the row.
        position: usize,
    },
    /// A call of a device's driver that failed.
    #[error("device: {call}: {what}")]
    Device {
        /// The call, and what it was for.
        call: String,
        /// What the driver said.
        what: String,
    },
    /// A tokenizer that the file describes badly, or text that cannot be encoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template that failed or passed a limit.
    #[error("chat template: {0}")]
    Template(String),
    /// Whoever was asked whether to go on said no.
    #[error("stopped, as asked")]
    Stopped,
    /// An argument outside its range.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.display().to_string().escape_debug().to_string(), source }
    }

    /// An [`Error::File`].
    pub fn file(path: &str, place: impl Into<String>, what: impl Into<String>) -> Self {
        Error::File { path: path.to_string(), place: place.into(), what: what.into() }
    }
}

/// Bytes with a unit: `1.5 MiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let (mut value, mut units) = (self.0 as f64 / 1024.0, UNITS.iter());
        let mut unit = units.next().unwrap_or(&"KiB");
        while value >= 1023.95
            && let Some(larger) = units.next()
        {
            value /= 1024.0;
            unit = larger;
        }
        f.pad(&format!("{value:.1} {unit}"))
    }
}

/// Text from a file, fit for a terminal: escaped, in quotes, and cut at 64 characters.
pub fn quoted(text: &str) -> String {
    const LIMIT: usize = 64;
    let mut out = String::from("\"");
    for (i, c) in text.chars().enumerate() {
        if i == LIMIT {
            out.push('…');
            break;
        }
        out.extend(c.escape_debug());
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::{Size, quoted};

    #[test]
    fn sizes_have_units() {
        let texts =
            [0, 1023, 1024, 1 << 20, (1 << 20) - 1, 3 << 29, u64::MAX].map(|n| Size(n).to_string());
        assert_eq!(
            texts,
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "1.5 GiB", "16384.0 PiB"]
        );
    }

    #[test]
    fn file_text_is_escaped_and_cut() {
        assert_eq!(quoted("a\u{1b}[31m\n"), r#""a\u{1b}[31m\n""#);
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), 67);
    }
}
