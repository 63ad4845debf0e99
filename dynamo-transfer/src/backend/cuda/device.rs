#![expect(unsafe_code, reason = "a device is told by address what to touch")]
//! What a device does for the transfer engine.

use std::any::Any;
use std::fmt;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batch::Method;
use super::ipc::IpcHandle;
use super::quarantine::Grave;
use crate::error::Result;
use crate::memory::Span;

/// Memory of its own, and someone who copies between it and the host's while nobody waits.
///
/// # Contract
/// - What is allocated is zeroed, at least 256-byte aligned, and reached only through the device
///   unless it is pinned. No room is `Overloaded`; a device that is gone is `BackendUnavailable`
///   with the words of whoever said so.
/// - `submit` only enqueues. Submissions of one direction run in the order of the calls, the copies
///   within one in any order, directions among each other in any order.
/// - `done` is completed exactly once, when the device has passed the last copy and touches none of
///   the memory any more, on a thread that must not call the device. A device that is lost may never
///   say so: then `done` is abandoned or never called, and its leases are never given back.
/// - Nothing polls: who waits is woken.
pub(crate) trait Device: fmt::Debug + Send + Sync {
    /// Returns the number by which the machine knows the device.
    fn ordinal(&self) -> u32;

    /// Describes device and driver, and what they offer, in one line.
    fn describe(&self) -> &str;

    /// Allocates `len` bytes, at least one.
    fn allocate(&self, home: Home, len: usize) -> Result<Span>;

    /// Frees what `allocate` returned.
    ///
    /// # Safety
    /// The span is whole, of this device and `home`, freed once, and neither the device nor anyone
    /// else touches it any more.
    unsafe fn free(&self, home: Home, span: Span);

    /// Enqueues copies, and after them `done`.
    ///
    /// # Safety
    /// Each source and target is valid memory at the places that the direction names, as long as the
    /// leases in `done` live; nobody holds a reference to the targets, or a mutable one to the sources.
    unsafe fn submit(&self, copies: &Copies, done: Completion);

    /// Fails if the device is lost.
    fn status(&self) -> Result<()>;

    /// Returns how many bytes of device memory are free.
    fn free_bytes(&self) -> Result<u64>;

    /// Makes device memory openable by other processes of this machine.
    fn export(&self, span: Span) -> Result<IpcHandle>;

    /// Opens what another process exported.
    fn open(&self, handle: &IpcHandle) -> Result<Span>;

    /// Closes what `open` returned.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    unsafe fn close_opened(&self, span: Span);

    /// Refuses submissions from now on and joins the device's own threads; nothing is in flight.
    fn close(&self);
}

/// Where allocated memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Device,
    /// Host memory that stays where it is, so that the device reaches it by itself.
    Pinned,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From host memory to device memory.
    HostToDevice,
    /// From device memory to host memory.
    DeviceToHost,
    /// Between two places of device memory.
    DeviceToDevice,
}

/// Copies that start together and are done together. Where targets overlap, or a target a source,
/// nobody knows which bytes are there in the end.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) direction: Direction,
    /// How to copy, if the device offers it; as it finds best if `None`.
    pub(crate) method: Option<Method>,
    /// Whether all of the host's side is pinned. What is not passes through the driver's own hands
    /// and may hold up the thread that submits it.
    pub(crate) is_pinned: bool,
    pub(crate) list: Vec<SpanCopy>,
}

/// One contiguous copy; both sides are of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanCopy {
    pub(crate) source: Span,
    pub(crate) target: Span,
}

/// What keeps the memory of a submission alive, and its place among those in flight.
pub(crate) struct Leases {
    pub(crate) memory: Box<dyn Any + Send>,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// How a submission ended; the leases are given up by whoever waited for it.
pub(crate) struct Settled {
    pub(crate) outcome: Result<()>,
    pub(crate) leases: Leases,
}

/// Told when a submission has passed. Holds its leases until then, whoever still waits.
pub(crate) struct Completion {
    pub(super) settle: oneshot::Sender<Settled>,
    pub(super) leases: Leases,
    pub(super) grave: Grave,
}

impl Completion {
    /// Wakes who waits. If nobody does, the leases are given up on a thread that may call the device.
    pub(crate) fn complete(self, outcome: Result<()>) {
        let Self { settle, leases, grave } = self;
        if let Err(unread) = settle.send(Settled { outcome, leases }) {
            grave.bury(unread.leases);
        }
    }

    /// Gives up on a device that is lost: every submission fails now, and the memory of this one is
    /// never freed, since nobody can tell whether the device still touches it.
    pub(crate) fn abandon(self) {
        self.grave.lose();
        #[expect(clippy::mem_forget, reason = "freeing it is what must not happen")]
        std::mem::forget(self.leases);
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}
