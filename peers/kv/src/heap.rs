//! The system's allocator, and what is asked of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Counts while it is told to; else it costs a look at a flag, so that clocks can run.
pub struct Counted;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

/// What was asked for since it began.
#[derive(Clone, Copy)]
pub struct Counts {
    /// Also those that only grow.
    pub allocations: u64,
    /// Bytes that were asked for and not given back, without what begins on a page: the memory of
    /// blocks does, and is not what a manager needs to know of them.
    pub live_bytes: i64,
}

/// Counts what `run` does, to which is passed what reads the counts.
pub fn count<T>(run: impl FnOnce(&dyn Fn() -> Counts) -> T) -> T {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    LIVE_BYTES.store(0, Ordering::Relaxed);
    IS_COUNTING.store(true, Ordering::Relaxed);
    let result = run(&|| Counts {
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
        live_bytes: LIVE_BYTES.load(Ordering::Relaxed),
    });
    IS_COUNTING.store(false, Ordering::Relaxed);
    result
}

const PAGE_BYTES: usize = 4096;

fn note(allocations: u64, layout: Layout, bytes: i64) {
    if !IS_COUNTING.load(Ordering::Relaxed) {
        return;
    }
    ALLOCATIONS.fetch_add(allocations, Ordering::Relaxed);
    if layout.align() < PAGE_BYTES {
        LIVE_BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on as it is to the system's allocator.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(1, layout, layout.size() as i64);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(1, layout, layout.size() as i64);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(1, layout, size as i64 - layout.size() as i64);
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(0, layout, -(layout.size() as i64));
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(at, layout) }
    }
}
