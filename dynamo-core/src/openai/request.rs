//! What a server is asked.

use hyper::header::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde_json::Value;

use super::config::OpenAiConfig;
use super::tokens::TokenSource;
use super::transfer;
use crate::engine::{Context, Priority};
use crate::error::{Error, Result};
use crate::protocol::{CacheNamespace, GenerateRequest, Sampling, Stage, TokenId};

/// Where it is asked.
pub(super) const PATH: &str = "/v1/completions";

/// The body of a completion; what has no value is left out, as servers refuse what they do not know.
#[derive(Serialize)]
struct Completion<'a> {
    model: &'a str,
    prompt: &'a [TokenId],
    max_tokens: u32,
    temperature: f32,
    top_p: f32,
    seed: u64,
    #[serde(skip_serializing_if = "is_empty")]
    stop_token_ids: &'a [TokenId],
    #[serde(skip_serializing_if = "is_false")]
    ignore_eos: bool,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    ids: Ids,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_salt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_transfer_params: Option<Value>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// What asks for the ids of the answer's tokens.
#[derive(Default, Serialize)]
struct Ids {
    #[serde(skip_serializing_if = "Option::is_none")]
    return_token_ids: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detokenize: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    return_tokens_as_token_ids: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<u32>,
}

/// Writes the body that asks for the answer to `request`, or for its part of it.
///
/// It is streamed, save that of a prefill: only an answer that is not says where the blocks are.
///
/// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if no server can be asked that,
/// and as [`transfer::params`] does if a ticket is none.
pub(super) fn body(
    config: &OpenAiConfig,
    ctx: &Context,
    request: &GenerateRequest,
) -> Result<String> {
    check(request)?;
    let GenerateRequest { token_ids, namespace, sampling, stage, .. } = request;
    let is_streamed = *stage != Stage::Prefill;
    let completion = Completion {
        model: model(config, namespace),
        prompt: token_ids,
        max_tokens: if is_streamed { sampling.max_tokens } else { 1 },
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        // Servers keep it as a signed number, and refuse one that does not fit.
        seed: sampling.seed & i64::MAX.unsigned_abs(),
        stop_token_ids: &sampling.stop_token_ids,
        ignore_eos: sampling.ignore_end,
        stream: is_streamed,
        stream_options: is_streamed.then_some(StreamOptions { include_usage: true }),
        ids: ids(&config.tokens),
        priority: config.has_priority.then(|| priority(ctx.priority())),
        cache_salt: cache_salt(namespace)?,
        kv_transfer_params: transfer_params(request)?,
    };
    serde_json::to_string(&completion)
        .map_err(|error| Error::internal("request as JSON").with_source(error))
}

/// Returns the headers that go with `ctx`: id, trace and rank.
pub(super) fn headers(ctx: &Context) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // An id that is no text for a header is of use to nobody there.
    if let Ok(id) = HeaderValue::from_str(ctx.id().as_str()) {
        headers.insert("x-request-id", id);
    }
    if let Some(Ok(trace)) = ctx.trace().map(|trace| HeaderValue::from_str(&trace.to_string())) {
        headers.insert("traceparent", trace);
    }
    if let Some(rank) = ctx.rank() {
        headers.insert("x-data-parallel-rank", rank.into());
    }
    headers
}

/// Checks what servers take for something else: a number that JSON does not have is left out there,
/// and a default takes its place.
fn check(request: &GenerateRequest) -> Result<()> {
    let Sampling { max_tokens, temperature, top_p, .. } = request.sampling;
    let invalid = |what: String| Err(Error::invalid(what));
    if request.token_ids.is_empty() {
        return invalid("prompt of no tokens".into());
    }
    if max_tokens == 0 {
        return invalid("max_tokens of 0".into());
    }
    if !(0.0..=2.0).contains(&temperature) {
        return invalid(format!("temperature of {temperature}, which is not within 0 to 2"));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return invalid(format!("top_p of {top_p}, which is not within (0, 1]"));
    }
    Ok(())
}

/// Returns the name to ask for: an adapter is a model to the server.
fn model<'a>(config: &'a OpenAiConfig, namespace: &'a CacheNamespace) -> &'a str {
    if namespace.adapter.is_empty() { &config.model } else { &namespace.adapter }
}

/// Returns the salt of the server's cache: what the engine's events say of it comes back as the
/// namespace's `extra` (`docs/vllm-events.md`).
fn cache_salt(namespace: &CacheNamespace) -> Result<Option<&str>> {
    if namespace.extra.is_empty() {
        return Ok(None);
    }
    str::from_utf8(&namespace.extra).map(Some).map_err(|error| {
        Error::invalid("extra of a namespace that is no text for cache_salt").with_source(error)
    })
}

fn transfer_params(request: &GenerateRequest) -> Result<Option<Value>> {
    match &request.stage {
        // Of an answer of one token nobody pulls the blocks.
        Stage::Prefill if request.sampling.max_tokens > 1 => Ok(Some(transfer::prefill_params())),
        Stage::Full | Stage::Prefill => Ok(None),
        Stage::Decode { ticket, .. } => transfer::params(ticket).map(Some),
    }
}

fn ids(tokens: &TokenSource) -> Ids {
    match tokens {
        TokenSource::TokenIds => Ids { return_token_ids: Some(true), ..Ids::default() },
        TokenSource::WithoutText => Ids { detokenize: Some(false), ..Ids::default() },
        TokenSource::Logprobs => {
            Ids { return_tokens_as_token_ids: Some(true), logprobs: Some(1), ..Ids::default() }
        }
        TokenSource::Encode(_) => Ids::default(),
    }
}

/// Returns vLLM's priority: 0 is normal, and smaller is earlier.
fn priority(priority: Priority) -> i32 {
    i32::from(Priority::NORMAL.level()) - i32::from(priority.level())
}

fn is_empty(tokens: &[TokenId]) -> bool {
    tokens.is_empty()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(is: &bool) -> bool {
    !is
}

#[cfg(test)]
mod tests;
