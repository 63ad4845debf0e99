use std::sync::Arc;
use std::time::Instant;

use dynamo_core::protocol::GenerateRequest;
use dynamo_core::{Context, Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::dispatch::Dispatch;
use super::owned::OwnedConstraints;
use super::requests::{EntryId, Leave};
use crate::router::{Decision, KvRouter};

/// What the queue keeps of a request.
pub(super) struct Waiter {
    pub(super) ctx: Context,
    pub(super) request: GenerateRequest,
    pub(super) constraints: OwnedConstraints,
    pub(super) answer: oneshot::Sender<Result<Decision>>,
}

impl Waiter {
    pub(super) fn answer(self, router: &KvRouter, answer: Result<Decision>) {
        // One that has just left needs no answer: it goes nowhere, and its booking is released here.
        if let Err(Ok(decision)) = self.answer.send(answer) {
            router.refused(&self.request, &decision);
        }
    }
}

/// A request in the queue; leaves it when dropped.
pub(super) struct Waiting {
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) id: EntryId,
    pub(super) expires: Instant,
    /// A decision that nobody takes is dropped with it, and its booking is released.
    pub(super) answer: oneshot::Receiver<Result<Decision>>,
}

impl Waiting {
    /// Waits for the answer, or for the end of the request or of its patience.
    pub(super) async fn answered(mut self, ctx: &Context) -> Result<Decision> {
        let dispatch = Arc::clone(&self.dispatch);
        let why = tokio::select! {
            biased;
            answer = &mut self.answer => return taken(ctx, answer),
            // Also if it is killed.
            () = ctx.stopped() => Leave::Cancelled,
            () = tokio::time::sleep_until(self.expires.into()) => Leave::Expired,
            never = dispatch.look_out() => match never {},
        };
        if let Some(too_long) = self.dispatch.leave(self.id, why) {
            return Err(over(ctx).unwrap_or(too_long));
        }
        // Its turn has just come: the answer is being made.
        taken(ctx, (&mut self.answer).await)
    }
}

/// Says that a request is over, if it is, or is to end: one that has not begun is over then.
pub(super) fn over(ctx: &Context) -> Option<Error> {
    let stopped = || {
        let message = format!("request {} was stopped before it began", ctx.id());
        Error::new(ErrorKind::Cancelled, message).unprocessed()
    };
    ctx.check().err().or_else(|| ctx.is_stopped().then(stopped))
}

/// Takes an answer, unless the request is over meanwhile.
fn taken(
    ctx: &Context,
    answer: Result<Result<Decision>, oneshot::error::RecvError>,
) -> Result<Decision> {
    let lost = |_| Error::internal(format!("routing request {} panicked", ctx.id()));
    let decision = answer.map_err(lost)??;
    ctx.check().map(|()| decision)
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.dispatch.leave(self.id, Leave::Cancelled);
    }
}
