use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::keeper::Keeper;
use super::posted::Posted;
use super::staged::StagedTransfer;
use super::ways::{Ways, is_out_of_reach, leave};
use super::{Counters, Transfer, TransferEstimate, TransferOptions};
use crate::backend::stage::{Bounces, mover};
use crate::backend::{Done, Operation, Terms};
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
    /// Posts a transfer. It gets a task only if it has to wait for something other than its bytes.
    pub(crate) fn post(self: &Arc<Self>, request: Request) -> Transfer {
        let Request { right, local, remote, options } = request;
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
        let is_refused = permit.is_none();
        let peer = (right, &remote.peer, self.ways.place.distance(&remote.peer));
        let posted = Posted::new(peer, &self.counters, &self.keeper, permit);
        let transfer = Transfer(Arc::clone(&posted));
        if is_refused {
            posted.fail(Error::new(ErrorKind::Overloaded, "too many transfers are posted"));
            return transfer;
        }
        let deadline = options.deadline.unwrap_or(self.transfer_deadline);
        posted.end_at(posted.at.checked_add(deadline).unwrap_or(posted.at + FAR));
        match self.prepare(&posted, (local, remote), options) {
            Ok(prepared) => self.start(prepared),
            Err(error) => posted.fail(error),
        }
        posted.has_posted();
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

    /// Starts a transfer: it gets a task if it has to wait for something other than its bytes.
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
        let (initiator, posted) = (Arc::clone(self), Arc::clone(posted));
        posted.offer(Box::new(move || initiator.run_brief(prepared)));
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

    fn run_brief(self: Arc<Self>, prepared: Prepared) {
        let Prepared { posted, work, route, .. } = &prepared;
        let Work::Direct(operation) = work else { return self.spawn(prepared) };
        let kind = route.first();
        let outcome = self.ways.backend(kind).and_then(|backend| backend.run_brief(operation));
        match outcome {
            Some(Ok(())) => posted.settle(Ok(posted.report(kind))),
            Some(Err(error)) if posted.progress.has_begun() || !is_out_of_reach(&error) => {
                posted.fail(error);
            }
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
            let unsettled = posted.done(prepared.route.first());
            tokio::select! {
                outcome = initiator.run(prepared) => {
                    posted.settle(outcome.map(|kind| posted.report(kind)));
                }
                () = posted.cancel.cancelled() => {}
            }
            drop(unsettled);
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
        let nothing = Load { bytes: 0, ranges: 0 };
        let mut route = self.ways.route(peer, MemoryKind::Host, nothing)?;
        let notified = self.ways.notify(&mut route, peer, payload).await;
        notified.map_err(|error| error.with_peer(&peer.name))
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

/// What no agent lives to see.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
