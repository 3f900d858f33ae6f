//! What the command line says.

use crate::{End, Failure};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gllm_kernels::graph::DType;
use gllm_kernels::graph::arch::Library;
use gllm_kernels::graph::op::Sampler;
use gllm_kernels::model::{Format, Policy};
use std::path::PathBuf;

/// Runs transformer language models on the CPU or a CUDA device: plans a decode step once, replays it per token.
///
/// Without a command it continues a prompt with the small model that is built in.
#[derive(Parser)]
#[command(name = "gllm", version, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
A model is a GGUF file or a Hugging Face folder: config.json, safetensors and tokenizer.json.
Only gllm quantize takes GGUF files alone; --quantize does the same to a folder while it is loaded.

Examples:
  gllm
  gllm run -p \"The old man looked at the sea and\"
  gllm run model.gguf -p \"The capital of France is\" -n 64
  gllm run folder/ -p \"The capital of France is\"
  gllm run model.gguf --chat -p \"What is a prime number?\" --temp 0.7 --seed 1
  gllm run model.gguf --json < prompt.txt
  gllm bench model.gguf
  gllm profile model.gguf --html step.html
  gllm perplexity model.gguf text.txt
  gllm plan model.gguf --ctx 8192 --kv q8_0
  gllm check newt.star --config config.json
  gllm check newt.star folder/
  gllm quantize model-f16.gguf model-q4.gguf --bits 4";

#[derive(Subcommand)]
pub enum Command {
    /// Continue a prompt.
    Run(Run),
    /// Measure prefill and decode.
    Bench(Bench),
    /// Show where the time of a decode step goes, launch by launch.
    Profile(Profile),
    /// How well a model predicts a text.
    Perplexity(Perplexity),
    /// Write a model file with fewer bits a weight.
    Quantize(Quantize),
    /// Show launches and memory, to the byte, before any weight is read.
    Plan(Plan),
    /// Show what a model file holds and which instruction sets there are.
    Info(Info),
    /// Print the graph of one step as text.
    Graph(Graph),
    /// Check a graph file: build, plan and run it on every backend beside the f32 reference.
    Check(Check),
    /// Run two backends, or two graph files, side by side and name the first node that parts.
    Diff(Diff),
    /// Print a completion script.
    Completions {
        /// The shell it is for.
        shell: Shell,
    },
}

/// Which graph files to use.
#[derive(Args)]
pub struct Files {
    /// A graph file (Starlark) in place of the one that serves the model
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// A folder of graph files that come before the built-in ones [default: $GLLM_GRAPHS]
    #[arg(long, value_name = "DIR")]
    pub graphs: Option<PathBuf>,
}

impl Files {
    pub fn library(&self) -> Library {
        let mut library = Library::embedded();
        let folder = || std::env::var_os("GLLM_GRAPHS").filter(|f| !f.is_empty());
        if let Some(folder) = self.graphs.clone().or_else(|| folder().map(PathBuf::from)) {
            library = library.with_folder(&folder);
        }
        match &self.graph {
            Some(file) => library.with_file(file),
            None => library,
        }
    }
}

/// What to run on.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// A CUDA device if there is one that can be used, else the CPU
    Auto,
    Cpu,
    Cuda,
}

/// Where to run and how much to keep.
#[derive(Args)]
pub struct Machine {
    #[command(flatten)]
    pub files: Files,
    /// What to run on
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub backend: Choice,
    /// Positions of the context [default: what prompt and answer need]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub ctx: Option<usize>,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// Rows of a prefill step
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub chunk: usize,
    /// Instruction set, one that `gllm info` names [default: $GLLM_ISA, or the best there is]
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// How keys and values are kept: 16 bits an element, or 8.5
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = Kv::F16)]
    pub kv: Kv,
    /// Bring the weights to 1, 2, 4 or 8 bits while loading, as `gllm quantize --bits` would
    #[arg(long, value_name = "BITS", value_parser = bits)]
    pub quantize: Option<Format>,
}

/// How caches are kept.
#[derive(Clone, Copy, ValueEnum)]
pub enum Kv {
    /// Halves
    #[value(name = "f16")]
    F16,
    /// Codes of 8 bits with a scale for each 32
    #[value(name = "q8_0")]
    Q8_0,
}

impl Kv {
    pub fn dtype(self) -> DType {
        match self {
            Kv::F16 => DType::F16,
            Kv::Q8_0 => DType::Q8_0,
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  gllm run model.gguf -p \"The capital of France is\" -n 64
  gllm run model.gguf --chat -p \"What is a prime number?\" --temp 0.7 --seed 1
  gllm run folder/ --quantize 4 -p \"Once upon a time\"
  gllm run model.gguf -f story.txt --stop \"THE END\"
  gllm run folder/ --graph newt.star --json --logits 5 -p \"Once upon a time\" -n 32
  echo \"Once upon a time\" | gllm run --json")]
pub struct Run {
    /// A GGUF file or a Hugging Face folder [default: the built-in model]
    pub model: Option<PathBuf>,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    pub n: usize,
    /// Apply the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// The system message of a chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Stop at this text, which is not shown; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Print one JSON object at the end instead of text as it comes
    #[arg(long)]
    pub json: bool,
    /// Print the ids of the answer's tokens instead of its text
    #[arg(long, conflicts_with_all = ["json", "echo"])]
    pub ids: bool,
    /// With --json, the N greatest logits after the prompt, with their tokens' ids
    #[arg(long, value_name = "N", requires = "json", value_parser = positive)]
    pub logits: Option<usize>,
    /// Show the prompt before its continuation
    #[arg(long, conflicts_with = "json")]
    pub echo: bool,
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub machine: Machine,
}

#[derive(Args)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temp: f32,
    /// Keep so many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Keep the fewest likely tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Divides the logits of recent tokens; 1 does nothing
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// How many of the latest tokens are recent
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub repeat_last_n: usize,
    /// Start of the random numbers: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl Sampling {
    pub fn sampler(&self) -> Sampler {
        Sampler {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
Each measurement is repeated, after a round that warms up; what is printed is the median.
pp512 is a prompt of 512 tokens, tg128 128 steps of one token; \"@ d4096\" means that 4096 tokens
were in the context before. Bytes are weights and cache that a step reads, beside what this machine
reads with as many threads, measured in turn.

Examples:
  gllm bench model.gguf --threads 2
  gllm bench model.gguf --depth 0,4096 -p 0 -n 64 -r 3
  gllm bench model.gguf --json")]
pub struct Bench {
    /// A GGUF file or a Hugging Face folder [default: the built-in model]
    pub model: Option<PathBuf>,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens to generate; 0 leaves decode out
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    pub n: usize,
    /// Tokens that are in the context before; several, with commas between, are measured in turn
    #[arg(short, long, value_name = "N", default_value = "0", value_delimiter = ',')]
    pub depth: Vec<usize>,
    /// How often to measure
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub machine: Machine,
}

#[derive(Args)]
#[command(after_help = "\
A step over one row is run again and again behind --context tokens. Its launches are timed, joined to
the lines of the graph file that they come from and to the bytes that they move, beside what memory
delivers at most; layers that are alike are one row. That their sum is the time of the step itself
within 3% is checked, and a warning says if it is not. SPEC/profile.md says how it is measured.

Examples:
  gllm profile model.gguf --html step.html
  gllm profile model.gguf --backend cuda --context 4096
  gllm profile model.gguf --threads 2 --json")]
pub struct Profile {
    /// A GGUF file or a Hugging Face folder [default: the built-in model]
    pub model: Option<PathBuf>,
    /// Tokens that are in the context before the step
    #[arg(long, visible_alias = "depth", value_name = "N", default_value_t = 128)]
    pub context: usize,
    /// Rounds of measurements
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a drawing of the step to an HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub machine: Machine,
}

#[derive(Args)]
#[command(after_help = "\
The text is cut into windows of --window tokens, what is left over is dropped. In each window the
second half is predicted, token by token; where the model wants BOS, it takes the place of a
window's first token. llama-perplexity does the same.

Examples:
  gllm perplexity model.gguf text.txt
  gllm perplexity model.gguf text.txt --window 256 --json")]
pub struct Perplexity {
    /// A GGUF file or a Hugging Face folder
    pub model: PathBuf,
    /// A text file
    pub text: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub window: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub machine: Machine,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  gllm quantize model-f16.gguf model-q4.gguf --bits 4
  gllm quantize model-f16.gguf model-q6.gguf --type Q6_K
  gllm quantize model-q8.gguf model-f32.gguf --type F32

Norms and other tensors of one dimension stay as they are. The head (output.weight or, where it is
tied, the embedding) gets 6 or 8 bits, unless --pure. Rows that are not whole blocks of the type get
the next larger one that fits, and the line of the tensor says so.")]
pub struct Quantize {
    /// The GGUF file to read, in any format: float or quantized
    pub input: PathBuf,
    /// The GGUF file to write
    pub output: PathBuf,
    /// Bits a weight, roughly: 1 is Q1_0, 2 is Q2_K, 4 is Q4_K, 8 is Q8_0
    #[arg(long, value_name = "N", required_unless_present = "type_name", value_parser = bits)]
    pub bits: Option<Format>,
    /// The type by its name, such as Q4_0 or BF16
    #[arg(long = "type", id = "type_name", value_name = "NAME", value_parser = format)]
    #[arg(conflicts_with = "bits")]
    pub format: Option<Format>,
    /// The same type for the head as well
    #[arg(long)]
    pub pure: bool,
    /// Replace the file to write if there is one
    #[arg(long)]
    pub force: bool,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct Plan {
    /// A GGUF file or a Hugging Face folder [default: the built-in model]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub machine: Machine,
}

#[derive(Args)]
pub struct Info {
    /// A GGUF file or a Hugging Face folder [default: the built-in model]
    pub model: Option<PathBuf>,
    /// List all tensors as well
    #[arg(long)]
    pub tensors: bool,
}

#[derive(Args)]
pub struct Graph {
    /// A GGUF file or a Hugging Face folder [default: the built-in model]
    pub model: Option<PathBuf>,
    /// Print DOT instead
    #[arg(long)]
    pub dot: bool,
    #[command(flatten)]
    pub files: Files,
}

#[derive(Args)]
#[command(after_help = "\
With MODEL its own weights are used, of as many of the first layers as have 256 Mi weights. With
--config the graph file's tensors(c), or else that of shapes.star, says what tensors there are, and
they are filled with noise; wide models lose heads and layers, and what was cut is said.

16 tokens are run, 11 of them in one step, on the f32 reference, on the CPU with each instruction
set, and on a CUDA device if there is one. Exit code 1 if any of them is further from the reference
than SPEC/accuracy.md allows.

Examples:
  gllm check newt.star --config config.json
  gllm check newt.star --config config.json --text --tensors
  gllm check newt.star newt-f16.gguf --html newt.html")]
pub struct Check {
    /// The graph file
    pub graph: PathBuf,
    /// A GGUF file or a folder of the hub whose weights to use
    #[arg(required_unless_present = "config")]
    pub model: Option<PathBuf>,
    /// Hyper-parameters without weights: the config.json of a folder of the hub
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub config: Option<PathBuf>,
    /// Print the graph as text as well
    #[arg(long)]
    pub text: bool,
    /// List the tensors it reads as well, and what they are called in a folder of the hub
    #[arg(long)]
    pub tensors: bool,
    /// Write a drawing of graph, launches and memory to an HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Layers to build at most
    #[arg(long, value_name = "N", value_parser = positive)]
    pub layers: Option<usize>,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
}

#[derive(Args)]
#[command(after_help = "\
Two graph files are held against each other on the reference, where they may differ by the order of
f32 sums; two backends on one graph file, or on the one that serves the model. How far values may be
apart is in SPEC/accuracy.md. Weights, tokens and what is cut are those of gllm check.

Every value is kept to be seen, so that no two share memory; launches are those of a plain run, and
the logits of one are compared as well. Exit code 1 if they part.

Examples:
  gllm diff newt.star old.star --config config.json
  gllm diff model.gguf --backends reference,cpu
  gllm diff newt.star model.gguf --backends cpu:scalar,cpu:avx2")]
pub struct Diff {
    /// One or two graph files, which end in .star, and a model
    #[arg(num_args = 1..=3)]
    pub files: Vec<PathBuf>,
    /// Hyper-parameters without weights: the config.json of a folder of the hub
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What runs them: reference, cpu, cpu:ISA or cuda; one or two with a comma between
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub backends: Vec<String>,
    /// Layers to build at most
    #[arg(long, value_name = "N", value_parser = positive)]
    pub layers: Option<usize>,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
}

impl Run {
    /// What `gllm` without a command does.
    pub fn demo() -> Run {
        let words = ["gllm", "run", "--echo", "-n", "120", "--temp", "0.8", "--seed", "4"];
        let words = words.into_iter().chain(["--repeat-penalty", "1.1", "-p", DEMO_PROMPT]);
        match Arguments::parse_from(words).command {
            Some(Command::Run(run)) => run,
            // The words above name that command; clap has exited if it no longer exists.
            _ => std::process::exit(2),
        }
    }
}

/// The prompt of the built-in model.
pub const DEMO_PROMPT: &str = "The old man looked out over the sea, and";

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_string()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}

fn bits(text: &str) -> Result<Format, String> {
    let found = text.parse().ok().and_then(Policy::of_bits);
    found.ok_or_else(|| "there are 1, 2, 4 and 8; quantize --type has all others".to_string())
}

fn format(text: &str) -> Result<Format, String> {
    Format::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = Format::all().iter().map(|f| f.name()).collect();
        format!("the types are {}", names.join(", "))
    })
}

/// Prints a completion script for `shell`.
pub fn completions(shell: Shell) -> Result<End, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "gllm", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(End::Done)
}
