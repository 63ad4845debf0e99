use std::net::SocketAddr;

use crate::error::{Error, ErrorKind, Result};
use crate::peer::PeerAddress;

/// The backend that reaches a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// The peer is in this process.
    Memcpy,
    /// Both have a UCX worker.
    Ucx,
    /// The peer listens there.
    Tcp(SocketAddr),
}

/// Chooses the cheapest way to a peer: a copy inside the process, else UCX if both were given it,
/// else TCP.
pub(crate) fn route(own_fabric: Option<u64>, has_ucx: bool, peer: &PeerAddress) -> Result<Route> {
    if own_fabric.is_some() && own_fabric == peer.fabric {
        return Ok(Route::Memcpy);
    }
    if has_ucx && peer.ucx.is_some() {
        return Ok(Route::Ucx);
    }
    peer.tcp.map(Route::Tcp).ok_or_else(|| {
        let message = "peer is not in this process's fabric and offers no address over TCP, or UCX if this has it";
        Error::new(ErrorKind::BackendUnavailable, message).with_peer(&peer.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memcpy_goes_before_ucx_before_tcp_and_nothing_is_an_error() {
        let tcp: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let peer = |fabric, tcp| PeerAddress {
            name: "p".into(),
            incarnation: 0,
            fabric,
            tcp,
            ucx: Some(bytes::Bytes::from_static(b"u")),
        };
        assert_eq!(route(Some(1), true, &peer(Some(1), Some(tcp))).unwrap(), Route::Memcpy);
        assert_eq!(route(Some(1), true, &peer(Some(2), Some(tcp))).unwrap(), Route::Ucx);
        assert_eq!(route(Some(1), false, &peer(Some(2), Some(tcp))).unwrap(), Route::Tcp(tcp));
        assert_eq!(route(None, false, &peer(None, Some(tcp))).unwrap(), Route::Tcp(tcp));
        let error = route(None, false, &peer(None, None)).unwrap_err();
        assert_eq!((error.kind(), error.peer()), (ErrorKind::BackendUnavailable, Some("p")));
    }
}
