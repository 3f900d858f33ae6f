//! A Hugging Face folder: `config.json`, and weights in one safetensors file or in shards.
//!
//! A safetensors file is a length of 8 bytes, a JSON object of that length, and data:
//!
//! ```text
//! n u64 | {"name": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}, …} | data
//! ```
//!
//! Offsets count from the data's beginning. A tensor lies inside its file and over no other; a name
//! comes once in all shards. What is neither F32, F16 nor BF16 is left out, so asking for it says that
//! it is not there; of 32-bit words and bytes the weights of quantized checkpoints are made (`packed`).
//!
//! **Paths.** A shard's name is the index's text, so it must be bare and name a regular file of the
//! folder. A link may lead to another place only in the hub's own cache, from a snapshot to its blobs.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use smallvec::SmallVec;

use super::format::Format;
use super::map::MappedFile;
use super::meta::{Entry, Metadata};
use super::packed::{self, Integers, Parts, Raw};
use super::text::read_regular;
use super::value::{Array, Value};
use super::{Data, Model, Tensor};
use crate::error::{Error, Result, quoted};

/// Bytes of a header or an index, at most.
const MAX_HEADER: u64 = 32 << 20;
/// Bytes of a config.
const MAX_CONFIG: u64 = 1 << 20;
/// Shards of a model.
const MAX_SHARDS: usize = 1024;

/// What a header says of a tensor.
#[derive(Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A JSON object in its order, with every key as often as it comes.
struct Header(Vec<(String, Described)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<de::IgnoredAny>()?;
                    } else {
                        all.push((name, map.next_value()?));
                    }
                }
                Ok(Header(all))
            }
        }
        from.deserialize_map(Pairs)
    }
}

/// Whether a folder looks like such a model.
pub(super) fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file()
}

/// Opens the model of a folder.
pub(super) fn open(folder: &Path) -> Result<Model> {
    let name = folder.display().to_string().escape_debug().to_string();
    let meta = read_config(&name, &file_of(folder, "config.json")?)?;
    let (mut files, mut tensors, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for (shard, file) in shards(folder, &name)?.into_iter().enumerate() {
        let path = file_of(folder, &file)?;
        let shown = format!("{name}/{}", file.escape_debug());
        let mapped = MappedFile::open(&path, &shown)?;
        let read = read_header(&shown, mapped.bytes(), shard, &mut tensors, &mut raw);
        mapped.verify()?;
        read?;
        files.push(mapped);
    }
    let mut sorted: Vec<usize> = (0..tensors.len()).collect();
    let tensor_name = |i: usize| tensors.get(i).map(|t: &Tensor| t.name.as_str());
    sorted.sort_unstable_by_key(|&i| tensor_name(i));
    for pair in sorted.windows(2) {
        if let [a, b] = *pair
            && tensor_name(a) == tensor_name(b)
        {
            let place = format!("tensor {}", quoted(tensor_name(a).unwrap_or_default()));
            return Err(Error::file(&name, place, "comes twice"));
        }
    }
    raw.sort_unstable_by(|a: &Raw, b| a.name.cmp(&b.name));
    if let Some([twice, _]) = raw.array_windows().find(|[a, b]| a.name == b.name) {
        return Err(Error::file(&name, format!("tensor {}", quoted(&twice.name)), "comes twice"));
    }
    let (data, folder) = (Data::Shards(files), Some(folder.to_path_buf()));
    let parts = Parts {
        name: &name,
        meta: &meta,
        tensors: tensors.iter().map(|t| (t.name.as_str(), t)).collect(),
        raw: raw.iter().map(|r| (r.name.as_str(), r)).collect(),
        data: &data,
    };
    let packed = packed::find(&parts);
    // Zeros and groups were read: a file that shrank looks broken in some odd way.
    data.verify()?;
    let packed = packed?;
    Ok(Model { name, folder, data, meta, tensors, sorted, packed })
}

/// The hyper-parameters of a `config.json`; `name` stands for its place in messages.
pub(super) fn read_config(name: &str, path: &Path) -> Result<Metadata> {
    let config = read_regular(path, MAX_CONFIG)?;
    let config: serde_json::Value = serde_json::from_slice(&config)
        .map_err(|e| Error::file(name, format!("config.json:{}", e.line()), "not JSON"))?;
    metadata(name, &config)
}

/// The files that hold weights.
fn shards(folder: &Path, name: &str) -> Result<Vec<String>> {
    let single = "model.safetensors";
    let index = "model.safetensors.index.json";
    if folder.join(single).symlink_metadata().is_ok() {
        return Ok(vec![single.to_string()]);
    }
    let bytes = read_regular(&file_of(folder, index)?, MAX_HEADER)?;
    let bad = |what: &str| Error::file(name, index, what);
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| bad("not JSON"))?;
    let map = json.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| bad("there is no weight_map"))?;
    let mut files: Vec<String> = Vec::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| bad("a file's name is no string"))?;
        if !files.iter().any(|f| f == file) {
            if files.len() == MAX_SHARDS {
                return Err(bad("more than 1024 shards"));
            }
            files.push(file.to_string());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The path of a file of the folder, if its name is bare and it leads nowhere else.
pub(super) fn file_of(folder: &Path, file: &str) -> Result<PathBuf> {
    let bare = !file.is_empty() && !file.contains(['/', '\\', '\0']) && file != "." && file != "..";
    let refuse = |what: &str| {
        Err(Error::file(
            &folder.display().to_string().escape_debug().to_string(),
            quoted(file),
            what,
        ))
    };
    if !bare {
        return refuse("not the bare name of a file in this folder");
    }
    let path = folder.join(file);
    let kind = path.symlink_metadata().map_err(|e| Error::io(&path, e))?.file_type();
    if kind.is_symlink() {
        let io = |e| Error::io(&path, e);
        let (target, home) = (path.canonicalize().map_err(io)?, folder.canonicalize().map_err(io)?);
        // In the hub's cache: …/snapshots/REVISION/FILE to …/blobs/HASH.
        let cache = home.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"));
        let blobs = cache.and_then(Path::parent).map(|root| root.join("blobs"));
        let within = |root: &Path| target.parent() == Some(root);
        if !within(&home) && !blobs.as_deref().is_some_and(within) {
            return refuse("a link that leads out of the folder");
        }
        return Ok(target);
    }
    Ok(path)
}

/// Adds the tensors of one file.
fn read_header(
    name: &str,
    bytes: &[u8],
    shard: usize,
    out: &mut Vec<Tensor>,
    raw: &mut Vec<Raw>,
) -> Result<()> {
    let bad = |what: String| Error::file(name, "header", what);
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| bad("too short".into()))?;
    let length = u64::from_le_bytes(*length);
    let fits = usize::try_from(length).ok().filter(|&n| length <= MAX_HEADER && n <= rest.len());
    let length = fits.ok_or_else(|| bad(format!("{length} bytes, of {} there are", rest.len())))?;
    let (header, data) = rest.split_at(length);
    let Header(all) = serde_json::from_slice(header)
        .map_err(|e| bad(format!("column {}: {}", e.column(), e.to_string().escape_debug())))?;
    let mut seen = HashSet::new();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (tensor, described) in all {
        let fail = |what: String| Error::file(name, format!("tensor {}", quoted(&tensor)), what);
        if !seen.insert(tensor.clone()) {
            return Err(fail("comes twice".to_string()));
        }
        let [start, end] = described.data_offsets.map(usize::try_from);
        let (Ok(start), Ok(end)) = (start, end) else {
            return Err(fail("its offsets are not of this machine".to_string()));
        };
        if start > end || end > data.len() {
            return Err(fail(format!("bytes {start} to {end} of {}", data.len())));
        }
        if start < end {
            ranges.push((start, end));
        }
        let (format, integers) = match described.dtype.as_str() {
            "F32" => (Format::F32, None),
            "F16" => (Format::F16, None),
            "BF16" => (Format::BF16, None),
            "I32" => (Format::F32, Some(Integers::I32)),
            "U8" => (Format::F32, Some(Integers::U8)),
            _ => continue,
        };
        let (element, kind) = match integers {
            Some(Integers::U8) => (1, "U8"),
            Some(Integers::I32) => (4, "I32"),
            None => (format.block_bytes(), format.name()),
        };
        let dims: Option<SmallVec<[usize; 4]>> =
            described.shape.iter().map(|&d| usize::try_from(d).ok().filter(|&d| d > 0)).collect();
        let mut dims = dims
            .filter(|d| d.len() <= 4)
            .ok_or_else(|| fail(format!("{} dimensions, or one of 0", described.shape.len())))?;
        if dims.is_empty() {
            dims.push(1);
        }
        let size = dims.iter().try_fold(element, |n, &d| n.checked_mul(d));
        if size != Some(end - start) {
            let what = format!("{} bytes do not make {kind} of {dims:?}", end - start);
            return Err(fail(what));
        }
        let start = start + 8 + length;
        let (at, size) = (8, end + 8 + length - start);
        match integers {
            Some(kind) => {
                raw.push(Raw { name: tensor, kind, dims: dims.to_vec(), start, size, shard })
            }
            None => out.push(Tensor { name: tensor, format, dims, at, start, size, shard }),
        }
    }
    ranges.sort_unstable();
    if let Some(pair) = ranges.windows(2).find(|p| matches!(p, [a, b] if a.1 > b.0)) {
        return Err(bad(format!("two tensors lie over each other at byte {}", pair[1].0)));
    }
    Ok(())
}

/// The config as keys and values: objects inside become `outer.inner`. Two keys are ours:
/// `general.architecture`, the model's type, and `general.source`.
fn metadata(name: &str, config: &serde_json::Value) -> Result<Metadata> {
    let bad = |key: &str, what: &str| Error::file(name, format!("key {}", quoted(key)), what);
    let Some(config) = config.as_object() else {
        return Err(Error::file(name, "config.json", "not an object"));
    };
    let mut entries = Vec::new();
    let mut add = |key: String, value: Value| entries.push(Entry { key, at: 0, value });
    let kind = config.get("model_type").and_then(|k| k.as_str());
    let kind = kind.ok_or_else(|| bad("model_type", "missing"))?;
    add("general.architecture".to_string(), Value::Str(kind.as_bytes().to_vec()));
    add("general.source".to_string(), Value::Str(b"huggingface".to_vec()));
    let mut open: Vec<(String, &serde_json::Value, usize)> = Vec::new();
    open.extend(config.iter().map(|(key, value)| (key.clone(), value, 0)));
    while let Some((key, value, level)) = open.pop() {
        if let (Some(inner), true) = (value.as_object(), level < 3) {
            let inner = inner.iter().map(|(name, v)| (format!("{key}.{name}"), v, level + 1));
            open.extend(inner);
        } else if let Some(value) = simple(value) {
            add(key, value);
        }
    }
    let sorted = (0..entries.len()).collect();
    Metadata::new(name, entries, sorted).map_err(|(key, _, _)| bad(&key, "comes twice"))
}

/// A value that is no object, and not null.
fn simple(value: &serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;
    Some(match value {
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.as_i64() {
            Some(i) => Value::I64(i),
            None => Value::F64(n.as_f64()?),
        },
        Json::String(s) => Value::Str(s.as_bytes().to_vec()),
        Json::Array(all) => {
            let ints: Option<Vec<i64>> = all.iter().map(Json::as_i64).collect();
            let floats: Option<Vec<f64>> = all.iter().map(Json::as_f64).collect();
            let texts: Option<Vec<&str>> = all.iter().map(Json::as_str).collect();
            let bools: Option<Vec<bool>> = all.iter().map(Json::as_bool).collect();
            Value::Array(match (ints, floats, texts, bools) {
                (Some(v), ..) => Array::I64(v),
                (_, Some(v), ..) => Array::F64(v),
                (_, _, Some(v), _) => Array::Str(v.into_iter().collect()),
                (_, _, _, Some(v)) => Array::Bool(v),
                _ => return None,
            })
        }
        Json::Null | Json::Object(_) => return None,
    })
}
