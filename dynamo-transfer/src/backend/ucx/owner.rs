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
use super::protocol::{Header, Hello, Kind, RailKind, Way, Welcome, encode_status, protocol};
use super::served::{Held, LINKS_REFUSED_MAX, Served, room};
use super::stream::Stream;
use crate::backend::connection::patience;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::Right;
use crate::vocabulary::{NOTIFICATION_BYTES_MAX, Priority};
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
    inbound: Arc<Inbound>,
    deliveries: mpsc::Sender<Delivery>,
    links: BTreeMap<u64, Served>,
    /// Memory of peers that went without a word: they may still be at it, but not for long.
    quarantine: Vec<(Instant, Granted)>,
}

impl Owner {
    pub(super) fn new(inbound: Arc<Inbound>, deliveries: mpsc::Sender<Delivery>) -> Self {
        Self { inbound, deliveries, links: BTreeMap::new(), quarantine: Vec::new() }
    }

    pub(super) fn hello(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let Hello { hello, address } = match Hello::decode(body) {
            Ok(hello) => hello,
            // Without its address a peer cannot be answered.
            Err(error) => return tracing::debug!(%error, "UCX hello refused"),
        };
        if self.links.contains_key(&header.link) {
            return;
        }
        let refused = self.links.values().filter(|link| link.is_refused()).count();
        if refused >= LINKS_REFUSED_MAX {
            return tracing::warn!("{refused} UCX links are being refused, the limit");
        }
        let admitted = |link: &&Served| !link.is_refused();
        let all = self.links.values().filter(admitted).count();
        let of_it = |link: &&Served| admitted(link) && link.incarnation == hello.incarnation;
        let own = self.links.values().filter(of_it).count();
        let endpoint = match net.port.connect(&address) {
            Ok(endpoint) => endpoint,
            Err(error) => return tracing::debug!(%error, "UCX peer cannot be answered"),
        };
        let status = self.inbound.check(&hello).and_then(|()| room(all, own));
        let _ = status.as_ref().inspect_err(|error| tracing::debug!(%error, "UCX link refused"));
        let is_admitted = status.is_ok();
        let welcome = Welcome { status, rails: net.rails.addresses() };
        net.port.send(endpoint, Header::new(Kind::Welcome, header.link, 0), welcome.encode());
        let wire::Hello { name, incarnation, .. } = hello;
        let link = Served::new(endpoint, (name, incarnation), is_admitted, Instant::now());
        self.links.insert(header.link, link);
    }

    pub(super) fn request(&mut self, net: &mut Net, header: Header, body: &[u8]) {
        let Some(link) = self.links.get_mut(&header.link) else { return };
        link.used();
        let endpoint = link.endpoint;
        match link.lease(&self.inbound, header.op, body) {
            Err(error) => done(net, endpoint, header, &Err(error)),
            Ok((_, Way::Here(data), stream)) => {
                let taken = match stream.total() {
                    total if total == data.len() as u64 => stream.take(&header, &data),
                    total => Err(protocol(format!("{} bytes of {total}", data.len()))),
                };
                // Ends the lease before the peer hears of it.
                drop(stream);
                done(net, endpoint, header, &taken);
            }
            Ok((_, _, stream)) if stream.total() == 0 => done(net, endpoint, header, &Ok(())),
            Ok((right, way, stream)) => {
                let until = Instant::now() + patience(stream.total());
                let (key, stream) = (key(header.link, header.op), Rc::new(stream));
                let granted = match way {
                    Way::Rail(rail) => granted(net, rail, &stream),
                    Way::Messages | Way::Checked | Way::Here(_) => None,
                };
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
        let Some(link) = self.links.get_mut(&header.link) else { return };
        link.used();
        let refused = if link.is_refused() {
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
                    Error::new(ErrorKind::Disconnected, "the agent takes no notifications")
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
    pub(super) fn filled(&mut self, net: &mut Net, key: OpKey, status: &Result<()>) {
        // Also of an operation that was cancelled, and whose number was used again, by then.
        net.port.inbox.close(&key);
        let Some(link) = self.links.get_mut(&key.link) else { return };
        if !link.ended(key.op) {
            return;
        }
        done(net, link.endpoint, Header::new(Kind::Done, key.link, key.op), status);
    }

    /// A read's data is all out.
    pub(super) fn supplied(&mut self, key: OpKey) {
        if let Some(link) = self.links.get_mut(&key.link) {
            link.ended(key.op);
        }
    }

    /// A peer has given an operation up, or has ended its accesses.
    pub(super) fn release(&mut self, net: &mut Net, header: Header) {
        if let Some(link) = self.links.get_mut(&header.link) {
            link.ended(header.op);
            // Whatever way its data goes: the peer may name any operation.
            forget(net, &key(header.link, header.op));
        }
    }

    #[cfg(test)]
    pub(super) fn links(&self) -> usize {
        self.links.len()
    }

    /// Tells whether peers are accessing memory.
    pub(super) fn has_granted(&self) -> bool {
        let granted = |link: &Served| link.ops.values().any(|held| held.granted.is_some());
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
            match link.ends_at() {
                Some(at) if at <= now => ended.push(id),
                Some(at) => earliest(at),
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

/// Far longer than an initiator that runs takes to see that its link is gone.
const QUARANTINE: Duration = Duration::from_secs(1);
