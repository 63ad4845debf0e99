//! The owner's side: checks what peers ask for, and answers.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::grants::{Granted, grant};
use super::inbox::{OpKey, Side};
use super::net::Net;
use super::port::EndpointId;
use super::protocol::{
    Header, Hello, Kind, RailKind, Request, STRIPE_BYTES_MAX, Welcome, encode_status,
};
use super::stream::{Holder, Stream};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Right;
use crate::transfer::{NOTIFICATION_BYTES_MAX, Priority};
use crate::wire;

/// A notification on its way to the agent's queue.
pub(super) struct Delivery {
    pub(super) link: u64,
    pub(super) op: u64,
    pub(super) from: String,
    pub(super) incarnation: u64,
    pub(super) payload: Bytes,
}

pub(super) struct Owner {
    endpoint: Arc<Endpoint>,
    deliveries: mpsc::Sender<Delivery>,
    links: BTreeMap<u64, Link>,
    /// Memory of peers that went without a word: they may still be at it, but not for long.
    quarantine: Vec<(Instant, Granted)>,
}

/// A peer that has said hello.
struct Link {
    endpoint: EndpointId,
    name: String,
    incarnation: u64,
    /// Operations that lease memory.
    ops: BTreeMap<u64, Held>,
    /// The peer meant another agent, and is let go then if it does not go by itself.
    refused_until: Option<Instant>,
}

struct Held {
    until: Instant,
    /// What the peer accesses by itself.
    granted: Option<Granted>,
}

impl Owner {
    pub(super) fn new(endpoint: Arc<Endpoint>, deliveries: mpsc::Sender<Delivery>) -> Self {
        Self { endpoint, deliveries, links: BTreeMap::new(), quarantine: Vec::new() }
    }

    pub(super) fn hello(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let Hello { hello, address } = match Hello::decode(body) {
            Ok(hello) if self.links.len() < LINKS_MAX => hello,
            // Without its address, or a place to keep it, a peer cannot be answered.
            Ok(_) => return tracing::warn!("{LINKS_MAX} UCX links are open, the limit"),
            Err(error) => return tracing::debug!(%error, "UCX hello refused"),
        };
        if self.links.contains_key(&header.link) {
            return;
        }
        let endpoint = match net.port.connect(&address) {
            Ok(endpoint) => endpoint,
            Err(error) => return tracing::debug!(%error, "UCX peer cannot be answered"),
        };
        let status = self.endpoint.check(&hello);
        let refused_until = status.is_err().then(|| Instant::now() + REFUSED_MAX);
        let welcome = Welcome { status, rails: net.rails.addresses() };
        net.port.send(endpoint, Header::new(Kind::Welcome, header.link, 0), welcome.encode());
        let wire::Hello { name, incarnation, .. } = hello;
        let link = Link { endpoint, name, incarnation, ops: BTreeMap::new(), refused_until };
        self.links.insert(header.link, link);
    }

    pub(super) fn request(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let Some(link) = self.links.get_mut(&header.link) else { return };
        let endpoint = link.endpoint;
        match link.lease(&self.endpoint, header.op, body) {
            Err(error) => done(net, endpoint, header, &Err(error)),
            Ok((_, _, stream)) if stream.total() == 0 => done(net, endpoint, header, &Ok(())),
            Ok((right, rail, stream)) => {
                let bound = STALL_MAX + Duration::from_secs(stream.total() / BYTES_PER_SECOND_MIN);
                let until = Instant::now() + bound;
                let (key, stream) = (key(header.link, header.op), Rc::new(stream));
                let granted = rail.and_then(|rail| granted(net, rail, &stream));
                let (granted, body) = granted.unzip();
                link.ops.insert(header.op, Held { until, granted });
                if let Some(body) = body {
                    let granted = Header::new(Kind::Grant, header.link, header.op);
                    net.port.send(endpoint, granted, body);
                } else if right == Right::Read {
                    // The initiator starts what is urgent first.
                    let data = (endpoint, Kind::ReadData);
                    net.port.supply(key, data, stream, Priority::Normal);
                } else {
                    net.port.inbox.open(key, stream);
                    let accept = Header::new(Kind::Accept, header.link, header.op);
                    net.port.send(endpoint, accept, Vec::new());
                }
            }
        }
    }

    pub(super) fn notify(&mut self, net: &mut Net, header: Header, body: Vec<u8>) {
        let Some(link) = self.links.get(&header.link) else { return };
        let refused = if link.refused_until.is_some() {
            Error::new(ErrorKind::StaleRegion, "the link was refused")
        } else if body.len() > NOTIFICATION_BYTES_MAX {
            Error::new(ErrorKind::Protocol, format!("notification of {} bytes", body.len()))
        } else {
            let delivery = Delivery {
                link: header.link,
                op: header.op,
                from: link.name.clone(),
                incarnation: link.incarnation,
                payload: body.into(),
            };
            match self.deliveries.try_send(delivery) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Error::new(ErrorKind::Overloaded, "too many notifications wait")
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    Error::new(ErrorKind::Closed, "the agent takes no notifications")
                }
            }
        };
        done(net, link.endpoint, header, &Err(refused));
    }

    /// Answers a notification that was queued or refused.
    pub(super) fn delivered(&self, net: &mut Net, link: u64, op: u64, status: &Result<()>) {
        let Some(found) = self.links.get(&link) else { return };
        done(net, found.endpoint, Header::new(Kind::Done, link, op), status);
    }

    /// A write has received all of its data, or data that it cannot have.
    pub(super) fn filled(&mut self, net: &mut Net, key: OpKey, is_right: bool) {
        let Some(link) = self.links.get_mut(&key.link) else { return };
        link.ops.remove(&key.op);
        let status = if is_right {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Protocol, "data outside of the operation"))
        };
        done(net, link.endpoint, Header::new(Kind::Done, key.link, key.op), &status);
    }

    /// A read's data is all out.
    pub(super) fn supplied(&mut self, key: OpKey) {
        if let Some(link) = self.links.get_mut(&key.link) {
            link.ops.remove(&key.op);
        }
    }

    pub(super) fn cancel(&mut self, net: &mut Net, header: Header) {
        if let Some(link) = self.links.get_mut(&header.link) {
            link.ops.remove(&header.op);
            forget(net, &key(header.link, header.op));
        }
    }

    /// A peer has ended its accesses.
    pub(super) fn release(&mut self, header: Header) {
        if let Some(link) = self.links.get_mut(&header.link) {
            link.ops.remove(&header.op);
        }
    }

    /// Tells whether peers are accessing memory.
    pub(super) fn has_granted(&self) -> bool {
        let granted = |link: &Link| link.ops.values().any(|held| held.granted.is_some());
        !self.quarantine.is_empty() || self.links.values().any(granted)
    }

    /// Gives up on peers that have not said that they are through: the agent shuts down.
    pub(super) fn abandon(&mut self) {
        let ops = self.links.values_mut().flat_map(|link| link.ops.values_mut());
        let granted = ops.filter_map(|held| held.granted.take());
        granted.filter(|granted| !granted.is_revocable()).for_each(Granted::abandon);
    }

    /// Ends the links of an endpoint that has failed.
    pub(super) fn failed(&mut self, net: &mut Net, endpoint: EndpointId) -> bool {
        let found = self.links.iter().find(|(_, link)| link.endpoint == endpoint);
        let Some(link) = found.map(|(id, _)| *id) else { return false };
        self.end(net, link);
        true
    }

    /// Lets go what peers have kept for too long; returns when to look again.
    pub(super) fn expire(&mut self, net: &mut Net, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut earliest = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let mut ended = Vec::new();
        for (&id, link) in &mut self.links {
            match link.refused_until {
                Some(until) if until <= now => ended.push(id),
                Some(until) => earliest(until),
                None => {}
            }
            let endpoint = link.endpoint;
            link.ops.retain(|&op, held| {
                if held.until > now {
                    earliest(held.until);
                    return true;
                }
                // Until it says that it is through, or is gone.
                if held.granted.as_ref().is_some_and(|granted| !granted.is_revocable()) {
                    return true;
                }
                forget(net, &key(id, op));
                let slow = Error::new(ErrorKind::Disconnected, "the peer is too slow");
                done(net, endpoint, Header::new(Kind::Done, id, op), &Err(slow));
                false
            });
        }
        self.quarantine.retain(|(until, _)| {
            if *until > now {
                earliest(*until);
            }
            *until > now
        });
        ended.into_iter().for_each(|id| self.end(net, id));
        next
    }

    fn end(&mut self, net: &mut Net, id: u64) {
        let Some(link) = self.links.remove(&id) else { return };
        let until = Instant::now() + QUARANTINE;
        for (op, held) in link.ops {
            forget(net, &key(id, op));
            self.quarantine.extend(held.granted.map(|granted| (until, granted)));
        }
        net.port.close(link.endpoint);
    }
}

impl Link {
    /// Checks everything that a request claims, and leases what it asks for.
    fn lease(
        &self,
        owner: &Endpoint,
        op: u64,
        body: &[u8],
    ) -> Result<(Right, Option<RailKind>, Stream)> {
        if self.refused_until.is_some() {
            return Err(Error::new(ErrorKind::StaleRegion, "the link was refused"));
        }
        if self.ops.len() >= OPS_PER_LINK_MAX {
            let message = format!("{OPS_PER_LINK_MAX} operations of one peer, the limit");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        if self.ops.contains_key(&op) {
            return Err(Error::new(ErrorKind::Protocol, "operation is under way already"));
        }
        let Request { right, rail, region, token, ranges } = Request::decode(body)?;
        let lease = owner.regions.lease_remote(region, &token, right, &ranges)?;
        if ranges.total() > STRIPE_BYTES_MAX {
            let message =
                format!("request of {} bytes, at most {STRIPE_BYTES_MAX}", ranges.total());
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        let stream = Stream::new(Holder::Lease(lease), ranges.iter());
        Ok((right, rail, stream))
    }
}

/// Maps memory for a peer; what cannot be mapped goes by messages.
fn granted(net: &mut Net, rail: RailKind, stream: &Rc<Stream>) -> Option<(Granted, Vec<u8>)> {
    let port = net.rails.get(rail)?;
    grant((rail, port), stream).unwrap_or_else(|error| {
        tracing::debug!(%error, ?rail, "memory cannot be granted");
        None
    })
}

fn key(link: u64, op: u64) -> OpKey {
    OpKey { side: Side::Owner, link, op }
}

fn forget(net: &mut Net, key: &OpKey) {
    net.port.inbox.close(key);
    net.port.withhold(key);
}

fn done(net: &mut Net, endpoint: EndpointId, header: Header, status: &Result<()>) {
    let header = Header::new(Kind::Done, header.link, header.op);
    net.port.send(endpoint, header, encode_status(status));
}

/// A few per worker of a large fleet.
const LINKS_MAX: usize = 1024;

/// As many transfers as an agent has at once by default.
const OPS_PER_LINK_MAX: usize = 4096;

/// Far longer than an initiator that runs takes to see that its link is gone.
const QUARANTINE: Duration = Duration::from_secs(1);

/// An initiator that was refused closes its end at once.
const REFUSED_MAX: Duration = Duration::from_secs(3);

/// Nobody who is alive holds an operation back for this long.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Peers slower than this on the whole of an operation are cut off: far below any network that KV
/// blocks would be sent over.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
