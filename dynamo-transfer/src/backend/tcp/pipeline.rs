use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use crate::error::Result;

/// What one half of a task hands to the other: a short line of what has been asked and not answered.
///
/// Both halves are polled together by [`run`](Self::run), so that neither has to wake the task for
/// the other one: waking a task that is running costs a trip through the scheduler.
pub(super) struct Pipeline<T> {
    state: Mutex<State<T>>,
    len_max: usize,
}

struct State<T> {
    line: VecDeque<T>,
    /// Nothing more will come.
    is_closed: bool,
    /// The half that answers has nothing to do.
    is_idle: bool,
    /// Something changed that the other half may wait for.
    has_changed: bool,
}

impl<T> Pipeline<T> {
    pub(super) fn new(len_max: usize) -> Self {
        let line = VecDeque::with_capacity(len_max);
        let state = State { line, is_closed: false, is_idle: false, has_changed: false };
        Self { state: Mutex::new(state), len_max }
    }

    /// Runs both halves until both have ended, or one has failed.
    pub(super) async fn run(
        &self,
        ask: impl Future<Output = Result<()>>,
        answer: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let (mut ask, mut answer) = (pin!(ask), pin!(answer));
        let mut is_asked = false;
        poll_fn(|cx| {
            loop {
                if !is_asked && let Poll::Ready(outcome) = ask.as_mut().poll(cx) {
                    outcome?;
                    is_asked = true;
                    self.lock().is_closed = true;
                }
                // Ends after the line is closed and empty.
                if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
                    return Poll::Ready(outcome);
                }
                if !std::mem::take(&mut self.lock().has_changed) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Waits until the line is not full.
    pub(super) async fn room(&self) {
        self.when(|state| (state.line.len() < self.len_max).then_some(())).await;
    }

    pub(super) fn push(&self, item: T) {
        // The other half is polled next.
        self.lock().line.push_back(item);
    }

    /// Waits for the next in line; none behind the last.
    pub(super) async fn next(&self) -> Option<T> {
        self.when(|state| {
            let item = state.line.pop_front();
            let is_idle = item.is_none();
            state.has_changed |= !is_idle || !state.is_idle;
            state.is_idle = is_idle;
            if is_idle && !state.is_closed { None } else { Some(item) }
        })
        .await
    }

    /// Tells whether all that was asked has been answered.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.is_idle && state.line.is_empty()
    }

    /// Waits for what the other half brings about.
    async fn when<R>(&self, mut ready: impl FnMut(&mut State<T>) -> Option<R>) -> R {
        poll_fn(|_| ready(&mut self.lock()).map_or(Poll::Pending, Poll::Ready)).await
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
