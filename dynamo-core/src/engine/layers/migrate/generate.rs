use super::{Progress, Rest, Resumable};
use crate::protocol::{
    FinishReason, GenerateChunk, GenerateRequest, LoadedTokens, Sampling, Stage, TokenId, Usage,
};

/// The whole work can be resumed; the parts of a hand-off cannot, because they are tied to blocks
/// that one worker holds.
///
/// A resumed answer is that of one worker with greedy sampling, and with any sampling whose random
/// numbers depend on the seed and a token's position alone: the request for the rest has the same
/// seed, and positions count from the start of the prompt. Where a sampler draws otherwise, the
/// rest may not be the one that was lost; and one that starts each request's random numbers anew
/// from the seed draws the rest with the numbers that drew its beginning.
impl Resumable for GenerateRequest {
    type Item = GenerateChunk;
    type Progress = GenerateProgress;

    fn progress(&self) -> Option<GenerateProgress> {
        (self.stage == Stage::Full).then(|| GenerateProgress {
            request: self.clone(),
            delivered: Vec::new(),
            before: 0,
            cached: None,
            has_handoff: false,
            is_finished: false,
        })
    }
}

/// What was delivered of the answer to a [`GenerateRequest`].
///
/// The rest is asked for with the tokens so far at the end of the prompt (and the hashes of the
/// blocks that these make), and as many fewer to generate. In what is delivered, `usage` counts
/// the prompt as the caller sent it and the tokens of all parts; its cached tokens are those that
/// the first worker to report them had found, of the caller's prompt; `None` if none did.
#[derive(Debug, Clone)]
pub struct GenerateProgress {
    request: GenerateRequest,
    delivered: Vec<TokenId>,
    /// Tokens delivered by the parts before the one that runs.
    before: usize,
    cached: Option<(u32, LoadedTokens)>,
    has_handoff: bool,
    is_finished: bool,
}

impl GenerateProgress {
    fn usage(&self, of_part: Usage) -> Usage {
        let prompt_tokens = match self.before {
            0 => of_part.prompt_tokens,
            _ => count(self.request.token_ids.len()),
        };
        let found = || Some((of_part.cached_tokens?, of_part.loaded));
        let (cached, loaded) = self.cached.or_else(found).unzip();
        Usage {
            prompt_tokens,
            cached_tokens: cached.map(|cached| cached.min(prompt_tokens)),
            completion_tokens: of_part.completion_tokens.saturating_add(count(self.before)),
            loaded: loaded.unwrap_or_default(),
        }
    }

    fn tokens_left(&self) -> u32 {
        self.request.sampling.max_tokens.saturating_sub(count(self.delivered.len()))
    }
}

impl Progress for GenerateProgress {
    type Request = GenerateRequest;
    type Item = GenerateChunk;

    fn deliver(&mut self, chunk: &mut GenerateChunk) {
        self.delivered.extend_from_slice(&chunk.token_ids);
        self.is_finished |= chunk.finish.is_some();
        if let Some(of_part) = chunk.usage {
            let usage = self.usage(of_part);
            self.cached = usage.cached_tokens.map(|cached| (cached, usage.loaded));
            chunk.usage = Some(usage);
        }
        if self.has_handoff {
            chunk.handoff = None;
        }
        self.has_handoff |= chunk.handoff.is_some();
    }

    fn rest(&mut self) -> Rest<GenerateRequest, GenerateChunk> {
        if self.is_finished {
            return Rest::Nothing(None);
        }
        self.before = self.delivered.len();
        let max_tokens = self.tokens_left();
        if max_tokens == 0 {
            self.is_finished = true;
            let prompt_tokens = count(self.request.token_ids.len());
            let usage = Usage { prompt_tokens, ..Usage::default() };
            let (finish, usage) = (Some(FinishReason::Length), Some(self.usage(usage)));
            return Rest::Nothing(Some(GenerateChunk {
                finish,
                usage,
                ..GenerateChunk::default()
            }));
        }
        if self.delivered.is_empty() {
            return Rest::Ask(self.request.clone());
        }
        let sampling = Sampling { max_tokens, ..self.request.sampling.clone() };
        let tokens: Vec<_> =
            self.request.token_ids.iter().chain(&self.delivered).copied().collect();
        let (namespace, block_size) =
            (self.request.namespace.clone(), self.request.blocks.block_size());
        Rest::Ask(GenerateRequest::new(namespace, block_size, tokens, sampling))
    }
}

/// A prompt and its answer are far below 2^32 tokens.
fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
