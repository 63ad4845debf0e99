use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::BoxStream;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::generation::Generation;
use super::record::{AskedState, Record};
use super::request::Ask;
use super::transfer::Pull;
use super::{BlockChange, Fault, Played};

/// The connection is to be closed, whatever was sent.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed, as the script says")
    }
}

impl StdError for Cut {}

/// The body of an answer.
pub(super) enum Body {
    Whole(Option<Bytes>),
    Events(BoxStream<'static, Result<Bytes, Cut>>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let next = match &mut *self {
            Self::Whole(bytes) => bytes.take().map(Ok),
            Self::Events(events) => ready!(Pin::new(events).poll_next(cx)),
        };
        Poll::Ready(next.map(|item| item.map(Frame::data)))
    }
}

/// A status with vLLM's error body.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: String,
    message: String,
    param: Option<&'static str>,
    retry_after_s: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &str, message: &str) -> Self {
        let (kind, message) = (kind.into(), message.into());
        Self { status, kind, message, param: None, retry_after_s: None }
    }

    pub(super) fn bad(message: &str, param: Option<&'static str>) -> Self {
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message) }
    }

    pub(super) fn no_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        let refusal = Self::new(StatusCode::NOT_FOUND, "NotFoundError", &message);
        Self { param: Some("model"), ..refusal }
    }

    fn scripted(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = status.canonical_reason().unwrap_or("Error").replace(' ', "");
        Self::new(status, &kind, "refused, as the script says")
    }

    fn too_many(retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::scripted(429) }
    }

    /// The body that tells it, also in the middle of a stream.
    pub(super) fn body(kind: &str, message: &str, param: Option<&str>, code: u16) -> Value {
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }

    fn respond(self) -> Response<Body> {
        let Self { status, kind, message, param, retry_after_s } = self;
        let body = Self::body(&kind, &message, param, status.as_u16());
        let mut response = whole(status, "application/json", body.to_string());
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn whole(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json(body: &Value) -> Response<Body> {
    whole(StatusCode::OK, "application/json", body.to_string())
}

impl Played {
    pub(super) async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Cut> {
        let (parts, body) = request.into_parts();
        let key = self.script.api_key.as_ref().map(|key| format!("Bearer {key}"));
        let said = parts.headers.get(hyper::header::AUTHORIZATION);
        if let Some(key) = key
            && parts.uri.path().starts_with("/v1/")
            && said.is_none_or(|said| said.as_bytes() != key.as_bytes())
        {
            let body = json!({ "error": "Unauthorized" }).to_string();
            return Ok(whole(StatusCode::UNAUTHORIZED, "application/json", body));
        }
        Ok(match (&parts.method, parts.uri.path()) {
            (&Method::POST, "/v1/completions") => {
                let body = read(body).await?;
                let record = self.records.write(&parts, &body);
                return self.complete(record, &body).await;
            }
            (&Method::GET, "/v1/models") => json(&self.models()),
            (&Method::GET, "/health") => whole(StatusCode::OK, "text/plain", String::new()),
            (&Method::POST, "/reset_prefix_cache") => json(&self.reset()),
            (_, path) => match self.metrics(path) {
                Some((kind, page)) => whole(StatusCode::OK, kind, page),
                None => {
                    let body = r#"{"detail":"Not Found"}"#;
                    whole(StatusCode::NOT_FOUND, "application/json", body.into())
                }
            },
        })
    }

    fn models(&self) -> Value {
        let model = json!({
            "id": self.script.model,
            "object": "model",
            "created": CREATED,
            "owned_by": "vllm",
            "root": self.script.model,
            "max_model_len": self.script.max_model_len,
        });
        json!({ "object": "list", "data": [model] })
    }

    /// Forgets the prefix cache, unless something runs.
    fn reset(&self) -> Value {
        let is_idle =
            self.records.read(|all| all.iter().all(|asked| asked.state != AskedState::Running));
        if is_idle {
            self.state().cache.clear(|change: BlockChange| self.tell(change));
        }
        json!({ "success": is_idle })
    }

    async fn complete(self: Arc<Self>, record: Record, body: &[u8]) -> Result<Response<Body>, Cut> {
        let fault = self.state().faults.pop_front().unwrap_or(Fault::None);
        let refusal = match fault {
            Fault::Refuse(status) => Some(Refusal::scripted(status)),
            Fault::TooMany { retry_after_s } => Some(Refusal::too_many(retry_after_s)),
            _ => None,
        };
        let ask = match refusal.map_or_else(|| Ask::read(body, &self.script), Err) {
            Ok(ask) => ask,
            Err(refusal) => {
                record.set(AskedState::Answered);
                return Ok(refusal.respond());
            }
        };
        let pull = self.side.as_ref().zip(ask.pulls()).map(|(side, params)| side.pull(params));
        let fault = if pull == Some(Pull::Failed) { Fault::ErrorAfter(0) } else { fault };
        if fault == Fault::HangBeforeHeaders {
            self.released.cancelled().await;
        }
        let is_stream = ask.stream;
        let has_others = pull == Some(Pull::Stale);
        let generation = Generation::new(self, record, ask, (fault, has_others));
        if !is_stream {
            return Ok(json(&generation.whole().await?));
        }
        let mut response = Response::new(Body::Events(generation.events()));
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }
}

/// Reads a body, as long as it is no longer than any that a test sends.
async fn read(mut body: Incoming) -> Result<Bytes, Cut> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let data = frame.map_err(|_| Cut)?.into_data().unwrap_or_default();
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            return Err(Cut);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

const BODY_BYTES_MAX: usize = 16 << 20;

/// The same time in all answers, in seconds of Unix.
pub(super) const CREATED: u64 = 1_700_000_000;
