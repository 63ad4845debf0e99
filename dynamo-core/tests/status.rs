//! The status page, asked by a plain socket.
#![cfg(feature = "status-page")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::InstanceId;
use dynamo_core::readiness::State;
use dynamo_core::request_plane::MemoryRequestPlane;
use dynamo_core::status::StatusPage;
use dynamo_core::{
    Canary, Context, Endpoint, Engine, Error, ResponseStream, Runtime, ServeOptions, engine_fn,
};
use futures::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn page(runtime: &Runtime) -> StatusPage {
    StatusPage::start(runtime, ([127, 0, 0, 1], 0).into()).await.unwrap()
}

/// Sends bytes and returns all that comes back.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // The answer may be there, and the door shut, before all is written.
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// Returns status and body.
async fn ask(page: &StatusPage, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    let answer = exchange(page.address(), request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn endpoint(runtime: &Runtime, name: &str) -> Endpoint<u32, u32> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint(name).unwrap()
}

fn counting() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(
        |ctx: Context, count: u32| async move { Ok(ResponseStream::from_items(&ctx, 0..count)) },
    )
}

#[tokio::test]
async fn ready_is_who_serves_and_is_listed_with_all_it_serves() {
    let runtime = Runtime::in_process();
    let page = page(&runtime).await;
    assert_eq!(ask(&page, "/live").await, (200, "live\n".into()));
    assert_eq!(ask(&page, "/ready").await, (503, "nothing is served\n".into()));
    let first = endpoint(&runtime, "first").serve(counting()).await.unwrap();
    assert_eq!(ask(&page, "/ready").await, (200, "ready\n".into()));
    let hangs = engine_fn(|ctx: Context, _: u32| async move {
        Ok(ResponseStream::<u32>::new(&ctx, stream::pending()))
    });
    let second = endpoint(&runtime, "second").serve(hangs).await.unwrap();
    let (instance, inflight) = (second.instance().clone(), second.inflight());
    assert_eq!((ask(&page, "/ready").await.0, inflight), (200, 0));
    let client = endpoint(&runtime, "second").client().await.unwrap();
    let stream = client.generate(Context::new(), 0).await.unwrap();
    let draining = async { second.drain(Duration::from_secs(20)).await };
    let asking = async {
        // The drain has begun: it is polled first.
        let answer = ask(&page, "/ready").await;
        drop(stream);
        answer
    };
    let (report, (status, body)) = futures::future::join(draining, asking).await;
    assert_eq!((report.killed, status, body), (0, 503, format!("{instance} is leaving\n")));
    assert_eq!(ask(&page, "/ready").await.0, 200, "who has left is not missed");
    drop(first);
    assert_eq!(ask(&page, "/ready").await.0, 503);
}

/// Counts, unless `fails` says otherwise.
fn failing_while(fails: &Arc<AtomicBool>) -> impl Engine<Request = u32, Response = u32> {
    let fails = Arc::clone(fails);
    engine_fn(move |ctx: Context, count: u32| {
        let fails = fails.load(Ordering::Relaxed);
        async move {
            if fails {
                return Err(Error::internal("out of order"));
            }
            Ok(ResponseStream::from_items(&ctx, 0..count))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_fails_its_canary_is_not_ready_until_it_answers_again() {
    let runtime = Runtime::in_process();
    let fails = Arc::new(AtomicBool::new(true));
    let engine = failing_while(&fails);
    let endpoint = endpoint(&runtime, "e");
    let serving = endpoint.serve_watched(engine, ServeOptions::default(), Canary::new(1));
    let serving = serving.await.unwrap();
    let state = || runtime.readiness()[0].state;
    assert_eq!(state(), State::Listed);
    for (is_broken, expected) in [(true, State::Unhealthy), (false, State::Listed)] {
        fails.store(is_broken, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(state(), expected);
    }
    let readiness = runtime.readiness();
    assert_eq!((readiness.len(), readiness[0].instance.incarnation), (1, 1));
    drop(serving);
    assert_eq!(runtime.readiness(), []);
}

/// Two processes, as far as requests go, that see the same instances.
fn two_with_one_directory() -> [Runtime; 2] {
    let discovery = Arc::<MemoryDiscovery>::default();
    let runtime = || {
        let discovery = Arc::<MemoryDiscovery>::clone(&discovery);
        Runtime::new(
            discovery,
            Arc::<MemoryRequestPlane>::default(),
            Arc::<MemoryEventPlane>::default(),
        )
    };
    [runtime(), runtime()]
}

#[tokio::test]
async fn who_is_displaced_by_a_later_incarnation_is_not_ready_and_the_page_names_the_conflict() {
    let [ours, other] = two_with_one_directory();
    let page = page(&ours).await;
    let options = ServeOptions::default().with_instance(InstanceId(7));
    let first = endpoint(&ours, "e").serve_with(counting(), options.clone()).await.unwrap();
    assert_eq!(ask(&page, "/ready").await.0, 200);
    let options = options.with_incarnation(1);
    let second = endpoint(&other, "e").serve_with(counting(), options).await.unwrap();
    let (instance, conflict) = (first.instance().clone(), "conflict: instance 7 of");
    let (status, body) = ask(&page, "/ready").await;
    assert_eq!(status, 503);
    assert!(body.starts_with(&format!("{instance} is displaced: {conflict} n/c/e")), "{body}");
    drop(second);
    assert_eq!(ask(&page, "/ready").await, (status, body), "nobody lists it again");
    assert_eq!(other.readiness(), []);
}

#[tokio::test(start_paused = true)]
async fn who_answers_its_canary_again_does_not_outbid_a_later_incarnation() {
    let [ours, other] = two_with_one_directory();
    let fails = Arc::new(AtomicBool::new(true));
    let engine = failing_while(&fails);
    let options = ServeOptions::default().with_instance(InstanceId(7));
    let endpoint_here = endpoint(&ours, "e");
    let serving = endpoint_here.serve_watched(engine, options.clone(), Canary::new(1));
    let serving = serving.await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let unhealthy = ours.readiness()[0].to_string();
    assert!(unhealthy.contains("is unhealthy: internal: canary was not answered"), "{unhealthy}");
    let options = options.with_incarnation(3);
    let _later = endpoint(&other, "e").serve_with(counting(), options).await.unwrap();
    for is_broken in [false, true, false] {
        fails.store(is_broken, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let readiness = ours.readiness()[0].clone();
        assert_eq!((readiness.state, serving.is_healthy()), (State::Displaced, !is_broken));
        assert!(readiness.reason.unwrap().starts_with("conflict: "));
        assert_eq!(other.readiness()[0].state, State::Listed);
    }
}

#[tokio::test]
async fn metrics_are_the_registrys_and_other_requests_are_refused() {
    let runtime = Runtime::in_process();
    let page = page(&runtime).await;
    let _serving = endpoint(&runtime, "e").serve(counting()).await.unwrap();
    let (status, body) = ask(&page, "/metrics").await;
    assert_eq!((status, &body), (200, &runtime.metrics().render()));
    assert!(body.contains("dynamo_server_running{endpoint=\"n/c/e\""), "{body}");
    let head = exchange(page.address(), b"HEAD /metrics HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(ask(&page, "/").await.0, 404);
    assert_eq!(ask(&page, "/ready/").await.0, 404);
    let posted = b"POST /live HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";
    assert!(exchange(page.address(), posted).await.starts_with("HTTP/1.1 405 "));
    assert!(exchange(page.address(), b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let long = format!("GET /live HTTP/1.1\r\nlong: {}\r\n\r\n", "x".repeat(64 << 10));
    assert!(!exchange(page.address(), long.as_bytes()).await.contains(" 200 "));
    assert_eq!(ask(&page, "/live").await.0, 200);
}

#[tokio::test]
async fn readers_that_say_nothing_are_few_and_make_room_in_time() {
    let runtime = Runtime::in_process();
    let page = page(&runtime).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(page.address()).await.unwrap());
    }
    let patience = Duration::from_secs(20);
    let answer = tokio::time::timeout(patience, ask(&page, "/live")).await.unwrap();
    assert_eq!(answer.0, 200);
    for mut socket in silent {
        let end = tokio::time::timeout(patience, socket.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "a silent reader is still there");
    }
}

#[tokio::test]
async fn a_page_ends_when_told_dropped_or_its_runtime_ends() {
    let runtime = Runtime::in_process();
    let connects = async |address| TcpStream::connect(address).await.is_ok();
    let told = page(&runtime).await;
    let reader = TcpStream::connect(told.address()).await.unwrap();
    assert!(connects(told.address()).await);
    told.shutdown().await;
    assert!(!connects(told.address()).await);
    drop(reader);
    let with_runtime = page(&runtime).await;
    let dropped = page(&runtime).await;
    let address = dropped.address();
    drop(dropped);
    runtime.shutdown(Duration::from_secs(20)).await.unwrap();
    for address in [address, with_runtime.address()] {
        assert!(!connects(address).await);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = StatusPage::start(&runtime, taken.local_addr().unwrap()).await.unwrap_err();
    assert!(error.message().starts_with("status page cannot listen on 127.0.0.1:"), "{error}");
}
