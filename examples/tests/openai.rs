//! The front end over a scripted engine: every bad input, stop texts, failures, and clients that
//! hang up.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, TokenId, Usage,
};
use dynamo_core::{Context, Error, ErrorKind, ResponseSender, ResponseStream, engine_fn};
use dynamo_examples::model::Message;
use dynamo_examples::openai::{Detokenize, Server, TextModel};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// One token per byte.
struct Bytes;

impl TextModel for Bytes {
    fn id(&self) -> &str {
        "bytes"
    }

    fn context_len(&self) -> usize {
        64
    }

    fn encode(&self, text: &str) -> Result<Vec<TokenId>, String> {
        Ok(text.bytes().map(TokenId::from).collect())
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<TokenId>, String> {
        self.encode(&messages.iter().map(|message| message.content.as_str()).collect::<String>())
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[3]
    }

    fn detokenizer(&self, _: &[TokenId]) -> Result<Box<dyn Detokenize>, String> {
        Ok(Box::new(Self))
    }
}

impl Detokenize for Bytes {
    fn push(&mut self, token: TokenId) -> Result<String, String> {
        char::from_u32(token).map(String::from).ok_or_else(|| format!("token {token}"))
    }

    fn finish(&mut self) -> Result<String, String> {
        Ok(String::new())
    }
}

type Call = (Context, GenerateRequest, ResponseSender<GenerateChunk>);

/// A front end whose engine hands each call to the test.
struct Front {
    address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    _serving: tokio::task::JoinSet<std::io::Result<()>>,
}

impl Front {
    async fn start() -> Self {
        Self::with_readiness(true).await
    }

    async fn unready() -> Self {
        Self::with_readiness(false).await
    }

    async fn with_readiness(is_ready: bool) -> Self {
        let (hand, calls) = mpsc::channel(8);
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            let hand = hand.clone();
            async move {
                let (sender, stream) = ResponseStream::channel(&ctx, 8);
                let call = (ctx, request, sender);
                hand.send(call).await.map_err(|_| Error::internal("test is over"))?;
                Ok(stream)
            }
        });
        let server = Server::new(Arc::new(engine), Arc::new(Bytes), BlockSize::DEFAULT)
            .with_readiness(move || is_ready);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move { axum::serve(listener, server.into_router()).await });
        Self { address, calls, _serving: serving }
    }

    async fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        stream
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        read(self.open(method, path, body).await).await
    }

    async fn refused(&self, body: &Value) -> (u16, Value) {
        let (status, body) = self.request("POST", CHAT, &body.to_string()).await;
        (status, serde_json::from_str::<Value>(&body).unwrap()["error"].clone())
    }
}

async fn read(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

const CHAT: &str = "/v1/chat/completions";

fn chat(change: Value) -> Value {
    let mut body = json!({ "model": "bytes", "messages": [{ "role": "user", "content": "hi" }] });
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn text(text: &str, finish: Option<FinishReason>) -> GenerateChunk {
    let token_ids = text.bytes().map(TokenId::from).collect();
    let usage = Usage {
        prompt_tokens: 2,
        cached_tokens: Some(1),
        completion_tokens: 0,
        ..Usage::default()
    };
    GenerateChunk { token_ids, finish, usage: finish.map(|_| usage), ..GenerateChunk::default() }
}

#[tokio::test]
async fn every_bad_request_gets_its_status_and_names_the_parameter() {
    let front = Front::start().await;
    for (change, status, param) in [
        (json!({ "model": "other" }), 404, "model"),
        (json!({ "model": 7 }), 400, "model"),
        (json!({ "messages": [] }), 400, "messages"),
        (json!({ "cache_salt": "" }), 400, "cache_salt"),
        (json!({ "cache_salt": 7 }), 400, "cache_salt"),
        (json!({ "cache_salt": "x".repeat(257) }), 400, "cache_salt"),
        (json!({ "messages": [{ "role": "user" }] }), 400, "messages"),
        (json!({ "max_tokens": 0 }), 400, "max_tokens"),
        (json!({ "max_tokens": -1 }), 400, "max_tokens"),
        (json!({ "max_completion_tokens": 0 }), 400, "max_completion_tokens"),
        (json!({ "response_format": { "type": "json_object" } }), 400, "response_format"),
        (json!({ "presence_penalty": 0.5 }), 400, "presence_penalty"),
        (json!({ "logit_bias": { "7": 100 } }), 400, "logit_bias"),
        (json!({ "temperature": 2.5 }), 400, "temperature"),
        (json!({ "temperature": "hot" }), 400, "temperature"),
        (json!({ "top_p": 0 }), 400, "top_p"),
        (json!({ "n": 2 }), 400, "n"),
        (json!({ "tools": [{}] }), 400, "tools"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), 400, "stop"),
        (json!({ "stop": "" }), 400, "stop"),
        (json!({ "stream": "yes" }), 400, "stream"),
        (json!({ "kv_transfer_params": {} }), 400, "kv_transfer_params"),
        (json!({ "ticket": "stolen" }), 400, "ticket"),
        (json!({ "stage": "decode" }), 400, "stage"),
        (json!({ "logprobs": true }), 400, "logprobs"),
        (json!({ "top_k": 40 }), 400, "top_k"),
        (json!({ "repetition_penalty": 1.1 }), 400, "repetition_penalty"),
        (json!({ "min_tokens": 3 }), 400, "min_tokens"),
        (json!({ "min_tokens": 9, "ignore_eos": true, "max_tokens": 8 }), 400, "min_tokens"),
        (json!({ "min_tokens": 3, "ignore_eos": true, "stop": "x" }), 400, "min_tokens"),
        (json!({ "ignore_eos": "yes" }), 400, "ignore_eos"),
        (json!({ "stop_token_ids": ["x"] }), 400, "stop_token_ids"),
        (json!({ "guided_json": { "type": "object" } }), 400, "guided_json"),
        (json!({ "skip_special_tokens": false }), 400, "skip_special_tokens"),
    ] {
        let (got, error) = front.refused(&chat(change.clone())).await;
        assert_eq!((got, error["param"].as_str()), (status, Some(param)), "{change}: {error}");
        assert!(error["message"].as_str().unwrap().contains(param), "{error}");
    }
    let long = json!({ "messages": [{ "role": "user", "content": "x".repeat(64) }] });
    let (status, error) = front.refused(&chat(long)).await;
    assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));

    for (method, path, body, status) in [
        ("POST", CHAT, "{\"model\": ", 400),
        ("POST", CHAT, "[]", 400),
        ("POST", "/v1/completions", "{\"model\":\"bytes\",\"prompt\":[1,-2]}", 400),
        ("GET", CHAT, "", 405),
        ("GET", "/v1/nothing", "", 404),
    ] {
        let (got, body) = front.request(method, path, body).await;
        let error: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(got, status, "{method} {path}: {body}");
        assert!(error["error"]["message"].is_string(), "{body}");
    }
    assert_eq!(front.request("GET", "/health", "").await.0, 200);
}

/// The engine is asked for what the body says.
async fn asked(front: &mut Front, path: &str, body: &Value) -> GenerateRequest {
    let connection = front.open("POST", path, &body.to_string()).await;
    let asked = tokio::select! {
        call = front.calls.recv() => Ok(call.unwrap().1),
        (_, refused) = read(connection) => Err(refused),
    };
    asked.unwrap()
}

#[tokio::test]
async fn requests_share_a_cache_with_those_of_the_same_salt_only() {
    let mut front = Front::start().await;
    let plain = asked(&mut front, CHAT, &chat(json!({}))).await;
    let shared = CacheNamespace::model("bytes");
    assert_eq!(*plain.namespace, shared);
    let salted = asked(&mut front, CHAT, &chat(json!({ "cache_salt": "tenant-7" }))).await;
    let extra = b"tenant-7".to_vec();
    assert_eq!(*salted.namespace, CacheNamespace { extra, ..shared });
}

#[tokio::test]
async fn what_load_generators_send_is_served_as_it_is_meant() {
    let mut front = Front::start().await;
    let body = chat(json!({
        "messages": [{ "role": "user", "content": [
            { "type": "text", "text": "a" }, { "type": "text", "text": "b" },
        ] }],
        "stream": true, "stream_options": { "include_usage": true, "continuous_usage_stats": true },
        "max_completion_tokens": 8, "min_tokens": 8, "ignore_eos": true, "temperature": 0.0,
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0,
        "n": 1, "best_of": 1, "logprobs": null, "top_logprobs": null, "user": "u", "seed": -1,
        "tools": [], "tool_choice": "none", "response_format": { "type": "text" },
        "logit_bias": {}, "metadata": { "a": "b" }, "store": false, "echo": false,
    }));
    let request = asked(&mut front, CHAT, &body).await;
    assert_eq!(&request.token_ids[..], [97, 10, 98]);
    assert!(request.sampling.ignore_end && request.sampling.stop_token_ids.is_empty());
    assert_eq!((request.sampling.max_tokens, request.sampling.seed), (8, u64::MAX));

    let completion = |prompt: Value| {
        json!({
            "model": "bytes", "prompt": prompt, "repetition_penalty": 1.0, "logprobs": null,
            "suffix": null, "max_tokens": 4, "stop_token_ids": [7], "min_tokens": 0,
        })
    };
    for prompt in [json!("ab"), json!(["ab"]), json!([97, 98]), json!([[97, 98]])] {
        let request = asked(&mut front, "/v1/completions", &completion(prompt)).await;
        assert_eq!(&request.token_ids[..], [97, 98]);
        assert_eq!(request.sampling.stop_token_ids, [7, 3], "the model's end too");
        assert!(!request.sampling.ignore_end);
    }
    let (status, body) = front.request("GET", "/v1/models", "").await;
    let models: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &models["data"][0]["max_model_len"]), (200, &json!(64)));
    let (status, body) = front.request("GET", "/v1/models/bytes", "").await;
    assert_eq!(
        (status, serde_json::from_str::<Value>(&body).unwrap()),
        (200, models["data"][0].clone())
    );
    assert_eq!(front.request("GET", "/v1/models/of/another", "").await.0, 404);
}

#[tokio::test]
async fn an_answer_comes_whole_or_in_events_and_is_counted() {
    let mut front = Front::start().await;
    for stream in [false, true] {
        let body = chat(json!({
            "stream": stream, "max_tokens": 5, "temperature": 0,
            "stream_options": { "include_usage": true },
        }));
        let connection = front.open("POST", CHAT, &body.to_string()).await;
        let (_, request, sender) = front.calls.recv().await.unwrap();
        assert_eq!(request.sampling.max_tokens, 5);
        sender.send(text("Hel", None)).await.unwrap();
        sender.send(text("lo", Some(FinishReason::Length))).await.unwrap();
        sender.finish();
        let (status, body) = read(connection).await;
        assert_eq!(status, 200);
        let usage = json!({
            "prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7,
            "prompt_tokens_details": { "cached_tokens": 1 },
        });
        if stream {
            let events: Vec<&str> =
                body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            assert_eq!(events.last(), Some(&"[DONE]"));
            let events: Vec<Value> = events[..events.len() - 1]
                .iter()
                .map(|event| serde_json::from_str(event).unwrap())
                .collect();
            let pieces: String = events
                .iter()
                .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
                .collect();
            assert_eq!(pieces, "Hello");
            assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
            assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
            assert_eq!(events[events.len() - 1]["usage"], usage);
        } else {
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["choices"][0]["message"]["content"], "Hello");
            assert_eq!(body["choices"][0]["finish_reason"], "length");
            assert_eq!(body["usage"], usage);
        }
    }
    let (_, metrics) = front.request("GET", "/metrics", "").await;
    for line in [
        "dynamo_frontend_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 2",
        "dynamo_frontend_inflight_requests 0",
        "dynamo_frontend_completion_tokens_total 10",
        "dynamo_frontend_time_to_first_token_seconds_count 2",
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn a_stop_text_asks_the_work_to_end_and_its_end_brings_the_counts() {
    let mut front = Front::start().await;
    let body = chat(json!({ "stop": ["END"] })).to_string();
    let connection = front.open("POST", CHAT, &body).await;
    let (ctx, _, sender) = front.calls.recv().await.unwrap();
    sender.send(text("one EN", None)).await.unwrap();
    sender.send(text("D two", None)).await.unwrap();
    bounded(ctx.stopped()).await;
    assert!(!ctx.is_killed(), "an orderly end, not a hang-up");
    sender.send(text("", Some(FinishReason::Length))).await.unwrap();
    sender.finish();
    let (_, body) = read(connection).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "one ");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    assert_eq!(body["usage"]["completion_tokens"], 7, "up to the stop text");
}

#[tokio::test]
async fn an_engine_that_does_not_stop_is_not_waited_for() {
    let mut front = Front::start().await;
    let body = chat(json!({ "stop": ["END"] })).to_string();
    let connection = front.open("POST", CHAT, &body).await;
    let (ctx, _, sender) = front.calls.recv().await.unwrap();
    sender.send(text("one END", None)).await.unwrap();
    // From here on nothing but time ends the wait.
    tokio::time::pause();
    let (status, body) = read(connection).await;
    assert!(status == 200 && body.contains("\"one \""), "{body}");
    bounded(ctx.killed()).await;
}

#[tokio::test]
async fn health_says_when_nobody_can_answer() {
    let front = Front::unready().await;
    assert_eq!(front.request("GET", "/health", "").await.0, 503);
}

/// Waits for what must happen soon.
async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap()
}

#[tokio::test]
async fn failures_are_a_status_before_the_first_token_and_an_event_after() {
    let mut front = Front::start().await;
    for (kind, status) in [
        (ErrorKind::InvalidArgument, 400),
        (ErrorKind::Overloaded, 503),
        (ErrorKind::Unavailable, 503),
        (ErrorKind::DeadlineExceeded, 504),
        (ErrorKind::Internal, 500),
    ] {
        let body = chat(json!({ "stream": true })).to_string();
        let connection = front.open("POST", CHAT, &body).await;
        let (_, _, sender) = front.calls.recv().await.unwrap();
        sender.fail(Error::new(kind, "the worker said so"));
        let (got, body) = read(connection).await;
        assert_eq!(got, status, "{kind}");
        assert!(body.contains("the worker said so"), "{body}");
    }
    let body = chat(json!({ "stream": true })).to_string();
    let connection = front.open("POST", CHAT, &body).await;
    let (_, _, sender) = front.calls.recv().await.unwrap();
    sender.send(text("half", None)).await.unwrap();
    drop(sender);
    let (status, body) = read(connection).await;
    assert_eq!(status, 200);
    assert!(body.contains("\"content\":\"f\"") && body.contains("\"error\""), "{body}");
    assert!(!body.contains("[DONE]"), "a broken answer never looks complete: {body}");
}

#[tokio::test]
async fn a_client_that_hangs_up_stops_the_work() {
    let mut front = Front::start().await;
    for stream in [true, false] {
        let body = chat(json!({ "stream": stream })).to_string();
        let connection = front.open("POST", CHAT, &body).await;
        let (ctx, _, sender) = front.calls.recv().await.unwrap();
        sender.send(text("a", None)).await.unwrap();
        drop(connection);
        // The front end notices when it next writes, or at once while it waits.
        bounded(async {
            while !ctx.is_killed() {
                tokio::select! {
                    () = ctx.killed() => {}
                    sent = sender.send(text("b", None)) => {
                        if sent.is_ok() { tokio::task::yield_now().await; }
                    }
                }
            }
        })
        .await;
    }
}
