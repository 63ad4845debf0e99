use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Priority, TransferOptions, TransferReport};
#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::stage::{Bounce, Bounces, End, Local, Places, Staged};
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, BackendKind, Memcpy, Operation, Progress};
use crate::descriptor::{LocalDescriptor, Ranges, RemoteDescriptor};
use crate::error::{Error, ErrorKind, RemoteMemory, Result};
use crate::memory::{Leased, MemoryKind, Right};
use crate::peer::PeerAddress;
use crate::plan::{self, Plan, Route};

/// What an agent's own transfers run on: plan, backend, notification.
pub(crate) struct Initiator {
    /// The fabric that the agent has joined.
    pub(crate) fabric: Option<u64>,
    /// What tells this host apart.
    pub(crate) host: Option<u64>,
    pub(crate) memcpy: Memcpy,
    pub(crate) shm: Option<Arc<dyn Backend>>,
    pub(crate) tcp: Arc<TcpClient>,
    #[cfg(feature = "ucx")]
    pub(crate) ucx: Option<Ucx>,
    /// What files and memory of devices pass through.
    pub(crate) bounces: Bounces,
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
        let (peer, kind) = (Arc::clone(&remote.peer), remote.kind);
        let backend = self.backend(&peer, kind)?;
        let leased = local.table.lease_local(local.id, right)?;
        let run = (options.priority, cancel.clone(), Arc::clone(progress));
        let (backend, mover) = match leased {
            Leased::Host(lease) if kind.is_host() || backend.kind() != BackendKind::Memcpy => {
                let operation = Operation::new(right, (lease, local.ranges), remote, run)?;
                let backend = self.run_by(backend, Arc::new(operation)).await?;
                (backend, backend.kind())
            }
            leased => {
                let local = (Local::from(leased), local.ranges);
                self.run_staged(backend, right, local, remote, run).await?
            }
        };
        if let Some(payload) = options.notification {
            self.notify_by(backend, &peer, payload).await?;
        }
        Ok(TransferReport {
            bytes: progress.total.load(Ordering::Relaxed),
            chunks: progress.chunks.load(Ordering::Relaxed),
            backend: mover,
            queued,
            elapsed: posted.elapsed(),
        })
    }

    /// Runs an operation by `backend`, or by another one if that does not reach the memory; returns by
    /// which.
    async fn run_by<'a>(
        &'a self,
        mut backend: &'a dyn Backend,
        operation: Arc<Operation>,
    ) -> Result<&'a dyn Backend> {
        if operation.total() == 0 {
            return Ok(backend);
        }
        while let Err(error) = backend.run(Arc::clone(&operation)).await {
            let has_begun = operation.progress.has_begun.load(Ordering::Relaxed);
            backend = self.instead(&operation.peer, backend, error, has_begun)?;
        }
        Ok(backend)
    }

    /// Runs a transfer that an engine has part in; returns by which backend the peer is reached, and who
    /// is to be named.
    async fn run_staged<'a>(
        &'a self,
        backend: &'a dyn Backend,
        right: Right,
        (local, ranges): (Local, Ranges),
        remote: RemoteDescriptor,
        (priority, cancel, progress): (Priority, CancellationToken, Arc<Progress>),
    ) -> Result<(&'a dyn Backend, BackendKind)> {
        let plan = Plan::new(ranges, remote.ranges.clone())?;
        progress.total.store(plan.total(), Ordering::Relaxed);
        let staged = Staged { right, local, plan, cancel: cancel.clone(), progress };
        if backend.kind() == BackendKind::Memcpy {
            let remote = Local::from(self.memcpy.lease(&remote, right)?);
            let mover = staged.run_here(&remote, &self.bounces).await?;
            return Ok((backend, mover));
        }
        let way = Mutex::new(backend);
        let peer = PeerEnd { initiator: self, way, remote, priority, cancel };
        staged.run_over(&peer, &self.bounces).await?;
        let backend = peer.backend();
        Ok((backend, backend.kind()))
    }

    pub(crate) async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        check_notification(Some(&payload))?;
        let notified = self.notify_by(self.backend(peer, MemoryKind::Host)?, peer, payload).await;
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

    fn backend(&self, peer: &PeerAddress, kind: MemoryKind) -> Result<&dyn Backend> {
        let ucx = self.ucx();
        if self.memcpy.own.incarnation == peer.incarnation {
            return Ok(&self.memcpy);
        }
        match plan::route(self.fabric, self.host, ucx.is_some(), peer, kind)? {
            Route::Memcpy => Some(&self.memcpy as &dyn Backend),
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

/// The end of a staged transfer that a network reaches.
struct PeerEnd<'a> {
    initiator: &'a Initiator,
    /// The backend that was good for the last stripe.
    way: Mutex<&'a dyn Backend>,
    remote: RemoteDescriptor,
    priority: Priority,
    cancel: CancellationToken,
}

impl<'a> PeerEnd<'a> {
    fn backend(&self) -> &'a dyn Backend {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl End for PeerEnd<'_> {
    async fn pass(&self, right: Right, bounce: &Arc<Bounce>, places: Places) -> Result<()> {
        let remote = RemoteDescriptor { ranges: Ranges::unchecked(places), ..self.remote.clone() };
        let whole = Ranges::unchecked([(0, remote.ranges.total())]);
        let run = (self.priority, self.cancel.clone(), Arc::default());
        let operation = Operation::new(right, (bounce.lease(), whole), remote, run)?;
        let backend = self.initiator.run_by(self.backend(), Arc::new(operation)).await?;
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = backend;
        Ok(())
    }
}

/// Tells what a failed operation has left at the peer.
pub(crate) fn remote_memory(right: Right, progress: &Progress, error: &Error) -> RemoteMemory {
    if right == Right::Read || !progress.has_begun.load(Ordering::Relaxed) {
        return RemoteMemory::Untouched;
    }
    match error.kind() {
        // The owner said so: what it took before is there, and nothing is on its way.
        ErrorKind::StaleRegion
        | ErrorKind::PermissionDenied
        | ErrorKind::OutOfBounds
        | ErrorKind::NotFound
        | ErrorKind::StorageFull
        | ErrorKind::Io => RemoteMemory::Partial,
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
