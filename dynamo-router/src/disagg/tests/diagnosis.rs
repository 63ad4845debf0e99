use std::time::Duration;

use dynamo_core::protocol::WorkerId;

use super::*;
use crate::events::Diagnosis;

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_that_publishes_nothing_shows_in_its_answers() {
    let mut graph = Graph::new(1, 1).await;
    for _ in 0..20 {
        let (stream, _call) = graph.first_token().await;
        drop(stream);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let worker = WorkerId::new(graph.prefill[0].serving.instance().id);
    let diagnoses = graph.engine.prefill.router.diagnoses();
    assert_eq!(diagnoses, [(worker, Diagnosis::NoEvents)]);
}
