use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{TransferOptions, TransferReport};
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, Memcpy, Operation, Progress};
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, RemoteMemory, Result};
use crate::memory::Right;
use crate::peer::PeerAddress;
use crate::plan::{self, Route};

/// What an agent's own transfers run on: plan, backend, notification.
pub(crate) struct Initiator {
    /// The fabric that the agent has joined.
    pub(crate) fabric: Option<u64>,
    pub(crate) memcpy: Option<Memcpy>,
    pub(crate) tcp: Arc<TcpClient>,
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
        let (peer, backend) = (Arc::clone(&remote.peer), self.backend(&remote.peer)?);
        let lease = local.table.lease_local(local.id, right)?;
        let run = (options.priority, cancel.clone(), Arc::clone(progress));
        let operation = Operation::new(right, (lease, local.ranges), remote, run)?;
        if operation.total() > 0 {
            backend.run(Arc::new(operation)).await?;
        }
        if let Some(payload) = options.notification {
            backend.notify(&peer, payload).await?;
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
        self.backend(peer)?.notify(peer, payload).await.map_err(|e| e.with_peer(&peer.name))
    }

    fn backend(&self, peer: &PeerAddress) -> Result<&dyn Backend> {
        match (plan::route(self.fabric, peer)?, &self.memcpy) {
            (Route::Memcpy, Some(memcpy)) => Ok(memcpy),
            (Route::Memcpy, None) => Err(Error::new(
                ErrorKind::Internal,
                "an agent with a fabric has the memcpy backend",
            )),
            (Route::Tcp(_), _) => Ok(&*self.tcp),
        }
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
