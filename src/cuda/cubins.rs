//! The prebuilt kernels, embedded, and which of them a device takes.

use crate::{Error, Result};

/// One family of kernels for one architecture.
#[derive(Debug)]
pub(super) struct Cubin {
    pub name: &'static str,
    pub bytes: &'static [u8],
}

/// All families of one architecture.
#[derive(Debug)]
pub(super) struct Set {
    /// `90` for sm_90a.
    pub capability: u32,
    pub cubins: &'static [Cubin],
}

macro_rules! sets {
    ($($capability:literal $folder:literal [$($name:literal),*]),* $(,)?) => {
        /// In rising order. A device runs the cubins of its own major version, up to its minor one.
        static SETS: &[Set] = &[$(Set {
            capability: $capability,
            cubins: &[$(Cubin {
                name: $name,
                bytes: include_bytes!(concat!("../../cubins/", $folder, "/", $name, ".cubin")),
            }),*],
        }),*];
    };
}

sets! {
    80 "sm_80" ["gemv", "gemm", "experts", "rows", "attend", "attend_one", "attend_many", "sample"],
    86 "sm_86" ["gemv", "gemm", "experts", "rows", "attend", "attend_one", "attend_many", "sample"],
    89 "sm_89" ["gemv", "gemm", "experts", "rows", "attend", "attend_one", "attend_many", "sample"],
    90 "sm_90a" ["gemv", "gemm", "experts", "rows", "attend", "attend_one", "attend_many", "sample", "chain", "several", "picked"],
}

/// The set for a device of this compute capability.
pub(super) fn pick(capability: u32) -> Result<&'static Set> {
    // 90a is for 9.0 alone.
    let runs = |s: &&Set| {
        s.capability == capability
            || (s.capability < 90
                && s.capability / 10 == capability / 10
                && s.capability <= capability)
    };
    SETS.iter().rev().find(runs).ok_or_else(|| {
        let names: Vec<String> = SETS.iter().map(|s| format!("sm_{}", s.capability)).collect();
        Error::Unsupported(format!(
            "CUDA: the device is sm_{capability}, and there are kernels for {} only",
            names.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::pick;

    #[test]
    fn a_device_gets_the_kernels_it_can_run() {
        let of = |device| pick(device).map(|s| s.capability).ok();
        assert_eq!(
            [80, 86, 87, 89, 90].map(of),
            [Some(80), Some(86), Some(86), Some(89), Some(90)]
        );
        assert_eq!([75, 100, 120].map(of), [None; 3]);
        let message = pick(75).err().unwrap().to_string();
        assert!(message.contains("sm_75") && message.contains("sm_80, sm_86, sm_89, sm_90"));
    }
}
