use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::TransferReport;
#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, Memcpy, Operation};
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Right;
use crate::peer::PeerAddress;
use crate::plan::{self, Route};

/// What an agent's own transfers run on: plan, backend, notification.
pub(crate) struct Initiator {
    /// The fabric that the agent has joined.
    pub(crate) fabric: Option<u64>,
    pub(crate) memcpy: Option<Memcpy>,
    pub(crate) tcp: TcpClient,
    #[cfg(feature = "ucx")]
    pub(crate) ucx: Option<Ucx>,
}

impl Initiator {
    pub(crate) async fn run(
        &self,
        right: Right,
        local: LocalDescriptor,
        remote: RemoteDescriptor,
        notification: Option<Bytes>,
        cancel: &CancellationToken,
    ) -> Result<TransferReport> {
        let posted = tokio::time::Instant::now();
        check_notification(notification.as_ref())?;
        let backend = self.backend(&remote.peer)?;
        let chunks = plan::chunks(&local.ranges, &remote.ranges, CHUNK_BYTES, CHUNKS_MAX)?;
        let (bytes, count) = (local.ranges.total(), chunks.len());
        let operation = Operation {
            peer: Arc::clone(&remote.peer),
            right,
            local: local.table.lease_local(local.id, right)?,
            remote_id: remote.id,
            remote_key: remote.key,
            chunks,
            cancel: cancel.clone(),
        };
        backend.run(operation).await?;
        if let Some(payload) = notification {
            backend.notify(&remote.peer, payload).await?;
        }
        let (backend, elapsed) = (backend.kind(), posted.elapsed());
        Ok(TransferReport { bytes, chunks: count, backend, elapsed })
    }

    pub(crate) async fn notify(&self, peer: &PeerAddress, payload: Bytes) -> Result<()> {
        check_notification(Some(&payload))?;
        self.backend(peer)?.notify(peer, payload).await.map_err(|e| e.with_peer(&peer.name))
    }

    fn backend(&self, peer: &PeerAddress) -> Result<&dyn Backend> {
        let ucx = self.ucx();
        match (plan::route(self.fabric, ucx.is_some(), peer)?, &self.memcpy) {
            (Route::Memcpy, Some(memcpy)) => Ok(memcpy),
            (Route::Memcpy, None) => Err(Error::new(
                ErrorKind::Internal,
                "an agent with a fabric has the memcpy backend",
            )),
            (Route::Ucx, _) => ucx.ok_or_else(|| {
                Error::new(ErrorKind::Internal, "a route over UCX is for agents that have it")
            }),
            (Route::Tcp(_), _) => Ok(&self.tcp),
        }
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

/// Long enough to run at memory speed, short enough to notice a cancellation.
const CHUNK_BYTES: u64 = 256 << 10;

/// What one request frame of the TCP backend holds; 8 GiB in full chunks.
pub(crate) const CHUNKS_MAX: usize = 32_768;
