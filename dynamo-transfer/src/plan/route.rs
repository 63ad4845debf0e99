use std::time::Duration;

use smallvec::SmallVec;

use crate::descriptor::Load;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryKind;
use crate::peer::PeerAddress;
use crate::plan::cost::{Distance, modelled};
use crate::vocabulary::BackendKind;

/// Where an agent is, and what it has to reach peers by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) incarnation: u64,
    /// The fabric that the agent has joined.
    pub(crate) fabric: Option<u64>,
    /// What tells this host apart.
    pub(crate) host: Option<u64>,
    pub(crate) has_ucx: bool,
}

/// The backends that lead to a peer's memory, the cheapest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    first: BackendKind,
    /// The cheapest last.
    others: SmallVec<[BackendKind; 3]>,
}

impl Place {
    /// Orders the ways that there are to a peer's memory by what they cost: a copy inside the process, one
    /// between processes of this host, UCX if both were given it, and TCP. Beyond the process, files and
    /// memory of devices are reached over TCP only: their owner's engines have to take part. An agent
    /// reaches itself as one of its process, whether it has joined a fabric or not.
    pub(crate) fn route(
        &self,
        (peer, kind): (&PeerAddress, MemoryKind),
        load: Load,
    ) -> Result<Route> {
        let reaches = |backend: &BackendKind| match backend {
            BackendKind::Memcpy => self.is_process_of(peer),
            BackendKind::Shm => kind.is_host() && self.is_host_of(peer),
            BackendKind::Ucx => kind.is_host() && self.has_ucx && peer.ucx.is_some(),
            BackendKind::Tcp => peer.tcp.is_some(),
            BackendKind::File | BackendKind::Device => false,
        };
        let distance = self.distance(peer);
        let cost = |backend| (modelled(backend, distance, load), backend);
        let ways = BackendKind::ALL.into_iter().filter(reaches).map(cost);
        let mut ways: SmallVec<[(Duration, BackendKind); 4]> = ways.collect();
        ways.sort_by_key(|way| std::cmp::Reverse(way.0));
        let mut others: SmallVec<_> = ways.into_iter().map(|way| way.1).collect();
        let first = others.pop().ok_or_else(|| {
            let message = "peer is not in this process's fabric or on this host, and offers no \
                           address over TCP, or over UCX if this agent has it";
            Error::new(ErrorKind::BackendUnavailable, message).with_peer(&peer.name)
        })?;
        Ok(Route { first, others })
    }

    pub(crate) fn distance(&self, peer: &PeerAddress) -> Distance {
        if self.is_process_of(peer) || self.is_host_of(peer) {
            Distance::Host
        } else {
            Distance::Network
        }
    }

    fn is_process_of(&self, peer: &PeerAddress) -> bool {
        self.incarnation == peer.incarnation || self.fabric.is_some() && self.fabric == peer.fabric
    }

    fn is_host_of(&self, peer: &PeerAddress) -> bool {
        self.host.is_some() && self.host == peer.shm.map(|shm| shm.host)
    }
}

impl Route {
    /// Returns the cheapest way that is left.
    pub(crate) fn first(&self) -> BackendKind {
        self.first
    }

    /// Tells whether others are left.
    pub(crate) fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// Leaves out the cheapest, which does not lead there after all; returns the next, if one is left.
    pub(crate) fn leave(&mut self) -> Option<BackendKind> {
        self.first = self.others.pop()?;
        Some(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::BackendKind::{Memcpy, Shm, Tcp, Ucx};
    use super::*;
    use crate::peer::ShmAddress;

    const OWN: Place = Place { incarnation: 1, fabric: Some(1), host: Some(5), has_ucx: true };

    /// Offers all there is.
    fn peer(fabric: u64, host: u64) -> PeerAddress {
        PeerAddress {
            name: "p".into(),
            incarnation: 2,
            fabric: Some(fabric),
            tcp: "127.0.0.1:1".parse().ok(),
            shm: Some(ShmAddress { host, socket: 3 }),
            ucx: Some(bytes::Bytes::from_static(b"u")),
        }
    }

    fn ways(own: Place, peer: &PeerAddress, kind: MemoryKind, load: Load) -> Vec<BackendKind> {
        let mut route = own.route((peer, kind), load).unwrap();
        let mut ways = vec![route.first()];
        ways.extend(std::iter::from_fn(|| route.leave()));
        ways
    }

    fn load(bytes: u64, ranges: u64) -> Load {
        Load { bytes: bytes * ranges, ranges }
    }

    #[test]
    fn memcpy_goes_before_shared_memory_before_all_others_whatever_is_moved() {
        let host = MemoryKind::Host;
        let loads = [(4 << 10, 1), (64 << 10, 1), (256 << 10, 1), (1 << 20, 1), (64 << 10, 256)];
        let larger =
            [(1 << 20, 256), (16 << 20, 1), (16 << 20, 16), (4 << 10, 16384), (64, 1 << 20)];
        for load in loads.into_iter().chain(larger).map(|(bytes, ranges)| load(bytes, ranges)) {
            let here = ways(OWN, &peer(1, 5), host, load);
            assert_eq!((here[0], here[1], here.len()), (Memcpy, Shm, 4), "{load:?}");
            let near = ways(OWN, &peer(2, 5), host, load);
            assert_eq!((near[0], near.len()), (Shm, 3), "{load:?}");
            assert_eq!(here[1..], near);
        }
    }

    #[test]
    fn ucx_is_what_its_links_are_on_one_host_copies_by_the_kernel_over_a_network_rdma() {
        let ways = |host, (bytes, ranges)| {
            let ways = ways(OWN, &peer(2, host), MemoryKind::Host, load(bytes, ranges));
            ways.into_iter().filter(|way| *way != Shm).collect::<Vec<_>>()
        };
        // In the order that they were measured in.
        for few in [(4 << 10, 1), (64 << 10, 1), (4 << 10, 16384)] {
            assert_eq!(ways(5, few), [Tcp, Ucx], "{few:?}");
        }
        for large in [(1 << 20, 256), (16 << 20, 16)] {
            assert_eq!(ways(5, large), [Ucx, Tcp], "{large:?}");
        }
        for any in [(4 << 10, 1), (1 << 20, 1), (16 << 20, 16), (4 << 10, 16384)] {
            assert_eq!(ways(6, any), [Ucx, Tcp], "{any:?}");
        }
        // An access for each of these takes longer than to send them one behind the other.
        assert_eq!(ways(6, (64, 1 << 20)), [Tcp, Ucx]);
    }

    #[test]
    fn what_either_side_does_not_have_is_no_way_and_nothing_is_an_error() {
        let (host, block) = (MemoryKind::Host, load(4096, 1));
        let alone = Place { incarnation: 1, fabric: None, host: None, has_ucx: false };
        assert_eq!(ways(alone, &peer(1, 5), host, block), [Tcp]);
        assert_eq!(
            ways(alone, &PeerAddress { incarnation: 1, ..peer(1, 5) }, host, block)[0],
            Memcpy
        );
        let stranger = PeerAddress { fabric: None, shm: None, ucx: None, ..peer(1, 5) };
        assert_eq!(ways(OWN, &stranger, host, block), [Tcp]);
        for kind in [MemoryKind::File, MemoryKind::Device(0)] {
            assert_eq!(ways(OWN, &peer(1, 5), kind, block), [Memcpy, Tcp]);
            assert_eq!(ways(OWN, &peer(2, 5), kind, block), [Tcp]);
        }
        let nowhere = PeerAddress { tcp: None, ..stranger };
        let error = OWN.route((&nowhere, host), block).unwrap_err();
        assert_eq!((error.kind(), error.peer()), (ErrorKind::BackendUnavailable, Some("p")));
    }
}
