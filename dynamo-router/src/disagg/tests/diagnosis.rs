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

#[tokio::test(start_paused = true)]
async fn an_answer_is_one_sample_however_often_it_is_counted() {
    let config = DisaggConfig::default().with_split(Split::Never);
    let mut graph = Graph::with_config(0, 1, config).await;
    let worker = WorkerId::new(graph.decode[0].serving.instance().id);
    let usage = Some(Usage { prompt_tokens: 40, ..Usage::default() });
    for answers in 1..=20 {
        let started = graph.start();
        let (_, _, decode) = graph.decode[0].call().await;
        decode.send(GenerateChunk { usage, ..token(7, None) }).await.unwrap();
        let mut stream = started.await.unwrap().unwrap();
        // As many counts as make a verdict.
        for number in 0..20 {
            let finish = (number == 19).then_some(FinishReason::Stop);
            assert!(stream.next().await.unwrap().is_ok());
            decode.send(GenerateChunk { usage, ..token(8, finish) }).await.unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(stream.next().await.unwrap().unwrap().finish.is_some());
        let diagnoses = graph.engine.decode.router.diagnoses();
        match answers {
            1..10 => assert_eq!(diagnoses, []),
            10..20 => {}
            _ => assert_eq!(diagnoses, [(worker, Diagnosis::NoEvents)]),
        }
    }
}
