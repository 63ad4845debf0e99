//! From the prefill worker to a decode worker, by the ticket.

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, Stage};
use dynamo_core::{Context, Error, ErrorKind, ResponseStream, Result};

use super::attempt::{Answering, Asked, kept};
use super::journey::{Journey, Role, Zone};

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
        let Answering { chunk, stream: mut hold, mut decision } = prefilled;
        let (Some(ticket), Some(&first_token)) = (chunk.ticket, chunk.token_ids.last()) else {
            return Err(Error::internal("a hand-off has a ticket and a token"));
        };
        let half = request.with_stage(Stage::Decode { ticket, first_token });
        let instance = decision.worker.instance;
        let zone = self.zone(instance);
        let near = zone.as_ref().map(Zone::preference);
        let asked = Asked { role: Role::Decode, request: &half, near: near.as_ref() };
        let pulled = async {
            tokio::select! {
                biased;
                answering = self.ask(ctx, asked, None) => answering,
                error = lost(&mut hold) => Err(error),
            }
        };
        // The blocks are on the prefill worker for as long as that takes.
        let answering = kept(&mut decision.booking, pulled).await;
        // That decode workers have no room says nothing of what was prefilled for them.
        if answering.as_ref().is_err_and(|error| error.kind() != ErrorKind::Overloaded) {
            self.tried(|tried| {
                tried.prefill.push(instance);
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
