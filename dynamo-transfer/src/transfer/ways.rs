use std::sync::Arc;

use bytes::Bytes;

#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, BackendKind, Memcpy, Operation};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryKind;
use crate::peer::PeerAddress;
use crate::plan::{self, Load};

/// The backends of an agent: how it reaches itself and its peers.
pub(crate) struct Ways {
    /// The fabric that the agent has joined.
    pub(crate) fabric: Option<u64>,
    /// What tells this host apart.
    pub(crate) host: Option<u64>,
    pub(crate) memcpy: Memcpy,
    pub(crate) shm: Option<Arc<dyn Backend>>,
    pub(crate) tcp: Arc<TcpClient>,
    #[cfg(feature = "ucx")]
    pub(crate) ucx: Option<Ucx>,
}

impl Ways {
    /// Returns which backend is to reach memory of a peer.
    pub(super) fn route(
        &self,
        peer: &PeerAddress,
        memory: MemoryKind,
        load: Load,
    ) -> Result<BackendKind> {
        if self.memcpy.own.incarnation == peer.incarnation {
            return Ok(BackendKind::Memcpy);
        }
        plan::route(self.fabric, self.host, self.ucx().is_some(), (peer, memory), load)
    }

    /// Returns the backend that is to notify a peer.
    pub(super) fn to(&self, peer: &PeerAddress) -> Result<&dyn Backend> {
        self.reached(self.route(peer, MemoryKind::Host, Load { bytes: 0, ranges: 0 })?)
    }

    pub(super) fn reached(&self, kind: BackendKind) -> Result<&dyn Backend> {
        let missing = || Error::new(ErrorKind::Internal, "a route has its backend");
        self.backend(kind).ok_or_else(missing)
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

    /// Runs an operation by `backend`, or by another one if the peer is out of its reach; returns by
    /// which.
    pub(super) async fn run<'a>(
        &'a self,
        mut backend: &'a dyn Backend,
        operation: Arc<Operation>,
    ) -> Result<&'a dyn Backend> {
        if operation.total() == 0 {
            return Ok(backend);
        }
        while let Err(error) = backend.run(Arc::clone(&operation)).await {
            if operation.progress.has_begun() {
                return Err(error);
            }
            backend = self.instead(&operation.peer, backend, error)?;
        }
        Ok(backend)
    }

    /// Delivers a notification by `backend`, or by another one if the peer is out of its reach.
    pub(super) async fn notify(
        &self,
        mut backend: &dyn Backend,
        peer: &Arc<PeerAddress>,
        payload: Bytes,
    ) -> Result<()> {
        while let Err(error) = backend.notify(peer, payload.clone()).await {
            backend = self.instead(peer, backend, error)?;
        }
        Ok(())
    }

    /// Returns who else reaches a peer that is out of reach for `backend`; else the error.
    fn instead(
        &self,
        peer: &PeerAddress,
        backend: &dyn Backend,
        error: Error,
    ) -> Result<&dyn Backend> {
        if !is_out_of_reach(&error) {
            return Err(error);
        }
        let (ucx, tcp) = (self.ucx(), &*self.tcp as &dyn Backend);
        let instead = match backend.kind() {
            BackendKind::Shm if ucx.is_some() && peer.ucx.is_some() => ucx,
            BackendKind::Shm | BackendKind::Ucx if peer.tcp.is_some() => Some(tcp),
            _ => None,
        };
        let Some(instead) = instead else { return Err(error) };
        let (kind, by) = (backend.kind(), instead.kind());
        tracing::debug!(%error, peer = peer.name, "peer is reached by {by} in place of {kind}");
        Ok(instead)
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

/// Tells whether another backend may run what this one has failed at, if it has not begun.
pub(super) fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::BackendUnavailable)
}
