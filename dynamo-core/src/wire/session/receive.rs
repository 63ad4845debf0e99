use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::super::codec::MESSAGE_BYTES_MAX;
use super::super::frame::{
    self, BATCH, HEADER_BYTES, Header, Hello, Kind, MORE, protocol, take_batched, take_u32,
    take_u64,
};
use super::super::head::Head;
use super::credit::Sharing;
use super::stream::{Opening, Outbound, Stream, Terminal, cost};
use super::{Event, Session, WINDOW_MAX, WINDOW_MIN};
use crate::error::{Error, ErrorKind, Result};

impl Session {
    /// Takes in what arrived at `now`: whole frames are taken from `bytes`, the rest stays.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) if the peer broke it; the session is closed
    /// then.
    pub fn receive(&mut self, bytes: &mut BytesMut, now: Instant) -> Result<()> {
        while self.closed.is_none() {
            let taken = self.receive_frame(bytes);
            match taken {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.close(ErrorKind::Protocol, error.message());
                    return Err(error);
                }
            }
        }
        // A peer shows no life before it has said hello: dripping that is no way to stay.
        if self.peer.is_some() {
            (self.last_received, self.pinged_at) = (now, None);
        }
        Ok(())
    }

    /// Takes in one frame; tells whether there was one.
    fn receive_frame(&mut self, bytes: &mut BytesMut) -> Result<bool> {
        let Some(header) = Header::decode(bytes)? else { return Ok(false) };
        if bytes.len() < HEADER_BYTES + header.len {
            return Ok(false);
        }
        self.take_frame(&header, &bytes[HEADER_BYTES..HEADER_BYTES + header.len])?;
        bytes.advance(HEADER_BYTES + header.len);
        Ok(true)
    }

    fn take_frame(&mut self, header: &Header, payload: &[u8]) -> Result<()> {
        if self.peer.is_none() != (header.kind == Kind::Hello) {
            return Err(protocol(format!("{:?} frame where hello stands", header.kind)));
        }
        let id = header.stream;
        match (header.kind, self.is_server) {
            (Kind::Hello, _) => self.on_hello(payload)?,
            (Kind::Open, true) => self.on_open(id, header.flags, payload)?,
            (Kind::Data, _) => self.on_data(id, header.flags, payload)?,
            (Kind::Window, _) => self.on_window(id, take_u32(payload)?)?,
            (Kind::Ping, _) => self.pong = Some(take_u64(payload)?),
            (Kind::Pong, _) => {}
            (Kind::Accept, false) => self.on_accept(id, payload)?,
            (Kind::End, false) => self.on_end(id, take_u64(payload)?)?,
            (Kind::Reset, false) => {
                let error = frame::decode_error(payload)?;
                self.known(id)?;
                self.end(id, Terminal::Failed(error));
            }
            (Kind::GoAway, false) => self.on_go_away(take_u32(payload)?),
            (Kind::Credits, false) => {
                let streams_max = take_u32(payload)?;
                if let Some(peer) = &mut self.peer {
                    peer.streams_max = streams_max;
                }
            }
            (Kind::Stop, true) => {
                self.known(id)?;
                let stream = self.streams.get_mut(&id);
                match stream.map(|stream| &mut stream.inbound.opening) {
                    // Nobody knows of the request yet.
                    Some(Some(opening)) => opening.is_stopped = true,
                    Some(None) => self.events.push_back(Event::Stopped(id)),
                    None => {}
                }
            }
            (Kind::Reset, true) => {
                frame::decode_error(payload)?;
                self.known(id)?;
                if self.remove(id).is_some() {
                    self.events.push_back(Event::Killed(id));
                }
            }
            (kind, _) => return Err(protocol(format!("{kind:?} frame from the wrong side"))),
        }
        Ok(())
    }

    fn on_hello(&mut self, payload: &[u8]) -> Result<()> {
        let hello = Hello::decode(payload)?;
        for window in [hello.stream_window, hello.connection_window] {
            if !(WINDOW_MIN..=WINDOW_MAX).contains(&window) {
                return Err(protocol(format!("window of {window} bytes")));
            }
        }
        self.send_credit = hello.connection_window;
        let streams_max = if self.is_server { self.limits.streams_max } else { hello.streams_max };
        self.sharing = Sharing::new(&hello, streams_max);
        if self.is_server {
            self.codec = hello.codec;
        }
        self.peer = Some(hello);
        self.events.push_back(Event::Established);
        Ok(())
    }

    fn on_open(&mut self, id: u32, flags: u8, payload: &[u8]) -> Result<()> {
        if id < self.next_stream || id == u32::MAX {
            return Err(protocol(format!("stream {id} opened after {}", self.next_stream - 1)));
        }
        self.next_stream = id + 1;
        let (head, body) = Head::decode(payload)?;
        let refusal = if self.gone_after.is_some() {
            Some(Error::new(ErrorKind::Unavailable, "server is going away"))
        } else if self.streams.len() >= self.streams_max as usize {
            let message = format!("{} requests run, the limit", self.streams_max);
            Some(Error::new(ErrorKind::Overloaded, message))
        } else {
            None
        };
        if let Some(error) = refusal {
            self.put_control(Kind::Reset, id, &frame::encode_error(&error.unprocessed()));
            return Ok(());
        }
        let mut stream = Stream::default();
        stream.inbound.credit = self.limits.stream_window;
        stream.outbound.credit = self.peer.as_ref().map_or(0, |peer| peer.stream_window);
        stream.inbound.opening = Some(Opening { head: Box::new(head), is_stopped: false });
        self.streams.insert(id, stream);
        self.on_part(id, flags, body, 0)
    }

    fn on_accept(&mut self, id: u32, payload: &[u8]) -> Result<()> {
        self.known(id)?;
        frame::ended(payload)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.inbound.is_accepted = true;
            self.events.push_back(Event::Readable(id));
        }
        Ok(())
    }

    fn on_data(&mut self, id: u32, flags: u8, payload: &[u8]) -> Result<()> {
        self.known(id)?;
        let cost = if flags == BATCH { batch_cost(payload)? } else { cost(payload.len()) };
        let overrun = || protocol(format!("stream {id} runs over its credit"));
        self.credit = self.credit.checked_sub(cost).ok_or_else(overrun)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            // Sent before the peer knew that the stream is gone.
            self.owe_connection(cost);
            return Ok(());
        };
        let inbound = &mut stream.inbound;
        inbound.credit = inbound.credit.checked_sub(cost).ok_or_else(overrun)?;
        if inbound.is_refused {
            // Sent before the peer knew that.
            self.owe_connection(cost);
            return Ok(());
        }
        if inbound.terminal.is_some() || (self.is_server && inbound.opening.is_none()) {
            return Err(protocol(format!("stream {id} goes on after its end")));
        }
        if flags == BATCH {
            return self.on_batch(id, payload);
        }
        self.on_part(id, flags, payload, cost)
    }

    /// Adds whole messages.
    fn on_batch(&mut self, id: u32, mut payload: &[u8]) -> Result<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let inbound = &mut stream.inbound;
        if self.is_server || !inbound.partial.is_empty() {
            return Err(protocol(format!("stream {id} has a batch in the midst of a message")));
        }
        // They share their memory, and no other stream's.
        inbound.partial.reserve(payload.len());
        inbound.partial.extend_from_slice(payload);
        let mut all = inbound.partial.split().freeze();
        if inbound.messages.is_empty() {
            self.events.push_back(Event::Readable(id));
        }
        while !payload.is_empty() {
            let before = payload.len();
            let len = take_batched(&mut payload)?;
            all.advance(before - payload.len());
            payload = &payload[len..];
            inbound.messages.push_back((all.split_to(len), cost(len)));
            inbound.received += 1;
        }
        Ok(())
    }

    /// Adds a part of a message.
    fn on_part(&mut self, id: u32, flags: u8, part: &[u8], cost: u32) -> Result<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let inbound = &mut stream.inbound;
        if inbound.partial.len() + part.len() > MESSAGE_BYTES_MAX {
            return Err(protocol(format!("message of more than {MESSAGE_BYTES_MAX} bytes")));
        }
        inbound.partial_credit += cost;
        if flags & MORE != 0 {
            inbound.partial.extend_from_slice(part);
            self.assembling += part.len();
            if self.assembling > self.limits.assembly_bytes_max {
                self.refuse_large(id);
            } else if stream.inbound.messages.is_empty() {
                // It is the next one to be taken: it may grow beyond the window.
                let credit = std::mem::take(&mut stream.inbound.partial_credit);
                self.give_back(id, credit);
            }
            return Ok(());
        }
        self.assembling -= inbound.partial.len();
        // The first message may be the only one.
        let message = if inbound.partial.is_empty() && inbound.received == 0 {
            Bytes::copy_from_slice(part)
        } else {
            if inbound.partial.is_empty() && inbound.partial.capacity() < part.len() {
                // Small messages of a stream share their memory, and no other stream's.
                inbound.partial = BytesMut::with_capacity(part.len().max(ROOM));
            }
            let is_in_parts = !inbound.partial.is_empty();
            inbound.partial.extend_from_slice(part);
            // A large message holds its memory alone, and no longer than it lives.
            let message = if is_in_parts {
                std::mem::take(&mut inbound.partial)
            } else {
                inbound.partial.split()
            };
            message.freeze()
        };
        inbound.received += 1;
        let credit = std::mem::take(&mut inbound.partial_credit);
        if let Some(Opening { head, is_stopped }) = inbound.opening.take() {
            self.give_back(id, credit);
            self.events.push_back(Event::Opened { stream: id, head, body: message });
            if is_stopped {
                self.events.push_back(Event::Stopped(id));
            }
        } else {
            if inbound.messages.is_empty() {
                self.events.push_back(Event::Readable(id));
            }
            inbound.messages.push_back((message, credit));
        }
        Ok(())
    }

    /// Gives up a stream whose message does not fit beside the others that are arriving.
    fn refuse_large(&mut self, id: u32) {
        let message = format!("{} bytes of messages are arriving, the limit", self.assembling);
        let error = Error::new(ErrorKind::Overloaded, message);
        if self.is_server {
            // The body is not complete, so nothing was started.
            self.remove(id);
            self.put_control(Kind::Reset, id, &frame::encode_error(&error.unprocessed()));
        } else {
            self.put_control(Kind::Reset, id, &frame::encode_error(&error));
            self.end(id, Terminal::Failed(error));
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.inbound.is_refused = true;
            }
        }
    }

    fn on_end(&mut self, id: u32, count: u64) -> Result<()> {
        self.known(id)?;
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let inbound = &stream.inbound;
        let terminal = if inbound.received == count && inbound.partial.is_empty() {
            Terminal::Complete
        } else {
            // Never a short success.
            let message = format!("{} of {count} messages arrived", inbound.received);
            Terminal::Failed(protocol(message))
        };
        self.end(id, terminal);
        Ok(())
    }

    /// Ends a stream of the client behind the messages that arrived.
    fn end(&mut self, id: u32, terminal: Terminal) {
        self.feed(id);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let inbound = &mut stream.inbound;
        if inbound.terminal.is_none() {
            inbound.terminal = Some(terminal);
            self.assembling -= inbound.partial.len();
            inbound.partial = BytesMut::new();
            let credit = std::mem::take(&mut inbound.partial_credit);
            // Whatever of the request is still queued is of no use.
            stream.outbound = Outbound::default();
            self.owe_connection(credit);
            self.events.push_back(Event::Readable(id));
        }
    }

    fn on_window(&mut self, id: u32, grant: u32) -> Result<()> {
        let overflow = || protocol(format!("window of stream {id} overflows"));
        let grown = |credit: u32| {
            credit.checked_add(grant).filter(|credit| *credit <= WINDOW_MAX).ok_or_else(overflow)
        };
        if id == 0 {
            self.send_credit = grown(self.send_credit)?;
            return Ok(());
        }
        self.known(id)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outbound.credit = grown(stream.outbound.credit)?;
            if stream.outbound.is_due() {
                self.feed(id);
                self.schedule(id, false);
            }
        }
        Ok(())
    }

    fn on_go_away(&mut self, last: u32) {
        self.gone_after = Some(last);
        self.events.push_back(Event::GoingAway);
        let mut behind: Vec<_> = self.streams.keys().copied().filter(|id| *id > last).collect();
        behind.sort_unstable();
        for id in behind {
            let error = Error::new(ErrorKind::Unavailable, "server is going away").unprocessed();
            self.end(id, Terminal::Failed(error));
        }
    }

    /// Checks that a stream was opened at some time; it may be gone.
    fn known(&self, id: u32) -> Result<()> {
        if id == 0 || id >= self.next_stream {
            return Err(protocol(format!("stream {id} was never opened")));
        }
        Ok(())
    }
}

/// Returns the credit that a batch costs: that of its messages.
fn batch_cost(mut payload: &[u8]) -> Result<u32> {
    let mut paid = 0;
    while !payload.is_empty() {
        let len = take_batched(&mut payload)?;
        payload = &payload[len..];
        paid += cost(len);
    }
    // An empty one is none.
    if paid == 0 { Err(protocol("a batch of no message")) } else { Ok(paid) }
}

/// What the small messages of a stream are allocated by: about a hundred tokens.
const ROOM: usize = 1024;
