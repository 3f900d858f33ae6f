//! The functions of the cubins, by the kernel that launches ask for.

use crate::cuda::CudaBackend;
use crate::cuda::abi::{CHAIN_SHARED, FEW, HALVES, SEVERAL_SHARED, TABLES, TILE_NAMES, TILES};
use crate::cuda::driver::{Function, Module};
use crate::cuda::layout::Product;
use crate::cuda::lower::gemm_shared;
use crate::cuda::program::Kernel;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

/// The functions of a kernel, by the tile of rows: many times the same for most.
pub(super) type Functions = [Function; TILES];
pub(super) type Kernels = BTreeMap<Option<Kernel>, Functions>;

/// Modules, and the functions in them: all sessions of a backend share them.
#[derive(Debug)]
pub(in crate::cuda) struct Loaded {
    pub(super) functions: Kernels,
    _modules: Vec<Module>,
}

/// All kernels, each allowed the shared memory it may be given. The kernel without a name of its own
/// is the one that takes a step's rows.
pub(in crate::cuda) fn kernels(backend: &CudaBackend) -> Result<Loaded> {
    let device = &backend.device;
    device.bind()?;
    // Kernels have a few KiB of their own.
    let most = device.block_shared.saturating_sub(4 << 10);
    let (mut modules, mut functions) = (Vec::new(), BTreeMap::new());
    let chip = &backend.target.0;
    for cubin in backend.cubins.cubins {
        let module = Module::load(device, cubin.bytes)?;
        match cubin.name {
            "gemv" => {
                for product in Product::ALL {
                    let (most, name) = (most.saturating_sub(14 << 10), named("gemv", product, "")?);
                    functions.insert(Some(Kernel::Gemv(product)), one(&module, &name, most)?);
                }
            }
            "gemm" | "picked" => {
                let picked = cubin.name == "picked";
                for product in Product::ALL {
                    let shared = gemm_shared(chip, product) as u32;
                    let mut tiles = if chip.hopper { TILE_NAMES } else { [""; TILES] };
                    if product.in_planes() || picked {
                        tiles[FEW] = tiles[HALVES];
                    }
                    if product != Product::P4 {
                        tiles[TABLES] = tiles[HALVES];
                    }
                    let mut all = one(&module, &named(cubin.name, product, tiles[0])?, shared)?;
                    for (to, tile) in all.iter_mut().zip(tiles).skip(1) {
                        *to = module.function(&named(cubin.name, product, tile)?, shared)?;
                    }
                    let kernel = if picked { Kernel::Picked } else { Kernel::Gemm };
                    functions.insert(Some(kernel(product)), all);
                }
                if picked {
                    let sort = one(&module, c"sort_picks", most)?;
                    functions.insert(Some(Kernel::SortPicks), sort);
                }
            }
            "experts" => {
                for product in Product::ALL {
                    let (kernel, name) = (Kernel::Experts(product), named("experts", product, "")?);
                    functions.insert(Some(kernel), one(&module, &name, most)?);
                }
            }
            "rows" => {
                functions.insert(Some(Kernel::Rows), one(&module, c"rows", most)?);
            }
            "attend" => {
                functions.insert(Some(Kernel::Attend), one(&module, c"attend", most)?);
            }
            "attend_one" => {
                for (pairs, name) in
                    [(1, c"attend_one_1"), (2, c"attend_one_2"), (4, c"attend_one_4")]
                {
                    let kernel = Kernel::AttendOne(pairs);
                    let most = most.saturating_sub(10 << 10);
                    functions.insert(Some(kernel), one(&module, name, most)?);
                }
            }
            "attend_many" => {
                for (pairs, name) in
                    [(1, c"attend_many_1"), (2, c"attend_many_2"), (4, c"attend_many_4")]
                {
                    functions.insert(Some(Kernel::AttendMany(pairs)), one(&module, name, most)?);
                }
                let few = [
                    (1, 4, c"attend_few_1_4"),
                    (1, 8, c"attend_few_1_8"),
                    (2, 4, c"attend_few_2_4"),
                    (2, 8, c"attend_few_2_8"),
                ];
                for (pairs, warps, name) in few.into_iter().filter(|_| chip.hopper) {
                    let kernel = Kernel::AttendFew(pairs, warps);
                    functions.insert(Some(kernel), one(&module, name, most)?);
                }
            }
            "chain" => {
                let most = device.block_shared.saturating_sub(CHAIN_SHARED as u32);
                functions.insert(Some(Kernel::Chain), one(&module, c"chain", most)?);
            }
            "several" => {
                let most = device.block_shared.saturating_sub(SEVERAL_SHARED as u32);
                functions.insert(Some(Kernel::SeveralChain), one(&module, c"several", most)?);
            }
            _ => {
                functions.insert(Some(Kernel::Scan), one(&module, c"scan", most)?);
                functions.insert(
                    Some(Kernel::Pick),
                    one(&module, c"pick", most.saturating_sub(20 << 10))?,
                );
                functions.insert(None, one(&module, c"take", 0)?);
            }
        }
        modules.push(module);
    }
    Ok(Loaded { functions, _modules: modules })
}

/// A kernel that has one function.
fn one(module: &Module, name: &CStr, shared: u32) -> Result<Functions> {
    Ok([module.function(name, shared)?; TILES])
}

fn named(kernel: &str, product: Product, tile: &str) -> Result<CString> {
    let name = format!("{kernel}_{}{tile}", product.name());
    CString::new(name.as_str())
        .map_err(|_| Error::Unsupported(format!("CUDA: {name:?} is no name")))
}

pub(super) fn function(functions: &Kernels, kernel: Option<Kernel>) -> Result<Functions> {
    let found = functions.get(&kernel).copied();
    found.ok_or_else(|| Error::Unsupported(format!("CUDA: there is no kernel {kernel:?}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_product_has_kernels_by_its_name() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/cubins/MANIFEST");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let there = |chip: &str, name: CString| {
            let name = name.into_string().unwrap();
            let line = |l: &str| l.starts_with(chip) && l.split(' ').any(|word| word == name);
            assert!(manifest.lines().any(line), "{chip} {name}");
        };
        for product in Product::ALL {
            for (kernel, tile) in [("gemv", ""), ("experts", ""), ("gemm", "")] {
                there("sm_80", named(kernel, product, tile).unwrap());
            }
            for (kernel, tile) in [("gemv", ""), ("gemm", "_some"), ("picked", "_halves")] {
                there("sm_90a", named(kernel, product, tile).unwrap());
            }
        }
    }
}
