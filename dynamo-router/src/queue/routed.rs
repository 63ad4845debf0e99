use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use dynamo_core::protocol::{GenerateRequest, WorkerId};
use dynamo_core::{Context, Error, Instance, Result};
use tokio::sync::oneshot;

use super::busy::{BusyWorkers, Pressure};
use super::config::{QueueConfig, QueuePolicy};
use super::owned::OwnedConstraints;
use super::requests::{Demand, EntryId, Leave, QueueStats, RequestQueue};
use super::waiting::{Waiter, Waiting};
use crate::load::Load;
use crate::router::{Constraints, Decision, KvRouter};
use crate::workers::ReleaseListener;

/// Routes at once while some worker is not busy, and lets requests wait while all are; cheap to
/// clone, clones share. Requests of a [session](crate::choose::SESSION_METADATA) stay together.
///
/// Nothing runs in the background: whoever lets go of load, by a first token, the end of a stream or
/// its drop, routes those that wait, on its own thread, until all workers are busy again. Busy
/// workers get a request only if it has excluded all others, or if its session is pinned there.
///
/// # Guarantees
/// - Nobody who comes later slips in before those that wait, save by the policy.
/// - Each request gets one answer: a decision, [`Overloaded`](dynamo_core::ErrorKind) with the time
///   to come back, or the end of its context. It waits to its deadline or
///   [`QueueConfig::wait_max`], whichever is earlier, and leaves at once then.
/// - Threads that ask at the same moment while nobody waits may each be routed: the marks are
///   exceeded by as many requests as there are threads, at most.
#[derive(Clone)]
pub struct QueuedRouter(Arc<Shared>);

pub(super) struct Shared {
    router: KvRouter,
    candidates: Box<dyn Fn() -> Arc<[Instance]> + Send + Sync>,
    config: QueueConfig,
    tenants: RandomState,
    state: Mutex<State>,
    _listener: ReleaseListener,
}

struct State {
    queue: RequestQueue<Waiter>,
    busy: BusyWorkers,
    /// Somebody routes what waits: it looks once more before it stops, under this lock.
    is_draining: bool,
}

impl QueuedRouter {
    /// Creates an empty queue before `router`; `candidates` tells the workers there are, waits for
    /// nothing, and does not call the queue.
    ///
    /// The queue of one router is one: where several are put before the same, each goes by the
    /// load of all, but they do not wait for each other.
    pub fn new(
        router: KvRouter,
        candidates: impl Fn() -> Arc<[Instance]> + Send + Sync + 'static,
        config: QueueConfig,
    ) -> Self {
        let state = State {
            queue: RequestQueue::new(config.clone()),
            busy: BusyWorkers::new(config.busy),
            is_draining: false,
        };
        let (candidates, tenants) = (Box::new(candidates), RandomState::new());
        Self(Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = Weak::clone(shared);
            let listener = router.on_release(move |_| {
                if let Some(shared) = shared.upgrade() {
                    shared.drain();
                }
            });
            let state = Mutex::new(state);
            Shared { router, candidates, config, tenants, state, _listener: listener }
        }))
    }

    /// Chooses one of the workers that `constraints` leave, and books the request there; waits as
    /// long as all workers are busy.
    ///
    /// Fails with [`Overloaded`](dynamo_core::ErrorKind), unprocessed and saying when to come back,
    /// if too much waits already or the wait has lasted too long, with `Cancelled` or
    /// `DeadlineExceeded` if the request ends first, and as [`KvRouter::route`] does.
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

    /// Looks whether a worker is free for those that wait: worth a call when workers have joined.
    ///
    /// Load that is released, and each request that comes, do so by themselves.
    pub fn look_again(&self) {
        self.0.drain();
    }

    /// Returns the router that chooses.
    pub fn router(&self) -> &KvRouter {
        &self.0.router
    }

    /// Returns who waits, and what became of those that did.
    pub fn stats(&self) -> QueueStats {
        self.0.state().queue.stats()
    }
}

enum Arrival {
    Routed(Box<Decision>),
    Waiting(Waiting),
}

impl Shared {
    fn arrive(
        self: &Arc<Self>,
        ctx: &Context,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Arrival> {
        self.see_workers();
        let mut state = self.state();
        let is_first = state.queue.is_empty() && !state.is_draining;
        if is_first && let Some(busy) = self.look(&mut state) {
            drop(state);
            let decision = self.choose(request, constraints, &busy)?;
            return Ok(Arrival::Routed(Box::new(decision)));
        }
        let (sender, answer) = oneshot::channel();
        let (request, constraints) = (request.clone(), OwnedConstraints::new(constraints));
        let demand = self.demand(ctx, &request);
        let waiter = Waiter { ctx: ctx.clone(), request, constraints, answer: sender };
        let now = self.now();
        let entered = state.queue.push(waiter, demand, now)?;
        let displaced = entered.displaced;
        let refusals: Vec<_> = displaced.iter().map(|_| state.queue.refusal(1, 0, now)).collect();
        drop(state);
        for (waiter, refusal) in displaced.into_iter().zip(refusals) {
            waiter.answer(Err(refusal));
        }
        if !is_first {
            // A worker may have become free without anything being released.
            self.drain();
        }
        let (shared, id, expires) = (Arc::clone(self), entered.id, demand.expires);
        Ok(Arrival::Waiting(Waiting { shared, id, expires, answer }))
    }

    /// Routes what waits until all workers are busy or nobody waits; returns at once if another
    /// thread does so already, which will see what has changed.
    fn drain(&self) {
        let mut state = self.state();
        if state.queue.is_empty() || std::mem::replace(&mut state.is_draining, true) {
            return;
        }
        drop(state);
        let mut draining = Draining { shared: self, is_over: false };
        while let Some((waiter, turn)) = self.next() {
            let answer = match (waiter.ctx.check(), turn) {
                (Err(over), _) => Err(over),
                (Ok(()), Err(expired)) => Err(expired),
                (Ok(()), Ok(busy)) => waiter
                    .constraints
                    .lend(|constraints| self.choose(&waiter.request, constraints, &busy)),
            };
            waiter.answer(answer);
        }
        draining.is_over = true;
    }

    /// Takes out whoever is next to be answered, with the workers that are busy or the reason why it goes
    /// to none; stops the draining if there is nobody.
    fn next(&self) -> Option<(Waiter, Result<Vec<WorkerId>>)> {
        self.see_workers();
        let mut state = self.state();
        let now = self.now();
        if let Some(waiter) = state.queue.pop_expired(now) {
            return Some((waiter, Err(state.queue.refusal(1, 0, now))));
        }
        let busy = if state.queue.is_empty() { None } else { self.look(&mut state) };
        let next = busy.and_then(|busy| Some((state.queue.pop(now)?, Ok(busy))));
        state.is_draining = next.is_some();
        next
    }

    /// Has the router see who there is, and what has stopped. Under no lock: it tells whoever waits.
    fn see_workers(&self) {
        self.router.tidy();
        // Who cannot be chosen is named in the log.
        let _ = self.router.set_workers(&(self.candidates)());
    }

    /// Returns the workers that are busy, in order, unless all of them are.
    fn look(&self, state: &mut State) -> Option<Vec<WorkerId>> {
        let (mut busy, mut count) = (Vec::new(), 0);
        self.router.each_queue(|worker, load, queue_s| {
            let Load { prefill_tokens, blocks, .. } = load;
            if state.busy.judge(worker, Pressure { queue_s, prefill_tokens, blocks }) {
                busy.push(worker);
            }
            count += 1;
        });
        if state.busy.count() > busy.len() {
            state.busy.retain(|worker| busy.binary_search(&worker).is_ok());
        }
        // Where there is no worker nobody waits for one: that is another error.
        (count == 0 || busy.len() < count).then_some(busy)
    }

    fn choose(
        &self,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
        busy: &[WorkerId],
    ) -> Result<Decision> {
        let avoid = [constraints.avoid, busy].concat();
        self.router.route(request, &constraints.with_avoid(&avoid))
    }

    fn demand(&self, ctx: &Context, request: &GenerateRequest) -> Demand {
        let prompt_tokens = request.token_ids.len();
        let cached = match self.config.policy {
            QueuePolicy::Wspt => self.router.longest_prefix(request),
            _ => 0,
        };
        let patience = self.now() + self.config.wait_max;
        Demand {
            priority: ctx.priority(),
            prompt_tokens,
            new_tokens: prompt_tokens.saturating_sub(cached),
            deadline: ctx.deadline(),
            expires: ctx.deadline().map_or(patience, |deadline| deadline.min(patience)),
            tenant: self.tenants.hash_one(&request.namespace.tenant),
        }
    }

    /// Takes an entry out that leaves by itself, and returns what is said to one that has waited too
    /// long; `None` if it is out already.
    pub(super) fn leave(&self, id: EntryId, why: Leave) -> Option<Error> {
        let mut state = self.state();
        let now = self.now();
        let waiter = state.queue.remove(id, why, now)?;
        let too_long = state.queue.refusal(1, 0, now);
        drop(state);
        // Not under the lock: it may hold the last of a context.
        drop(waiter);
        Some(too_long)
    }

    fn now(&self) -> Instant {
        self.router.clock().now()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets others drain again if this one panics.
struct Draining<'a> {
    shared: &'a Shared,
    is_over: bool,
}

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.state().is_draining = false;
        }
    }
}

impl fmt::Debug for QueuedRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedRouter").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
