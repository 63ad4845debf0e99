use crate::Runtime;
use crate::event_plane::{Delivery, Subscriber};
use crate::openai::OpenAiConfig;
use crate::server::{LoadPublisher, LoadPublisherConfig};
use crate::testing::openai::{Fault, MetricsOf, PlayedServer, Script};

use super::*;

const INSTANCE: InstanceId = InstanceId(7);
const OFTEN: Duration = Duration::from_millis(2);

async fn played(metrics: MetricsOf) -> (PlayedServer, OpenAiEngine) {
    let faults = std::iter::repeat_n(Fault::HangAfter(1), 3);
    let script = Script {
        metrics,
        running_max: 2,
        blocks: 10,
        block_size: BlockSize::new(4).unwrap(),
        ..Script::default()
    };
    let server = PlayedServer::start(script.with_faults(faults)).await.unwrap();
    let engine = OpenAiEngine::new(OpenAiConfig::new(server.url(), "played")).unwrap();
    (server, engine)
}

fn config() -> EngineLoadConfig {
    EngineLoadConfig::default().with_interval(OFTEN).with_block_size(BlockSize::new(4).unwrap())
}

fn report(requests_running: u32, requests_waiting: u32, blocks_active: u64) -> LoadReport {
    LoadReport {
        worker: WorkerId::new(INSTANCE),
        requests_running,
        requests_waiting,
        prefill_tokens: None,
        blocks_active,
        blocks_total: 10,
    }
}

/// Waits until a report is heard.
async fn hear(reports: &mut Subscriber<LoadReport>, expected: &LoadReport) {
    let heard = async {
        while let Some(delivery) = reports.recv().await {
            if matches!(delivery, Delivery::Event { value } if value == *expected) {
                return;
            }
        }
        panic!("the publisher is gone");
    };
    tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap();
}

/// Sends a request of ten tokens, and reads until its first token.
async fn ask(engine: &OpenAiEngine) -> super::super::http::Answer {
    let body = r#"{"prompt": [1,2,3,4,5,6,7,8,9,10], "max_tokens": 4, "stream": true}"#;
    engine.http().post("/v1/completions", hyper::HeaderMap::new(), body.into()).await.unwrap()
}

async fn what_an_engine_does_is_heard(metrics: MetricsOf, path: &str) {
    let (server, engine) = played(metrics).await;
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let mut reports = component.subscriber::<LoadReport>(LoadReport::EVENT).await.unwrap();
    let load = EngineLoad::start(&engine, INSTANCE, config().with_path(path));
    let source = load.clone();
    let publisher = LoadPublisher::start(
        component.publisher(LoadReport::EVENT).unwrap(),
        move || source.report(0),
        LoadPublisherConfig::default().with_interval(OFTEN),
    );
    hear(&mut reports, &report(0, 0, 0)).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(ask(&engine).await);
    }
    // Ten tokens and one more are three blocks each, of the two that are computed.
    hear(&mut reports, &report(2, 1, 6)).await;
    assert_eq!((load.ranks(), load.report(1)), (vec![0], None));
    server.release();
    for answer in &mut answers {
        answer.all(1 << 20).await.unwrap();
    }
    hear(&mut reports, &report(0, 0, 0)).await;
    publisher.shutdown().await;
    load.shutdown().await;
    engine.shutdown().await;
}

#[tokio::test]
async fn what_vllm_does_is_heard() {
    what_an_engine_does_is_heard(MetricsOf::Vllm, "/metrics").await;
}

#[tokio::test]
async fn what_sglang_does_is_heard() {
    what_an_engine_does_is_heard(MetricsOf::Sglang, "/metrics").await;
}

#[tokio::test]
async fn what_tensor_rt_llm_does_is_heard_as_text_and_as_iterations() {
    what_an_engine_does_is_heard(MetricsOf::TensorRtLlm, "/metrics").await;
    what_an_engine_does_is_heard(MetricsOf::TensorRtLlm, "/prometheus/metrics").await;
}

#[tokio::test]
async fn an_engine_that_cannot_be_asked_is_reported_no_more_until_it_can_again() {
    let (server, engine) = played(MetricsOf::Vllm).await;
    let believed_max = Duration::from_millis(30);
    let mut load = EngineLoad::start(&engine, INSTANCE, config().with_believed_max(believed_max));
    load.seen.wait_for(|seen| seen.at.is_some()).await.unwrap();
    server.shutdown().await;
    // Each look that fails is a change.
    let is_old =
        |seen: &Seen| seen.problem.is_some() && SystemClock.now() - seen.at.unwrap() > believed_max;
    load.seen.wait_for(is_old).await.unwrap();
    assert_eq!(load.report(0), None);
    assert_eq!(load.problem().unwrap().kind(), ErrorKind::Unavailable);
    let script = Script { address: server.address(), ..Script::default() };
    let _again = PlayedServer::start(script).await.unwrap();
    load.seen.wait_for(|seen| seen.problem.is_none()).await.unwrap();
    assert_eq!(load.ranks(), [0]);
    load.shutdown().await;
}

#[tokio::test]
async fn a_page_without_load_and_one_that_is_not_there_are_problems_that_name_it() {
    let (_server, engine) = played(MetricsOf::Vllm).await;
    for (path, kind) in
        [("/health", ErrorKind::Protocol), ("/prometheus/metrics", ErrorKind::NotFound)]
    {
        let mut load = EngineLoad::start(&engine, INSTANCE, config().with_path(path));
        load.seen.wait_for(|seen| seen.problem.is_some()).await.unwrap();
        let problem = load.problem().unwrap();
        assert_eq!(problem.kind(), kind);
        assert!(problem.message().contains(path), "{problem}");
        assert_eq!(load.report(0), None);
    }
}

#[test]
fn what_was_seen_is_reported_until_it_is_too_old() {
    let (start, max) = (SystemClock.now(), Duration::from_secs(2));
    let mut seen = Seen::default();
    let worker = WorkerId::new(INSTANCE);
    assert_eq!(seen.report(worker, start, max), None);
    let load = RankLoad { running: 3, waiting: 1, blocks_active: 5, blocks_total: 10 };
    seen.see(Ok([(0, load)].into()), start);
    seen.see(Err(Error::internal("gone")), start + max);
    assert_eq!(seen.report(worker, start + max, max), Some(report(3, 1, 5)));
    assert_eq!(seen.report(worker, start + max + Duration::from_nanos(1), max), None);
    assert_eq!(seen.report(WorkerId { rank: 1, ..worker }, start, max), None);
}
