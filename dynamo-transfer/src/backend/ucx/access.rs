//! One-sided accesses of the initiator: posted a window at a time to what an owner has granted.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::inbox::OpKey;
use super::memory::RemoteKey;
use super::port::{Access, Port};
use super::protocol::Grant;
use super::rails::{Joined, Rails};
use super::stream::Stream;
use super::sys;
use crate::error::Result;
use crate::memory::Span;

/// The operations that access memory of owners.
#[derive(Default)]
pub(super) struct Accesses(HashMap<OpKey, Running>);

struct Running {
    joined: Joined,
    is_write: bool,
    stream: Rc<Stream>,
    /// Dropped before the endpoint is closed.
    keys: Vec<RemoteKey>,
    waiting: VecDeque<(Span, u64, usize)>,
    in_flight: usize,
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
        (joined, is_write): (Joined, bool),
        stream: &Rc<Stream>,
        (keys, grants): (&[Vec<u8>], &[Grant]),
    ) -> Result<()> {
        let Some(port) = rails.get(joined.rail) else { return Ok(()) };
        let keys: Result<Vec<_>> =
            keys.iter().map(|key| RemoteKey::new(port, joined.endpoint, key)).collect();
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
            stream: Rc::clone(stream),
            keys: keys?,
            waiting,
            in_flight: 0,
            is_flushed: false,
            is_failed: false,
        };
        self.0.entry(key).or_insert(running).post(port, key);
        Ok(())
    }

    /// Tells whether accesses of the operation are under way.
    pub(super) fn has(&self, key: &OpKey) -> bool {
        self.0.contains_key(key)
    }

    /// Starts no more accesses of an operation.
    pub(super) fn stop(&mut self, key: &OpKey) -> Option<Ended> {
        let running = self.0.get_mut(key)?;
        running.waiting.clear();
        running.is_failed = true;
        self.ended(key)
    }

    /// Takes note of the end of an access, and starts the next.
    pub(super) fn sent(
        &mut self,
        rails: &mut Rails,
        key: OpKey,
        status: sys::Status,
    ) -> Option<Ended> {
        let running = self.0.get_mut(&key)?;
        running.in_flight -= 1;
        if status != sys::OK {
            running.is_failed = true;
            running.waiting.clear();
        }
        if let Some(port) = rails.get(running.joined.rail) {
            running.post(port, key);
        }
        self.ended(&key)
    }

    fn ended(&mut self, key: &OpKey) -> Option<Ended> {
        let running = self.0.get(key)?;
        if running.in_flight > 0 || !running.waiting.is_empty() {
            return None;
        }
        let ended = if running.is_failed { Ended::Badly } else { Ended::Well };
        self.0.remove(key);
        Some(ended)
    }
}

impl Running {
    fn post(&mut self, port: &mut Port, key: OpKey) {
        while self.in_flight < WINDOW {
            let Some((local, remote, index)) = self.waiting.pop_front() else { break };
            // The decoder has checked that the key is there.
            let Some(opened) = self.keys.get(index) else { continue };
            let (endpoint, is_write) = (self.joined.endpoint, self.is_write);
            let access = Access { endpoint, is_write, local, remote, key: opened.raw };
            if port.access(&access, key, &self.stream) {
                self.in_flight += 1;
            } else {
                self.is_failed = true;
                self.waiting.clear();
            }
        }
        // A put that has ended here may not have arrived there.
        let is_written = self.is_write && self.waiting.is_empty() && self.in_flight == 0;
        if is_written && !self.is_flushed && !self.is_failed {
            self.is_flushed = true;
            self.in_flight += usize::from(port.flush(self.joined.endpoint, key));
        }
    }
}

/// What one step of progress copies over CMA before messages have their turn.
const ACCESS_BYTES_MAX: usize = 1 << 20;

/// Accesses of one operation under way: enough for a network card to have work.
const WINDOW: usize = 32;
