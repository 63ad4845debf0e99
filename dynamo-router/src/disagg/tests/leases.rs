//! What is waited for stays booked.

use super::*;

const LONG: Duration = Duration::from_secs(180);

/// Lets time pass, and the routers release what nothing goes on for; returns what is booked then.
async fn booked_after(graph: &Graph, wait: Duration) -> [usize; 2] {
    tokio::time::sleep(wait).await;
    [&graph.engine.prefill, &graph.engine.decode].map(|pool| {
        pool.router.tidy();
        assert_eq!(pool.router.stats().leases_expired_total, 0);
        pool.router.stats().bookings
    })
}

#[tokio::test(start_paused = true)]
async fn a_request_stays_booked_for_as_long_as_its_workers_are_waited_for() {
    let config = DisaggConfig::default().with_split(Split::Always).with_silence_max(2 * LONG);
    let mut graph = Graph::with_config(1, 1, config).await;
    let started = graph.start();
    let (_, _, prefill) = graph.prefill[0].call().await;
    assert_eq!(booked_after(&graph, LONG).await, [1, 0], "the first token is waited for");
    prefill.send(prefilled()).await.unwrap();
    let stream = started.await.unwrap().unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    let rest = tokio::spawn(stream.collect());
    let (_, _, decode) = graph.decode[0].call().await;
    assert_eq!(booked_after(&graph, LONG).await, [1, 1], "the pull is waited for");
    decode.send(pulled()).await.unwrap();
    assert_eq!(booked_after(&graph, LONG).await, [0, 1], "the next token is waited for");
    decode.send(token(8, Some(FinishReason::Stop))).await.unwrap();
    decode.finish();
    rest.await.unwrap().unwrap();
    graph.assert_at_rest(Outcome::Complete);
}
