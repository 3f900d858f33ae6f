//! The CUDA backend: prebuilt kernels, and a decode step that is one captured graph.
//!
//! | file | holds |
//! |---|---|
//! | `driver` | the driver's API, as much as is needed, each call checked |
//! | `cubins`, `abi` | the kernels of `kernels-src/`, and what they are given |
//! | `layout` | weights as the kernels read them |
//! | `lower`, `program` | a plan as launches |
//! | `session` | the memory, and the door to it |
//!
//! Weights go up once; caches, logits and the state of the step stay on the device, and sampling
//! happens there. The host launches the graph and reads a token.

mod abi;
mod cubins;
mod driver;
#[cfg(test)]
mod emulated;
mod layout;
mod lower;
mod program;
mod session;

pub use driver::Device;
pub use program::Program;
pub use session::CudaSession;

use crate::graph::op::Cache;
use crate::graph::{Graph, TensorType, Weights};
use crate::plan::{Backend, Group, Limits, Plan, Progress, Target};
use crate::{Error, Result};
use lower::Chip;
use session::Loaded;
use std::sync::{Arc, Mutex, PoisonError};

/// What to plan for: a chip, at hand or not.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CudaTarget(Chip);

impl CudaTarget {
    /// Chips that there are kernels for, by compute capability: A100, A10, L4, H100.
    ///
    /// # Errors
    /// When there are no kernels for it.
    pub fn of(capability: u32) -> Result<CudaTarget> {
        let (processors, kib_cycles, block, processor) = match capability {
            80 => (108, 77, 163, 164),
            86 => (72, 208, 99, 100),
            89 => (58, 404, 99, 100),
            90 => (132, 80, 227, 228),
            _ => {
                return Err(Error::Unsupported(format!(
                    "CUDA: nothing is known of sm_{capability}"
                )));
            }
        };
        Ok(CudaTarget(Chip {
            processors,
            kib_cycles,
            block_shared: block << 10,
            processor_shared: processor << 10,
            hopper: capability == 90,
        }))
    }
}

/// A CUDA device.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    device: Device,
    target: CudaTarget,
    cubins: &'static cubins::Set,
    /// What sessions run, once one was opened.
    loaded: Arc<Mutex<Option<Arc<Loaded>>>>,
}

impl CudaBackend {
    /// The first device, if it can be used.
    ///
    /// # Errors
    /// When there is no driver, no device, or no kernels for it: one line that says which.
    pub fn open() -> Result<CudaBackend> {
        let device = Device::open()?;
        let cubins = cubins::pick(device.capability)?;
        let cycles = |bytes_per_second: f64| {
            f64::from(device.processors) * f64::from(device.clock) * 1e3 * 1024.0 / bytes_per_second
        };
        let chip = Chip {
            processors: device.processors,
            kib_cycles: device.peak()?.map_or(0, |peak| cycles(peak).round() as u32),
            block_shared: device.block_shared as usize,
            processor_shared: device.processor_shared as usize,
            hopper: cubins.capability == 90,
        };
        Ok(CudaBackend { device, target: CudaTarget(chip), cubins, loaded: Arc::default() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The kernels, which the first session brings to the device.
    fn loaded(&self) -> Result<Arc<Loaded>> {
        let mut place = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*place {
            return Ok(loaded.clone());
        }
        let loaded = Arc::new(session::kernels(self)?);
        *place = Some(loaded.clone());
        Ok(loaded)
    }

    /// The architecture whose kernels are used: `90` for sm_90a.
    pub fn kernels(&self) -> u32 {
        self.cubins.capability
    }
}

impl Target for CudaTarget {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn refuses(&self, graph: &Graph, group: &Group) -> Option<String> {
        lower::refuses(&self.0, graph, group)
    }

    fn weight_bytes(&self, ty: &TensorType) -> Option<u64> {
        u64::try_from(lower::tensor_kind(ty)?.bytes()).ok()
    }

    fn cache_bytes(&self, _: &Cache, ty: &TensorType, limits: &Limits) -> Option<u64> {
        u64::try_from(lower::cache_bytes(ty, limits)?).ok()
    }

    fn workspace_bytes(&self, graph: &Graph, groups: &[Group], limits: &Limits) -> Option<u64> {
        let end = lower::work(&self.0, graph, groups, limits)?.offsets()?[program::Work::PARTS];
        u64::try_from(end).ok()
    }

    fn table_bytes(&self, graph: &Graph, limits: &Limits) -> Option<u64> {
        u64::try_from(lower::ropes(graph, limits.context)?.1).ok()
    }
}

impl Target for CudaBackend {
    fn name(&self) -> &'static str {
        self.target.name()
    }

    fn refuses(&self, graph: &Graph, group: &Group) -> Option<String> {
        self.target.refuses(graph, group)
    }

    fn weight_bytes(&self, ty: &TensorType) -> Option<u64> {
        self.target.weight_bytes(ty)
    }

    fn cache_bytes(&self, cache: &Cache, ty: &TensorType, limits: &Limits) -> Option<u64> {
        self.target.cache_bytes(cache, ty, limits)
    }

    fn workspace_bytes(&self, graph: &Graph, groups: &[Group], limits: &Limits) -> Option<u64> {
        self.target.workspace_bytes(graph, groups, limits)
    }

    fn table_bytes(&self, graph: &Graph, limits: &Limits) -> Option<u64> {
        self.target.table_bytes(graph, limits)
    }
}

impl CudaTarget {
    /// Lowers a plan, as [`CudaBackend`] does on such a chip.
    ///
    /// # Errors
    /// When the plan was made for another target.
    pub fn lower(&self, plan: &Plan) -> Result<Program> {
        let _span = tracing::info_span!("lower", rows = plan.limits().rows).entered();
        lower::lower(&self.0, plan)
    }
}

impl Backend for CudaBackend {
    type Program = Program;
    type Session = CudaSession;

    fn lower(&self, plan: &Plan) -> Result<Program> {
        self.target.lower(plan)
    }

    fn load_watched(
        &self,
        programs: Vec<Program>,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<CudaSession> {
        CudaSession::load(self, programs, weights, progress)
    }
}
