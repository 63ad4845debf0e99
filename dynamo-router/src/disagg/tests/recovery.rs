//! What is done about failures, one at a time.

use super::*;
use crate::router::Constraints;

fn config(fallback: Fallback) -> DisaggConfig {
    DisaggConfig::default().with_split(Split::Always).with_fallback(fallback)
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "died")
}

/// Reads the rest of an answer on a task of its own.
fn rest(
    stream: ResponseStream<GenerateChunk>,
) -> tokio::task::JoinHandle<Result<Vec<GenerateChunk>>> {
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    tokio::spawn(stream.collect())
}

fn tokens(chunks: &[GenerateChunk]) -> Vec<u32> {
    chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn idle_pools_do_not_split_and_a_busy_decode_worker_does() {
    let mut graph = Graph::with_config(1, 1, DisaggConfig::default()).await;
    let started = graph.start();
    let (_, request, decode) = graph.decode[0].call().await;
    assert_eq!(request.stage, Stage::Full);
    decode.send(token(1, None)).await.unwrap();
    let decoding = started.await.unwrap().unwrap();
    // One more prefill there would stop that answer, and what is only weighed is expected nowhere.
    let started = graph.start_with(request_from(1000));
    let (_, request, prefill) = graph.prefill[0].call().await;
    assert_eq!(request.stage, Stage::Prefill);
    let finish = Some(FinishReason::Stop);
    prefill.send(GenerateChunk { ticket: None, finish, ..prefilled() }).await.unwrap();
    prefill.finish();
    started.await.unwrap().unwrap().collect().await.unwrap();
    drop(decoding);
    let reports = graph.reports.lock().unwrap();
    let split = |report: &DisaggReport| report.split.map(|split| (split.place, split.reason));
    assert_eq!(split(&reports[0]), Some((PrefillPlace::Remote, SplitReason::Cost)));
    assert_eq!(split(&reports[1]), Some((PrefillPlace::Local, SplitReason::Cost)));
    assert!(reports[1].prefill.is_none() && reports[1].decode.is_some());
}

#[tokio::test]
async fn a_prefill_that_fails_everywhere_is_done_where_it_is_decoded() {
    let mut graph = Graph::with_config(2, 1, config(Fallback::LocalPrefill)).await;
    let started = graph.start();
    let (chosen, (_, _, first)) = whichever(&mut graph.prefill).await;
    first.fail(unavailable());
    let (_, _, second) = graph.prefill[1 - chosen].call().await;
    // An answer that is neither at its end nor of use to a decode worker.
    second.send(GenerateChunk { ticket: None, ..prefilled() }).await.unwrap();
    let (_, request, decode) = graph.decode[0].call().await;
    assert_eq!(request.stage, Stage::Full);
    let usage = Some(Usage { prompt_tokens: 40, cached_tokens: Some(3), ..Usage::default() });
    decode.send(token(7, None)).await.unwrap();
    let last = GenerateChunk { usage, ..token(8, Some(FinishReason::Length)) };
    decode.send(last).await.unwrap();
    decode.finish();
    let chunks = started.await.unwrap().unwrap().collect().await.unwrap();
    assert_eq!(tokens(&chunks), [7, 8]);
    assert_eq!(chunks[1].usage.unwrap().completion_tokens, 2);
    graph.assert_at_rest(Outcome::Complete);
    let report = graph.reports.lock().unwrap()[0].clone();
    assert_eq!(report.split.unwrap().reason, SplitReason::Fallback);
    assert_eq!((report.cached_tokens, report.moves), (Some(3), 0));
}

#[tokio::test]
async fn a_request_that_breaks_two_workers_is_given_to_no_third() {
    let mut graph = Graph::with_config(2, 1, config(Fallback::LocalPrefill)).await;
    let started = graph.start();
    let (chosen, (_, _, first)) = whichever(&mut graph.prefill).await;
    first.fail(Error::internal("boom"));
    graph.prefill[1 - chosen].call().await.2.fail(Error::internal("boom"));
    assert_eq!(started.await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    assert!(graph.decode[0].calls.try_recv().is_err());
    graph.assert_at_rest(Outcome::Failed(ErrorKind::Internal));
}

#[tokio::test]
async fn a_ticket_of_no_use_is_replaced_as_far_as_the_fallback_goes() {
    for (said, fallback, stage) in [
        (ErrorKind::NotFound, Fallback::LocalPrefill, Stage::Full),
        (ErrorKind::Protocol, Fallback::LocalPrefill, Stage::Full),
        (ErrorKind::DeadlineExceeded, Fallback::LocalPrefill, Stage::Full),
        (ErrorKind::NotFound, Fallback::OtherWorker, Stage::Prefill),
    ] {
        let mut graph = Graph::with_config(2, 2, config(fallback)).await;
        let started = graph.start();
        let (chosen, (hold, _, first)) = whichever(&mut graph.prefill).await;
        first.send(prefilled()).await.unwrap();
        let rest = rest(started.await.unwrap().unwrap());
        let (_, (_, _, decode)) = whichever(&mut graph.decode).await;
        decode.fail(Error::new(said, "pull"));
        // No other decode worker is bothered with the ticket.
        let (_, request, sender) = match fallback {
            Fallback::LocalPrefill => whichever(&mut graph.decode).await.1,
            _ => graph.prefill[1 - chosen].call().await,
        };
        assert!(hold.is_killed(), "nobody comes for what was staged");
        assert_eq!(request.stage, stage, "{said}");
        if fallback == Fallback::LocalPrefill {
            assert!(graph.prefill[1 - chosen].calls.try_recv().is_err());
        }
        assert_eq!(request.token_ids.last(), Some(&7), "the first token is delivered already");
        assert_eq!((request.token_ids.len(), request.sampling.max_tokens), (41, 15));
        sender.send(token(8, Some(FinishReason::Stop))).await.unwrap();
        sender.finish();
        let chunks = rest.await.unwrap().unwrap();
        assert_eq!(tokens(&chunks), [7, 8]);
        let usage = chunks.last().unwrap().usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.cached_tokens), (40, Some(16)));
        assert_eq!(usage.completion_tokens, 2);
        graph.assert_at_rest(Outcome::Complete);
        assert_eq!(graph.reports.lock().unwrap()[0].moves, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn decode_workers_without_room_are_asked_again_when_they_said_and_not_to_prefill() {
    let mut graph = Graph::with_config(1, 1, config(Fallback::LocalPrefill)).await;
    let (stream, _prefill) = graph.first_token().await;
    let rest = rest(stream);
    let (_, _, decode) = graph.decode[0].call().await;
    let full_for = Duration::from_secs(3);
    let refused = tokio::time::Instant::now();
    decode.fail(Error::new(ErrorKind::Overloaded, "no blocks").with_retry_after(full_for));
    let (_, request, prefill) = graph.prefill[0].call().await;
    assert!(refused.elapsed() >= full_for);
    assert_eq!((&request.stage, request.token_ids.len()), (&Stage::Prefill, 41));
    let last = GenerateChunk { finish: Some(FinishReason::Stop), ..prefilled() };
    prefill.send(last).await.unwrap();
    prefill.finish();
    assert_eq!(tokens(&rest.await.unwrap().unwrap()), [7]);
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test]
async fn without_a_fallback_the_first_failure_is_told_and_blames_nobody_outside() {
    for (said, told) in [
        (ErrorKind::NotFound, ErrorKind::Unavailable),
        (ErrorKind::DeadlineExceeded, ErrorKind::Unavailable),
        (ErrorKind::InvalidArgument, ErrorKind::Internal),
        (ErrorKind::Protocol, ErrorKind::Internal),
        (ErrorKind::Overloaded, ErrorKind::Overloaded),
    ] {
        let mut graph = Graph::with_config(1, 2, config(Fallback::Fail)).await;
        let (stream, _prefill) = graph.first_token().await;
        let rest = rest(stream);
        let (_, (_, _, decode)) = whichever(&mut graph.decode).await;
        decode.fail(Error::new(said, "pull"));
        let error = rest.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (told, false));
        assert_eq!(Interrupted::of(&error).unwrap().tokens, 1);
        graph.assert_at_rest(Outcome::Failed(told));
    }
}

#[tokio::test]
async fn an_answer_lost_in_mid_stream_goes_on_elsewhere() {
    let mut graph = Graph::with_config(1, 2, config(Fallback::OtherWorker)).await;
    let (stream, _prefill) = graph.first_token().await;
    let rest = rest(stream);
    let (chosen, (_, _, lost)) = whichever(&mut graph.decode).await;
    lost.send(pulled()).await.unwrap();
    lost.send(token(8, None)).await.unwrap();
    lost.fail(unavailable());
    let (_, request, prefill) = graph.prefill[0].call().await;
    assert_eq!(request.token_ids[40..], [7, 8]);
    assert_eq!(request.sampling.max_tokens, 14);
    let again = GenerateChunk { token_ids: vec![9], ..prefilled() };
    prefill.send(again).await.unwrap();
    let (_, request, decode) = graph.decode[1 - chosen].call().await;
    assert_eq!(request.stage, Stage::Decode { ticket: ticket(), first_token: 9 });
    decode.send(pulled()).await.unwrap();
    decode.send(token(10, Some(FinishReason::Length))).await.unwrap();
    decode.finish();
    let chunks = rest.await.unwrap().unwrap();
    assert_eq!(tokens(&chunks), [8, 9, 10]);
    assert_eq!(chunks.last().unwrap().usage.unwrap().completion_tokens, 4);
    assert_eq!(chunks.iter().filter(|chunk| chunk.handoff.is_some()).count(), 1);
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_that_is_lost_before_the_pull_takes_the_attempt_with_it() {
    let mut graph = Graph::with_config(1, 1, config(Fallback::LocalPrefill)).await;
    let (stream, (_, _, prefill)) = graph.first_token().await;
    let rest = rest(stream);
    let (pulling, _, _decode) = graph.decode[0].call().await;
    let lost = tokio::time::Instant::now();
    prefill.fail(unavailable());
    pulling.killed().await;
    assert!(lost.elapsed().is_zero(), "before the decode worker has been silent for too long");
    let (_, request, decode) = graph.decode[0].call().await;
    assert_eq!((&request.stage, request.token_ids.len()), (&Stage::Full, 41));
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    decode.finish();
    assert_eq!(tokens(&rest.await.unwrap().unwrap()), [8]);
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_is_given_up() {
    let mut graph = Graph::new(2, 1).await;
    let started = graph.start();
    let (chosen, (silent, _, _kept)) = whichever(&mut graph.prefill).await;
    let (_, _, prefill) = graph.prefill[1 - chosen].call().await;
    assert!(silent.is_killed());
    prefill.send(prefilled()).await.unwrap();
    let rest = rest(started.await.unwrap().unwrap());
    let (silent, _, decode) = graph.decode[0].call().await;
    decode.send(token(8, None)).await.unwrap();
    let (_, _, prefill) = graph.prefill[1 - chosen].call().await;
    assert!(silent.is_killed());
    prefill.send(GenerateChunk { finish: Some(FinishReason::Stop), ..prefilled() }).await.unwrap();
    prefill.finish();
    assert_eq!(tokens(&rest.await.unwrap().unwrap()), [7, 8, 7]);
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test]
async fn an_overload_everywhere_is_told_with_the_time_to_come_back() {
    let mut graph = Graph::new(2, 1).await;
    let started = graph.start();
    let full = |seconds| {
        let error = Error::new(ErrorKind::Overloaded, "no room").unprocessed();
        error.with_retry_after(Duration::from_secs(seconds))
    };
    let (chosen, (_, _, first)) = whichever(&mut graph.prefill).await;
    first.fail(full(2));
    graph.prefill[1 - chosen].call().await.2.fail(full(9));
    graph.decode[0].call().await.2.fail(full(5));
    let error = started.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
    assert!(error.is_retryable());
    graph.assert_at_rest(Outcome::Failed(ErrorKind::Overloaded));
}

#[tokio::test]
async fn a_refused_prompt_is_not_expected_where_it_was_refused() {
    let mut graph = Graph::with_config(1, 1, config(Fallback::Fail)).await;
    let started = graph.start();
    let (_, _, prefill) = graph.prefill[0].call().await;
    prefill.fail(Error::new(ErrorKind::Overloaded, "no room").unprocessed());
    assert!(started.await.unwrap().is_err());
    let again = graph.engine.prefill.router.route(&request(), &Constraints::default()).unwrap();
    assert_eq!(again.cached_tokens, 0);
}
