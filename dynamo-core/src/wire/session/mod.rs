//! Many streams over one connection, as a state machine: bytes in, bytes and events out.
//!
//! It does no IO, has no clock and spawns nothing; a driver moves its bytes, tells it the time and
//! wakes whoever waits for an event. One message opens a stream from the client, any number
//! answers, and every stream ends in exactly one of complete, failed, or killed by the client.
//!
//! Bounds: a stream's unread messages by its window and the one message that is arriving; arriving
//! messages in all by [`Limits::assembly_bytes_max`]; control frames by a constant, beyond which a
//! peer that does not read is dropped.

mod credit;
#[cfg(any(test, feature = "test-util"))]
pub(super) mod fuzz;
mod limits;
mod receive;
mod stream;
mod time;
mod transmit;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::codec::{Codec, check_size};
use super::frame::{self, Hello, Kind};
use super::head::Head;
use crate::error::{Error, ErrorKind, Result};
use credit::Sharing;
pub use limits::Limits;
use limits::{WINDOW_MAX, WINDOW_MIN};
pub(crate) use stream::StreamIds;
use stream::{Stream, Terminal};

/// One side of a connection.
#[derive(Debug)]
pub struct Session {
    is_server: bool,
    /// Of all messages of the connection: the client's choice.
    codec: Codec,
    limits: Limits,
    peer: Option<Hello>,
    streams: HashMap<u32, Stream, StreamIds>,
    /// The client's next stream; at the server, behind the last one seen.
    next_stream: u32,
    /// What may still be sent over the connection, and by whom.
    send_credit: u32,
    sharing: Sharing,
    /// What the peer may still send, and what was taken and is not granted again yet.
    credit: u32,
    owed: u32,
    /// Streams that are owed something; some are gone.
    owing: Vec<u32>,
    /// Bytes of messages that are arriving, over all streams.
    assembling: usize,
    control: BytesMut,
    /// The answer to the last ping; an older one is of no use.
    pong: Option<u64>,
    /// At the server: the streams that it takes at once, and how many the client knows of.
    streams_max: u32,
    told_streams_max: u32,
    /// Streams whose first message or end is due; they go before the others.
    first: VecDeque<u32>,
    bulk: VecDeque<u32>,
    /// Streams that wait for credit of the connection, those that need the least of it first.
    starved: BTreeSet<(u32, u32)>,
    events: VecDeque<Event>,
    last_received: Instant,
    pinged_at: Option<Instant>,
    /// Since when no stream runs, and whether one has ended of which that does not tell yet.
    idle_since: Instant,
    was_used: bool,
    /// The last stream that the server took, once it takes no more.
    gone_after: Option<u32>,
    closed: Option<(ErrorKind, String)>,
}

/// What the driver has to know.
#[derive(Debug)]
pub enum Event {
    /// The peer has said hello: streams may be opened.
    Established,
    /// At the server: a request has arrived in whole.
    Opened {
        /// Its stream.
        stream: u32,
        /// What it is.
        head: Box<Head>,
        /// Its body.
        body: Bytes,
    },
    /// At the client: [`Session::recv`] has something.
    Readable(u32),
    /// At the server: what was queued is sent, there is room for more.
    Writable(u32),
    /// At the server: the client asks for an early end.
    Stopped(u32),
    /// At the server: the client wants no answer any more; the stream is gone.
    Killed(u32),
    /// No stream can be opened any more: to a server's client that is told, and to the server
    /// itself once it has said so.
    GoingAway,
}

/// What [`Session::recv`] has.
#[derive(Debug)]
pub enum Recv {
    /// The next message.
    Message(Bytes),
    /// The stream is complete; it is gone now.
    Complete,
    /// The stream has failed; it is gone now.
    Failed(Error),
    /// Nothing yet.
    Pending,
}

impl Session {
    /// Creates the side that opens streams; all messages are encoded by `codec`.
    pub fn client(limits: Limits, codec: Codec, now: Instant) -> Self {
        Self::new(false, limits, codec, now)
    }

    /// Creates the side that answers.
    pub fn server(limits: Limits, now: Instant) -> Self {
        Self::new(true, limits, Codec::default(), now)
    }

    fn new(is_server: bool, limits: Limits, codec: Codec, now: Instant) -> Self {
        let hello = Hello {
            stream_window: limits.stream_window,
            connection_window: limits.connection_window,
            streams_max: if is_server { limits.streams_max } else { 0 },
            codec,
        };
        let mut control = BytesMut::new();
        frame::put(&mut control, Kind::Hello, 0, 0, &hello.encode());
        Self {
            is_server,
            codec,
            peer: None,
            streams: HashMap::default(),
            next_stream: 1,
            send_credit: 0,
            sharing: Sharing::default(),
            credit: limits.connection_window,
            owed: 0,
            owing: Vec::new(),
            assembling: 0,
            control,
            pong: None,
            streams_max: limits.streams_max,
            told_streams_max: limits.streams_max,
            first: VecDeque::new(),
            bulk: VecDeque::new(),
            starved: BTreeSet::new(),
            events: VecDeque::new(),
            last_received: now,
            pinged_at: None,
            idle_since: now,
            was_used: false,
            gone_after: None,
            closed: None,
            limits,
        }
    }

    /// Returns the next thing the driver has to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Tells whether streams can be opened: the peer has said hello and is not going away, and
    /// there are numbers left.
    pub fn is_open(&self) -> bool {
        let is_used_up = self.next_stream == u32::MAX;
        self.peer.is_some() && self.closed.is_none() && self.gone_after.is_none() && !is_used_up
    }

    /// Tells whether the connection is of no use any more.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Returns how the messages of the connection are encoded.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns why the connection is of no use any more.
    pub fn why_closed(&self) -> Option<&str> {
        self.closed.as_ref().map(|(_, message)| message.as_str())
    }

    /// Tells whether a server has said that it takes no more streams. What crosses that word is
    /// refused, so the connection is best left to the client to end.
    pub fn has_said_farewell(&self) -> bool {
        self.is_server && self.peer.is_some() && self.gone_after.is_some()
    }

    /// Returns the number of streams that have not ended.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Tells whether a stream has not ended.
    pub fn has_stream(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// Tells whether a control frame waits, such as a grant: it goes out with the next write.
    pub fn has_control(&self) -> bool {
        let has_credits = self.streams_max != self.told_streams_max;
        !self.control.is_empty() || self.pong.is_some() || has_credits || self.owes_now()
    }

    /// Opens a stream with a request.
    ///
    /// Fails, and nothing was started then, with [`InvalidArgument`](ErrorKind::InvalidArgument) if
    /// head or body is too large, [`Overloaded`](ErrorKind::Overloaded) at the server's limit of
    /// streams, and [`Unavailable`](ErrorKind::Unavailable) if the connection takes no stream.
    pub fn open(&mut self, head: &Head, body: Bytes) -> Result<u32> {
        check_size(&body)?;
        let unavailable = |message| Error::new(ErrorKind::Unavailable, message).unprocessed();
        let Some(peer) = self.peer.as_ref().filter(|_| self.is_open()) else {
            return Err(unavailable("the connection takes no requests"));
        };
        if self.streams.len() >= peer.streams_max as usize {
            let message = format!("{} requests run on the connection, its limit", peer.streams_max);
            return Err(Error::new(ErrorKind::Overloaded, message).unprocessed());
        }
        let mut stream = Stream::default();
        stream.inbound.credit = self.limits.stream_window;
        stream.outbound.credit = peer.stream_window;
        stream.outbound.head = Some(head.encode()?);
        stream.outbound.queued = body.len();
        stream.outbound.messages.push_back(body);
        let id = self.next_stream;
        self.next_stream += 1;
        if !self.is_open() {
            // That was the last number: the next dial makes another connection.
            self.events.push_back(Event::GoingAway);
        }
        self.streams.insert(id, stream);
        self.schedule(id, true);
        Ok(id)
    }

    /// Tells a client whether the server has said what becomes of the request: its engine has given
    /// its stream, or it failed, which [`recv`](Self::recv) has then.
    pub fn is_decided(&self, id: u32) -> bool {
        self.closed.is_some()
            || self.streams.get(&id).is_none_or(|stream| {
                let inbound = &stream.inbound;
                inbound.is_accepted || inbound.terminal.is_some() || !inbound.messages.is_empty()
            })
    }

    /// Tells a client whether the engine has given its stream; until then the request may have
    /// started or not.
    pub fn is_accepted(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.inbound.is_accepted)
    }

    /// Returns what the server has answered; messages first, then how the stream ended.
    pub fn recv(&mut self, id: u32) -> Recv {
        let Some(stream) = self.streams.get_mut(&id) else {
            // Only the client itself takes a stream away before it has told how that ended.
            return Recv::Failed(Error::new(ErrorKind::Cancelled, "by the client"));
        };
        let inbound = &mut stream.inbound;
        if let Some((message, mut credit)) = inbound.messages.pop_front() {
            if inbound.messages.is_empty() {
                // The arriving message is the next one: it needs all the credit there is.
                credit += std::mem::take(&mut inbound.partial_credit);
            }
            self.give_back(id, credit);
            return Recv::Message(message);
        }
        match inbound.terminal.take() {
            Some(terminal) => {
                self.remove(id);
                match terminal {
                    Terminal::Complete => Recv::Complete,
                    Terminal::Failed(error) => Recv::Failed(error),
                }
            }
            None if self.closed.is_some() => {
                let never_sent = stream.outbound.head.is_some();
                self.remove(id);
                Recv::Failed(self.lost(never_sent))
            }
            None => Recv::Pending,
        }
    }

    /// Asks the server for an early end of the answer.
    pub fn stop(&mut self, id: u32) {
        match self.streams.get_mut(&id).filter(|stream| stream.inbound.terminal.is_none()) {
            // The word goes behind the request.
            Some(stream) if stream.outbound.head.is_some() => stream.outbound.is_stopped = true,
            Some(_) => self.put_control(Kind::Stop, id, &[]),
            None => {}
        }
    }

    /// Wants no answer any more: the stream is gone.
    pub fn kill(&mut self, id: u32) {
        if let Some(stream) = self.remove(id)
            && stream.outbound.head.is_none()
            && stream.inbound.terminal.is_none()
        {
            let error = Error::new(ErrorKind::Cancelled, "by the client");
            self.put_control(Kind::Reset, id, &frame::encode_error(&error));
        }
    }

    /// Tells the client that the engine has given its stream.
    pub fn accept(&mut self, id: u32) {
        if self.streams.contains_key(&id) {
            self.put_control(Kind::Accept, id, &[]);
        }
    }

    /// Queues one message of the answer; of no effect if the stream is gone.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if it is too large.
    pub fn send(&mut self, id: u32, message: Bytes) -> Result<()> {
        check_size(&message)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            let outbound = &mut stream.outbound;
            outbound.queued += message.len();
            outbound.messages.push_back(message);
            let is_first = outbound.sent == 0;
            self.schedule(id, is_first);
        }
        Ok(())
    }

    /// Tells whether a message may be queued now; [`Event::Writable`] says when it may again.
    pub fn has_room(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.outbound.has_room())
    }

    /// Completes the answer behind what is queued.
    pub fn finish(&mut self, id: u32) {
        self.end_with(id, Terminal::Complete);
    }

    /// Ends the answer with an error behind what is queued.
    pub fn fail(&mut self, id: u32, error: Error) {
        self.end_with(id, Terminal::Failed(error));
    }

    fn end_with(&mut self, id: u32, ending: Terminal) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outbound.ending.get_or_insert(ending);
            let is_first = stream.outbound.messages.is_empty();
            self.schedule(id, is_first);
        }
    }

    /// Takes no more streams; those that run go on.
    pub fn go_away(&mut self) {
        if self.is_server && self.gone_after.is_none() {
            let last = self.next_stream - 1;
            self.gone_after = Some(last);
            self.put_control(Kind::GoAway, 0, &last.to_le_bytes());
            self.events.push_back(Event::GoingAway);
        }
    }

    /// Takes so many streams at once from here on, at least one and at most the limit; those that
    /// run go on, and the client is told the last word of many.
    ///
    /// What the client opens beyond it, before it hears of that, is refused as not started.
    pub fn set_streams_max(&mut self, streams_max: u32) {
        if self.is_server && self.closed.is_none() {
            self.streams_max = streams_max.clamp(1, self.limits.streams_max);
        }
    }

    /// Closes the connection: every stream that has not ended fails.
    ///
    /// What a client had not sent yet fails as provably not started.
    pub fn close(&mut self, kind: ErrorKind, message: impl Into<String>) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some((kind, message.into()));
        let mut open: Vec<_> = self.streams.keys().copied().collect();
        open.sort_unstable();
        if self.is_server {
            self.streams.clear();
            self.events.extend(open.into_iter().map(Event::Killed));
        } else {
            // Whoever learns that its stream has failed finds the connection gone.
            self.events.push_back(Event::GoingAway);
            self.events.extend(open.into_iter().map(Event::Readable));
        }
        (self.control, self.pong) = (BytesMut::new(), None);
        self.first.clear();
        self.bulk.clear();
        self.starved.clear();
        (self.owing, self.told_streams_max) = (Vec::new(), self.streams_max);
    }

    /// Returns why a stream of a closed connection failed.
    fn lost(&self, never_sent: bool) -> Error {
        let (kind, message) =
            self.closed.clone().unwrap_or_else(|| (ErrorKind::Internal, "not closed".to_owned()));
        let error = Error::new(kind, message);
        if never_sent { error.unprocessed() } else { error }
    }

    /// Takes a stream out, with all it holds of the connection.
    fn remove(&mut self, id: u32) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        if let Some(needed) = stream.outbound.starves_below {
            self.starved.remove(&(needed, id));
        }
        self.was_used = true;
        self.assembling -= stream.inbound.partial.len();
        self.owe_connection(stream.inbound.held());
        Some(stream)
    }

    fn put_control(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        if self.closed.is_some() {
            return;
        }
        frame::put(&mut self.control, kind, 0, stream, payload);
        if self.control.len() > CONTROL_BYTES_MAX {
            self.close(ErrorKind::Overloaded, "the peer does not read");
        }
    }

    fn schedule(&mut self, id: u32, is_first: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !std::mem::replace(&mut stream.outbound.is_scheduled, true) {
            let queue = if is_first { &mut self.first } else { &mut self.bulk };
            queue.push_back(id);
        }
    }

    /// Lets a stream wait until so much of the connection's credit is free.
    fn starve(&mut self, id: u32, needed: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            (stream.outbound.starves_below, stream.outbound.is_scheduled) = (Some(needed), true);
            self.starved.insert((needed, id));
        }
    }

    /// Lets a stream wait for credit of the connection no more.
    fn feed(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(needed) = stream.outbound.starves_below.take() {
            self.starved.remove(&(needed, id));
            stream.outbound.is_scheduled = false;
        }
    }
}

/// Thousands of windows and resets; a peer that leaves more unread is not there.
const CONTROL_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests;
