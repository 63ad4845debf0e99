use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::keeper::Keeper;
use super::posted::Posted;
use super::staged::StagedTransfer;
use super::ways::{Ways, is_out_of_reach, leave};
use super::{Counters, Transfer, TransferEstimate, TransferOptions};
use crate::backend::stage::{Bounces, mover};
use crate::backend::{Done, Operation, Terms, dropped};
use crate::descriptor::{Load, LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Leased, MemoryKind, RegionTable, Right};
use crate::peer::PeerAddress;
use crate::plan::{self, Route};
use crate::vocabulary::{BackendKind, NOTIFICATION_BYTES_MAX};

/// Runs an agent's own transfers: plan, backend, notification.
pub(crate) struct Initiator {
    /// Of this agent.
    pub(crate) regions: Arc<RegionTable>,
    pub(crate) ways: Ways,
    /// What files and memory of devices pass through.
    pub(crate) bounces: Bounces,
    /// The most time a transfer takes unless it says otherwise.
    pub(crate) transfer_deadline: Duration,
    /// Room for transfers that are posted and not settled, and for notifications under way.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// What is asked of a transfer.
pub(crate) struct Request {
    pub(crate) right: Right,
    pub(crate) local: LocalDescriptor,
    pub(crate) remote: RemoteDescriptor,
    pub(crate) options: TransferOptions,
}

/// What a backend does in a few microseconds, if it can: whoever waits for the transfer runs it, or the
/// keeper.
pub(super) struct Brief {
    initiator: Arc<Initiator>,
    operation: Arc<Operation>,
    route: Route,
}

/// A transfer that has been checked, and who is to run it.
struct Prepared {
    posted: Arc<Posted>,
    work: Work,
    route: Route,
    notification: Option<Bytes>,
}

enum Work {
    /// Between memory of hosts.
    Direct(Arc<Operation>),
    /// Files or memory of devices have part in it.
    Staged(Box<StagedTransfer>),
}

impl Initiator {
    /// Posts a transfer: checks it, chooses who runs it, and returns.
    pub(crate) fn post(self: &Arc<Self>, request: Request) -> Transfer {
        let Request { right, local, remote, options } = request;
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
        let is_refused = permit.is_none();
        let peer = (right, &remote.peer, self.ways.place.distance(&remote.peer));
        let posted = Posted::new(peer, &self.counters, &self.keeper, permit);
        let transfer = Transfer(Arc::clone(&posted));
        if is_refused {
            posted.fail(overloaded());
            return transfer;
        }
        let deadline = options.deadline.unwrap_or(self.transfer_deadline);
        let kept = posted.end_at(posted.at.checked_add(deadline).unwrap_or(posted.at + FAR));
        match kept.and_then(|()| self.prepare(&posted, (local, remote), options)) {
            Ok(prepared) => self.start(prepared),
            Err(error) => posted.fail(error),
        }
        posted.note_posting();
        transfer
    }

    fn prepare(
        &self,
        posted: &Arc<Posted>,
        (local, remote): (LocalDescriptor, RemoteDescriptor),
        options: TransferOptions,
    ) -> Result<Prepared> {
        let TransferOptions { priority, notification, checksum: is_checked, .. } = options;
        check_notification(notification.as_ref())?;
        if !Arc::ptr_eq(&local.table, &self.regions) {
            let message = "the local descriptor is of another agent";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let route = self.ways.route(&remote.peer, remote.kind, remote.load())?;
        let (cancel, progress) = (posted.cancel.clone(), Arc::clone(&posted.progress));
        let terms = Terms { priority, is_checked, cancel, progress };
        let work = match self.regions.lease_local(local.id, posted.right, &posted.uses)? {
            Leased::Host(lease)
                if remote.kind.is_host() || route.first() != BackendKind::Memcpy =>
            {
                let operation = Operation::new(posted.right, (lease, local.ranges), remote, terms)?;
                Work::Direct(Arc::new(operation))
            }
            leased => {
                let local = (leased, local.ranges);
                let staged = StagedTransfer::new(posted.right, local, remote, terms)?;
                Work::Staged(Box::new(staged))
            }
        };
        Ok(Prepared { posted: Arc::clone(posted), work, route, notification })
    }

    /// Starts a transfer. Lanes take what goes over TCP, and what is brief is run by whoever comes first.
    /// Everything else has a task: what UCX or an engine moves, copies that are not brief, and what a
    /// notification follows.
    fn start(self: &Arc<Self>, prepared: Prepared) {
        let Prepared { posted, work, route, notification } = &prepared;
        let Work::Direct(operation) = work else { return self.spawn(prepared) };
        let total = operation.total();
        if total == 0 || notification.is_some() {
            return self.spawn(prepared);
        }
        if route.first() == BackendKind::Tcp {
            let (posted, operation) = (Arc::clone(posted), Arc::clone(operation));
            return posted.hold(self.ways.tcp.begin(&operation, self.begun(prepared)));
        }
        if self.ways.backend(route.first()).is_none_or(|backend| total > backend.brief_bytes_max())
        {
            return self.spawn(prepared);
        }
        let (initiator, operation) = (Arc::clone(self), Arc::clone(operation));
        let Prepared { posted, route, .. } = prepared;
        posted.offer(Brief { initiator, operation, route });
    }

    /// Returns what is told how the first way has done: it settles the transfer, or starts it on the next.
    fn begun(self: &Arc<Self>, mut prepared: Prepared) -> Done {
        let (initiator, posted) = (Arc::clone(self), Arc::clone(&prepared.posted));
        let kind = prepared.route.first();
        if !prepared.route.has_others() {
            return posted.done(kind);
        }
        Done::new(move |outcome| match outcome {
            Err(error) if !posted.progress.has_begun() => {
                match leave(&mut prepared.route, &posted.peer, error) {
                    Ok(()) => initiator.spawn(prepared),
                    Err(error) => posted.fail(error),
                }
            }
            outcome => posted.settle(outcome.map(|()| posted.report(kind))),
        })
    }

    /// Runs a transfer in a task of its own, until it is settled.
    fn spawn(self: &Arc<Self>, prepared: Prepared) {
        let initiator = Arc::clone(self);
        self.tasks.spawn(async move {
            let task = TaskOf(Arc::clone(&prepared.posted));
            let posted = &task.0;
            tokio::select! {
                outcome = initiator.run(prepared) => {
                    posted.settle(outcome.map(|kind| posted.report(kind)));
                }
                () = posted.cancel.cancelled() => {}
            }
        });
    }

    /// Runs a transfer; returns who moved its bytes.
    async fn run(&self, prepared: Prepared) -> Result<BackendKind> {
        let Prepared { posted, work, mut route, notification } = prepared;
        let mover = match work {
            Work::Direct(operation) => {
                self.ways.run(&mut route, operation).await?;
                route.first()
            }
            Work::Staged(staged) => {
                let (reached, mover) = staged.run(&self.ways, route, &self.bounces).await?;
                route = reached;
                mover
            }
        };
        if let Some(payload) = notification {
            self.ways.notify(&mut route, &posted.peer, payload).await?;
        }
        Ok(mover)
    }

    /// Estimates a transfer between two descriptors.
    pub(crate) fn estimate(
        &self,
        local: &LocalDescriptor,
        remote: &RemoteDescriptor,
    ) -> Result<TransferEstimate> {
        let (here, there) = (local.ranges.load(), remote.load());
        // As many pieces as the finer side has, at least.
        let load = Load { ranges: here.ranges.max(there.ranges), ..there };
        let kind = self.ways.route(&remote.peer, remote.kind, there)?.first();
        let engines = [local.table.kind(local.id)?.engine(), remote.kind.engine()];
        let backend = if kind == BackendKind::Memcpy { mover(engines) } else { kind };
        let modelled = plan::modelled(backend, self.ways.place.distance(&remote.peer), load);
        let expected = self.counters.pace(backend).expected(modelled);
        Ok(TransferEstimate { backend, duration: expected })
    }

    pub(crate) async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        check_notification(Some(&payload))?;
        let notified = async {
            let _room = self.room.try_acquire().map_err(|_| overloaded())?;
            let nothing = Load { bytes: 0, ranges: 0 };
            let mut route = self.ways.route(peer, MemoryKind::Host, nothing)?;
            self.ways.notify(&mut route, peer, payload).await
        };
        let notified = tokio::select! {
            // Looked at first: backends say that something else has ended, as they end.
            biased;
            () = self.shutdown.cancelled() => Err(Error::shut_down()),
            notified = notified => notified,
        };
        notified.map_err(|error| error.with_peer(&peer.name))
    }
}

impl Brief {
    /// Runs it for `posted`; in a task of its own if it turns out that it has to wait.
    pub(super) fn run(self, posted: &Arc<Posted>) {
        let Self { initiator, operation, route } = self;
        let kind = route.first();
        let backend = initiator.ways.backend(kind);
        match backend.and_then(|backend| backend.run_brief(&operation)) {
            Some(Ok(())) => posted.settle(Ok(posted.report(kind))),
            Some(Err(error)) if posted.progress.has_begun() || !is_out_of_reach(&error) => {
                posted.fail(error);
            }
            // The region has to be opened, or another backend found.
            _ => {
                let (posted, work) = (Arc::clone(posted), Work::Direct(operation));
                initiator.spawn(Prepared { posted, work, route, notification: None });
            }
        }
    }
}

/// The task of a transfer, which ends with it: also if it panics, or is dropped with its runtime.
struct TaskOf(Arc<Posted>);

impl Drop for TaskOf {
    fn drop(&mut self) {
        self.0.fail_if_open(dropped);
    }
}

fn overloaded() -> Error {
    Error::new(ErrorKind::Overloaded, "too many transfers and notifications are under way")
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

/// What no agent lives to see.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
