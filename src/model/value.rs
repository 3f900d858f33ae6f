//! Metadata values: the scalars, strings and arrays of a model file's header, owned.
//!
//! A vocabulary is an array of a quarter of a million strings, so an array of strings is two
//! vectors, all their bytes and where each ends, and not a vector of vectors. Strings are bytes:
//! tokens of a byte-level vocabulary need not be UTF-8 one by one.

use std::borrow::Cow;
use std::fmt;

use crate::error::quoted;

/// One metadata value. [`Display`](fmt::Display) gives a form that is safe to print: strings
/// escaped and cut, of an array the first few elements and the count.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(Vec<u8>),
    Array(Array),
}

/// An array: elements of one type.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(Strings),
    Array(Vec<Array>),
}

/// Calls `$body` with the vector of any array.
macro_rules! each_array {
    ($array:expr, $v:ident => $body:expr) => {
        match $array {
            Array::U8($v) => $body,
            Array::I8($v) => $body,
            Array::U16($v) => $body,
            Array::I16($v) => $body,
            Array::U32($v) => $body,
            Array::I32($v) => $body,
            Array::U64($v) => $body,
            Array::I64($v) => $body,
            Array::F32($v) => $body,
            Array::F64($v) => $body,
            Array::Bool($v) => $body,
            Array::Str($v) => $body,
            Array::Array($v) => $body,
        }
    };
}

/// Many strings in one piece of memory.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Strings {
    bytes: Vec<u8>,
    /// Where each string ends in `bytes`; it begins where the one before it ends.
    ends: Vec<usize>,
}

impl Strings {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of string `i`.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)?;
        let start = match i.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..end)
    }

    /// String `i` as text; what is not UTF-8 in it becomes U+FFFD.
    pub fn text(&self, i: usize) -> Option<Cow<'_, str>> {
        self.get(i).map(String::from_utf8_lossy)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            string
        })
    }

    /// Makes room for `count` more strings, or says that there is none.
    pub(super) fn try_reserve(
        &mut self,
        count: usize,
    ) -> Result<(), std::collections::TryReserveError> {
        self.ends.try_reserve_exact(count)
    }

    /// Adds one at the end, or says that memory is short.
    pub(super) fn try_push(
        &mut self,
        string: &[u8],
    ) -> Result<(), std::collections::TryReserveError> {
        self.bytes.try_reserve(string.len())?;
        self.ends.try_reserve(1)?;
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
        Ok(())
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Strings::new();
        for string in strings {
            all.bytes.extend_from_slice(string.as_ref());
            all.ends.push(all.bytes.len());
        }
        all
    }
}

impl Value {
    /// What it is, as messages say it: `"u32"`, `"array of string"`.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F32(_) => "f32",
            Value::F64(_) => "f64",
            Value::Bool(_) => "bool",
            Value::Str(_) => "string",
            Value::Array(array) => array.kind(),
        }
    }

    /// An integer of any width, widened.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(v) => i128::from(*v),
            Value::I8(v) => i128::from(*v),
            Value::U16(v) => i128::from(*v),
            Value::I16(v) => i128::from(*v),
            Value::U32(v) => i128::from(*v),
            Value::I32(v) => i128::from(*v),
            Value::U64(v) => i128::from(*v),
            Value::I64(v) => i128::from(*v),
            _ => return None,
        })
    }

    /// A float of either width, rounded to f32.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Value::F32(v) => Some(*v),
            Value::F64(v) => Some(*v as f32),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl Array {
    /// How many elements.
    pub fn len(&self) -> usize {
        each_array!(self, v => v.len())
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it is, as messages say it.
    pub fn kind(&self) -> &'static str {
        match self {
            Array::U8(_) => "array of u8",
            Array::I8(_) => "array of i8",
            Array::U16(_) => "array of u16",
            Array::I16(_) => "array of i16",
            Array::U32(_) => "array of u32",
            Array::I32(_) => "array of i32",
            Array::U64(_) => "array of u64",
            Array::I64(_) => "array of i64",
            Array::F32(_) => "array of f32",
            Array::F64(_) => "array of f64",
            Array::Bool(_) => "array of bool",
            Array::Str(_) => "array of string",
            Array::Array(_) => "array of arrays",
        }
    }

    /// Its elements, if they are integers and each fits a `T`. Borrowed when `T` is their type.
    pub(crate) fn integers<T: Integer>(&self) -> Option<Cow<'_, [T]>> {
        fn all<T: Integer, U: Copy + Into<i128>>(from: &[U]) -> Option<Cow<'_, [T]>> {
            from.iter().map(|&v| T::try_from(v.into()).ok()).collect::<Option<_>>().map(Cow::Owned)
        }
        if let Some(same) = T::of(self) {
            return Some(Cow::Borrowed(same));
        }
        match self {
            Array::U8(v) => all(v),
            Array::I8(v) => all(v),
            Array::U16(v) => all(v),
            Array::I16(v) => all(v),
            Array::U32(v) => all(v),
            Array::I32(v) => all(v),
            Array::U64(v) => all(v),
            Array::I64(v) => all(v),
            _ => None,
        }
    }

    /// Its elements, if they are floats, rounded to f32.
    pub(crate) fn floats(&self) -> Option<Cow<'_, [f32]>> {
        match self {
            Array::F32(v) => Some(Cow::Borrowed(v)),
            Array::F64(v) => Some(v.iter().map(|&v| v as f32).collect()),
            _ => None,
        }
    }
}

/// The integer types that arrays are asked for as.
pub(crate) trait Integer: Copy + TryFrom<i128> {
    /// The elements of an array of this very type.
    fn of(array: &Array) -> Option<&[Self]>;
}

/// Conversions of one element type: into a value, out of an array.
macro_rules! element {
    ($($t:ty => $variant:ident $($integer:ident)?;)*) => {
        $(
            impl From<$t> for Value {
                fn from(v: $t) -> Self {
                    Value::$variant(v)
                }
            }
            impl From<Vec<$t>> for Value {
                fn from(v: Vec<$t>) -> Self {
                    Value::Array(Array::$variant(v))
                }
            }
            $(
                impl $integer for $t {
                    fn of(array: &Array) -> Option<&[Self]> {
                        match array {
                            Array::$variant(v) => Some(v),
                            _ => None,
                        }
                    }
                }
            )?
        )*
    };
}

element! {
    u8 => U8;
    i8 => I8;
    u16 => U16;
    i16 => I16;
    u32 => U32 Integer;
    i32 => I32 Integer;
    u64 => U64 Integer;
    i64 => I64 Integer;
    f32 => F32;
    f64 => F64;
    bool => Bool;
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::Str(v.as_bytes().to_vec())
    }
}

impl From<&[u8]> for Value {
    fn from(v: &[u8]) -> Self {
        Value::Str(v.to_vec())
    }
}

impl From<Strings> for Value {
    fn from(v: Strings) -> Self {
        Value::Array(Array::Str(v))
    }
}

impl From<Array> for Value {
    fn from(v: Array) -> Self {
        Value::Array(v)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::Str(v) => f.write_str(&quoted_bytes(v)),
            Value::Array(v) => v.fmt(f),
        }
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Elements that are shown.
        const SHOWN: usize = 6;
        f.write_str("[")?;
        match self {
            Array::Str(v) => separated(f, v.iter().take(SHOWN).map(quoted_bytes))?,
            // Counts only: the text of a value stays short however deep it is.
            Array::Array(v) => {
                let inner = |a: &Array| format!("{} {}", a.len(), a.kind());
                separated(f, v.iter().take(SHOWN).map(inner))?;
            }
            Array::U8(v) => separated(f, v.iter().take(SHOWN))?,
            Array::I8(v) => separated(f, v.iter().take(SHOWN))?,
            Array::U16(v) => separated(f, v.iter().take(SHOWN))?,
            Array::I16(v) => separated(f, v.iter().take(SHOWN))?,
            Array::U32(v) => separated(f, v.iter().take(SHOWN))?,
            Array::I32(v) => separated(f, v.iter().take(SHOWN))?,
            Array::U64(v) => separated(f, v.iter().take(SHOWN))?,
            Array::I64(v) => separated(f, v.iter().take(SHOWN))?,
            Array::F32(v) => separated(f, v.iter().take(SHOWN))?,
            Array::F64(v) => separated(f, v.iter().take(SHOWN))?,
            Array::Bool(v) => separated(f, v.iter().take(SHOWN))?,
        }
        if self.len() > SHOWN {
            write!(f, ", … {} in all", self.len())?;
        }
        f.write_str("]")
    }
}

fn separated<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    items: impl Iterator<Item = T>,
) -> fmt::Result {
    for (i, item) in items.enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

/// [`quoted`] for bytes. Only as many as can be shown are looked at.
pub(super) fn quoted_bytes(bytes: &[u8]) -> String {
    // 65 characters of at most 4 bytes decide both the text and whether it was cut.
    let head = bytes.get(..65 * 4).unwrap_or(bytes);
    quoted(&String::from_utf8_lossy(head))
}
