//! A thin layer on the driver's API: every call checked, every handle freed, nothing else.
//!
//! The library is loaded when it is first asked for, so the crate builds and runs without it.
//! [`Device::open`] asks in an order in which nothing can panic: is there a library, does it start,
//! how old is it, how many devices has it; only then are other functions called, all of which every
//! driver since CUDA 12.0 has.

use crate::{Error, Result};
use cudarc::driver::sys;
use smallvec::SmallVec;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// The oldest driver whose functions are all there.
const OLDEST: i32 = 12_000;

/// Turns a result code into an error that names the call.
pub(super) fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const std::ffi::c_char = std::ptr::null();
    // SAFETY: the driver is loaded (it gave the code) and returns a static string.
    let what = unsafe {
        sys::cuGetErrorString(code, &mut text);
        if text.is_null() { None } else { CStr::from_ptr(text).to_str().ok() }
    };
    let what = what.map_or_else(|| format!("{code:?}"), |w| format!("{w} ({code:?})"));
    Err(Error::Device { call: call.to_string(), what })
}

macro_rules! call {
    ($name:ident($($arg:expr),* $(,)?)) => {
        check(stringify!($name), cudarc::driver::sys::$name($($arg),*))
    };
}

mod event;
mod memory;
pub(super) use event::Event;
pub(super) use memory::{Memory, Pinned};

/// A device that can be used, and what of it matters here.
#[derive(Clone, Debug)]
pub struct Device {
    context: Arc<Context>,
    /// As the driver names it.
    pub name: String,
    /// Compute capability, `90` for 9.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Their clock, in kHz.
    pub clock: u32,
    /// Shared memory that a block may have.
    pub block_shared: u32,
    /// Shared memory that a multiprocessor has.
    pub processor_shared: u32,
    /// Version of the driver, 13000 for 13.0.
    pub driver: i32,
}

#[derive(Debug)]
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be used by any thread that makes it current.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. Nothing can be done about a failure here.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

fn unusable(what: impl Into<String>) -> Error {
    Error::Unsupported(format!("CUDA: {}", what.into()))
}

impl Device {
    /// The first device.
    ///
    /// # Errors
    /// When there is no driver, none that is new enough, or no device: each says so.
    pub fn open() -> Result<Device> {
        // The bindings panic where a library or a function is missing; what is asked here is old
        // enough to be in any, and still the promise is an error.
        let opened = std::panic::catch_unwind(Device::probe);
        opened.unwrap_or_else(|_| Err(unusable("the driver lacks a function that is needed")))
    }

    fn probe() -> Result<Device> {
        // SAFETY: looks for a library and opens it; its constructors are the driver's own.
        if !unsafe { sys::is_culib_present() } {
            return Err(unusable("no driver was found (libcuda.so)"));
        }
        // SAFETY: the library is there; out-pointers are to locals.
        unsafe {
            call!(cuInit(0)).map_err(|e| unusable(format!("the driver does not start: {e}")))?;
            let (mut driver, mut count) = (0, 0);
            call!(cuDriverGetVersion(&mut driver))?;
            if driver < OLDEST {
                return Err(unusable(format!(
                    "the driver is for CUDA {}.{}, at least 12.0 is needed",
                    driver / 1000,
                    driver % 1000 / 10
                )));
            }
            call!(cuDeviceGetCount(&mut count))?;
            if count == 0 {
                return Err(unusable("the driver has no device"));
            }
            let mut device = 0;
            call!(cuDeviceGet(&mut device, 0))?;
            let mut name = [0; 256];
            call!(cuDeviceGetName(name.as_mut_ptr(), 255, device))?;
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            use sys::CUdevice_attribute as Attribute;
            let get = |attribute| {
                let mut value = 0;
                call!(cuDeviceGetAttribute(&mut value, attribute, device))?;
                Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
            };
            let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let processors = get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let clock = get(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
            let block_shared =
                get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let processor_shared =
                get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
            let mut context = std::ptr::null_mut();
            call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
            let context = Arc::new(Context { device, context });
            let capability = major * 10 + minor;
            Ok(Device {
                context,
                name,
                capability,
                processors,
                clock,
                block_shared,
                processor_shared,
                driver,
            })
        }
    }

    /// Makes the device the calling thread's.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { call!(cuCtxSetCurrent(self.context.context)) }
    }

    /// Bytes that can be allocated now, and that there are.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: out-pointers are to locals.
        unsafe { call!(cuMemGetInfo_v2(&mut free, &mut total))? };
        Ok((free as u64, total as u64))
    }
}

/// A queue of work.
#[derive(Debug)]
pub(super) struct Stream {
    device: Device,
    pub raw: sys::CUstream,
}

// SAFETY: a stream may be used by any thread that has made its context current.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: &Device) -> Result<Stream> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: out-pointer to a local.
        unsafe { call!(cuStreamCreate(&mut raw, flags))? };
        Ok(Stream { device: device.clone(), raw })
    }

    /// Waits until all that was asked for is done.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        unsafe { call!(cuStreamSynchronize(self.raw)) }
    }

    /// Copies `from` to the device. `from` must not change before [`Stream::wait`].
    ///
    /// # Safety
    /// `to` must be an allocation with room for it.
    pub(super) unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise about `to`; `from` is a slice.
        unsafe { call!(cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.raw)) }
    }

    /// Sets so many bytes.
    ///
    /// # Safety
    /// `to` must be an allocation with room for them.
    pub(super) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { call!(cuMemsetD8Async(to, byte, bytes, self.raw)) }
    }

    /// Copies from the device, and waits.
    ///
    /// # Safety
    /// `from` must be an allocation of at least that many bytes.
    pub(super) unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        // SAFETY: the caller's promise about `from`; `to` is a slice.
        unsafe { call!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.raw))? };
        self.wait()
    }

    /// Records what `ask` puts into the stream as a graph.
    pub(super) fn capture(&self, ask: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let mut graph = Graph {
            device: self.device.clone(),
            raw: std::ptr::null_mut(),
            ready: std::ptr::null_mut(),
        };
        // SAFETY: the stream is alive; capture ends also when `ask` fails, which invalidates it.
        unsafe {
            call!(cuStreamBeginCapture_v2(self.raw, mode))?;
            let asked = ask();
            let ended = call!(cuStreamEndCapture(self.raw, &mut graph.raw));
            asked?;
            ended?;
            call!(cuGraphInstantiateWithFlags(&mut graph.ready, graph.raw, 0))?;
        }
        Ok(graph)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created in `new` and destroyed once.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// A recorded step.
#[derive(Debug)]
pub(super) struct Graph {
    device: Device,
    raw: sys::CUgraph,
    ready: sys::CUgraphExec,
}

// SAFETY: used by one thread at a time, through `&mut` or the session that owns it.
unsafe impl Send for Graph {}

impl Graph {
    pub(super) fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { call!(cuGraphLaunch(self.ready, stream.raw)) }
    }

    /// How many nodes it has, and how many of them are kernels.
    pub(super) fn nodes(&self) -> Result<(usize, usize)> {
        let mut count = 0;
        // SAFETY: first asks for the number, then for as many as the list has room for.
        unsafe {
            call!(cuGraphGetNodes(self.raw, std::ptr::null_mut(), &mut count))?;
            let mut nodes = vec![std::ptr::null_mut(); count];
            call!(cuGraphGetNodes(self.raw, nodes.as_mut_ptr(), &mut count))?;
            let mut kernels = 0;
            for &node in &nodes {
                let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
                call!(cuGraphNodeGetType(node, &mut kind))?;
                kernels += usize::from(kind == sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
            }
            Ok((nodes.len(), kernels))
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_err() {
            return;
        }
        // SAFETY: made in `capture` and destroyed once; null if making failed.
        unsafe {
            if !self.ready.is_null() {
                sys::cuGraphExecDestroy(self.ready);
            }
            if !self.raw.is_null() {
                sys::cuGraphDestroy(self.raw);
            }
        }
    }
}

/// Loaded kernels.
#[derive(Debug)]
pub(super) struct Module {
    device: Device,
    raw: sys::CUmodule,
}

// SAFETY: as for the context.
unsafe impl Send for Module {}
// SAFETY: as for the context.
unsafe impl Sync for Module {}

/// A kernel of a module that lives as long as the session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    raw: sys::CUfunction,
}

// SAFETY: a handle of the module's, usable as the module is.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    pub(super) fn load(device: &Device, cubin: &[u8]) -> Result<Module> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a cubin says how long it is.
        unsafe { call!(cuModuleLoadData(&mut raw, cubin.as_ptr().cast()))? };
        Ok(Module { device: device.clone(), raw })
    }

    /// The kernel `name`, allowed `shared` bytes of dynamic shared memory.
    pub(super) fn function(&self, name: &CStr, shared: u32) -> Result<Function> {
        let mut raw = std::ptr::null_mut();
        use sys::CUfunction_attribute_enum as Attribute;
        // SAFETY: the module is alive; the name ends with a zero.
        unsafe {
            call!(cuModuleGetFunction(&mut raw, self.raw, name.as_ptr()))?;
            // A multiprocessor that must change how it divides its memory drains first.
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            call!(cuFuncSetAttribute(raw, attribute, 100))?;
            if shared > 48 << 10 {
                let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                call!(cuFuncSetAttribute(raw, attribute, i32::try_from(shared).unwrap_or(0)))?;
            }
        }
        Ok(Function { raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: loaded once, unloaded once.
            unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Shape {
    pub grid: (u32, u32),
    /// Blocks along the third axis, which are a cluster if there are several.
    pub cluster: u32,
    pub block: u32,
    pub shared: u32,
    /// Whether it may start before its predecessor ends.
    pub early: bool,
    /// Whether all its blocks must be on the chip at once.
    pub together: bool,
}

impl Function {
    /// Puts a launch into the stream.
    ///
    /// # Safety
    /// `parameters` must be the one structure that the kernel takes, and name memory that is alive
    /// and large enough.
    pub(super) unsafe fn launch<P>(&self, s: &Shape, parameters: &P, on: &Stream) -> Result<()> {
        use sys::CUlaunchAttributeID as Id;
        let dim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: s.cluster };
        let early = sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let cluster = sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { clusterDim: dim },
        };
        let together = sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        };
        let wanted = [(s.early, early), (s.cluster > 1, cluster), (s.together, together)];
        let mut attributes = SmallVec::<[_; 3]>::new();
        attributes.extend(wanted.into_iter().filter(|w| w.0).map(|w| w.1));
        let config = sys::CUlaunchConfig {
            gridDimX: s.grid.0,
            gridDimY: s.grid.1,
            gridDimZ: s.cluster,
            blockDimX: s.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: s.shared,
            hStream: on.raw,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut list = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        // SAFETY: configuration and list live through the call, which copies the parameters.
        unsafe {
            call!(cuLaunchKernelEx(&config, self.raw, list.as_mut_ptr(), std::ptr::null_mut()))
        }
    }
}
