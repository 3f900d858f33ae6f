//! What a value is: element type, how many rows it has, and the shape of a row.

use crate::model::Format;
use smallvec::SmallVec;
use std::fmt;

/// Dimensions, slowest first.
pub type Dims = SmallVec<[usize; 4]>;

/// The element type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DType {
    /// Activations.
    F32,
    /// A cache of halves. (The reference keeps f32 there.)
    F16,
    /// A cache of codes from -127 to 127 with a scale, a half, for each 32 elements of a head; the
    /// last of a head may be fewer. `scale = f16(max|x| / 127)`, `code = round(x / scale)`.
    Q8_0,
    /// Token ids, positions, slots.
    U32,
    /// A weight as its file stores it.
    Weight(Format),
}

/// What the dimensions of a row are preceded by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lead {
    /// Nothing: a weight.
    Fixed,
    /// A row for each token of the step.
    Rows,
    /// A row for each token of the step whose logits are wanted.
    Outs,
    /// A row for each slot and position: a cache.
    Cache,
}

/// The type of a value. It is written `f32[R, 9, 64]`: `R` rows of the step, `O` rows with logits,
/// `S` slots times positions; a weight has none of them, as in `q4_1[1536, 576]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Row dimension.
    pub lead: Lead,
    /// Dimensions of a row (of the whole tensor for a weight), slowest first.
    pub dims: Dims,
}

impl TensorType {
    /// A type of `dims` a row.
    pub fn new(dtype: DType, lead: Lead, dims: &[usize]) -> Self {
        TensorType { dtype, lead, dims: Dims::from_slice(dims) }
    }

    /// Activations of `dims` a row of the step.
    pub fn rows(dims: &[usize]) -> Self {
        Self::new(DType::F32, Lead::Rows, dims)
    }

    /// Elements of a row (of the whole tensor for a weight).
    pub fn width(&self) -> usize {
        self.dims.iter().product()
    }

    /// The last dimension; 1 for a scalar a row.
    pub fn last(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Whether this is an activation: f32 with a row a token.
    pub fn is_activation(&self) -> bool {
        self.dtype == DType::F32 && matches!(self.lead, Lead::Rows | Lead::Outs)
    }

    /// No dimension is zero, there are few of them and the product stays far from overflow.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.dims.len() > MAX_DIMS {
            return Err(format!("{self} has more than {MAX_DIMS} dimensions"));
        }
        let mut product = 1usize;
        for &d in &self.dims {
            product = product
                .checked_mul(d)
                .filter(|&p| p > 0 && p <= MAX_ELEMENTS)
                .ok_or_else(|| format!("{self} is empty or too large"))?;
        }
        Ok(())
    }
}

/// Dimensions of a type, at most.
const MAX_DIMS: usize = 8;

/// Elements of one weight or of one row, at most: keeps every later product in range.
const MAX_ELEMENTS: usize = 1 << 40;

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.dtype {
            DType::F32 => "f32".to_string(),
            DType::F16 => "f16".to_string(),
            DType::Q8_0 => "q8_0".to_string(),
            DType::U32 => "u32".to_string(),
            DType::Weight(format) => format.name().to_lowercase(),
        };
        write!(f, "{name}[")?;
        let lead = match self.lead {
            Lead::Fixed => None,
            Lead::Rows => Some("R"),
            Lead::Outs => Some("O"),
            Lead::Cache => Some("S"),
        };
        let parts = lead.map(str::to_string).into_iter();
        let parts: Vec<String> = parts.chain(self.dims.iter().map(usize::to_string)).collect();
        write!(f, "{}]", parts.join(", "))
    }
}

impl std::str::FromStr for TensorType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{} is not a type", crate::error::quoted(text));
        let (name, rest) = text.trim().split_once('[').ok_or_else(bad)?;
        let inner = rest.strip_suffix(']').ok_or_else(bad)?;
        let mut parts = inner.split(',').map(str::trim).filter(|p| !p.is_empty()).peekable();
        let lead = match parts.peek() {
            Some(&"R") => Lead::Rows,
            Some(&"O") => Lead::Outs,
            Some(&"S") => Lead::Cache,
            _ => Lead::Fixed,
        };
        if lead != Lead::Fixed {
            parts.next();
        }
        let dims: Dims =
            parts.map(|p| p.parse().map_err(|_| bad())).collect::<Result<_, String>>()?;
        let dtype = match (lead, name) {
            (Lead::Fixed, _) => {
                DType::Weight(Format::from_name(&name.to_uppercase()).ok_or_else(bad)?)
            }
            (_, "f32") => DType::F32,
            (_, "f16") => DType::F16,
            (Lead::Cache, "q8_0") => DType::Q8_0,
            (_, "u32") => DType::U32,
            _ => return Err(bad()),
        };
        let ty = TensorType { dtype, lead, dims };
        ty.check()?;
        Ok(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_print_and_parse() {
        let caches = ["f16[S, 3, 64]", "q8_0[S, 3, 64]"];
        for text in
            ["f32[R, 9, 64]", "u32[R]", "q4_1[1536, 576]", "f32[O, 10]"].iter().chain(&caches)
        {
            assert_eq!(text.parse::<TensorType>().unwrap().to_string(), *text);
        }
        let absurd = ["q9_9[4]", "f32[R, 0]", "u32[R, 99999999999999]", "q8_0[R, 64]"];
        for text in ["", "f32", "f32[R, x]"].iter().chain(&absurd) {
            assert!(text.parse::<TensorType>().is_err(), "{text}");
        }
    }
}
