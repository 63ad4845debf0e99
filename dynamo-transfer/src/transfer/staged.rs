use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::ways::Ways;
use crate::backend::stage::{Bounce, Bounces, End, Places, Staged};
use crate::backend::{Operation, Terms};
use crate::descriptor::{Ranges, RemoteDescriptor};
use crate::error::Result;
use crate::memory::{Leased, Right};
use crate::plan::{Plan, Route};
use crate::vocabulary::BackendKind;

/// A transfer that an engine of files or devices has part in.
pub(super) struct StagedTransfer {
    staged: Staged,
    remote: RemoteDescriptor,
    terms: Terms,
}

impl StagedTransfer {
    pub(super) fn new(
        right: Right,
        (local, ranges): (Leased, Ranges),
        remote: RemoteDescriptor,
        terms: Terms,
    ) -> Result<Self> {
        let plan = Plan::new(ranges, remote.ranges.clone())?;
        terms.progress.plan(plan.total());
        let (cancel, progress) = (terms.cancel.clone(), Arc::clone(&terms.progress));
        Ok(Self { staged: Staged { right, local, plan, cancel, progress }, remote, terms })
    }

    /// Runs it; returns the route by which the peer is reached, and who is to be named.
    pub(super) async fn run(
        self,
        ways: &Ways,
        route: Route,
        bounces: &Bounces,
    ) -> Result<(Route, BackendKind)> {
        let Self { staged, remote, terms } = self;
        if route.first() == BackendKind::Memcpy {
            let remote = ways.memcpy.lease(&remote, staged.right)?;
            let mover = staged.run_here(&remote, bounces).await?;
            return Ok((route, mover));
        }
        let peer = PeerEnd { ways, route: Mutex::new(route), remote, terms };
        staged.run_over(&peer, bounces).await?;
        let route = peer.route.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mover = route.first();
        Ok((route, mover))
    }
}

/// The end of a staged transfer that a network reaches.
struct PeerEnd<'a> {
    ways: &'a Ways,
    /// Its first way was good for the last stripe.
    route: Mutex<Route>,
    remote: RemoteDescriptor,
    terms: Terms,
}

impl PeerEnd<'_> {
    fn route(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl End for PeerEnd<'_> {
    async fn pass(&self, right: Right, bounce: &Arc<Bounce>, places: Places) -> Result<()> {
        let remote = RemoteDescriptor { ranges: Ranges::unchecked(places), ..self.remote.clone() };
        let whole = Ranges::unchecked([(0, remote.ranges.total())]);
        let terms = Terms { progress: Arc::default(), ..self.terms.clone() };
        let operation = Operation::new(right, (bounce.lease(), whole), remote, terms)?;
        let (progress, mut route) = (Arc::clone(&operation.progress), self.route().clone());
        self.ways.run(&mut route, Arc::new(operation)).await.inspect_err(|_| {
            // The whole was said to be on its way.
            if right == Right::Write && !progress.may_have_landed() {
                self.terms.progress.was_refused();
            }
        })?;
        *self.route() = route;
        Ok(())
    }
}
