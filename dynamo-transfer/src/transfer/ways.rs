use std::sync::Arc;

use bytes::Bytes;

#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, BackendKind, Memcpy, Operation};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryKind;
use crate::peer::PeerAddress;
use crate::plan::{Load, Place, Route};

/// The backends of an agent: how it reaches itself and its peers.
pub(crate) struct Ways {
    pub(crate) place: Place,
    pub(crate) memcpy: Memcpy,
    pub(crate) shm: Option<Arc<dyn Backend>>,
    pub(crate) tcp: Arc<TcpClient>,
    #[cfg(feature = "ucx")]
    pub(crate) ucx: Option<Ucx>,
}

impl Ways {
    /// Returns which backends reach memory of a peer.
    pub(super) fn route(
        &self,
        peer: &PeerAddress,
        memory: MemoryKind,
        load: Load,
    ) -> Result<Route> {
        self.place.route((peer, memory), load)
    }

    pub(super) fn backend(&self, kind: BackendKind) -> Option<&dyn Backend> {
        match kind {
            BackendKind::Memcpy => Some(&self.memcpy as &dyn Backend),
            BackendKind::Shm => self.shm.as_deref(),
            BackendKind::Ucx => self.ucx(),
            BackendKind::Tcp => Some(&*self.tcp as &dyn Backend),
            BackendKind::File | BackendKind::Device => None,
        }
    }

    /// Runs an operation by the first backend of `route` that leads to the peer, which is its first then.
    pub(super) async fn run(&self, route: &mut Route, operation: Arc<Operation>) -> Result<()> {
        if operation.total() == 0 {
            return Ok(());
        }
        while let Err(error) = self.first(route)?.run(Arc::clone(&operation)).await {
            if operation.progress.has_begun() {
                return Err(error);
            }
            leave(route, &operation.peer, error)?;
        }
        Ok(())
    }

    /// Delivers a notification, likewise.
    pub(super) async fn notify(
        &self,
        route: &mut Route,
        peer: &Arc<PeerAddress>,
        payload: Bytes,
    ) -> Result<()> {
        while let Err(error) = self.first(route)?.notify(peer, payload.clone()).await {
            leave(route, peer, error)?;
        }
        Ok(())
    }

    fn first(&self, route: &Route) -> Result<&dyn Backend> {
        let missing = || Error::new(ErrorKind::Internal, "a route has its backend");
        self.backend(route.first()).ok_or_else(missing)
    }

    #[cfg(feature = "ucx")]
    fn ucx(&self) -> Option<&dyn Backend> {
        self.ucx.as_ref().map(|ucx| ucx as &dyn Backend)
    }

    #[cfg(not(feature = "ucx"))]
    #[expect(clippy::unused_self, reason = "with the feature there is something to return")]
    fn ucx(&self) -> Option<&dyn Backend> {
        None
    }
}

/// Leaves out the first way of a route if the peer is out of its reach and there is another; else fails.
pub(super) fn leave(route: &mut Route, peer: &PeerAddress, error: Error) -> Result<()> {
    if !is_out_of_reach(&error) || !route.has_others() {
        return Err(error);
    }
    let (kind, by) = (route.first(), route.leave());
    tracing::debug!(%error, peer = peer.name, ?by, "peer is out of reach for {kind}");
    Ok(())
}

/// Tells whether another backend may run what this one has failed at, if it has not begun.
pub(super) fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::BackendUnavailable)
}
