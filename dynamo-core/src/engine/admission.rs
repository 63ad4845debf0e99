//! Who may start now, who waits, and who is told to come back later.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::{Context, Priority};
use crate::error::{Error, ErrorKind, Result};
use crate::time::{Clock, SystemClock};

/// Admits so many requests at once and lets so many more wait; cheap to clone, clones share.
///
/// # Guarantees
/// - At most `running_max` permits live, at most `waiting_max` requests wait.
/// - A place that becomes free goes to the most urgent waiter, among equals to the first; nobody
///   who arrives later slips in between.
/// - With the queue full, a request that is more urgent than the last waiter takes its place, and
///   that waiter is refused.
/// - A waiter whose request is killed, expires or is dropped leaves at once and never starts.
/// - A refusal is [unprocessed](Error::is_retryable) and says when to
///   [come back](Error::retry_after).
///
/// # When to come back
/// A place in reach is expected after *hold × (waiting + 1) / running_max*, kept between 10 ms and
/// 10 s. *Hold* is the moving average of how long permits were held, the latest weighing an eighth;
/// until one has ended, a second.
///
/// # Examples
/// ```
/// use dynamo_core::engine::Admission;
/// use dynamo_core::{Context, ErrorKind};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let admission = Admission::new(1, 0);
/// let permit = admission.admit(&Context::new()).await.expect("nobody else is there");
/// let refused = admission.admit(&Context::new()).await.expect_err("one at once, nobody waits");
/// assert_eq!(refused.kind(), ErrorKind::Overloaded);
/// drop(permit);
/// assert!(admission.admit(&Context::new()).await.is_ok());
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    running_max: usize,
    waiting_max: usize,
    state: Mutex<State>,
    idle: Notify,
}

/// Nobody waits while a place is free.
#[derive(Debug)]
struct State {
    running: usize,
    waiting: BTreeMap<Place, Waiter>,
    arrivals: u64,
    closed: bool,
    hold: Option<Duration>,
}

/// Where a waiter stands: the most urgent first, then by arrival.
type Place = (Reverse<Priority>, u64);

#[derive(Debug)]
struct Waiter {
    ctx: Context,
    answer: oneshot::Sender<Result<Permit>>,
}

/// The right to run, given back when dropped: it belongs into the stream it was given for.
#[derive(Debug)]
#[must_use = "dropping it gives the place to the next"]
pub struct Permit {
    shared: Arc<Shared>,
    since: Instant,
}

impl Admission {
    /// Admits `running_max` requests at once and lets `waiting_max` more wait; with a `running_max`
    /// of 0 all are refused.
    pub fn new(running_max: usize, waiting_max: usize) -> Self {
        let (running, arrivals, closed, hold) = (0, 0, false, None);
        let state = State { running, waiting: BTreeMap::new(), arrivals, closed, hold };
        let (state, idle) = (Mutex::new(state), Notify::new());
        Self(Arc::new(Shared { running_max, waiting_max, state, idle }))
    }

    /// Waits for a place for the request.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded) if too many wait already,
    /// [`Unavailable`](ErrorKind::Unavailable) after [`close`](Self::close), and
    /// [`Cancelled`](ErrorKind::Cancelled) or [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if
    /// the request ends first.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future leaves the queue.
    pub async fn admit(&self, ctx: &Context) -> Result<Permit> {
        ctx.check()?;
        let mut waiting = match self.enter(ctx)? {
            Arrival::Admitted(permit) => return Ok(permit),
            Arrival::Waiting(waiting) => waiting,
        };
        let answer = async { (&mut waiting.answer).await.unwrap_or_else(|_| Err(over(ctx))) };
        let permit = ctx.bound(answer).await?;
        // The deadline may have passed between the grant and this task's turn.
        ctx.check().map(|()| permit)
    }

    fn enter(&self, ctx: &Context) -> Result<Arrival> {
        let shared = &self.0;
        let mut state = shared.state();
        if state.closed {
            return Err(closed());
        }
        if state.running < shared.running_max {
            state.running += 1;
            drop(state);
            return Ok(Arrival::Admitted(Permit::new(shared)));
        }
        let mut displaced = None;
        if shared.running_max == 0 || state.waiting.len() >= shared.waiting_max {
            let full = shared.full(&state);
            match state.waiting.last_entry() {
                Some(last) if last.key().0 > Reverse(ctx.priority()) => {
                    displaced = Some((last.remove(), full));
                }
                _ => return Err(full),
            }
        }
        let place = (Reverse(ctx.priority()), state.arrivals);
        state.arrivals += 1;
        let (sender, answer) = oneshot::channel();
        state.waiting.insert(place, Waiter { ctx: ctx.clone(), answer: sender });
        drop(state);
        if let Some((waiter, full)) = displaced {
            // One that has just left needs no answer.
            let _ = waiter.answer.send(Err(full));
        }
        Ok(Arrival::Waiting(Waiting { shared: Arc::clone(shared), place, answer }))
    }

    /// Refuses further requests, and those that wait; permits stay what they are.
    pub fn close(&self) {
        let mut state = self.0.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waiter in waiting.into_values() {
            // One that has just left needs no answer.
            let _ = waiter.answer.send(Err(closed()));
        }
    }

    /// Completes when nothing runs and nobody waits.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.0.idle.notified());
            idle.as_mut().enable();
            // Nobody waits while a place is free.
            if self.running() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Returns how many permits live.
    pub fn running(&self) -> usize {
        self.0.state().running
    }

    /// Returns how many requests wait.
    pub fn waiting(&self) -> usize {
        self.0.state().waiting.len()
    }
}

enum Arrival {
    Admitted(Permit),
    Waiting(Waiting),
}

/// A request in the queue; leaves it when dropped.
struct Waiting {
    shared: Arc<Shared>,
    place: Place,
    /// A permit that arrives too late is dropped with it, and goes to the next.
    answer: oneshot::Receiver<Result<Permit>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiter = self.shared.state().waiting.remove(&self.place);
        // Not under the lock: it may hold the last of a context.
        drop(waiter);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a place to the next waiter whose request still lives, or frees it.
    fn release(self: &Arc<Self>, held: Duration) {
        let mut state = self.state();
        state.hold = Some(state.hold.map_or(held, |hold| hold / 8 * 7 + held / 8));
        loop {
            let Some((_, next)) = state.waiting.pop_first() else {
                state.running -= 1;
                if state.running == 0 {
                    self.idle.notify_waiters();
                }
                return;
            };
            drop(state);
            if next.ctx.check().is_ok() {
                // One that leaves this very moment drops the permit, which ends here again.
                let _ = next.answer.send(Ok(Permit::new(self)));
                return;
            }
            state = self.state();
        }
    }

    fn full(&self, state: &State) -> Error {
        let (running, waiting) = (state.running, state.waiting.len());
        let message = format!("{running} requests run and {waiting} wait, the most there may be");
        Error::new(ErrorKind::Overloaded, message)
            .unprocessed()
            .with_retry_after(self.retry_after(state))
    }

    fn retry_after(&self, state: &State) -> Duration {
        let hold = state.hold.unwrap_or(HOLD_ASSUMED);
        let ahead = u32::try_from(state.waiting.len() + 1).unwrap_or(u32::MAX);
        let at_once = u32::try_from(self.running_max.max(1)).unwrap_or(u32::MAX);
        (hold.saturating_mul(ahead) / at_once).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

impl Permit {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), since: SystemClock.now() }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let held = SystemClock.now().saturating_duration_since(self.since);
        self.shared.release(held);
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "no further request is admitted").unprocessed()
}

/// Why a waiter was passed over: its request is over.
fn over(ctx: &Context) -> Error {
    ctx.check().err().unwrap_or_else(|| ctx.cancelled_error())
}

/// How long a permit is held, until one has told.
const HOLD_ASSUMED: Duration = Duration::from_secs(1);
/// Coming back sooner would only add load.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(10);
/// An estimate further out says nothing.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
