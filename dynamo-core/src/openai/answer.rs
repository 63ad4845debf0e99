//! What a server answers: events, one by one, into chunks.

use serde::Deserialize;
use serde_json::Value;

use super::error;
use super::tokens::TokenSource;
use super::transfer;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{FinishReason, GenerateChunk, GenerateRequest, Stage, TokenId, Usage};

/// What was read of the answer to one request.
pub(super) struct Reading {
    url: String,
    source: TokenSource,
    /// Tokens that end the answer and are no part of it.
    ends: Vec<TokenId>,
    /// A token that may be such an end: it is part of the answer if that goes on.
    held: Option<TokenId>,
    /// The token that the answer to a part of the work has to begin with, and that was told already.
    told: Option<TokenId>,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    prompt_tokens: usize,
    tokens: usize,
}

/// What one event says.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Tokens, perhaps none.
    Tokens(Vec<TokenId>),
    /// That there is no more.
    Done,
}

#[derive(Deserialize)]
struct Item {
    choices: Option<Vec<Choice>>,
    usage: Option<Counts>,
    error: Option<Value>,
    /// `error`, where the event is an error itself.
    object: Option<String>,
    message: Option<Value>,
    code: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    token_ids: Option<Vec<TokenId>>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
    /// The stop token, where one was asked for and came.
    stop_reason: Option<Value>,
}

#[derive(Deserialize)]
struct Logprobs {
    tokens: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Counts {
    prompt_tokens: u32,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

impl Reading {
    /// Reads what the server at `url` answers to `request`, with ids by `source` and `end_tokens` at
    /// the end of what the model says.
    pub(super) fn new(
        url: &str,
        source: TokenSource,
        end_tokens: &[TokenId],
        request: &GenerateRequest,
    ) -> Self {
        let sampling = &request.sampling;
        let own = if sampling.ignore_end { &[] } else { end_tokens };
        Self {
            url: url.to_owned(),
            source,
            ends: [own, &sampling.stop_token_ids].concat(),
            held: None,
            told: match request.stage {
                Stage::Decode { first_token, .. } => Some(first_token),
                Stage::Full | Stage::Prefill => None,
            },
            finish: None,
            usage: None,
            prompt_tokens: request.token_ids.len(),
            tokens: 0,
        }
    }

    /// Takes in the data of one event.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) if it cannot be read or has text without ids,
    /// and as the server says if it says an error.
    pub(super) fn take(&mut self, event: &[u8]) -> Result<Said> {
        if event.trim_ascii() == b"[DONE]" {
            return Ok(Said::Done);
        }
        let item: Item = serde_json::from_slice(event)
            .map_err(|error| self.protocol("event that cannot be read").with_source(error))?;
        if let Some(failed) = self.failure(&item) {
            return Err(if self.told.is_some() { transfer::not_pulled(failed) } else { failed });
        }
        if let Some(counts) = &item.usage {
            self.usage = Some(counts.usage());
        }
        let mut tokens = Vec::new();
        for choice in item.choices.into_iter().flatten() {
            self.take_choice(choice, &mut tokens)?;
        }
        self.tokens += tokens.len();
        if !tokens.is_empty()
            && let Some(told) = self.told.take()
        {
            transfer::take_first(told, &mut tokens)?;
        }
        Ok(Said::Tokens(tokens))
    }

    /// Returns the last chunk, now that there is no more to read.
    ///
    /// Fails with [`Unavailable`](ErrorKind::Unavailable) if the server has not said that the answer
    /// is over: it was lost, then; and as [`transfer::take_first`] does if a decode server has not said
    /// the token that it had to begin with.
    pub(super) fn end(&mut self) -> Result<GenerateChunk> {
        let Some(finish) = self.finish else {
            let message = format!("engine at {}: the answer broke off", self.url);
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        if let Some(told) = self.told {
            transfer::take_first(told, &mut Vec::new())?;
        }
        Ok(self.last(finish))
    }

    /// Returns the last chunk of an answer that is not read on.
    pub(super) fn stop(&mut self) -> GenerateChunk {
        // Whether it ends the answer is not known, and nobody minds a token less.
        self.held = None;
        self.last(FinishReason::Length)
    }

    /// Tells whether the server has said that the answer is over.
    pub(super) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    fn last(&mut self, finish: FinishReason) -> GenerateChunk {
        // What ended the answer is no part of it; what was merely the last token is.
        let held = self.held.take().filter(|_| finish != FinishReason::Stop);
        self.tokens += usize::from(held.is_some());
        let counted = Usage {
            prompt_tokens: count(self.prompt_tokens),
            completion_tokens: count(self.tokens),
            ..Usage::default()
        };
        GenerateChunk {
            token_ids: held.into_iter().collect(),
            finish: Some(finish),
            usage: Some(self.usage.unwrap_or(counted)),
            ..GenerateChunk::default()
        }
    }

    /// Returns the error that an event says, if it is one.
    fn failure(&self, item: &Item) -> Option<Error> {
        let what = format!("engine at {}", self.url);
        if let Some(object) = &item.error {
            return Some(error::of_object(&what, object));
        }
        if item.object.as_deref() != Some("error") {
            return None;
        }
        let object = serde_json::json!({ "message": item.message, "code": item.code });
        Some(error::of_object(&what, &object))
    }

    fn take_choice(&mut self, choice: Choice, tokens: &mut Vec<TokenId>) -> Result<()> {
        let new = self.ids(&choice)?;
        if self.finish.is_some() && !new.is_empty() {
            return Err(self.protocol("tokens behind the end of the answer"));
        }
        if !new.is_empty() {
            tokens.extend(self.held.take());
            tokens.extend(new);
            let last = tokens.last().copied();
            let stopped_by = choice.stop_reason.as_ref().and_then(Value::as_u64);
            let is_end = |token: &TokenId| {
                self.ends.contains(token) || stopped_by == Some(u64::from(*token))
            };
            self.held = last.filter(is_end);
            tokens.truncate(tokens.len() - usize::from(self.held.is_some()));
        }
        if let Some(reason) = &choice.finish_reason {
            self.finish = Some(self.reason(reason)?);
        }
        Ok(())
    }

    /// Returns the ids of the tokens in a delta.
    fn ids(&self, choice: &Choice) -> Result<Vec<TokenId>> {
        let text = choice.text.as_deref().unwrap_or_default();
        let ids = match &self.source {
            TokenSource::TokenIds | TokenSource::WithoutText => choice.token_ids.clone(),
            TokenSource::Logprobs => {
                let named = choice.logprobs.as_ref().and_then(|logprobs| logprobs.tokens.as_ref());
                named.map(|named| self.named(named)).transpose()?
            }
            TokenSource::Encode(_) if text.is_empty() => None,
            TokenSource::Encode(encode) => Some(encode(text)?),
        };
        match ids {
            // An end that says nothing has no ids.
            None if text.is_empty() => Ok(Vec::new()),
            None => Err(self.protocol(&format!(
                "text without token ids, which were asked for as {:?}",
                self.source
            ))),
            Some(ids) => Ok(ids),
        }
    }

    /// Reads tokens called `token_id:N`.
    fn named(&self, names: &[String]) -> Result<Vec<TokenId>> {
        let id = |name: &String| name.strip_prefix("token_id:")?.parse().ok();
        names
            .iter()
            .map(id)
            .collect::<Option<_>>()
            .ok_or_else(|| self.protocol("tokens that are not called token_id:N, as was asked for"))
    }

    fn reason(&self, reason: &str) -> Result<FinishReason> {
        match reason {
            "stop" => Ok(FinishReason::Stop),
            "length" => Ok(FinishReason::Length),
            // The server drops it, as it does with all that runs when it ends.
            "abort" => {
                let message = format!("engine at {}: the answer was aborted", self.url);
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            other => {
                let other: String = other.chars().take(REASON_CHARS_MAX).collect();
                let message = format!("engine at {}: the answer ended by {other:?}", self.url);
                Err(Error::internal(message))
            }
        }
    }

    fn protocol(&self, what: &str) -> Error {
        Error::new(ErrorKind::Protocol, format!("engine at {}: {what}", self.url))
    }
}

impl Counts {
    fn usage(&self) -> Usage {
        let details = self.prompt_tokens_details.as_ref();
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: details.and_then(|details| details.cached_tokens),
            completion_tokens: self.completion_tokens.unwrap_or(0),
            ..Usage::default()
        }
    }
}

/// A prompt and its answer are far below 2^32 tokens.
fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// A word.
const REASON_CHARS_MAX: usize = 40;

#[cfg(test)]
mod tests;
