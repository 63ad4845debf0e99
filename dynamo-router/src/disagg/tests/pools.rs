//! Whom a request is sent to: by its session, by labels, and by where its blocks are.

use super::graph::ZONE;
use super::*;
use crate::choose::SESSION_METADATA;

const WORTH: Duration = Duration::from_secs(1);

fn always() -> DisaggConfig {
    DisaggConfig::default().with_split(Split::Always)
}

/// Answers a request whose prompt is like no other's; returns which prefill and which decode worker
/// it was sent to.
async fn answered(graph: &mut Graph, ctx: Context, number: u32) -> [usize; 2] {
    let request = request_from(1000 * number);
    let engine = graph.engine.clone();
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    let started = tokio::spawn(async move { engine.generate(ctx, request).await?.collect().await });
    let (prefills, (_, _, prefill)) = whichever(&mut graph.prefill).await;
    prefill.send(prefilled()).await.unwrap();
    let (decodes, (_, _, decode)) = whichever(&mut graph.decode).await;
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    decode.finish();
    assert_eq!(started.await.unwrap().unwrap().len(), 2);
    [prefills, decodes]
}

#[tokio::test]
async fn the_requests_of_a_session_stay_together_in_both_pools() {
    let mut graph = Graph::with_config(2, 2, always()).await;
    let mut places = Vec::new();
    for number in 0..8 {
        let ctx = Context::new().with_metadata(SESSION_METADATA, "s");
        places.push(answered(&mut graph, ctx, number).await);
    }
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    let mut others = Vec::new();
    for number in 8..16 {
        others.push(answered(&mut graph, Context::new(), number).await);
    }
    assert!(others.iter().any(|place| *place != others[0]), "idle workers are chosen at random");
}

#[tokio::test]
async fn a_pool_sends_requests_where_its_labels_say() {
    let make: [fn(Pool) -> Pool; 2] =
        [|pool| pool.with_preferred(ZONE, "b", WORTH), |pool| pool.with_required(ZONE, "a")];
    let mut graph = Graph::with_pools([2, 2], always(), make).await;
    for number in 0..8 {
        assert_eq!(answered(&mut graph, Context::new(), number).await, [1, 0]);
    }
    let nowhere: [fn(Pool) -> Pool; 2] = [|pool| pool.with_required(ZONE, "c"), |pool| pool];
    let config = always().with_fallback(Fallback::OtherWorker);
    let graph = Graph::with_pools([2, 2], config, nowhere).await;
    let error = graph.engine.generate(Context::new(), request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("zone must be c"), "{error}");
}

#[tokio::test]
async fn blocks_are_handed_to_a_decode_worker_near_the_one_that_prefilled_them() {
    let mut graph = Graph::with_config(2, 2, always().with_near(ZONE, WORTH)).await;
    let mut seen = [0, 0];
    for number in 0..16 {
        let [prefills, decodes] = answered(&mut graph, Context::new(), number).await;
        assert_eq!(decodes, prefills);
        seen[prefills] += 1;
    }
    assert!(!seen.contains(&0), "{seen:?}");
    // It is a preference: elsewhere rather than nowhere.
    drop(graph.decode.remove(0));
    let started = graph.start();
    let (_, (_, _, prefill)) = whichever(&mut graph.prefill).await;
    prefill.send(prefilled()).await.unwrap();
    let mut stream = started.await.unwrap().unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    let mut next = Box::pin(stream.next());
    assert!(futures::poll!(&mut next).is_pending());
    let (_, _, decode) = graph.decode[0].call().await;
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    assert!(next.await.unwrap().is_ok());
}
