//! Discovery over a real etcd, and what becomes of a graph when etcd is killed, frozen or wiped.
#![cfg(all(feature = "etcd", feature = "tcp"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod leaving;
mod losses;
mod proxy;
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dynamo_core::discovery::conformance::Reach;
use dynamo_core::discovery::{
    Address, Change, Discovery, EtcdConfig, EtcdDiscovery, View, conformance,
};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{
    Client, Context, Endpoint, Engine, ErrorKind, Instance, ResponseStream, Runtime, engine_fn,
};
use etcd_client::GetOptions;
use futures::StreamExt;
use futures::stream::BoxStream;
use server::Server;

fn discovery(server: &Server) -> EtcdDiscovery {
    let config = EtcdConfig::new([server.url()]).with_ttl(Duration::from_secs(2));
    EtcdDiscovery::start(config).unwrap()
}

fn path() -> EndpointPath {
    let name = |name| Name::new(name).unwrap();
    EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") }
}

fn instance(id: u64, incarnation: u64) -> Instance {
    let address = Address("tcp:127.0.0.1:1".into());
    let labels = BTreeMap::new();
    Instance { id: InstanceId(id), incarnation, endpoint: path(), address, labels }
}

/// Folds changes until the view is as wanted.
async fn until(
    watch: &mut BoxStream<'static, Change>,
    view: &mut View,
    is_reached: impl Fn(&View) -> bool,
) {
    let reach = async {
        while !is_reached(view) {
            view.apply(watch.next().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reach).await.unwrap();
}

fn incarnations(view: &View) -> Vec<(u64, u64)> {
    view.instances().iter().map(|instance| (instance.id.0, instance.incarnation)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms() {
    let Some(server) = Server::start() else { return };
    let (here, there) = (discovery(&server), discovery(&server));
    conformance::run(&here, Reach::Host(&there)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_see_each_other_and_an_end_is_seen_at_once() {
    let Some(server) = Server::start() else { return };
    let (first, second, third) = (discovery(&server), discovery(&server), discovery(&server));
    let _one = first.register(instance(1, 0)).await.unwrap();
    let _two = second.register(instance(2, 0)).await.unwrap();
    // The same id of another process is a mistake, a later incarnation of it is a restart.
    let error = second.register(instance(1, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let mut watch = third.watch(&path()).await.unwrap();
    let mut view = View::default();
    until(&mut watch, &mut view, |view| incarnations(view) == [(1, 0), (2, 0)]).await;
    let _restarted = second.register(instance(1, 1)).await.unwrap();
    until(&mut watch, &mut view, |view| incarnations(view) == [(1, 1), (2, 0)]).await;
    // Both live under the lease of the second process.
    second.shutdown().await;
    until(&mut watch, &mut view, |view| incarnations(view).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_is_no_death_the_instance_registers_again_as_a_later_incarnation() {
    let Some(server) = Server::start() else { return };
    let (worker, watcher) = (discovery(&server), discovery(&server));
    let registration = worker.register(instance(7, 0)).await.unwrap();
    let mut watch = watcher.watch(&path()).await.unwrap();
    let mut view = View::default();
    until(&mut watch, &mut view, |view| incarnations(view) == [(7, 0)]).await;
    let mut raw = Box::pin(raw(&server)).await;
    for incarnation in 1..3 {
        let options = GetOptions::new().with_prefix();
        let found = raw.get("/dynamo/", Some(options)).await.unwrap();
        raw.lease_revoke(found.kvs()[0].lease()).await.unwrap();
        until(&mut watch, &mut view, |view| incarnations(view) == [(7, incarnation)]).await;
    }
    drop(registration);
    until(&mut watch, &mut view, |view| incarnations(view).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_etcd_and_is_no_instance_is_passed_over() {
    let Some(server) = Server::start() else { return };
    let mut raw = Box::pin(raw(&server)).await;
    for (key, value) in [("zz", "{}"), ("0000000000000009", "not JSON"), ("", "x")] {
        raw.put(format!("/dynamo/v1/instances/n/c/e/{key}"), value, None).await.unwrap();
    }
    let discovery = discovery(&server);
    let _one = discovery.register(instance(1, 0)).await.unwrap();
    let mut watch = discovery.watch(&path()).await.unwrap();
    let mut view = View::default();
    until(&mut watch, &mut view, |view| incarnations(view) == [(1, 0)]).await;
}

/// A client of etcd itself, once that answers.
async fn raw(server: &Server) -> etcd_client::Client {
    let connected = async {
        loop {
            let answering = async {
                let mut client = etcd_client::Client::connect([server.url()], None).await?;
                client.status().await?;
                Ok::<_, etcd_client::Error>(client)
            };
            // A question that came too early may stay without an answer.
            let answering = tokio::time::timeout(Duration::from_secs(2), Box::pin(answering));
            if let Ok(Ok(client)) = answering.await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), Box::pin(connected)).await.unwrap()
}

/// A process of a graph: requests over TCP, instances in etcd.
async fn process(server: &Server) -> Runtime {
    let config = TcpConfig::default().with_listen("127.0.0.1:0".parse().unwrap());
    let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
    Runtime::new(Arc::new(discovery(server)), plane, Arc::new(MemoryEventPlane::default()))
}

fn endpoint(runtime: &Runtime) -> Endpoint<u32, u32> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_be_killed_frozen_wiped_or_compacted_and_no_request_fails() {
    let Some(mut server) = Server::start() else { return };
    let engine = || {
        engine_fn(|ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, 0..n)) })
    };
    let (first, second) = (process(&server).await, process(&server).await);
    let caller = process(&server).await;
    let _one = endpoint(&first).serve(engine()).await.unwrap();
    let _two = endpoint(&second).serve(engine()).await.unwrap();
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    wait(|| client.instances().len() == 2).await;
    // Three ways to lose etcd, each for longer than the TTL of two seconds.
    for (way, seconds) in [("killed", 5), ("frozen", 30), ("wiped", 5)] {
        let trouble = async {
            match way {
                "frozen" => server.signal("-STOP"),
                _ => server.kill(),
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            match way {
                "frozen" => server.signal("-CONT"),
                "wiped" => {
                    server.wipe();
                    server.restart();
                }
                _ => server.restart(),
            }
            // Whoever takes up its watch again finds its past gone, more than once.
            let mut raw = Box::pin(raw(&server)).await;
            for _ in 0..20 {
                compact(&mut raw).await;
            }
            // A newcomer sees both again: they have registered by themselves.
            let newcomer = discovery(&server);
            let mut watch = newcomer.watch(&path()).await.unwrap();
            let mut view = View::default();
            until(&mut watch, &mut view, |view| view.instances().len() == 2).await;
            compact(&mut raw).await;
        };
        let calls = calls_during(&client, Box::pin(trouble)).await;
        assert_eq!(calls.failed, [], "of {} while etcd was {way}", calls.asked);
        assert_eq!(calls.fewest_known, 2, "what was known stays while etcd is {way}");
        assert!(calls.asked >= 100, "{} calls while etcd was {way}", calls.asked);
    }
}

/// What became of calls, one after the other.
struct Calls {
    asked: usize,
    failed: Vec<ErrorKind>,
    fewest_known: usize,
}

/// Calls, at the pace of a busy client, for as long as `trouble` takes.
async fn calls_during(client: &Client<u32, u32>, trouble: impl Future<Output = ()>) -> Calls {
    let mut calls = Calls { asked: 0, failed: Vec::new(), fewest_known: usize::MAX };
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    let is_over = AtomicBool::new(false);
    let load = async {
        while !is_over.load(Ordering::Relaxed) {
            pace.tick().await;
            let answer = async { client.generate(Context::new(), 3).await?.collect().await };
            match answer.await {
                Ok(items) => assert_eq!(items, [0, 1, 2]),
                Err(error) => calls.failed.push(error.kind()),
            }
            calls.asked += 1;
            calls.fewest_known = calls.fewest_known.min(client.instances().len());
        }
    };
    let trouble = async {
        trouble.await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, trouble);
    calls
}

/// Makes etcd forget everything but the present.
async fn compact(raw: &mut etcd_client::Client) {
    let put = raw.put("/elsewhere", "something", None).await.unwrap();
    raw.compact(put.header().unwrap().revision(), None).await.unwrap();
}

async fn wait(is_reached: impl Fn() -> bool) {
    let reach = async {
        while !is_reached() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reach).await.unwrap();
}

#[tokio::test]
async fn configs_that_cannot_work_are_refused_and_an_etcd_that_is_not_there_is_told_in_time() {
    let config = || EtcdConfig::new(["http://127.0.0.1:1"]);
    for bad in [
        EtcdConfig::new(Vec::<String>::new()),
        config().with_ttl(Duration::from_millis(1500)),
        config().with_reconcile(Duration::from_millis(500)),
        config().with_root("dynamo"),
        config().with_root("/dynamo/"),
    ] {
        assert_eq!(EtcdDiscovery::start(bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let nobody = EtcdDiscovery::start(config()).unwrap();
    tokio::time::pause();
    let error = nobody.register(instance(1, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    tokio::time::resume();
    nobody.shutdown().await;
}
