//! From the prefill worker to a decode worker, by the ticket.

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, Stage};
use dynamo_core::{Context, Error, ErrorKind, ResponseStream, Result};

use super::attempt::Answering;
use super::journey::{Journey, Role};

impl Journey {
    /// Finds a decode worker that pulls what `prefilled` holds, and lets go of it then.
    ///
    /// The ticket is bound to nobody: a decode worker that fails before its first chunk is followed
    /// by another one with the same ticket, as long as the hold lives.
    pub(super) async fn hand_off(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        prefilled: Answering,
    ) -> Result<Answering> {
        let Answering { chunk, stream: mut hold, decision } = prefilled;
        let (Some(ticket), Some(&first_token)) = (chunk.ticket, chunk.token_ids.last()) else {
            return Err(Error::internal("a hand-off has a ticket and a token"));
        };
        let half = request.with_stage(Stage::Decode { ticket, first_token });
        let answering = tokio::select! {
            biased;
            answering = self.ask(ctx, Role::Decode, &half, None) => answering,
            error = lost(&mut hold) => Err(error),
        };
        // That decode workers have no room says nothing of what was prefilled for them.
        if answering.as_ref().is_err_and(|error| error.kind() != ErrorKind::Overloaded) {
            self.tried(|tried| {
                tried.prefill.push(decision.worker.instance);
                tried.has_handoff_failed = true;
            });
        }
        // Here the hold ends: the blocks have arrived, or nobody else comes for them.
        answering
    }
}

/// Waits for the prefill worker to fail. That its stream ends is no failure: the blocks were pulled,
/// or their time is over, and whoever pulls them knows which.
async fn lost(hold: &mut ResponseStream<GenerateChunk>) -> Error {
    while let Some(word) = hold.next().await {
        if let Err(error) = word {
            return error;
        }
    }
    std::future::pending().await
}
