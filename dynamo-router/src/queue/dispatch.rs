//! Who may go now, and who is routed next.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use dynamo_core::protocol::{GenerateRequest, WorkerId};
use dynamo_core::{Context, Error, Result};
use futures::StreamExt;
use tokio::sync::oneshot;

use super::busy::{BusyWorkers, Pressure};
use super::candidates::Candidates;
use super::config::{QueueConfig, QueuePolicy};
use super::owned::OwnedConstraints;
use super::requests::{Demand, EntryId, Leave, QueueStats, RequestQueue};
use super::waiting::{Waiter, Waiting, over};
use crate::load::Load;
use crate::router::{Constraints, Decision, KvRouter};
use crate::workers::ReleaseListener;

/// What the clones of a [`QueuedRouter`](super::QueuedRouter) share.
pub(super) struct Dispatch {
    router: KvRouter,
    candidates: Candidates,
    config: QueueConfig,
    tenants: RandomState,
    state: Mutex<State>,
    _listener: ReleaseListener,
}

struct State {
    queue: RequestQueue<Waiter>,
    busy: BusyWorkers,
    draining: Draining,
    /// How often it was looked who is busy.
    looks: u64,
}

/// Whether somebody routes what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Draining {
    No,
    Yes,
    /// Another thread would have done so: what it has seen may be newer, so it is looked once more.
    Again,
}

/// What became of a request as it came.
pub(super) enum Arrival {
    Routed(Box<Decision>),
    Waiting(Waiting),
}

/// Which workers are busy.
struct Seen {
    busy: Vec<WorkerId>,
    /// Also if there is no worker at all: nobody waits for one, that is another error.
    is_any_free: bool,
}

impl Dispatch {
    pub(super) fn new(router: KvRouter, candidates: Candidates, config: QueueConfig) -> Arc<Self> {
        let state = Mutex::new(State {
            queue: RequestQueue::new(config.clone()),
            busy: BusyWorkers::new(config.busy),
            draining: Draining::No,
            looks: 0,
        });
        Arc::new_cyclic(|dispatch: &Weak<Self>| {
            let dispatch = Weak::clone(dispatch);
            let listener = router.on_release(move |_| {
                if let Some(dispatch) = dispatch.upgrade() {
                    dispatch.drain();
                }
            });
            let tenants = RandomState::new();
            Self { router, candidates, config, tenants, state, _listener: listener }
        })
    }

    /// Routes the request, or lets it wait.
    pub(super) fn arrive(
        self: &Arc<Self>,
        ctx: &Context,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Arrival> {
        if let Some(busy) = self.may_go(constraints) {
            let decision = self.choose(request, constraints, &busy)?;
            return Ok(Arrival::Routed(Box::new(decision)));
        }
        let (sender, answer) = oneshot::channel();
        let demand = self.demand(ctx, request);
        let constraints = OwnedConstraints::new(constraints);
        let (ctx, request) = (ctx.clone(), request.clone());
        let id = self.enter(Waiter { ctx, request, constraints, answer: sender }, demand)?;
        let waiting = Waiting { dispatch: Arc::clone(self), id, expires: demand.expires, answer };
        // A worker may have become free since it was looked.
        self.drain();
        Ok(Arrival::Waiting(waiting))
    }

    /// Puts a request into the queue, and refuses those who leave for it.
    fn enter(&self, waiter: Waiter, demand: Demand) -> Result<EntryId> {
        let mut state = self.state();
        let now = self.now();
        let entered = state.queue.push(waiter, demand, now)?;
        let refuse = |waiter| (waiter, state.queue.refusal(1, 0, now));
        let displaced: Vec<_> = entered.displaced.into_iter().map(refuse).collect();
        drop(state);
        for (waiter, refusal) in displaced {
            waiter.answer(&self.router, Err(refusal));
        }
        Ok(entered.id)
    }

    /// Returns the workers that are busy if a request may go at once: nobody waits who could go, and
    /// not all of its workers are busy.
    fn may_go(&self, constraints: &Constraints<'_>) -> Option<Vec<WorkerId>> {
        self.see_workers();
        let mut state = self.state();
        let Seen { busy, is_any_free } = self.look(&mut state);
        let is_held = self.router.is_held(constraints, &busy);
        let is_first = state.draining == Draining::No
            && !(is_any_free && state.queue.any(|waiter| self.may(waiter, &busy)));
        (is_first && !is_held).then_some(busy)
    }

    /// Routes what waits until all workers are busy or nobody waits who may go; returns at once if
    /// another thread does so already, which will look once more.
    pub(super) fn drain(&self) {
        let mut state = self.state();
        match state.draining {
            _ if state.queue.is_empty() => return,
            Draining::No => state.draining = Draining::Yes,
            Draining::Yes | Draining::Again => {
                state.draining = Draining::Again;
                return;
            }
        }
        drop(state);
        let mut unfinished = Unfinished { dispatch: self, is_over: false };
        while let Some((waiter, turn)) = self.next() {
            let answer = match (over(&waiter.ctx), turn) {
                (Some(over), _) => Err(over),
                (None, Err(expired)) => Err(expired),
                (None, Ok(busy)) => waiter
                    .constraints
                    .lend(|constraints| self.choose(&waiter.request, constraints, &busy)),
            };
            waiter.answer(&self.router, answer);
        }
        unfinished.is_over = true;
    }

    /// Looks again whenever there are other workers and, now and then, for load that has faded: so
    /// does each that waits, and no task is needed.
    pub(super) async fn look_out(&self) -> Infallible {
        let mut changes = self.candidates.changes();
        loop {
            let looks = self.state().looks;
            let pause = tokio::time::sleep(self.config.look_every.max(LOOK_EVERY_MIN));
            tokio::select! {
                Some(()) = changes.next() => self.drain(),
                // Unless it was looked meanwhile.
                () = pause => if self.state().looks == looks {
                    self.drain();
                }
            }
        }
    }

    /// Takes out whoever is next to be answered, with the workers that are busy or the reason why it goes
    /// to none; stops the draining if there is nobody.
    fn next(&self) -> Option<(Waiter, Result<Vec<WorkerId>>)> {
        loop {
            self.see_workers();
            let mut state = self.state();
            let now = self.now();
            if let Some(waiter) = state.queue.pop_expired(now) {
                return Some((waiter, Err(state.queue.refusal(1, 0, now))));
            }
            let Seen { busy, is_any_free } = self.look(&mut state);
            if is_any_free
                && let Some(waiter) = state.queue.pop_where(now, |waiter| self.may(waiter, &busy))
            {
                return Some((waiter, Ok(busy)));
            }
            if state.draining != Draining::Again || state.queue.is_empty() {
                state.draining = Draining::No;
                return None;
            }
            state.draining = Draining::Yes;
        }
    }

    fn may(&self, waiter: &Waiter, busy: &[WorkerId]) -> bool {
        !waiter.constraints.lend(|constraints| self.router.is_held(constraints, busy))
    }

    /// Has the router see who there is, and what has stopped. Under no lock: it tells whoever waits.
    fn see_workers(&self) {
        self.router.tidy();
        // Who cannot be chosen is named in the log.
        let _ = self.router.set_workers(&self.candidates.list());
    }

    fn look(&self, state: &mut State) -> Seen {
        state.looks += 1;
        let (mut busy, mut count) = (Vec::new(), 0);
        self.router.each_queue(|worker, load, queue_s| {
            let Load { prefill_tokens, blocks, blocks_total, .. } = load;
            let pressure = Pressure { queue_s, prefill_tokens, blocks, blocks_total };
            if state.busy.judge(worker, pressure) {
                busy.push(worker);
            }
            count += 1;
        });
        if state.busy.count() > busy.len() {
            state.busy.retain(|worker| busy.binary_search(&worker).is_ok());
        }
        let is_any_free = count == 0 || busy.len() < count;
        Seen { busy, is_any_free }
    }

    /// Chooses a worker that is not busy; one that the request avoids rather than none.
    fn choose(
        &self,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
        busy: &[WorkerId],
    ) -> Result<Decision> {
        if constraints.avoid.is_empty() {
            return self.router.route(request, &constraints.with_avoid(busy));
        }
        let mut avoid = [constraints.avoid, busy].concat();
        avoid.sort_unstable();
        avoid.dedup();
        let avoid = match self.router.is_held(constraints, &avoid) {
            true => busy,
            false => &avoid,
        };
        self.router.route(request, &constraints.with_avoid(avoid))
    }

    fn demand(&self, ctx: &Context, request: &GenerateRequest) -> Demand {
        let prompt_tokens = request.token_ids.len();
        let cached = match self.config.policy {
            QueuePolicy::Wspt => self.router.longest_prefix(request),
            _ => 0,
        };
        let patience = self.now() + self.config.wait_max.min(PATIENCE_MAX);
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

    pub(super) fn router(&self) -> &KvRouter {
        &self.router
    }

    pub(super) fn stats(&self) -> QueueStats {
        self.state().queue.stats()
    }

    fn now(&self) -> Instant {
        self.router.clock().now()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets others drain if this one panics.
struct Unfinished<'a> {
    dispatch: &'a Dispatch,
    is_over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.dispatch.state().draining = Draining::No;
        }
    }
}

/// What fades does so over seconds; more often is only work.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(10);
/// Who waits for ever waits for a day.
const PATIENCE_MAX: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests;
