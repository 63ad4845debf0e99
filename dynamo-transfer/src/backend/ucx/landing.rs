//! One-sided accesses of a port, counted where they end.

#![expect(unsafe_code, reason = "calls of a C library")]

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use super::inbox::{Event, Inbox, OpKey, on_landed};
use super::port::{Port, param};
use super::stream::Stream;
use super::sys::{self, EndpointHandle, RequestParam, Started, Status};
use crate::memory::Span;

/// Where the accesses of an operation end: thousands of them, with nothing kept for each.
///
/// UCX points to it from each that is under way; its port keeps it until there is none.
pub(super) struct Landing {
    key: OpKey,
    inbox: Rc<Inbox>,
    /// Keeps the memory of the operation alive, until nothing is under way any more.
    stream: RefCell<Option<Rc<Stream>>>,
    in_flight: Cell<usize>,
    is_failed: Cell<bool>,
    /// The engine is going to look.
    is_noted: Cell<bool>,
}

/// A one-sided access: a piece of this side's memory and one of the peer's.
pub(super) struct Access {
    pub(super) is_write: bool,
    pub(super) local: Span,
    pub(super) remote: u64,
    pub(super) key: sys::RemoteKeyHandle,
}

impl Landing {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    pub(super) fn is_failed(&self) -> bool {
        self.is_failed.get()
    }

    /// Has the engine hear of the next that ends.
    pub(super) fn look(&self) {
        self.is_noted.set(false);
    }

    /// Takes note of the end of an access.
    pub(super) fn ended(&self, status: Status) {
        self.in_flight.set(self.in_flight.get() - 1);
        if status != sys::OK {
            self.is_failed.set(true);
        }
        self.note();
    }

    /// Has the engine look.
    pub(super) fn note(&self) {
        if !self.is_noted.replace(true) {
            self.inbox.note(Event::Landed(self.key));
        }
    }

    /// Lets the memory go, if nothing is under way: nothing is started any more.
    pub(super) fn release(&self) {
        if self.in_flight() == 0 {
            self.stream.take();
        }
    }

    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }
}

impl Port {
    /// Makes ready for the accesses of an operation.
    pub(super) fn land(&mut self, key: OpKey, stream: &Rc<Stream>) -> Rc<Landing> {
        self.landings.retain(|other| Rc::strong_count(other) > 1 || other.in_flight() > 0);
        let landing = Rc::new(Landing {
            key,
            inbox: Rc::clone(&self.inbox),
            stream: RefCell::new(Some(Rc::clone(stream))),
            in_flight: Cell::new(0),
            is_failed: Cell::new(false),
            is_noted: Cell::new(false),
        });
        self.landings.push(Rc::clone(&landing));
        landing
    }

    /// Starts an access to memory of the peer at the endpoint.
    pub(super) fn access(&self, handle: EndpointHandle, access: &Access, landing: &Rc<Landing>) {
        let param = noted(landing);
        let functions = self.worker.library().functions();
        let (local, len) = (access.local.as_ptr().cast::<c_void>(), access.local.len());
        let (remote, key) = (access.remote, access.key);
        let started = if access.is_write {
            // SAFETY: the stream keeps the span alive until the callback was seen; the peer granted
            // this piece of its memory by this key.
            unsafe { (functions.ucp_put_nbx)(handle, local, len, remote, key, &raw const param) }
        } else {
            // SAFETY: as above; the region may be written, as was checked when it was leased.
            unsafe { (functions.ucp_get_nbx)(handle, local, len, remote, key, &raw const param) }
        };
        self.landed(handle, landing, started);
    }

    /// Starts a flush of an endpoint, which lands like an access.
    pub(super) fn flush(&self, handle: EndpointHandle, landing: &Rc<Landing>) {
        let param = noted(landing);
        let flush = self.worker.library().functions().ucp_ep_flush_nbx;
        // SAFETY: the endpoint is open.
        let started = unsafe { flush(handle, &raw const param) };
        self.landed(handle, landing, started);
    }

    fn landed(&self, handle: EndpointHandle, landing: &Landing, started: *mut c_void) {
        match sys::started(started) {
            Started::Pending(_) => {}
            Started::Done => landing.ended(sys::OK),
            Started::Failed(status) => {
                landing.ended(status);
                self.inbox.push(Event::Failed(handle, status));
            }
        }
    }
}

/// Counts one more under way, whose end is noted.
fn noted(landing: &Rc<Landing>) -> RequestParam {
    landing.in_flight.set(landing.in_flight.get() + 1);
    RequestParam {
        op_attr_mask: sys::OP_CALLBACK | sys::OP_USER_DATA,
        callback: Some(on_landed),
        user_data: Rc::as_ptr(landing).cast_mut().cast(),
        ..param(0)
    }
}
