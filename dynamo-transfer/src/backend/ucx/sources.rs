//! Data that goes out in messages, a window at a time.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::inbox::OpKey;
use super::port::{Endpoint, EndpointId, Port};
use super::protocol::{Header, Kind};
use super::stream::Stream;
use crate::vocabulary::Priority;

/// The operations whose data goes out from here.
#[derive(Default)]
pub(super) struct Sources {
    sources: HashMap<SourceId, Source>,
    /// The source of each operation that has one.
    of: HashMap<OpKey, SourceId>,
    started: u64,
    /// Those that may send, in turn, by priority.
    runnable: [VecDeque<SourceId>; 3],
}

/// Names a source; unlike an operation's number, which a peer may use again, never two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SourceId(u64);

struct Source {
    key: OpKey,
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
        *self = Self { started: self.started, ..Self::default() };
    }

    /// Takes note of a fragment that is out; returns the operation if all of its data is.
    pub(super) fn sent(&mut self, id: SourceId) -> Option<OpKey> {
        // Fragments of what was withheld meanwhile are nobody's.
        let source = self.sources.get_mut(&id)?;
        source.in_flight -= 1;
        if source.position < source.stream.total() {
            if !source.is_runnable {
                source.is_runnable = true;
                self.runnable[source.priority as usize].push_back(id);
            }
            return None;
        }
        if source.in_flight > 0 {
            return None;
        }
        let key = source.key;
        self.remove(&key);
        Some(key)
    }

    fn insert(&mut self, source: Source) {
        self.remove(&source.key);
        self.started += 1;
        let id = SourceId(self.started);
        self.of.insert(source.key, id);
        self.runnable[source.priority as usize].push_back(id);
        self.sources.insert(id, source);
    }

    fn remove(&mut self, key: &OpKey) {
        let Some(id) = self.of.remove(key) else { return };
        if let Some(source) = self.sources.remove(&id).filter(|source| source.is_runnable) {
            self.runnable[source.priority as usize].retain(|other| *other != id);
        }
    }
}

impl Port {
    /// Tells whether as much waits for a peer as may lie in copies: data has to wait for its turn then.
    pub(super) fn is_backed_up(&self, endpoint: EndpointId) -> bool {
        self.endpoints.get(&endpoint).is_some_and(Endpoint::is_backed_up)
    }

    /// Has the data of an operation sent, a window at a time.
    pub(super) fn supply(
        &mut self,
        key: OpKey,
        (endpoint, kind): (EndpointId, Kind),
        stream: Rc<Stream>,
        priority: Priority,
    ) {
        let (position, in_flight, is_runnable) = (0, 0, true);
        let source =
            Source { key, endpoint, kind, stream, priority, position, in_flight, is_runnable };
        self.sources.insert(source);
    }

    /// Sends no more data of an operation; what are under way are copies.
    pub(super) fn withhold(&mut self, key: &OpKey) {
        self.sources.remove(key);
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
        let id = runnable.pop_front()?;
        let source = self.sources.sources.get_mut(&id)?;
        if source.in_flight >= WINDOW || source.position >= source.stream.total() {
            source.is_runnable = false;
            return None;
        }
        runnable.push_back(id);
        // Fragments are copies: a peer that does not take them is not sent more.
        let endpoint = source.endpoint;
        if self.endpoints.get(&endpoint).is_some_and(Endpoint::is_backed_up) {
            return Some(false);
        }
        let position = source.position;
        let len = FRAGMENT_BYTES.min(source.stream.total() - position);
        source.position += len;
        source.in_flight += 1;
        let body = source.stream.gather(position, len);
        let checksum = source.stream.checksum(&body);
        let header = Header::new(source.kind, source.key.link, source.key.op);
        let header = Header { checksum, position, ..header };
        self.start(endpoint, header, body, Some(id));
        Some(true)
    }
}

impl Endpoint {
    fn is_backed_up(&self) -> bool {
        self.sending >= FRAGMENTS_PER_ENDPOINT_MAX
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
