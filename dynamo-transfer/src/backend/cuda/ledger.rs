#![expect(unsafe_code, reason = "it allocates the memory of a software device")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::Home;
use super::ipc::{IpcHandle, OPAQUE_BYTES, UUID_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// The memory of a software device: what is allocated, and who has opened it.
pub(super) struct Ledger {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By address.
    entries: BTreeMap<usize, Entry>,
    in_use: u64,
    processes: u64,
    exports: u64,
    violations: usize,
}

struct Entry {
    span: Span,
    layout: Layout,
    home: Home,
    /// Its export and the process that made it.
    exported: Option<(u64, u64)>,
    opened: usize,
    is_freed: bool,
}

impl Ledger {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(super) fn in_use(&self) -> u64 {
        self.lock().in_use
    }

    pub(super) fn violations(&self) -> usize {
        self.lock().violations
    }

    /// Numbers one more process.
    pub(super) fn join(&self) -> u64 {
        let mut state = self.lock();
        state.processes += 1;
        state.processes
    }

    pub(super) fn allocate(&self, home: Home, len: usize) -> Result<Span> {
        let full = || {
            let message = format!("no room for {len} bytes in a device of {}", self.bytes_max);
            Error::new(ErrorKind::Overloaded, message)
        };
        let layout = Layout::from_size_align(len, ALIGNMENT).map_err(|_| full())?;
        let mut state = self.lock();
        let in_use = state.in_use.checked_add(len as u64).filter(|&sum| sum <= self.bytes_max);
        let in_use = in_use.ok_or_else(full)?;
        if len == 0 {
            return Err(Error::new(ErrorKind::InvalidArgument, "an allocation of no bytes"));
        }
        // SAFETY: the layout has a size.
        let address = unsafe { alloc_zeroed(layout) };
        let address = NonNull::new(address).ok_or_else(full)?;
        let span = Span::raw(address, len);
        let entry = Entry { span, layout, home, exported: None, opened: 0, is_freed: false };
        state.entries.insert(address.addr().get(), entry);
        state.in_use = in_use;
        Ok(span)
    }

    pub(super) fn free(&self, home: Home, span: Span) {
        let mut state = self.lock();
        match state.entries.get_mut(&span.as_ptr().addr()) {
            Some(entry) if entry.home == home && entry.span == span && !entry.is_freed => {
                entry.is_freed = true;
                // CUDA does not say what happens then.
                state.violations += usize::from(entry.opened > 0);
                state.give_back(span);
            }
            _ => state.violations += 1,
        }
    }

    /// Tells whether all of `span` lies in one allocation of `home`.
    pub(super) fn has(&self, home: Home, span: Span) -> bool {
        let state = self.lock();
        let start = span.as_ptr().addr();
        let below = state.entries.range(..=start).next_back();
        below.is_some_and(|(&address, entry)| {
            let is_there = !entry.is_freed || entry.opened > 0;
            let inside = start - address + span.len() <= entry.span.len();
            is_there && inside && entry.home == home
        })
    }

    pub(super) fn export(&self, process: u64, span: Span) -> Result<IpcHandle> {
        let mut state = self.lock();
        state.exports += 1;
        let export = state.exports;
        let entry = state.entries.get_mut(&span.as_ptr().addr());
        let Some(entry) = entry.filter(|entry| entry.span == span && entry.home == Home::Device)
        else {
            let message = "only whole allocations of device memory can be exported";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        };
        let (export, process) = *entry.exported.get_or_insert((export, process));
        let mut opaque = [0; OPAQUE_BYTES];
        opaque[..8].copy_from_slice(&export.to_le_bytes());
        opaque[8..16].copy_from_slice(&process.to_le_bytes());
        Ok(IpcHandle { opaque, device: SOFTWARE, len: span.len() as u64 })
    }

    pub(super) fn open(&self, process: u64, handle: &IpcHandle) -> Result<Span> {
        let mut state = self.lock();
        if handle.device != SOFTWARE {
            let message = "the handle is of another device";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let named = state.entries.values_mut().find(|entry| {
            !entry.is_freed
                && entry.exported.is_some_and(|(export, process)| {
                    handle.opaque[..8] == export.to_le_bytes()
                        && handle.opaque[8..16] == process.to_le_bytes()
                })
        });
        let entry = named.ok_or_else(|| {
            Error::new(ErrorKind::StaleRegion, "the device knows of no such export")
        })?;
        if entry.exported.is_some_and(|(_, exporter)| exporter == process) {
            let message = "the memory is of this very process";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if handle.len > entry.span.len() as u64 {
            let message = format!("{} bytes of {}", handle.len, entry.span.len());
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        entry.opened += 1;
        Ok(entry.span)
    }

    pub(super) fn close(&self, span: Span) {
        let mut state = self.lock();
        match state.entries.get_mut(&span.as_ptr().addr()) {
            Some(entry) if entry.opened > 0 => {
                entry.opened -= 1;
                state.give_back(span);
            }
            _ => state.violations += 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives the memory back to the host if nobody has it any more.
    fn give_back(&mut self, span: Span) {
        let address = span.as_ptr().addr();
        let is_unused = |entry: &Entry| entry.is_freed && entry.opened == 0;
        if self.entries.get(&address).is_some_and(is_unused)
            && let Some(entry) = self.entries.remove(&address)
        {
            self.in_use -= entry.span.len() as u64;
            // SAFETY: it was allocated with this very layout, and just left the list, so that it is
            // freed once; owner and openers have let it go.
            unsafe { dealloc(entry.span.as_ptr(), entry.layout) };
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes in use", self.in_use(), self.bytes_max)
    }
}

/// That of `cuMemAlloc`.
const ALIGNMENT: usize = 256;

/// Stands for the number of a GPU.
const SOFTWARE: [u8; UUID_BYTES] = *b"software device.";
