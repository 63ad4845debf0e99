#![expect(unsafe_code, reason = "an address that crosses threads")]

use std::ptr::NonNull;

/// A piece of registered memory: where it is and how long.
///
/// Peers, devices and other threads may touch the bytes at any time, so nothing ever makes a
/// reference to them except under a [`Hold`](super::hold::Hold) of the region. A span is only an
/// address: whoever uses it holds a [`Lease`](super::Lease) of its region, which keeps the memory
/// alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a span is a number; using it is what needs care, and takes an unsafe block each time.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { ptr: NonNull::from(bytes).cast(), len: bytes.len() }
    }

    pub(crate) fn of_mut(bytes: &mut [u8]) -> Self {
        let len = bytes.len();
        Self { ptr: NonNull::from(bytes).cast(), len }
    }

    pub(crate) fn as_ptr(self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Returns `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If they do not lie inside: whoever cuts has checked.
    pub(crate) fn slice(self, offset: usize, len: usize) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "a span is cut inside");
        // SAFETY: the offset lies inside the span, which is one allocation.
        Self { ptr: unsafe { self.ptr.add(offset) }, len }
    }
}
