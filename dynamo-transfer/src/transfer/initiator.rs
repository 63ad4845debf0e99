use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{TransferOptions, TransferReport};
#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, BackendKind, Memcpy, Operation, Progress};
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, RemoteMemory, Result};
use crate::memory::Right;
use crate::peer::PeerAddress;
use crate::plan::{self, Route};

/// What an agent's own transfers run on: plan, backend, notification.
pub(crate) struct Initiator {
    /// The fabric that the agent has joined.
    pub(crate) fabric: Option<u64>,
    /// What tells this host apart.
    pub(crate) host: Option<u64>,
    pub(crate) memcpy: Option<Memcpy>,
    pub(crate) shm: Option<Arc<dyn Backend>>,
    pub(crate) tcp: Arc<TcpClient>,
    #[cfg(feature = "ucx")]
    pub(crate) ucx: Option<Ucx>,
}

impl Initiator {
    pub(crate) async fn run(
        &self,
        posted: Instant,
        (right, local, remote): (Right, LocalDescriptor, RemoteDescriptor),
        options: TransferOptions,
        progress: &Arc<Progress>,
        cancel: &CancellationToken,
    ) -> Result<TransferReport> {
        let queued = posted.elapsed();
        check_notification(options.notification.as_ref())?;
        let (peer, mut backend) = (Arc::clone(&remote.peer), self.backend(&remote.peer)?);
        let lease = local.table.lease_local(local.id, right)?;
        let run = (options.priority, cancel.clone(), Arc::clone(progress));
        let operation = Operation::new(right, (lease, local.ranges), remote, run)?;
        if operation.total() > 0 {
            let operation = Arc::new(operation);
            while let Err(error) = backend.run(Arc::clone(&operation)).await {
                let has_begun = progress.has_begun.load(Ordering::Relaxed);
                backend = self.instead(&peer, backend, error, has_begun)?;
            }
        }
        if let Some(payload) = options.notification {
            self.notify_by(backend, &peer, payload).await?;
        }
        Ok(TransferReport {
            bytes: progress.total.load(Ordering::Relaxed),
            chunks: progress.chunks.load(Ordering::Relaxed),
            backend: backend.kind(),
            queued,
            elapsed: posted.elapsed(),
        })
    }

    pub(crate) async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        check_notification(Some(&payload))?;
        let notified = self.notify_by(self.backend(peer)?, peer, payload).await;
        notified.map_err(|error| error.with_peer(&peer.name))
    }

    async fn notify_by(
        &self,
        mut backend: &dyn Backend,
        peer: &Arc<PeerAddress>,
        payload: Bytes,
    ) -> Result<()> {
        while let Err(error) = backend.notify(peer, payload.clone()).await {
            backend = self.instead(peer, backend, error, false)?;
        }
        Ok(())
    }

    /// Returns who else reaches a peer, if `backend` does not and nothing has moved; else the error.
    fn instead(
        &self,
        peer: &PeerAddress,
        backend: &dyn Backend,
        error: Error,
        has_begun: bool,
    ) -> Result<&dyn Backend> {
        let is_out_of_reach =
            matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::BackendUnavailable);
        if has_begun || !is_out_of_reach {
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

    fn backend(&self, peer: &PeerAddress) -> Result<&dyn Backend> {
        let ucx = self.ucx();
        match plan::route(self.fabric, self.host, ucx.is_some(), peer)? {
            Route::Memcpy => self.memcpy.as_ref().map(|memcpy| memcpy as &dyn Backend),
            Route::Shm => self.shm.as_deref(),
            Route::Ucx => ucx,
            Route::Tcp(_) => Some(&*self.tcp as &dyn Backend),
        }
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a route has its backend"))
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

/// Tells what a failed operation has left at the peer.
pub(crate) fn remote_memory(right: Right, progress: &Progress, error: &Error) -> RemoteMemory {
    if right == Right::Read || !progress.has_begun.load(Ordering::Relaxed) {
        return RemoteMemory::Untouched;
    }
    match error.kind() {
        // The owner said so: what it took before is there, and nothing is on its way.
        ErrorKind::StaleRegion | ErrorKind::PermissionDenied | ErrorKind::OutOfBounds => {
            RemoteMemory::Partial
        }
        _ => RemoteMemory::Unknown,
    }
}

fn check_notification(payload: Option<&Bytes>) -> Result<()> {
    match payload.map(Bytes::len) {
        Some(len) if len > NOTIFICATION_BYTES_MAX => {
            let message = format!("notification of {len} bytes, at most {NOTIFICATION_BYTES_MAX}");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
        _ => Ok(()),
    }
}

/// The largest notification: a message, not a transfer.
pub(crate) const NOTIFICATION_BYTES_MAX: usize = 64 << 10;
