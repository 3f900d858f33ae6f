//! Memory of the device, and of the host where the device sees it.

use super::{Device, Stream, check};
use crate::Result;
use cudarc::driver::sys;
use std::ffi::c_void;

/// Device memory.
#[derive(Debug)]
pub(in crate::cuda) struct Memory {
    device: Device,
    pub(in crate::cuda) address: u64,
    pub(in crate::cuda) bytes: usize,
}

impl Memory {
    /// Zeroed memory; none at all for 0 bytes.
    pub(in crate::cuda) fn new(device: &Device, stream: &Stream, bytes: usize) -> Result<Memory> {
        device.bind()?;
        let mut memory = Memory { device: device.clone(), address: 0, bytes };
        if bytes > 0 {
            // SAFETY: out-pointer to a field; then the range that was just allocated.
            unsafe {
                call!(cuMemAlloc_v2(&mut memory.address, bytes))?;
                call!(cuMemsetD8Async(memory.address, 0, bytes, stream.raw))?;
            }
        }
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.address != 0 && self.device.bind().is_ok() {
            // SAFETY: allocated in `new` and freed once.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Page-locked memory of the host that the device can see.
#[derive(Debug)]
pub(in crate::cuda) struct Pinned {
    device: Device,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(in crate::cuda) fn new(device: &Device, bytes: usize) -> Result<Pinned> {
        device.bind()?;
        let mut pointer: *mut c_void = std::ptr::null_mut();
        // SAFETY: out-pointer to a local; the memory is zeroed before anyone reads it.
        unsafe {
            call!(cuMemHostAlloc(&mut pointer, bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP))?;
            std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes);
        }
        Ok(Pinned { device: device.clone(), pointer: pointer.cast(), bytes })
    }

    /// Where the device sees it.
    pub(in crate::cuda) fn address(&self) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the memory was allocated as mapped.
        unsafe {
            call!(cuMemHostGetDevicePointer_v2(&mut address, self.pointer.cast(), 0))?;
        }
        Ok(address)
    }

    pub(in crate::cuda) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned, as long as it says, and the device writes only while a stream runs, which
        // callers wait for.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }

    /// The `i`-th word, read as the device left it.
    pub(in crate::cuda) fn word(&self, i: usize) -> u32 {
        if (i + 1) * 4 > self.bytes {
            return 0;
        }
        // SAFETY: within the memory, which is aligned to a page.
        unsafe { std::ptr::read_volatile(self.pointer.cast::<u32>().add(i)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated in `new` and freed once.
            unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
        }
    }
}
