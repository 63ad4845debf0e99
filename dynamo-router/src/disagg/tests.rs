use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, HandoffReport, HandoffTicket, Sampling, Usage,
};

use super::*;
use crate::fixtures;
use graph::{Graph, whichever};

mod diagnosis;
mod ends;
mod faults;
mod graph;
mod leases;
mod pools;
mod queues;
mod recovery;
mod transfer;

fn request() -> GenerateRequest {
    request_from(0)
}

/// A request of a prompt that begins with that token.
fn request_from(first: u32) -> GenerateRequest {
    fixtures::request(first..first + 40)
}

fn ticket() -> HandoffTicket {
    HandoffTicket::new(&b"claim"[..])
}

fn prefilled() -> GenerateChunk {
    let usage = Usage {
        prompt_tokens: 40,
        cached_tokens: Some(16),
        completion_tokens: 1,
        ..Usage::default()
    };
    GenerateChunk {
        token_ids: vec![7],
        usage: Some(usage),
        ticket: Some(ticket()),
        ..GenerateChunk::default()
    }
}

fn pulled() -> GenerateChunk {
    let handoff = HandoffReport { blocks_pulled: 3, ..HandoffReport::default() };
    GenerateChunk { handoff: Some(handoff), ..GenerateChunk::default() }
}

fn token(token: u32, finish: Option<FinishReason>) -> GenerateChunk {
    GenerateChunk { token_ids: vec![token], finish, ..GenerateChunk::default() }
}

#[tokio::test]
async fn a_request_is_prefilled_handed_over_and_decoded() {
    let mut graph = Graph::new(1, 1).await;
    let started = graph.start();
    let (hold, request, prefill) = graph.prefill[0].call().await;
    assert_eq!(request.stage, Stage::Prefill);
    prefill.send(prefilled()).await.unwrap();
    let mut stream = started.await.unwrap().unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((&first.token_ids[..], &first.ticket), (&[7][..], &None));

    let mut next = Box::pin(stream.next());
    assert!(futures::poll!(&mut next).is_pending());
    let (_, request, decode) = graph.decode[0].call().await;
    assert_eq!(request.stage, Stage::Decode { ticket: ticket(), first_token: 7 });
    assert!(!hold.is_killed(), "the hold stands until the blocks are pulled");
    decode.send(pulled()).await.unwrap();
    assert_eq!(next.await.unwrap().unwrap().handoff.unwrap().blocks_pulled, 3);
    assert!(hold.is_killed());
    assert_eq!(graph.engine.prefill.router.stats().bookings, 0);

    decode.send(token(8, None)).await.unwrap();
    decode.send(token(9, Some(FinishReason::Length))).await.unwrap();
    decode.finish();
    let rest = stream.collect().await.unwrap();
    assert_eq!(rest.iter().flat_map(|chunk| chunk.token_ids.clone()).collect::<Vec<_>>(), [8, 9]);
    let usage = Usage {
        prompt_tokens: 40,
        cached_tokens: Some(16),
        completion_tokens: 3,
        ..Usage::default()
    };
    assert_eq!(rest.last().unwrap().usage, Some(usage));
    graph.assert_at_rest(Outcome::Complete);
    let reports = graph.reports.lock().unwrap();
    let report = &reports[0];
    assert_eq!((report.cached_tokens, report.completion_tokens), (Some(16), 3));
    assert!(report.ttft.is_some() && report.itl.is_some() && report.decode.is_some());
}

#[tokio::test]
async fn an_answer_of_one_token_never_touches_a_decode_worker() {
    let mut graph = Graph::new(1, 0).await;
    let started = graph.start();
    let (_, _, prefill) = graph.prefill[0].call().await;
    let chunk = GenerateChunk { ticket: None, finish: Some(FinishReason::Stop), ..prefilled() };
    prefill.send(chunk).await.unwrap();
    prefill.finish();
    let chunks = started.await.unwrap().unwrap().collect().await.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].usage.unwrap().completion_tokens, 1);
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test]
async fn a_prefill_worker_that_is_gone_is_replaced_by_another() {
    let mut graph = Graph::new(2, 1).await;
    let started = graph.start();
    let (chosen, (ctx, _, _computing)) = whichever(&mut graph.prefill).await;
    // The worker ends in the middle of the prefill: no hang-up of the client's.
    drop(graph.prefill.remove(chosen));
    let (_, _, prefill) = graph.prefill[0].call().await;
    assert!(ctx.is_killed());
    prefill.send(prefilled()).await.unwrap();
    drop(started.await.unwrap().unwrap());
    graph.assert_at_rest(Outcome::Cancelled);
}

#[tokio::test]
async fn a_decode_worker_that_is_gone_is_replaced_with_the_same_ticket() {
    let mut graph = Graph::new(1, 2).await;
    let (stream, _prefill) = graph.first_token().await;
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    let rest = tokio::spawn(stream.collect());
    let (chosen, (_, _, refused)) = whichever(&mut graph.decode).await;
    refused.fail(Error::new(ErrorKind::Overloaded, "no blocks"));
    let (_, request, decode) = graph.decode[1 - chosen].call().await;
    assert_eq!(request.stage, Stage::Decode { ticket: ticket(), first_token: 7 });
    decode.send(token(8, Some(FinishReason::Length))).await.unwrap();
    decode.finish();
    assert_eq!(rest.await.unwrap().unwrap().len(), 1);
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test]
async fn an_answer_that_is_stopped_after_its_first_token_needs_no_decode_worker() {
    let mut graph = Graph::new(1, 1).await;
    let (mut stream, (hold, _, _prefill)) = graph.first_token().await;
    stream.context().stop();
    let last = stream.next().await.unwrap().unwrap();
    assert_eq!(last.finish, Some(FinishReason::Length));
    assert_eq!(last.usage.unwrap().cached_tokens, Some(16));
    assert!(stream.next().await.is_none());
    assert!(hold.is_killed(), "the staged blocks are let go");
    assert!(graph.decode[0].calls.try_recv().is_err());
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test]
async fn a_failure_of_the_request_is_not_tried_again() {
    let mut graph = Graph::new(2, 1).await;
    let started = graph.start();
    let (_, (_, _, refused)) = whichever(&mut graph.prefill).await;
    refused.fail(Error::invalid("prompt too long"));
    let error = started.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    graph.assert_at_rest(Outcome::Failed(ErrorKind::InvalidArgument));
}

#[tokio::test]
async fn a_client_that_leaves_at_any_stage_leaves_nothing_behind() {
    // Before the first token.
    let mut graph = Graph::new(1, 1).await;
    let started = graph.start();
    let (ctx, _, _sender) = graph.prefill[0].call().await;
    started.abort();
    assert!(started.await.unwrap_err().is_cancelled());
    ctx.killed().await;
    graph.assert_at_rest(Outcome::Cancelled);

    for stage in 0..3 {
        let mut graph = Graph::new(1, 1).await;
        let started = graph.start();
        let (hold, _, prefill) = graph.prefill[0].call().await;
        prefill.send(prefilled()).await.unwrap();
        let mut stream = started.await.unwrap().unwrap();
        if stage > 0 {
            // Between the first token and the pull, with the decode worker at work already.
            assert!(stream.next().await.unwrap().is_ok());
            let mut next = Box::pin(stream.next());
            assert!(futures::poll!(&mut next).is_pending());
            let (ctx, _, decode) = graph.decode[0].call().await;
            if stage > 1 {
                // In the middle of the answer.
                decode.send(pulled()).await.unwrap();
                assert!(next.as_mut().await.unwrap().is_ok());
            }
            drop(next);
            drop(stream);
            ctx.killed().await;
        } else {
            drop(stream);
        }
        hold.killed().await;
        graph.assert_at_rest(Outcome::Cancelled);
    }
}

#[tokio::test]
async fn a_ticket_from_outside_is_refused() {
    let graph = Graph::new(1, 1).await;
    let stage = Stage::Decode { ticket: ticket(), first_token: 1 };
    for stage in [stage, Stage::Prefill] {
        let request = request().with_stage(stage);
        let error = graph.engine.generate(Context::new(), request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[tokio::test]
async fn a_pool_without_workers_is_named() {
    for (fallback, named) in [
        (Fallback::OtherWorker, "n/prefill/generate"),
        (Fallback::LocalPrefill, "n/decode/generate"),
    ] {
        let config = DisaggConfig::default().with_split(Split::Always).with_fallback(fallback);
        let graph = Graph::with_config(0, 0, config).await;
        let error = graph.engine.generate(Context::new(), request()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains(named), "{error}");
        graph.assert_at_rest(Outcome::Failed(ErrorKind::Unavailable));
    }
}
