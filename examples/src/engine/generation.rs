use std::sync::Arc;

use dynamo_core::protocol::GenerateRequest;
use dynamo_core::protocol::{FinishReason, GenerateChunk, LoadedTokens, Sampling, TokenId, Usage};
use dynamo_core::{Context, Error, ErrorKind, Result};
use dynamo_kv::TokenSequence;

use super::load::Share;
use super::sequence::SequenceKv;
use super::{Inner, Progress, is_stop};
use crate::model::{self, sample};

/// One request being computed on a blocking thread.
pub(super) struct Generation {
    worker: Arc<Inner>,
    ctx: Context,
    sampling: Sampling,
    sequence: TokenSequence,
    kv: SequenceKv,
    prompt_tokens: usize,
    cached_tokens: usize,
    loaded: LoadedTokens,
    share: Share,
}

impl Generation {
    pub(super) fn new(
        worker: &Arc<Inner>,
        ctx: &Context,
        request: &GenerateRequest,
        sequence: TokenSequence,
        kv: SequenceKv,
        share: Share,
    ) -> Self {
        Self {
            worker: Arc::clone(worker),
            ctx: ctx.clone(),
            sampling: request.sampling.clone(),
            prompt_tokens: sequence.tokens().len(),
            cached_tokens: kv.tokens(),
            loaded: kv.loaded(),
            sequence,
            kv,
            share,
        }
    }

    /// Computes what the cache lacks of the prompt and returns the first token.
    pub(super) fn prefill(&mut self) -> Result<TokenId> {
        self.kv.reserve(self.prompt_tokens)?;
        let chunk_tokens = self.worker.options.prefill_chunk_tokens.max(1);
        let mut logits = Vec::new();
        self.report_progress();
        while self.kv.tokens() < self.prompt_tokens {
            self.ctx.check()?;
            let end = self.prompt_tokens.min(self.kv.tokens() + chunk_tokens);
            logits = self.forward(end)?;
            self.report_progress();
        }
        Ok(self.sample(&logits))
    }

    /// Generates after `token`, which is emitted first if `emit` says so.
    pub(super) fn decode(
        &mut self,
        mut token: TokenId,
        mut emit: bool,
        send: &mut dyn FnMut(GenerateChunk) -> Result<()>,
    ) -> Result<()> {
        let finish = loop {
            if self.is_stop(token) {
                break FinishReason::Stop;
            }
            self.sequence.push(token);
            if emit {
                send(GenerateChunk { token_ids: vec![token], ..GenerateChunk::default() })?;
            }
            emit = true;
            if self.generated() >= self.sampling.max_tokens as usize
                || self.sequence.tokens().len() >= self.worker.model.config().context
                || self.ctx.is_stopped()
            {
                break FinishReason::Length;
            }
            self.ctx.check()?;
            let end = self.sequence.tokens().len();
            self.kv.reserve(end)?;
            let logits = self.forward(end)?;
            token = self.sample(&logits);
        };
        send(GenerateChunk {
            finish: Some(finish),
            usage: Some(self.usage()),
            ..GenerateChunk::default()
        })
    }

    pub(super) fn is_stop(&self, token: TokenId) -> bool {
        is_stop(self.worker.model.config(), &self.sampling, token)
    }

    pub(super) fn usage(&self) -> Usage {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage {
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: Some(count(self.cached_tokens)),
            completion_tokens: count(self.generated()),
            loaded: self.loaded,
        }
    }

    pub(super) fn into_kv(self) -> SequenceKv {
        self.kv
    }

    fn generated(&self) -> usize {
        self.sequence.tokens().len() - self.prompt_tokens
    }

    /// Computes the tokens from where the KV ends up to `end`; returns the logits of the last one.
    fn forward(&mut self, end: usize) -> Result<Vec<f32>> {
        let start = self.kv.tokens();
        let tokens = &self.sequence.tokens()[start..end];
        let logits = self.worker.model.forward(tokens, start, &mut self.kv).map_err(failed)?;
        self.kv.commit(end, self.sequence.keys());
        Ok(logits)
    }

    /// Chooses the next token. The random numbers depend on the seed and the position alone, so
    /// that a stream goes on unchanged on another worker.
    fn sample(&self, logits: &[f32]) -> TokenId {
        let position = self.sequence.tokens().len() as u64;
        sample(logits, self.sampling.temperature, self.sampling.top_p, self.sampling.seed, position)
    }

    fn report_progress(&mut self) {
        self.share.set_prefill(self.prompt_tokens.saturating_sub(self.kv.tokens()));
        (self.worker.options.on_progress)(&Progress {
            request: self.ctx.id(),
            tokens_done: self.kv.tokens(),
            tokens_total: self.prompt_tokens,
        });
    }
}

fn failed(error: model::Error) -> Error {
    Error::new(ErrorKind::Internal, "forward pass").with_source(error)
}
