use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::Priority;
use super::ways::Ways;
use crate::backend::stage::{Bounce, Bounces, End, Local, Places, Staged};
use crate::backend::{Backend, BackendKind, Operation, Progress};
use crate::descriptor::{Ranges, RemoteDescriptor};
use crate::error::Result;
use crate::memory::Right;
use crate::plan::Plan;

/// A transfer that an engine of files or devices has part in.
pub(super) struct StagedTransfer {
    staged: Staged,
    remote: RemoteDescriptor,
    priority: Priority,
}

impl StagedTransfer {
    pub(super) fn new(
        right: Right,
        (local, ranges): (Local, Ranges),
        remote: RemoteDescriptor,
        (priority, cancel, progress): (Priority, CancellationToken, Arc<Progress>),
    ) -> Result<Self> {
        let plan = Plan::new(ranges, remote.ranges.clone())?;
        progress.plan(plan.total());
        Ok(Self { staged: Staged { right, local, plan, cancel, progress }, remote, priority })
    }

    /// Runs it; returns by which backend the peer is reached, and who is to be named.
    pub(super) async fn run<'a>(
        self,
        ways: &'a Ways,
        backend: &'a dyn Backend,
        bounces: &Bounces,
    ) -> Result<(&'a dyn Backend, BackendKind)> {
        let Self { staged, remote, priority } = self;
        if backend.kind() == BackendKind::Memcpy {
            let remote = Local::from(ways.memcpy.lease(&remote, staged.right)?);
            let mover = staged.run_here(&remote, bounces).await?;
            return Ok((backend, mover));
        }
        let (way, cancel) = (Mutex::new(backend), staged.cancel.clone());
        let peer = PeerEnd { ways, way, remote, priority, cancel };
        staged.run_over(&peer, bounces).await?;
        let backend = peer.backend();
        Ok((backend, backend.kind()))
    }
}

/// The end of a staged transfer that a network reaches.
struct PeerEnd<'a> {
    ways: &'a Ways,
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
        let backend = self.ways.run(self.backend(), Arc::new(operation)).await?;
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = backend;
        Ok(())
    }
}
