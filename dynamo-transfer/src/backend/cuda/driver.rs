#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::result::{self as driver, DriverError, stream::StreamKind};
use cudarc::driver::sys::{self, CUresult, CUstream};

use super::batch::{Method, Offers, Share, assign};
use super::context::Context;
use super::device::{Completion, Copies, Device, Direction, Home};
use super::ipc::{IpcHandle, UUID_BYTES};
use super::kernel::Kernel;
use super::library::{self, BatchCall, check, failed, unavailable};
use super::stream::{Note, address, batch, each, passed};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// A GPU: its primary context, and a stream for each direction.
pub(super) struct Cuda {
    ordinal: u32,
    uuid: [u8; UUID_BYTES],
    description: String,
    /// By [`Direction`].
    streams: [CUstream; 3],
    batch: Option<BatchCall>,
    kernel: Option<Kernel>,
    is_closed: AtomicBool,
    context: Context,
}

// SAFETY: contexts and streams of the driver may be used by any thread.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Opens a device. Blocks while the driver makes a context and a kernel is compiled.
    pub(super) fn open(ordinal: u32) -> Result<Self> {
        library::load()?;
        driver::init().map_err(|error| failed(error, "starting the CUDA driver"))?;
        let context = Context::retain(ordinal)?;
        let entered = context.enter()?;
        let batch = library::batch_call();
        let kernel = Kernel::new(context.capability()?);
        let offers = match (&batch, &kernel) {
            (Some(_), Ok(_)) => "copies by batch and by kernel".to_owned(),
            (None, Ok(_)) => "copies by kernel; no batch: the driver is older than 12.8".to_owned(),
            (Some(_), Err(error)) => format!("copies by batch; no kernel: {error}"),
            (None, Err(error)) => format!("copies one by one; no batch, no kernel: {error}"),
        };
        let description = format!("{}; {offers}", context.describe()?);
        let uuid = context.uuid()?;
        let mut cuda = Self {
            ordinal,
            uuid,
            description,
            streams: [std::ptr::null_mut(); 3],
            batch,
            kernel: kernel.ok(),
            is_closed: AtomicBool::new(false),
            context: context.clone(),
        };
        // From here on dropping it gives back what there is.
        for stream in &mut cuda.streams {
            let created = driver::stream::create(StreamKind::NonBlocking);
            *stream = created.map_err(|error| failed(error, "making a stream"))?;
        }
        drop(entered);
        Ok(cuda)
    }

    fn stream(&self, direction: Direction) -> CUstream {
        self.streams[match direction {
            Direction::HostToDevice => 0,
            Direction::DeviceToHost => 1,
            Direction::DeviceToDevice => 2,
        }]
    }

    /// # Safety
    /// As for [`Device::submit`], in the context of the device.
    unsafe fn enqueue(&self, copies: &Copies, stream: CUstream) -> Result<()> {
        let offers = Offers { batch: self.batch.is_some(), kernel: self.kernel.is_some() };
        for Share { method, reason, copies } in assign(copies, offers) {
            tracing::trace!(?method, reason, blocks = copies.len(), "device copy");
            match (method, self.batch, &self.kernel) {
                // SAFETY: the caller's promise.
                (Method::Batch, Some(call), _) => unsafe { batch(call, &copies, stream) }?,
                // SAFETY: the caller's promise; the kernel was loaded into this context.
                (Method::Kernel, _, Some(kernel)) => unsafe { kernel.copy(&copies, stream) }?,
                // SAFETY: the caller's promise.
                _ => unsafe { each(&copies, stream) }?,
            }
        }
        Ok(())
    }
}

impl Device for Cuda {
    fn ordinal(&self) -> u32 {
        self.ordinal
    }

    fn describe(&self) -> &str {
        &self.description
    }

    fn allocate(&self, home: Home, len: usize) -> Result<Span> {
        let _entered = self.context.enter()?;
        let full = |error: DriverError| match error.0 {
            // Of a size that no device has; none is empty.
            CUresult::CUDA_ERROR_INVALID_VALUE => {
                Error::new(ErrorKind::Overloaded, format!("no room for {len} bytes ({home:?})"))
            }
            _ => failed(error, &format!("allocating {len} bytes ({home:?})")),
        };
        match home {
            Home::Device => {
                // SAFETY: nothing is read before it is cleared.
                let address = unsafe { driver::malloc_sync(len) };
                let address = address.map_err(full)?;
                let stream = self.stream(Direction::HostToDevice);
                // SAFETY: so many bytes were just allocated.
                let cleared = unsafe { sys::cuMemsetD8Async(address, 0, len, stream) };
                let cleared = check(cleared, "clearing device memory").and_then(|()| {
                    // SAFETY: the stream is of this device.
                    let passed = unsafe { driver::stream::synchronize(stream) };
                    passed.map_err(|error| failed(error, "clearing device memory"))
                });
                let span = span(address, len);
                if cleared.is_err() || span.is_err() {
                    // SAFETY: nobody else knows the memory.
                    let _ = unsafe { driver::free_sync(address) };
                }
                cleared.and(span)
            }
            Home::Pinned => {
                // SAFETY: nothing is read before it is cleared.
                let address = unsafe { driver::malloc_host(len, PINNED) };
                let address = address.map_err(full)?.cast::<u8>();
                let pointer = NonNull::new(address);
                let pointer = pointer.ok_or_else(|| unavailable("pinned memory at nowhere"))?;
                // SAFETY: so many bytes were just allocated.
                unsafe { address.write_bytes(0, len) };
                Ok(Span::raw(pointer, len))
            }
        }
    }

    unsafe fn free(&self, home: Home, span: Span) {
        let freed = self.context.enter().and_then(|_entered| {
            let freed = match home {
                // SAFETY: the caller's promise: `allocate` returned it, and nobody uses it.
                Home::Device => unsafe { driver::free_sync(address(span)) },
                // SAFETY: as above.
                Home::Pinned => unsafe { driver::free_host(span.as_ptr().cast()) },
            };
            freed.map_err(|error| failed(error, "freeing memory"))
        });
        if let Err(error) = freed {
            tracing::warn!(%error, len = span.len(), ?home, "memory of a device is not given back");
        }
    }

    unsafe fn submit(&self, copies: &Copies, done: Completion) {
        if self.is_closed.load(Ordering::Acquire) {
            let error = Error::new(ErrorKind::Closed, "the device is closed");
            return done.complete(Err(error));
        }
        let _entered = match self.context.enter() {
            Ok(entered) => entered,
            // Nothing was started, so that nothing is in flight.
            Err(error) => return done.complete(Err(error)),
        };
        let stream = self.stream(copies.direction);
        // SAFETY: the caller's promise.
        let outcome = unsafe { self.enqueue(copies, stream) };
        let note = Arc::new(Note::new(done, outcome));
        let argument = Arc::into_raw(Arc::clone(&note)).cast_mut().cast::<c_void>();
        // SAFETY: the stream is of this device; the argument is what `passed` takes, and owned by it.
        let told = unsafe { driver::stream::launch_host_function(stream, passed, argument) };
        if let Err(error) = told {
            // What was enqueued may be running. The note's other owner is leaked, lest `passed` comes
            // after all.
            // SAFETY: the stream is of this device.
            let quiet = unsafe { driver::stream::synchronize(stream) };
            match (note.take(), quiet) {
                (Some((done, _)), Ok(())) => {
                    done.complete(Err(failed(error, "asking to be told of a copy")));
                }
                (Some((done, _)), Err(lost)) => {
                    tracing::warn!(error = ?lost, "a device is lost");
                    done.abandon();
                }
                (None, _) => {}
            }
        }
    }

    fn status(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        self.streams.iter().try_for_each(|&stream| {
            // SAFETY: the stream is of this device.
            match unsafe { sys::cuStreamQuery(stream) } {
                CUresult::CUDA_ERROR_NOT_READY => Ok(()),
                result => check(result, "asking for the state of a device"),
            }
        })
    }

    fn free_bytes(&self) -> Result<u64> {
        let _entered = self.context.enter()?;
        let free = driver::mem_get_info().map_err(|error| failed(error, "asking for free memory"));
        free.map(|(free, _)| free as u64)
    }

    fn export(&self, span: Span) -> Result<IpcHandle> {
        let _entered = self.context.enter()?;
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the place is written to and nothing else.
        let exported = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, address(span)) };
        check(exported, "exporting device memory")?;
        let opaque = handle.reserved.map(|byte| byte.cast_unsigned());
        Ok(IpcHandle { opaque, device: self.uuid, len: span.len() as u64 })
    }

    fn open(&self, handle: &IpcHandle) -> Result<Span> {
        if handle.device != self.uuid {
            let message = "the handle is of another device";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let _entered = self.context.enter()?;
        let opaque = sys::CUipcMemHandle { reserved: handle.opaque.map(u8::cast_signed) };
        let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut opened = 0;
        // SAFETY: the place is written to and nothing else; the driver judges the handle.
        let result = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut opened, opaque, flags) };
        match result {
            // So it answers to what this process exported itself.
            CUresult::CUDA_ERROR_INVALID_CONTEXT => {
                let message = "the memory is of this very process";
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            // And so to what it does not know.
            CUresult::CUDA_ERROR_INVALID_VALUE => {
                let message = "the driver knows of no such export";
                return Err(Error::new(ErrorKind::StaleRegion, message));
            }
            result => check(result, "opening device memory")?,
        }
        let checked = within(opened, handle.len);
        if checked.is_err() {
            // SAFETY: it was just opened, and nobody else knows it.
            let _ = unsafe { sys::cuIpcCloseMemHandle(opened) };
        }
        checked
    }

    unsafe fn close_opened(&self, span: Span) {
        let closed = self.context.enter().and_then(|_entered| {
            // SAFETY: the caller's promise: this is what `open` returned, and nobody uses it.
            check(unsafe { sys::cuIpcCloseMemHandle(address(span)) }, "closing device memory")
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "opened memory is not closed");
        }
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        for &stream in self.streams.iter().filter(|stream| !stream.is_null()) {
            // SAFETY: the stream is of this device and used no more; what runs on it runs on.
            if let Err(error) = unsafe { driver::stream::destroy(stream) } {
                tracing::warn!(?error, "giving back a stream");
            }
        }
        if let Some(kernel) = &self.kernel {
            // SAFETY: the context is current; whoever copies has a lease of memory, which has this
            // device, so that nothing runs.
            unsafe { kernel.unload() };
        }
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("device", &self.description).finish_non_exhaustive()
    }
}

/// Returns what was opened if it is as large as its exporter says.
fn within(opened: u64, len: u64) -> Result<Span> {
    let (mut base, mut there) = (0, 0);
    // SAFETY: the places are written to and nothing else.
    let found = unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut there, opened) };
    check(found, "measuring what was opened")?;
    let left = (there as u64).saturating_sub(opened.saturating_sub(base));
    match usize::try_from(len) {
        Ok(wanted) if wanted > 0 && len <= left => span(opened, wanted),
        _ => {
            let message = format!("a handle of {len} bytes names {left}");
            Err(Error::new(ErrorKind::OutOfBounds, message))
        }
    }
}

fn span(address: u64, len: usize) -> Result<Span> {
    let pointer = usize::try_from(address).ok().map(std::ptr::with_exposed_provenance_mut::<u8>);
    let pointer = pointer.and_then(NonNull::new);
    pointer.map(|pointer| Span::raw(pointer, len)).ok_or_else(|| unavailable("memory at nowhere"))
}

/// Every context of the process may use it, and the device reaches it at the same address.
const PINNED: u32 = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
