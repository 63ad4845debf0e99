use crate::backend::BackendKind;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryKind;
use crate::peer::PeerAddress;
use crate::plan::cost::{Load, modelled};

/// Chooses the cheapest of the ways to a peer's memory: a copy inside the process, between processes of
/// this host, UCX if both were given it, TCP. Beyond the process, files and memory of devices are reached
/// over TCP only: their owner's engines have to take part.
pub(crate) fn route(
    own_fabric: Option<u64>,
    own_host: Option<u64>,
    has_ucx: bool,
    (peer, kind): (&PeerAddress, MemoryKind),
    load: Load,
) -> Result<BackendKind> {
    let reaches = |backend: &BackendKind| match backend {
        BackendKind::Memcpy => own_fabric.is_some() && own_fabric == peer.fabric,
        BackendKind::Shm => {
            kind.is_host() && own_host.is_some() && own_host == peer.shm.map(|shm| shm.host)
        }
        BackendKind::Ucx => kind.is_host() && has_ucx && peer.ucx.is_some(),
        BackendKind::Tcp => peer.tcp.is_some(),
        BackendKind::File | BackendKind::Device => false,
    };
    let ways = BackendKind::ALL.into_iter().filter(reaches);
    ways.min_by_key(|backend| modelled(*backend, load)).ok_or_else(|| {
        let message = "peer is not in this process's fabric or on this host, and offers no address \
                       over TCP, or over UCX if this agent has it";
        Error::new(ErrorKind::BackendUnavailable, message).with_peer(&peer.name)
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::peer::ShmAddress;

    #[test]
    fn memcpy_goes_before_shared_memory_before_ucx_before_tcp_and_nothing_is_an_error() {
        let tcp: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let shm = |host| Some(ShmAddress { host, socket: 3 });
        let peer = |fabric, shm, tcp| {
            let ucx = Some(bytes::Bytes::from_static(b"u"));
            PeerAddress { name: "p".into(), incarnation: 0, fabric, tcp, shm, ucx }
        };
        let host = MemoryKind::Host;
        let block = Load { bytes: 4096, ranges: 1 };
        let own = |has_ucx, peer| route(Some(1), Some(5), has_ucx, (&peer, host), block);
        assert_eq!(own(true, peer(Some(1), shm(5), Some(tcp))).unwrap(), BackendKind::Memcpy);
        assert_eq!(own(true, peer(Some(2), shm(5), Some(tcp))).unwrap(), BackendKind::Shm);
        assert_eq!(own(true, peer(Some(2), shm(6), Some(tcp))).unwrap(), BackendKind::Ucx);
        assert_eq!(own(false, peer(Some(2), shm(6), Some(tcp))).unwrap(), BackendKind::Tcp);
        let without = PeerAddress { ucx: None, ..peer(None, None, Some(tcp)) };
        assert_eq!(own(true, without).unwrap(), BackendKind::Tcp);
        let stranger = peer(None, None, Some(tcp));
        assert_eq!(route(None, None, false, (&stranger, host), block).unwrap(), BackendKind::Tcp);
        for kind in [MemoryKind::File, MemoryKind::Device(0)] {
            let far = |fabric| {
                route(Some(1), Some(5), true, (&peer(fabric, shm(5), Some(tcp)), kind), block)
            };
            assert_eq!(far(Some(1)).unwrap(), BackendKind::Memcpy);
            assert_eq!(far(None).unwrap(), BackendKind::Tcp);
        }
        let error = route(None, None, false, (&peer(None, shm(5), None), host), block).unwrap_err();
        assert_eq!((error.kind(), error.peer()), (ErrorKind::BackendUnavailable, Some("p")));
    }

    #[test]
    fn what_a_way_costs_depends_on_what_goes_there() {
        let (tcp, ucx) = ("127.0.0.1:1".parse().ok(), Some(bytes::Bytes::from_static(b"u")));
        let peer =
            PeerAddress { name: "p".into(), incarnation: 0, fabric: None, tcp, shm: None, ucx };
        let way = |bytes, ranges| {
            route(None, None, true, (&peer, MemoryKind::Host), Load { bytes, ranges }).unwrap()
        };
        assert_eq!(way(256 << 20, 256), BackendKind::Ucx);
        // An access for each of these takes longer than to send them one behind the other.
        assert_eq!(way(64 << 20, 1 << 20), BackendKind::Tcp);
    }
}
