//! The numbers that make a loss visible: what publishers stamp, and what a listener concludes; pure.
//!
//! A publisher numbers its events on each topic from 0. A number that is missing is a loss. What is
//! hard is the first message that a listener hears of a publisher: were the events before it lost,
//! or was nobody listening yet? Each message therefore says how long ago the last event before it
//! was published. If that is longer than the listener has listened, none of them is its loss. If
//! not, some may be, and all are told as missed: too many rather than silence. Ages alone cross the
//! wire, since clocks of machines differ; that a message travels for a while makes a loss look more
//! likely, never less.

mod heard;
mod numbering;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(super) use heard::{Heard, Judged};
pub(super) use numbering::Numbering;

/// Where a message stands among its publisher's events on one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) publisher: u64,
    /// A life of the publisher: only ever compared for being the same.
    pub(super) epoch: u64,
    /// How many events of the epoch came before this message.
    pub(super) number: u64,
    /// How long before this message the last of those was published.
    pub(super) quiet: Duration,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    /// Repeats how many events there were, so that the loss of the last one shows as well.
    SignOfLife,
}

impl Stamp {
    /// Writes the stamp and, behind it, `event`.
    pub(super) fn encode(&self, event: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + event.len());
        out.put_u8(VERSION);
        out.put_u8(match self.kind {
            Kind::Event => 0,
            Kind::SignOfLife => 1,
        });
        out.put_u64_le(self.publisher);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.number);
        // Rounded down: what is too short makes a loss look more likely.
        out.put_u64_le(u64::try_from(self.quiet.as_micros()).unwrap_or(u64::MAX));
        out.put_slice(event);
        out.freeze()
    }

    /// Reads a stamp, and leaves the event; `None` if it makes no sense.
    fn decode(message: &mut Bytes) -> Option<Self> {
        if message.try_get_u8().ok()? != VERSION {
            return None;
        }
        let kind = match message.try_get_u8().ok()? {
            0 => Kind::Event,
            1 => Kind::SignOfLife,
            _ => return None,
        };
        let mut next = || message.try_get_u64_le().ok();
        let (publisher, epoch, number) = (next()?, next()?, next()?);
        let quiet = Duration::from_micros(next()?);
        // An event behind the last number there is has no successor.
        (number < u64::MAX).then_some(Self { publisher, epoch, number, quiet, kind })
    }

    /// Returns the number of the next event behind this message.
    fn after(&self) -> u64 {
        self.number + u64::from(self.kind == Kind::Event)
    }
}

const VERSION: u8 = 1;

/// What a stamp takes on the wire.
pub(super) const HEADER_BYTES: usize = 34;

/// Whatever arrives, an event is handed out as it came, and once; each byte of `data` that stands
/// for a length has a message behind it.
///
/// # Panics
/// If not.
#[cfg(any(test, feature = "test-util"))]
pub fn fuzz_event(mut data: &[u8]) {
    let mut heard = Heard::new(2);
    while let Some((len, rest)) = data.split_first() {
        let (message, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        data = rest;
        for is_repeat in [false, true] {
            match heard.judge(Bytes::copy_from_slice(message), Duration::from_secs(1)) {
                Judged::Event(event) | Judged::Gap { event: Some(event), .. } => {
                    assert!(!is_repeat && message[HEADER_BYTES..] == event);
                }
                Judged::Gap { missed, .. } => assert!(missed > 0),
                Judged::Nothing => {}
            }
        }
    }
}
