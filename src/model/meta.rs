//! A model file's metadata: typed answers, and errors that name the key.
//!
//! A getter tells three things apart: a key that is absent (`Ok(None)`), one that is there and
//! fits, and one that is there and does not, which is an error rather than a default. Writers
//! disagree about integer widths, so a getter takes any width whose value fits.

use std::borrow::Cow;
use std::path::Path;

use super::value::{Array, Integer, Strings, Value};
use crate::error::{Error, Result, quoted};

/// The key-value pairs of a model file, in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    path: String,
    entries: Vec<Entry>,
    /// Indices of `entries`, sorted by key.
    sorted: Vec<usize>,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// The byte of the file where the key begins.
    pub(super) at: usize,
    pub(super) value: Value,
}

impl Metadata {
    /// Takes the entries of one file. Gives back the two places of a key that comes twice.
    pub(super) fn new(
        path: &str,
        entries: Vec<Entry>,
        mut sorted: Vec<usize>,
    ) -> Result<Self, (String, usize, usize)> {
        let entry = |i: usize| entries.get(i).map(|e| (e.key.as_str(), e.at));
        sorted.sort_unstable_by_key(|&i| entry(i));
        for pair in sorted.windows(2) {
            if let [a, b] = *pair
                && let (Some((key, first)), Some((next, second))) = (entry(a), entry(b))
                && key == next
            {
                return Err((key.to_string(), first, second));
            }
        }
        Ok(Metadata { path: path.to_string(), entries, sorted })
    }

    /// The hyper-parameters of a Hugging Face `config.json`, whatever the file's name.
    ///
    /// # Errors
    /// When the system refuses, or it is no JSON object with a `model_type`.
    pub fn from_config(path: &Path) -> Result<Metadata> {
        let name = path.display().to_string().escape_debug().to_string();
        super::safetensors::read_config(&name, path)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the file's order. A value prints safely; a key is the file's text and
    /// reaches a terminal through [`quoted`] only.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|e| (e.key.as_str(), &e.value))
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        let name = |i: &usize| self.entries.get(*i).map(|e| e.key.as_str());
        let found = self.sorted.binary_search_by(|i| name(i).cmp(&Some(key))).ok()?;
        self.entries.get(*self.sorted.get(found)?)
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The value of a key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entry(key).map(|e| &e.value)
    }

    /// An error about the value of `key`, which names file, key and offset.
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        let place = match self.entry(key) {
            // Keys of a config.json have no place.
            Some(e) if e.at > 0 => format!("key {}, byte {}", quoted(key), e.at),
            _ => format!("key {}", quoted(key)),
        };
        Error::file(&self.path, place, what)
    }

    /// The value of a key through `read`; `wants` is what a message calls the type.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        wants: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => Err(self.error(key, format!("{} {value}, expected {wants}", value.kind()))),
        }
    }

    fn require<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.error(key, "missing"))
    }

    /// The bytes of a string, whatever they are.
    pub fn get_bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.typed(key, "a string", |v| match v {
            Value::Str(s) => Some(s.as_slice()),
            _ => None,
        })
    }

    /// A string, which must be UTF-8.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        let Some(bytes) = self.get_bytes(key)? else { return Ok(None) };
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => {
                let what = format!("the string is not UTF-8 at its byte {}", e.valid_up_to());
                Err(self.error(key, what))
            }
        }
    }

    /// An array of strings.
    pub fn get_strs(&self, key: &str) -> Result<Option<&Strings>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::Str(s)) => Some(s),
            _ => None,
        })
    }

    /// A boolean.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// An array of booleans.
    pub fn get_bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed(key, "an array of bools", |v| match v {
            Value::Array(Array::Bool(b)) => Some(b.as_slice()),
            _ => None,
        })
    }

    /// A float of either width as f32. It may be infinite or NaN: that is the caller's to check.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// An array of floats of either width as f32.
    pub fn get_f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>> {
        self.typed(key, "an array of floats", |v| v.as_array()?.floats())
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, wants: &str) -> Result<Option<T>> {
        self.typed(key, wants, |v| T::try_from(v.as_integer()?).ok())
    }

    fn integers<T: Integer>(&self, key: &str, wants: &str) -> Result<Option<Cow<'_, [T]>>> {
        self.typed(key, wants, |v| v.as_array()?.integers())
    }
}

/// A getter's other half: the same, and an error when the key is absent.
macro_rules! required {
    ($($name:ident = $get:ident -> $t:ty;)*) => {
        impl Metadata {
            $(
                #[doc = concat!("[`", stringify!($get), "`](Self::", stringify!($get),
                    "), which must be there.")]
                pub fn $name(&self, key: &str) -> Result<$t> {
                    let found = self.$get(key)?;
                    self.require(key, found)
                }
            )*
        }
    };
}

/// Getters of the integer types and of arrays of them.
macro_rules! integers {
    ($($t:ty: $one:ident, $many:ident, $wants:literal;)*) => {
        impl Metadata {
            $(
                #[doc = concat!("An integer of any width whose value fits ", $wants, ".")]
                pub fn $one(&self, key: &str) -> Result<Option<$t>> {
                    self.integer(key, concat!("an integer that fits ", $wants))
                }

                #[doc = concat!("An array of integers of any width that all fit ", $wants, ".")]
                pub fn $many(&self, key: &str) -> Result<Option<Cow<'_, [$t]>>> {
                    self.integers(key, concat!("an array of integers that fit ", $wants))
                }
            )*
        }
    };
}

integers! {
    u32: get_u32, get_u32s, "u32";
    i32: get_i32, get_i32s, "i32";
    u64: get_u64, get_u64s, "u64";
    i64: get_i64, get_i64s, "i64";
}

required! {
    require_bytes = get_bytes -> &[u8];
    require_str = get_str -> &str;
    require_strs = get_strs -> &Strings;
    require_bool = get_bool -> bool;
    require_bools = get_bools -> &[bool];
    require_f32 = get_f32 -> f32;
    require_f32s = get_f32s -> Cow<'_, [f32]>;
    require_u32 = get_u32 -> u32;
    require_u32s = get_u32s -> Cow<'_, [u32]>;
    require_i32 = get_i32 -> i32;
    require_i32s = get_i32s -> Cow<'_, [i32]>;
    require_u64 = get_u64 -> u64;
    require_u64s = get_u64s -> Cow<'_, [u64]>;
    require_i64 = get_i64 -> i64;
    require_i64s = get_i64s -> Cow<'_, [i64]>;
}
