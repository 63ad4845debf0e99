//! An owner's link to a peer that has said hello, and what it has leased to it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::grants::Granted;
use super::port::EndpointId;
use super::protocol::{Request, STRIPE_BYTES_MAX, Way};
use super::stream::{Holder, Stream};
use crate::backend::connection::IDLE_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::Right;

pub(super) struct Served {
    pub(super) endpoint: EndpointId,
    pub(super) name: String,
    pub(super) incarnation: u64,
    /// Operations that lease memory.
    pub(super) ops: BTreeMap<u64, Held>,
    /// The peer was not admitted, and is let go then if it does not go by itself.
    refused_until: Option<Instant>,
    used_at: Instant,
}

pub(super) struct Held {
    pub(super) until: Instant,
    /// What the peer accesses by itself.
    pub(super) granted: Option<Granted>,
}

impl Served {
    pub(super) fn new(
        endpoint: EndpointId,
        (name, incarnation): (String, u64),
        is_admitted: bool,
        now: Instant,
    ) -> Self {
        let refused_until = (!is_admitted).then(|| now + REFUSED_MAX);
        Self { endpoint, name, incarnation, ops: BTreeMap::new(), refused_until, used_at: now }
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused_until.is_some()
    }

    /// Takes note that the peer has asked for something.
    pub(super) fn used(&mut self) {
        self.used_at = Instant::now();
    }

    /// Takes note of the end of an operation; tells whether it was there.
    pub(super) fn ended(&mut self, op: u64) -> bool {
        self.used();
        self.ops.remove(&op).is_some()
    }

    /// Returns when the link ends, unless it is used.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        match self.refused_until {
            Some(until) => Some(until),
            None => self.ops.is_empty().then(|| self.used_at + IDLE_MAX),
        }
    }

    /// Checks everything that a request claims, and leases what it asks for.
    pub(super) fn lease(
        &self,
        owner: &Inbound,
        op: u64,
        body: &[u8],
    ) -> Result<(Right, Way, Stream)> {
        if self.is_refused() {
            return Err(Error::new(ErrorKind::StaleRegion, "the link was refused"));
        }
        if self.ops.len() >= OPS_PER_LINK_MAX {
            let message = format!("{OPS_PER_LINK_MAX} operations of one peer, the limit");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        if self.ops.contains_key(&op) {
            return Err(Error::new(ErrorKind::Protocol, "operation is under way already"));
        }
        let Request { right, way, region, token, ranges } = Request::decode(body)?;
        let lease = owner.regions.lease_remote(region, &token, right, &ranges)?;
        if ranges.total() > STRIPE_BYTES_MAX {
            let message =
                format!("request of {} bytes, at most {STRIPE_BYTES_MAX}", ranges.total());
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        let stream = Stream::new(Holder::Lease(lease), ranges.iter()).checked(way == Way::Checked);
        Ok((right, way, stream))
    }
}

/// Tells whether there is room for one more link of a peer that has `own` of `all`.
pub(super) fn room(all: usize, own: usize) -> Result<()> {
    let limit = if own >= LINKS_PER_PEER_MAX {
        LINKS_PER_PEER_MAX
    } else if all >= LINKS_MAX {
        LINKS_MAX
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Overloaded, format!("{limit} UCX links are open, the limit")))
}

/// A few per worker of a large fleet.
pub(super) const LINKS_MAX: usize = 1024;

/// One is enough; another is made while the owner has not seen the end of the one before.
pub(super) const LINKS_PER_PEER_MAX: usize = 8;

/// Links of peers that are being told that they are not admitted; further ones are not answered.
pub(super) const LINKS_REFUSED_MAX: usize = LINKS_MAX;

/// As many transfers as an agent has at once by default.
const OPS_PER_LINK_MAX: usize = 4096;

/// An initiator that was refused closes its end at once.
const REFUSED_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_share_of_the_links_and_all_have_the_limit() {
        assert!(room(LINKS_MAX - 1, LINKS_PER_PEER_MAX - 1).is_ok());
        for (all, own) in [(LINKS_PER_PEER_MAX, LINKS_PER_PEER_MAX), (LINKS_MAX, 0)] {
            assert_eq!(room(all, own).unwrap_err().kind(), ErrorKind::Overloaded);
        }
    }
}
