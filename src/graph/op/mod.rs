//! The ops: one file each, with its shape rule and its meaning in scalar f32.
//!
//! [`Op`] is closed on purpose: a new variant does not compile until the reference and every
//! backend have answered for it. An op's attributes are plain data that the text form writes and
//! reads; everything else about an op is in its type rule ([`OpDef::infer`]) and its meaning
//! ([`OpDef::eval`]).

mod attend;
mod attrs;
mod binary;
mod embed;
mod experts;
mod input;
mod layer_norm;
mod linear;
mod rms_norm;
mod rope;
mod sample;
mod shape;
mod softmax;
mod store;
mod unary;

pub use attend::{Attend, alibi_slope};
pub(crate) use attrs::unescape;
pub use attrs::{AttrReader, Attrs};
pub use binary::{Binary, BinaryKind};
pub use embed::Embed;
pub use experts::{Experts, MOST_PICKS, Mix, Pick, TopK, top_k};
pub use input::{Cache, CachePart, Input, InputKind, Weight};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use rms_norm::RmsNorm;
pub use rope::{Rope, RopeLayout};
pub use sample::{NonFinite, Sample, Sampler, SamplerScratch, sample};
pub use shape::{Concat, Reshape, Select, Slice};
pub use softmax::{Normalize, Softmax};
pub use store::Store;
pub use unary::{NORMAL_TAIL, Unary, UnaryKind};

use super::reference::Env;
use super::{NodeId, TensorType};

/// What every op answers for.
pub trait OpDef: Sized {
    /// Its type from its arguments' types. `declared` is what the caller says it is: sources such
    /// as weights take it over, all others ignore it.
    ///
    /// # Errors
    /// What does not fit, naming both shapes.
    fn infer(
        &self,
        args: &[&TensorType],
        declared: Option<&TensorType>,
    ) -> Result<TensorType, String>;
    /// Its attributes, for the text form.
    fn attrs(&self, out: &mut Attrs);
    /// The op with the attributes of the text form.
    ///
    /// # Errors
    /// An attribute is missing or unfit.
    fn parse(attrs: &mut AttrReader) -> Result<Self, String>;
    /// Its meaning: computes node `id` in plain f32.
    ///
    /// # Errors
    /// When the values do not allow it, such as a token outside the vocabulary.
    fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()>;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:literal $variant:ident),* $(,)?) => {
        /// What computes a node.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Op { $($(#[$doc])* $variant($variant)),* }

        impl Op {
            /// The names of all ops, in the order of the table in SPEC.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name in the text form.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$variant(_) => $name),* }
            }

            pub(crate) fn infer(
                &self,
                args: &[&TensorType],
                declared: Option<&TensorType>,
            ) -> Result<TensorType, String> {
                match self { $(Op::$variant(op) => op.infer(args, declared)),* }
            }

            pub(crate) fn attrs(&self) -> Attrs {
                let mut out = Attrs::default();
                match self { $(Op::$variant(op) => op.attrs(&mut out)),* }
                out
            }

            /// Its attributes as the text form writes them: `eps=1e-5`.
            pub fn attrs_text(&self) -> String {
                let attrs = self.attrs().0.into_iter().map(|(key, value)| format!("{key}={value}"));
                attrs.collect::<Vec<_>>().join(", ")
            }

            pub(crate) fn parse(name: &str, attrs: &mut AttrReader) -> Result<Op, String> {
                match name {
                    $($name => $variant::parse(attrs).map(Op::$variant),)*
                    _ => Err(format!("{} is not an op", crate::error::quoted(name))),
                }
            }

            pub(crate) fn eval(&self, id: NodeId, env: &mut Env<'_>) -> crate::Result<()> {
                match self { $(Op::$variant(op) => op.eval(id, env)),* }
            }
        }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op {
                Op::$variant(op)
            }
        })*
    };
}

ops! {
    /// What the caller gives each step: tokens, positions, slots, rows with logits.
    "input" Input,
    /// A tensor of the model file.
    "weight" Weight,
    /// The keys or values of a layer, kept between steps.
    "cache" Cache,
    /// Rows of a table.
    "embed" Embed,
    /// Rows times the transpose of one or more weights.
    "linear" Linear,
    /// Root-mean-square normalization over the last dimension.
    "rms_norm" RmsNorm,
    /// Normalization to mean 0 and variance 1 over the last dimension.
    "layer_norm" LayerNorm,
    /// Rotary position embedding.
    "rope" Rope,
    /// Writes keys or values of the step into a cache.
    "store" Store,
    /// Causal attention over a cache.
    "attend" Attend,
    /// An elementwise function.
    "unary" Unary,
    /// Elementwise arithmetic of two values.
    "binary" Binary,
    /// The same elements under other dimensions.
    "reshape" Reshape,
    /// A range of the last dimension.
    "slice" Slice,
    /// Values side by side in the last dimension.
    "concat" Concat,
    /// Shares of e^x.
    "softmax" Softmax,
    /// Shares of x.
    "normalize" Normalize,
    /// Indices of the greatest elements of a row.
    "top_k" TopK,
    /// The elements of a row that were picked.
    "pick" Pick,
    /// Rows times the weights of the experts they picked.
    "experts" Experts,
    /// The weighted sum of the rows of a row.
    "mix" Mix,
    /// The rows whose logits are wanted.
    "select" Select,
    /// A token from a row of logits.
    "sample" Sample,
}

/// Takes exactly `N` arguments.
pub(crate) fn arity<'a, const N: usize>(
    args: &'a [&'a TensorType],
) -> Result<[&'a TensorType; N], String> {
    args.try_into().map_err(|_| format!("takes {N} arguments, got {}", args.len()))
}

/// Demands an activation: f32 with a row a token.
pub(crate) fn activation(what: &str, ty: &TensorType) -> Result<(), String> {
    if ty.is_activation() {
        return Ok(());
    }
    Err(format!("{what} must be f32 rows, is {ty}"))
}
