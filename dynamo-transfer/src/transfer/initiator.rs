use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::keeper::Keeper;
use super::posted::Posted;
use super::{Counters, Transfer, TransferOptions};
#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, BackendKind, Memcpy, Operation};
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Right;
use crate::peer::PeerAddress;
use crate::plan;

/// Runs an agent's own transfers: plan, backend, notification.
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
    /// The most time a transfer takes unless it says otherwise.
    pub(crate) transfer_deadline: Duration,
    /// Room for transfers that are posted and not settled.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) tasks: TaskTracker,
}

/// What is asked of a transfer.
pub(crate) struct Request {
    pub(crate) right: Right,
    pub(crate) local: LocalDescriptor,
    pub(crate) remote: RemoteDescriptor,
    pub(crate) options: TransferOptions,
}

/// A transfer that has been checked, and who is to run it.
struct Prepared {
    posted: Arc<Posted>,
    operation: Arc<Operation>,
    kind: BackendKind,
    notification: Option<Bytes>,
}

impl Initiator {
    /// Posts a transfer. It gets a task only if it has to wait for something other than its bytes.
    pub(crate) fn post(self: &Arc<Self>, request: Request) -> Transfer {
        let Request { right, local, remote, options } = request;
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
        let is_refused = permit.is_none();
        let peer = (right, &remote.peer);
        let posted = Posted::new(peer, &self.counters, &self.keeper, permit);
        let transfer = Transfer(Arc::clone(&posted));
        if is_refused {
            posted.fail(Error::new(ErrorKind::Overloaded, "too many transfers are posted"));
            return transfer;
        }
        posted.end_at(posted.at + options.deadline.unwrap_or(self.transfer_deadline));
        match self.prepare(&posted, (local, remote), options) {
            Ok(prepared) => self.start(prepared),
            Err(error) => posted.fail(error),
        }
        transfer
    }

    fn prepare(
        &self,
        posted: &Arc<Posted>,
        (local, remote): (LocalDescriptor, RemoteDescriptor),
        options: TransferOptions,
    ) -> Result<Prepared> {
        let TransferOptions { priority, notification, .. } = options;
        check_notification(notification.as_ref())?;
        let kind = self.route(&remote.peer)?;
        let lease = local.table.lease_local(local.id, posted.right)?;
        let run = (priority, posted.cancel.clone(), Arc::clone(&posted.progress));
        let operation = Operation::new(posted.right, (lease, local.ranges), remote, run)?;
        let (posted, operation) = (Arc::clone(posted), Arc::new(operation));
        Ok(Prepared { posted, operation, kind, notification })
    }

    /// Starts a transfer: it gets a task if it has to wait for something other than its bytes.
    fn start(self: &Arc<Self>, prepared: Prepared) {
        let Prepared { posted, operation, kind, notification } = &prepared;
        let total = operation.total();
        if total == 0 || notification.is_some() {
            return self.spawn(prepared);
        }
        if *kind == BackendKind::Tcp {
            let running = self.tcp.begin(operation, posted.done(*kind));
            return posted.hold(running);
        }
        if self.backend(*kind).is_none_or(|backend| total > backend.brief_bytes_max()) {
            return self.spawn(prepared);
        }
        let (initiator, posted) = (Arc::clone(self), Arc::clone(posted));
        posted.offer(Box::new(move || initiator.run_brief(prepared)));
    }

    fn run_brief(self: Arc<Self>, prepared: Prepared) {
        let Prepared { posted, operation, kind, .. } = &prepared;
        let outcome = self.backend(*kind).and_then(|backend| backend.run_brief(operation));
        match outcome {
            Some(Ok(())) => posted.settle(Ok(posted.report(*kind))),
            Some(Err(error)) if !can_go_instead(posted, &error) => posted.fail(error),
            // The region has to be opened, or another backend found.
            _ => self.spawn(prepared),
        }
    }

    /// Runs a transfer in a task of its own, until it is settled.
    fn spawn(self: &Arc<Self>, prepared: Prepared) {
        let initiator = Arc::clone(self);
        self.tasks.spawn(async move {
            let posted = Arc::clone(&prepared.posted);
            // Also if the task is dropped, or panics.
            let unsettled = posted.done(prepared.kind);
            tokio::select! {
                outcome = initiator.run(prepared) => {
                    posted.settle(outcome.map(|kind| posted.report(kind)));
                }
                () = posted.cancel.cancelled() => {}
            }
            drop(unsettled);
        });
    }

    /// Runs a transfer, by another backend if the peer is out of this one's reach; returns who did.
    async fn run(&self, prepared: Prepared) -> Result<BackendKind> {
        let Prepared { posted, operation, mut kind, notification } = prepared;
        let mut backend = self.reached(kind)?;
        if operation.total() > 0 {
            while let Err(error) = backend.run(Arc::clone(&operation)).await {
                if !can_go_instead(&posted, &error) {
                    return Err(error);
                }
                backend = self.instead(&posted.peer, backend, error)?;
                kind = backend.kind();
            }
        }
        if let Some(payload) = notification {
            self.notify_by(backend, &posted.peer, payload).await?;
        }
        Ok(kind)
    }

    pub(crate) async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        check_notification(Some(&payload))?;
        let backend = self.reached(self.route(peer)?)?;
        let notified = self.notify_by(backend, peer, payload).await;
        notified.map_err(|error| error.with_peer(&peer.name))
    }

    async fn notify_by(
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

    fn route(&self, peer: &PeerAddress) -> Result<BackendKind> {
        plan::route(self.fabric, self.host, self.ucx().is_some(), peer)
    }

    fn reached(&self, kind: BackendKind) -> Result<&dyn Backend> {
        let missing = || Error::new(ErrorKind::Internal, "a route has its backend");
        self.backend(kind).ok_or_else(missing)
    }

    fn backend(&self, kind: BackendKind) -> Option<&dyn Backend> {
        match kind {
            BackendKind::Memcpy => self.memcpy.as_ref().map(|memcpy| memcpy as &dyn Backend),
            BackendKind::Shm => self.shm.as_deref(),
            BackendKind::Ucx => self.ucx(),
            BackendKind::Tcp => Some(&*self.tcp as &dyn Backend),
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

/// Tells whether another backend may run what this one has failed at.
fn can_go_instead(posted: &Posted, error: &Error) -> bool {
    is_out_of_reach(error) && !posted.progress.has_begun()
}

fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::BackendUnavailable)
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
