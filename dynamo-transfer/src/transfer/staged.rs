use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::ways::Ways;
use crate::backend::stage::{Bounce, Bounces, End, Local, Places, Staged};
use crate::backend::{Backend, BackendKind, Operation, Terms};
use crate::descriptor::{Ranges, RemoteDescriptor};
use crate::error::Result;
use crate::memory::Right;
use crate::plan::Plan;

/// A transfer that an engine of files or devices has part in.
pub(super) struct StagedTransfer {
    staged: Staged,
    remote: RemoteDescriptor,
    terms: Terms,
}

impl StagedTransfer {
    pub(super) fn new(
        right: Right,
        (local, ranges): (Local, Ranges),
        remote: RemoteDescriptor,
        terms: Terms,
    ) -> Result<Self> {
        let plan = Plan::new(ranges, remote.ranges.clone())?;
        terms.progress.plan(plan.total());
        let (cancel, progress) = (terms.cancel.clone(), Arc::clone(&terms.progress));
        Ok(Self { staged: Staged { right, local, plan, cancel, progress }, remote, terms })
    }

    /// Runs it; returns by which backend the peer is reached, and who is to be named.
    pub(super) async fn run<'a>(
        self,
        ways: &'a Ways,
        backend: &'a dyn Backend,
        bounces: &Bounces,
    ) -> Result<(&'a dyn Backend, BackendKind)> {
        let Self { staged, remote, terms } = self;
        if backend.kind() == BackendKind::Memcpy {
            let remote = Local::from(ways.memcpy.lease(&remote, staged.right)?);
            let mover = staged.run_here(&remote, bounces).await?;
            return Ok((backend, mover));
        }
        let peer = PeerEnd { ways, way: Mutex::new(backend), remote, terms };
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
    terms: Terms,
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
        let terms = Terms { progress: Arc::default(), ..self.terms.clone() };
        let operation = Operation::new(right, (bounce.lease(), whole), remote, terms)?;
        let progress = Arc::clone(&operation.progress);
        let backend =
            self.ways.run(self.backend(), Arc::new(operation)).await.inspect_err(|_| {
                // The whole was said to be on its way.
                if right == Right::Write && !progress.may_have_landed() {
                    self.terms.progress.was_refused();
                }
            })?;
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = backend;
        Ok(())
    }
}
