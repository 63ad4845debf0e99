use std::time::Duration;

use dynamo_core::protocol::{FinishReason, GenerateChunk, GenerateRequest, Stage, Usage};
use dynamo_core::{Context, Error, ErrorKind, ResponseStream, Result};

use super::report::Report;
use super::{Called, PrefillDecode, Prefilled, call};
use crate::router::Decision;

/// One request on its way from the first token to the last.
pub(super) struct Flow {
    engine: PrefillDecode,
    ctx: Context,
    report: Report,
    phase: Phase,
    /// The prefill's counts; the decode worker knows only its own.
    usage: Usage,
}

enum Phase {
    /// The first chunk waits to be emitted.
    First(Box<Prefilled>),
    /// The first chunk is out; a decode worker has to be found.
    HandOff(Box<Prefilled>),
    /// A decode worker streams.
    Decode(Box<Decoding>),
    /// The last chunk is out; the worker's stream ends by itself.
    Ending(Box<(ResponseStream<GenerateChunk>, Decision)>),
    Over,
}

struct Decoding {
    /// A chunk that arrived with the choice of the worker.
    first: Option<GenerateChunk>,
    stream: ResponseStream<GenerateChunk>,
    decision: Decision,
}

impl Flow {
    pub(super) fn new(
        engine: PrefillDecode,
        ctx: Context,
        report: Report,
        first: Prefilled,
    ) -> Self {
        let prompt_tokens = u32::try_from(first.request.token_ids.len()).unwrap_or(u32::MAX);
        let unknown = Usage { prompt_tokens, ..Usage::default() };
        let usage = Usage { completion_tokens: 0, ..first.chunk.usage.unwrap_or(unknown) };
        let phase = Phase::First(Box::new(first));
        Self { engine, ctx, report, phase, usage }
    }

    /// Returns the next chunk of the answer.
    pub(super) async fn next(&mut self) -> Option<Result<GenerateChunk>> {
        let step = self.step().await;
        match &step {
            Some(Ok(chunk)) => self.report.chunk(chunk),
            Some(Err(error)) => self.report.failed(error),
            None => {}
        }
        step
    }

    async fn step(&mut self) -> Option<Result<GenerateChunk>> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Over) {
                Phase::Over => return None,
                Phase::First(prefilled) => return Some(self.emit_first(prefilled)),
                Phase::Ending(mut ending) => {
                    // The answer is complete whatever this says: it only spares the worker a kill.
                    let _ = tokio::time::timeout(ENDING_MAX, ending.0.next()).await;
                    return None;
                }
                // Whoever asks for an early end needs no decode worker for it.
                Phase::HandOff(_) if self.ctx.is_stopped() => {
                    let finish = Some(FinishReason::Length);
                    return Some(Ok(
                        self.emit(GenerateChunk { finish, ..GenerateChunk::default() })
                    ));
                }
                Phase::HandOff(prefilled) => match self.hand_off(*prefilled).await {
                    Ok(decoding) => self.phase = Phase::Decode(Box::new(decoding)),
                    Err(error) => return Some(Err(error)),
                },
                Phase::Decode(mut decoding) => {
                    let next = match decoding.first.take() {
                        Some(chunk) => Some(Ok(chunk)),
                        None => decoding.stream.next().await,
                    };
                    match next {
                        Some(Ok(chunk)) => {
                            decoding.decision.booking.progress(chunk.token_ids.len());
                            self.phase = match chunk.finish {
                                None => Phase::Decode(decoding),
                                Some(_) => {
                                    Phase::Ending(Box::new((decoding.stream, decoding.decision)))
                                }
                            };
                            return Some(Ok(self.emit(chunk)));
                        }
                        Some(Err(error)) => return Some(Err(error)),
                        None => {
                            let worker = decoding.decision.worker;
                            let message = format!("decode worker {worker} ended without a reason");
                            return Some(Err(Error::internal(message)));
                        }
                    }
                }
            }
        }
    }

    fn emit_first(&mut self, prefilled: Box<Prefilled>) -> Result<GenerateChunk> {
        let chunk = prefilled.chunk.clone();
        match (&chunk.ticket, chunk.token_ids.last(), chunk.finish) {
            (_, _, Some(_)) => {
                self.phase = Phase::Ending(Box::new((prefilled.stream, prefilled.decision)));
            }
            (Some(_), Some(_), None) => self.phase = Phase::HandOff(prefilled),
            _ => {
                let worker = prefilled.decision.worker;
                let message = format!("prefill worker {worker} gave neither an end nor a ticket");
                return Err(Error::internal(message));
            }
        }
        Ok(self.emit(GenerateChunk { ticket: None, usage: None, ..chunk }))
    }

    /// Finds a decode worker that pulls the blocks, and lets go of the prefill worker then.
    async fn hand_off(&mut self, prefilled: Prefilled) -> Result<Decoding> {
        let Prefilled { request, chunk, stream: hold, decision: prefill } = prefilled;
        let (Some(ticket), Some(&first_token)) = (chunk.ticket, chunk.token_ids.last()) else {
            return Err(Error::internal("a hand-off has a ticket and a token"));
        };
        let request: GenerateRequest = request.with_stage(Stage::Decode { ticket, first_token });
        let (engine, report) = (&self.engine, &mut self.report);
        let called = call(&engine.decode, &self.ctx, &request, engine.attempts_max, |decision| {
            report.decode(decision);
        });
        let Called { chunk, stream, decision } = called.await.map_err(of_the_hand_off)?;
        // The blocks have arrived: what the prefill worker held may go.
        drop((hold, prefill));
        Ok(Decoding { first: Some(chunk), stream, decision })
    }

    /// Completes a chunk with the counts of the whole answer.
    fn emit(&mut self, mut chunk: GenerateChunk) -> GenerateChunk {
        let tokens = u32::try_from(chunk.token_ids.len()).unwrap_or(u32::MAX);
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(tokens);
        chunk.usage = chunk.finish.map(|_| self.usage);
        chunk
    }
}

/// Says a decode worker's refusal in words that blame neither the request nor its client: the
/// request was good enough for a prefill worker, and the ticket is the graph's own.
fn of_the_hand_off(error: Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::NotFound => ErrorKind::Unavailable,
        ErrorKind::InvalidArgument | ErrorKind::Protocol => ErrorKind::Internal,
        _ => return error,
    };
    Error::new(kind, "hand-off to a decode worker").with_source(error)
}

/// A worker ends its stream right after its last chunk; one that does not is not waited for.
const ENDING_MAX: Duration = Duration::from_secs(1);
