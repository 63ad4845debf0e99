//! The initiator's side: links to owners, and the operations that run over them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::absences::Absences;
use super::access::{Accesses, Ended};
use super::inbox::{OpKey, Side};
use super::link::{Connecting, Link, Op, Task, Transfer};
use super::net::Net;
use super::port::EndpointId;
use super::protocol::{
    Header, Hello, Kind, STRIPE_CHUNKS_MAX, Welcome, decode_grants, decode_status, protocol,
};
use crate::backend::Operation;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Right, random};
use crate::peer::PeerAddress;

pub(super) type Settle = oneshot::Sender<Result<()>>;

pub(super) struct Initiator {
    own: Arc<Endpoint>,
    /// Where owners find this agent's worker.
    address: Vec<u8>,
    links: BTreeMap<u64, Link>,
    /// The link to each peer that has one.
    peers: HashMap<Arc<PeerAddress>, u64>,
    ops: HashMap<u64, Op>,
    /// Links on which something may begin.
    due: BTreeSet<u64>,
    accesses: Accesses,
    absences: Absences,
}

impl Initiator {
    pub(super) fn new(own: Arc<Endpoint>, address: Vec<u8>) -> Self {
        let (links, peers, ops, due) = Default::default();
        let (accesses, absences) = Default::default();
        Self { own, address, links, peers, ops, due, accesses, absences }
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
        let Some(link) = self.links.get_mut(&header.link) else { return };
        let rails =
            Welcome::decode(body).and_then(|welcome| welcome.status.map(|()| welcome.rails));
        let rails = match rails {
            Ok(rails) => rails,
            Err(error) => return self.end(net, header.link, error.kind(), error.message()),
        };
        if link.connecting.take().is_some() {
            link.joined = net.rails.join(&rails);
            link.is_joined_well = true;
            self.absences.forget(&link.peer);
            self.due.insert(header.link);
        }
    }

    /// The owner waits for the data of a write.
    pub(super) fn accept(&mut self, net: &mut Net, header: Header) {
        let Some(op) = self.ops.get(&header.op).filter(|op| op.link == header.link) else { return };
        let (Some(link), Task::Transfer(transfer)) = (self.links.get(&header.link), &op.task)
        else {
            return;
        };
        if transfer.operation.right == Right::Write {
            let (key, stream) = (key(header.link, header.op), Rc::clone(&transfer.stream));
            let data = (link.endpoint, Kind::WriteData);
            net.port.supply(key, data, stream, transfer.operation.priority);
        }
    }

    /// The owner has mapped its memory.
    pub(super) fn grant(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let key = key(header.link, header.op);
        let Some(op) = self.ops.get(&header.op).filter(|op| op.link == header.link) else { return };
        let (Some(joined), Task::Transfer(Transfer { operation, stream, .. })) =
            (self.links.get(&header.link).and_then(|link| link.joined), &op.task)
        else {
            return;
        };
        if self.accesses.has(&key) {
            return;
        }
        net.port.inbox.close(&key);
        let access = (joined, operation.right == Right::Write, operation.priority);
        let started = decode_grants(body, stream.total()).and_then(|(keys, grants)| {
            self.accesses.start(&mut net.rails, key, access, stream, (&keys, &grants))
        });
        if let Err(error) = started {
            tracing::debug!(%error, "what was granted cannot be accessed");
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
        let Some(link) = self.links.get_mut(&key.link) else { return };
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
            Task::Transfer(transfer)
                if status.is_ok() && transfer.operation.right == Right::Read =>
            {
                Err(protocol("a read is done without its data"))
            }
            _ => status,
        };
        self.finish(net, header.op, status);
    }

    /// A read has received all of its data, or data that it cannot have.
    pub(super) fn filled(&mut self, net: &mut Net, key: OpKey, is_right: bool) {
        let status = if is_right { Ok(()) } else { Err(protocol("data outside of the operation")) };
        self.finish(net, key.op, status);
    }

    /// Nobody waits for the operation any more.
    pub(super) fn cancel(&mut self, net: &mut Net, op: u64) {
        let Some(found) = self.ops.get(&op) else { return };
        // What is accessed is released when nothing is under way any more.
        if let Some(link) = self.links.get(&found.link)
            && link.connecting.is_none()
            && link.has_begun(op)
            && !self.accesses.has(&key(found.link, op))
        {
            net.port.send(link.endpoint, Header::new(Kind::Cancel, found.link, op), Vec::new());
        }
        self.finish(net, op, Err(Error::new(ErrorKind::Closed, "transfer was cancelled")));
    }

    /// Ends the link of an endpoint that has failed.
    pub(super) fn failed(&mut self, net: &mut Net, endpoint: EndpointId, why: &Error) -> bool {
        let found = self.links.iter().find(|(_, link)| link.endpoint == endpoint);
        let Some((&id, link)) = found else { return false };
        // Nobody was reached yet: the same as a connection that is refused.
        let kind = match (link.connecting, why.kind()) {
            (Some(_), ErrorKind::Disconnected) => ErrorKind::Unreachable,
            (_, kind) => kind,
        };
        self.end(net, id, kind, why.message());
        true
    }

    /// Lets begin what may; tells whether there was anything.
    pub(super) fn begin_due(&mut self, net: &mut Net) -> bool {
        let mut any = false;
        while let Some(id) = self.due.pop_first() {
            while let Some(link) = self.links.get_mut(&id)
                && link.connecting.is_none()
                && let Some(op) = link.next()
            {
                any = true;
                self.start(net, id, op);
            }
        }
        any
    }

    /// Gives up on owners that do not answer; returns when to look again.
    pub(super) fn expire(&mut self, net: &mut Net, now: Instant) -> Option<Instant> {
        let (mut next, mut overdue, mut waiting) = (None, Vec::new(), Vec::new());
        for (&id, link) in &self.links {
            let Some(Connecting { until, patience_until }) = link.connecting else { continue };
            if until <= now {
                overdue.push(id);
                continue;
            }
            let has_patience = patience_until > now;
            if !has_patience {
                waiting.extend(link.ops.iter().copied());
            }
            let at = if has_patience { patience_until.min(until) } else { until };
            next = Some(next.map_or(at, |next: Instant| next.min(at)));
        }
        let unanswered = || Error::new(ErrorKind::Unreachable, UNANSWERED);
        waiting.into_iter().for_each(|op| self.finish(net, op, Err(unanswered())));
        for id in overdue {
            self.end(net, id, ErrorKind::Unreachable, UNANSWERED);
        }
        next
    }

    /// Ends everything: the agent shuts down.
    pub(super) fn close(&mut self, net: &mut Net) {
        let links: Vec<_> = self.links.keys().copied().collect();
        for id in links {
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
        let id = match self.link(net, peer, now) {
            Ok(id) => id,
            Err(error) => return settled(settle, Err(error)),
        };
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.connecting.is_some_and(|connecting| connecting.patience_until <= now) {
            return settled(settle, Err(Error::new(ErrorKind::Unreachable, UNANSWERED)));
        }
        link.push(op, task.priority());
        self.ops.insert(op, Op { link: id, task, settle });
        self.due.insert(id);
    }

    /// Returns the link to a peer, connecting if there is none.
    fn link(&mut self, net: &mut Net, peer: &Arc<PeerAddress>, now: Instant) -> Result<u64> {
        if let Some(&id) = self.peers.get(peer) {
            return Ok(id);
        }
        let address = peer.ucx.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::BackendUnavailable, "peer offers no UCX address")
        })?;
        if self.absences.is_recent(peer, now) {
            return Err(Error::new(ErrorKind::Unreachable, UNANSWERED));
        }
        let id = random()?;
        let endpoint = net.port.connect(address).inspect_err(|_| self.absences.note(peer, now))?;
        let hello = Hello { hello: self.own.hello(peer), address: self.address.clone() };
        net.port.send(endpoint, Header::new(Kind::Hello, id, 0), hello.encode());
        // TCP reaches it all the same: whether UCX does again, nobody waits to find out.
        let patience = match peer.tcp {
            Some(_) if self.absences.has(peer) => Duration::ZERO,
            Some(_) => PATIENCE,
            None => CONNECT_MAX,
        };
        let connecting = Connecting { until: now + CONNECT_MAX, patience_until: now + patience };
        let link = Link::new(endpoint, peer, connecting);
        self.links.insert(id, link);
        self.peers.insert(Arc::clone(peer), id);
        Ok(id)
    }

    fn start(&mut self, net: &mut Net, id: u64, op: u64) {
        let (Some(found), Some(link)) = (self.ops.get_mut(&op), self.links.get(&id)) else {
            return;
        };
        let (endpoint, joined) = (link.endpoint, link.joined.filter(|_| link.is_joined_well));
        if let Task::Next(operation) = &found.task {
            // While some pieces are accessed, the owner looks at the next.
            let chunks_max = if joined.is_some() { GRANTED_MAX } else { STRIPE_CHUNKS_MAX };
            let Some(transfer) = Transfer::next(operation, chunks_max) else {
                // Others have the rest, or nobody wants it any more.
                let status = operation.check();
                return self.finish(net, op, status);
            };
            found.task = Task::Transfer(transfer);
        }
        match &found.task {
            Task::Transfer(transfer) => {
                if transfer.operation.right == Right::Read {
                    net.port.inbox.open(key(id, op), Rc::clone(&transfer.stream));
                }
                let joined = joined.filter(|_| transfer.stripe.bytes >= ONE_SIDED_BYTES_MIN);
                let request = transfer.request(joined.map(|joined| joined.rail));
                transfer.operation.begin();
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
            if let Some(link) = self.links.get(&id) {
                net.port.send(link.endpoint, Header::new(Kind::Release, id, op), Vec::new());
            }
        }
        if let Some(link) = self.links.get_mut(&id)
            && link.ended(op, task.priority())
        {
            self.due.insert(id);
        }
        if let (Ok(()), Task::Transfer(transfer)) = (&status, &task) {
            transfer.operation.advance(&transfer.stripe);
        }
        // Ends the lease, unless something is still under way, before anybody hears of the end.
        drop(task);
        settled(settle, status);
    }

    fn end(&mut self, net: &mut Net, id: u64, kind: ErrorKind, why: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        self.peers.remove(&link.peer);
        if link.connecting.is_some() && kind == ErrorKind::Unreachable {
            self.absences.note(&link.peer, Instant::now());
        }
        for op in link.ops {
            self.finish(net, op, Err(Error::new(kind, why)));
        }
        net.port.close(link.endpoint);
        if let Some(joined) = link.joined
            && let Some(port) = net.rails.get(joined.rail)
        {
            port.close(joined.endpoint);
        }
    }
}

fn key(link: u64, op: u64) -> OpKey {
    OpKey { side: Side::Initiator, link, op }
}

fn settled(settle: Settle, status: Result<()>) {
    // Nobody waits for an operation that was dropped.
    let _ = settle.send(status);
}

/// Below, an answer that carries the data is as fast as one that says where it is.
const ONE_SIDED_BYTES_MIN: u64 = 256 << 10;

/// Pieces of a stripe that are accessed one by one.
const GRANTED_MAX: usize = 2048;

/// A host that is there answers within this even over long distance.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// How long operations wait for a peer that others than UCX reach, too: longer than one that is
/// there and busy takes to answer.
const PATIENCE: Duration = Duration::from_secs(1);

const UNANSWERED: &str = "the peer does not answer over UCX";
