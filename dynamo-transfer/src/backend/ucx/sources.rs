//! Data that goes out in messages, a window at a time.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::inbox::OpKey;
use super::port::{EndpointId, Port};
use super::protocol::{Header, Kind};
use super::stream::Stream;
use crate::transfer::Priority;

/// The operations whose data goes out from here.
#[derive(Default)]
pub(super) struct Sources {
    sources: HashMap<OpKey, Source>,
    /// Those that may send, in turn, by priority.
    runnable: [VecDeque<OpKey>; 3],
}

struct Source {
    endpoint: EndpointId,
    kind: Kind,
    stream: Rc<Stream>,
    priority: Priority,
    position: u64,
    in_flight: usize,
    is_runnable: bool,
}

impl Sources {
    pub(super) fn clear(&mut self) {
        self.sources.clear();
    }

    /// Takes note of a fragment that is out; tells whether all of the operation's are.
    pub(super) fn sent(&mut self, key: &OpKey) -> bool {
        let Some(source) = self.sources.get_mut(key) else { return false };
        source.in_flight -= 1;
        if source.position < source.stream.total() {
            if !source.is_runnable {
                source.is_runnable = true;
                self.runnable[source.priority as usize].push_back(*key);
            }
            return false;
        }
        let is_out = source.in_flight == 0;
        if is_out {
            self.sources.remove(key);
        }
        is_out
    }
}

impl Port {
    /// Has the data of an operation sent, a window at a time.
    pub(super) fn supply(
        &mut self,
        key: OpKey,
        (endpoint, kind): (EndpointId, Kind),
        stream: Rc<Stream>,
        priority: Priority,
    ) {
        let (position, in_flight, is_runnable) = (0, 0, true);
        let source = Source { endpoint, kind, stream, priority, position, in_flight, is_runnable };
        self.sources.sources.insert(key, source);
        self.sources.runnable[priority as usize].push_back(key);
    }

    /// Sends no more data of an operation; what is under way are copies.
    pub(super) fn withhold(&mut self, key: &OpKey) {
        self.sources.sources.remove(key);
    }

    /// Sends fragments of what is most urgent, in turn; tells whether there was anything to send.
    pub(super) fn pump(&mut self) -> bool {
        let mut sent = 0;
        for priority in (0..self.sources.runnable.len()).rev() {
            let mut held_back = 0;
            while sent < FRAGMENTS_PER_TURN && held_back < self.sources.runnable[priority].len() {
                match self.next_fragment(priority) {
                    Some(true) => sent += 1,
                    Some(false) => held_back += 1,
                    None => {}
                }
            }
        }
        sent > 0
    }

    /// Sends the next fragment, or holds it back; none if its operation has none to send.
    fn next_fragment(&mut self, priority: usize) -> Option<bool> {
        let runnable = &mut self.sources.runnable[priority];
        let key = runnable.pop_front()?;
        let source = self.sources.sources.get_mut(&key)?;
        if source.in_flight >= WINDOW || source.position >= source.stream.total() {
            source.is_runnable = false;
            return None;
        }
        runnable.push_back(key);
        // Fragments are copies: a peer that does not take them is not sent more.
        let endpoint = source.endpoint;
        if self.endpoints.get(&endpoint).is_some_and(|e| e.sending >= FRAGMENTS_PER_ENDPOINT_MAX) {
            return Some(false);
        }
        let position = source.position;
        let header = Header { position, ..Header::new(source.kind, key.link, key.op) };
        let len = FRAGMENT_BYTES.min(source.stream.total() - position);
        source.position += len;
        source.in_flight += 1;
        let body = source.stream.gather(position, len);
        self.start(endpoint, header, body, Some(key));
        Some(true)
    }
}

/// What TCP takes in one go with both headers: a longer one is put together from parts by UCX.
const FRAGMENT_BYTES: u64 = 60 << 10;

/// Fragments of one operation under way: enough to keep a socket full.
const WINDOW: usize = 16;

/// What lies in copies for one peer: a few operations' worth.
const FRAGMENTS_PER_ENDPOINT_MAX: usize = 128;

/// After so many, what has arrived is looked at.
const FRAGMENTS_PER_TURN: usize = 16;
