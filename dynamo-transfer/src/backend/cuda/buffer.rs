#![expect(unsafe_code, reason = "memory that a device allocated is known by its address alone")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::copier::DeviceCopier;
use super::copy::BlockCopy;
use super::device::{Device, Home};
use super::ipc::IpcHandle;
use super::pinned::PinnedSpans;
use super::region::DeviceId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// Device memory of a fixed size: zeroed when allocated, owned.
///
/// It is freed when it is dropped and no copy that was posted touches it any more.
pub struct DeviceBuffer(Arc<Allocation>);

impl DeviceBuffer {
    pub(super) fn new(memory: Allocation) -> Self {
        Self(Arc::new(memory))
    }

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.0.span.len()
    }

    /// Tells whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of its device.
    pub fn device(&self) -> u32 {
        self.0.device.ordinal()
    }

    /// Returns where the device knows it, for kernels of one's own: a `CUdeviceptr`.
    ///
    /// Whoever uses it keeps the buffer meanwhile, and no copy under way.
    pub fn address(&self) -> u64 {
        self.0.span.as_ptr().addr() as u64
    }

    /// Writes `bytes` at `offset`, over pinned memory of its own.
    ///
    /// Fails like [`DeviceCopier::upload`] and [`DeviceCopier::allocate_pinned`].
    ///
    /// # Cancel safety
    /// If the future is dropped the bytes may or may not be written.
    pub async fn copy_from(
        &self,
        copier: &DeviceCopier,
        offset: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let mut source = copier.allocate_pinned(bytes.len())?;
        source.copy_from_slice(bytes);
        let block = BlockCopy { source: 0, target: offset, len: bytes.len() };
        copier.upload(&Arc::new(source), self, &[block]).await
    }

    /// Reads `len` bytes from `offset` on, over pinned memory of its own.
    ///
    /// Fails like [`DeviceCopier::download`] and [`DeviceCopier::allocate_pinned`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn copy_to(
        &self,
        copier: &DeviceCopier,
        offset: usize,
        len: usize,
    ) -> Result<Vec<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            let message = format!("{offset}+{len} lies outside a buffer of {}", self.len());
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        let block = BlockCopy { source: offset, target: 0, len };
        let target = copier.download(self, copier.allocate_pinned(len)?, &[block]).await?;
        Ok(target.to_vec())
    }

    /// Makes the memory openable by other processes of this machine, see [`IpcHandle`].
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if it is empty or itself opened, and
    /// [`BackendUnavailable`](ErrorKind::BackendUnavailable) where processes cannot share.
    pub fn export(&self) -> Result<IpcHandle> {
        match self.0.origin {
            Origin::Allocated(_) => self.0.device.export(self.0.span),
            Origin::Nowhere | Origin::Opened => {
                let message = "only memory that was allocated here can be exported";
                Err(Error::new(ErrorKind::InvalidArgument, message))
            }
        }
    }

    /// Returns the memory: a part of it is touched under a lease of this.
    pub(crate) fn memory(&self) -> &Arc<Allocation> {
        &self.0
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({} bytes of device {})", self.len(), self.device())
    }
}

/// Host memory that a device reaches by itself: zeroed when allocated, owned.
pub struct PinnedBuffer(Allocation);

impl PinnedBuffer {
    pub(super) fn new(memory: Allocation) -> Self {
        Self(memory)
    }

    pub(crate) fn memory(&self) -> &Allocation {
        &self.0
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let span = self.0.span;
        // SAFETY: the allocation is initialised host memory that lives as long as `self`; a device
        // writes it only while a copy owns the buffer, so that nobody has `self`.
        unsafe { std::slice::from_raw_parts(span.as_ptr(), span.len()) }
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let span = self.0.span;
        // SAFETY: as above; a device reads it only while a copy shares or owns the buffer, so that
        // nobody has it mutably.
        unsafe { std::slice::from_raw_parts_mut(span.as_ptr(), span.len()) }
    }
}

impl AsRef<[u8]> for PinnedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for PinnedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} bytes)", self.len())
    }
}

/// Memory that a device allocated or opened; freed or closed when dropped.
pub(crate) struct Allocation {
    span: Span,
    origin: Origin,
    device: Arc<dyn Device>,
    /// Where it is noted as pinned, if it is.
    pinned: Option<Arc<PinnedSpans>>,
}

#[derive(Clone, Copy)]
enum Origin {
    /// Of no bytes.
    Nowhere,
    Allocated(Home),
    Opened,
}

impl Allocation {
    pub(super) fn new(device: &Arc<dyn Device>, home: Home, len: usize) -> Result<Self> {
        let (span, origin) = match len {
            0 => (Span::of(&[]), Origin::Nowhere),
            len => (device.allocate(home, len)?, Origin::Allocated(home)),
        };
        Ok(Self { span, origin, device: Arc::clone(device), pinned: None })
    }

    /// Notes it as pinned for as long as it is there.
    pub(super) fn noted_in(mut self, pinned: &Arc<PinnedSpans>) -> Self {
        pinned.add(self.span);
        self.pinned = Some(Arc::clone(pinned));
        self
    }

    pub(super) fn open(device: &Arc<dyn Device>, handle: &IpcHandle) -> Result<Self> {
        let span = device.open(handle)?;
        Ok(Self { span, origin: Origin::Opened, device: Arc::clone(device), pinned: None })
    }

    /// Returns where it lies; whoever uses that keeps the allocation.
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// Tells of which device it is.
    pub(crate) fn device_id(&self) -> DeviceId {
        DeviceId::of(&self.device)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // First: behind this its addresses may be another's.
        self.pinned.iter().for_each(|pinned| pinned.remove(self.span));
        match self.origin {
            Origin::Nowhere => {}
            // SAFETY: the span is what this device allocated there, and this is its only owner; each
            // copy that touches it holds a lease of it, so that none is in flight.
            Origin::Allocated(home) => unsafe { self.device.free(home, self.span) },
            // SAFETY: as above, with what it opened.
            Origin::Opened => unsafe { self.device.close_opened(self.span) },
        }
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Allocation({} bytes)", self.span.len())
    }
}
