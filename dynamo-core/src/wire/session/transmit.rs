use bytes::BytesMut;

use super::super::frame::{self, BATCH, Kind, MORE, PAYLOAD_BYTES_MAX};
use super::credit::Sharing;
use super::stream::{Outbound, Terminal, cost};
use super::{Event, Session};

impl Session {
    /// Appends what is due to `out` until that has `bytes_max` bytes or nothing is left; tells
    /// whether it appended anything.
    ///
    /// Control frames go first, then first messages and ends, then the rest in turns of a frame. A
    /// stream without credit is not looked at again before it has some.
    pub fn transmit(&mut self, out: &mut BytesMut, bytes_max: usize) -> bool {
        let before = out.len();
        self.put_all_control(out);
        while out.len() < bytes_max {
            self.feed_next();
            let Some(id) = self.first.pop_front().or_else(|| self.bulk.pop_front()) else { break };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let outbound = &mut stream.outbound;
            outbound.is_scheduled = false;
            if !outbound.is_due() {
                continue;
            }
            let had_room = outbound.has_room();
            match put_next(out, id, outbound, &mut self.send_credit, self.sharing) {
                Step::Sent => {
                    let (is_due, is_at_end) = (outbound.is_due(), outbound.messages.is_empty());
                    if !had_room && outbound.has_room() {
                        self.events.push_back(Event::Writable(id));
                    }
                    if is_due {
                        self.schedule(id, is_at_end);
                    }
                }
                Step::Ended => {
                    self.remove(id);
                }
                // Scheduled again by the grant.
                Step::Waits => {}
                // More than was too little, whatever was reckoned: it must not be asked forever.
                Step::Starves(needed) => self.starve(id, needed.max(self.send_credit + 1)),
            }
        }
        out.len() > before
    }

    fn put_all_control(&mut self, out: &mut BytesMut) {
        self.grant_if_scarce();
        if !self.control.is_empty() {
            out.extend_from_slice(&self.control);
            self.control.clear();
        }
        if let Some(pong) = self.pong.take() {
            frame::put(out, Kind::Pong, 0, 0, &pong.to_le_bytes());
        }
        if self.streams_max != self.told_streams_max {
            self.told_streams_max = self.streams_max;
            frame::put(out, Kind::Credits, 0, 0, &self.streams_max.to_le_bytes());
        }
    }

    /// Lets the stream that needs the least of the connection's credit have a turn, if there is
    /// as much: one per turn, so that those behind it are not asked in vain.
    fn feed_next(&mut self) {
        if let Some(&(needed, id)) = self.starved.first()
            && needed <= self.send_credit
        {
            self.feed(id);
            self.schedule(id, false);
        }
    }
}

enum Step {
    Sent,
    Ended,
    /// The stream has no credit.
    Waits,
    /// So much of the connection's credit has to be free.
    Starves(u32),
}

/// Appends the next frame of a stream.
fn put_next(
    out: &mut BytesMut,
    id: u32,
    outbound: &mut Outbound,
    connection: &mut u32,
    sharing: Sharing,
) -> Step {
    if let Some(mut head) = outbound.head.take() {
        // The start of the body goes along, free of credit.
        let room = PAYLOAD_BYTES_MAX - head.len();
        let more = take_chunk(outbound, room, |chunk| head.extend_from_slice(chunk));
        frame::put(out, Kind::Open, more, id, &head);
        if outbound.is_stopped {
            frame::put(out, Kind::Stop, 0, id, &[]);
        }
        return Step::Sent;
    }
    if outbound.messages.is_empty() {
        match &outbound.ending {
            Some(Terminal::Failed(error)) => {
                frame::put(out, Kind::Reset, 0, id, &frame::encode_error(error));
            }
            _ => frame::put(out, Kind::End, 0, id, &outbound.sent.to_le_bytes()),
        }
        return Step::Ended;
    }
    let credit = sharing.allowed(outbound.credit, *connection);
    if let Some(paid) = put_batch(out, id, outbound, credit) {
        *connection -= paid;
        return Step::Sent;
    }
    let Some(len) = outbound.chunk(credit, PAYLOAD_BYTES_MAX) else {
        let cost = outbound.cost_min();
        let stream_waits = outbound.credit < cost;
        let needed = sharing.needed(outbound.credit, cost);
        return if stream_waits { Step::Waits } else { Step::Starves(needed) };
    };
    outbound.credit -= cost(len);
    *connection -= cost(len);
    let at = out.len();
    frame::put(out, Kind::Data, 0, id, &outbound.messages[0][outbound.at..outbound.at + len]);
    let more = take_chunk(outbound, len, |_| {});
    out[at + 3] |= more << 4;
    Step::Sent
}

/// Appends a frame of several small messages, if that many are due and there is credit for them;
/// returns what they cost.
fn put_batch(out: &mut BytesMut, id: u32, outbound: &mut Outbound, credit: u32) -> Option<u32> {
    if outbound.at > 0 || outbound.messages.len() < 2 {
        return None;
    }
    let (mut count, mut payload, mut paid) = (0, 0, 0);
    for message in &outbound.messages {
        let Some(len) = frame::batched_len(message) else { break };
        if payload + len > PAYLOAD_BYTES_MAX || paid + cost(message.len()) > credit {
            break;
        }
        (count, payload, paid) = (count + 1, payload + len, paid + cost(message.len()));
    }
    if count < 2 {
        return None;
    }
    frame::put_header(out, Kind::Data, BATCH, id, payload);
    for message in outbound.messages.drain(..count) {
        outbound.queued -= message.len();
        outbound.sent += 1;
        frame::put_batched(out, &message);
    }
    outbound.credit -= paid;
    Some(paid)
}

/// Takes up to `room` bytes of the first message; returns whether it goes on, as a flag.
fn take_chunk(outbound: &mut Outbound, room: usize, use_chunk: impl FnOnce(&[u8])) -> u8 {
    let Some(message) = outbound.messages.front() else { return 0 };
    let end = message.len().min(outbound.at + room);
    use_chunk(&message[outbound.at..end]);
    outbound.queued -= end - outbound.at;
    if end < message.len() {
        outbound.at = end;
        return MORE;
    }
    outbound.messages.pop_front();
    (outbound.at, outbound.sent) = (0, outbound.sent + 1);
    0
}
