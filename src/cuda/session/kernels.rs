//! The functions of the cubins, by the kernel that launches ask for.

use crate::cuda::CudaBackend;
use crate::cuda::driver::{Device, Function, Module};
use crate::cuda::lower::gemm_shared;
use crate::cuda::program::Kernel;
use crate::{Error, Result};
use std::collections::BTreeMap;

pub(super) type Functions = BTreeMap<Option<Kernel>, Function>;

/// All kernels, each allowed the shared memory it may be given. The kernel without a name of its own
/// is the one that notes tokens.
pub(super) fn kernels(backend: &CudaBackend, device: &Device) -> Result<(Vec<Module>, Functions)> {
    use crate::cuda::layout::Product::*;
    let products = [
        (P8, c"gemv_8_0", c"gemm_8_0", c"experts_8_0"),
        (P4, c"gemv_4_0", c"gemm_4_0", c"experts_4_0"),
        (P2, c"gemv_2_0", c"gemm_2_0", c"experts_2_0"),
        (P1, c"gemv_1_0", c"gemm_1_0", c"experts_1_0"),
        (P21, c"gemv_2_1", c"gemm_2_1", c"experts_2_1"),
        (P41, c"gemv_4_1", c"gemm_4_1", c"experts_4_1"),
        (P42, c"gemv_4_2", c"gemm_4_2", c"experts_4_2"),
        (F32, c"gemv_f32", c"gemm_f32", c"experts_f32"),
        (F16, c"gemv_f16", c"gemm_f16", c"experts_f16"),
        (Bf16, c"gemv_bf16", c"gemm_bf16", c"experts_bf16"),
    ];
    // Kernels have a few KiB of their own.
    let most = device.block_shared.saturating_sub(4 << 10);
    let (mut modules, mut functions) = (Vec::new(), BTreeMap::new());
    for cubin in &backend.cubins.cubins {
        let module = Module::load(device, cubin.bytes)?;
        match cubin.name {
            "gemv" => {
                for (product, name, ..) in products {
                    functions.insert(Some(Kernel::Gemv(product)), module.function(name, most)?);
                }
            }
            "gemm" => {
                for (product, _, name, _) in products {
                    let shared = gemm_shared(product) as u32;
                    functions.insert(Some(Kernel::Gemm(product)), module.function(name, shared)?);
                }
            }
            "experts" => {
                for (product, _, _, name) in products {
                    let kernel = Kernel::Experts(product);
                    functions.insert(Some(kernel), module.function(name, most)?);
                }
            }
            "rows" => {
                functions.insert(Some(Kernel::Rows), module.function(c"rows", most)?);
            }
            "attend" => {
                functions.insert(Some(Kernel::Attend), module.function(c"attend", most)?);
            }
            _ => {
                functions.insert(Some(Kernel::Scan), module.function(c"scan", 0)?);
                functions.insert(Some(Kernel::Pick), module.function(c"pick", 0)?);
                functions.insert(None, module.function(c"note", 0)?);
            }
        }
        modules.push(module);
    }
    Ok((modules, functions))
}

pub(super) fn function(functions: &Functions, kernel: Option<Kernel>) -> Result<Function> {
    let found = functions.get(&kernel).copied();
    found.ok_or_else(|| Error::Unsupported(format!("CUDA: there is no kernel {kernel:?}")))
}
