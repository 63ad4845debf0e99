//! The initiator's side: links to owners, and the operations that run over them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::access::{Accesses, Ended};
use super::inbox::{OpKey, Side};
use super::net::Net;
use super::port::EndpointId;
use super::protocol::{
    Header, Hello, Kind, RailKind, Request, STRIPE_BYTES_MAX, STRIPE_CHUNKS_MAX, Welcome,
    decode_grants, decode_status, protocol,
};
use super::rails::Joined;
use super::stream::{Holder, Stream};
use super::sys::Status;
use crate::backend::Operation;
use crate::descriptor::Ranges;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Right, random};
use crate::peer::PeerAddress;
use crate::plan::Stripe;

pub(super) type Settle = oneshot::Sender<Result<()>>;

pub(super) struct Initiator {
    own: Arc<Endpoint>,
    /// Where owners find this agent's worker.
    address: Vec<u8>,
    links: BTreeMap<u64, Link>,
    /// The link to each peer that has one.
    peers: HashMap<Arc<PeerAddress>, u64>,
    ops: HashMap<u64, Op>,
    accesses: Accesses,
}

struct Link {
    endpoint: EndpointId,
    peer: Arc<PeerAddress>,
    /// The owner has not answered yet, and has until then.
    connecting_until: Option<Instant>,
    /// How the owner's memory is accessed, and whether that has not failed.
    joined: Option<Joined>,
    is_joined_well: bool,
    /// In the order they were posted.
    ops: BTreeSet<u64>,
}

struct Op {
    link: u64,
    task: Task,
    settle: Settle,
}

enum Task {
    /// Some stripe of it, once the peer is known to be there.
    Next(Arc<Operation>),
    Transfer(Transfer),
    Notify(Bytes),
}

/// A stripe of an operation.
struct Transfer {
    operation: Arc<Operation>,
    stripe: Stripe,
    stream: Rc<Stream>,
}

impl Initiator {
    pub(super) fn new(own: Arc<Endpoint>, address: Vec<u8>) -> Self {
        let (links, peers, ops, accesses) = Default::default();
        Self { own, address, links, peers, ops, accesses }
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
        if link.connecting_until.take().is_some() {
            link.joined = net.rails.join(&rails);
            link.is_joined_well = true;
            let ops = link.ops.clone();
            ops.into_iter().for_each(|op| self.start(net, header.link, op));
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
            net.port.supply(key, link.endpoint, Kind::WriteData, stream);
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
        let access = (joined, operation.right == Right::Write);
        let started = decode_grants(body, stream.total()).and_then(|(keys, grants)| {
            self.accesses.start(&mut net.rails, key, access, stream, (&keys, &grants))
        });
        if let Err(error) = started {
            tracing::debug!(%error, "what was granted cannot be accessed");
            self.ended(net, key, Ended::Badly);
        }
    }

    /// An access has ended.
    pub(super) fn accessed(&mut self, net: &mut Net, key: OpKey, status: Status) {
        if let Some(ended) = self.accesses.sent(&mut net.rails, key, status) {
            self.ended(net, key, ended);
        }
    }

    /// Nothing of an operation is under way any more: the owner may have its memory back.
    fn ended(&mut self, net: &mut Net, key: OpKey, ended: Ended) {
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
            && link.connecting_until.is_none()
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
        let kind = match (link.connecting_until, why.kind()) {
            (Some(_), ErrorKind::Disconnected) => ErrorKind::Unreachable,
            (_, kind) => kind,
        };
        self.end(net, id, kind, why.message());
        true
    }

    /// Gives up on owners that do not answer; returns when to look again.
    pub(super) fn expire(&mut self, net: &mut Net, now: Instant) -> Option<Instant> {
        let until = |link: &Link| link.connecting_until;
        let overdue: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| until(link).is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            self.end(net, id, ErrorKind::Unreachable, "the peer does not answer over UCX");
        }
        self.links.values().filter_map(until).min()
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
        let id = match self.link(net, peer) {
            Ok(id) => id,
            Err(error) => return settled(settle, Err(error)),
        };
        self.ops.insert(op, Op { link: id, task, settle });
        let Some(link) = self.links.get_mut(&id) else { return };
        link.ops.insert(op);
        if link.connecting_until.is_none() {
            self.start(net, id, op);
        }
    }

    /// Returns the link to a peer, connecting if there is none.
    fn link(&mut self, net: &mut Net, peer: &Arc<PeerAddress>) -> Result<u64> {
        if let Some(&id) = self.peers.get(peer) {
            return Ok(id);
        }
        let address = peer.ucx.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::BackendUnavailable, "peer offers no UCX address")
        })?;
        let id = random()?;
        let endpoint = net.port.connect(address)?;
        let hello = Hello { hello: self.own.hello(peer), address: self.address.clone() };
        net.port.send(endpoint, Header::new(Kind::Hello, id, 0), hello.encode());
        let connecting_until = Some(Instant::now() + CONNECT_MAX);
        let link = Link {
            endpoint,
            peer: Arc::clone(peer),
            connecting_until,
            joined: None,
            is_joined_well: false,
            ops: BTreeSet::new(),
        };
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
            let Some(transfer) = Transfer::next(operation) else {
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
        if self.accesses.stop(&key(id, op)).is_some()
            && let Some(link) = self.links.get(&id)
        {
            net.port.send(link.endpoint, Header::new(Kind::Release, id, op), Vec::new());
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.ops.remove(&op);
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

impl Transfer {
    fn next(operation: &Arc<Operation>) -> Option<Self> {
        let stripe = operation.next(STRIPE_BYTES_MAX, STRIPE_CHUNKS_MAX)?;
        let operation = Arc::clone(operation);
        let holder = Holder::Operation(Arc::clone(&operation));
        let stream = Rc::new(Stream::new(holder, stripe.local()));
        Some(Self { operation, stripe, stream })
    }

    fn request(&self, rail: Option<RailKind>) -> Request {
        let Operation { right, remote_id: region, token, .. } = *self.operation;
        Request { right, rail, region, token, ranges: Ranges::unchecked(self.stripe.remote()) }
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

/// A host that is there answers within this even over long distance.
const CONNECT_MAX: Duration = Duration::from_secs(3);
