//! Chat templates: small programs from a model file, run within bounds.
//!
//! A template is Jinja as Hugging Face's `transformers` sets it up (blocks trimmed, Python's
//! string and dict methods, `tojson` as `json.dumps` writes it), run by minijinja without loader,
//! includes or any other way out. What bounds it:
//!
//! - the source is at most 256 KiB, messages 4 MiB, and brackets and blocks nest 100 deep;
//! - fuel: each instruction, each byte and each item that the engine makes or visits costs some,
//!   before a large value is made, so no string or list can outgrow what is left. Our own
//!   methods and `tojson` pay beforehand too;
//! - the output is at most four times the messages and 1 MiB;
//! - it runs on its own thread. An expression of a hundred thousand terms, or a list that a loop
//!   wrapped as often, is a tree as deep that is walked and dropped by recursion: no limit of the
//!   engine's counts these, so the thread's stack is sized for the deepest that source and fuel
//!   can make. Its pages are touched only by who needs them;
//! - the caller waits five seconds and no longer. The engine compares lists that share their
//!   branches leaf by leaf, of which thirty levels have a thousand million, and charges for the
//!   first level alone; nothing can stop a thread that does so. It is left behind, and the
//!   template refuses to run again, so one template holds one core at most.

mod methods;
mod scan;
mod time;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State};

use crate::error::{Error, Result};

/// Bytes of a template's source.
const LONGEST_SOURCE: usize = 256 << 10;
/// Bytes of all messages.
const LONGEST_INPUT: usize = 4 << 20;
/// Fuel without any message, for each message, and for how many bytes of them one more.
const FUEL: u64 = 200_000;
const FUEL_A_MESSAGE: u64 = 200;
const BYTES_A_FUEL: u64 = 4;
/// Two bytes of source can nest an expression once, four units of fuel a list; 512 MiB are more
/// than a kilobyte for each.
const STACK: usize = 512 << 20;
const DEADLINE: Duration = Duration::from_secs(5);

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who speaks: "system", "user", "assistant" or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A chat template that parses.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// Whether a run of it has passed the deadline; its clones share the answer.
    late: Arc<AtomicBool>,
}

impl ChatTemplate {
    /// Checks the source of a template.
    pub fn new(source: &str) -> Result<Self> {
        if source.len() > LONGEST_SOURCE {
            return Err(Error::Template(format!(
                "the source has {} bytes, more than {LONGEST_SOURCE}",
                source.len()
            )));
        }
        scan::check(source)?;
        let made = ChatTemplate { source: source.to_string(), late: Arc::default() };
        let source = made.source.clone();
        made.bounded(move || environment().template_from_str(&source).map(drop))?;
        Ok(made)
    }

    /// Writes a conversation as the model reads it. With `add_generation_prompt` it ends where
    /// the model is to speak.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String> {
        let sizes = messages.iter().map(|m| m.role.len() + m.content.len());
        let input: usize = sizes.sum::<usize>() + bos.len() + eos.len();
        if input > LONGEST_INPUT {
            return Err(Error::Template(format!(
                "the messages have {input} bytes, more than {LONGEST_INPUT}"
            )));
        }
        let fuel = FUEL + messages.len() as u64 * FUEL_A_MESSAGE + input as u64 / BYTES_A_FUEL;
        let (messages, source) = (messages.to_vec(), self.source.clone());
        let (bos, eos) = (bos.to_string(), eos.to_string());
        self.bounded(move || {
            let mut env = environment();
            env.set_fuel(Some(fuel));
            let turn = |m: &Message| -> Value {
                Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())])
            };
            let turns: Vec<Value> = messages.iter().map(turn).collect();
            let context = Value::from_pairs([
                ("messages", Value::from(turns)),
                ("add_generation_prompt", Value::from(add_generation_prompt)),
                ("bos_token", Value::from(bos)),
                ("eos_token", Value::from(eos)),
                ("tools", Value::from(())),
                ("documents", Value::from(())),
            ]);
            let mut out = Limited { bytes: Vec::new(), left: 4 * input + (1 << 20) };
            env.template_from_str(&source)?.render_captured_to(context, &mut out)?;
            String::from_utf8(out.bytes)
                .map_err(|_| minijinja::Error::new(ErrorKind::WriteFailure, "not UTF-8"))
        })
    }

    /// Runs `work` on a thread with a stack for it, and waits no longer than the deadline.
    fn bounded<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T> {
        if self.late.load(Ordering::Relaxed) {
            return Err(Error::Template("it has run too long before".into()));
        }
        let (send, receive) = mpsc::sync_channel(1);
        let body = move || {
            let result = work().map_err(|e| Error::Template(told(&e)));
            // Nobody listens any more once the deadline has passed.
            _ = send.send(result);
        };
        std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK)
            .spawn(body)
            .map_err(|e| Error::Template(format!("no thread for it: {e}")))?;
        match receive.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.late.store(true, Ordering::Relaxed);
                Err(Error::Template(format!("it ran for more than {} s", DEADLINE.as_secs())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(Error::Template("the template engine failed".into()))
            }
        }
    }
}

/// The engine with what chat templates expect to find, and nothing else.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    if let Ok(syntax) = syntax.trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_recursion_limit(200);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| match value.kind() {
        // As Python prints them.
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(out.write_str("None")?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    env.add_filter("tojson", methods::tojson);
    env.add_function("raise_exception", |what: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
    });
    env.add_function("strftime_now", |state: &State, format: String, _rest: Rest<Value>| {
        state.consume_fuel(1 + format.len() as u64)?;
        Ok::<_, minijinja::Error>(time::format(&format, std::time::SystemTime::now()))
    });
    env
}

/// What went wrong, in one line fit for a terminal: a template chooses its own words.
fn told(e: &minijinja::Error) -> String {
    const LONGEST: usize = 200;
    let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
    let mut line: String = what.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if what.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    match e.line() {
        Some(number) => format!("line {number}: {line}"),
        None => line,
    }
}

/// An output that takes so many bytes and no more.
struct Limited {
    bytes: Vec<u8>,
    left: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len()) else {
            return Err(io::Error::other("the output is too long"));
        };
        self.left = left;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
