//! What UCX calls back: everything is only noted here, and acted on when progress has returned.

#![expect(unsafe_code, reason = "callbacks of a C library")]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;
use std::slice;

use super::landing::Landing;
use super::port::Sending;
use super::protocol::{CONTROL_BYTES_MAX, Header, Kind, protocol};
use super::stream::Stream;
use super::sys::{self, EndpointHandle, MessageParam, Status};
use crate::error::Result;

/// Which side of a link an operation is on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Side {
    Initiator,
    Owner,
}

/// Names an operation on one side of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct OpKey {
    pub(super) side: Side,
    pub(super) link: u64,
    pub(super) op: u64,
}

pub(super) enum Event {
    /// A message that is no fragment of data.
    Control(Header, Vec<u8>),
    /// An operation has received all of its data, or data that it cannot have.
    Filled(OpKey, Result<()>),
    /// A send has ended.
    Sent(u64),
    /// Accesses of an operation have ended.
    Landed(OpKey),
    /// An endpoint has failed.
    Failed(EndpointHandle, Status),
}

/// Where data of an operation goes.
struct Sink {
    stream: Rc<Stream>,
    missing: u64,
}

/// Callbacks run inside calls of UCX. They borrow what is here for a moment only, and nobody calls
/// UCX with any of it borrowed: a borrow never fails, and if it did, the message would be dropped.
pub(super) struct Inbox {
    events: RefCell<VecDeque<Event>>,
    /// Bytes of control messages among the events.
    control_bytes: Cell<usize>,
    sinks: RefCell<HashMap<OpKey, Sink>>,
    free: unsafe extern "C" fn(*mut c_void),
}

impl Inbox {
    pub(super) fn new(free: unsafe extern "C" fn(*mut c_void)) -> Rc<Self> {
        let (events, sinks) = Default::default();
        Rc::new(Self { events, control_bytes: Cell::new(0), sinks, free })
    }

    pub(super) fn pop(&self) -> Option<Event> {
        let event = self.events.borrow_mut().pop_front();
        if let Some(Event::Control(_, body)) = &event {
            self.control_bytes.set(self.control_bytes.get() - body.len());
        }
        event
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.borrow().is_empty()
    }

    pub(super) fn push(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
    }

    /// Forgets what was noted of an endpoint that is closed: its handle may be another's next.
    pub(super) fn forget(&self, endpoint: EndpointHandle) {
        let of_it =
            |event: &Event| matches!(event, Event::Failed(failed, _) if *failed == endpoint);
        self.events.borrow_mut().retain(|event| !of_it(event));
    }

    /// Lets data of an operation in.
    pub(super) fn open(&self, key: OpKey, stream: Rc<Stream>) {
        let missing = stream.total();
        self.sinks.borrow_mut().insert(key, Sink { stream, missing });
    }

    /// Lets no more data of an operation in.
    pub(super) fn close(&self, key: &OpKey) {
        // Dropped behind the borrow: ending a lease wakes tasks.
        let sink = self.sinks.borrow_mut().remove(key);
        drop(sink);
    }

    fn message(&self, header: &[u8], body: &[u8]) {
        let Some(header) = Header::decode(header) else { return };
        let side = match header.kind {
            Kind::ReadData => Side::Initiator,
            Kind::WriteData => Side::Owner,
            _ => return self.control(header, body),
        };
        let key = OpKey { side, link: header.link, op: header.op };
        let Ok(mut sinks) = self.sinks.try_borrow_mut() else { return };
        // Data of an operation that was cancelled is dropped.
        let Some(sink) = sinks.get_mut(&key) else { return };
        let taken = sink.stream.take(&header, body).and_then(|()| {
            let missing = sink.missing.checked_sub(body.len() as u64);
            missing.ok_or_else(|| protocol("data twice"))
        });
        sink.missing = *taken.as_ref().unwrap_or(&0);
        if sink.missing == 0 {
            let sink = sinks.remove(&key);
            drop(sinks);
            drop(sink);
            self.note(Event::Filled(key, taken.map(|_| ())));
        }
    }

    fn control(&self, header: Header, body: &[u8]) {
        let bytes = self.control_bytes.get().saturating_add(body.len());
        // A peer that floods loses messages, and its operations their deadlines.
        if body.len() > CONTROL_BYTES_MAX || bytes > CONTROL_BYTES_QUEUED_MAX {
            return;
        }
        if self.events.try_borrow().is_ok_and(|events| events.len() < EVENTS_MAX) {
            self.control_bytes.set(bytes);
            self.note(Event::Control(header, body.to_vec()));
        }
    }

    pub(super) fn note(&self, event: Event) {
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.push_back(event);
        }
    }
}

/// Receives a message; `arg` is the inbox.
pub(super) unsafe extern "C" fn on_message(
    arg: *mut c_void,
    header: *const c_void,
    header_len: usize,
    data: *mut c_void,
    len: usize,
    param: *const MessageParam,
) -> Status {
    // SAFETY: the worker gets the inbox as argument, and the port drops the worker first.
    let inbox = unsafe { &*arg.cast::<Inbox>() };
    // SAFETY: UCX passes a parameter that is valid during the call.
    let attributes = unsafe { (*param).recv_attr };
    // Nobody of ours announces data: it would not be here yet.
    if attributes & sys::AM_RECV_FLAG_RNDV == 0 {
        // SAFETY: UCX passes that many bytes, valid during the call.
        let header = unsafe { bytes(header, header_len) };
        // SAFETY: as above.
        let body = unsafe { bytes(data, len) };
        inbox.message(header, body);
    }
    sys::OK
}

/// Is told that a send has ended; `user_data` is the [`Sending`]. If it has failed, so has its
/// endpoint.
pub(super) unsafe extern "C" fn on_sent(
    request: *mut c_void,
    _status: Status,
    user_data: *mut c_void,
) {
    // SAFETY: the port keeps what it posted until it has seen the event noted here.
    let sending = unsafe { &*user_data.cast::<Sending>() };
    // SAFETY: as for messages.
    let inbox = unsafe { &*sending.inbox };
    inbox.note(Event::Sent(sending.id));
    // SAFETY: the request has ended and nobody else frees it.
    unsafe { (inbox.free)(request) };
}

/// Is told that an access has ended; `user_data` is the [`Landing`].
pub(super) unsafe extern "C" fn on_landed(
    request: *mut c_void,
    status: Status,
    user_data: *mut c_void,
) {
    // SAFETY: the port keeps what accesses under way point to.
    let landing = unsafe { &*user_data.cast::<Landing>() };
    landing.ended(status);
    // SAFETY: the request has ended and nobody else frees it.
    unsafe { (landing.inbox().free)(request) };
}

/// Is told that an endpoint has failed; `arg` is the inbox.
pub(super) unsafe extern "C" fn on_failed(
    arg: *mut c_void,
    endpoint: EndpointHandle,
    status: Status,
) {
    // SAFETY: as for messages.
    let inbox = unsafe { &*arg.cast::<Inbox>() };
    inbox.note(Event::Failed(endpoint, status));
}

/// # Safety
/// Null, or valid for `len` bytes as long as the result is used.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> &'a [u8] {
    if data.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { slice::from_raw_parts(data.cast(), len) }
}

/// Messages that wait while one call of progress goes on.
const EVENTS_MAX: usize = 64 << 10;
const CONTROL_BYTES_QUEUED_MAX: usize = 64 << 20;
