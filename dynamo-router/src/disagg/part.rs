//! One part of an answer, from its first token to its last: the whole of it if nothing fails.

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{FinishReason, GenerateChunk, GenerateRequest, Usage};
use dynamo_core::{Context, Error, ResponseStream, Result};
use futures::stream;

use super::attempt::{Answering, heard};
use super::failure;
use super::journey::{Journey, Role};
use super::prefill::Begun;
use super::report::Report;

/// One part of the answer on its way.
pub(super) struct Part {
    journey: Arc<Journey>,
    ctx: Context,
    request: GenerateRequest,
    phase: Phase,
    /// What a prefill worker has counted; the decode worker of a hand-off knows only its own.
    prefilled: Option<Usage>,
    /// Tokens emitted.
    tokens: u32,
}

enum Phase {
    /// A prefill worker's first chunk waits to be emitted.
    First(Box<Answering>),
    /// It is out; a decode worker has to be found.
    HandOff(Box<Answering>),
    /// A decode worker streams; a chunk of its has arrived with the choice of it.
    Decode(Box<Answering>, Option<GenerateChunk>),
    /// The last chunk is out; the worker's stream ends by itself.
    Ending(Box<Answering>),
    /// An early end was asked for before there was a worker to go on: it ends here.
    Stopped,
    Over,
}

impl Part {
    /// Begins a part of the answer; it is there once its first chunk is.
    pub(super) async fn begin(
        journey: &Arc<Journey>,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        // In a box: all that waits for a part would have its size.
        let begun = Box::pin(journey.prefill(&ctx, &request)).await;
        if begun.is_ok() {
            journey.report(Report::first_chunk);
        }
        let (phase, prefilled) = match begun {
            Err(error) if failure::was_stopped(&ctx, &error) => (Phase::Stopped, None),
            Err(error) => return Err(failure::of_the_start(&ctx, error)),
            Ok(Begun::Remote(answering)) => {
                let usage = answering.chunk.usage.unwrap_or_else(|| unknown(&request));
                (Phase::First(Box::new(answering)), Some(usage))
            }
            Ok(Begun::Local(mut answering)) => {
                let chunk = std::mem::take(&mut answering.chunk);
                (Phase::Decode(Box::new(answering), Some(chunk)), None)
            }
        };
        let (journey, items_ctx) = (Arc::clone(journey), ctx.clone());
        let part = Self { journey, ctx: items_ctx, request, phase, prefilled, tokens: 0 };
        let items =
            stream::unfold(
                part,
                |mut part| async move { part.next().await.map(|chunk| (chunk, part)) },
            );
        Ok(ResponseStream::new(&ctx, items))
    }

    async fn next(&mut self) -> Option<Result<GenerateChunk>> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Over) {
                Phase::Over => return None,
                Phase::First(prefilled) => {
                    let chunk = prefilled.chunk.clone();
                    self.phase = match chunk.finish {
                        Some(_) => Phase::Ending(prefilled),
                        None => Phase::HandOff(prefilled),
                    };
                    return Some(Ok(self.emit(chunk)));
                }
                // Whoever asks for an early end needs no decode worker for it.
                Phase::HandOff(_) if self.ctx.is_stopped() => self.phase = Phase::Stopped,
                Phase::Stopped => {
                    let finish = Some(FinishReason::Length);
                    let last = GenerateChunk { finish, ..GenerateChunk::default() };
                    return Some(Ok(self.emit(last)));
                }
                Phase::HandOff(prefilled) => {
                    match self.journey.hand_off(&self.ctx, &self.request, *prefilled).await {
                        Ok(mut answering) => {
                            let chunk = std::mem::take(&mut answering.chunk);
                            self.phase = Phase::Decode(Box::new(answering), Some(chunk));
                        }
                        Err(error) if failure::was_stopped(&self.ctx, &error) => {
                            self.phase = Phase::Stopped;
                        }
                        Err(error) => return Some(Err(failure::of_the_rest(&self.ctx, error))),
                    }
                }
                Phase::Decode(answering, first) => {
                    return Some(self.decode(answering, first).await);
                }
                Phase::Ending(mut ending) => {
                    // The answer is complete whatever this says: it only spares the worker a kill.
                    let _ = tokio::time::timeout(ENDING_MAX, ending.stream.next()).await;
                    return None;
                }
            }
        }
    }

    async fn decode(
        &mut self,
        mut answering: Box<Answering>,
        first: Option<GenerateChunk>,
    ) -> Result<GenerateChunk> {
        let Answering { stream, decision, .. } = &mut *answering;
        let silence_max = self.journey.engine.config.silence_max;
        let word = match first {
            Some(chunk) => Ok(chunk),
            None => heard(&mut decision.booking, silence_max, word(stream)).await,
        };
        let chunk = word.map_err(|error| {
            let instance = decision.worker.instance;
            self.journey.tried(|tried| tried.failed(Role::Decode, instance, &error));
            failure::of_the_rest(&self.ctx, error)
        })?;
        decision.booking.progress(chunk.token_ids.len());
        // What is said before the end is not all there is to say, and would count as one request each.
        if let (None, Some(_), Some(usage)) = (self.prefilled, chunk.finish, &chunk.usage) {
            self.journey.observe_usage(Role::Decode, &self.request, decision, usage);
        }
        if let (Some(_), Some(handoff)) = (self.prefilled, &chunk.handoff) {
            self.journey.observe_handoff(&self.request, handoff);
        }
        self.phase = match chunk.finish {
            Some(_) => Phase::Ending(answering),
            None => Phase::Decode(answering, None),
        };
        Ok(self.emit(chunk))
    }

    /// Completes a chunk with the counts of this part, and keeps the ticket inside the graph.
    fn emit(&mut self, mut chunk: GenerateChunk) -> GenerateChunk {
        let tokens = u32::try_from(chunk.token_ids.len()).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(tokens);
        chunk.ticket = None;
        if chunk.finish.is_some() {
            let counted = self.prefilled.or(chunk.usage).unwrap_or_else(|| unknown(&self.request));
            chunk.usage = Some(Usage { completion_tokens: self.tokens, ..counted });
        }
        chunk
    }
}

/// Returns the next chunk; an answer without a last one has no end.
async fn word(stream: &mut ResponseStream<GenerateChunk>) -> Result<GenerateChunk> {
    let ended = || Err(Error::internal("decode worker ended without a reason"));
    stream.next().await.unwrap_or_else(ended)
}

/// The counts of a worker that has told none.
fn unknown(request: &GenerateRequest) -> Usage {
    let prompt_tokens = u32::try_from(request.token_ids.len()).unwrap_or(u32::MAX);
    Usage { prompt_tokens, ..Usage::default() }
}

/// A worker ends its stream right after its last chunk; one that does not is not waited for.
const ENDING_MAX: Duration = Duration::from_secs(1);
