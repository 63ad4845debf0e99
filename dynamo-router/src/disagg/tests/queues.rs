//! Requests that wait because all workers of a pool are busy.

use dynamo_core::Priority;
use std::num::NonZeroUsize;

use super::*;
use crate::queue::{BusyThresholds, QueueConfig, Watermarks};
use crate::router::Constraints;

/// One request at a time is prefilled by a worker, and so many others wait.
fn one_by_one(pool: Pool, entries: usize) -> Pool {
    let busy = BusyThresholds::never().with_prefill_tokens(Watermarks::new(0.0, 1.0).unwrap());
    pool.with_queue(QueueConfig::default().with_busy(busy).with_room(entries, 10_000))
}

async fn graph(entries_are_one: bool, fallback: Fallback) -> Graph {
    let config = DisaggConfig::default().with_split(Split::Always).with_fallback(fallback);
    let make: fn(Pool) -> Pool = match entries_are_one {
        true => |pool| one_by_one(pool, 1),
        false => |pool| one_by_one(pool, 10),
    };
    Graph::with_pools([1, 1], config, [make, |pool| pool]).await
}

type Started = tokio::task::JoinHandle<Result<ResponseStream<GenerateChunk>>>;

/// Starts a request whose prompt begins with `first`, as far as it goes by itself.
async fn start(graph: &Graph, first: u32) -> Started {
    let (engine, request) = (graph.engine.clone(), request_from(first));
    let mut started = Box::pin(async move { engine.generate(Context::new(), request).await });
    assert!(futures::poll!(&mut started).is_pending());
    #[expect(clippy::disallowed_methods, reason = "the test joins it, or ends it")]
    tokio::spawn(started)
}

fn waiting(graph: &Graph) -> usize {
    graph.engine.prefill.queue().unwrap().stats().waiting
}

/// The last chunk of an answer that needs no decode worker.
fn answer() -> GenerateChunk {
    GenerateChunk { ticket: None, finish: Some(FinishReason::Stop), ..prefilled() }
}

#[tokio::test]
async fn requests_wait_for_busy_prefill_workers_and_are_served_in_order() {
    let mut graph = graph(false, Fallback::default()).await;
    let mut started = Vec::new();
    for number in 0..4 {
        started.push(start(&graph, 1000 * number).await);
    }
    assert_eq!(waiting(&graph), 3);
    for (number, started) in started.into_iter().enumerate() {
        let (_, request, prefill) = graph.prefill[0].call().await;
        assert_eq!(request.token_ids[0] as usize, 1000 * number);
        assert!(graph.prefill[0].calls.try_recv().is_err(), "one at a time");
        let stats = [&graph.engine.prefill, &graph.engine.decode].map(|pool| pool.router.stats());
        assert_eq!(stats.map(|stats| stats.bookings), [1, 0], "who waits has nothing booked");
        prefill.send(answer()).await.unwrap();
        prefill.finish();
        started.await.unwrap().unwrap().collect().await.unwrap();
        assert_eq!(waiting(&graph), 2_usize.saturating_sub(number));
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back_or_sends_to_whom_the_fallback_says() {
    for (fallback, is_served) in [(Fallback::OtherWorker, false), (Fallback::LocalPrefill, true)] {
        let mut graph = graph(true, fallback).await;
        let first = start(&graph, 0).await;
        let second = start(&graph, 1000).await;
        let third = graph.engine.generate(Context::new(), request_from(2000));
        if is_served {
            let mut third = Box::pin(third);
            assert!(futures::poll!(&mut third).is_pending());
            let (_, request, decode) = graph.decode[0].call().await;
            assert_eq!((&request.stage, request.token_ids[0]), (&Stage::Full, 2000));
            decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
            decode.finish();
            assert_eq!(third.await.unwrap().collect().await.unwrap().len(), 1);
        } else {
            let error = third.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Overloaded);
            assert!(error.retry_after().is_some() && error.is_retryable(), "{error}");
        }
        for started in [first, second] {
            started.abort();
            assert!(started.await.unwrap_err().is_cancelled());
        }
        assert_eq!(waiting(&graph), 0);
    }
}

#[tokio::test]
async fn a_client_that_is_gone_waits_no_longer() {
    let mut graph = graph(false, Fallback::default()).await;
    let first = start(&graph, 0).await;
    let second = start(&graph, 1000).await;
    let third = start(&graph, 2000).await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(waiting(&graph), 1);
    graph.prefill[0].call().await.2.send(answer()).await.unwrap();
    drop(first.await.unwrap().unwrap());
    let (_, request, _prefill) = graph.prefill[0].call().await;
    assert_eq!(request.token_ids[0], 2000);
    third.abort();
    assert!(third.await.unwrap_err().is_cancelled());
    let outcomes: Vec<_> = graph.reports.lock().unwrap().iter().map(|r| r.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cancelled; 3]);
    assert_eq!(graph.engine.prefill.router.stats().bookings, 0);
}

#[tokio::test]
async fn a_request_that_is_stopped_in_the_queue_has_an_answer_of_no_tokens() {
    let graph = graph(false, Fallback::LocalPrefill).await;
    let first = start(&graph, 0).await;
    let ctx = Context::new();
    let mut second = Box::pin(graph.engine.generate(ctx.clone(), request_from(1000)));
    assert!(futures::poll!(&mut second).is_pending());
    ctx.stop();
    let chunks = second.await.unwrap().collect().await.unwrap();
    let [last] = &chunks[..] else { panic!("{chunks:?}") };
    let usage = last.usage.unwrap();
    assert_eq!((last.finish, &last.token_ids[..]), (Some(FinishReason::Length), &[][..]));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (40, 0));
    assert_eq!(waiting(&graph), 0);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_request_leaves_the_queue_at_its_deadline() {
    let graph = graph(false, Fallback::default()).await;
    let _first = start(&graph, 0).await;
    let ctx = Context::new().with_timeout(Duration::from_secs(2));
    let error = graph.engine.generate(ctx, request_from(1000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(waiting(&graph), 0);
}

#[tokio::test]
async fn a_hand_off_waits_for_a_busy_decode_worker_and_keeps_what_is_staged() {
    let config = DisaggConfig::default().with_split(Split::Always);
    let make: [fn(Pool) -> Pool; 2] = [
        |pool| pool,
        |pool| {
            let share = Watermarks::new(0.0, 0.1).unwrap();
            let busy = BusyThresholds::never().with_blocks_share(share);
            let busy = busy.with_blocks_total(NonZeroUsize::new(10).unwrap());
            pool.with_queue(QueueConfig::default().with_busy(busy))
        },
    ];
    let mut graph = Graph::with_pools([1, 1], config, make).await;
    let (first, _prefill) = graph.first_token().await;
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    let first = tokio::spawn(first.collect());
    let (_, _, decode) = graph.decode[0].call().await;
    let (mut second, (hold, _, _prefill)) = graph.first_token().await;
    let mut next = Box::pin(second.next());
    assert!(futures::poll!(&mut next).is_pending());
    assert_eq!(graph.engine.decode.queue().unwrap().stats().waiting, 1);
    assert!(!hold.is_killed());
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    decode.finish();
    first.await.unwrap().unwrap();
    let (_, request, decode) = tokio::select! {
        call = graph.decode[0].call() => call,
        said = &mut next => panic!("{said:?}"),
    };
    assert_eq!(request.stage, Stage::Decode { ticket: ticket(), first_token: 7 });
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    decode.finish();
    assert!(next.await.unwrap().unwrap().finish.is_some());
    assert!(hold.is_killed());
}

#[tokio::test]
async fn a_split_costs_the_wait_for_those_in_front_as_well() {
    let graph = graph(false, Fallback::default()).await;
    let pool = &graph.engine.prefill;
    let request = request_from(9000).with_stage(Stage::Prefill);
    let wait_s = || {
        let decision = pool.weigh(&request, &Constraints::default()).unwrap();
        let priority = Priority::NORMAL;
        let own_s = pool.router.total_s(&decision.explain.chosen, priority);
        pool.total_s(&decision, priority) - own_s
    };
    let mut started = vec![start(&graph, 0).await];
    assert_eq!(wait_s(), 0.0, "what the worker has is in its own cost");
    started.push(start(&graph, 1000).await);
    started.push(start(&graph, 2000).await);
    // Two prompts of forty tokens, each a ten-thousandth of a second.
    assert!((wait_s() - 0.008).abs() < 1e-6, "{}", wait_s());
    assert_eq!(waiting(&graph), 2, "who weighs takes nobody's turn");
    for started in started {
        started.abort();
        assert!(started.await.unwrap_err().is_cancelled());
    }
}
