//! How a request ends, as its workers and its report see it.

use super::*;

#[tokio::test]
async fn a_complete_answer_kills_no_worker_that_decoded_it() {
    let mut graph = Graph::new(1, 1).await;
    let (mut stream, _prefill) = graph.first_token().await;
    let mut last = Box::pin(stream.next());
    assert!(futures::poll!(&mut last).is_pending());
    let (ctx, _, decode) = graph.decode[0].call().await;
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    assert_eq!(last.await.unwrap().unwrap().finish, Some(FinishReason::Stop));
    decode.finish();
    assert!(stream.next().await.is_none());
    assert!(!ctx.is_killed());
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_end_after_its_last_chunk_is_not_waited_for() {
    let mut graph = Graph::new(1, 0).await;
    let started = graph.start();
    let (ctx, _, prefill) = graph.prefill[0].call().await;
    let chunk = GenerateChunk { ticket: None, finish: Some(FinishReason::Stop), ..prefilled() };
    prefill.send(chunk).await.unwrap();
    assert_eq!(started.await.unwrap().unwrap().collect().await.unwrap().len(), 1);
    ctx.killed().await;
    graph.assert_at_rest(Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_mid_answer_is_reported_as_such_and_not_as_a_client_that_left() {
    let mut graph = Graph::new(1, 1).await;
    let ctx = Context::new().with_timeout(Duration::from_secs(5));
    let mut generate = Box::pin(graph.engine.generate(ctx, request()));
    assert!(futures::poll!(&mut generate).is_pending());
    let (_, _, prefill) = graph.prefill[0].call().await;
    prefill.send(prefilled()).await.unwrap();
    let mut stream = generate.await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    // The decode worker never says anything.
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(stream.next().await.is_none());
    graph.decode[0].call().await.0.killed().await;
    graph.assert_at_rest(Outcome::Failed(ErrorKind::DeadlineExceeded));
}

#[tokio::test]
async fn a_refused_request_is_reported_too_and_reaches_nobody() {
    let mut graph = Graph::new(1, 1).await;
    let request = request().with_stage(Stage::Prefill);
    assert!(graph.engine.generate(Context::new(), request).await.is_err());
    assert!(graph.prefill[0].calls.try_recv().is_err());
    graph.assert_at_rest(Outcome::Failed(ErrorKind::InvalidArgument));
    let reports = graph.reports.lock().unwrap();
    assert_eq!((reports[0].prefill_worker(), reports[0].decode_worker()), (None, None));
    assert_eq!(reports[0].predicted_cached_tokens(), 0);
}
