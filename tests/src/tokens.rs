//! Answers that can be told right from wrong: each token follows from those before it.

use std::time::Duration;

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling, TokenId,
    Usage,
};
use dynamo_core::{Context, Engine, ResponseStream, engine_fn};
use futures::{StreamExt, stream};

/// Returns a request for `count` tokens behind a prompt made from `seed`.
pub fn request(seed: u32, count: u32) -> GenerateRequest {
    let sampling = Sampling { max_tokens: count, ..Sampling::default() };
    GenerateRequest::new(CacheNamespace::model("m"), BlockSize::DEFAULT, prompt(seed), sampling)
}

/// Answers with the tokens that follow the prompt, one each `pace`.
pub fn engine(pace: Duration) -> impl Engine<Request = GenerateRequest, Response = GenerateChunk> {
    engine_fn(move |ctx: Context, request: GenerateRequest| async move {
        let prompt = count(request.token_ids.len());
        let left = request.sampling.max_tokens;
        let last = *request.token_ids.last().unwrap_or(&0);
        let tokens = stream::unfold((last, prompt), |(last, at)| async move {
            let next = follow(last, at);
            Some((next, (next, at + 1)))
        });
        let tokens = tokens.take(left as usize).then(move |token| async move {
            tokio::time::sleep(pace).await;
            Ok(GenerateChunk { token_ids: vec![token], ..GenerateChunk::default() })
        });
        let usage = Usage {
            prompt_tokens: prompt,
            cached_tokens: Some(0),
            completion_tokens: left,
            ..Usage::default()
        };
        let (finish, usage) = (Some(FinishReason::Length), Some(usage));
        let end = GenerateChunk { finish, usage, ..GenerateChunk::default() };
        Ok(ResponseStream::new(&ctx, tokens.chain(stream::iter([Ok(end)]))))
    })
}

/// Compares an answer with what it has to be.
#[derive(Debug)]
pub struct Checker {
    expected: Vec<TokenId>,
    next: usize,
    end: Option<Usage>,
    prompt: u32,
    wrong: Wrong,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wrong {
    /// Tokens that came again.
    pub duplicate: u64,
    /// Tokens that did not come.
    pub missing: u64,
    /// Tokens that are not of this answer, and counts that are not right.
    pub other: u64,
}

impl Checker {
    /// Expects the answer to [`request`].
    pub fn new(seed: u32, count: u32) -> Self {
        let prompt = prompt(seed);
        let (mut last, mut expected) = (prompt[prompt.len() - 1], Vec::new());
        let prompt = self::count(prompt.len());
        for at in prompt..prompt + count {
            last = follow(last, at);
            expected.push(last);
        }
        Self { expected, next: 0, end: None, prompt, wrong: Wrong::default() }
    }

    /// Takes note of what came.
    pub fn take(&mut self, chunk: &GenerateChunk) {
        for token in &chunk.token_ids {
            match self.expected.iter().position(|expected| expected == token) {
                _ if self.end.is_some() => self.wrong.other += 1,
                Some(at) if at < self.next => self.wrong.duplicate += 1,
                Some(at) => {
                    self.wrong.missing += (at - self.next) as u64;
                    self.next = at + 1;
                }
                None => self.wrong.other += 1,
            }
        }
        if chunk.finish.is_some() {
            self.wrong.other += u64::from(self.end.is_some());
            self.end = Some(chunk.usage.unwrap_or_default());
        }
    }

    /// Returns what is wrong with an answer that has ended.
    pub fn finish(mut self) -> Wrong {
        let completion_tokens = count(self.expected.len());
        let usage = Usage {
            prompt_tokens: self.prompt,
            cached_tokens: Some(0),
            completion_tokens,
            ..Usage::default()
        };
        self.wrong.missing += (self.expected.len() - self.next) as u64;
        self.wrong.other += u64::from(self.end != Some(usage));
        self.wrong
    }
}

fn prompt(seed: u32) -> Vec<TokenId> {
    (0..20).map(|at| follow(seed, at)).collect()
}

/// The token at a position, told by the one before it; no two of an answer are the same, but by a
/// chance that shows.
fn follow(last: TokenId, at: u32) -> TokenId {
    let mixed = (u64::from(last) << 32 | u64::from(at)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    TokenId::try_from((mixed ^ (mixed >> 29)) >> 33).unwrap_or_default()
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(token: TokenId) -> GenerateChunk {
        GenerateChunk { token_ids: vec![token], ..GenerateChunk::default() }
    }

    #[tokio::test]
    async fn what_the_engine_says_is_right_and_what_is_lost_or_said_twice_is_told() {
        let stream = engine(Duration::ZERO).generate(Context::new(), request(7, 50)).await;
        let chunks = stream.unwrap().collect().await.unwrap();
        let wrong = |order: &[usize]| {
            let mut checker = Checker::new(7, 50);
            order.iter().for_each(|at| checker.take(&chunks[*at]));
            checker.finish()
        };
        let all: Vec<_> = (0..=50).collect();
        assert_eq!(wrong(&all), Wrong::default());
        let twice = [&all[..20], &all[18..]].concat();
        assert_eq!(wrong(&twice), Wrong { duplicate: 2, missing: 0, other: 0 });
        let lost = [&all[..20], &all[23..]].concat();
        assert_eq!(wrong(&lost), Wrong { duplicate: 0, missing: 3, other: 0 });
        assert_eq!(wrong(&all[..50]), Wrong { duplicate: 0, missing: 0, other: 1 });
        let mut checker = Checker::new(8, 50);
        checker.take(&chunk(chunks[0].token_ids[0]));
        assert_eq!(checker.finish(), Wrong { duplicate: 0, missing: 50, other: 2 });
    }
}
