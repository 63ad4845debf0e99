//! What is counted of requests, under the list of names.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::metrics::{self, Metric};
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{
    Client, Context, Endpoint, Engine, Error, ResponseStream, Runtime, ServeOptions, engine_fn,
};

async fn runtime(discovery: &Arc<MemoryDiscovery>) -> Runtime {
    let config = TcpConfig::default().with_listen("127.0.0.1:0".parse().unwrap());
    let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
    Runtime::new(
        Arc::<MemoryDiscovery>::clone(discovery),
        plane,
        Arc::<MemoryEventPlane>::default(),
    )
}

fn endpoint(runtime: &Runtime) -> Endpoint<u32, u32> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

/// Returns the sum of a metric's plain values, or of its counts, with `label` among the labels.
fn value(runtime: &Runtime, metric: Metric, label: &str) -> f64 {
    let samples = runtime.metrics().collect();
    let of_it = samples.iter().filter(|sample| {
        sample.metric == metric
            && matches!(sample.suffix, "" | "_count")
            && (label.is_empty() || sample.labels.iter().any(|(_, value)| value == label))
    });
    of_it.map(|sample| sample.value).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_count_the_same_requests() {
    let discovery = Arc::default();
    let (server, caller) = (runtime(&discovery).await, runtime(&discovery).await);
    let engine = engine_fn(|ctx: Context, count: u32| async move {
        match count {
            0 => Err(Error::internal("nothing to count")),
            99 => Ok(ResponseStream::new(&ctx, futures::stream::pending())),
            count => Ok(ResponseStream::from_items(&ctx, 0..count)),
        }
    });
    let serving = endpoint(&server).serve(engine).await.unwrap();
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    for _ in 0..5 {
        client.generate(Context::new(), 3).await.unwrap().collect().await.unwrap();
    }
    client.generate(Context::new(), 0).await.unwrap_err();
    drop(client.generate(Context::new(), 99).await.unwrap());
    let late = Context::new().with_timeout(Duration::from_millis(20));
    client.generate(late, 99).await.unwrap().collect().await.unwrap_err();
    let wait = async {
        while serving.inflight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();

    let sides = [
        (&caller, metrics::CLIENT_REQUESTS, metrics::CLIENT_ITEMS, metrics::CLIENT_FIRST_ITEM),
        (&server, metrics::SERVER_REQUESTS, metrics::SERVER_ITEMS, metrics::SERVER_FIRST_ITEM),
    ];
    for (runtime, requests, items, first_item) in sides {
        let outcomes = ["complete", "internal", "deadline_exceeded"];
        let counts = outcomes.map(|outcome| value(runtime, requests, outcome));
        assert_eq!(counts[..2], [5.0, 1.0], "{}", requests.name);
        assert_eq!(value(runtime, requests, ""), 8.0, "{}", requests.name);
        assert_eq!(value(runtime, items, "n/c/e"), 15.0);
        assert_eq!(value(runtime, first_item, "n/c/e"), 5.0);
    }
    assert_eq!(value(&caller, metrics::CLIENT_REQUESTS, "dropped"), 1.0);
    assert_eq!(value(&caller, metrics::CLIENT_INSTANCES, ""), 1.0);
    assert_eq!(value(&server, metrics::SERVER_RUNNING, ""), 0.0);
    assert_eq!(value(&caller, metrics::TCP_CONNECTIONS, ""), 1.0);
    assert!(value(&server, metrics::TCP_WRITTEN, "") > 0.0);
}

/// Returns the page, of which no series and no type is said twice.
fn page(runtime: &Runtime) -> String {
    let page = runtime.metrics().render();
    let mut said: Vec<_> = page
        .lines()
        .map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 })
        .collect();
    let count = said.len();
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), count, "{page}");
    page
}

fn counting() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(|ctx: Context, count: u32| async move {
        if count == 0 {
            return Ok(ResponseStream::new(&ctx, futures::stream::pending()));
        }
        Ok(ResponseStream::from_items(&ctx, 0..count))
    })
}

async fn calls(client: &Client<u32, u32>, count: usize) {
    for _ in 0..count {
        client.generate(Context::new(), 3).await.unwrap().collect().await.unwrap();
    }
}

#[tokio::test]
async fn clients_of_one_endpoint_are_one_series_that_never_goes_down() {
    let runtime = Runtime::in_process();
    let of_two = ServeOptions::default().with_instance(InstanceId(2));
    let _one = endpoint(&runtime).serve(counting()).await.unwrap();
    let _two = endpoint(&runtime).serve_with(counting(), of_two).await.unwrap();
    let (first, second) =
        (endpoint(&runtime).client().await.unwrap(), endpoint(&runtime).client().await.unwrap());
    calls(&first, 3).await;
    calls(&second, 4).await;
    let complete = || {
        page(&runtime);
        let first_items = value(&runtime, metrics::CLIENT_FIRST_ITEM, "n/c/e");
        let requests = value(&runtime, metrics::CLIENT_REQUESTS, "complete");
        assert_eq!(first_items, requests);
        assert_eq!(value(&runtime, metrics::CLIENT_ITEMS, "n/c/e"), requests * 3.0);
        requests
    };
    assert_eq!(complete(), 7.0);
    let known = || value(&runtime, metrics::CLIENT_INSTANCES, "");
    assert_eq!(known(), 2.0, "each instance is counted once");
    drop(first);
    assert_eq!((complete(), known()), (7.0, 2.0));
    drop(second);
    assert_eq!(complete(), 7.0);
    assert!(!page(&runtime).contains(metrics::CLIENT_INSTANCES.name), "nobody looks");
    let third = endpoint(&runtime).client().await.unwrap();
    calls(&third, 1).await;
    assert_eq!((complete(), known()), (8.0, 2.0));
}

#[tokio::test]
async fn an_instance_that_drains_and_its_next_incarnation_are_one_series() {
    let runtime = Runtime::in_process();
    let serve = |incarnation| {
        let options = ServeOptions::default().with_instance(InstanceId(7));
        let endpoint = endpoint(&runtime);
        async move {
            let options = options.with_incarnation(incarnation);
            endpoint.serve_with(counting(), options).await.unwrap()
        }
    };
    let before = serve(0).await;
    let client = endpoint(&runtime).client().await.unwrap();
    calls(&client, 2).await;
    let runs = client.generate(Context::new(), 0).await.unwrap();
    let complete = || {
        page(&runtime);
        value(&runtime, metrics::SERVER_REQUESTS, "complete")
    };
    let running = || value(&runtime, metrics::SERVER_RUNNING, "");
    assert_eq!((complete(), running()), (2.0, 1.0));
    let after = serve(1).await;
    let newcomer = endpoint(&runtime).client().await.unwrap();
    calls(&newcomer, 3).await;
    let runs_too = newcomer.generate(Context::new(), 0).await.unwrap();
    assert_eq!((complete(), running()), (5.0, 2.0));
    drop((before, runs));
    assert_eq!((complete(), running()), (5.0, 1.0));
    drop((after, runs_too));
    assert_eq!((complete(), running()), (5.0, 0.0));
    let _again = serve(2).await;
    assert_eq!((complete(), running()), (5.0, 0.0));
}

#[test]
fn the_page_of_metrics_lists_what_there_is() {
    let page = include_str!("../../docs/metrics.md");
    let (page, _) = page.split_once("## Transfers").unwrap();
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut listed: Vec<_> = listed.collect();
    let mut known: Vec<_> = metrics::ALL.iter().map(|metric| metric.name).collect();
    listed.sort_unstable();
    known.sort_unstable();
    assert_eq!(listed, known);
}
