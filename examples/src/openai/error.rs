use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use dynamo_core::ErrorKind;
use serde_json::{Value, json};

/// A failure as OpenAI's clients expect it.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None }
    }

    /// Says that the request can never work.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// Says which parameter can never work, and why.
    pub(super) fn param(param: &'static str, why: impl std::fmt::Display) -> Self {
        Self { param: Some(param), ..Self::invalid(format!("{param} {why}")) }
    }

    pub(super) fn context_length(prompt: usize, context: usize) -> Self {
        let message = format!("the prompt has {prompt} tokens, the model's context {context}");
        Self { code: Some("context_length_exceeded"), ..Self::invalid(message) }
    }

    pub(super) fn model_not_found(model: &str) -> Self {
        let message = format!("the model {model:?} does not exist");
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, message);
        Self { param: Some("model"), code: Some("model_not_found"), ..error }
    }

    pub(super) fn not_found(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, format!("there is no route {path}"))
    }

    pub(super) fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message)
    }

    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message)
    }

    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "the body did not arrive in time")
    }

    /// Says what the code of this front end failed at.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(super) fn body(&self) -> Value {
        let Self { message, kind, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl From<dynamo_core::Error> for ApiError {
    fn from(error: dynamo_core::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidArgument => return Self::invalid(error.message()),
            ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            // 499 is nginx's word for a client that hung up.
            ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = Self { code: Some(error.kind().as_str()), ..Self::internal(error.to_string()) };
        Self { status, ..error }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let body = self.body().to_string();
        let headers = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status, headers, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

const INVALID: &str = "invalid_request_error";
