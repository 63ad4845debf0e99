//! One-sided accesses of the initiator: posted a window at a time to what an owner has granted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::inbox::OpKey;
use super::landing::{Access, Landing};
use super::memory::RemoteKey;
use super::port::Port;
use super::protocol::RemotePiece;
use super::rails::{Joined, Rails};
use super::stream::Stream;
use crate::error::Result;
use crate::memory::Span;
use crate::vocabulary::Priority;

/// The operations that access memory of owners.
#[derive(Default)]
pub(super) struct Accesses {
    running: BTreeMap<OpKey, Running>,
    /// How many are of each priority: others wait for the most urgent.
    counts: [usize; 3],
}

struct Running {
    joined: Joined,
    is_write: bool,
    priority: Priority,
    landing: Rc<Landing>,
    /// Dropped before the endpoint is closed.
    keys: Vec<RemoteKey>,
    waiting: VecDeque<(Span, u64, usize)>,
    is_flushed: bool,
    is_failed: bool,
}

/// How the accesses of an operation have ended: nothing of it is under way any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    /// Something failed, or was not to be gone on with.
    Badly,
}

impl Accesses {
    /// Starts on what an owner has granted.
    pub(super) fn start(
        &mut self,
        rails: &mut Rails,
        key: OpKey,
        (joined, is_write, priority): (Joined, bool, Priority),
        stream: &Rc<Stream>,
        (keys, grants): (&[Vec<u8>], &[RemotePiece]),
    ) -> Result<()> {
        let Some(port) = rails.get(joined.rail) else { return Ok(()) };
        // What cannot be opened holds no memory.
        let keys: Result<Vec<_>> =
            keys.iter().map(|key| RemoteKey::new(port, joined.endpoint, key)).collect();
        let keys = keys?;
        let mut waiting = VecDeque::new();
        for grant in grants {
            let (mut remote, index) = (grant.address, grant.key as usize);
            for span in stream.spans(grant.position, grant.len) {
                let mut at = 0;
                while at < span.len() {
                    let len = ACCESS_BYTES_MAX.min(span.len() - at);
                    waiting.push_back((span.slice(at, len), remote, index));
                    remote = remote.wrapping_add(len as u64);
                    at += len;
                }
            }
        }
        let running = Running {
            joined,
            is_write,
            priority,
            landing: port.land(key, stream),
            keys,
            waiting,
            is_flushed: false,
            is_failed: false,
        };
        if let Entry::Vacant(place) = self.running.entry(key) {
            let running = place.insert(running);
            self.counts[priority as usize] += 1;
            if is_due(self.counts, priority) {
                running.post(port);
            }
        }
        Ok(())
    }

    /// Goes on with what had to wait for what was more urgent.
    pub(super) fn resume(&mut self, rails: &mut Rails) {
        for running in self.running.values_mut() {
            if is_due(self.counts, running.priority)
                && let Some(port) = rails.get(running.joined.rail)
            {
                running.post(port);
            }
        }
    }

    /// Tells whether accesses of the operation are under way.
    pub(super) fn has(&self, key: &OpKey) -> bool {
        self.running.contains_key(key)
    }

    /// Tells whether any accesses over the link are under way.
    pub(super) fn run_on(&self, link: u64) -> bool {
        self.running.keys().any(|key| key.link == link)
    }

    /// Starts no more accesses of an operation.
    pub(super) fn stop(&mut self, key: &OpKey) -> Option<Ended> {
        let running = self.running.get_mut(key)?;
        running.waiting.clear();
        running.is_failed = true;
        self.ended(key)
    }

    /// Takes note of accesses that have ended, and starts the next.
    pub(super) fn landed(&mut self, rails: &mut Rails, key: OpKey) -> Option<Ended> {
        let running = self.running.get_mut(&key)?;
        running.landing.look();
        if running.landing.is_failed() {
            running.is_failed = true;
            running.waiting.clear();
        }
        // The flush of what is written waits for nobody.
        let goes_on = is_due(self.counts, running.priority) || running.waiting.is_empty();
        if let Some(port) = rails.get(running.joined.rail).filter(|_| goes_on) {
            running.post(port);
        }
        self.ended(&key)
    }

    fn ended(&mut self, key: &OpKey) -> Option<Ended> {
        let running = self.running.get(key)?;
        if running.landing.in_flight() > 0 || !running.waiting.is_empty() {
            return None;
        }
        let is_failed = running.is_failed || running.landing.is_failed();
        self.counts[running.priority as usize] -= 1;
        running.landing.release();
        self.running.remove(key);
        Some(if is_failed { Ended::Badly } else { Ended::Well })
    }
}

/// Tells whether nothing is more urgent.
fn is_due(counts: [usize; 3], priority: Priority) -> bool {
    counts.iter().skip(priority as usize + 1).all(|&count| count == 0)
}

impl Running {
    fn post(&mut self, port: &mut Port) {
        let Some(handle) = port.handle(self.joined.endpoint) else {
            self.is_failed = true;
            self.waiting.clear();
            return self.landing.note();
        };
        while self.landing.in_flight() < WINDOW && !self.landing.is_failed() {
            let Some((local, remote, index)) = self.waiting.pop_front() else { break };
            // The decoder has checked that the key is there.
            let Some(opened) = self.keys.get(index) else { continue };
            port.piece_bytes = local.len();
            let access = Access { is_write: self.is_write, local, remote, key: opened.raw };
            port.access(handle, &access, &self.landing);
        }
        // A put that has ended here may not have arrived there.
        let is_written = self.is_write && self.waiting.is_empty() && self.landing.in_flight() == 0;
        if is_written && !self.is_flushed && !self.is_failed && !self.landing.is_failed() {
            self.is_flushed = true;
            port.flush(handle, &self.landing);
        }
    }
}

/// What one step of progress copies over CMA before messages have their turn.
const ACCESS_BYTES_MAX: usize = 1 << 20;

/// Accesses of one operation under way: enough for a network card to have work.
const WINDOW: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ucx::UcxConfig;
    use crate::backend::ucx::inbox::Side;
    use crate::backend::ucx::library::Library;
    use crate::backend::ucx::tests::leased;
    use crate::conformance::{skipped, unless_ucx_is_missing};

    #[test]
    fn keys_that_cannot_be_opened_hold_no_memory() {
        let config = UcxConfig::default();
        let opened = Library::open(&config.library);
        let Some(library) = unless_ucx_is_missing("one-sided access", opened) else { return };
        if library.is_degraded() {
            return skipped("one-sided access: it needs UCX 1.22, see tests/ucx.rs");
        }
        let mut rails = Rails::start(&config, &library);
        let own = rails.addresses();
        let joined = rails.join(&own).expect("a worker reaches itself");
        // A key is opened for an endpoint, which this one is not any more.
        let port = rails.get(joined.rail).unwrap();
        port.close(joined.endpoint);

        let (_region, stream) = leased(64);
        let grants = [RemotePiece { position: 0, address: 4096, len: 64, key: 0 }];
        let key = OpKey { side: Side::Initiator, link: 1, op: 1 };
        let how = (joined, false, Priority::Normal);
        let mut accesses = Accesses::default();
        let error = accesses
            .start(&mut rails, key, how, &stream, (&[vec![0; 9]], &grants))
            .expect_err("it is not opened");
        assert_eq!(error.kind(), crate::ErrorKind::Disconnected);
        assert!(!accesses.has(&key));
        assert_eq!(Rc::strong_count(&stream), 1, "somebody else holds the memory");
    }
}
