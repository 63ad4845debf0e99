use futures::StreamExt;

use super::super::tokens::TokenSource;
use super::*;
use crate::protocol::{BlockSize, CacheNamespace, GenerateRequest, Sampling};

/// One prompt by vLLM 0.32's `NixlConnector` on a CPU: prefilled, decoded by another server, and
/// by one server alone.
fn recorded() -> Value {
    serde_json::from_str(include_str!("../fixtures/handoff.json")).unwrap()
}

/// What the prefill server of [`recorded`] said of its blocks.
fn said() -> Value {
    recorded()[0]["response"]["kv_transfer_params"].clone()
}

/// A ticket, and what is in it.
pub(in crate::openai) fn example() -> (HandoffTicket, Value) {
    (ticket(&said()).unwrap(), said())
}

fn tokens(answer: &Value) -> Vec<TokenId> {
    serde_json::from_value(answer["response"]["choices"][0]["token_ids"].clone()).unwrap()
}

#[test]
fn a_ticket_brings_what_the_prefill_server_said_to_the_decode_server() {
    let params = params(&ticket(&said()).unwrap()).unwrap();
    assert_eq!(params, said());
    assert_eq!(params, recorded()[1]["request"]["kv_transfer_params"], "and that was understood");
    let asked = &recorded()[0]["request"]["kv_transfer_params"];
    for (name, value) in prefill_params().as_object().unwrap() {
        assert_eq!(asked[name], *value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_brings_the_first_token_and_a_ticket_and_stays_open_while_blocks_are_kept() {
    let answer = recorded()[0]["response"].to_string();
    let prefilled = |max_tokens| {
        let sampling = Sampling { max_tokens, ..Sampling::default() };
        let namespace = CacheNamespace::default();
        let request = GenerateRequest::new(namespace, BlockSize::DEFAULT, vec![1], sampling);
        let mut reading = Reading::new("http://host", TokenSource::TokenIds, &[], &request);
        prefilled(&mut reading, answer.as_bytes(), max_tokens).unwrap()
    };
    let chunk = prefilled(12);
    assert_eq!((chunk.token_ids.clone(), chunk.finish), (tokens(&recorded()[0]), None));
    assert_eq!(params(chunk.ticket.as_ref().unwrap()).unwrap(), said());
    assert_eq!(chunk.usage.unwrap().prompt_tokens, 70);
    let mut stream = held(&Context::new(), chunk, Duration::from_secs(25));
    assert!(stream.next().await.unwrap().is_ok());
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);

    let over = prefilled(1);
    assert_eq!((over.finish, &over.ticket), (Some(FinishReason::Length), &None));
    let chunks = held(&Context::new(), over, Duration::from_secs(25)).collect().await.unwrap();
    assert_eq!(chunks.len(), 1);
}

#[test]
fn the_recorded_answer_by_two_servers_is_that_of_one() {
    let [prefilled, decoded, alone] = [0, 1, 2].map(|at| tokens(&recorded()[at]));
    let mut rest = decoded;
    take_first(prefilled[0], &mut rest).unwrap();
    assert_eq!([prefilled, rest].concat(), alone);
}

#[test]
fn a_decode_server_that_begins_otherwise_does_not_go_on_with_the_answer() {
    let error = take_first(7, &mut vec![8, 7]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(take_first(7, &mut Vec::new()).unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn a_server_without_a_connector_makes_no_ticket() {
    assert_eq!(ticket(&Value::Null).unwrap_err().kind(), ErrorKind::Internal);
    let mut pushes = said();
    pushes["transfer_mode"] = "push".into();
    assert!(ticket(&pushes).unwrap_err().message().contains("push"));
}

#[test]
fn what_a_decode_server_takes_for_granted_has_to_be_there() {
    for (name, value) in [
        ("remote_engine_id", json!("")),
        ("remote_request_id", json!(null)),
        ("remote_host", json!(7)),
        ("remote_port", json!(65_536)),
        ("do_remote_prefill", json!(false)),
        ("remote_block_ids", json!("x")),
        ("remote_block_ids", json!([])),
        ("remote_block_ids", json!([[1, -1]])),
    ] {
        let mut params = said();
        params[name] = value;
        let error = ticket(&params).unwrap_err();
        assert!(error.message().contains(name), "{error}");
    }
    let mut flat = said();
    flat["remote_block_ids"] = json!([1, 2, 3]);
    assert!(ticket(&flat).is_ok(), "as older servers say it");
}

#[test]
fn a_ticket_of_somebody_else_or_a_broken_one_is_refused() {
    let good = ticket(&said()).unwrap().as_bytes().to_vec();
    let refused = |bytes: Vec<u8>| {
        let error = params(&HandoffTicket::new(bytes)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    };
    for length in 0..good.len() {
        refused(good[..length].to_vec());
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        refused(bytes);
    }
    for body in [b"null".as_slice(), b"[]", b"{", br#"{"do_remote_prefill":true}"#] {
        refused([MARK.as_slice(), &xxh3_64(body).to_le_bytes(), body].concat());
    }
    let long = vec![b' '; BYTES_MAX + 1];
    refused([MARK.as_slice(), &xxh3_64(&long).to_le_bytes(), &long].concat());
}

#[test]
fn a_ticket_is_bounded() {
    let mut params = said();
    params["remote_host"] = "h".repeat(BYTES_MAX).into();
    assert!(ticket(&params).unwrap_err().message().contains("bytes"));
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_open_while_the_blocks_are_kept_and_fails_then() {
    let kept = Duration::from_secs(25);
    let began = Instant::now();
    let mut hold = std::pin::pin!(hold(kept));
    // Time that passes before anybody reads counts as well.
    tokio::time::advance(Duration::from_secs(10)).await;
    let error = hold.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), began.elapsed().as_secs()), (ErrorKind::NotFound, 25));
    assert!(hold.next().await.is_none());
}
