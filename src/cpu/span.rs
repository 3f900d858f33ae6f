//! Routines over spans of f32: norms, elementwise functions, rope, conversions, argmax.
//!
//! Each is written once over [`Lanes`] and stands in a table an instruction set,
//! [`SpanKernels`]; a program looks its table up once. The rest of a span that fills no vector is
//! copied into one, so an element's bits depend neither on where a span was cut nor on the
//! instruction set. Reductions keep sixteen partial sums, one a lane, whatever the registers.
//!
//! | file | holds |
//! |---|---|
//! | `maps` | a function of each element |
//! | `rows` | what looks at a whole row: norms, softmax, argmax |
//! | `turn` | rope |
//! | `convert` | to halves and back |
//!
//! # Safety of every kernel
//! The processor has the table's instruction set. Pointers are valid for `n` elements, aligned as
//! their type. `out` is either exactly one of the inputs or overlaps none of them.

mod convert;
mod maps;
mod rows;
mod turn;

use super::lanes::{LANES, Lanes};
use super::simd::Isa;
use crate::graph::{RopeLayout, UnaryKind};
use convert::{from_f16, to_f16};
use maps::{add, copy, div, gated, mix, mul, scale, sub, unary};
use rows::{argmax, layer_norm, normalize, rms_norm, softmax};
use simba::simd::AutoF32x16;
use turn::rope;

/// What [`SpanKernels::argmax`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Argmax {
    /// The greatest element, the lowest index of equals. Means nothing unless all are finite.
    pub index: usize,
    /// Whether every element is finite.
    pub finite: bool,
}

/// Declares the table's type and, for an instruction set, its functions and the table.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {
        /// The kernels of one instruction set. What must hold of pointers is said at the
        /// [module](self).
        pub struct SpanKernels {
            /// Which one, or the one without integer dot products, which add nothing to floats.
            pub isa: Isa,
            $($(#[$doc])* pub $name: unsafe fn($($arg: $ty),*) $(-> $out)?,)*
        }

        static SCALAR: SpanKernels =
            SpanKernels { isa: Isa::Scalar, $($name: $name::<AutoF32x16>),* };

        #[cfg(target_arch = "x86_64")]
        static AVX2: SpanKernels = {
            $(#[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { super::span::$name::<super::lanes::x86::Avx2>($($arg),*) }
            })*
            SpanKernels { isa: Isa::Avx2, $($name),* }
        };

        #[cfg(target_arch = "x86_64")]
        static AVX512: SpanKernels = {
            $(#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { super::span::$name::<super::lanes::x86::Avx512>($($arg),*) }
            })*
            SpanKernels { isa: Isa::Avx512, $($name),* }
        };

        #[cfg(target_arch = "aarch64")]
        static NEON: SpanKernels = {
            $(#[target_feature(enable = "neon")]
            unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { super::span::$name::<super::lanes::neon::Neon>($($arg),*) }
            })*
            SpanKernels { isa: Isa::Neon, $($name),* }
        };
    };
}

kernels! {
    /// `x / sqrt(mean(x²) + eps) * w` over one row; without a `w` if it is null.
    rms_norm(x: *const f32, w: *const f32, eps: f32, out: *mut f32, n: usize);
    /// `(x - mean(x)) / sqrt(var(x) + eps) * w + b` over one row; without `w` or `b` if null.
    layer_norm(x: *const f32, w: *const f32, b: *const f32, eps: f32, out: *mut f32, n: usize);
    /// `a + b`.
    add(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// `a * b`.
    mul(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// `a - b`.
    sub(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// `a / b`.
    div(a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// The sum of `count` spans of `n`, each times its weight, in their order; `out` is apart.
    mix(x: *const f32, w: *const f32, count: usize, out: *mut f32, n: usize);
    /// `x / Σ x` over one row.
    normalize(x: *const f32, out: *mut f32, n: usize);
    /// `c * x`.
    scale(x: *const f32, c: f32, out: *mut f32, n: usize);
    /// `x`.
    copy(x: *const f32, out: *mut f32, n: usize);
    /// The function at each element.
    unary(kind: UnaryKind, x: *const f32, out: *mut f32, n: usize);
    /// The function at each element of `a`, times that of `b`.
    gated(kind: UnaryKind, a: *const f32, b: *const f32, out: *mut f32, n: usize);
    /// Turns the first `dim` elements of each of `heads` heads that lie one after another; the
    /// rest is copied. `turn` is the row of a [`RopeTable`](super::rope::RopeTable).
    rope(x: *const f32, out: *mut f32, turn: *const f32, heads: usize, head_dim: usize, dim: usize,
        layout: RopeLayout);
    /// To the nearest half, ties to even; infinity where a half cannot reach.
    to_f16(x: *const f32, out: *mut u16, n: usize);
    /// From half precision.
    from_f16(x: *const u16, out: *mut f32, n: usize);
    /// `e^(x - max) / Σ e^(x - max)` over one row.
    softmax(x: *const f32, out: *mut f32, n: usize);
    /// The greatest of `n > 0` elements.
    argmax(x: *const f32, n: usize) -> Argmax;
}

impl SpanKernels {
    /// The table of an instruction set.
    pub fn of(isa: Isa) -> &'static SpanKernels {
        match isa {
            Isa::Scalar => &SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => &AVX512,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::Dotprod | Isa::I8mm => &NEON,
        }
    }
}

/// The `n < 16` elements at `p`, then zeros.
///
/// # Safety
/// `p` is valid for `n` elements; the processor has the instruction set of `L`.
#[inline(always)]
unsafe fn load_rest<L: Lanes>(p: *const f32, n: usize) -> L {
    let mut rest = [0.0f32; LANES];
    // SAFETY: the caller's promise; the array has sixteen elements.
    unsafe {
        std::ptr::copy_nonoverlapping(p, rest.as_mut_ptr(), n.min(LANES));
        L::load(rest.as_ptr())
    }
}

/// Stores the first `n < 16` lanes.
///
/// # Safety
/// `p` is valid for `n` elements; the processor has the instruction set of `L`.
#[inline(always)]
unsafe fn store_rest<L: Lanes>(x: L, p: *mut f32, n: usize) {
    let mut rest = [0.0f32; LANES];
    // SAFETY: as in `load_rest`.
    unsafe {
        x.store(rest.as_mut_ptr());
        std::ptr::copy_nonoverlapping(rest.as_ptr(), p, n.min(LANES));
    }
}

#[cfg(test)]
mod tests;
