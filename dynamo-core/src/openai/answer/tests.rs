use std::sync::Arc;

use bytes::Bytes;

use super::super::sse::Events;
use super::*;
use crate::protocol::{BlockSize, CacheNamespace, HandoffTicket, Sampling};

const END: TokenId = 2;

fn reading(source: TokenSource, sampling: Sampling) -> Reading {
    reading_of(source, sampling, Stage::Full)
}

fn reading_of(source: TokenSource, sampling: Sampling, stage: Stage) -> Reading {
    let namespace = CacheNamespace::model("m");
    let request = GenerateRequest::new(namespace, BlockSize::DEFAULT, vec![7, 8, 9], sampling);
    Reading::new("http://host", source, &[END], &request.with_stage(stage))
}

/// Reads `events` and then the end.
fn read(mut reading: Reading, events: &[&str]) -> Result<(Vec<TokenId>, GenerateChunk)> {
    let mut tokens = Vec::new();
    for event in events {
        match reading.take(event.as_bytes())? {
            Said::Tokens(new) => tokens.extend(new),
            Said::Done => break,
        }
    }
    let last = reading.end()?;
    tokens.extend(&last.token_ids);
    Ok((tokens, last))
}

fn with_ids(sampling: Sampling, events: &[&str]) -> Result<(Vec<TokenId>, GenerateChunk)> {
    read(reading(TokenSource::TokenIds, sampling), events)
}

#[test]
fn deltas_become_tokens_and_the_last_chunk_says_why_and_how_many() {
    let (tokens, last) = with_ids(
        Sampling::default(),
        &[
            r#"{"choices":[{"index":0,"text":"a","token_ids":[4,5],"prompt_token_ids":[7,8,9]}]}"#,
            r#"{"choices":[{"index":0,"text":"","token_ids":[]}],"usage":null}"#,
            r#"{"choices":[{"index":0,"text":"b","token_ids":[6],"finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"total_tokens":6,"completion_tokens":3,
                "prompt_tokens_details":{"cached_tokens":2}}}"#,
            "[DONE]",
        ],
    )
    .unwrap();
    assert_eq!(tokens, [4, 5, 6]);
    let usage = Usage {
        prompt_tokens: 3,
        cached_tokens: Some(2),
        completion_tokens: 3,
        ..Usage::default()
    };
    assert_eq!((last.finish, last.usage), (Some(FinishReason::Length), Some(usage)));
}

#[test]
fn a_server_that_reports_no_usage_has_its_tokens_counted() {
    let events = [r#"{"choices":[{"text":"a","token_ids":[4,5],"finish_reason":"length"}]}"#];
    let (_, last) = with_ids(Sampling::default(), &events).unwrap();
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2, ..Usage::default() };
    assert_eq!(last.usage, Some(usage));
}

#[test]
fn what_ended_the_answer_is_no_part_of_it_and_what_did_not_is() {
    let stops = || Sampling { stop_token_ids: vec![5], ..Sampling::default() };
    let unending = || Sampling { ignore_end: true, ..stops() };
    let said = |ids: &str, finish: &str, by: &str| {
        format!(
            r#"{{"choices":[{{"text":"x","token_ids":{ids},"finish_reason":{finish},"stop_reason":{by}}}]}}"#
        )
    };
    for (sampling, events, expected) in [
        (stops(), &[said("[4,2]", r#""stop""#, "null")][..], &[4][..]),
        (stops(), &[said("[4,5]", r#""stop""#, "5")], &[4]),
        (stops(), &[said("[4,2]", "null", "null"), said("[]", r#""stop""#, "null")], &[4]),
        (stops(), &[said("[4,2]", r#""length""#, "null")], &[4, 2]),
        (stops(), &[said("[2]", "null", "null"), said("[2]", r#""stop""#, "null")], &[2]),
        (stops(), &[said("[4]", r#""stop""#, "null")], &[4]),
        // One that the server has from the model's own settings, and names.
        (stops(), &[said("[4,6]", r#""stop""#, "6")], &[4]),
        (stops(), &[said("[4,6]", r#""stop""#, r#""six""#)], &[4, 6]),
        (unending(), &[said("[2]", "null", "null"), said("[2,5]", r#""stop""#, "5")], &[2, 2]),
    ] {
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        let (tokens, _) = with_ids(sampling, &events).unwrap();
        assert_eq!(tokens, expected, "{events:?}");
    }
}

#[test]
fn ids_come_from_where_the_server_has_them() {
    let named = r#"{"choices":[{"text":"ab","logprobs":{"tokens":["token_id:4","token_id:5"]},
        "finish_reason":"stop"}]}"#;
    let text = r#"{"choices":[{"text":"ab","finish_reason":"stop"}]}"#;
    let raw = r#"{"choices":[{"text":"","token_ids":[4,5],"finish_reason":"stop"}]}"#;
    let encode: TokenSource =
        TokenSource::Encode(Arc::new(|text| Ok(text.bytes().map(TokenId::from).collect())));
    for (source, event, expected) in [
        (TokenSource::Logprobs, named, [4, 5]),
        (TokenSource::WithoutText, raw, [4, 5]),
        (encode, text, [97, 98]),
    ] {
        let (tokens, _) = read(reading(source, Sampling::default()), &[event]).unwrap();
        assert_eq!(tokens, expected, "{event}");
    }
}

#[test]
fn whatever_is_wrong_with_an_answer_is_said_by_its_kind() {
    use ErrorKind::{Internal, InvalidArgument, Protocol, Unavailable};
    let finished = r#"{"choices":[{"text":"a","token_ids":[4],"finish_reason":"stop"}]}"#;
    for (events, kind) in [
        (&[][..], Unavailable),
        (&[r#"{"choices":[{"text":"a","token_ids":[4]}]}"#], Unavailable),
        (&["[DONE]"], Unavailable),
        (&["{"], Protocol),
        (&[r#"{"choices":7}"#], Protocol),
        (&[r#"{"choices":[{"text":"a","token_ids":[-4]}]}"#], Protocol),
        (&[r#"{"choices":[{"text":"a"}]}"#], Protocol),
        (&[finished, finished], Protocol),
        (&[r#"{"choices":[{"text":"","finish_reason":"abort"}]}"#], Unavailable),
        (&[r#"{"choices":[{"text":"","finish_reason":"content_filter"}]}"#], Internal),
        (&[r#"{"error":{"message":"no","type":"BadRequestError","code":400}}"#], InvalidArgument),
        (&[r#"{"object":"error","message":"no","code":500}"#], Internal),
    ] {
        let error = with_ids(Sampling::default(), events).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (kind, false), "{events:?}: {error}");
    }
    let unnamed = r#"{"choices":[{"text":"a","logprobs":{"tokens":["a"]}}]}"#;
    let error = read(reading(TokenSource::Logprobs, Sampling::default()), &[unnamed]).unwrap_err();
    assert_eq!(error.kind(), Protocol);
}

/// An answer of vLLM 0.32 to a prompt of 37 tokens.
#[test]
fn a_recorded_answer_is_read_however_it_is_cut() {
    let recorded = include_bytes!("../fixtures/completion.sse");
    for cut in [1, 2, 1000, recorded.len()] {
        let mut reading = reading(TokenSource::TokenIds, Sampling::default());
        let (mut events, mut tokens, mut is_done) = (Events::default(), Vec::new(), false);
        for piece in recorded.chunks(cut) {
            events.push(Bytes::from_static(piece));
            while let Some(event) = events.next().unwrap() {
                match reading.take(&event).unwrap() {
                    Said::Tokens(new) => tokens.extend(new),
                    Said::Done => is_done = true,
                }
            }
        }
        let last = reading.end().unwrap();
        let expected = [
            504, 3426, 314, 253, 4749, 284, 11965, 7815, 28, 30055, 351, 1029, 284, 551, 1719, 281,
        ];
        assert_eq!((tokens.as_slice(), is_done), (&expected[..], true), "in pieces of {cut}");
        let (cached_tokens, completion_tokens) = (Some(0), 16);
        let prompt_tokens = 37;
        let usage = Usage { prompt_tokens, cached_tokens, completion_tokens, ..Usage::default() };
        assert_eq!((last.finish, last.usage), (Some(FinishReason::Length), Some(usage)));
    }
}

#[test]
fn a_decode_server_begins_with_the_token_that_was_told_and_is_heard_from_the_next_on() {
    let decode = || {
        let stage = Stage::Decode { ticket: HandoffTicket::new(&b""[..]), first_token: 4 };
        reading_of(TokenSource::TokenIds, Sampling::default(), stage)
    };
    let delta =
        |ids: &str| format!(r#"{{"choices":[{{"index":0,"text":"a","token_ids":{ids}}}]}}"#);
    let end = r#"{"choices":[{"index":0,"text":"b","token_ids":[6],"finish_reason":"length"}]}"#;
    for first in [vec!["[]", "[4]", "[5]"], vec!["[4,5]"]] {
        let events: Vec<_> = first.into_iter().map(delta).chain([end.to_owned()]).collect();
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        let (tokens, last) = read(decode(), &events).unwrap();
        assert_eq!((tokens, last.usage.unwrap().completion_tokens), (vec![5, 6], 3));
    }
    let refused = |events: &[&str]| read(decode(), events).unwrap_err().kind();
    assert_eq!(refused(&[&delta("[5]")]), ErrorKind::Conflict);
    let stop = r#"{"choices":[{"index":0,"text":"","token_ids":[],"finish_reason":"stop"}]}"#;
    assert_eq!(refused(&[stop]), ErrorKind::Conflict);
    // As vLLM tells that blocks could not be pulled.
    let failed = r#"{"error": {"message": "Internal server error", "param": null, "code": 500}}"#;
    assert_eq!(refused(&[failed]), ErrorKind::NotFound);
    assert_eq!(refused(&[&delta("[4]"), failed]), ErrorKind::Internal);
}
