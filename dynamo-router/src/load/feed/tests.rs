use std::time::Duration;

use dynamo_core::metrics::Registry;
use dynamo_core::openai::{EngineLoad, EngineLoadConfig, OpenAiConfig, OpenAiEngine};
use dynamo_core::protocol::{GenerateChunk, GenerateRequest, WorkerId};
use dynamo_core::server::{LoadPublisher, LoadPublisherConfig};
use dynamo_core::testing::openai::{Fault, PlayedServer, Script};
use dynamo_core::time::SystemClock;
use dynamo_core::{
    Component, Context, Engine, Instance, ResponseStream, Runtime, ServeOptions, engine_fn,
};
use futures::StreamExt;

use super::*;
use crate::fixtures::{instance, request, until_heard, worker};
use crate::load::{Load, LoadMetrics};
use crate::router::{Constraints, RouterConfig};

fn component() -> Component {
    Runtime::in_process().namespace("n").unwrap().component("c").unwrap()
}

fn router() -> KvRouter {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    router.set_workers(&[instance(1), instance(2)]).unwrap();
    router
}

async fn feed(router: &KvRouter, component: &Component) -> LoadFeed {
    let reports = component.subscriber(LoadReport::EVENT).await.unwrap();
    LoadFeed::start(router.clone(), reports)
}

fn says(component: &Component, report: LoadReport) -> LoadPublisher {
    let publisher = component.publisher(LoadReport::EVENT).unwrap();
    LoadPublisher::start(publisher, move || report.clone(), LoadPublisherConfig::default())
}

/// The report of a worker before which `tokens` wait.
fn behind(worker: WorkerId, tokens: u64) -> LoadReport {
    LoadReport { requests_waiting: 1, prefill_tokens: Some(tokens), ..LoadReport::idle(worker) }
}

/// Waits until something that is said of a worker's load makes it so.
async fn until(router: &KvRouter, holds: impl Fn(Load) -> bool, of: WorkerId) {
    until_heard(router, || holds(router.load(of))).await;
}

fn chosen(router: &KvRouter) -> WorkerId {
    router.route(&request(0..64), &Constraints::default()).unwrap().worker
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_reports_a_long_queue_is_avoided_until_it_is_silent() {
    let (component, router) = (component(), router());
    let feed = feed(&router, &component).await;
    let publisher = says(&component, behind(worker(1), 100_000));
    until(&router, |load| load.prefill_tokens == 100_000, worker(1)).await;
    assert!((0..20).all(|_| chosen(&router) == worker(2)), "nothing is booked on either");
    // What does not change is said again before it has faded.
    let report_max = RouterConfig::default().report_max;
    for _ in 0..4 {
        tokio::time::sleep(report_max / 2).await;
        assert!(router.load(worker(1)).prefill_tokens > 70_000);
        assert_eq!(chosen(&router), worker(2));
    }
    publisher.shutdown().await;
    tokio::time::sleep(report_max).await;
    assert_eq!(router.load(worker(1)), Load::default());
    feed.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_is_busy_for_others_is_avoided_by_what_its_metrics_tell() {
    const OFTEN: Duration = Duration::from_millis(2);
    let script = Script::default().with_faults(std::iter::repeat_n(Fault::HangAfter(1), 3));
    let server = PlayedServer::start(script).await.unwrap();
    let engine = OpenAiEngine::new(OpenAiConfig::new(server.url(), "played")).unwrap();
    let (component, router) = (component(), router());
    let feed = feed(&router, &component).await;
    let config = EngineLoadConfig::default().with_interval(OFTEN);
    let engine_load = EngineLoad::start(&engine, worker(1).instance, config);
    let its = engine_load.clone();
    let publisher = LoadPublisher::start(
        component.publisher(LoadReport::EVENT).unwrap(),
        move || its.report(0),
        LoadPublisherConfig::default().with_interval(OFTEN),
    );
    let mut answers = Vec::new();
    for _ in 0..3 {
        let mut answer = engine.generate(Context::new(), request(0..64)).await.unwrap();
        answer.next().await.unwrap().unwrap();
        answers.push(answer);
    }
    // 64 tokens and one more are five blocks each; what was said fades from the first moment on.
    let is_busy = |load: Load| load.requests.min(load.decoding) >= 2 && load.blocks >= 14;
    until(&router, is_busy, worker(1)).await;
    assert!((0..20).all(|_| chosen(&router) == worker(2)), "nothing is booked on either");
    server.release();
    for answer in answers {
        answer.collect().await.unwrap();
    }
    let idle = Load { blocks_total: 1024, ..Load::default() };
    until(&router, |load| load == idle, worker(1)).await;
    publisher.shutdown().await;
    engine_load.shutdown().await;
    engine.shutdown().await;
    feed.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_is_started_again_goes_on_and_one_that_was_shut_down_does_not() {
    let (component, router) = (component(), router());
    let publisher = component.publisher(LoadReport::EVENT).unwrap();
    let first = feed(&router, &component).await;
    publisher.publish(&behind(worker(1), 640)).unwrap();
    until(&router, |load| load.prefill_tokens == 640, worker(1)).await;
    first.shutdown().await;
    publisher.publish(&behind(worker(1), 64_000)).unwrap();
    assert!(router.load(worker(1)).prefill_tokens <= 640);
    let second = feed(&router, &component).await;
    // Of two that are heard at one moment the first counts.
    tokio::time::advance(Duration::from_millis(1)).await;
    publisher.publish(&behind(worker(1), 1_280)).unwrap();
    until(&router, |load| load.prefill_tokens == 1_280, worker(1)).await;
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_started_anew_is_as_busy_as_it_says_now() {
    let (component, router) = (component(), router());
    let feed = feed(&router, &component).await;
    let first = says(&component, behind(worker(1), 100_000));
    until(&router, |load| load.prefill_tokens == 100_000, worker(1)).await;
    drop(first);
    let anew = Instance { incarnation: 1, ..instance(1) };
    router.set_workers(&[anew, instance(2)]).unwrap();
    let second = says(&component, LoadReport::idle(worker(1)));
    until(&router, |load| load == Load::default(), worker(1)).await;
    second.shutdown().await;
    feed.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn reports_of_workers_that_there_are_not_take_up_no_room_and_are_counted() {
    let (component, router) = (component(), router());
    let feed = feed(&router, &component).await;
    let metrics = Arc::new(LoadMetrics::new("a", &feed));
    let registry = Registry::default();
    registry.add(&metrics);
    let publisher = component.publisher(LoadReport::EVENT).unwrap();
    for id in 3..103 {
        publisher.publish(&behind(worker(id), 640)).unwrap();
    }
    let no_rank = WorkerId { rank: 1, ..worker(1) };
    publisher.publish(&behind(no_rank, 640)).unwrap();
    publisher.publish(&behind(worker(1), 640)).unwrap();
    until(&router, |load| load.prefill_tokens == 640, worker(1)).await;
    let unknown = (3..103).map(worker).chain([no_rank]);
    assert!(unknown.into_iter().all(|worker| router.known(worker).is_none()));
    let page = registry.render();
    for line in [
        "dynamo_router_load_reports_total{router=\"a\",outcome=\"taken\"} 1",
        "dynamo_router_load_reports_total{router=\"a\",outcome=\"ignored\"} 101",
    ] {
        assert!(page.lines().any(|its| its == line), "{line} in\n{page}");
    }
    // Who comes is heard with its next report.
    router.set_workers(&[instance(1), instance(3)]).unwrap();
    publisher.publish(&behind(worker(3), 640)).unwrap();
    until(&router, |load| load.prefill_tokens == 640, worker(3)).await;
    feed.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_picked_prompt_waits_until_its_worker_reports_that_it_is_prefilled() {
    let (component, router) = (component(), router());
    let feed = feed(&router, &component).await;
    let engine = engine_fn(|ctx: Context, _: GenerateRequest| async move {
        let first = futures::stream::iter([Ok(GenerateChunk::default())]);
        Ok(ResponseStream::new(&ctx, first.chain(futures::stream::pending())))
    });
    let endpoint = component.endpoint("generate").unwrap();
    let options = ServeOptions::default().with_instance(worker(1).instance);
    let _serving = endpoint.serve_with(engine, options).await.unwrap();
    let client = endpoint.client().await.unwrap().with_picker(router.clone());
    client.wait_ready(Duration::from_secs(1)).await.unwrap();

    let mut answer = client.generate(Context::new(), request(0..640)).await.unwrap();
    answer.next().await.unwrap().unwrap();
    assert_eq!(router.load(worker(1)).prefill_tokens, 640, "a picker does not see what comes");
    let report = LoadReport { requests_running: 1, ..LoadReport::idle(worker(1)) };
    let publisher = says(&component, report);
    let decodes = |load: Load| (load.requests, load.decoding, load.prefill_tokens) == (1, 1, 0);
    until(&router, decodes, worker(1)).await;
    publisher.shutdown().await;
    feed.shutdown().await;
    drop(answer);
}
