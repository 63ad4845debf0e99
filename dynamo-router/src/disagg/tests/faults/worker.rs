use dynamo_core::protocol::TokenId;

use super::world::{Fate, Hold};
use super::*;

/// What the model says next: it depends on the seed and all tokens so far.
pub(super) fn next_token(seed: u64, tokens: &[TokenId]) -> TokenId {
    let digest = tokens.iter().fold(seed, |digest, token| {
        (digest ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    u32::try_from(digest % 25).unwrap()
}

/// The answer that nothing disturbs.
pub(super) fn reference(request: &GenerateRequest) -> (Vec<TokenId>, FinishReason) {
    let (sampling, prompt) = (&request.sampling, request.token_ids.len());
    let mut tokens = request.token_ids.to_vec();
    while tokens.len() < prompt + sampling.max_tokens as usize {
        let next = next_token(sampling.seed, &tokens);
        if sampling.stop_token_ids.contains(&next) {
            return (tokens.split_off(prompt), FinishReason::Stop);
        }
        tokens.push(next);
    }
    (tokens.split_off(prompt), FinishReason::Length)
}

/// Answers one call as its fate will have it.
pub(super) fn serve(
    world: &Arc<World>,
    ctx: Context,
    request: GenerateRequest,
) -> Result<ResponseStream<GenerateChunk>> {
    let call = (ctx.id().as_str().to_owned(), request.stage.clone());
    world.calls.lock().unwrap().push(call);
    let fate = world.fate(&request.stage);
    if let Fate::Refused(kind, is_unprocessed) = fate {
        let refused = failure(kind);
        return Err(if is_unprocessed { refused.unprocessed() } else { refused });
    }
    let (sender, stream) = ResponseStream::channel(&ctx, 4);
    let world = Arc::clone(world);
    let call = Call { world: Arc::clone(&world), ctx, request, fate, said: 0 };
    world.tasks.spawn(async move {
        let ctx = call.ctx.clone();
        let outcome = ctx.bound(call.run(&sender)).await;
        sender.settle(outcome);
    });
    Ok(stream)
}

struct Call {
    world: Arc<World>,
    ctx: Context,
    request: GenerateRequest,
    fate: Fate,
    /// Chunks said so far.
    said: usize,
}

impl Call {
    async fn run(mut self, sender: &ResponseSender<GenerateChunk>) -> Result<()> {
        self.world.pause().await;
        match self.request.stage.clone() {
            Stage::Prefill => self.prefill(sender).await,
            Stage::Decode { ticket, first_token } => {
                self.meets_its_fate().await?;
                self.pull(&ticket, first_token).await?;
                let has_report = self.world.below(4) > 0;
                if has_report {
                    sender.send(pulled()).await?;
                    self.said += 1;
                }
                self.decode(sender, Some(first_token)).await
            }
            Stage::Full => self.decode(sender, None).await,
        }
    }

    async fn prefill(self, sender: &ResponseSender<GenerateChunk>) -> Result<()> {
        self.meets_its_fate().await?;
        let (sampling, prompt) = (&self.request.sampling, self.request.token_ids.to_vec());
        let (tokens, finish) = reference(&self.request);
        let usage = Usage {
            prompt_tokens: count(&prompt),
            completion_tokens: count(&tokens[..tokens.len().min(1)]),
            ..Usage::default()
        };
        let chunk = GenerateChunk {
            token_ids: tokens[..tokens.len().min(1)].to_vec(),
            usage: Some(usage),
            ..GenerateChunk::default()
        };
        if tokens.is_empty() || sampling.max_tokens == 1 {
            return sender.send(GenerateChunk { finish: Some(finish), ..chunk }).await;
        }
        if self.fate == Fate::NoTicket {
            return sender.send(chunk).await;
        }
        let (hold, settled) = self.world.stage(prompt, tokens[0]);
        let version = u8::from(self.fate != Fate::BadTicket);
        let ticket = [&[version][..], &hold.ticket.to_le_bytes()].concat();
        let hold = (self.fate != Fate::StaleTicket).then_some(hold);
        let ticket = Some(HandoffTicket::new(ticket));
        sender.send(GenerateChunk { ticket, ..chunk }).await?;
        self.hold(hold, settled).await
    }

    /// Holds what is staged until it is pulled, or its time is over.
    async fn hold(
        &self,
        hold: Option<Hold>,
        settled: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<()> {
        match self.fate {
            Fate::Lapses => self.world.pause().await,
            Fate::FailsLate => {
                self.world.pause().await;
                return Err(failure(ErrorKind::Unavailable));
            }
            Fate::StaleTicket => tokio::time::sleep(HOLD_TTL).await,
            _ => {
                // Pulled, or over.
                let _ = tokio::time::timeout(HOLD_TTL, settled).await;
            }
        }
        drop(hold);
        Ok(())
    }

    async fn pull(&self, ticket: &HandoffTicket, first_token: TokenId) -> Result<()> {
        let Some((&1, number)) = ticket.as_bytes().split_first() else {
            let kinds = [ErrorKind::Protocol, ErrorKind::InvalidArgument];
            let kind = kinds[self.world.below(2)];
            return Err(Error::new(kind, "ticket of another version"));
        };
        let number = u64::from_le_bytes(number.try_into().unwrap());
        let is_ours = self.world.look(number, |staged| {
            staged.prompt == *self.request.token_ids && staged.first_token == first_token
        });
        match is_ours {
            Some(true) => {}
            Some(false) => self.world.wrong("a ticket is for another prompt"),
            None => return Err(Error::new(ErrorKind::NotFound, "hold has ended")),
        }
        self.world.pause().await;
        if !self.world.pulled(number) {
            return Err(Error::new(ErrorKind::Unavailable, "owner is gone"));
        }
        Ok(())
    }

    /// Says the tokens of the answer one by one, behind the first one if that was said elsewhere.
    async fn decode(
        &mut self,
        sender: &ResponseSender<GenerateChunk>,
        first: Option<TokenId>,
    ) -> Result<()> {
        let (tokens, mut finish) = reference(&self.request);
        let mut spoken = 0;
        for token in &tokens {
            spoken += 1;
            if first.is_some() && spoken == 1 {
                assert_eq!(first, Some(*token));
                continue;
            }
            self.meets_its_fate().await?;
            if matches!(self.fate, Fate::Ends(said) if said <= self.said) {
                return Ok(());
            }
            let token_ids = vec![*token];
            sender.send(GenerateChunk { token_ids, ..GenerateChunk::default() }).await?;
            self.said += 1;
            if self.ctx.is_stopped() {
                finish = FinishReason::Length;
                break;
            }
            self.world.pause().await;
        }
        let usage = Usage {
            prompt_tokens: count(&self.request.token_ids),
            completion_tokens: spoken,
            ..Usage::default()
        };
        let (finish, usage) = (Some(finish), Some(usage));
        sender.send(GenerateChunk { finish, usage, ..GenerateChunk::default() }).await?;
        match self.fate {
            Fate::FailsAtTheEnd => Err(failure(ErrorKind::Unavailable)),
            _ => Ok(()),
        }
    }

    async fn meets_its_fate(&self) -> Result<()> {
        match self.fate {
            Fate::Fails(said, kind) if said <= self.said => Err(failure(kind)),
            Fate::Silent(said) if said <= self.said => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

fn failure(kind: ErrorKind) -> Error {
    let error = Error::new(kind, "as fate will have it");
    match kind {
        ErrorKind::Overloaded => error.with_retry_after(Duration::from_millis(300)),
        _ => error,
    }
}

pub(super) fn count(tokens: &[TokenId]) -> u32 {
    u32::try_from(tokens.len()).unwrap()
}

pub(super) const HOLD_TTL: Duration = Duration::from_secs(30);
