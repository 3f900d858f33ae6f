//! Model files: what a header says, and the weights' bytes where they lie.
//!
//! A file is mapped, not read: opening one costs its header, and a weight's bytes come from the
//! disk when they are first touched. Everything in it is hostile until checked. [`Model::open`]
//! gives a model whose every tensor lies within the file, alone, in whole blocks of a known
//! [`Format`], or an error that names the file, the key or tensor, and the byte.
//!
//! What this room does not know is what the keys and tensors mean: a head count or a shape is
//! checked by who asks for it. [`Metadata::error`] lets them say so in the same words.
//!
//! The file may change while it is mapped. That ends no process and goes unnoticed by no load:
//! whoever has read weights calls [`Model::verify_unchanged`] before using what was made of them.

mod convert;
pub mod format;
mod gguf;
mod map;
mod meta;
mod packed;
mod policy;
mod safetensors;
mod text;
mod value;
mod write;

pub(crate) use convert::encode_rows;
pub use convert::{Conversion, Nearness, Sink};
pub use format::{Block, Codes, Format, Min, Packing, Quant, Scale};
pub use meta::Metadata;
pub use packed::Packed;
pub use policy::Policy;
pub(crate) use text::read_regular;
pub use value::{Array, Strings, Value};
pub use write::GgufWriter;

use std::fmt;
use std::path::{Path, PathBuf};

use smallvec::SmallVec;

use crate::error::Result;
use map::MappedFile;

/// A model file, open for as long as this lives.
pub struct Model {
    name: String,
    /// Where it comes from, if that is a folder.
    folder: Option<PathBuf>,
    data: Data,
    meta: Metadata,
    tensors: Vec<Tensor>,
    /// Indices of `tensors`, sorted by name.
    sorted: Vec<usize>,
    /// Weights that several tensors make, sorted by name.
    packed: Vec<Packed>,
}

enum Data {
    Static(&'static [u8]),
    File(MappedFile),
    Shards(Vec<MappedFile>),
}

/// Where a tensor lies in a model file, and what it is.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name, which is the file's text: it reaches a terminal through
    /// [`quoted`](crate::error::quoted) only.
    pub name: String,
    /// How its elements are stored.
    pub format: Format,
    /// Its dimensions, slowest first: 1 to 4 of them, none of them 0. The last is the length of a
    /// row, which is whole blocks.
    pub dims: SmallVec<[usize; 4]>,
    /// The byte of the file where its description is.
    at: usize,
    /// The byte of the file where its data begin.
    start: usize,
    /// How many bytes they are.
    size: usize,
    /// Which of the model's files that is.
    shard: usize,
}

impl Tensor {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        // A product that was checked when the header was read.
        self.dims.iter().product()
    }

    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The byte of the file where its data begin.
    pub fn offset(&self) -> usize {
        self.start
    }
}

impl Model {
    /// Opens a GGUF file, or a Hugging Face folder of `config.json` and safetensors. Only regular
    /// files are opened.
    ///
    /// # Errors
    /// When the system refuses, when the file is not a sound GGUF file of version 2 or 3, or when
    /// it holds what this build does not have.
    pub fn open(path: &Path) -> Result<Model> {
        if safetensors::is_model(path) {
            return safetensors::open(path);
        }
        let name = path.display().to_string().escape_debug().to_string();
        let file = MappedFile::open(path, &name)?;
        Self::read(name, Data::File(file))
    }

    /// A model that is part of the program; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`open`](Model::open) for the same bytes.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Model> {
        Self::read(name.escape_debug().to_string(), Data::Static(bytes))
    }

    fn read(name: String, data: Data) -> Result<Model> {
        let header = gguf::read(&name, data.bytes(0));
        // A file that shrank under the reader looks broken in some odd way: say what happened.
        data.verify()?;
        let gguf::Header { meta, tensors, sorted } = header?;
        Ok(Model { name, folder: None, data, meta, tensors, sorted, packed: Vec::new() })
    }

    /// The path as it was given, escaped, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a folder rather than a file.
    pub fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// The bytes of another file of the model's folder; nothing where there is none, or no folder.
    ///
    /// # Errors
    /// When it is longer than `limit` or no regular file of that folder, or the system refuses.
    pub(crate) fn beside(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        if folder.join(file).symlink_metadata().is_err() {
            return Ok(None);
        }
        read_regular(&safetensors::file_of(folder, file)?, limit).map(Some)
    }

    /// The header's keys and values.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// All tensors in the file's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        let tensor = |i: &usize| self.tensors.get(*i);
        let found =
            self.sorted.binary_search_by(|i| tensor(i).map(|t| t.name.as_str()).cmp(&Some(name)));
        tensor(self.sorted.get(found.ok()?)?)
    }

    /// The bytes of one of this model's tensors, in its format. They may begin at any address.
    /// Empty when the tensor is another model's and does not fit this one.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        let end = tensor.start.saturating_add(tensor.size);
        self.data.bytes(tensor.shard).get(tensor.start..end).unwrap_or_default()
    }

    /// Weights that a quantized checkpoint keeps in several tensors, sorted by name.
    pub fn packed(&self) -> &[Packed] {
        &self.packed
    }

    /// The packed weight of that name.
    pub(crate) fn packed_weight(&self, name: &str) -> Option<&Packed> {
        let found = self.packed.binary_search_by(|p| p.name.as_str().cmp(name)).ok()?;
        self.packed.get(found)
    }

    /// The bytes of a packed weight, in its format.
    pub(crate) fn packed_bytes(&self, packed: &Packed) -> Option<Vec<u8>> {
        packed.bytes(&self.data)
    }

    /// How many bytes the whole file is.
    pub fn file_bytes(&self) -> u64 {
        let shards = if let Data::Shards(files) = &self.data { files.len() } else { 1 };
        (0..shards).map(|i| self.data.bytes(i).len() as u64).sum()
    }

    /// Checks that the file is still what it was when it was opened: bytes read before this are
    /// the file's. To be called when all weights have been read, before they are used.
    ///
    /// # Errors
    /// When the file has shrunk, grown, been modified or been replaced, or when the system could
    /// not read some of it.
    pub fn verify_unchanged(&self) -> Result<()> {
        self.data.verify()
    }
}

impl Data {
    fn bytes(&self, shard: usize) -> &[u8] {
        match self {
            Data::Static(bytes) => bytes,
            Data::File(file) => file.bytes(),
            Data::Shards(files) => files.get(shard).map_or(&[], MappedFile::bytes),
        }
    }

    fn verify(&self) -> Result<()> {
        match self {
            Data::Static(_) => Ok(()),
            Data::File(file) => file.verify(),
            Data::Shards(files) => files.iter().try_for_each(MappedFile::verify),
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name)
            .field("keys", &self.meta.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
