use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::engine::RequestId;
use crate::error::ErrorKind;
use crate::protocol::{BlockSize, TraceContext};

fn request(namespace: CacheNamespace, sampling: Sampling) -> GenerateRequest {
    GenerateRequest::new(namespace, BlockSize::DEFAULT, vec![1, 2, 3], sampling)
}

fn asked(config: &OpenAiConfig, ctx: &Context, request: &GenerateRequest) -> Value {
    serde_json::from_str(&body(config, ctx, request).unwrap()).unwrap()
}

fn config() -> OpenAiConfig {
    OpenAiConfig::new("http://host", "smol")
}

#[test]
fn a_request_is_asked_with_ids_and_what_is_not_set_is_left_out() {
    let request = request(CacheNamespace::model("m"), Sampling::default());
    let expected = json!({
        "model": "smol", "prompt": [1, 2, 3], "max_tokens": 16, "temperature": 0.0, "top_p": 1.0,
        "seed": 0, "stream": true, "stream_options": {"include_usage": true},
        "return_token_ids": true,
    });
    assert_eq!(asked(&config(), &Context::new(), &request), expected);
}

#[test]
fn sampling_adapter_salt_and_priority_are_said_in_the_servers_words() {
    let namespace = CacheNamespace {
        adapter: "poet".into(),
        extra: b"pepper".to_vec(),
        ..CacheNamespace::model("m")
    };
    let sampling = Sampling {
        max_tokens: 7,
        temperature: 0.7,
        top_p: 0.9,
        seed: u64::MAX,
        stop_token_ids: vec![5, 6],
        ignore_end: true,
    };
    let ctx = Context::new().with_priority(Priority::HIGHEST);
    let asked = asked(&config().with_priority(true), &ctx, &request(namespace, sampling));
    let expected = json!({
        "model": "poet", "prompt": [1, 2, 3], "max_tokens": 7, "temperature": 0.7, "top_p": 0.9,
        "seed": i64::MAX, "stop_token_ids": [5, 6], "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true}, "return_token_ids": true, "priority": -3,
        "cache_salt": "pepper",
    });
    assert_eq!(asked, expected);
}

#[test]
fn each_source_of_ids_is_asked_for_by_its_own_names() {
    let request = request(CacheNamespace::model("m"), Sampling::default());
    for (tokens, names) in [
        (TokenSource::TokenIds, json!({"return_token_ids": true})),
        (TokenSource::WithoutText, json!({"detokenize": false})),
        (TokenSource::Logprobs, json!({"return_tokens_as_token_ids": true, "logprobs": 1})),
        (TokenSource::Encode(Arc::new(|_| Ok(Vec::new()))), json!({})),
    ] {
        let asked = asked(&config().with_tokens(tokens.clone()), &Context::new(), &request);
        let all = ["return_token_ids", "detokenize", "return_tokens_as_token_ids", "logprobs"];
        let found = all.iter().filter_map(|name| Some((*name, asked.get(name)?.clone())));
        assert_eq!(found.collect::<Value>(), names, "{tokens:?}");
    }
}

#[test]
fn what_no_server_can_be_asked_is_refused_here() {
    let sampling = Sampling::default;
    for (sampling, named) in [
        (Sampling { max_tokens: 0, ..sampling() }, "max_tokens"),
        (Sampling { temperature: f32::NAN, ..sampling() }, "temperature"),
        (Sampling { temperature: 2.5, ..sampling() }, "temperature"),
        (Sampling { top_p: 0.0, ..sampling() }, "top_p"),
        (Sampling { top_p: f32::INFINITY, ..sampling() }, "top_p"),
    ] {
        let request = request(CacheNamespace::model("m"), sampling);
        let error = body(&config(), &Context::new(), &request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(named), "{error}");
    }
    let salted = CacheNamespace { extra: vec![0xff], ..CacheNamespace::model("m") };
    let empty = request(salted.clone(), sampling()).with_prompt(Vec::new());
    for (request, named) in [(request(salted, sampling()), "cache_salt"), (empty, "prompt")] {
        let error = body(&config(), &Context::new(), &request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(named), "{error}");
    }
}

#[test]
fn id_trace_and_rank_go_as_headers_and_an_id_that_is_none_is_left_out() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ctx = Context::with_id(RequestId::from("r7"))
        .with_trace(trace.parse::<TraceContext>().unwrap())
        .with_rank(3);
    let headers = headers(&ctx);
    let of = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
    assert_eq!(of("x-request-id"), Some("r7"));
    assert_eq!(of("traceparent"), Some(trace));
    assert_eq!(of("x-data-parallel-rank"), Some("3"));
    assert!(super::headers(&Context::with_id(RequestId::from("r\n7"))).is_empty());
}

#[test]
fn a_prefill_is_asked_whole_for_one_token_and_a_decode_with_the_prompt_and_where_its_blocks_are() {
    let full = request(CacheNamespace::default(), Sampling::default());
    let prefill = asked(&config(), &Context::new(), &full.with_stage(Stage::Prefill));
    assert_eq!((&prefill["max_tokens"], &prefill["stream"]), (&json!(1), &json!(false)));
    assert_eq!(prefill["stream_options"], Value::Null, "servers refuse them with stream: false");
    assert_eq!(prefill["kv_transfer_params"], transfer::prefill_params());

    let mut one = full.with_stage(Stage::Prefill);
    one.sampling.max_tokens = 1;
    let one = asked(&config(), &Context::new(), &one);
    assert_eq!(one["kv_transfer_params"], Value::Null, "nobody would pull the blocks");

    let (ticket, params) = transfer::tests::example();
    let stage = Stage::Decode { ticket, first_token: 5 };
    let decode = asked(&config(), &Context::new(), &full.with_stage(stage));
    assert_eq!(decode["kv_transfer_params"], params);
    let mut rest = decode;
    rest.as_object_mut().unwrap().remove("kv_transfer_params");
    assert_eq!(rest, asked(&config(), &Context::new(), &full), "else it is the whole request");

    let ticket = crate::protocol::HandoffTicket::new(&b"claim"[..]);
    let foreign = full.with_stage(Stage::Decode { ticket, first_token: 5 });
    let error = body(&config(), &Context::new(), &foreign).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
}
