use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::frame::{STRIPE_BYTES_MAX, STRIPE_CHUNKS_MAX};
use super::lanes::Lanes;
use super::queue::Work;
use crate::backend::{Done, Operation};
use crate::error::{Error, ErrorKind, RemoteMemory};
use crate::memory::Right;
use crate::plan::Stripe;

/// One operation, as the lanes to a peer work on it.
pub(super) struct Job {
    pub(super) operation: Arc<Operation>,
    /// Where what is lost is queued again.
    lanes: Weak<Lanes>,
    state: Mutex<State>,
}

struct State {
    /// Stripes that a lane has.
    in_flight: usize,
    /// Stripes that were lost, and how often.
    again: Vec<(Stripe, usize)>,
    failure: Option<Error>,
    /// Is told the outcome; none once it has been.
    done: Option<Done>,
}

/// A stripe that a lane has. Dropped before it has arrived or was refused, it is lost: what reads goes
/// out again, and so does what is corrupted.
pub(super) struct Flight {
    pub(super) job: Arc<Job>,
    pub(super) stripe: Stripe,
    losses: usize,
    is_over: bool,
}

impl Job {
    /// Makes a job; `done` is told its outcome once no lane has a part of it any more.
    pub(super) fn new(operation: Arc<Operation>, lanes: &Arc<Lanes>, done: Done) -> Arc<Self> {
        let (again, done) = (Vec::new(), Some(done));
        let state = Mutex::new(State { in_flight: 0, again, failure: None, done });
        Arc::new(Self { operation, lanes: Arc::downgrade(lanes), state })
    }

    /// Hands out the next stripe, and tells whether more are left; none if all are in flight, or the
    /// job is over.
    pub(super) fn next(self: &Arc<Self>) -> Option<(Flight, bool)> {
        let operation = &self.operation;
        let mut state = self.lock();
        let is_over = state.done.is_none() || state.failure.is_some();
        if is_over || operation.cancel.is_cancelled() {
            tell(state, operation);
            return None;
        }
        let fresh = || operation.next(STRIPE_BYTES_MAX, STRIPE_CHUNKS_MAX);
        let next = state.again.pop().or_else(|| fresh().map(|stripe| (stripe, 0)));
        let Some((stripe, losses)) = next else {
            tell(state, operation);
            return None;
        };
        state.in_flight += 1;
        let has_more = !(state.again.is_empty() && operation.is_planned());
        drop(state);
        Some((Flight { job: Arc::clone(self), stripe, losses, is_over: false }, has_more))
    }

    /// Gives the job up: nobody reaches the peer.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.failure.get_or_insert(error);
        tell(state, &self.operation);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the outcome of a job if it is over; not under its lock.
fn tell(mut state: MutexGuard<'_, State>, operation: &Operation) {
    let is_given_up = state.failure.is_some() || operation.cancel.is_cancelled();
    let is_complete = state.again.is_empty() && operation.is_planned();
    if state.in_flight > 0 || !is_given_up && !is_complete {
        return;
    }
    let (done, failure) = (state.done.take(), state.failure.take());
    drop(state);
    if let Some(done) = done {
        done.tell(failure.map_or_else(|| operation.check(), Err));
    }
}

impl Flight {
    /// Notes that all bytes have arrived where they belong.
    pub(super) fn arrived(mut self) {
        self.job.operation.advance(&self.stripe);
        self.over(None);
    }

    /// Notes that the owner has refused it, or that it has arrived as something else, as the error says:
    /// either end is through with it.
    pub(super) fn failed(mut self, error: Error) {
        if error.remote_memory() == RemoteMemory::Untouched {
            self.job.operation.progress.was_refused();
        }
        match error.kind() {
            ErrorKind::Corrupted => self.again(1, error),
            _ => self.over(Some(error)),
        }
    }

    fn over(&mut self, failure: Option<Error>) {
        self.is_over = true;
        let mut state = self.job.lock();
        state.in_flight -= 1;
        if state.failure.is_none() {
            state.failure = failure;
        }
        tell(state, &self.job.operation);
    }

    /// Queues it again, unless it was lost `losses_max` times before.
    fn again(&mut self, losses_max: usize, failure: Error) {
        self.is_over = true;
        let lanes = self.job.lanes.upgrade();
        let mut state = self.job.lock();
        state.in_flight -= 1;
        if lanes.is_some() && self.losses < losses_max {
            state.again.push((std::mem::take(&mut self.stripe), self.losses + 1));
        } else {
            state.failure.get_or_insert(failure);
        }
        let is_queued_again = !state.again.is_empty();
        tell(state, &self.job.operation);
        if is_queued_again && let Some(lanes) = lanes {
            let work = Work::Move(Arc::downgrade(&self.job));
            lanes.push(work, self.job.operation.priority);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.is_over {
            let losses_max = match self.job.operation.right {
                // Each lane may turn out to have broken while it was idle; a connection made anew serves.
                Right::Read => self.job.lanes.upgrade().map_or(0, |lanes| lanes.lanes_max),
                // The owner may still take what is left of it when the transfer is long over.
                Right::Write => 0,
            };
            let message = "the connection broke in the middle";
            self.again(losses_max, Error::new(ErrorKind::Disconnected, message));
        }
    }
}
