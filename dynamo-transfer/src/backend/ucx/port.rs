//! A worker with its endpoints, and what is on its way out.

#![expect(unsafe_code, reason = "calls of a C library")]

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use super::inbox::{Event, Inbox, OpKey, on_sent};
use super::protocol::{HEADER_BYTES, Header, Kind};
use super::stream::Stream;
use super::sys::{self, EndpointHandle, RequestParam, Started, Status};
use super::worker::{OnFailure, Worker};
use crate::error::Result;
use crate::memory::Span;

/// Everything that touches a worker goes through here, on its one thread.
///
/// The worker comes first: it is destroyed before the memory that it may still send from is let go.
pub(super) struct Port {
    pub(super) worker: Worker,
    pub(super) inbox: Rc<Inbox>,
    /// What UCX still holds pointers into: kept until its end was seen.
    sends: HashMap<u64, Rc<Sending>>,
    sends_started: u64,
    endpoints: HashMap<EndpointId, Endpoint>,
    endpoints_made: u64,
    /// Requests of endpoints that are closing.
    closing: Vec<*mut c_void>,
    sources: HashMap<OpKey, Source>,
    /// Sources that may send, in turn.
    runnable: VecDeque<OpKey>,
}

/// Names an endpoint; unlike a handle, never two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EndpointId(u64);

struct Endpoint {
    handle: EndpointHandle,
    sending: usize,
}

/// What UCX points into until it calls back.
pub(super) struct Sending {
    pub(super) id: u64,
    pub(super) inbox: *const Inbox,
    endpoint: EndpointId,
    header: [u8; HEADER_BYTES],
    body: Vec<u8>,
    /// Keeps the memory of the operation alive.
    _stream: Option<Rc<Stream>>,
    pub(super) op: Option<OpKey>,
}

/// An operation whose data goes out from here.
struct Source {
    endpoint: EndpointId,
    kind: Kind,
    stream: Rc<Stream>,
    position: u64,
    in_flight: usize,
    is_runnable: bool,
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
            sources: HashMap::new(),
            runnable: VecDeque::new(),
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

    /// Tells whether endpoints are closing or sends are under way.
    pub(super) fn is_draining(&self) -> bool {
        !self.closing.is_empty() || !self.sends.is_empty()
    }

    /// Sends a message without data of regions.
    pub(super) fn send(&mut self, endpoint: EndpointId, header: Header, body: Vec<u8>) {
        self.start(endpoint, header, body, None);
    }

    /// Has the data of an operation sent, a window at a time.
    pub(super) fn supply(
        &mut self,
        key: OpKey,
        endpoint: EndpointId,
        kind: Kind,
        stream: Rc<Stream>,
    ) {
        let (position, in_flight, is_runnable) = (0, 0, true);
        let source = Source { endpoint, kind, stream, position, in_flight, is_runnable };
        self.sources.insert(key, source);
        self.runnable.push_back(key);
    }

    /// Sends no more data of an operation; what is under way are copies.
    pub(super) fn withhold(&mut self, key: &OpKey) {
        self.sources.remove(key);
    }

    /// Sends fragments in turn; tells whether there was anything to send.
    pub(super) fn pump(&mut self) -> bool {
        let (mut sent, mut held_back) = (0, 0);
        while sent < FRAGMENTS_PER_TURN && held_back < self.runnable.len() {
            let Some(key) = self.runnable.pop_front() else { break };
            let Some(source) = self.sources.get_mut(&key) else { continue };
            if source.in_flight >= WINDOW || source.position >= source.stream.total() {
                source.is_runnable = false;
                continue;
            }
            // Fragments are copies: a peer that does not take them is not sent more.
            let endpoint = self.endpoints.get(&source.endpoint);
            if endpoint.is_some_and(|endpoint| endpoint.sending >= FRAGMENTS_PER_ENDPOINT_MAX) {
                self.runnable.push_back(key);
                held_back += 1;
                continue;
            }
            let header =
                Header { position: source.position, ..Header::new(source.kind, key.link, key.op) };
            let len = FRAGMENT_BYTES.min(source.stream.total() - source.position);
            source.position += len;
            source.in_flight += 1;
            let (endpoint, stream) = (source.endpoint, Rc::clone(&source.stream));
            self.runnable.push_back(key);
            self.start(endpoint, header, stream.gather(header.position, len), Some(key));
            sent += 1;
        }
        sent > 0
    }

    /// Starts a one-sided access of an operation to memory of a peer; tells whether its end is
    /// going to be noted.
    pub(super) fn access(&mut self, access: &Access, key: OpKey, stream: &Rc<Stream>) -> bool {
        let Some(Endpoint { handle, sending }) = self.endpoints.get_mut(&access.endpoint) else {
            return false;
        };
        *sending += 1;
        let handle = *handle;
        let stream = Some(Rc::clone(stream));
        let header = [0; HEADER_BYTES];
        let sending = self.keep(|id, inbox| Sending {
            id,
            inbox,
            endpoint: access.endpoint,
            header,
            body: Vec::new(),
            _stream: stream,
            op: Some(key),
        });
        let param = RequestParam {
            op_attr_mask: sys::OP_CALLBACK | sys::OP_USER_DATA,
            callback: Some(on_sent),
            user_data: Rc::as_ptr(&sending).cast_mut().cast(),
            ..param(0)
        };
        let functions = self.worker.library().functions();
        let (local, len) = (access.local.as_ptr().cast::<c_void>(), access.local.len());
        let started = if access.is_write {
            // SAFETY: the stream keeps the span alive until the callback was seen; the peer granted
            // this piece of its memory by this key.
            unsafe {
                (functions.ucp_put_nbx)(
                    handle,
                    local,
                    len,
                    access.remote,
                    access.key,
                    &raw const param,
                )
            }
        } else {
            // SAFETY: as above; the region may be written, as was checked when it was leased.
            unsafe {
                (functions.ucp_get_nbx)(
                    handle,
                    local,
                    len,
                    access.remote,
                    access.key,
                    &raw const param,
                )
            }
        };
        self.noted(handle, sending.id, started);
        true
    }

    /// Starts a flush of an endpoint, noted like an access of the operation.
    pub(super) fn flush(&mut self, endpoint: EndpointId, key: OpKey) -> bool {
        let Some(Endpoint { handle, sending }) = self.endpoints.get_mut(&endpoint) else {
            return false;
        };
        *sending += 1;
        let handle = *handle;
        let sending = self.keep(|id, inbox| Sending {
            id,
            inbox,
            endpoint,
            header: [0; HEADER_BYTES],
            body: Vec::new(),
            _stream: None,
            op: Some(key),
        });
        let param = RequestParam {
            op_attr_mask: sys::OP_CALLBACK | sys::OP_USER_DATA,
            callback: Some(on_sent),
            user_data: Rc::as_ptr(&sending).cast_mut().cast(),
            ..param(0)
        };
        let flush = self.worker.library().functions().ucp_ep_flush_nbx;
        // SAFETY: the endpoint is open.
        let started = unsafe { flush(handle, &raw const param) };
        self.noted(handle, sending.id, started);
        true
    }

    /// Takes note of the end of a send; returns the operation whose data is all out.
    pub(super) fn sent(&mut self, id: u64, status: Status) -> Option<Sent> {
        let sending = self.sends.remove(&id)?;
        if let Some(endpoint) = self.endpoints.get_mut(&sending.endpoint) {
            endpoint.sending -= 1;
        }
        let op = sending.op?;
        let Some(source) = self.sources.get_mut(&op) else {
            return Some(Sent { op, status });
        };
        source.in_flight -= 1;
        if source.position < source.stream.total() {
            if !source.is_runnable {
                source.is_runnable = true;
                self.runnable.push_back(op);
            }
            return None;
        }
        (source.in_flight == 0).then(|| {
            self.sources.remove(&op);
            Sent { op, status }
        })
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

    fn start(&mut self, endpoint: EndpointId, header: Header, body: Vec<u8>, op: Option<OpKey>) {
        let Some(Endpoint { handle, sending }) = self.endpoints.get_mut(&endpoint) else { return };
        let handle = *handle;
        *sending += 1;
        if *sending > SENDS_PER_ENDPOINT_MAX {
            *sending -= 1;
            // A peer that asks and does not listen.
            return self.inbox.push(Event::Failed(handle, sys::ERR_NO_MEMORY));
        }
        let header = header.encode();
        let sending =
            self.keep(|id, inbox| Sending { id, inbox, endpoint, header, body, _stream: None, op });
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
            Started::Done => self.inbox.push(Event::Sent(id, sys::OK)),
            Started::Failed(status) => {
                self.inbox.push(Event::Sent(id, status));
                self.inbox.push(Event::Failed(handle, status));
            }
        }
    }
}

/// A one-sided access: a piece of this side's memory and one of the peer's.
pub(super) struct Access {
    pub(super) endpoint: EndpointId,
    pub(super) is_write: bool,
    pub(super) local: Span,
    pub(super) remote: u64,
    pub(super) key: sys::RemoteKeyHandle,
}

/// The end of an operation's last send, or of one of its accesses.
pub(super) struct Sent {
    pub(super) op: OpKey,
    pub(super) status: Status,
}

fn param(flags: u32) -> RequestParam {
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

/// What TCP takes in one go with both headers: a longer one is put together from parts by UCX.
const FRAGMENT_BYTES: u64 = 60 << 10;

/// Fragments of one operation under way: enough to keep a socket full.
const WINDOW: usize = 16;

/// What lies in copies for one peer: a few operations' worth.
const FRAGMENTS_PER_ENDPOINT_MAX: usize = 128;

/// After so many, what has arrived is looked at.
const FRAGMENTS_PER_TURN: usize = 16;

/// A peer that leaves more unread is cut off.
const SENDS_PER_ENDPOINT_MAX: usize = 16 << 10;
