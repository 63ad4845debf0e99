//! What hand-offs took decides about the next ones.

use super::*;

/// Asks for an answer while the decode worker is busy with another one; returns where it was prefilled.
///
/// A hand-off takes `took`.
async fn placed(graph: &mut Graph, number: u32, took: Duration) -> PrefillPlace {
    let started = graph.start_with(request_from(1000 * number));
    let (place, (_ctx, _, worker)) = tokio::select! {
        call = graph.prefill[0].call() => (PrefillPlace::Remote, call),
        call = graph.decode[0].call() => (PrefillPlace::Local, call),
    };
    let chunk = match place {
        PrefillPlace::Remote => prefilled(),
        PrefillPlace::Local => token(8, Some(FinishReason::Stop)),
    };
    worker.send(chunk).await.unwrap();
    let mut stream = started.await.unwrap().unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    if place == PrefillPlace::Remote {
        let mut next = Box::pin(stream.next());
        assert!(futures::poll!(&mut next).is_pending());
        let (_, _, decode) = graph.decode[0].call().await;
        let micros = took.as_micros().try_into().unwrap();
        let handoff = HandoffReport { blocks_pulled: 3, micros, ..HandoffReport::default() };
        let finish = Some(FinishReason::Stop);
        decode.send(GenerateChunk { handoff: Some(handoff), ..token(8, finish) }).await.unwrap();
        decode.finish();
        assert!(next.await.unwrap().is_ok());
    }
    place
}

#[tokio::test(start_paused = true)]
async fn a_slow_fabric_is_left_alone_until_it_may_have_recovered() {
    let config = DisaggConfig::default().with_silence_max(Duration::MAX);
    let mut graph = Graph::with_config(1, 1, config).await;
    let started = graph.start();
    let (_, _, decode) = graph.decode[0].call().await;
    decode.send(token(1, None)).await.unwrap();
    // Prefilling beside it would stop it.
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    let decoding = tokio::spawn(started.await.unwrap().unwrap().collect());
    let (fast, slow) = (Duration::from_micros(100), Duration::from_secs(3));
    for number in 1..4 {
        assert_eq!(placed(&mut graph, number, fast).await, PrefillPlace::Remote);
    }
    let mut handoffs = 0;
    while placed(&mut graph, 10 + handoffs, slow).await == PrefillPlace::Remote {
        handoffs += 1;
        assert!(handoffs < 3, "it is slow");
    }
    assert!(handoffs > 0);
    assert_eq!(placed(&mut graph, 20, slow).await, PrefillPlace::Local);
    tokio::time::sleep(Duration::from_secs(1800)).await;
    for number in 21..24 {
        assert_eq!(placed(&mut graph, number, fast).await, PrefillPlace::Remote);
    }
    let learned = graph.engine.decode.router.fetch_s_per_token();
    assert!(learned < 1e-4, "{learned}");
    decoding.abort();
    assert!(decoding.await.unwrap_err().is_cancelled());
}
