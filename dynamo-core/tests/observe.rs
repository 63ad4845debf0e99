//! What is counted of requests, under the list of names.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::metrics::{self, Metric};
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Client, Context, Endpoint, Engine, Error, ResponseStream, Runtime, engine_fn};

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

#[test]
fn the_page_of_metrics_lists_what_there_is() {
    let page = include_str!("../../docs/metrics.md");
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut listed: Vec<_> = listed.collect();
    let mut known: Vec<_> = metrics::ALL.iter().map(|metric| metric.name).collect();
    listed.sort_unstable();
    known.sort_unstable();
    assert_eq!(listed, known);
}
