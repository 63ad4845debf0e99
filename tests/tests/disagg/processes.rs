//! Prefill in a process of its own: KV blocks of the real model go from there to here, over each
//! backend that joins processes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::Runtime;
use dynamo_core::discovery::{Discovery as _, Instance, MemoryDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::{GenerateChunk, GenerateRequest};
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_examples::graph::{Graph, GraphWorker};
use dynamo_router::{DisaggReport, RouterConfig};
use dynamo_tests::process::{Process, say};
use dynamo_transfer::BackendKind;
#[cfg(feature = "ucx")]
use dynamo_transfer::{Agent, conformance::unless_ucx_is_missing};
use reached::reached_over;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{STORY, ask, config, real, request};

#[path = "../../../dynamo-transfer/tests/support/reached.rs"]
mod reached;

/// What only the test's own process is told, as the name of a test to skip.
const AS_PEER: &str = "as_peer_of_a_test";

const READY: &str = "READY";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_another_process_give_the_same_tokens_over_each_backend() {
    let Some(real) = real() else { return };
    let config = config(64);
    let single = Graph::aggregated(&real.model, &config).await.unwrap();
    let prompts = [STORY, "The capital of France is"].map(|prompt| request(real, prompt, 6));
    let mut expected = Vec::new();
    for request in &prompts {
        expected.push(ask(&single, request).await.tokens);
    }
    single.shutdown(PATIENCE).await.unwrap();

    let program = std::env::current_exe().unwrap();
    let args = ["processes::prefill_worker", "--exact", "--ignored", "--nocapture", "--skip"];
    let mut process = Process::start(&program, args.into_iter().chain([AS_PEER])).unwrap();
    while process.line().await.unwrap() != READY {}
    for backend in backends().await {
        let instance = process.ask(&backend.to_string()).await.unwrap();
        let instance: Instance = serde_json::from_str(&instance).unwrap();
        let discovery = Arc::<MemoryDiscovery>::default();
        let registered = discovery.register(instance).await.unwrap();
        let here = runtime(&discovery).await;
        let agent = reached_over(backend);
        let decode =
            GraphWorker::start(&here, "decode", "decode-0", &real.model, agent, &config).await;
        let decode = decode.unwrap();
        let reports = Arc::<Mutex<Vec<DisaggReport>>>::default();
        let sink = Arc::clone(&reports);
        let observer = move |report: &DisaggReport| sink.lock().unwrap().push(report.clone());
        let graph =
            Graph::front_end(runtime(&discovery).await, &RouterConfig::default(), 1, 1, observer)
                .await
                .unwrap();
        for (request, expected) in prompts.iter().zip(&expected) {
            assert_eq!(&ask(&graph, request).await.tokens, expected, "{backend}");
        }
        // Neither side offers any other way: what came, came over this one.
        let moved = reports.lock().unwrap()[0].handoff.unwrap();
        assert!(moved.blocks_pulled > 1 && moved.bytes > 0, "{backend}: {moved:?}");
        graph.shutdown(PATIENCE).await.unwrap();
        decode.end(PATIENCE).await;
        here.shutdown(PATIENCE).await.unwrap();
        drop(registered);
        assert_eq!(process.ask("end").await.unwrap(), "0 blocks are staged", "{backend}");
    }
}

/// Not a test: the other process. It is a prefill worker over the backend that each line names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test, as the other process"]
async fn prefill_worker() {
    if !std::env::args().any(|arg| arg == AS_PEER) {
        return;
    }
    let real = real().unwrap();
    say(&format!("\n{READY}")).await.unwrap();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(name) = lines.next_line().await.unwrap() {
        let here = runtime(&Arc::default()).await;
        let (model, agent) = (&real.model, reached_over(name.parse().unwrap()));
        let worker =
            GraphWorker::start(&here, "prefill", "prefill-0", model, agent, &config(64)).await;
        let worker = worker.unwrap();
        let component = here.namespace("demo").unwrap().component("prefill").unwrap();
        let endpoint = component.endpoint::<GenerateRequest, GenerateChunk>("generate").unwrap();
        let client = endpoint.client().await.unwrap();
        client.wait_for(1, PATIENCE).await.unwrap();
        let instance = client.instances()[0].clone();
        say(&serde_json::to_string(&instance).unwrap()).await.unwrap();
        lines.next_line().await.unwrap();
        let staged = worker.worker.handoff().staged_blocks();
        drop((client, instance));
        worker.end(PATIENCE).await;
        here.shutdown(PATIENCE).await.unwrap();
        say(&format!("{staged} blocks are staged")).await.unwrap();
    }
}

async fn runtime(discovery: &Arc<MemoryDiscovery>) -> Runtime {
    let requests = TcpConfig::default().with_listen(loopback());
    let requests = Arc::new(TcpRequestPlane::start(requests).await.unwrap());
    let discovery = Arc::<MemoryDiscovery>::clone(discovery);
    Runtime::new(discovery, requests, Arc::<MemoryEventPlane>::default())
}

async fn backends() -> Vec<BackendKind> {
    let mut backends = vec![BackendKind::Tcp];
    if cfg!(target_os = "linux") {
        backends.push(BackendKind::Shm);
    }
    backends.extend(ucx().await);
    backends
}

#[cfg(feature = "ucx")]
async fn ucx() -> Option<BackendKind> {
    let probe = Agent::start(reached_over(BackendKind::Ucx)).await;
    unless_ucx_is_missing("blocks over UCX", probe)?.shutdown().await;
    Some(BackendKind::Ucx)
}

#[cfg(not(feature = "ucx"))]
async fn ucx() -> Option<BackendKind> {
    None
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const PATIENCE: Duration = Duration::from_secs(10);
