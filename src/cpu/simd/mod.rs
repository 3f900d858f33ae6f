//! The instruction sets, and the one vector vocabulary that every kernel is written in.
//!
//! A kernel is a generic function over [`Simd`], inlined into a `#[target_feature]` function of a
//! few words; [`Kernels`] is the table of those functions, one static an instruction set. What
//! the processor has is asked at run time ([`Isa::detect`]), and a call finds its kernel through
//! a pointer.
//!
//! All instruction sets give the same bits. The integer parts of a kernel are exact whatever the
//! instructions; its floats are combined in one order with fused multiply-adds, which
//! [`f32::mul_add`] computes to the same bit where no instruction does.
//!
//! An instruction set is a file here with its [`Simd`] and its table, and a row in `isas!`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use super::float::FloatFn;
use super::float::many::FloatKernels;
use super::matmul::words::WordKernels;
use super::matmul::{PlanesFn, SHAPES};
use super::quantize::QuantizeFn;

/// Makes [`Isa`] and what it answers out of one line an instruction set, the best last.
macro_rules! isas {
    ($($(#[doc = $doc:literal])* $(#[cfg($cfg:meta)])?
        $isa:ident, $name:literal, $table:path, [$($feature:tt)*];)*) => {
        /// An instruction set that kernels exist for, the best last.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Isa {
            $($(#[doc = $doc])* $(#[cfg($cfg)])? $isa,)*
        }

        const ALL: &[Isa] = &[$($(#[cfg($cfg)])? Isa::$isa),*];

        impl Isa {
            /// The name a user gives it.
            pub fn name(self) -> &'static str {
                match self { $($(#[cfg($cfg)])? Isa::$isa => $name,)* }
            }

            /// Whether this processor has it.
            pub fn is_available(self) -> bool {
                match self { $($(#[cfg($cfg)])? Isa::$isa => has!($($feature)*),)* }
            }

            pub(super) fn kernels(self) -> &'static Kernels {
                match self { $($(#[cfg($cfg)])? Isa::$isa => &$table,)* }
            }
        }
    };
}

/// Whether the processor has every one of these features.
#[cfg(target_arch = "x86_64")]
macro_rules! has {
    ($($feature:tt)*) => { true $(&& std::arch::is_x86_feature_detected!($feature))* };
}
#[cfg(target_arch = "aarch64")]
macro_rules! has {
    ($($feature:tt)*) => { true $(&& std::arch::is_aarch64_feature_detected!($feature))* };
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
macro_rules! has {
    () => {
        true
    };
}

isas! {
    /// Plain Rust.
    Scalar, "scalar", scalar::KERNELS, [];
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2, "avx2", avx2::KERNELS, ["avx2" "fma" "f16c"];
    /// AVX2 and its byte dot product.
    #[cfg(target_arch = "x86_64")]
    AvxVnni, "avxvnni", avx2::VNNI_KERNELS, ["avx2" "fma" "f16c" "avxvnni"];
    /// AVX-512 F, BW and VL, and its byte dot product.
    #[cfg(target_arch = "x86_64")]
    Avx512, "avx512", avx512::KERNELS, ["avx512f" "avx512bw" "avx512vl" "avx512vnni"];
    /// AVX-512, and its dot product of BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16, "avx512bf16", avx512::BF16_KERNELS,
        ["avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16"];
    /// NEON, which every 64-bit Arm processor has.
    #[cfg(target_arch = "aarch64")]
    Neon, "neon", neon::KERNELS, ["neon"];
    /// NEON and its byte dot product.
    #[cfg(target_arch = "aarch64")]
    Dotprod, "dotprod", neon::DOTPROD_KERNELS, ["neon" "dotprod"];
    /// NEON, its byte dot product and its 8-bit matrix products.
    #[cfg(target_arch = "aarch64")]
    I8mm, "i8mm", neon::I8MM_KERNELS, ["neon" "dotprod" "i8mm"];
}

/// How many bytes ahead of the weights that one row of activations meets the next are asked for; 0
/// for those themselves, in the order of memory. Measured with as many threads as cores on streams
/// of weights: on an Intel server 0.86 of a plain read's rate with 4 KiB, 0.65 without; on Zen 4
/// 256 bytes and less are as good as 0, and more is worse; on Zen 5 8 KiB are up to 1.7 times as fast as
/// 0, least where memory is the slower; 4 and 12 KiB a little less.
pub(super) fn ahead() -> usize {
    match maker() {
        Maker::Intel => 4096,
        Maker::Amd(ZEN_5..) => 8192,
        _ => 0,
    }
}

/// While the `i`th of `n` blocks of rows is multiplied, asks for its share of what is opened next: so many bytes at each place.
pub(super) fn ask_meanwhile(
    places: impl IntoIterator<Item = *const u8>,
    bytes: usize,
    i: usize,
    n: usize,
) {
    let share = bytes.div_ceil(n);
    for from in places {
        ask(from.wrapping_add(i * share), share);
    }
}

/// Asks for bytes that are soon needed and need not exist, into the second-level cache.
fn ask(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..bytes).step_by(super::repack::LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has SSE; a prefetch touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}

/// The family that AMD's processors are of since Zen 5.
const ZEN_5: u32 = 0x1a;

/// Who made the processor.
#[derive(Clone, Copy, PartialEq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 says so"))]
enum Maker {
    Intel,
    /// AMD, and of which family it is.
    Amd(u32),
    Other,
}

/// Who made the processor, by its own account, which is asked for once: where the machine is a virtual one
/// it takes long.
fn maker() -> Maker {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;

        static MAKER: std::sync::OnceLock<Maker> = std::sync::OnceLock::new();
        *MAKER.get_or_init(|| {
            let id = __cpuid(0);
            let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
            match vendor.as_flattened() {
                b"GenuineIntel" => Maker::Intel,
                b"AuthenticAMD" => {
                    let version = __cpuid(1).eax;
                    // What does not fit four bits is in eight more.
                    Maker::Amd((version >> 8 & 15) + (version >> 20 & 255))
                }
                _ => Maker::Other,
            }
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Maker::Other
    }
}

impl Isa {
    /// The fastest this processor has: the best, but for what is [slow](Isa::is_slow) there.
    pub fn detect() -> Isa {
        Isa::available().filter(|isa| !isa.is_slow()).last().unwrap_or(Isa::Scalar)
    }

    /// Whether the one before is faster here. Intel's servers take as long for a product of pairs of
    /// BF16 as for four fused multiply-adds, which do the work of two of them (Emerald Rapids: 0.74
    /// and 0.185 ns).
    fn is_slow(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            self == Isa::Avx512Bf16 && maker() == Maker::Intel
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// All that this processor has, the best last.
    pub fn available() -> impl Iterator<Item = Isa> {
        ALL.iter().copied().filter(|isa| isa.is_available())
    }

    /// The instruction set of that name.
    pub fn from_name(name: &str) -> Option<Isa> {
        ALL.iter().copied().find(|isa| isa.name() == name)
    }
}

/// The kernels of one instruction set.
pub(super) struct Kernels {
    /// For each number of activation rows a kernel takes at once, the greatest first, that number
    /// and its kernels. The last is for one row.
    pub(super) by_rows: &'static [(usize, ByRows)],
    pub(super) quantize: QuantizeFn,
    /// For BF16 where pairs of them are multiplied at once, in the order of `by_rows`.
    pub(super) pairs: Option<&'static [FloatFn]>,
    /// For many rows of integers of 16 bits.
    pub(super) words: Option<&'static WordKernels>,
    /// For many rows of floats, one by one.
    pub(super) floats: Option<&'static FloatKernels>,
}

/// The kernels for one number of activation rows.
pub(super) struct ByRows {
    /// In the order of [`super::matmul::shape_index`].
    pub(super) planes: [PlanesFn; SHAPES],
    /// In the order of [`super::repack::Width`].
    pub(super) floats: [FloatFn; 3],
}

/// The table of an instruction set: the kernels' generic bodies, each inlined into a function
/// with these target features. A number of rows may name another vector type for its products with
/// floats.
macro_rules! kernels {
    ($(#[$attr:meta])* $name:ident, $simd:ty, [$($rows:literal)*]) => {
        kernels! { $(#[$attr])* $name, $simd, $($rows $simd),* }
    };
    ($(#[$attr:meta])* $name:ident, $simd:ty, $($rows:literal $floats:ty),*) => {
        pub(in crate::cpu) static $name: $crate::cpu::simd::Kernels = {
            use $crate::cpu::{float, matmul, quantize, simd};

            $(#[$attr])*
            unsafe fn planes<
                const LO: u32,
                const HI: u32,
                const HALVES: bool,
                const MIN: bool,
                const SCALES: u8,
                const TABLE: u32,
                const ROWS: usize,
            >(
                args: &matmul::PlanesArgs,
            ) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { matmul::planes::<$simd, LO, HI, HALVES, MIN, SCALES, TABLE, ROWS>(args) }
            }

            $(#[$attr])*
            unsafe fn floats<S: simd::Simd, const WIDTH: u8, const ROWS: usize>(
                args: &float::FloatArgs,
            ) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { float::floats::<S, WIDTH, ROWS>(args) }
            }

            $(#[$attr])*
            unsafe fn quantize(args: &quantize::QuantizeArgs) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { quantize::groups::<$simd>(args) }
            }

            simd::Kernels {
                by_rows: &[$((
                    $rows,
                    simd::ByRows {
                        planes: [
                            planes::<1, 0, false, false, 1, 0, $rows>,
                            planes::<2, 0, false, false, 1, 0, $rows>,
                            planes::<2, 0, true, true, 3, 0, $rows>,
                            planes::<2, 1, true, false, 2, 0, $rows>,
                            planes::<4, 0, false, false, 0, 0, $rows>,
                            planes::<4, 0, false, false, 4, 5, $rows>,
                            planes::<4, 0, false, false, 0, 8, $rows>,
                            planes::<4, 0, false, true, 0, 0, $rows>,
                            planes::<4, 0, false, true, 2, 0, $rows>,
                            planes::<4, 1, false, false, 0, 0, $rows>,
                            planes::<4, 1, false, true, 0, 0, $rows>,
                            planes::<4, 1, false, true, 2, 0, $rows>,
                            planes::<4, 2, true, false, 2, 0, $rows>,
                            planes::<8, 0, false, false, 0, 0, $rows>,
                        ],
                        floats: [
                            floats::<$floats, 0, $rows>,
                            floats::<$floats, 1, $rows>,
                            floats::<$floats, 2, $rows>,
                        ],
                    },
                )),*],
                quantize,
                pairs: None,
                words: None,
                floats: None,
            }
        };
    };
}
use kernels;

/// The kernels for many rows, so many and so many parts at once, or so many rows where two parts go together, for an
/// instruction set that has [`Words`]: as many as there are registers for sums.
///
/// [`Words`]: super::matmul::words::Words
#[cfg(target_arch = "x86_64")]
macro_rules! word_kernels {
    ($(#[$attr:meta])* $name:ident, $simd:ty, $rows:literal of $parts:literal, $halves:literal) => {
        static $name: $crate::cpu::matmul::words::WordKernels = {
            use $crate::cpu::matmul::words;

            $(#[$attr])*
            unsafe fn open<
                const LO: u32,
                const HI: u32,
                const HALVES: bool,
                const MIN: bool,
                const SCALES: u8,
                const TABLE: u32,
            >(
                args: &words::OpenArgs,
            ) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { words::open::<$simd, LO, HI, HALVES, MIN, SCALES, TABLE>(args) }
            }

            $(#[$attr])*
            unsafe fn rows<
                const HALVES: bool,
                const MIN: bool,
                const N: usize,
                const ROWS: usize,
                const PARTS: usize,
            >(
                args: &words::RowsArgs,
            ) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { words::rows::<$simd, HALVES, MIN, N, ROWS, PARTS>(args) }
            }

            words::WordKernels {
                open: [
                    None,
                    None,
                    None,
                    Some(open::<2, 1, true, false, 2, 0>),
                    Some(open::<4, 0, false, false, 0, 0>),
                    Some(open::<4, 0, false, false, 4, 5>),
                    Some(open::<4, 0, false, false, 0, 8>),
                    Some(open::<4, 0, false, true, 0, 0>),
                    Some(open::<4, 0, false, true, 2, 0>),
                    Some(open::<4, 1, false, false, 0, 0>),
                    Some(open::<4, 1, false, true, 0, 0>),
                    Some(open::<4, 1, false, true, 2, 0>),
                    Some(open::<4, 2, true, false, 2, 0>),
                    Some(open::<8, 0, false, false, 0, 0>),
                ],
                rows: [
                    [rows::<false, false, 1, $rows, $parts>, rows::<false, false, 2, $rows, $parts>],
                    [rows::<true, false, 1, $halves, 2>, rows::<true, false, 2, $halves, 2>],
                    [rows::<false, true, 1, $rows, $parts>, rows::<false, true, 2, $rows, $parts>],
                ],
            }
        };
    };
}
#[cfg(target_arch = "x86_64")]
use word_kernels;

/// The kernels for many rows of floats: vectors of one tile or more, by so many rows at a time, of so many blocks of rows.
#[cfg(target_arch = "x86_64")]
macro_rules! float_kernels {
    ($(#[$attr:meta])* $name:ident, $simd:ty, $([$($vectors:literal)*] by $rows:literal of $blocks:literal),*) => {
        static $name: $crate::cpu::float::many::FloatKernels = {
            use $crate::cpu::float::many;

            $(#[$attr])*
            unsafe fn open<const WIDTH: u8>(args: &many::OpenArgs) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { many::open::<$simd, WIDTH>(args) }
            }

            $(#[$attr])*
            unsafe fn rows<const PAIR: bool, const N: usize, const ROWS: usize, const BLOCKS: usize>(
                args: &many::RowsArgs,
            ) {
                // SAFETY: the caller's promise; this function has the target features.
                unsafe { many::rows::<$simd, PAIR, N, ROWS, BLOCKS>(args) }
            }

            many::FloatKernels {
                open: [open::<0>, open::<1>, open::<2>],
                rows: &[$((
                    $blocks,
                    [
                        &[$(rows::<false, $vectors, $rows, $blocks>),*],
                        &[$(rows::<true, $vectors, $rows, $blocks>),*],
                    ],
                )),*],
            }
        };
    };
}
#[cfg(target_arch = "x86_64")]
use float_kernels;

/// The operations of an instruction set, each one unsafe expression.
macro_rules! ops {
    ($(fn $name:ident $([$($generics:tt)*])? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {
        $(
            #[inline(always)]
            unsafe fn $name $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller has the target features, and its pointers are valid.
                unsafe { $body }
            }
        )*
    };
}
use ops;

/// What a kernel computes with: [`LANES`](Simd::LANES) 32-bit lanes, of integers or of f32.
///
/// # Safety
/// Each function must be called where the instruction set's target features are on, and every
/// pointer must be valid for what the function reads or writes there; none need be aligned.
pub(super) trait Simd: Copy {
    /// 32-bit lanes of a vector: a power of two up to 16.
    const LANES: usize;
    /// What [`dot`](Simd::dot) takes off codes of 8 bits, so that they fit its instructions.
    const BIAS: i32;
    /// Integers: lanes of i32, or of four u8 codes.
    type I: Copy;
    /// Lanes of f32.
    type F: Copy;

    /// The same number in all lanes.
    unsafe fn set(x: i32) -> Self::I;
    unsafe fn load(at: *const u8) -> Self::I;
    /// Each lane, or each of its bytes, shifted right, or for a negative count left. What crosses
    /// from byte to byte where lanes are shifted is for the caller to mask off.
    unsafe fn shift(x: Self::I, right: i32) -> Self::I;
    /// Each byte and this one.
    unsafe fn mask(x: Self::I, byte: u8) -> Self::I;
    unsafe fn or(x: Self::I, y: Self::I) -> Self::I;
    /// The 16 bytes at `at`, for [`lookup`](Simd::lookup).
    unsafe fn table(at: *const u8) -> Self::I;
    /// For each byte of `x`, all of them below 16, that byte of the table.
    unsafe fn lookup(table: Self::I, x: Self::I) -> Self::I;
    /// Adds to each lane the products of 16 codes, four in each of `codes`, and the 16 signed
    /// bytes at `x`, none of them -128. A code is below `2^BITS`; with `BITS` = 8 it counts as
    /// `code - BIAS`. Exact.
    unsafe fn dot<const BITS: u32>(acc: Self::I, codes: [Self::I; 4], x: *const u8) -> Self::I;
    /// `255 * high + low`.
    unsafe fn join(high: Self::I, low: Self::I) -> Self::I;
    /// The products of lanes and the `LANES` i8 at `at`. None is more than an i32.
    unsafe fn mul_i8(x: Self::I, at: *const u8) -> Self::I;
    /// Each i32, rounded to f32.
    unsafe fn float(x: Self::I) -> Self::F;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load_f32(at: *const f32) -> Self::F;
    /// `LANES` f16 as f32.
    unsafe fn load_f16(at: *const u8) -> Self::F;
    /// The lower half of each lane, a BF16, as f32.
    unsafe fn even(x: Self::I) -> Self::F;
    /// The upper half of each lane, a BF16, as f32.
    unsafe fn odd(x: Self::I) -> Self::F;
    /// Adds to each lane the product of the upper BF16 of `w` and the upper one at `x`, then that of
    /// the lower ones. Only where [`Kernels::pairs`] are.
    unsafe fn dot_pair(acc: Self::F, w: Self::I, x: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            let x = Self::set(x.cast::<i32>().read_unaligned());
            let acc = Self::fma(Self::odd(w), Self::odd(x), acc);
            Self::fma(Self::even(w), Self::even(x), acc)
        }
    }
    /// `LANES` i8 as f32.
    unsafe fn load_i8(at: *const u8) -> Self::F;
    /// `LANES` u8 as f32.
    unsafe fn load_u8(at: *const u8) -> Self::F;
    /// `LANES` bytes' lower and upper four bits as f32.
    unsafe fn load_nibbles(at: *const u8) -> (Self::F, Self::F);
    /// 2 to the power of `e - 128` for `LANES` bytes `e`.
    unsafe fn load_e8m0(at: *const u8) -> Self::F;
    unsafe fn store(at: *mut f32, x: Self::F);
    unsafe fn add(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn mul(x: Self::F, y: Self::F) -> Self::F;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F;

    /// The greater of each lane and the bits of the f32 there without their sign: NaN is greater
    /// than infinity, and that than any number.
    unsafe fn max_bits(max: Self::I, x: Self::F) -> Self::I;
    /// The greatest lane.
    unsafe fn max_across(x: Self::I) -> i32;
    /// Rounds each lane, ties to even, and writes it as i8; all lie in -127..=127. Returns their
    /// sum.
    unsafe fn store_i8(at: *mut u8, x: Self::F) -> i32;
    /// Asks for the cache line there, which need not exist.
    unsafe fn prefetch(at: *const u8);
}
