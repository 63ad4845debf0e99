#![expect(unsafe_code, reason = "calls the CUDA driver, and is called by it")]
//! What is put onto a stream: copies, and a note to be told that they have passed.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUstream};

use super::device::{Completion, SpanCopy};
use super::library::{BatchCall, check};
use crate::error::Result;
use crate::memory::Span;

/// Starts each copy by a call of its own.
///
/// # Safety
/// As for [`Device::submit`](super::device::Device::submit), in the context of the device.
pub(super) unsafe fn each(copies: &[SpanCopy], stream: CUstream) -> Result<()> {
    copies.iter().try_for_each(|copy| {
        let (source, target) = (address(copy.source), address(copy.target));
        // SAFETY: the caller's promise.
        let copied = unsafe { sys::cuMemcpyAsync(target, source, copy.source.len(), stream) };
        check(copied, "starting a copy")
    })
}

/// Starts all copies by one call.
///
/// # Safety
/// As for [`Device::submit`](super::device::Device::submit), in the context of the device, of memory that is not pageable.
pub(super) unsafe fn batch(call: BatchCall, copies: &[SpanCopy], stream: CUstream) -> Result<()> {
    let mut sources: Vec<u64> = copies.iter().map(|copy| address(copy.source)).collect();
    let mut targets: Vec<u64> = copies.iter().map(|copy| address(copy.target)).collect();
    let mut lens: Vec<usize> = copies.iter().map(|copy| copy.source.len()).collect();
    let anywhere =
        sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
    // One set of attributes, from the first copy on.
    let mut attributes = sys::CUmemcpyAttributes {
        srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
        srcLocHint: anywhere,
        dstLocHint: anywhere,
        flags: sys::CUmemcpyFlags::CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE as u32,
    };
    let (mut from, count, mut failed_at) = (0usize, copies.len(), usize::MAX);
    let (sources, targets) = (sources.as_mut_ptr(), targets.as_mut_ptr());
    let (lens, attributes, from) = (lens.as_mut_ptr(), &raw mut attributes, &raw mut from);
    let result = match call {
        // SAFETY: the lists are as long as `count` says, are read during the call, and name memory that
        // is valid by the caller's promise.
        BatchCall::Second(call) => unsafe {
            call(targets, sources, lens, count, attributes, from, 1, stream)
        },
        // SAFETY: as above.
        BatchCall::First(call) => unsafe {
            call(targets, sources, lens, count, attributes, from, 1, &raw mut failed_at, stream)
        },
    };
    check(result, "starting a batch of copies")
}

/// Returns what the driver calls a place.
pub(super) fn address(span: Span) -> u64 {
    span.as_ptr().expose_provenance() as u64
}

/// What is to be told once a stream comes to it; by whoever takes it first.
pub(super) struct Note(Mutex<Option<(Completion, Result<()>)>>);

impl Note {
    pub(super) fn new(done: Completion, outcome: Result<()>) -> Self {
        Self(Mutex::new(Some((done, outcome))))
    }

    pub(super) fn take(&self) -> Option<(Completion, Result<()>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Called by the driver, on a thread of its own that must not call it, once the copies have passed.
///
/// # Safety
/// `argument` is an `Arc<Note>` made raw, and this its only use.
pub(super) unsafe extern "C" fn passed(argument: *mut c_void) {
    // SAFETY: the caller's promise.
    let note = unsafe { Arc::from_raw(argument.cast_const().cast::<Note>()) };
    if let Some((done, outcome)) = note.take() {
        done.complete(outcome);
    }
}
