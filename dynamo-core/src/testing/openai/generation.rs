use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{CREATED, Cut};
use super::record::{AskedState, Record};
use super::request::Ask;
use super::{Fault, Played};
use crate::protocol::TokenId;

/// One answer while it is computed.
pub(super) struct Generation {
    pub(super) played: Arc<Played>,
    pub(super) record: Record,
    pub(super) ask: Ask,
    pub(super) fault: Fault,
    /// The prompt and what was computed.
    tokens: Vec<TokenId>,
    cached: usize,
    finish: Option<Finish>,
    turn: Option<OwnedSemaphorePermit>,
    /// Blocks of another prompt are in the place of those that were to be pulled.
    has_others: bool,
}

/// Why an answer is over.
#[derive(Debug, Clone, Copy)]
struct Finish {
    reason: &'static str,
    /// The token that the request named as one to stop at.
    stop: Option<TokenId>,
}

impl Generation {
    pub(super) fn new(
        played: Arc<Played>,
        record: Record,
        ask: Ask,
        (fault, has_others): (Fault, bool),
    ) -> Self {
        let tokens = ask.prompt.clone();
        let (cached, finish, turn) = (0, None, None);
        Self { played, record, ask, fault, tokens, cached, finish, turn, has_others }
    }

    /// Returns how many tokens of the answer were computed.
    pub(super) fn len(&self) -> usize {
        self.tokens.len() - self.ask.prompt.len()
    }

    pub(super) fn is_over(&self) -> bool {
        self.finish.is_some()
    }

    /// Computes the next tokens, `most` of them at most, and returns them.
    pub(super) async fn compute(&mut self, most: usize) -> Vec<TokenId> {
        if self.turn.is_none() {
            // The semaphore is never closed.
            self.turn = Arc::clone(&self.played.running).acquire_owned().await.ok();
            self.record.set(AskedState::Running);
            self.prefill();
        }
        if !self.played.script.delta_time.is_zero() {
            tokio::time::sleep(self.played.script.delta_time).await;
        }
        let from = self.tokens.len();
        while self.finish.is_none() && self.tokens.len() < from + most {
            self.step();
        }
        let blocks = self.played.script.block_size.blocks_for(self.tokens.len());
        self.record.holds(self.len(), blocks);
        // What the last token stands for is computed with the next one.
        self.keep(self.tokens.len() - 1);
        self.tokens[from..].to_vec()
    }

    fn prefill(&mut self) {
        let mut state = self.played.state();
        self.cached = state.cache.cached_tokens(&self.ask.prompt);
        state.queried += self.ask.prompt.len() as u64;
        state.hits += self.cached as u64;
        drop(state);
        self.keep(self.tokens.len());
    }

    fn keep(&self, computed: usize) {
        let mut state = self.played.state();
        state.cache.keep(&self.tokens[..computed], |change| self.played.tell(change));
    }

    fn step(&mut self) {
        let script = &self.played.script;
        let token = if self.ask.ignores_end() {
            script.word(&self.tokens)
        } else {
            script.next_token(&self.tokens)
        };
        self.tokens.push(token);
        if std::mem::take(&mut self.has_others) {
            // As seen with vLLM: the first token may well be the right one.
            self.tokens[0] = self.tokens[0].wrapping_add(1);
        }
        self.finish = if token == script.end_token {
            Some(Finish { reason: "stop", stop: None })
        } else if self.ask.stops_at(token) {
            Some(Finish { reason: "stop", stop: Some(token) })
        } else if self.len() >= self.ask.max_tokens {
            Some(Finish { reason: "length", stop: None })
        } else {
            None
        };
    }

    /// Returns the answer as one body.
    pub(super) async fn whole(mut self) -> Result<Value, Cut> {
        let most = match self.fault {
            Fault::HangAfter(after) | Fault::CloseAfter(after) => after,
            _ => usize::MAX,
        };
        let mut token_ids = Vec::new();
        while !self.is_over() && self.len() < most {
            token_ids.extend(self.compute(1).await);
        }
        match self.fault {
            Fault::CloseAfter(_) => {
                self.record.set(AskedState::Cut);
                return Err(Cut);
            }
            Fault::HangAfter(_) => self.played.released.cancelled().await,
            _ => {}
        }
        while !self.is_over() {
            token_ids.extend(self.compute(1).await);
        }
        let mut whole = self.object(vec![self.choice(&token_ids)]);
        whole["usage"] = self.usage();
        whole["kv_transfer_params"] = self.kept();
        self.record.set(AskedState::Answered);
        Ok(whole)
    }

    /// Keeps the prompt's blocks for another server if that was asked for, and returns where they are.
    fn kept(&self) -> Value {
        let Some(side) = self.played.side.as_ref().filter(|_| self.ask.keeps()) else {
            return Value::Null;
        };
        let request = format!("cmpl-{}", self.record.number());
        side.keep(&request, &self.ask.prompt, self.played.script.block_size)
    }

    /// Returns the object that says `token_ids` are next; the first of them come with the prompt.
    pub(super) fn choice(&self, token_ids: &[TokenId]) -> Value {
        let script = &self.played.script;
        let words = token_ids.iter().filter(|token| **token != script.end_token);
        let text: String = words.map(|token| format!(" {token}")).collect();
        let mut choice = json!({
            "index": 0,
            "text": text,
            "logprobs": null,
            "finish_reason": self.finish.map(|finish| finish.reason),
            "stop_reason": self.finish.and_then(|finish| finish.stop),
            "prompt_token_ids": null,
            "token_ids": null,
        });
        if self.shows_token_ids() {
            choice["token_ids"] = json!(token_ids);
            if token_ids.len() == self.len() {
                choice["prompt_token_ids"] = json!(self.ask.prompt);
            }
        }
        choice
    }

    pub(super) fn shows_token_ids(&self) -> bool {
        self.ask.returns_token_ids() && self.fault != Fault::WithoutIds
    }

    pub(super) fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": format!("cmpl-{}", self.record.number()),
            "object": "text_completion",
            "created": CREATED,
            "model": self.played.script.model,
            "choices": choices,
        })
    }

    pub(super) fn usage(&self) -> Value {
        let (prompt, completion) = (self.ask.prompt.len(), self.len());
        json!({
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}
