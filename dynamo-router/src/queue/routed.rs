use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::GenerateRequest;
use dynamo_core::{Client, Context, Instance, Message, Result};

use super::candidates::Candidates;
use super::config::QueueConfig;
use super::dispatch::{Arrival, Dispatch};
use super::requests::QueueStats;
use crate::router::{Constraints, Decision, KvRouter};

/// Routes at once while some worker is not busy, and lets requests wait while all are; cheap to
/// clone, clones share.
///
/// Nothing runs in the background: whoever lets go of load, by a first token, the end of a stream or
/// its drop, routes those that wait, on its own thread, until all workers are busy again. For
/// workers that come, and for load that goes without a word (a report that is old, a lease that has
/// ended), each request that waits [looks](QueueConfig::look_every) itself.
///
/// # Constraints
/// A request goes by the workers that its [`Constraints`] leave: it waits while all of these are
/// busy, also if others are not, and those behind it that may go elsewhere pass it. So no worker is
/// loaded beyond its marks for a request that can have no other; what is pinned waits its turn like
/// all else, in the order of the policy. A session that is kept
/// [whatever happens](crate::Stickiness::Hard) counts as pinned to its worker. Whom to
/// avoid is preferred to a busy worker.
///
/// # Guarantees
/// - Nobody who comes later slips in before those that wait and may go to the same worker, save by
///   the policy.
/// - Each request gets one answer: a decision, [`Overloaded`](dynamo_core::ErrorKind) with the time
///   to come back, or the end of its context. It waits to its deadline or
///   [`QueueConfig::wait_max`], whichever is earlier, and leaves at once then; so does one that is
///   asked for an early end.
/// - Threads that ask at the same moment while nobody waits may each be routed: the marks are
///   exceeded by as many requests as there are threads, at most.
#[derive(Clone)]
pub struct QueuedRouter(pub(super) Arc<Dispatch>);

impl QueuedRouter {
    /// Creates an empty queue before `router`, which chooses among the instances that `client` calls.
    pub fn for_client<Req: Message, Resp: Message>(
        router: KvRouter,
        client: &Client<Req, Resp>,
        config: QueueConfig,
    ) -> Self {
        Self(Dispatch::new(router, Candidates::of(client), config))
    }

    /// Creates an empty queue before `router`; `candidates` tells the workers there are, waits for
    /// nothing, and does not call the queue.
    ///
    /// The queue of one router is one: where several are put before the same, each goes by the
    /// load of all, but they do not wait for each other, and their candidates have to be the same:
    /// the workers of a router are those of the last list.
    pub fn new(
        router: KvRouter,
        candidates: impl Fn() -> Arc<[Instance]> + Send + Sync + 'static,
        config: QueueConfig,
    ) -> Self {
        Self(Dispatch::new(router, Candidates::told_by(candidates), config))
    }

    /// Chooses one of the workers that `constraints` leave, and books the request there; waits as
    /// long as all of these are busy.
    ///
    /// Fails with [`Overloaded`](dynamo_core::ErrorKind), unprocessed and saying when to come back,
    /// if too much waits already or the wait has lasted too long, with `Cancelled` or
    /// `DeadlineExceeded` if the request ends, or is asked to end, first, and as
    /// [`KvRouter::route`] does.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future leaves the queue, and what was booked is released.
    pub async fn route(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Decision> {
        ctx.check()?;
        match self.0.arrive(ctx, request, constraints)? {
            Arrival::Routed(decision) => Ok(*decision),
            Arrival::Waiting(waiting) => waiting.answered(ctx).await,
        }
    }

    /// Looks whether a worker is free for those that wait: worth a call when workers have joined
    /// that no client tells of.
    pub fn look_again(&self) {
        self.0.drain();
    }

    /// Returns the router that chooses.
    pub fn router(&self) -> &KvRouter {
        self.0.router()
    }

    /// Returns who waits, and what became of those that did.
    pub fn stats(&self) -> QueueStats {
        self.0.stats()
    }
}

impl fmt::Debug for QueuedRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedRouter").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
