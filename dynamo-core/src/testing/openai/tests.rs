use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;
use crate::protocol::{BlockSize, TokenId};

/// What a request has led to; dropping it closes the connection.
struct Got {
    response: Response<Incoming>,
    _connection: JoinSet<()>,
}

impl Got {
    fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let body = self.response.body_mut();
        let frame =
            std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    /// Returns what comes until the body ends, and whether it ended properly.
    async fn all(&mut self) -> (String, bool) {
        let mut all = BytesMut::new();
        let is_whole = loop {
            match self.next().await {
                Some(Ok(bytes)) => all.extend_from_slice(&bytes),
                Some(Err(_)) => break false,
                None => break true,
            }
        };
        (String::from_utf8(all.to_vec()).unwrap(), is_whole)
    }

    async fn json(mut self) -> Value {
        serde_json::from_str(&self.all().await.0).unwrap()
    }
}

async fn send(server: &PlayedServer, request: Request<String>) -> hyper::Result<Got> {
    let socket = TcpStream::connect(server.address()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async {
        // What breaks shows at the body.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await?;
    Ok(Got { response, _connection: tasks })
}

async fn get(server: &PlayedServer, path: &str) -> Got {
    send(server, Request::get(path).body(String::new()).unwrap()).await.unwrap()
}

fn completion(body: &Value) -> Request<String> {
    Request::post("/v1/completions").body(body.to_string()).unwrap()
}

fn ask(prompt: &[TokenId], max_tokens: usize) -> Value {
    json!({
        "model": "played",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "stream": true,
        "stream_options": { "include_usage": true },
        "return_token_ids": true,
    })
}

async fn complete(server: &PlayedServer, body: &Value) -> Got {
    send(server, completion(body)).await.unwrap()
}

/// Returns the events of a stream; the last one says that it is done.
async fn events(server: &PlayedServer, body: &Value) -> Vec<Value> {
    let (text, is_whole) = complete(server, body).await.all().await;
    assert!(is_whole, "{text}");
    let events: Vec<_> =
        text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn tokens(events: &[Value]) -> Vec<TokenId> {
    let deltas = events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array());
    deltas.flatten().map(|token| token.as_u64().unwrap().try_into().unwrap()).collect()
}

fn cached(events: &[Value]) -> u64 {
    let details = &events.last().unwrap()["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap()
}

fn prompt(length: u32) -> Vec<TokenId> {
    (1..=length).collect()
}

fn blocks_of(tokens: u32) -> Script {
    Script { block_size: BlockSize::new(tokens).unwrap(), ..Script::default() }
}

#[tokio::test]
async fn a_stream_is_what_the_script_answers_and_so_is_one_body() {
    let script = Script { tokens_per_delta: 3, end_at: Some(12), ..Script::default() };
    let server = PlayedServer::start(script.clone()).await.unwrap();
    let events = events(&server, &ask(&prompt(5), 16)).await;
    let expected = script.answer(&prompt(5), 16);
    assert_eq!(expected.len(), 8, "seven words and the end");
    assert_eq!(tokens(&events), expected);
    assert_eq!(events[0]["choices"][0]["prompt_token_ids"], json!(prompt(5)));
    let finishes: Vec<_> =
        events.iter().map(|event| event["choices"][0]["finish_reason"].clone()).collect();
    assert_eq!(finishes, [json!(null), json!(null), json!("stop"), json!(null)]);
    let usage = json!({
        "prompt_tokens": 5, "total_tokens": 13, "completion_tokens": 8,
        "prompt_tokens_details": { "cached_tokens": 0 },
    });
    assert_eq!(events[3]["usage"], usage);

    let mut body = ask(&prompt(5), 4);
    body["stream"] = json!(false);
    let whole = complete(&server, &body).await.json().await;
    assert_eq!(whole["choices"][0]["token_ids"], json!(expected[..4]));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 4);
    assert_eq!(whole["kv_transfer_params"], json!(null));
    server.shutdown().await;
}

#[tokio::test]
async fn what_another_server_goes_on_with_is_the_same_answer() {
    let script = Script { end_at: Some(40), ..Script::default() };
    let first = PlayedServer::start(script.clone().with_faults([Fault::CloseAfter(7)])).await;
    let (first, second) = (first.unwrap(), PlayedServer::start(script.clone()).await.unwrap());
    let (text, is_whole) = complete(&first, &ask(&prompt(20), 64)).await.all().await;
    assert!(!is_whole && !text.contains("[DONE]"));
    let begun: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let begun = tokens(&begun);
    assert_eq!(begun.len(), 7);
    assert_eq!(first.asked()[0].state, AskedState::Cut);
    let rest = events(&second, &ask(&[prompt(20), begun.clone()].concat(), 57)).await;
    assert_eq!([begun, tokens(&rest)].concat(), script.answer(&prompt(20), 64));
}

#[tokio::test]
async fn cached_tokens_are_full_blocks_that_were_computed_and_never_the_last_token() {
    let server = PlayedServer::start(blocks_of(4)).await.unwrap();
    assert_eq!(cached(&events(&server, &ask(&prompt(8), 3)).await), 0);
    assert_eq!(cached(&events(&server, &ask(&prompt(8), 1)).await), 4, "the last one is computed");
    assert_eq!(cached(&events(&server, &ask(&prompt(9), 1)).await), 8);
    // Of an answer the last token was not computed: prompt and three words are ten tokens.
    let words = server.played.script.answer(&prompt(8), 3);
    assert_eq!(cached(&events(&server, &ask(&[prompt(8), words].concat(), 1)).await), 8);

    let page =
        String::from_utf8(get(&server, "/metrics").await.next().await.unwrap().unwrap().into());
    let page = page.unwrap();
    assert!(
        page.contains("vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"played\"} 36.0")
    );
    assert!(page.contains("vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"played\"} 20.0"));
    let reset = Request::post("/reset_prefix_cache").body(String::new()).unwrap();
    assert_eq!(send(&server, reset).await.unwrap().json().await, json!({ "success": true }));
    assert_eq!(cached(&events(&server, &ask(&prompt(9), 1)).await), 0);
}

#[tokio::test]
async fn an_observer_that_follows_the_changes_knows_what_is_cached() {
    let followed = Arc::new(Mutex::new((Vec::new(), 0)));
    let told = Arc::clone(&followed);
    let script = Script { blocks: 3, ..blocks_of(4) }.with_observer(move |change| {
        let mut told = told.lock().unwrap();
        match change {
            BlockChange::Stored { hashes, parent, token_ids } => {
                assert_eq!(token_ids.len(), 4 * hashes.len());
                assert!(parent.is_none_or(|parent| told.0.contains(&parent)));
                told.0.extend(hashes);
            }
            BlockChange::Removed { hashes } => {
                told.1 += hashes.len();
                told.0.retain(|hash| !hashes.contains(hash));
            }
            BlockChange::Cleared => told.0.clear(),
        }
    });
    let server = PlayedServer::start(script).await.unwrap();
    events(&server, &ask(&prompt(9), 1)).await;
    let counts = || {
        let followed = followed.lock().unwrap();
        (followed.0.len(), followed.1)
    };
    assert_eq!(counts(), (2, 0));
    events(&server, &ask(&[vec![99; 4], prompt(4)].concat(), 1)).await;
    assert_eq!(counts(), (3, 1));
    assert_eq!(cached(&events(&server, &ask(&prompt(9), 1)).await), 4, "the tail went first");
}

#[tokio::test]
async fn what_goes_wrong_is_what_was_written_down_in_that_order() {
    let faults = [
        Fault::Refuse(503),
        Fault::TooMany { retry_after_s: 7 },
        Fault::None,
        Fault::MalformedAfter(2),
        Fault::LongLineAfter(1, 10_000),
        Fault::ErrorAfter(1),
        Fault::WithoutIds,
        Fault::WithoutEnd,
    ];
    let server = PlayedServer::start(Script::default().with_faults(faults)).await.unwrap();
    let body = ask(&prompt(3), 4);
    let refused = complete(&server, &body).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.json().await["error"]["code"], 503);
    let refused = complete(&server, &body).await;
    assert_eq!(
        (refused.status(), refused.response.headers()["retry-after"].as_bytes()),
        (429, &b"7"[..])
    );
    assert_eq!(tokens(&events(&server, &body).await).len(), 4);
    let mut texts = Vec::new();
    for _ in 0..5 {
        texts.push(complete(&server, &body).await.all().await.0);
    }
    let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).count();
    assert!(texts[0].lines().nth(4).unwrap().ends_with('['), "{}", texts[0]);
    assert_eq!(lines(&texts[0]), 7, "four tokens, what is no JSON, the usage and the end");
    assert_eq!(texts[1].lines().map(str::len).max(), Some(10_006));
    assert!(texts[2].contains("\"error\"") && lines(&texts[2]) == 3);
    assert!(texts[3].contains("\"token_ids\":null") && texts[3].contains("\"text\""));
    assert!(!texts[3].contains("token_ids\":["));
    assert!(!texts[4].contains("[DONE]") && !texts[4].contains("length"));
    assert!(server.asked().iter().all(|asked| asked.state == AskedState::Answered));
}

#[tokio::test]
async fn what_hangs_goes_on_when_it_is_released_and_a_client_that_leaves_is_seen() {
    use AskedState::{Answered, Left, Running, Waiting};

    let faults = [Fault::HangBeforeHeaders, Fault::HangAfter(2), Fault::HangAfter(2)];
    let script = Script { running_max: 2, ..Script::default() }.with_faults(faults);
    let server = PlayedServer::start(script).await.unwrap();
    let body = ask(&prompt(3), 4);
    {
        let mut unanswered = std::pin::pin!(send(&server, completion(&body)));
        let asked = server.until(|asked| asked.len() == 1);
        tokio::select! {
            _ = &mut unanswered => panic!("an answer"),
            asked = asked => assert_eq!(asked.unwrap()[0].body, body),
        }
    }
    server.until(|asked| asked[0].state == Left).await.unwrap();

    let mut left = complete(&server, &body).await;
    let mut stays = complete(&server, &body).await;
    let mut waits = complete(&server, &body).await;
    let asked = server.until(|asked| {
        asked.len() == 4 && asked[1..3].iter().all(|asked| asked.tokens == 2 && asked.blocks == 1)
    });
    let states: Vec<_> = asked.await.unwrap().iter().map(|asked| asked.state).collect();
    assert_eq!(states, [Left, Running, Running, Waiting]);
    let page = get(&server, "/metrics").await.all().await.0;
    assert!(page.contains("vllm:num_requests_running{engine=\"0\",model_name=\"played\"} 2.0"));
    assert!(page.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"played\"} 1.0"));
    assert!(left.next().await.is_some());
    drop(left);
    assert_eq!(waits.all().await.0.matches("data:").count(), 6, "in the place of who has left");
    server.release();
    assert_eq!(stays.all().await.0.matches("data:").count(), 6);
    let states: Vec<_> = server.asked().iter().map(|asked| asked.state).collect();
    assert_eq!(states, [Left, Left, Answered, Answered]);
}

#[tokio::test]
async fn who_asks_for_what_is_not_there_is_told_as_vllm_tells_it() {
    let script = Script { api_key: Some("key".into()), max_model_len: 10, ..Script::default() };
    let server = PlayedServer::start(script).await.unwrap();
    assert_eq!(get(&server, "/health").await.status(), 200);
    assert_eq!(get(&server, "/v1/models").await.status(), 401);
    let with_key = |method, path: &str, body: String| {
        let request = Request::builder().method(method).uri(path);
        request.header("authorization", "Bearer key").body(body).unwrap()
    };
    let models = send(&server, with_key(Method::GET, "/v1/models", String::new())).await.unwrap();
    assert_eq!(models.json().await["data"][0]["max_model_len"], 10);
    let mut other = ask(&prompt(3), 4);
    other["model"] = json!("other");
    for (body, status, kind) in [
        (other.to_string(), 404, "NotFoundError"),
        (ask(&prompt(8), 3).to_string(), 400, "BadRequestError"),
        (ask(&[], 3).to_string(), 400, "BadRequestError"),
        ("{".to_owned(), 400, "BadRequestError"),
    ] {
        let got = send(&server, with_key(Method::POST, "/v1/completions", body)).await.unwrap();
        assert_eq!(got.status(), status);
        assert_eq!(got.json().await["error"]["type"], kind);
    }
    assert_eq!(server.asked()[0].header("authorization"), Some("Bearer key"));
    assert_eq!(server.asked()[0].body["model"], "other");
}

#[tokio::test]
async fn a_server_that_ends_cuts_off_what_it_answers_and_another_may_take_its_address() {
    let script = Script::default().with_faults([Fault::HangAfter(1)]);
    let server = PlayedServer::start(script).await.unwrap();
    let mut got = complete(&server, &ask(&prompt(3), 4)).await;
    server.until(|asked| asked[0].tokens == 1).await.unwrap();
    server.shutdown().await;
    assert!(!got.all().await.1);
    assert_eq!(server.asked()[0].state, AskedState::Cut);
    let script = Script { address: server.address(), ..Script::default() };
    let next = PlayedServer::start(script).await.unwrap();
    assert_eq!(next.url(), server.url());
    assert_eq!(get(&next, "/health").await.status(), 200);
}
