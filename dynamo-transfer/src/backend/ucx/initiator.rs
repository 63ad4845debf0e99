//! The initiator's side: links to owners, and the operations that run over them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::inbox::{OpKey, Side};
use super::port::{EndpointId, Port};
use super::protocol::{Header, Hello, Kind, Request, Welcome, decode_status, protocol};
use super::stream::Stream;
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
    peers: HashMap<PeerAddress, u64>,
    ops: HashMap<u64, Op>,
}

struct Link {
    endpoint: EndpointId,
    peer: PeerAddress,
    /// The owner has not answered yet, and has until then.
    connecting_until: Option<Instant>,
    /// In the order they were posted.
    ops: BTreeSet<u64>,
}

struct Op {
    link: u64,
    task: Task,
    settle: Settle,
}

enum Task {
    Transfer { right: Right, stream: Rc<Stream>, request: Vec<u8> },
    Notify(Bytes),
}

impl Initiator {
    pub(super) fn new(own: Arc<Endpoint>, address: Vec<u8>) -> Self {
        let (links, peers, ops) = Default::default();
        Self { own, address, links, peers, ops }
    }

    pub(super) fn run(&mut self, port: &mut Port, op: u64, operation: Operation, settle: Settle) {
        let Operation { peer, right, local, remote_id, remote_key, chunks, .. } = operation;
        let ranges = chunks.iter().map(|chunk| (chunk.remote, chunk.len)).collect();
        let request =
            Request { right, is_direct: false, region: remote_id, key: remote_key, ranges };
        let locals = chunks.iter().map(|chunk| (chunk.local, chunk.len)).collect();
        let Some(stream) = Stream::new(local, locals) else {
            let error = Error::new(ErrorKind::InvalidArgument, "ranges of more than 2^64 bytes");
            return settled(settle, Err(error));
        };
        let task = Task::Transfer { right, stream: Rc::new(stream), request: request.encode() };
        self.post(port, op, &peer, task, settle);
    }

    pub(super) fn notify(
        &mut self,
        port: &mut Port,
        op: u64,
        peer: &PeerAddress,
        note: (Bytes, Settle),
    ) {
        self.post(port, op, peer, Task::Notify(note.0), note.1);
    }

    /// The owner of a link has answered the hello.
    pub(super) fn welcome(&mut self, port: &mut Port, header: Header, body: &[u8]) {
        let Some(link) = self.links.get_mut(&header.link) else { return };
        let welcome = Welcome::decode(body).and_then(|welcome| welcome.status);
        if let Err(error) = welcome {
            return self.end(port, header.link, error.kind(), error.message());
        }
        if link.connecting_until.take().is_some() {
            let (endpoint, ops) = (link.endpoint, link.ops.clone());
            ops.into_iter().for_each(|op| self.start(port, header.link, endpoint, op));
        }
    }

    /// The owner waits for the data of a write.
    pub(super) fn accept(&mut self, port: &mut Port, header: Header) {
        let Some(op) = self.ops.get(&header.op).filter(|op| op.link == header.link) else { return };
        let (Some(link), Task::Transfer { right: Right::Write, stream, .. }) =
            (self.links.get(&header.link), &op.task)
        else {
            return;
        };
        let key = key(header.link, header.op);
        port.supply(key, link.endpoint, Kind::WriteData, Rc::clone(stream));
    }

    /// The owner says how an operation ended.
    pub(super) fn done(&mut self, port: &mut Port, header: Header, body: &[u8]) {
        let Some(op) = self.ops.get(&header.op).filter(|op| op.link == header.link) else { return };
        let status = decode_status(body).unwrap_or_else(Err);
        let status = match &op.task {
            Task::Transfer { right: Right::Read, stream, .. }
                if status.is_ok() && stream.total() > 0 =>
            {
                Err(protocol("a read is done without its data"))
            }
            _ => status,
        };
        self.finish(port, header.op, status);
    }

    /// A read has received all of its data, or data that it cannot have.
    pub(super) fn filled(&mut self, port: &mut Port, key: OpKey, is_right: bool) {
        let status = if is_right { Ok(()) } else { Err(protocol("data outside of the operation")) };
        self.finish(port, key.op, status);
    }

    /// Nobody waits for the operation any more.
    pub(super) fn cancel(&mut self, port: &mut Port, op: u64) {
        let Some(found) = self.ops.get(&op) else { return };
        if let Some(link) = self.links.get(&found.link)
            && link.connecting_until.is_none()
        {
            port.send(link.endpoint, Header::new(Kind::Cancel, found.link, op), Vec::new());
        }
        self.finish(port, op, Err(Error::new(ErrorKind::Closed, "transfer was cancelled")));
    }

    /// Ends the link of an endpoint that has failed.
    pub(super) fn failed(&mut self, port: &mut Port, endpoint: EndpointId, why: &Error) -> bool {
        let found = self.links.iter().find(|(_, link)| link.endpoint == endpoint);
        let Some((&id, link)) = found else { return false };
        // Nobody was reached yet: the same as a connection that is refused.
        let kind = match (link.connecting_until, why.kind()) {
            (Some(_), ErrorKind::Disconnected) => ErrorKind::Unreachable,
            (_, kind) => kind,
        };
        self.end(port, id, kind, why.message());
        true
    }

    /// Gives up on owners that do not answer; returns when to look again.
    pub(super) fn expire(&mut self, port: &mut Port, now: Instant) -> Option<Instant> {
        let until = |link: &Link| link.connecting_until;
        let overdue: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| until(link).is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            self.end(port, id, ErrorKind::Unreachable, "the peer does not answer over UCX");
        }
        self.links.values().filter_map(until).min()
    }

    /// Ends everything: the agent shuts down.
    pub(super) fn close(&mut self, port: &mut Port) {
        let links: Vec<_> = self.links.keys().copied().collect();
        for id in links {
            self.end(port, id, ErrorKind::Closed, "the agent shuts down");
        }
    }

    fn post(&mut self, port: &mut Port, op: u64, peer: &PeerAddress, task: Task, settle: Settle) {
        let id = match self.link(port, peer) {
            Ok(id) => id,
            Err(error) => return settled(settle, Err(error)),
        };
        self.ops.insert(op, Op { link: id, task, settle });
        let Some(link) = self.links.get_mut(&id) else { return };
        link.ops.insert(op);
        if link.connecting_until.is_none() {
            let endpoint = link.endpoint;
            self.start(port, id, endpoint, op);
        }
    }

    /// Returns the link to a peer, connecting if there is none.
    fn link(&mut self, port: &mut Port, peer: &PeerAddress) -> Result<u64> {
        if let Some(&id) = self.peers.get(peer) {
            return Ok(id);
        }
        let address = peer.ucx.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::BackendUnavailable, "peer offers no UCX address")
        })?;
        let id = random()?;
        let endpoint = port.connect(address)?;
        let hello = Hello {
            target_name: peer.name.clone(),
            target_incarnation: peer.incarnation,
            name: self.own.name.clone(),
            incarnation: self.own.incarnation,
            address: self.address.clone(),
        };
        port.send(endpoint, Header::new(Kind::Hello, id, 0), hello.encode());
        let connecting_until = Some(Instant::now() + CONNECT_MAX);
        let link = Link { endpoint, peer: peer.clone(), connecting_until, ops: BTreeSet::new() };
        self.links.insert(id, link);
        self.peers.insert(peer.clone(), id);
        Ok(id)
    }

    fn start(&self, port: &mut Port, link: u64, endpoint: EndpointId, op: u64) {
        let Some(found) = self.ops.get(&op) else { return };
        match &found.task {
            Task::Transfer { right, stream, request } => {
                if *right == Right::Read && stream.total() > 0 {
                    port.inbox.open(key(link, op), Rc::clone(stream));
                }
                port.send(endpoint, Header::new(Kind::Request, link, op), request.clone());
            }
            Task::Notify(payload) => {
                port.send(endpoint, Header::new(Kind::Notify, link, op), payload.to_vec());
            }
        }
    }

    fn finish(&mut self, port: &mut Port, op: u64, status: Result<()>) {
        let Some(Op { link, task, settle }) = self.ops.remove(&op) else { return };
        port.inbox.close(&key(link, op));
        port.withhold(&key(link, op));
        if let Some(link) = self.links.get_mut(&link) {
            link.ops.remove(&op);
        }
        // Ends the lease, unless something is still under way, before anybody hears of the end.
        drop(task);
        settled(settle, status);
    }

    fn end(&mut self, port: &mut Port, id: u64, kind: ErrorKind, why: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        self.peers.remove(&link.peer);
        for op in link.ops {
            self.finish(port, op, Err(Error::new(kind, why)));
        }
        port.close(link.endpoint);
    }
}

fn key(link: u64, op: u64) -> OpKey {
    OpKey { side: Side::Initiator, link, op }
}

fn settled(settle: Settle, status: Result<()>) {
    // Nobody waits for an operation that was dropped.
    let _ = settle.send(status);
}

/// A host that is there answers within this even over long distance.
const CONNECT_MAX: Duration = Duration::from_secs(3);
