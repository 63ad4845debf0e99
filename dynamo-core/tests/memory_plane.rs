//! The request's whole way inside one process: every end it can have, and what is left behind.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_core::{
    Client, Context, Endpoint, Engine, Error, ErrorKind, LeastLoaded, ResponseSender,
    ResponseStream, Result, Runtime, ServeOptions, Serving, engine_fn,
};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

type Call = (Context, ResponseSender<u32>);

/// An endpoint whose engine hands each call's sender to the test.
struct Puppet {
    serving: Serving,
    client: Client<u32, u32>,
    calls: mpsc::Receiver<Call>,
}

impl Puppet {
    async fn new(options: ServeOptions) -> Self {
        let endpoint = endpoint(&Runtime::in_process());
        let (hand, calls) = mpsc::channel(8);
        let engine = engine_fn(move |ctx: Context, _: u32| {
            let hand = hand.clone();
            async move {
                let (sender, stream) = ResponseStream::channel(&ctx, 1);
                hand.send((ctx, sender)).await.map_err(|_| Error::internal("test is over"))?;
                Ok(stream)
            }
        });
        let serving = endpoint.serve_with(engine, options).await.unwrap();
        Self { serving, client: endpoint.client().await.unwrap(), calls }
    }

    async fn call(&mut self) -> (ResponseStream<u32>, Call) {
        let stream = self.client.generate(Context::new(), 0).await.unwrap();
        (stream, self.calls.recv().await.unwrap())
    }
}

fn endpoint(runtime: &Runtime) -> Endpoint<u32, u32> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

fn echo() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(|ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, [n])) })
}

#[tokio::test]
async fn a_complete_stream_ends_once_and_leaves_nothing_in_flight() {
    let mut puppet = Puppet::new(ServeOptions::default()).await;
    let (mut stream, (_, sender)) = puppet.call().await;
    assert_eq!(puppet.serving.inflight(), 1);
    sender.send(7).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 7);
    sender.finish();
    assert!(stream.next().await.is_none());
    assert_eq!(puppet.serving.inflight(), 0);
}

#[tokio::test]
async fn a_stream_that_fails_or_vanishes_ends_with_an_error_never_short() {
    let mut puppet = Puppet::new(ServeOptions::default()).await;
    let (mut stream, (_, sender)) = puppet.call().await;
    sender.fail(Error::new(ErrorKind::Unavailable, "model unloaded"));
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(stream.next().await.is_none());

    let (mut stream, (_, sender)) = puppet.call().await;
    drop(sender);
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(puppet.serving.inflight(), 0);
}

#[tokio::test]
async fn dropping_the_stream_kills_the_work_behind_it() {
    let mut puppet = Puppet::new(ServeOptions::default()).await;
    let (stream, (ctx, sender)) = puppet.call().await;
    drop(stream);
    ctx.killed().await;
    assert!(sender.is_closed());
    assert_eq!(puppet.serving.inflight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_engine_is_cut_at_the_deadline_before_and_after_its_stream() {
    let runtime = Runtime::in_process();
    let endpoint = endpoint(&runtime);
    let serving = endpoint
        .serve(engine_fn(|ctx: Context, hang_early: u32| async move {
            if hang_early == 1 {
                std::future::pending::<()>().await;
            }
            Ok(ResponseStream::<u32>::new(&ctx, stream::pending()))
        }))
        .await
        .unwrap();
    let client = endpoint.client().await.unwrap();
    for hang_early in [0, 1] {
        let ctx = Context::new().with_timeout(Duration::from_secs(5));
        let outcome = match client.generate(ctx, hang_early).await {
            Ok(stream) => stream.collect().await,
            Err(error) => Err(error),
        };
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(serving.inflight(), 0);
    }
}

#[tokio::test]
async fn a_panic_is_one_failed_request_and_the_instance_goes_on() {
    let endpoint = endpoint(&Runtime::in_process());
    let engine = engine_fn(|ctx: Context, n: u32| async move {
        assert_ne!(n, 1, "poisoned request");
        let items = stream::iter([Ok(n), Err(n)]).map(move |item: Result<u32, u32>| {
            assert!(item.is_ok() || n != 2, "poisoned item");
            Ok(n)
        });
        Ok(ResponseStream::new(&ctx, items))
    });
    let serving = endpoint.serve(engine).await.unwrap();
    let client = endpoint.client().await.unwrap();

    let error = client.generate(Context::new(), 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("poisoned request"), "{error}");

    let mut stream = client.generate(Context::new(), 2).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 2);
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    assert!(stream.next().await.is_none());

    let items = client.generate(Context::new(), 3).await.unwrap().collect().await.unwrap();
    assert_eq!(items, [3, 3]);
    assert_eq!(serving.inflight(), 0);
}

#[tokio::test]
async fn a_full_instance_refuses_with_a_retryable_overload() {
    let mut puppet = Puppet::new(ServeOptions::default().with_inflight_max(1)).await;
    let (stream, _call) = puppet.call().await;
    let error = puppet.client.generate(Context::new(), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.is_retryable());
    drop(stream);
    let (_stream, _call) = puppet.call().await;
}

#[tokio::test]
async fn expired_or_killed_work_never_starts() {
    let started = Arc::new(AtomicUsize::new(0));
    let endpoint = endpoint(&Runtime::in_process());
    let counter = Arc::clone(&started);
    let _serving = endpoint
        .serve(engine_fn(move |ctx: Context, n: u32| {
            counter.fetch_add(1, Ordering::Relaxed);
            async move { Ok(ResponseStream::from_items(&ctx, [n])) }
        }))
        .await
        .unwrap();
    let client = endpoint.client().await.unwrap();
    let expired = Context::new().with_timeout(Duration::ZERO);
    let error = client.generate(expired, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let killed = Context::new();
    killed.kill();
    assert_eq!(client.generate(killed, 0).await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(started.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_drain_lets_work_finish_and_refuses_more() {
    let mut puppet = Puppet::new(ServeOptions::default()).await;
    let (stream, (_, sender)) = puppet.call().await;
    let client = puppet.client.clone();
    let id = puppet.serving.instance().id;
    let mut drain = Box::pin(puppet.serving.drain(Duration::from_secs(60)));
    assert!(futures::poll!(&mut drain).is_pending());
    let refused = client.direct(id, Context::new(), 0).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.is_retryable());
    sender.finish();
    assert_eq!(stream.collect().await.unwrap(), [0; 0]);
    let report = drain.await;
    assert_eq!((report.finished, report.killed), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_out_of_patience_ends_the_rest_and_says_that_it_was_the_instance() {
    let mut puppet = Puppet::new(ServeOptions::default()).await;
    let (mut stream, (ctx, _sender)) = puppet.call().await;
    let report = puppet.serving.drain(Duration::from_secs(1)).await;
    assert_eq!((report.finished, report.killed), (0, 1));
    assert!(ctx.is_killed(), "the work is told");
    assert!(!stream.context().is_killed(), "the client did not hang up");
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn clients_follow_instances_as_they_come_and_go() {
    let runtime = Runtime::in_process();
    let endpoint = endpoint(&runtime);
    let client = endpoint.client().await.unwrap();
    let error = client.generate(Context::new(), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("n/c/e"), "{error}");

    let serving = endpoint.serve(echo()).await.unwrap();
    client.wait_ready(Duration::from_secs(60)).await.unwrap();
    assert_eq!(client.generate(Context::new(), 5).await.unwrap().collect().await.unwrap(), [5]);
    drop(serving);
    // The list may lag behind; the plane itself refuses at once, and says that nothing started.
    let error = client.generate(Context::new(), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    drop(client);
    runtime.shutdown(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn round_robin_takes_turns_and_least_loaded_counts_streams() {
    let endpoint = endpoint(&Runtime::in_process());
    let servings = [endpoint.serve(hold()).await.unwrap(), endpoint.serve(hold()).await.unwrap()];
    let client = endpoint.client().await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(client.generate(Context::new(), 0).await.unwrap());
    }
    assert_eq!(servings.each_ref().map(Serving::inflight), [2, 2]);
    streams.clear();

    let picker = LeastLoaded::default();
    let client = client.with_picker(picker.clone());
    let first = client.generate(Context::new(), 0).await.unwrap();
    for _ in 0..3 {
        // Each of these ends before the next: only the first stream counts.
        drop(client.generate(Context::new(), 0).await.unwrap());
        let counts = servings.each_ref().map(|serving| picker.streams(serving.instance().id));
        assert_eq!(counts.iter().sum::<usize>(), 1);
    }
    let second = client.generate(Context::new(), 0).await.unwrap();
    assert_eq!(servings.each_ref().map(Serving::inflight), [1, 1]);
    drop((first, second));
    assert!(servings.iter().all(|serving| picker.streams(serving.instance().id) == 0));
}

fn hold() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(
        |ctx: Context, _: u32| async move { Ok(ResponseStream::new(&ctx, stream::pending())) },
    )
}

#[tokio::test]
async fn a_client_of_other_types_is_told_both() {
    let runtime = Runtime::in_process();
    let _serving = endpoint(&runtime).serve(echo()).await.unwrap();
    let component = runtime.namespace("n").unwrap().component("c").unwrap();
    let client = component.endpoint::<String, u32>("e").unwrap().client().await.unwrap();
    let error = client.generate(Context::new(), String::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("u32") && error.message().contains("String"), "{error}");
}

#[tokio::test]
async fn one_id_serves_an_endpoint_once_and_can_come_back() {
    let endpoint = endpoint(&Runtime::in_process());
    let options = ServeOptions::default();
    let serving = endpoint.serve_with(echo(), options.clone()).await.unwrap();
    let error = endpoint.serve_with(echo(), options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    drop(serving);
    assert!(endpoint.serve_with(echo(), options).await.is_ok());
}
