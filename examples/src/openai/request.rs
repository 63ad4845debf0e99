//! A request's JSON, parsed into what the graph needs or refused by name.

use dynamo_core::protocol::{Sampling, TokenId};
use serde_json::{Map, Value, json};

use super::TextModel;
use super::error::ApiError;
use crate::model::Message;

/// A request that can be served.
pub(super) struct Parsed {
    pub(super) prompt: Vec<TokenId>,
    pub(super) sampling: Sampling,
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
        .render_chat(&messages)
        .map_err(|why| ApiError::param("messages", format!("cannot be rendered: {why}")))?;
    let prompt = model.encode(&prompt).map_err(ApiError::internal)?;
    finish(&fields, ("messages", prompt), CHAT_TOKENS, model)
}

/// Parses the body of `/v1/completions`.
pub(super) fn parse_completion(body: &[u8], model: &dyn TextModel) -> Result<Parsed, ApiError> {
    let fields = parse_object(body, model)?;
    let bad = || ApiError::param("prompt", "must be a text or a list of tokens");
    let prompt = match fields.get("prompt") {
        Some(Value::String(text)) => model.encode(text).map_err(ApiError::internal)?,
        Some(Value::Array(tokens)) => {
            let token = |token: &Value| token.as_u64().and_then(|id| u32::try_from(id).ok());
            tokens.iter().map(token).collect::<Option<Vec<_>>>().ok_or_else(bad)?
        }
        _ => return Err(bad()),
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
    for (field, allowed) in [("n", 1), ("best_of", 1)] {
        if fields
            .get(field)
            .is_some_and(|value| !value.is_null() && value.as_u64() != Some(allowed))
        {
            return Err(ApiError::param(field, "must be 1"));
        }
    }
    // What would change the answer and is not done is said, not left out in silence.
    for field in UNSUPPORTED {
        if fields.get(field).is_some_and(|value| !is_neutral(value)) {
            return Err(ApiError::param(field, "is not supported"));
        }
    }
    Ok(fields)
}

const UNSUPPORTED: [&str; 10] = [
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "echo",
    "suffix",
    "response_format",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
];

/// Tells whether a value asks for nothing beyond what happens without it.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty() || fields.get("type") == Some(&json!("text")),
        _ => false,
    }
}

fn parse_message(message: &Value) -> Result<Message, ApiError> {
    let bad = |why| ApiError::param("messages", why);
    let role = message["role"].as_str().ok_or_else(|| bad("must each have a role"))?;
    let content = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part["text"].as_str())
            .collect::<Option<String>>()
            .ok_or_else(|| bad("may have parts of type text only"))?,
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
        stop_token_ids: Vec::new(),
        ignore_end: flag(fields.get("ignore_eos"), "ignore_eos")?,
    };
    let options = fields.get("stream_options");
    Ok(Parsed {
        prompt,
        sampling,
        stop: stop(fields)?,
        stream: flag(fields.get("stream"), "stream")?,
        include_usage: flag(options.and_then(|o| o.get("include_usage")), "stream_options")?,
    })
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

/// Room for a paragraph or two where a chat does not say.
const CHAT_TOKENS: u64 = 256;
