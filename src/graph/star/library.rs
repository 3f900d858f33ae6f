//! Where graph files come from, and which of them serves a model.

use super::eval::{Args, Script};
use super::lex::MAX_SOURCE;
use super::value::Value;
use crate::error::{Error, Result, quoted};
use crate::graph::arch::Config;
use crate::graph::{Builder, Lead, NodeId};
use crate::model::read_regular;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name and text of a file of `graphs/`.
macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../graphs/", $name)))),*]
    };
}

/// The files that come with the crate: `graphs/`.
const EMBEDDED: &[(&str, &str)] = embedded![
    "bitnet.star",
    "cohere.star",
    "falcon.star",
    "gemma.star",
    "gpt-oss.star",
    "gpt2.star",
    "gptneox.star",
    "hf.star",
    "llama.star",
    "mixtral.star",
    "olmo2.star",
    "phi2.star",
    "phi3.star",
    "shapes.star",
    "stablelm.star",
    "starcoder2.star",
];

/// The embedded file that others load `name` from: a file that serves no model itself.
pub(super) fn helper(name: &str) -> Option<&'static str> {
    let defines = |source: &str| {
        let mut lines = source.lines();
        lines.any(|line| {
            let after = line.strip_prefix("def ").unwrap_or(line).strip_prefix(name);
            after.is_some_and(|rest| rest.starts_with('(') || rest.starts_with(" = "))
        })
    };
    let mut helpers = EMBEDDED.iter().filter(|(_, source)| !source.contains("\nSERVES = "));
    helpers.find(|(_, source)| defines(source)).map(|(file, _)| *file)
}

/// Files that a file may load, one through the other.
const MAX_FILES: usize = 16;

/// Names of tensors, and their dimensions, slowest first.
pub type Shapes = Vec<(String, Vec<usize>)>;

/// Graph files: those that come with the crate, and in front of them a user's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Library {
    file: Option<PathBuf>,
    folder: Option<PathBuf>,
}

/// A graph file that has run as far as its last line: its functions are there to be called.
pub struct Loaded<'a, 'w> {
    script: Script<'a, 'w>,
    module: usize,
    file: String,
}

impl Library {
    /// The files that come with the crate.
    pub fn embedded() -> Self {
        Self::default()
    }

    /// This file for every model. What it loads is looked for beside it first.
    #[must_use]
    pub fn with_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_path_buf());
        self
    }

    /// The files of this folder come before those of the crate.
    #[must_use]
    pub fn with_folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_path_buf());
        self
    }

    /// The file that serves `name`, a model's architecture.
    ///
    /// # Errors
    /// When there is none, or a file does not run.
    pub fn serving<'a, 'w>(&self, name: &str) -> Result<Loaded<'a, 'w>> {
        if let Some(path) = &self.file {
            let shown = path.file_name().map_or(Cow::Borrowed("graph"), |n| n.to_string_lossy());
            let source = read_text(path)?;
            let loaded = self.load(&shown.escape_debug().to_string(), &source)?;
            // It serves whatever it is given, but what it says must be sound.
            loaded.texts("SERVES")?;
            return Ok(loaded);
        }
        let (mut known, mut broken) = (Vec::new(), None);
        for file in self.files(name)? {
            let loaded = self.source(&file).and_then(|source| self.load(&file, &source));
            match loaded {
                Ok(loaded) => {
                    let serves = loaded.texts("SERVES")?;
                    if serves.iter().any(|s| s == name) {
                        return Ok(loaded);
                    }
                    known.extend(serves);
                }
                // It may serve another model. If none serves this one, it may have meant to.
                Err(e) => broken = broken.or(Some(e)),
            }
        }
        let what = format!(
            "architecture {} is unknown, --graph FILE brings one; there are {}",
            quoted(name),
            known.join(", ")
        );
        Err(broken.unwrap_or(Error::Unsupported(what)))
    }

    /// The file of that bare name.
    ///
    /// # Errors
    /// When there is none, or it does not run.
    pub fn named<'a, 'w>(&self, name: &str) -> Result<Loaded<'a, 'w>> {
        self.load(name, &self.source(name)?)
    }

    /// Names of all files, the user's first; of two of one name only that. Of the crate's own those
    /// come first that have `serves` in them: to run the others takes longer than to look.
    fn files(&self, serves: &str) -> Result<Vec<String>> {
        let mut files = Vec::new();
        if let Some(folder) = &self.folder {
            for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
                let name = entry.map_err(|e| Error::io(folder, e))?.file_name();
                let name = name.to_str().filter(|n| is_file_name(n));
                files.extend(name.map(str::to_string));
            }
            files.sort_unstable();
        }
        let serves = format!("\"{serves}\"");
        let (likely, others): (Vec<_>, Vec<_>) =
            EMBEDDED.iter().partition(|(_, source)| source.contains(&serves));
        for (name, _) in likely.into_iter().chain(others) {
            if !files.iter().any(|f| f == name) {
                files.push((*name).to_string());
            }
        }
        Ok(files)
    }

    /// The text of a file by its bare name.
    fn source(&self, name: &str) -> Result<Cow<'static, str>> {
        if !is_file_name(name) {
            let what = format!("{} is no name of a graph file, such as llama.star", quoted(name));
            return Err(Error::Invalid(what));
        }
        let beside = self.file.as_deref().and_then(Path::parent);
        for folder in [beside, self.folder.as_deref()].into_iter().flatten() {
            let path = folder.join(name);
            if path.symlink_metadata().is_ok() {
                return read_text(&path).map(Cow::Owned);
            }
        }
        let found = EMBEDDED.iter().find(|(n, _)| *n == name);
        let found = found.map(|(_, source)| Cow::Borrowed(*source));
        found.ok_or_else(|| Error::Invalid(format!("there is no graph file {}", quoted(name))))
    }

    fn load<'a, 'w>(&self, file: &str, source: &str) -> Result<Loaded<'a, 'w>> {
        let mut script = Script::new();
        let mut loading = Loading { library: self, done: BTreeMap::new() };
        let module = loading.run(&mut script, file, source)?;
        Ok(Loaded { script, module, file: file.to_string() })
    }
}

/// Files of one script: each runs once; one that is still running is loaded by itself.
struct Loading<'l> {
    library: &'l Library,
    done: BTreeMap<String, Option<usize>>,
}

impl Loading<'_> {
    fn run(&mut self, script: &mut Script<'_, '_>, file: &str, source: &str) -> Result<usize> {
        self.done.insert(file.to_string(), None);
        let module = script.run(file, source, &mut |script, name| {
            match self.done.get(name) {
                Some(Some(module)) => return Ok(*module),
                Some(None) => {
                    return Err(Error::Invalid(format!("{} loads itself", quoted(name))));
                }
                None if self.done.len() >= MAX_FILES => {
                    return Err(Error::Invalid(format!("more than {MAX_FILES} files")));
                }
                None => {}
            }
            let source = self.library.source(name)?;
            self.run(script, name, &source)
        })?;
        self.done.insert(file.to_string(), Some(module));
        Ok(module)
    }
}

impl<'a, 'w> Loaded<'a, 'w> {
    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// A list of texts at the top of the file; empty if there is none of that name.
    ///
    /// # Errors
    /// When it is something else.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        let Some(list) = self.script.global(self.module, name) else { return Ok(Vec::new()) };
        let heap = &self.script.heap;
        let len = heap.len(list).unwrap_or(0);
        let items = (0..len).filter_map(|i| heap.item(list, i));
        let texts: Option<Vec<String>> = items
            .map(|v| if let Value::Text(t) = v { Some(heap.get_text(t).to_string()) } else { None })
            .collect();
        match (list, texts) {
            (Value::List(_) | Value::Tuple(_), Some(texts)) => Ok(texts),
            _ => Err(self.script.error(self.module, 1, format!("{name} is no list of strings"))),
        }
    }

    /// A dict of texts at the top of the file; empty if there is none of that name.
    ///
    /// # Errors
    /// When it is something else.
    pub fn pairs(&self, name: &str) -> Result<Vec<(String, String)>> {
        let one = |(key, texts): (String, Vec<String>)| match <[String; 1]>::try_from(texts) {
            Ok([text]) => Ok((key, text)),
            Err(texts) => {
                let what = format!("{name}[{}] is {} names, not one", quoted(&key), texts.len());
                Err(self.script.error(self.module, 1, what))
            }
        };
        self.dict(name)?.into_iter().map(one).collect()
    }

    /// A dict of texts or lists of texts at the top of the file.
    ///
    /// # Errors
    /// When it is something else.
    pub fn lists(&self, name: &str) -> Result<BTreeMap<String, Vec<String>>> {
        Ok(self.dict(name)?.into_iter().collect())
    }

    fn dict(&self, name: &str) -> Result<Vec<(String, Vec<String>)>> {
        let heap = &self.script.heap;
        let text = |v: Value| match v {
            Value::Text(t) => Some(heap.get_text(t).to_string()),
            _ => None,
        };
        let texts = |v: Value| match v {
            Value::List(l) => heap.get_list(l).iter().map(|&v| text(v)).collect(),
            v => text(v).map(|t| vec![t]),
        };
        let dict = match self.script.global(self.module, name) {
            None => return Ok(Vec::new()),
            Some(Value::Dict(d)) => heap.get_dict(d),
            Some(_) => return Err(self.script.error(self.module, 1, format!("{name} is no dict"))),
        };
        let wrong = |key, value| {
            let what = format!("{name}[{}] is {}, no string", heap.brief(key), heap.brief(value));
            self.script.error(self.module, 1, what)
        };
        let pair = |&(k, v): &(Value, Value)| text(k).zip(texts(v)).ok_or_else(|| wrong(k, v));
        dict.iter().map(pair).collect()
    }

    /// What the file's `tensors(c)` says a model has: names and dimensions, slowest first. `None`
    /// when there is no such function.
    ///
    /// # Errors
    /// What the file or the hyper-parameters have against it.
    pub fn tensors(mut self, c: &'a Config<'a>) -> Result<Option<Shapes>> {
        let found = ["tensors", "shapes"].iter().find_map(|f| self.script.global(self.module, f));
        let Some(Value::Function(f)) = found else { return Ok(None) };
        self.script.config = Some(c);
        let args = Args { given: vec![Value::Config], named: Vec::new() };
        let made = self.script.call(self.module, 1, f as usize, args)?;
        let heap = &self.script.heap;
        let dims = |list| {
            let items = heap.get_list(list).iter();
            let dim =
                |v: &Value| if let Value::Int(i) = *v { usize::try_from(i).ok() } else { None };
            items.map(dim).collect::<Option<Vec<usize>>>()
        };
        let pair = |&(name, list): &(Value, Value)| match (name, list) {
            (Value::Text(t), Value::List(l)) => Some((heap.get_text(t).to_string(), dims(l)?)),
            _ => None,
        };
        let all = match made {
            Value::Dict(d) => heap.get_dict(d).iter().map(pair).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let wrong = || {
            let what = "tensors returned no dict of names and dimensions";
            self.script.error(self.module, 1, what)
        };
        all.ok_or_else(wrong).map(Some)
    }

    /// Calls the file's `build(g, c)`, which returns the logits.
    ///
    /// # Errors
    /// What the file, the graph or the hyper-parameters have against it.
    pub fn build(mut self, b: &'a mut Builder<'w>, c: &'a Config<'a>) -> Result<NodeId> {
        let Some(Value::Function(build)) = self.script.global(self.module, "build") else {
            return Err(self.script.error(self.module, 1, "there is no function build"));
        };
        self.script.builder = Some(b);
        self.script.config = Some(c);
        let args = Args { given: vec![Value::Graph, Value::Config], named: Vec::new() };
        let made = self.script.call(self.module, 1, build as usize, args)?;
        let (returned, end) = (self.script.returned, self.script.last_line(build as usize));
        let wrong = |what: String| {
            let (module, line) = returned.unwrap_or((self.module, end));
            self.script.error(module, line, what)
        };
        let logits = match made {
            Value::Node(id) => id,
            Value::None if returned.is_none() => {
                return Err(wrong("build ends without a return of the logits".to_string()));
            }
            other => {
                let what = self.script.heap.brief(other);
                return Err(wrong(format!("build returned {what}, not a node")));
            }
        };
        let ty = self.script.builder.as_ref().map(|b| b.graph().ty(logits));
        match ty {
            Some(ty) if ty.lead == Lead::Rows => Err(wrong(format!(
                "build returned {ty}, a row for each token; g.select(x) before the last norm leaves \
                 those whose logits are wanted"
            ))),
            _ => Ok(logits),
        }
    }
}

/// A bare name: no path, no way out of its folder.
fn is_file_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    name.strip_suffix(".star").is_some_and(|stem| !stem.is_empty() && stem.bytes().all(plain))
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = read_regular(path, MAX_SOURCE as u64)?;
    let name = path.display().to_string().escape_debug().to_string();
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(&name, format!("byte {at}"), "not UTF-8")
    })
}
