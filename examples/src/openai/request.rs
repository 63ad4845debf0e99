//! A request's JSON, parsed into what the graph needs or refused by name.

use dynamo_core::protocol::{Sampling, TokenId};
use serde_json::{Map, Value};

use super::TextModel;
use super::error::ApiError;
use super::neutral::{NEUTRAL, Neutral};
use crate::model::Message;

/// A request that can be served.
pub(super) struct Parsed {
    pub(super) prompt: Vec<TokenId>,
    pub(super) sampling: Sampling,
    /// Whose cache it may share: of requests with the same one only. vLLM's.
    pub(super) cache_salt: String,
    pub(super) stop: Vec<String>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

/// Parses the body of `/v1/chat/completions`.
pub(super) fn parse_chat(body: &[u8], model: &dyn TextModel) -> Result<Parsed, ApiError> {
    let fields = parse_object(body, model)?;
    let messages = fields.get("messages").and_then(Value::as_array);
    let messages = messages.filter(|messages| !messages.is_empty());
    let messages =
        messages.ok_or_else(|| ApiError::param("messages", "must be a list of messages"))?;
    let messages = messages.iter().map(parse_message).collect::<Result<Vec<_>, _>>()?;
    let prompt = model
        .encode_chat(&messages)
        .map_err(|why| ApiError::param("messages", format!("cannot be rendered: {why}")))?;
    finish(&fields, ("messages", prompt), CHAT_TOKENS, model)
}

/// Parses the body of `/v1/completions`.
pub(super) fn parse_completion(body: &[u8], model: &dyn TextModel) -> Result<Parsed, ApiError> {
    let fields = parse_object(body, model)?;
    let prompt = fields.get("prompt").map(|prompt| match prompt.as_array().map(Vec::as_slice) {
        // A list of prompts that has one.
        Some([one]) if one.is_string() || one.is_array() => one,
        _ => prompt,
    });
    let prompt = match prompt {
        Some(Value::String(text)) => model.encode(text).map_err(ApiError::internal)?,
        Some(tokens) => token_ids(tokens)
            .ok_or_else(|| ApiError::param("prompt", "must be one text or list of tokens"))?,
        None => return Err(ApiError::param("prompt", "is missing")),
    };
    // The default of OpenAI's legacy completions.
    finish(&fields, ("prompt", prompt), 16, model)
}

fn parse_object(body: &[u8], model: &dyn TextModel) -> Result<Map<String, Value>, ApiError> {
    let fields = match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(ApiError::invalid("the body is not a JSON object")),
        Err(error) => return Err(ApiError::invalid(format!("the body is not JSON: {error}"))),
    };
    // These belong to the graph: a client that could set them would reach other clients' KV.
    for field in ["kv_transfer_params", "handoff", "ticket", "stage", "disaggregated_params"] {
        if fields.contains_key(field) {
            return Err(ApiError::param(field, "is not accepted from a client"));
        }
    }
    match fields.get("model") {
        Some(Value::String(name)) if name == model.id() => {}
        Some(Value::String(name)) => return Err(ApiError::model_not_found(name)),
        _ => return Err(ApiError::param("model", "must name a model")),
    }
    // What would change the answer and is not done is said, not left out in silence.
    for (field, neutral) in NEUTRAL {
        if fields.get(field).is_some_and(|value| !neutral.is(value)) {
            return Err(ApiError::param(field, neutral));
        }
    }
    Ok(fields)
}

fn parse_message(message: &Value) -> Result<Message, ApiError> {
    let bad = |why| ApiError::param("messages", why);
    let role = message["role"].as_str().ok_or_else(|| bad("must each have a role"))?;
    let content = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part["text"].as_str())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| bad("may have parts of type text only"))?
            // As vLLM does where a template takes texts only.
            .join("\n"),
        _ => return Err(bad("must each have a content")),
    };
    Ok(Message { role: role.to_owned(), content })
}

fn finish(
    fields: &Map<String, Value>,
    (field, prompt): (&'static str, Vec<TokenId>),
    default_tokens: u64,
    model: &dyn TextModel,
) -> Result<Parsed, ApiError> {
    let (length, context) = (prompt.len(), model.context_len());
    if length == 0 {
        return Err(ApiError::param(field, "is empty"));
    }
    if length >= context {
        return Err(ApiError::context_length(length, context));
    }
    let max_tokens = match positive(fields, "max_completion_tokens")? {
        Some(tokens) => Some(tokens),
        None => positive(fields, "max_tokens")?,
    };
    let room = (context - length) as u64;
    let ignore_end = flag(fields.get("ignore_eos"), "ignore_eos")?;
    let sampling = Sampling {
        max_tokens: u32::try_from(max_tokens.unwrap_or(default_tokens).min(room))
            .unwrap_or(u32::MAX),
        temperature: float(fields, "temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_p: match float(fields, "top_p", 0.0..=1.0)? {
            Some(0.0) => return Err(ApiError::param("top_p", "must be above 0")),
            top_p => top_p.unwrap_or(1.0),
        },
        seed: match fields.get("seed") {
            None | Some(Value::Null) => dynamo_core::protocol::InstanceId::random().0,
            Some(seed) => seed
                .as_i64()
                .map(i64::cast_unsigned)
                .or_else(|| seed.as_u64())
                .ok_or_else(|| ApiError::param("seed", "must be a whole number"))?,
        },
        stop_token_ids: stop_tokens(fields, if ignore_end { &[] } else { model.end_tokens() })?,
        ignore_end,
    };
    let stop = stop(fields)?;
    least_tokens(fields, &sampling, &stop)?;
    let options = fields.get("stream_options");
    Ok(Parsed {
        prompt,
        sampling,
        cache_salt: cache_salt(fields)?,
        stop,
        stream: flag(fields.get("stream"), "stream")?,
        include_usage: flag(options.and_then(|o| o.get("include_usage")), "stream_options")?,
    })
}

/// Returns what keeps the request's cache apart from that of others, if it says so.
fn cache_salt(fields: &Map<String, Value>) -> Result<String, ApiError> {
    match fields.get("cache_salt") {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(salt)) if (1..=SALT_BYTES_MAX).contains(&salt.len()) => Ok(salt.clone()),
        Some(_) => {
            let why = format!("must be a text of 1 to {SALT_BYTES_MAX} bytes");
            Err(ApiError::param("cache_salt", why))
        }
    }
}

/// Returns the request's stop tokens, and the model's.
fn stop_tokens(fields: &Map<String, Value>, ends: &[TokenId]) -> Result<Vec<TokenId>, ApiError> {
    let mut tokens = match fields.get("stop_token_ids") {
        None | Some(Value::Null) => Vec::new(),
        Some(tokens) => token_ids(tokens)
            .ok_or_else(|| ApiError::param("stop_token_ids", "must be a list of tokens"))?,
    };
    tokens.extend(ends.iter().filter(|end| !tokens.contains(end)).collect::<Vec<_>>());
    Ok(tokens)
}

/// Refuses a least number of tokens, unless nothing but the greatest number ends the answer.
fn least_tokens(
    fields: &Map<String, Value>,
    sampling: &Sampling,
    stop: &[String],
) -> Result<(), ApiError> {
    let Some(least) = fields.get("min_tokens").filter(|least| !Neutral::Zero.is(least)) else {
        return Ok(());
    };
    let is_fixed = sampling.ignore_end && sampling.stop_token_ids.is_empty() && stop.is_empty();
    match least.as_u64() {
        Some(least) if is_fixed && least <= u64::from(sampling.max_tokens) => Ok(()),
        Some(_) => {
            let why =
                "must be 0 unless ignore_eos is set, without stops, and max_tokens is as large";
            Err(ApiError::param("min_tokens", why))
        }
        None => Err(ApiError::param("min_tokens", "must be a whole number")),
    }
}

fn token_ids(value: &Value) -> Option<Vec<TokenId>> {
    let token = |token: &Value| token.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(token).collect()
}

fn positive(fields: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let value = value.as_u64().filter(|value| *value > 0);
            value.map(Some).ok_or_else(|| ApiError::param(name, "must be a whole number above 0"))
        }
    }
}

fn float(
    fields: &Map<String, Value>,
    name: &'static str,
    range: std::ops::RangeInclusive<f64>,
) -> Result<Option<f32>, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|value| range.contains(value)) {
            #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is meant")]
            Some(value) => Ok(Some(value as f32)),
            None => {
                let why = format!("must be from {} to {}", range.start(), range.end());
                Err(ApiError::param(name, why))
            }
        },
    }
}

fn flag(value: Option<&Value>, name: &'static str) -> Result<bool, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(ApiError::param(name, "must be true or false")),
    }
}

fn stop(fields: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let bad = || ApiError::param("stop", "must be a text, or up to 4 of them, none empty");
    let texts = match fields.get("stop") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().ok_or_else(bad)?
        }
        Some(_) => return Err(bad()),
    };
    if texts.len() > 4 || texts.iter().any(String::is_empty) { Err(bad()) } else { Ok(texts) }
}

/// A name, or a digest in hexadecimal digits.
const SALT_BYTES_MAX: usize = 256;

/// Room for a paragraph or two where a chat does not say.
const CHAT_TOKENS: u64 = 256;
