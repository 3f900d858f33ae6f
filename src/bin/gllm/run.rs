//! `gllm run`: a prompt and its continuation.

use crate::args::{DEMO_PROMPT, Run};
use crate::load::{self, AnySession, Chosen, Device, Loaded};
use crate::{End, Failure, signal};
use gllm_kernels::Error;
use gllm_kernels::cpu::read_bandwidth;
use gllm_kernels::model::Model;
use gllm_kernels::plan::Session;
use gllm_kernels::text::{ChatTemplate, Encode, Message, Stops, Tokenizer};
use serde::Serialize;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest prompt that is read.
const LONGEST_PROMPT: u64 = 64 << 20;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    /// What ran it, and why that was taken.
    backend: &'static str,
    why: String,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    /// The greatest logits after the prompt, greatest first, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Vec<(u32, f32)>>,
    text: String,
    /// "end", "length", "stop", "context" or "interrupted".
    stop: &'static str,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    bytes_per_token: u64,
}

/// Runs the command.
pub fn run(args: Run) -> Result<End, Failure> {
    signal::catch();
    let sampler = args.sampling.sampler();
    sampler.check().map_err(|e| Failure::Usage(e.to_string()))?;
    let mut stops = Stops::new(&args.stop).map_err(|e| Failure::Usage(e.to_string()))?;
    let text = prompt(&args)?;
    let model = load::open(args.model.as_deref())?;
    let tokenizer = Tokenizer::of(&model)?;
    let prompt_ids = encode(&args, &model, &tokenizer, &text)?;
    if prompt_ids.is_empty() {
        return Err(Failure::Message("the prompt has no tokens".to_string()));
    }
    let wanted = prompt_ids.len().saturating_add(args.n).saturating_add(1);
    let trained = load::trained_context(&model).unwrap_or(usize::MAX);
    let context = match args.machine.ctx {
        Some(context) => load::check_context(context)?,
        None => wanted.next_multiple_of(64).min(trained.max(1)),
    };
    if prompt_ids.len() > context {
        let what = format!("the prompt has {} tokens", prompt_ids.len());
        return Err(Error::Context { context, what, wants: wanted }.into());
    }
    let Loaded { plans, mut generator, chosen } = {
        let limits = load::one_sequence(&args.machine, context);
        load::load(&model, &args.machine, limits)?
    };
    generator.set_sampler(&sampler)?;

    // Ids take the place of text, which then goes nowhere.
    let mut shown = Shown::new(args.json || args.ids);
    if args.echo {
        shown.add(&text)?;
    }
    let start = Instant::now();
    let finished = generator.prefill(&prompt_ids, || signal::caught().is_none())?;
    let prefill = start.elapsed();
    let logits = match args.logits {
        Some(n) if finished => Some(greatest(generator.session(), n)?),
        _ => None,
    };
    let mut detokenizer = tokenizer.stream();
    let mut ids = Vec::with_capacity(args.n.min(1 << 20));
    let start = Instant::now();
    let mut stop = if finished { "length" } else { "interrupted" };
    let mut failure = None;
    let mut written = Ok(());
    let mut each = |id| {
        if tokenizer.is_end(id) {
            stop = "end";
            return false;
        }
        ids.push(id);
        let found = stops.push(detokenizer.push(id));
        written = shown.add(found.text);
        if found.stopped {
            stop = "stop";
        } else if signal::caught().is_some() {
            stop = "interrupted";
        }
        stop == "length" && written.is_ok()
    };
    let ended = generator.tokens(if finished { args.n } else { 0 }, &mut each);
    written?;
    match ended {
        Ok(()) => {}
        Err(e @ Error::Context { .. }) => (stop, failure) = ("context", Some(e)),
        Err(e) => {
            shown.end()?;
            return Err(e.into());
        }
    }
    let decode = start.elapsed();
    if stop != "stop" {
        let found = stops.push(detokenizer.flush());
        shown.add(found.text)?;
        shown.add(stops.finish())?;
    }
    shown.end()?;
    if args.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(io::stdout(), "{}", ids.join(" "))?;
    }

    // The first token comes from the prefill.
    let steps = ids.len().saturating_sub(1);
    let bytes = plans.bytes_per_token(prompt_ids.len() + ids.len() / 2);
    let rates = Rates {
        prefill: rate(prompt_ids.len(), prefill),
        decode: rate(steps, decode),
        prompt: prompt_ids.len(),
        steps,
        bytes,
        chosen,
    };
    if args.json {
        let report = Report {
            model: model.name().to_string(),
            backend: rates.chosen.name(),
            why: rates.chosen.why,
            prompt_ids,
            ids,
            logits,
            text: shown.text,
            stop,
            prefill_tokens_per_second: rates.prefill,
            decode_tokens_per_second: rates.decode,
            bytes_per_token: bytes,
        };
        let json = serde_json::to_string(&report);
        writeln!(io::stdout(), "{}", json.map_err(|e| Failure::Message(e.to_string()))?)?;
    } else if io::stderr().is_terminal() {
        rates.print();
    }
    match (failure, signal::caught()) {
        (_, Some(signal)) => Ok(End::Interrupted(signal)),
        (Some(error), None) => Err(error.into()),
        (None, None) => Ok(End::Done),
    }
}

/// The `n` greatest logits of the last step, with their tokens; of equals the lower token first.
fn greatest(session: &mut AnySession, n: usize) -> Result<Vec<(u32, f32)>, Failure> {
    let none = || Failure::Message("the graph keeps no logits".to_string());
    let all = session.peek(0).ok_or_else(none)?;
    let mut all: Vec<(u32, f32)> = (0..).zip(all).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(n);
    Ok(all)
}

/// All of a text file.
pub fn read_file(path: &Path) -> Result<String, Failure> {
    let name = path.display().to_string().escape_debug().to_string();
    let mut file = fs::File::open(path).map_err(|e| Failure::Message(format!("{name}: {e}")))?;
    read(&name, &mut file)
}

/// All of a text, which has an end, we hope: beyond a length it is refused.
fn read(name: &str, from: &mut dyn Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let fail = |what: String| Failure::Message(format!("{name}: {what}"));
    from.take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > LONGEST_PROMPT {
        return Err(fail(format!("longer than {LONGEST_PROMPT} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| fail("not UTF-8".to_string()))
}

/// The prompt from where the command line says, or from standard input.
fn prompt(args: &Run) -> Result<String, Failure> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    if let Some(path) = &args.file {
        return read_file(path);
    }
    if !io::stdin().is_terminal() {
        return read("standard input", &mut io::stdin());
    }
    match args.model {
        None => Ok(DEMO_PROMPT.to_string()),
        Some(_) => Err(Failure::Usage(
            "no prompt: give one with -p, a file with -f, or text on standard input".to_string(),
        )),
    }
}

/// The prompt's tokens: as text, or as a conversation in the model's own words.
fn encode(
    args: &Run,
    model: &Model,
    tokenizer: &Tokenizer,
    text: &str,
) -> Result<Vec<u32>, Failure> {
    if !args.chat {
        return Ok(tokenizer.encode(text, Encode { bos: true, special: false })?);
    }
    let vocab = tokenizer.vocab();
    let template = vocab.chat_template().ok_or_else(|| {
        Failure::Message(format!("{}: the model has no chat template", model.name()))
    })?;
    let name = |id: Option<u32>| {
        let text = id.and_then(|id| vocab.text(id)).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    let (bos, eos) = (name(vocab.bos()), name(vocab.eos()));
    let system = args.system.iter().map(|s| Message::new("system", s.as_str()));
    let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
    let chat = ChatTemplate::new(template)?.render(&messages, true, &bos, &eos)?;
    // Many templates write BOS themselves: once is enough.
    let writes_bos = !bos.is_empty() && chat.starts_with(&bos);
    Ok(tokenizer.encode(&chat, Encode { bos: !writes_bos, special: true })?)
}

/// Text that was generated: streamed, or kept for the report.
struct Shown {
    keep: bool,
    text: String,
    line_open: bool,
}

impl Shown {
    fn new(keep: bool) -> Self {
        Shown { keep, text: String::new(), line_open: false }
    }

    fn add(&mut self, text: &str) -> io::Result<()> {
        if self.keep {
            self.text.push_str(text);
        } else if !text.is_empty() {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
            self.line_open = !text.ends_with('\n');
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.line_open) {
            writeln!(io::stdout())?;
        }
        Ok(())
    }
}

struct Rates {
    prefill: f64,
    decode: f64,
    prompt: usize,
    steps: usize,
    bytes: u64,
    chosen: Chosen,
}

impl Rates {
    /// The closing line.
    fn print(&self) {
        let speed = self.bytes as f64 * self.decode;
        let roof = match self.chosen.device {
            Device::Cpu(_) => read_bandwidth(self.chosen.threads()).ok(),
            Device::Cuda(_) => None,
        };
        let share = match roof {
            Some(roof) if self.steps > 0 => {
                format!(", {:.0}% of {:.1} GB/s", 100.0 * speed / roof, roof / 1e9)
            }
            _ => String::new(),
        };
        eprintln!("backend {} ({}): {}", self.chosen.name(), self.chosen.unit(), self.chosen.why);
        eprintln!(
            "prefill {} tokens at {:.1}/s, decode {} tokens at {:.1}/s; {:.1} MB a token, {:.1} GB/s{share}",
            self.prompt,
            self.prefill,
            self.steps,
            self.decode,
            self.bytes as f64 / 1e6,
            speed / 1e9
        );
    }
}

/// Tokens a second; 0 for none.
pub fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64().max(1e-9) }
}
