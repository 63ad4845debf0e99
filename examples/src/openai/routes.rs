use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use dynamo_core::protocol::Usage;
use futures::stream;
use serde_json::{Value, json};

use super::answer::{Answer, Piece};
use super::error::ApiError;
use super::request::{Parsed, parse_chat, parse_completion};
use super::{Server, TextModel};

type Shared = State<Arc<Server>>;

pub(super) async fn models(State(server): Shared) -> impl IntoResponse {
    json_body(&json!({ "object": "list", "data": [model_body(&*server.model)] }))
}

pub(super) async fn model(
    State(server): Shared,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    match name == server.model.id() {
        true => Ok(json_body(&model_body(&*server.model))),
        false => Err(ApiError::model_not_found(&name)),
    }
}

fn model_body(model: &dyn TextModel) -> Value {
    json!({
        "id": model.id(), "object": "model", "created": 0, "owned_by": "local",
        "max_model_len": model.context_len(),
    })
}

pub(super) async fn health(State(server): Shared) -> impl IntoResponse {
    let (status, text) = match (server.is_ready)() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    (status, json_body(&json!({ "status": text })))
}

pub(super) async fn metrics(State(server): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], server.metrics.render())
}

pub(super) async fn not_found(request: Request) -> ApiError {
    ApiError::not_found(request.uri().path())
}

pub(super) async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
}

pub(super) async fn chat_completions(State(server): Shared, request: Request) -> Response<Body> {
    respond(server, request, &CHAT).await
}

pub(super) async fn completions(State(server): Shared, request: Request) -> Response<Body> {
    respond(server, request, &COMPLETION).await
}

/// How the two kinds of completion differ.
struct Shape {
    route: &'static str,
    id: &'static str,
    object: &'static str,
    chunk_object: &'static str,
    parse: fn(&[u8], &dyn TextModel) -> Result<Parsed, ApiError>,
    /// The choice of a whole answer.
    whole: fn(&str) -> Value,
    /// The choice of a piece of a streamed answer.
    delta: fn(Option<&str>) -> Value,
    /// The choice that opens a streamed answer, if there is one.
    opening: Option<fn() -> Value>,
}

const CHAT: Shape = Shape {
    route: "/v1/chat/completions",
    id: "chatcmpl",
    object: "chat.completion",
    chunk_object: "chat.completion.chunk",
    parse: parse_chat,
    whole: |text| json!({ "index": 0, "message": { "role": "assistant", "content": text } }),
    delta: |text| match text {
        Some(text) => json!({ "index": 0, "delta": { "content": text } }),
        None => json!({ "index": 0, "delta": {} }),
    },
    opening: Some(|| json!({ "index": 0, "delta": { "role": "assistant", "content": "" } })),
};

const COMPLETION: Shape = Shape {
    route: "/v1/completions",
    id: "cmpl",
    object: "text_completion",
    chunk_object: "text_completion",
    parse: parse_completion,
    whole: |text| json!({ "index": 0, "text": text }),
    delta: |text| json!({ "index": 0, "text": text.unwrap_or_default() }),
    opening: None,
};

async fn respond(server: Arc<Server>, request: Request, shape: &'static Shape) -> Response<Body> {
    let response = match answer(&server, request, shape).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    server.metrics.request(shape.route, response.status().as_u16());
    response
}

async fn answer(
    server: &Arc<Server>,
    request: Request,
    shape: &'static Shape,
) -> Result<Response<Body>, ApiError> {
    let body = Bytes::from_request(request, &());
    let body = tokio::time::timeout(BODY_MAX, body).await.map_err(|_| ApiError::too_slow())?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(BODY_BYTES_MAX),
        _ => ApiError::invalid("the body broke off"),
    })?;
    // A long prompt takes its time to render and tokenise: not on a thread that serves others.
    let model = Arc::clone(&server.model);
    let parsed = tokio::task::spawn_blocking(move || (shape.parse)(&body, &*model))
        .await
        .map_err(|_| ApiError::internal("the request could not be parsed"))??;
    let (stream, include_usage) = (parsed.stream, parsed.include_usage);
    let answer = Answer::start(server, parsed).await?;
    let head =
        Head { shape, id: format!("{}-{}", shape.id, answer.id()), server: Arc::clone(server) };
    if stream { Ok(streamed(head, answer, include_usage)) } else { whole(&head, answer).await }
}

/// What every object of one answer says.
struct Head {
    shape: &'static Shape,
    id: String,
    server: Arc<Server>,
}

impl Head {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": unix_time_s(),
            "model": self.server.model.id(), "choices": choices,
        })
    }

    fn chunk(&self, mut choice: Value, finish_reason: Option<&str>) -> Value {
        choice["finish_reason"] = json!(finish_reason);
        self.object(self.shape.chunk_object, vec![choice])
    }
}

async fn whole(head: &Head, mut answer: Answer) -> Result<Response<Body>, ApiError> {
    let mut text = String::new();
    while let Some(piece) = answer.next().await {
        match piece? {
            Piece::Text(piece) => text.push_str(&piece),
            Piece::End { finish_reason, usage } => {
                let mut choice = (head.shape.whole)(&text);
                choice["finish_reason"] = json!(finish_reason);
                let mut body = head.object(head.shape.object, vec![choice]);
                body["usage"] = usage_body(usage);
                return Ok(json_body(&body).into_response());
            }
        }
    }
    Err(ApiError::internal("the answer ended without a reason"))
}

/// Sends each piece as a server-sent event, and `[DONE]` after the last one.
fn streamed(head: Head, answer: Answer, include_usage: bool) -> Response<Body> {
    let opening = head.shape.opening.map(|opening| event(&head.chunk(opening(), None)));
    let events = stream::unfold(Some((head, answer)), move |state| async move {
        let (head, mut answer) = state?;
        let delta = head.shape.delta;
        Some(match answer.next().await? {
            Ok(Piece::Text(text)) => {
                (event(&head.chunk(delta(Some(&text)), None)), Some((head, answer)))
            }
            Ok(Piece::End { finish_reason, usage }) => {
                let mut last = event(&head.chunk(delta(None), Some(finish_reason)));
                if include_usage {
                    let mut counts = head.object(head.shape.chunk_object, Vec::new());
                    counts["usage"] = usage_body(usage);
                    last.push_str(&event(&counts));
                }
                (last + "data: [DONE]\n\n", None)
            }
            // Too late for a status: the event says it, and no [DONE] follows.
            Err(error) => (event(&error.body()), None),
        })
    });
    let events = futures::StreamExt::chain(stream::iter(opening), events);
    let events = futures::StreamExt::map(events, |event| Ok::<_, Infallible>(Bytes::from(event)));
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}

fn event(body: &Value) -> String {
    format!("data: {body}\n\n")
}

fn usage_body(usage: Usage) -> Value {
    let details = usage.cached_tokens.map(|tokens| json!({ "cached_tokens": tokens }));
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": details,
    })
}

fn json_body(body: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], body.to_string())
}

#[expect(clippy::disallowed_methods, reason = "an object says when it was made")]
fn unix_time_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// A context of 128k tokens in JSON, several times over.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;

/// The largest body over a slow line.
const BODY_MAX: Duration = Duration::from_secs(60);
