//! The binary, beside etcd and NATS: it registers an engine, publishes what its cache holds, and is
//! drained by SIGTERM.
#![cfg(feature = "processes")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dynamo_core::Context;
use dynamo_core::event_plane::Delivery;
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateChunk, GenerateRequest, KvChange, KvEvent, Sampling,
};
use dynamo_core::testing::openai::{Fault, PlayedServer, Script};
use dynamo_core::time::SystemClock;
use dynamo_examples::graph::{GENERATE, KV_EVENTS, KV_SNAPSHOT};
use dynamo_examples::planes;
use dynamo_examples::servers::Servers;
use dynamo_router::{Constraints, EventFeed, KvRouter, ResyncConfig, RouterConfig};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use zeromq::{Socket, SocketRecv, SocketSend, XPubSocket, ZmqMessage};

const PATIENCE: Duration = Duration::from_secs(60);

/// What vLLM 0.32 published while SmolLM2 served two prompts, a message a line: that of the first
/// begins in the first.
const CAPTURED: &str = include_str!("../../dynamo-router/src/events/vllm/tests/captured.hex");

async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

fn message(number: u64, payload: &str) -> ZmqMessage {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    let payload: Vec<u8> = payload.as_bytes().chunks(2).map(byte).collect();
    let number = Bytes::copy_from_slice(&number.to_be_bytes());
    ZmqMessage::try_from(vec![Bytes::from_static(b"kv"), number, payload.into()]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_makes_an_engine_an_instance_tells_what_it_caches_and_is_drained_by_a_signal() {
    let servers = Servers::start().unwrap();
    let engine = PlayedServer::start(Script::default()).await.unwrap();
    let mut publisher = XPubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut sidecar = Command::new(env!("CARGO_BIN_EXE_sidecar"));
    sidecar.args(["--engine", engine.url(), "--model", "played", "--name", "played-0"]);
    sidecar.args(["--etcd", servers.etcd(), "--nats", servers.nats()]);
    sidecar.args(["--component", "demo/fleet", "--block-size", "32", "--end-token", "2"]);
    sidecar.args(["--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:0", "--plaintext"]);
    sidecar.args(["--events", &endpoint, "--topic", "kv", "--drain-s", "30"]);
    let mut sidecar = sidecar.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(sidecar.stdout.take().unwrap()).lines();
    let waits = bounded(lines.next_line()).await.unwrap().unwrap();
    assert_eq!(waits, format!("waiting for the engine at {}", engine.url()));
    let ready = bounded(lines.next_line()).await.unwrap().unwrap();
    assert!(ready.starts_with("ready played-0 "), "{ready}");

    let runtime = bounded(planes::runtime(servers.etcd(), servers.nats(), planes::on_loopback()))
        .await
        .unwrap();
    let component = runtime.namespace("demo").unwrap().component("fleet").unwrap();
    let mut heard = component.subscriber::<KvEvent>(KV_EVENTS).await.unwrap();
    // It has subscribed: what is published before that is lost.
    assert_eq!(bounded(publisher.recv()).await.unwrap().get(0).unwrap()[..], *b"\x01kv");
    publisher.send(message(0, CAPTURED.lines().next().unwrap())).await.unwrap();
    let Delivery::Event { value } = bounded(heard.recv()).await.unwrap() else {
        panic!("an event")
    };
    let KvChange::BlockStored { blocks, .. } = value.change else { panic!("{value:?}") };
    assert_eq!(blocks.len(), 4);

    // A router that starts only now asks for what there is.
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let events = component.subscriber(KV_EVENTS).await.unwrap();
    let snapshots = component.endpoint(KV_SNAPSHOT).unwrap().client().await.unwrap();
    let config = ResyncConfig::default().with_audit_every(Duration::from_millis(100));
    let feed = EventFeed::start_with_snapshots(router.clone(), events, snapshots, config);
    let knows = async {
        while router.stats().indexed_blocks != 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    bounded(knows).await;

    let client = component.endpoint::<GenerateRequest, GenerateChunk>(GENERATE).unwrap();
    let client = bounded(client.client()).await.unwrap();
    bounded(client.wait_for(1, PATIENCE)).await.unwrap();
    router.set_workers(&client.instances()).unwrap();
    engine.fail_next(Fault::HangAfter(2));
    let model = CacheNamespace::model("played");
    let sampling = Sampling { max_tokens: 9, ..Sampling::default() };
    let request = GenerateRequest::new(model, BlockSize::new(32).unwrap(), vec![5; 40], sampling);
    let decision = router.route(&request, &Constraints::default()).unwrap();
    let ctx = Context::new().with_timeout(PATIENCE);
    let mut answer = client.direct(decision.worker.instance, ctx, request).await.unwrap();
    let first = bounded(answer.next()).await.unwrap().unwrap();

    let id = sidecar.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    let mut lists = client.watch();
    while !bounded(lists.next()).await.unwrap().is_empty() {}
    engine.release();
    let rest = bounded(answer.collect()).await.unwrap();
    let rest = rest.iter().flat_map(|chunk| chunk.token_ids.clone());
    let tokens: Vec<_> = first.token_ids.into_iter().chain(rest).collect();
    assert_eq!(tokens, Script::default().answer(&[5; 40], 9));
    let ended = bounded(sidecar.wait()).await.unwrap();
    assert!(ended.success(), "{ended}");
    assert_eq!(bounded(lines.next_line()).await.unwrap().unwrap(), "drained: 1 finished, 0 ended");
    // Nothing is cached where nobody is.
    let knows_nothing = async {
        while router.stats().indexed_blocks != 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    bounded(knows_nothing).await;
    feed.shutdown().await;
    drop(client);
    runtime.shutdown(PATIENCE).await.unwrap();
    servers.end().await.unwrap();
}
