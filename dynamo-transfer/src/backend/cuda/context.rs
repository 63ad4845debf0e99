#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute as Attribute};

use super::ipc::UUID_BYTES;
use super::library::{check, failed};
use crate::error::{Error, ErrorKind, Result};

/// The primary context of a device, which all libraries of a process share; cheap to clone.
#[derive(Clone)]
pub(super) struct Context(Arc<Retained>);

struct Retained {
    device: CUdevice,
    context: CUcontext,
}

// SAFETY: a context may be used by any thread.
unsafe impl Send for Retained {}
// SAFETY: as above.
unsafe impl Sync for Retained {}

/// The context is current on this thread until this is dropped; then it is what it was before, since the
/// thread belongs to somebody else.
pub(super) struct Entered<'a>(PhantomData<(&'a Context, *mut ())>);

impl Context {
    /// Retains the context of a device; the driver is started.
    pub(super) fn retain(ordinal: u32) -> Result<Self> {
        let count = driver::device::get_count();
        let count = count.map_err(|error| failed(error, "counting devices"))?;
        let found = i32::try_from(ordinal).ok().filter(|&ordinal| ordinal < count);
        let ordinal = found.ok_or_else(|| {
            let message = format!("no CUDA device {ordinal}: there are {count}");
            Error::new(ErrorKind::BackendUnavailable, message)
        })?;
        let device = driver::device::get(ordinal);
        let device = device.map_err(|error| failed(error, "finding a device"))?;
        // SAFETY: the device is the driver's own; what is retained is released when dropped.
        let context = unsafe { driver::primary_ctx::retain(device) };
        let context = context.map_err(|error| failed(error, "making a context"))?;
        Ok(Self(Arc::new(Retained { device, context })))
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: the context is retained.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.0.context) }, "entering a context")?;
        Ok(Entered(PhantomData))
    }

    /// Returns the device's compute capability.
    pub(super) fn capability(&self) -> Result<(i32, i32)> {
        let read = |attribute| {
            // SAFETY: the device is the driver's own.
            let value = unsafe { driver::device::get_attribute(self.0.device, attribute) };
            value.map_err(|error| failed(error, "asking for the compute capability"))
        };
        let major = read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok((major, read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
    }

    /// Names the device and the driver's version.
    pub(super) fn describe(&self) -> Result<String> {
        let name = driver::device::get_name(self.0.device);
        let name = name.map_err(|error| failed(error, "asking for the name"))?;
        let mut version = 0;
        // SAFETY: the place is written to and nothing else.
        check(unsafe { sys::cuDriverGetVersion(&raw mut version) }, "asking for the version")?;
        let (major, minor) = (version / 1000, version % 1000 / 10);
        Ok(format!("{name}; driver for CUDA {major}.{minor}"))
    }

    /// Returns the number of the device that is the same in every process.
    pub(super) fn uuid(&self) -> Result<[u8; UUID_BYTES]> {
        let uuid = driver::device::get_uuid(self.0.device);
        let uuid = uuid.map_err(|error| failed(error, "asking for the number"))?;
        Ok(uuid.bytes.map(|byte| byte.cast_unsigned()))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut left = std::ptr::null_mut();
        // SAFETY: this very thread has entered: the guard is not `Send`.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut left) };
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and is used no more.
        if let Err(error) = unsafe { driver::primary_ctx::release(self.device) } {
            tracing::warn!(?error, "giving back a context");
        }
    }
}
