//! The initiator's links: one to each owner, made when it is first needed, and closed when it was
//! not for long.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::absences::Absences;
use super::link::{Connecting, Link};
use super::net::Net;
use super::port::EndpointId;
use super::protocol::{Header, Hello, Kind, Rails, Welcome};
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::random;
use crate::peer::PeerAddress;

pub(super) struct Links {
    own: Arc<Inbound>,
    /// Where owners find this agent's worker.
    address: Vec<u8>,
    links: BTreeMap<u64, Link>,
    /// The link to each peer that has one.
    peers: HashMap<Arc<PeerAddress>, u64>,
    absences: Absences,
}

/// What a look at all links has found.
#[derive(Default)]
pub(super) struct Overdue {
    /// Links whose owners have not answered in time.
    pub(super) unanswered: Vec<u64>,
    /// Operations that do not wait for an answer any longer.
    pub(super) impatient: Vec<u64>,
    /// Links that were not used for long.
    pub(super) idle: Vec<u64>,
    /// When to look again.
    pub(super) next: Option<Instant>,
}

impl Links {
    pub(super) fn new(own: Arc<Inbound>, address: Vec<u8>) -> Self {
        let (links, peers, absences) = Default::default();
        Self { own, address, links, peers, absences }
    }

    pub(super) fn get(&self, id: u64) -> Option<&Link> {
        self.links.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Link> {
        self.links.get_mut(&id)
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.links.keys().copied().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// Returns the link of an endpoint.
    pub(super) fn of(&self, endpoint: EndpointId) -> Option<u64> {
        let found = self.links.iter().find(|(_, link)| link.endpoint == endpoint);
        found.map(|(id, _)| *id)
    }

    /// Returns the link to a peer, connecting if there is none.
    pub(super) fn to(
        &mut self,
        net: &mut Net,
        peer: &Arc<PeerAddress>,
        now: Instant,
    ) -> Result<u64> {
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
        self.links.insert(id, Link::new(endpoint, peer, connecting, now));
        self.peers.insert(Arc::clone(peer), id);
        Ok(id)
    }

    /// Takes an owner's answer; tells whether the link may be used from then on.
    pub(super) fn welcome(&mut self, net: &mut Net, id: u64, body: &[u8]) -> Result<bool> {
        let Welcome { status, rails } = Welcome::decode(body)?;
        status?;
        Ok(self.join(net, id, &rails))
    }

    fn join(&mut self, net: &mut Net, id: u64, rails: &Rails) -> bool {
        let Some(link) = self.links.get_mut(&id) else { return false };
        if link.connecting.take().is_none() {
            return false;
        }
        link.joined = net.rails.join(rails);
        link.is_joined_well = true;
        self.absences.forget(&link.peer);
        true
    }

    /// Takes a link out that ends for that reason.
    pub(super) fn take(&mut self, id: u64, kind: ErrorKind) -> Option<Link> {
        let link = self.links.remove(&id)?;
        self.peers.remove(&link.peer);
        if link.connecting.is_some() && kind == ErrorKind::Unreachable {
            self.absences.note(&link.peer, Instant::now());
        }
        Some(link)
    }

    /// Looks for what was waited for too long, and for links that were not used for long.
    pub(super) fn look(&self, now: Instant) -> Overdue {
        let mut overdue = Overdue::default();
        for (&id, link) in &self.links {
            let at = match link.connecting {
                Some(Connecting { until, .. }) if until <= now => {
                    overdue.unanswered.push(id);
                    continue;
                }
                Some(Connecting { until, patience_until }) if patience_until > now => {
                    patience_until.min(until)
                }
                Some(Connecting { until, .. }) => {
                    overdue.impatient.extend(link.ops.iter().copied());
                    until
                }
                None if !link.ops.is_empty() => continue,
                None if link.used_at + IDLE_MAX <= now => {
                    overdue.idle.push(id);
                    continue;
                }
                None => link.used_at + IDLE_MAX,
            };
            overdue.next = Some(overdue.next.map_or(at, |next| next.min(at)));
        }
        overdue
    }
}

/// A host that is there answers within this even over long distance.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// How long operations wait for a peer that others than UCX reach, too: longer than one that is
/// there and busy takes to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Owners wait twice as long: what is closed here was not about to be used.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(30);

pub(super) const UNANSWERED: &str = "the peer does not answer over UCX";
