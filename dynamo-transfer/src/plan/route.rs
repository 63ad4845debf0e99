use std::net::SocketAddr;

use crate::error::{Error, ErrorKind, Result};
use crate::peer::PeerAddress;

/// The backend that reaches a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// The peer is in this process.
    Memcpy,
    /// The peer listens there.
    Tcp(SocketAddr),
}

/// Chooses the cheapest way to a peer: a copy inside the process, else TCP.
pub(crate) fn route(own_fabric: Option<u64>, peer: &PeerAddress) -> Result<Route> {
    if own_fabric.is_some() && own_fabric == peer.fabric {
        return Ok(Route::Memcpy);
    }
    peer.tcp.map(Route::Tcp).ok_or_else(|| {
        let message = "peer is not in this process's fabric and offers no TCP address";
        Error::new(ErrorKind::BackendUnavailable, message).with_peer(&peer.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memcpy_goes_before_tcp_and_nothing_is_an_error() {
        let tcp: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let peer = |fabric, tcp| PeerAddress { name: "p".into(), incarnation: 0, fabric, tcp };
        assert_eq!(route(Some(1), &peer(Some(1), Some(tcp))).unwrap(), Route::Memcpy);
        assert_eq!(route(Some(1), &peer(Some(2), Some(tcp))).unwrap(), Route::Tcp(tcp));
        assert_eq!(route(None, &peer(None, Some(tcp))).unwrap(), Route::Tcp(tcp));
        let error = route(None, &peer(None, None)).unwrap_err();
        assert_eq!((error.kind(), error.peer()), (ErrorKind::BackendUnavailable, Some("p")));
    }
}
