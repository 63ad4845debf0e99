//! A worker with its endpoints, and what is on its way out.

#![expect(unsafe_code, reason = "calls of a C library")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use super::inbox::{Event, Inbox, OpKey, on_sent};
use super::landing::Landing;
use super::protocol::{HEADER_BYTES, Header};
use super::sources::{SourceId, Sources};
use super::sys::{self, EndpointHandle, RequestParam, Started};
use super::worker::{OnFailure, Worker};
use crate::error::Result;

/// Everything that touches a worker goes through here, on its one thread.
///
/// The worker comes first: it is destroyed before the memory that it may still send from is let go.
pub(super) struct Port {
    pub(super) worker: Worker,
    pub(super) inbox: Rc<Inbox>,
    /// What UCX still holds pointers into: kept until its end was seen.
    sends: HashMap<u64, Rc<Sending>>,
    sends_started: u64,
    pub(super) endpoints: HashMap<EndpointId, Endpoint>,
    endpoints_made: u64,
    /// Requests of endpoints that are closing.
    closing: Vec<*mut c_void>,
    pub(super) sources: Sources,
    /// Where accesses end: kept while any is under way.
    pub(super) landings: Vec<Rc<Landing>>,
    /// Bytes of the access that was started last.
    pub(super) piece_bytes: usize,
}

/// Names an endpoint; unlike a handle, never two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EndpointId(u64);

pub(super) struct Endpoint {
    handle: EndpointHandle,
    /// Messages under way.
    pub(super) sending: usize,
}

/// What UCX points into until it calls back.
pub(super) struct Sending {
    pub(super) id: u64,
    pub(super) inbox: *const Inbox,
    endpoint: EndpointId,
    header: [u8; HEADER_BYTES],
    body: Vec<u8>,
    /// What it is data of.
    source: Option<SourceId>,
}

impl Port {
    pub(super) fn new(worker: Worker, inbox: Rc<Inbox>) -> Self {
        Self {
            worker,
            inbox,
            sends: HashMap::new(),
            sends_started: 0,
            endpoints: HashMap::new(),
            endpoints_made: 0,
            closing: Vec::new(),
            sources: Sources::default(),
            landings: Vec::new(),
            piece_bytes: 0,
        }
    }

    pub(super) fn connect(&mut self, address: &[u8]) -> Result<EndpointId> {
        let handle = self.worker.connect(address)?;
        self.endpoints_made += 1;
        let id = EndpointId(self.endpoints_made);
        self.endpoints.insert(id, Endpoint { handle, sending: 0 });
        Ok(id)
    }

    /// Returns which endpoint a handle is of.
    pub(super) fn endpoint(&self, handle: EndpointHandle) -> Option<EndpointId> {
        self.endpoints.iter().find(|(_, e)| e.handle == handle).map(|(id, _)| *id)
    }

    pub(super) fn handle(&self, id: EndpointId) -> Option<EndpointHandle> {
        self.endpoints.get(&id).map(|endpoint| endpoint.handle)
    }

    /// Closes an endpoint at once; what it had under way ends with an error.
    pub(super) fn close(&mut self, id: EndpointId) {
        let Some(Endpoint { handle, .. }) = self.endpoints.remove(&id) else { return };
        // Without the handling of failures, an endpoint is closed when what was posted has ended.
        let param = match self.worker.on_failure {
            OnFailure::Handled => {
                RequestParam { op_attr_mask: sys::OP_FLAGS, ..param(sys::EP_CLOSE_FLAG_FORCE) }
            }
            OnFailure::Nothing => param(0),
        };
        let close = self.worker.library().functions().ucp_ep_close_nbx;
        // SAFETY: the handle was among the open ones until now.
        let closed = unsafe { close(handle, &raw const param) };
        self.inbox.forget(handle);
        match sys::started(closed) {
            Started::Done => {}
            Started::Pending(request) => self.closing.push(request),
            Started::Failed(status) => {
                tracing::debug!(status = self.worker.library().words(status), "endpoint closed");
            }
        }
    }

    pub(super) fn close_all(&mut self) {
        self.sources.clear();
        let open: Vec<_> = self.endpoints.keys().copied().collect();
        open.into_iter().for_each(|id| self.close(id));
    }

    /// Tells whether endpoints are closing, or sends or accesses are under way.
    pub(super) fn is_draining(&self) -> bool {
        let is_landing = self.landings.iter().any(|landing| landing.in_flight() > 0);
        !self.closing.is_empty() || !self.sends.is_empty() || is_landing
    }

    /// Sends a message that is no fragment of data.
    pub(super) fn send(&mut self, endpoint: EndpointId, header: Header, body: Vec<u8>) {
        self.start(endpoint, header, body, None);
    }

    /// Takes note of the end of a send; returns the operation whose data is all out.
    pub(super) fn sent(&mut self, id: u64) -> Option<OpKey> {
        let sending = self.sends.remove(&id)?;
        if let Some(endpoint) = self.endpoints.get_mut(&sending.endpoint) {
            endpoint.sending -= 1;
        }
        sending.source.and_then(|source| self.sources.sent(source))
    }

    /// Lets UCX work; tells whether it had anything to do.
    pub(super) fn progress(&mut self) -> bool {
        let moved = self.worker.progress();
        let functions = self.worker.library().functions();
        self.closing.retain(|&request| {
            // SAFETY: the request was returned by a close and is not freed yet.
            let status = unsafe { (functions.ucp_request_check_status)(request) };
            if status != sys::IN_PROGRESS {
                // SAFETY: as above; it leaves the list here.
                unsafe { (functions.ucp_request_free)(request) };
            }
            status == sys::IN_PROGRESS
        });
        moved
    }

    pub(super) fn start(
        &mut self,
        endpoint: EndpointId,
        header: Header,
        body: Vec<u8>,
        source: Option<SourceId>,
    ) {
        let Some(Endpoint { handle, sending }) = self.endpoints.get_mut(&endpoint) else { return };
        let handle = *handle;
        *sending += 1;
        if *sending > SENDS_PER_ENDPOINT_MAX {
            *sending -= 1;
            // A peer that asks and does not listen.
            return self.inbox.push(Event::Failed(handle, sys::ERR_NO_MEMORY));
        }
        let header = header.encode();
        let sending = self.keep(|id, inbox| Sending { id, inbox, endpoint, header, body, source });
        let (buffer, count) = (sending.body.as_ptr().cast(), sending.body.len());
        let param = RequestParam {
            op_attr_mask: sys::OP_CALLBACK | sys::OP_USER_DATA | sys::OP_DATATYPE | sys::OP_FLAGS,
            callback: Some(on_sent),
            datatype: sys::DATATYPE_BYTES,
            user_data: Rc::as_ptr(&sending).cast_mut().cast(),
            ..param(sys::AM_SEND_FLAG_EAGER)
        };
        let send = self.worker.library().functions().ucp_am_send_nbx;
        let header = sending.header.as_ptr().cast();
        // SAFETY: header and body are kept in `sends` until the callback was seen.
        let started = unsafe {
            send(handle, MESSAGE_ID, header, HEADER_BYTES, buffer, count, &raw const param)
        };
        self.noted(handle, sending.id, started);
    }

    fn keep(&mut self, make: impl FnOnce(u64, *const Inbox) -> Sending) -> Rc<Sending> {
        self.sends_started += 1;
        let sending = Rc::new(make(self.sends_started, Rc::as_ptr(&self.inbox)));
        self.sends.insert(sending.id, Rc::clone(&sending));
        sending
    }

    /// Has what is over at once be seen like what ends later.
    fn noted(&self, handle: EndpointHandle, id: u64, started: *mut c_void) {
        match sys::started(started) {
            Started::Pending(_) => {}
            Started::Done => self.inbox.push(Event::Sent(id)),
            Started::Failed(status) => {
                self.inbox.push(Event::Sent(id));
                self.inbox.push(Event::Failed(handle, status));
            }
        }
    }
}

pub(super) fn param(flags: u32) -> RequestParam {
    RequestParam {
        op_attr_mask: 0,
        flags,
        request: ptr::null_mut(),
        callback: None,
        datatype: 0,
        user_data: ptr::null_mut(),
        reply_buffer: ptr::null_mut(),
        memory_type: 0,
        recv_info: ptr::null_mut(),
        memory: ptr::null_mut(),
    }
}

/// The one active message id in use.
pub(super) const MESSAGE_ID: u32 = 1;

/// A peer that leaves more unread is cut off.
const SENDS_PER_ENDPOINT_MAX: usize = 16 << 10;
