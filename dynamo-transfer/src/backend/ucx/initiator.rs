//! The initiator's side: links to owners, and the operations that run over them.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::access::{Accesses, Ended};
use super::inbox::{OpKey, Side};
use super::link::{Moving, Op, Task};
use super::links::{Links, Overdue, UNANSWERED};
use super::net::Net;
use super::port::EndpointId;
use super::protocol::{Header, Kind, STRIPE_CHUNKS_MAX, decode_grants, decode_status, protocol};
use super::worker::before_anyone;
use crate::backend::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::Right;
use crate::peer::PeerAddress;

pub(super) type Settle = oneshot::Sender<Result<()>>;

pub(super) struct Initiator {
    links: Links,
    ops: HashMap<u64, Op>,
    /// Links on which something may begin.
    due: BTreeSet<u64>,
    accesses: Accesses,
}

impl Initiator {
    pub(super) fn new(own: Arc<Inbound>, address: Vec<u8>) -> Self {
        let (ops, due, accesses) = Default::default();
        Self { links: Links::new(own, address), ops, due, accesses }
    }

    /// Moves the next stripe of an operation, if there is one.
    pub(super) fn run(
        &mut self,
        net: &mut Net,
        op: u64,
        operation: Arc<Operation>,
        settle: Settle,
    ) {
        let peer = Arc::clone(&operation.peer);
        self.post(net, op, &peer, Task::Next(operation), settle);
    }

    pub(super) fn notify(
        &mut self,
        net: &mut Net,
        op: u64,
        peer: &Arc<PeerAddress>,
        note: (Bytes, Settle),
    ) {
        self.post(net, op, peer, Task::Notify(note.0), note.1);
    }

    /// The owner of a link has answered the hello.
    pub(super) fn welcome(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        match self.links.welcome(net, header.link, body) {
            Ok(true) => drop(self.due.insert(header.link)),
            Ok(false) => {}
            Err(error) => self.end(net, header.link, error.kind(), error.message()),
        }
    }

    /// The owner waits for the data of a write; it says so once.
    pub(super) fn accept(&mut self, net: &mut Net, header: Header) {
        let key = key(header.link, header.op);
        let (Some(op), Some(link)) = (self.ops.get_mut(&header.op), self.links.get(header.link))
        else {
            return;
        };
        let Task::Stripe(moving) = &mut op.task else { return };
        let is_due = moving.operation.right == Right::Write && !moving.is_accepted;
        if op.link == header.link && is_due && !self.accesses.has(&key) {
            moving.is_accepted = true;
            moving.operation.begin();
            let data = (link.endpoint, Kind::WriteData);
            net.port.supply(key, data, Rc::clone(&moving.stream), moving.operation.priority);
        }
    }

    /// The owner has mapped its memory.
    pub(super) fn grant(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let key = key(header.link, header.op);
        let Some(op) = self.ops.get(&header.op).filter(|op| op.link == header.link) else { return };
        let (Some(joined), Task::Stripe(Moving { operation, stream, is_accepted, .. })) =
            (self.links.get(header.link).and_then(|link| link.joined), &op.task)
        else {
            return;
        };
        if *is_accepted || self.accesses.has(&key) {
            return;
        }
        net.port.inbox.close(&key);
        let access = (joined, operation.right == Right::Write, operation.priority);
        operation.begin();
        let started = decode_grants(body, stream.total()).and_then(|(keys, grants)| {
            self.accesses.start(&mut net.rails, key, access, stream, (&keys, &grants))
        });
        if let Err(error) = started {
            tracing::debug!(%error, "what was granted cannot be accessed");
            // Of what cannot be opened nothing was accessed.
            operation.progress.was_refused();
            self.ended(net, key, Ended::Badly);
        }
    }

    /// Accesses of an operation have ended.
    pub(super) fn accessed(&mut self, net: &mut Net, key: OpKey) {
        if let Some(ended) = self.accesses.landed(&mut net.rails, key) {
            self.ended(net, key, ended);
        }
    }

    /// Nothing of an operation is under way any more: the owner may have its memory back.
    fn ended(&mut self, net: &mut Net, key: OpKey, ended: Ended) {
        self.accesses.resume(&mut net.rails);
        let Some(link) = self.links.get_mut(key.link) else { return };
        net.port.send(link.endpoint, Header::new(Kind::Release, key.link, key.op), Vec::new());
        match ended {
            Ended::Well => self.finish(net, key.op, Ok(())),
            // Once more by messages.
            Ended::Badly if self.ops.contains_key(&key.op) => {
                link.is_joined_well = false;
                self.start(net, key.link, key.op);
            }
            // Nobody waits for it any more.
            Ended::Badly => {}
        }
    }

    /// The owner says how an operation ended.
    pub(super) fn done(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let Some(op) = self.ops.get(&header.op).filter(|op| op.link == header.link) else { return };
        let status = decode_status(body).unwrap_or_else(Err);
        let status = match &op.task {
            Task::Stripe(moving) if status.is_ok() && moving.operation.right == Right::Read => {
                Err(protocol("a read is done without its data"))
            }
            Task::Stripe(moving) if status.is_err() && moving.has_data_along => {
                moving.operation.progress.was_refused();
                status
            }
            _ => status,
        };
        self.finish(net, header.op, status);
    }

    /// A read has received all of its data, or data that it cannot have.
    pub(super) fn filled(&mut self, net: &mut Net, key: OpKey, status: Result<()>) {
        self.finish(net, key.op, status);
    }

    /// Nobody waits for the operation any more.
    pub(super) fn cancel(&mut self, net: &mut Net, op: u64) {
        let Some(found) = self.ops.get(&op) else { return };
        // What is accessed is released when nothing is under way any more.
        if let Some(link) = self.links.get(found.link)
            && link.connecting.is_none()
            && link.has_begun(op)
            && !self.accesses.has(&key(found.link, op))
        {
            net.port.send(link.endpoint, Header::new(Kind::Cancel, found.link, op), Vec::new());
        }
        self.finish(net, op, Err(Error::cancelled()));
    }

    /// Ends the link of an endpoint that has failed.
    pub(super) fn failed(&mut self, net: &mut Net, endpoint: EndpointId, why: &Error) -> bool {
        let Some(id) = self.links.of(endpoint) else { return false };
        let is_connecting = self.links.get(id).is_some_and(|link| link.connecting.is_some());
        let kind = if is_connecting { before_anyone(why.kind()) } else { why.kind() };
        self.end(net, id, kind, why.message());
        true
    }

    /// Lets begin what may; tells whether there was anything.
    pub(super) fn begin_due(&mut self, net: &mut Net) -> bool {
        let mut any = false;
        while let Some(id) = self.due.pop_first() {
            while let Some(link) = self.links.get_mut(id)
                && link.connecting.is_none()
                && let Some(op) = link.next()
            {
                any = true;
                self.start(net, id, op);
            }
        }
        any
    }

    #[cfg(test)]
    pub(super) fn links(&self) -> usize {
        self.links.len()
    }

    /// Tells whether something may begin.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Gives up on owners that do not answer, and closes links that were not used for long; returns
    /// when to look again.
    pub(super) fn expire(&mut self, net: &mut Net, now: Instant) -> Option<Instant> {
        let Overdue { unanswered, impatient, idle, next } = self.links.look(now);
        for op in impatient {
            self.finish(net, op, Err(Error::new(ErrorKind::Unreachable, UNANSWERED)));
        }
        for id in unanswered {
            self.end(net, id, ErrorKind::Unreachable, UNANSWERED);
        }
        for id in idle {
            // Accesses that nobody waits for are released over it when they end, which wakes.
            if !self.accesses.run_on(id) {
                self.end(net, id, ErrorKind::Closed, "the link was not used for long");
            }
        }
        next
    }

    /// Ends everything: the agent shuts down.
    pub(super) fn close(&mut self, net: &mut Net) {
        for id in self.links.ids() {
            self.end(net, id, ErrorKind::Closed, "the agent shuts down");
        }
    }

    fn post(
        &mut self,
        net: &mut Net,
        op: u64,
        peer: &Arc<PeerAddress>,
        task: Task,
        settle: Settle,
    ) {
        let now = Instant::now();
        let id = match self.links.to(net, peer, now) {
            Ok(id) => id,
            Err(error) => return settled(settle, Err(error)),
        };
        let Some(link) = self.links.get_mut(id) else { return };
        if link.connecting.is_some_and(|connecting| connecting.patience_until <= now) {
            return settled(settle, Err(Error::new(ErrorKind::Unreachable, UNANSWERED)));
        }
        link.push(op, task.priority());
        self.ops.insert(op, Op { link: id, task, settle });
        self.due.insert(id);
    }

    fn start(&mut self, net: &mut Net, id: u64, op: u64) {
        let (Some(found), Some(link)) = (self.ops.get_mut(&op), self.links.get(id)) else {
            return;
        };
        let (endpoint, joined) = (link.endpoint, link.joined.filter(|_| link.is_joined_well));
        if let Task::Next(operation) = &found.task {
            // While some pieces are accessed, the owner looks at the next.
            let chunks_max = if joined.is_some() { GRANTED_MAX } else { STRIPE_CHUNKS_MAX };
            let Some(moving) = Moving::next(operation, chunks_max) else {
                // Others have the rest, or nobody wants it any more.
                let status = operation.check();
                return self.finish(net, op, status);
            };
            found.task = Task::Stripe(moving);
        }
        match &mut found.task {
            Task::Stripe(moving) => {
                if moving.operation.right == Right::Read {
                    net.port.inbox.open(key(id, op), Rc::clone(&moving.stream));
                }
                let has_room = !net.port.is_backed_up(endpoint);
                let request = moving.request(joined.map(|joined| joined.rail), has_room);
                if moving.has_data_along {
                    moving.operation.begin();
                } else {
                    moving.operation.progress.ask();
                }
                net.port.send(endpoint, Header::new(Kind::Request, id, op), request.encode());
            }
            Task::Next(_) => {}
            Task::Notify(payload) => {
                net.port.send(endpoint, Header::new(Kind::Notify, id, op), payload.to_vec());
            }
        }
    }

    fn finish(&mut self, net: &mut Net, op: u64, status: Result<()>) {
        let Some(Op { link: id, task, settle }) = self.ops.remove(&op) else { return };
        net.port.inbox.close(&key(id, op));
        net.port.withhold(&key(id, op));
        if self.accesses.stop(&key(id, op)).is_some() {
            self.accesses.resume(&mut net.rails);
            if let Some(link) = self.links.get(id) {
                net.port.send(link.endpoint, Header::new(Kind::Release, id, op), Vec::new());
            }
        }
        if let Some(link) = self.links.get_mut(id)
            && link.ended(op, task.priority())
        {
            self.due.insert(id);
        }
        if let (Ok(()), Task::Stripe(moving)) = (&status, &task) {
            moving.operation.advance(&moving.stripe);
        }
        // Ends the lease, unless something is still under way, before anybody hears of the end.
        drop(task);
        settled(settle, status);
    }

    fn end(&mut self, net: &mut Net, id: u64, kind: ErrorKind, why: &str) {
        let Some(mut link) = self.links.take(id, kind) else { return };
        for op in std::mem::take(&mut link.ops) {
            self.finish(net, op, Err(Error::new(kind, why)));
        }
        link.close(net);
    }
}

fn key(link: u64, op: u64) -> OpKey {
    OpKey { side: Side::Initiator, link, op }
}

fn settled(settle: Settle, status: Result<()>) {
    // Nobody waits for an operation that was dropped.
    let _ = settle.send(status);
}

/// Pieces of a stripe that are accessed one by one.
const GRANTED_MAX: usize = 2048;
