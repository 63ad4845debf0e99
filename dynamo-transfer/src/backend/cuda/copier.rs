#![expect(unsafe_code, reason = "a device is handed memory by its address")]

use std::fmt;
use std::sync::Arc;

use tokio::sync::{Semaphore, TryAcquireError, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::buffer::{Allocation, DeviceBuffer, PinnedBuffer};
use super::copy::{BlockCopy, DeviceConfig, DeviceCopy};
use super::device::{Completion, Copies, Device, Direction, Home, Leases, Settled, SpanCopy};
use super::ipc::IpcHandle;
use super::pinned::PinnedSpans;
use super::quarantine::Quarantine;
use super::region::DeviceId;
use super::software::SoftwareDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// Allocates the memory of one device and copies from, to and within it; cheap to clone.
///
/// A copy is posted by the call and done when its future is. Copies of one direction run in the order
/// in which they were posted. If a future is dropped, its copy runs all the same, and the memory stays
/// untouchable until it has passed.
#[derive(Clone)]
pub struct DeviceCopier(Arc<Inner>);

struct Inner {
    device: Arc<dyn Device>,
    config: DeviceConfig,
    pinned: Arc<PinnedSpans>,
    /// Room for copies in flight.
    room: Arc<Semaphore>,
    quarantine: Quarantine,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl DeviceCopier {
    /// Drives a device made of host memory and a thread.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a bad config and
    /// [`Overloaded`](ErrorKind::Overloaded) if there is no room for a thread.
    pub fn software(device: &SoftwareDevice, config: DeviceConfig) -> Result<Self> {
        Self::over(device.as_device(), config)
    }

    /// Drives the GPU that CUDA counts as `ordinal`.
    ///
    /// Fails with [`BackendUnavailable`](ErrorKind::BackendUnavailable), in the words of loader or
    /// driver, if there is none, and without the feature `cuda`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing open.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_async, reason = "so with the feature"))]
    pub async fn cuda(ordinal: u32, config: DeviceConfig) -> Result<Self> {
        #[cfg(feature = "cuda")]
        {
            // A context and the compiler of kernels take their time.
            let opening = TaskTracker::new();
            let opened = opening.spawn_blocking(move || super::driver::Cuda::open(ordinal));
            let device = opened.await.map_err(|error| {
                Error::new(ErrorKind::Internal, "opening the device").with_source(error)
            })?;
            Self::over(Arc::new(device?), config)
        }
        #[cfg(not(feature = "cuda"))]
        {
            let message = format!("device {ordinal} (with {config:?}) needs the feature `cuda`");
            Err(Error::new(ErrorKind::BackendUnavailable, message))
        }
    }

    fn over(device: Arc<dyn Device>, config: DeviceConfig) -> Result<Self> {
        if config.copies_max == 0 || u32::try_from(config.copies_max).is_err() {
            let message = format!("copies_max is {}", config.copies_max);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(Self(Arc::new(Inner {
            device,
            pinned: Arc::default(),
            room: Arc::new(Semaphore::new(config.copies_max)),
            quarantine: Quarantine::start(config.copies_max)?,
            config,
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        })))
    }

    /// Describes device and driver, and how they copy, in one line.
    pub fn describe(&self) -> &str {
        self.0.device.describe()
    }

    /// Tells which device it drives.
    pub(crate) fn device_id(&self) -> DeviceId {
        DeviceId::of(&self.0.device)
    }

    /// Fails if the device is lost: what is handed to it then is never given back.
    pub(crate) fn status(&self) -> Result<()> {
        self.0.device.status()
    }

    /// Tells whether all of a span is pinned memory that this copier allocated.
    pub(super) fn has_pinned(&self, span: Span) -> bool {
        self.0.pinned.has(span)
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.0.device.ordinal()
    }

    /// Returns how many bytes of device memory are free, whoever uses the rest.
    pub fn free_bytes(&self) -> Result<u64> {
        self.0.device.free_bytes()
    }

    /// Allocates `len` bytes of device memory, zeroed.
    ///
    /// Blocks for as long as the driver takes. Fails with [`Overloaded`](ErrorKind::Overloaded) if
    /// there is no room and [`BackendUnavailable`](ErrorKind::BackendUnavailable) if the device is gone.
    pub fn allocate(&self, len: usize) -> Result<DeviceBuffer> {
        Allocation::new(&self.0.device, Home::Device, len).map(DeviceBuffer::new)
    }

    /// Allocates `len` bytes of pinned host memory, zeroed: what the device reaches by itself.
    ///
    /// Fails like [`allocate`](Self::allocate).
    pub fn allocate_pinned(&self, len: usize) -> Result<PinnedBuffer> {
        let memory = Allocation::new(&self.0.device, Home::Pinned, len)?;
        Ok(PinnedBuffer::new(memory.noted_in(&self.0.pinned)))
    }

    /// Opens memory of the same GPU that another process exported.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if it is of another device or of this
    /// very process, [`OutOfBounds`](ErrorKind::OutOfBounds) if the handle claims more than there is,
    /// [`StaleRegion`](ErrorKind::StaleRegion) if the driver does not know it, and
    /// [`BackendUnavailable`](ErrorKind::BackendUnavailable) where processes cannot share.
    pub fn open(&self, handle: &IpcHandle) -> Result<DeviceBuffer> {
        Allocation::open(&self.0.device, handle).map(DeviceBuffer::new)
    }

    /// Posts copies of blocks from pinned to device memory.
    ///
    /// The future fails with [`OutOfBounds`](ErrorKind::OutOfBounds) on a block outside its buffer,
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) on a buffer of another device,
    /// [`Overloaded`](ErrorKind::Overloaded) at the limit of copies,
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded), and
    /// [`BackendUnavailable`](ErrorKind::BackendUnavailable) if the device is lost.
    pub fn upload(
        &self,
        source: &Arc<PinnedBuffer>,
        target: &DeviceBuffer,
        blocks: &[BlockCopy],
    ) -> DeviceCopy<()> {
        let sides = (source.memory(), &**target.memory());
        let copies = match self.copies(Direction::HostToDevice, sides, blocks) {
            Ok(copies) => copies,
            Err(error) => return DeviceCopy::failed(error),
        };
        let leases = (Arc::clone(source), Arc::clone(target.memory()));
        // SAFETY: the spans lie inside both buffers, which the leases keep; device memory is never
        // referred to, and nobody writes the source, of which the lease is a shared owner.
        unsafe { self.start(copies, leases) }.map(drop)
    }

    /// Posts copies of blocks from device to pinned memory, which comes back with the future.
    ///
    /// Fails like [`upload`](Self::upload); the target is then freed once nothing touches it.
    pub fn download(
        &self,
        source: &DeviceBuffer,
        target: PinnedBuffer,
        blocks: &[BlockCopy],
    ) -> DeviceCopy<PinnedBuffer> {
        let sides = (&**source.memory(), target.memory());
        let copies = match self.copies(Direction::DeviceToHost, sides, blocks) {
            Ok(copies) => copies,
            Err(error) => return DeviceCopy::failed(error),
        };
        let leases = (Arc::clone(source.memory()), target);
        // SAFETY: the spans lie inside both buffers, which the leases keep; device memory is never
        // referred to, and the target is owned by the copy until it has passed.
        unsafe { self.start(copies, leases) }.map(|(_, target)| target)
    }

    /// Posts copies of blocks from device to device memory.
    ///
    /// Fails like [`upload`](Self::upload).
    pub fn copy(
        &self,
        source: &DeviceBuffer,
        target: &DeviceBuffer,
        blocks: &[BlockCopy],
    ) -> DeviceCopy<()> {
        self.copy_keeping(source, target, blocks, ())
    }

    /// Refuses new copies, waits for those in flight, and joins the threads of copier and device.
    ///
    /// Fails with [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if some do not pass within the
    /// deadline of copies, or have passed and their futures are neither awaited nor dropped; the threads
    /// then end with the last of them.
    ///
    /// # Cancel safety
    /// Cancel safe; new copies are refused all the same.
    pub async fn shutdown(&self) -> Result<()> {
        let inner = &self.0;
        inner.closed.cancel();
        inner.tasks.close();
        let all = u32::try_from(inner.config.copies_max).unwrap_or(u32::MAX);
        let quiet = Arc::clone(&inner.room).acquire_many_owned(all);
        let Ok(_all) = tokio::time::timeout(inner.config.copy_deadline, quiet).await else {
            let left = inner.config.copies_max - inner.room.available_permits();
            let message = format!("{left} copies are still in flight, their memory is kept");
            return Err(Error::new(ErrorKind::DeadlineExceeded, message));
        };
        inner.tasks.wait().await;
        let owned = Arc::clone(inner);
        let joined = inner.tasks.spawn_blocking(move || {
            owned.quarantine.stop();
            owned.device.close();
        });
        joined.await.map_err(|e| Error::new(ErrorKind::Internal, "joining threads").with_source(e))
    }

    /// Posts copies; `memory` comes back with the future, or is given up once they have passed.
    ///
    /// # Safety
    /// As for [`Device::submit`], with `memory` as the leases.
    pub(crate) unsafe fn start<L: Send + 'static>(
        &self,
        mut copies: Copies,
        memory: L,
    ) -> DeviceCopy<L> {
        let inner = &self.0;
        let room = match Arc::clone(&inner.room).try_acquire_owned() {
            Ok(room) if !inner.closed.is_cancelled() => room,
            Ok(_) | Err(TryAcquireError::Closed) => {
                return DeviceCopy::failed(Error::new(
                    ErrorKind::Closed,
                    "the copier is shut down",
                ));
            }
            Err(TryAcquireError::NoPermits) => {
                let message = format!("{} copies are in flight", inner.config.copies_max);
                return DeviceCopy::failed(Error::new(ErrorKind::Overloaded, message));
            }
        };
        copies.method = copies.method.or(inner.config.method);
        let (settle, settled) = oneshot::channel();
        let leases = Leases { memory: Box::new(memory), _room: room };
        let done = Completion { settle, leases, grave: inner.quarantine.grave().clone() };
        if copies.is_pinned {
            // SAFETY: the caller's promise.
            unsafe { inner.device.submit(&copies, done) };
        } else {
            let device = Arc::clone(&inner.device);
            inner.tasks.spawn_blocking(move || {
                // SAFETY: the caller's promise; the leases are in `done`.
                unsafe { device.submit(&copies, done) };
            });
        }
        let this = self.clone();
        DeviceCopy::new(async move {
            let Settled { outcome, leases } = this.settled(settled).await?;
            outcome?;
            let Leases { memory, _room } = leases;
            let memory = memory.downcast().map(|memory| *memory);
            memory.map_err(|_| Error::new(ErrorKind::Internal, "the leases are of another copy"))
        })
    }

    async fn settled(&self, settled: oneshot::Receiver<Settled>) -> Result<Settled> {
        let inner = &self.0;
        let lost = inner.quarantine.grave().lost();
        tokio::select! {
            biased;
            settled = tokio::time::timeout(inner.config.copy_deadline, settled) => match settled {
                Ok(Ok(settled)) => Ok(settled),
                Ok(Err(_)) => {
                    inner.device.status()?;
                    Err(Error::new(ErrorKind::Closed, "the device has let the copy go"))
                }
                Err(_) => {
                    // A device that is lost stays silent: whoever else waits need not wait as long.
                    inner.device.status().inspect_err(|_| lost.cancel())?;
                    let message = "the copy has not passed, its memory is kept until it has";
                    Err(Error::new(ErrorKind::DeadlineExceeded, message))
                }
            },
            () = lost.cancelled() => {
                inner.device.status()?;
                Err(Error::new(ErrorKind::BackendUnavailable, "the device was lost"))
            }
        }
    }

    pub(super) fn copies(
        &self,
        direction: Direction,
        (source, target): (&Allocation, &Allocation),
        blocks: &[BlockCopy],
    ) -> Result<Copies> {
        if [source, target].iter().any(|memory| memory.device_id() != self.device_id()) {
            let message = "a buffer is of another device than the copier";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let list = blocks.iter().map(|block| {
            let source = piece(source.span(), block.source, block.len)?;
            Ok(SpanCopy { source, target: piece(target.span(), block.target, block.len)? })
        });
        let list = list.collect::<Result<_>>()?;
        Ok(Copies { direction, method: None, is_pinned: true, list })
    }
}

pub(super) fn piece(span: Span, offset: usize, len: usize) -> Result<Span> {
    if offset.checked_add(len).is_none_or(|end| end > span.len()) {
        let message = format!("block {offset}+{len} lies outside a buffer of {}", span.len());
        return Err(Error::new(ErrorKind::OutOfBounds, message));
    }
    Ok(span.slice(offset, len))
}

impl fmt::Debug for DeviceCopier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCopier").field("device", &self.0.device).finish_non_exhaustive()
    }
}
