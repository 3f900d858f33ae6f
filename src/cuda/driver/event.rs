//! Marks in a stream, the time between them, and, for `profile`, what memory can do.

use super::{Device, Memory, Stream, check};
use crate::Result;
use cudarc::driver::sys;

/// A mark in a stream that knows when it was passed.
#[derive(Debug)]
pub(in crate::cuda) struct Event {
    device: Device,
    raw: sys::CUevent,
}

// SAFETY: a mark may be used by any thread that has made its context current.
unsafe impl Send for Event {}

impl Event {
    pub(in crate::cuda) fn new(device: &Device) -> Result<Event> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: out-pointer to a local.
        unsafe { call!(cuEventCreate(&mut raw, flags))? };
        Ok(Event { device: device.clone(), raw })
    }

    /// Puts the mark into the stream.
    pub(in crate::cuda) fn record(&self, on: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { call!(cuEventRecord(self.raw, on.raw)) }
    }

    /// Waits until all before the mark is done.
    pub(in crate::cuda) fn wait(&self) -> Result<()> {
        // SAFETY: the mark is alive.
        unsafe { call!(cuEventSynchronize(self.raw)) }
    }

    /// Seconds from `earlier` to this mark. Both must have been passed.
    pub(in crate::cuda) fn since(&self, earlier: &Event) -> Result<f64> {
        let mut milliseconds = 0.0f32;
        // SAFETY: out-pointer to a local; both are alive.
        unsafe { call!(cuEventElapsedTime(&mut milliseconds, earlier.raw, self.raw))? };
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created in `new` and destroyed once.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

impl Stream {
    /// Copies one memory over another, as much as both hold.
    pub(in crate::cuda) fn copy(&self, to: &Memory, from: &Memory) -> Result<()> {
        let bytes = to.bytes.min(from.bytes);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: two allocations of at least that many bytes.
        unsafe { call!(cuMemcpyDtoDAsync_v2(to.address, from.address, bytes, self.raw)) }
    }
}

impl Device {
    /// Bytes a second that the memory's pins carry: two a clock on each. None where the driver does
    /// not say.
    pub(in crate::cuda) fn peak(&self) -> Result<Option<f64>> {
        use sys::CUdevice_attribute as Attribute;
        let get = |attribute| {
            let mut value = 0;
            // SAFETY: out-pointer to a local; the device is alive.
            unsafe { call!(cuDeviceGetAttribute(&mut value, attribute, self.context.device))? };
            Ok::<f64, crate::Error>(f64::from(value.max(0)))
        };
        let kilohertz = get(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bits = get(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        let peak = 2.0 * kilohertz * 1e3 * bits / 8.0;
        Ok((peak > 0.0).then_some(peak))
    }
}
