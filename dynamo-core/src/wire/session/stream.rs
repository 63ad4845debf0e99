use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};

use bytes::{Bytes, BytesMut};

use super::super::frame::HEADER_BYTES;
use super::super::head::Head;
use crate::error::Error;

/// One request and its answer, as one side sees them.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
}

/// A request that has not arrived in whole.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) head: Box<Head>,
    /// An early end is asked for already.
    pub(super) is_stopped: bool,
}

/// What the peer sends.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// At the server: what the request is, until its body is there.
    pub(super) opening: Option<Opening>,
    /// Whole messages that nobody has taken yet, and the credit they hold.
    pub(super) messages: VecDeque<(Bytes, u32)>,
    /// The message that is arriving.
    pub(super) partial: BytesMut,
    /// The credit that the arriving message holds.
    pub(super) partial_credit: u32,
    /// What the peer may still send.
    pub(super) credit: u32,
    /// What was taken and is not granted again yet.
    pub(super) owed: u32,
    /// The stream is in the session's list of those that are owed something.
    pub(super) is_owing: bool,
    /// At the client: the engine has given its stream.
    pub(super) is_accepted: bool,
    /// Whole messages that arrived.
    pub(super) received: u64,
    /// At the client: more arrived than there is room for, and what follows is not wanted.
    pub(super) is_refused: bool,
    /// How the stream ends behind the messages.
    pub(super) terminal: Option<Terminal>,
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum Terminal {
    Complete,
    Failed(Error),
}

impl Inbound {
    /// Returns the credit that is neither with the peer nor owed.
    pub(super) fn held(&self) -> u32 {
        self.messages.iter().map(|(_, credit)| credit).sum::<u32>() + self.partial_credit
    }
}

/// What is to be sent to the peer.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// At the client: the encoded head, until it is sent.
    pub(super) head: Option<BytesMut>,
    /// At the client: an early end was asked for before the head is sent.
    pub(super) is_stopped: bool,
    pub(super) messages: VecDeque<Bytes>,
    /// How much of the first message is sent.
    pub(super) at: usize,
    /// Bytes queued.
    pub(super) queued: usize,
    /// What may still be sent.
    pub(super) credit: u32,
    /// Whole messages handed to the connection.
    pub(super) sent: u64,
    /// At the server: how the stream ends behind the messages.
    pub(super) ending: Option<Terminal>,
    /// The stream waits in one of the session's queues, or for credit of the connection.
    pub(super) is_scheduled: bool,
    /// How much of the connection's credit has to be free for it to go on.
    pub(super) starves_below: Option<u32>,
}

impl Outbound {
    /// Tells whether a further message may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.queued < QUEUED_BYTES_MAX && self.messages.len() < QUEUED_MAX
    }

    /// Tells whether there is something to send, credit aside.
    pub(super) fn is_due(&self) -> bool {
        self.head.is_some() || !self.messages.is_empty() || self.ending.is_some()
    }

    /// Returns the least that the next frame costs.
    pub(super) fn cost_min(&self) -> u32 {
        let left = self.messages.front().map_or(0, |message| message.len() - self.at);
        cost(left).min(CHUNK_COST_MIN)
    }

    /// Returns how many bytes of the first message the next frame takes under `credit`; `None` if
    /// that is less than [`cost_min`](Self::cost_min).
    pub(super) fn chunk(&self, credit: u32, payload_max: usize) -> Option<usize> {
        let left = self.messages.front()?.len() - self.at;
        let room = (credit as usize).checked_sub(HEADER_BYTES)?;
        (credit >= self.cost_min()).then(|| left.min(payload_max).min(room))
    }
}

/// Hashes stream ids. A client that chooses ids to collide slows down its own connection only, and
/// that by no more than its streams at once.
pub(crate) type StreamIds = BuildHasherDefault<IdHasher>;

/// Multiplies by 2^64 over the golden ratio (Knuth, The Art of Computer Programming 3, 6.4).
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        let spread = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The table looks at both ends.
        self.0 = spread ^ (spread >> 32);
    }
}

/// The credit that a data frame costs: empty ones cost as well, so that they cannot pile up.
pub(super) fn cost(payload: usize) -> u32 {
    u32::try_from(payload + HEADER_BYTES).unwrap_or(u32::MAX)
}

/// What a frame costs at least that is not the end of its message: crumbs would cost more than
/// waiting for a grant.
pub(super) const CHUNK_COST_MIN: u32 = 256;

/// An engine that is ahead of the network by so many bytes, or messages, waits.
const QUEUED_BYTES_MAX: usize = 64 << 10;
const QUEUED_MAX: usize = 16 << 10;
