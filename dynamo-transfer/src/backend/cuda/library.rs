#![expect(unsafe_code, reason = "loads the driver and reads what it says")]
//! The driver as a library: whether it is there and whole, and what its errors mean.
//!
//! The bindings look each call up when it is first made and panic if it is missing, so that all of them
//! are looked up here first.

use std::error::Error as _;
use std::ffi::{CStr, c_char};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};

use crate::error::{Error, ErrorKind, Result};

/// The call that copies a batch, as far as a driver has it. CUDA 12.8 came with the first form, 13.0
/// with the second, which no longer says which copy it could not start.
#[derive(Clone, Copy)]
pub(super) enum BatchCall {
    First(First),
    Second(Second),
}

pub(super) type First = unsafe extern "C" fn(
    *mut u64,
    *mut u64,
    *mut usize,
    usize,
    *mut sys::CUmemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    sys::CUstream,
) -> CUresult;

pub(super) type Second = unsafe extern "C" fn(
    *mut u64,
    *mut u64,
    *mut usize,
    usize,
    *mut sys::CUmemcpyAttributes,
    *mut usize,
    usize,
    sys::CUstream,
) -> CUresult;

/// Loads the driver; fails in the loader's words if it is not there, or by name if a call is missing.
pub(super) fn load() -> Result<()> {
    // SAFETY: the driver's own library, whose initialisers have no preconditions.
    if let Err(error) = unsafe { libloading::Library::new(DRIVER) } {
        // What the loader says is behind what the bindings say.
        let words = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        return Err(unavailable(format!("no CUDA driver: {words}")));
    }
    // SAFETY: as above.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(format!("{DRIVER} is there, but the bindings do not find it")));
    }
    for name in CALLS {
        // SAFETY: the type is only a pointer that is never called.
        if unsafe { find::<unsafe extern "C" fn()>(name) }.is_none() {
            let name = name.to_string_lossy();
            return Err(unavailable(format!("the CUDA driver is too old: it has no {name}")));
        }
    }
    Ok(())
}

/// Returns the call that copies a batch.
pub(super) fn batch_call() -> Option<BatchCall> {
    // SAFETY: the type is that of the declaration in CUDA's header.
    let second = unsafe { find::<Second>(c"cuMemcpyBatchAsync_v2") };
    // SAFETY: as above.
    let first = unsafe { find::<First>(c"cuMemcpyBatchAsync") };
    second.map(BatchCall::Second).or_else(|| first.map(BatchCall::First))
}

/// Tells whether the compiler of kernels can be loaded.
pub(super) fn has_compiler() -> bool {
    // SAFETY: its initialisers have no preconditions.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// # Safety
/// `F` is the type of the call, and the driver is there.
unsafe fn find<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: the driver is there, so that this does not panic.
    let library = unsafe { sys::culib() };
    // SAFETY: the caller's promise.
    unsafe { library.get::<F>(name.to_bytes_with_nul()) }.ok().map(|symbol| *symbol)
}

/// Makes a failed call an error of ours that says what was being done.
pub(super) fn check(result: CUresult, doing: &str) -> Result<()> {
    result.result().map_err(|error| failed(error, doing))
}

/// As [`check`], for calls that the bindings have checked.
pub(super) fn failed(error: DriverError, doing: &str) -> Error {
    Error::new(kind(error.0), format!("{doing}: {}", words(error.0)))
}

fn words(code: CUresult) -> String {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the place is written to and nothing else.
    let found = unsafe { sys::cuGetErrorString(code, &raw mut text) };
    if found != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{code:?}");
    }
    // SAFETY: the driver returned a text of its own that lives as long as it.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{} ({code:?})", text.to_string_lossy())
}

/// Returns what a caller can do about an error of the driver.
fn kind(code: CUresult) -> ErrorKind {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY
        | CUresult::CUDA_ERROR_MAP_FAILED
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | CUresult::CUDA_ERROR_MPS_MAX_CLIENTS_REACHED
        | CUresult::CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED => ErrorKind::Overloaded,
        CUresult::CUDA_ERROR_INVALID_VALUE | CUresult::CUDA_ERROR_INVALID_DEVICE => {
            ErrorKind::InvalidArgument
        }
        CUresult::CUDA_ERROR_INVALID_HANDLE => ErrorKind::StaleRegion,
        // No device, none that may be used, one that is lost, or one that cannot do this.
        _ => ErrorKind::BackendUnavailable,
    }
}

pub(super) fn unavailable(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::BackendUnavailable, message)
}

#[cfg(windows)]
const DRIVER: &str = "nvcuda.dll";
#[cfg(not(windows))]
const DRIVER: &str = "libcuda.so.1";

/// Every call that is made without looking; all older than CUDA 12.
const CALLS: [&CStr; 32] = [
    c"cuInit",
    c"cuDriverGetVersion",
    c"cuGetErrorString",
    c"cuDeviceGet",
    c"cuDeviceGetCount",
    c"cuDeviceGetName",
    c"cuDeviceGetUuid_v2",
    c"cuDeviceGetAttribute",
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxPushCurrent_v2",
    c"cuCtxPopCurrent_v2",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamQuery",
    c"cuStreamSynchronize",
    c"cuMemGetInfo_v2",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemHostAlloc",
    c"cuMemFreeHost",
    c"cuMemsetD8Async",
    c"cuMemGetAddressRange_v2",
    c"cuMemcpyAsync",
    c"cuLaunchHostFunc",
    c"cuLaunchKernel",
    c"cuModuleLoadData",
    c"cuModuleGetFunction",
    c"cuModuleUnload",
    c"cuIpcGetMemHandle",
    c"cuIpcOpenMemHandle_v2",
    c"cuIpcCloseMemHandle",
];
