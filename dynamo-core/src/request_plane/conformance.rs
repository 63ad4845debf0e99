//! The suite that every [`RequestPlane`](super::RequestPlane) passes, through endpoints and clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::client::{Client, LeastLoaded, Pick, Picker};
use crate::component::Endpoint;
use crate::discovery::Instance;
use crate::engine::{Context, Engine, ResponseSender, ResponseStream, engine_fn};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::TraceContext;
use crate::runtime::Runtime;
use crate::server::{ServeOptions, Serving};

/// Runs the whole suite, each part on a runtime of its own from `make`.
///
/// # Panics
/// If the contract is broken.
pub async fn run(make: impl AsyncFn() -> Runtime) {
    a_complete_stream_ends_once_and_leaves_nothing_in_flight(make().await).await;
    a_stream_that_fails_or_vanishes_ends_with_an_error_never_short(make().await).await;
    large_messages_cross_in_whole(make().await).await;
    dropping_the_stream_kills_the_work_behind_it(make().await).await;
    a_kill_reaches_the_work_though_nobody_reads(make().await).await;
    a_stop_asks_for_an_end_and_what_follows_still_arrives(make().await).await;
    a_hanging_engine_is_cut_at_the_deadline(make().await).await;
    a_reader_that_stops_holds_the_engine_and_nobody_else(make().await).await;
    a_panic_is_one_failed_request_and_the_instance_goes_on(make().await).await;
    a_full_instance_refuses_with_a_retryable_overload(make().await).await;
    waiting_requests_start_by_priority_and_those_that_expire_never(make().await).await;
    expired_or_killed_work_never_starts(make().await).await;
    the_context_travels(make().await).await;
    the_rank_that_was_picked_reaches_the_engine_and_no_other(make().await).await;
    a_drain_lets_work_finish_and_refuses_more(make().await).await;
    an_instance_out_of_patience_ends_the_rest_and_says_that_it_was_the_instance(make().await).await;
    clients_follow_instances_as_they_come_and_go(make().await).await;
    a_picker_counts_streams(make().await).await;
    one_id_serves_an_endpoint_once_and_can_come_back(make().await).await;
}

type Call = (Context, ResponseSender<u32>);

/// An endpoint whose engine hands each call's sender to the test.
struct Puppet {
    serving: Serving,
    client: Client<u32, u32>,
    calls: mpsc::Receiver<Call>,
}

impl Puppet {
    async fn new(runtime: &Runtime, options: ServeOptions) -> Self {
        let endpoint = endpoint(runtime);
        let (hand, calls) = mpsc::channel(8);
        let engine = engine_fn(move |ctx: Context, _: u32| {
            let hand = hand.clone();
            async move {
                let (sender, stream) = ResponseStream::channel(&ctx, 1);
                hand.send((ctx, sender)).await.map_err(|_| Error::internal("test is over"))?;
                Ok(stream)
            }
        });
        let serving = endpoint.serve_with(engine, options).await.expect("serves");
        Self { serving, client: client(&endpoint).await, calls }
    }

    async fn call(&mut self) -> (ResponseStream<u32>, Call) {
        let stream = self.client.generate(Context::new(), 0).await.expect("starts");
        (stream, soon(self.calls.recv()).await.expect("the engine is there"))
    }

    async fn idle(&self) {
        idle(&self.serving).await;
    }
}

fn endpoint(runtime: &Runtime) -> Endpoint<u32, u32> {
    let component = runtime.namespace("n").and_then(|namespace| namespace.component("c"));
    component.and_then(|component| component.endpoint("e")).expect("names")
}

async fn client<Req, Resp>(endpoint: &Endpoint<Req, Resp>) -> Client<Req, Resp>
where
    Req: super::Message,
    Resp: super::Message,
{
    let client = endpoint.client().await.expect("a client");
    client.wait_ready(SOON).await.expect("an instance");
    client
}

fn echo() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(|ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, [n])) })
}

fn hold() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(
        |ctx: Context, _: u32| async move { Ok(ResponseStream::new(&ctx, stream::pending())) },
    )
}

/// Waits until nothing is in flight: between processes the word takes a moment.
async fn idle(serving: &Serving) {
    until(|| serving.inflight() == 0).await;
}

async fn until(holds: impl Fn() -> bool) {
    soon(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Waits for what must happen soon.
async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, wait).await.expect("happens soon")
}

fn kind<T>(outcome: Result<T>) -> ErrorKind {
    outcome.err().expect("an error").kind()
}

const SOON: Duration = Duration::from_secs(20);

async fn a_complete_stream_ends_once_and_leaves_nothing_in_flight(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (mut stream, (_, sender)) = puppet.call().await;
    assert_eq!(puppet.serving.inflight(), 1);
    for item in 0..1000 {
        sender.send(item).await.expect("listens");
        assert_eq!(stream.next().await.expect("an item").expect("no error"), item);
    }
    sender.finish();
    assert!(stream.next().await.is_none());
    assert!(stream.next().await.is_none());
    puppet.idle().await;
}

async fn a_stream_that_fails_or_vanishes_ends_with_an_error_never_short(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (mut stream, (_, sender)) = puppet.call().await;
    sender.send(1).await.expect("listens");
    assert_eq!(stream.next().await.expect("an item").expect("no error"), 1);
    sender.fail(Error::new(ErrorKind::Unavailable, "model unloaded"));
    let error = stream.next().await.expect("an end").expect_err("an error");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
    assert!(error.message().contains("model unloaded"), "{error}");
    assert!(stream.next().await.is_none());

    let (stream, (_, sender)) = puppet.call().await;
    drop(sender);
    assert_eq!(kind(stream.collect().await), ErrorKind::Internal);
    puppet.idle().await;
}

async fn large_messages_cross_in_whole(runtime: Runtime) {
    let component = runtime.namespace("n").and_then(|namespace| namespace.component("c"));
    let endpoint = component.and_then(|component| component.endpoint("large")).expect("names");
    let engine = engine_fn(|ctx: Context, items: Vec<Vec<u8>>| async move {
        Ok(ResponseStream::from_items(&ctx, items))
    });
    let _serving = endpoint.serve(engine).await.expect("serves");
    let client: Client<Vec<Vec<u8>>, Vec<u8>> = client(&endpoint).await;
    let items: Vec<Vec<u8>> = [0, 1, 20_000, 3 << 20, 5].iter().map(|&len| vec![7; len]).collect();
    let stream = client.generate(Context::new(), items.clone()).await.expect("starts");
    assert!(soon(stream.collect()).await.expect("completes") == items);
}

async fn dropping_the_stream_kills_the_work_behind_it(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (stream, (ctx, sender)) = puppet.call().await;
    drop(stream);
    soon(ctx.killed()).await;
    until(|| sender.is_closed()).await;
    puppet.idle().await;

    // Also before there is a stream.
    let endpoint = {
        let component = runtime.namespace("n").and_then(|namespace| namespace.component("c"));
        component.and_then(|component| component.endpoint::<u32, u32>("early")).expect("names")
    };
    let (hand, mut contexts) = mpsc::channel(1);
    let engine = engine_fn(move |ctx: Context, _: u32| {
        let hand = hand.clone();
        async move {
            hand.send(ctx).await.map_err(|_| Error::internal("test is over"))?;
            std::future::pending().await
        }
    });
    let serving = endpoint.serve(engine).await.expect("serves");
    let client = client(&endpoint).await;
    let mut call = Box::pin(client.generate(Context::new(), 0));
    let ctx = tokio::select! {
        ctx = soon(contexts.recv()) => ctx.expect("the engine is there"),
        outcome = &mut call => unreachable!("{outcome:?}"),
    };
    drop(call);
    soon(ctx.killed()).await;
    idle(&serving).await;
}

async fn a_kill_reaches_the_work_though_nobody_reads(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (mut stream, (ctx, sender)) = puppet.call().await;
    sender.send(1).await.expect("listens");
    stream.context().kill();
    soon(ctx.killed()).await;
    assert_eq!(kind(stream.next().await.expect("an end")), ErrorKind::Cancelled);
    assert!(stream.next().await.is_none());
    drop(sender);
    puppet.idle().await;

    // Also while it waits for a place, which it leaves at once.
    drop(puppet);
    let options = ServeOptions::default().with_inflight_max(1).with_waiting_max(1);
    let mut puppet = Puppet::new(&runtime, options).await;
    let _running = puppet.call().await;
    let ctx = Context::new();
    let killed = async {
        until(|| puppet.serving.waiting() == 1).await;
        ctx.kill();
    };
    let waits = puppet.client.generate(ctx.clone(), 0);
    let (outcome, ()) = soon(futures::future::join(waits, killed)).await;
    assert_eq!(kind(outcome), ErrorKind::Cancelled);
    until(|| puppet.serving.waiting() == 0).await;
}

async fn a_stop_asks_for_an_end_and_what_follows_still_arrives(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (mut stream, (ctx, sender)) = puppet.call().await;
    // Also while nobody reads.
    stream.context().stop();
    soon(ctx.stopped()).await;
    assert!(!ctx.is_killed());
    sender.send(9).await.expect("listens");
    sender.finish();
    assert_eq!(soon(stream.next()).await.expect("an item").expect("no error"), 9);
    assert!(stream.next().await.is_none());

    // And before there is a stream, or a place for the request: it starts, and knows.
    let options = ServeOptions::default().with_inflight_max(1).with_waiting_max(1);
    let component = runtime.namespace("n").and_then(|namespace| namespace.component("c"));
    let endpoint = component.and_then(|c| c.endpoint::<u32, u32>("early")).expect("names");
    let (hand, mut contexts) = mpsc::channel(2);
    let engine = engine_fn(move |ctx: Context, _: u32| {
        let hand = hand.clone();
        async move {
            hand.send(ctx.clone()).await.map_err(|_| Error::internal("test is over"))?;
            ctx.stopped().await;
            Ok(ResponseStream::from_items(&ctx, [7]))
        }
    });
    let serving = endpoint.serve_with(engine, options).await.expect("serves");
    let client = client(&endpoint).await;
    let contexts_of = [Context::new(), Context::new()];
    let calls = contexts_of.clone().map(async |ctx| client.generate(ctx, 0).await?.collect().await);
    let stops = async {
        soon(contexts.recv()).await.expect("the engine is there");
        until(|| serving.waiting() == 1).await;
        contexts_of.iter().for_each(Context::stop);
    };
    let (answers, ()) = soon(futures::future::join(futures::future::join_all(calls), stops)).await;
    for answer in answers {
        assert_eq!(answer.expect("complete"), [7]);
    }
    idle(&serving).await;
}

async fn a_hanging_engine_is_cut_at_the_deadline(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let engine = engine_fn(|ctx: Context, hang_early: u32| async move {
        if hang_early == 1 {
            std::future::pending::<()>().await;
        }
        Ok(ResponseStream::<u32>::new(&ctx, stream::pending()))
    });
    let serving = endpoint.serve(engine).await.expect("serves");
    let client = client(&endpoint).await;
    for hang_early in [0, 1] {
        let ctx = Context::new().with_timeout(Duration::from_millis(50));
        let outcome = soon(async { client.generate(ctx, hang_early).await?.collect().await }).await;
        assert_eq!(kind(outcome), ErrorKind::DeadlineExceeded);
        idle(&serving).await;
    }
}

async fn a_reader_that_stops_holds_the_engine_and_nobody_else(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let produced = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&produced);
    let engine = engine_fn(move |ctx: Context, endless: u32| {
        let counter = Arc::clone(&counter);
        async move {
            let items = stream::iter(0..).map(move |item| {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(item)
            });
            let items = if endless == 1 { items.take(usize::MAX) } else { items.take(10) };
            Ok(ResponseStream::new(&ctx, items))
        }
    });
    let serving = endpoint.serve(engine).await.expect("serves");
    let client = client(&endpoint).await;
    let mut unread = client.generate(Context::new(), 1).await.expect("starts");
    assert_eq!(unread.next().await.expect("an item").expect("no error"), 0);
    for _ in 0..100 {
        let stream = client.generate(Context::new(), 0).await.expect("starts");
        assert_eq!(soon(stream.collect()).await.expect("completes").len(), 10);
    }
    let ahead = produced.load(Ordering::Relaxed);
    assert!(ahead < 1_000_000, "{ahead} items were produced for nobody");
    drop(unread);
    idle(&serving).await;
}

async fn a_panic_is_one_failed_request_and_the_instance_goes_on(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let engine = engine_fn(|ctx: Context, n: u32| async move {
        assert_ne!(n, 1, "poisoned request");
        let items = stream::iter([Ok(n), Err(n)]).map(move |item: Result<u32, u32>| {
            assert!(item.is_ok() || n != 2, "poisoned item");
            Ok(n)
        });
        Ok(ResponseStream::new(&ctx, items))
    });
    let serving = endpoint.serve(engine).await.expect("serves");
    let client = client(&endpoint).await;

    let error = client.generate(Context::new(), 1).await.expect_err("the engine panics");
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("poisoned request"), "{error}");

    let mut stream = client.generate(Context::new(), 2).await.expect("starts");
    assert_eq!(stream.next().await.expect("an item").expect("no error"), 2);
    assert_eq!(kind(stream.next().await.expect("an end")), ErrorKind::Internal);
    assert!(stream.next().await.is_none());

    let stream = client.generate(Context::new(), 3).await.expect("starts");
    assert_eq!(stream.collect().await.expect("completes"), [3, 3]);
    idle(&serving).await;
}

async fn a_full_instance_refuses_with_a_retryable_overload(runtime: Runtime) {
    let options = ServeOptions::default().with_inflight_max(1);
    let mut puppet = Puppet::new(&runtime, options).await;
    let (stream, _call) = puppet.call().await;
    let error = puppet.client.generate(Context::new(), 0).await.expect_err("full");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true));
    assert!(error.retry_after().is_some(), "{error}");
    drop(stream);
    puppet.idle().await;
    let (_stream, _call) = puppet.call().await;
}

async fn waiting_requests_start_by_priority_and_those_that_expire_never(runtime: Runtime) {
    let options = ServeOptions::default().with_inflight_max(1).with_waiting_max(3);
    let mut puppet = Puppet::new(&runtime, options).await;
    let (stream, _call) = puppet.call().await;
    let mut waiting = Vec::new();
    // The last expires there, and not on its way, even on a busy machine.
    for (level, timeout) in [(1, SOON), (5, SOON), (7, Duration::from_secs(1))] {
        let priority = crate::engine::Priority::new(level).expect("a level");
        let ctx = Context::new().with_priority(priority).with_timeout(timeout);
        let client = puppet.client.clone();
        let mut call = Box::pin(async move { client.generate(ctx, 0).await });
        while puppet.serving.waiting() == waiting.len() {
            assert!(futures::poll!(&mut call).is_pending());
            tokio::task::yield_now().await;
        }
        waiting.push(call);
    }
    let expired = waiting.pop().expect("the third");
    assert_eq!(kind(soon(expired).await), ErrorKind::DeadlineExceeded);
    until(|| puppet.serving.waiting() == 2).await;
    drop(stream);
    for (level, call) in [5, 1].into_iter().zip(waiting.into_iter().rev()) {
        let stream = soon(call).await.expect("its turn");
        let (ctx, _) = soon(puppet.calls.recv()).await.expect("the engine is there");
        assert_eq!(ctx.priority().level(), level);
        drop(stream);
    }
    puppet.idle().await;
}

async fn expired_or_killed_work_never_starts(runtime: Runtime) {
    let started = Arc::new(AtomicUsize::new(0));
    let endpoint = endpoint(&runtime);
    let counter = Arc::clone(&started);
    let engine = engine_fn(move |ctx: Context, n: u32| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move { Ok(ResponseStream::from_items(&ctx, [n])) }
    });
    let _serving = endpoint.serve(engine).await.expect("serves");
    let client = client(&endpoint).await;
    let expired = Context::new().with_timeout(Duration::ZERO);
    assert_eq!(kind(client.generate(expired, 0).await), ErrorKind::DeadlineExceeded);
    let killed = Context::new();
    killed.kill();
    assert_eq!(kind(client.generate(killed, 0).await), ErrorKind::Cancelled);
    assert_eq!(started.load(Ordering::Relaxed), 0);
}

async fn the_context_travels(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let sent = Context::new()
        .with_timeout(Duration::from_secs(60))
        .with_priority(crate::engine::Priority::HIGHEST)
        .with_metadata("tenant", "a")
        .with_metadata("trace", "b")
        .with_trace(TraceContext::random());
    let _stream = puppet.client.generate(sent.clone(), 0).await.expect("starts");
    let (got, _sender) = soon(puppet.calls.recv()).await.expect("the engine is there");
    assert_eq!(got.id(), sent.id());
    assert_eq!(got.priority(), sent.priority());
    assert_eq!(got.metadata(), sent.metadata());
    // The span may be one below the caller's.
    let traces = [&sent, &got].map(|ctx| ctx.trace().expect("set"));
    assert_eq!(traces[1].trace_id(), traces[0].trace_id());
    assert_eq!(traces[1].is_sampled(), traces[0].is_sampled());
    let (ours, theirs) = (sent.remaining().expect("set"), got.remaining().expect("set"));
    assert!(theirs <= ours + Duration::from_secs(1) && theirs > Duration::from_secs(1));
}

async fn the_rank_that_was_picked_reaches_the_engine_and_no_other(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let engine = engine_fn(|ctx: Context, _: u32| async move {
        let rank = ctx.child().rank().unwrap_or(u32::MAX);
        Ok(ResponseStream::from_items(&ctx, [rank]))
    });
    let serving = endpoint.serve(engine).await.expect("serves");
    let client = client(&endpoint).await;
    let inherited = Context::new().with_rank(9);
    let seen = async |stream: Result<ResponseStream<u32>>| {
        soon(stream.expect("starts").collect()).await.expect("completes")
    };
    for rank in [0, 3, 1 << 20] {
        let (id, ctx) = (serving.instance().id, Context::new().with_rank(rank));
        assert_eq!(seen(client.direct(id, ctx, 0).await).await, [rank]);
        let ranked = client.clone().with_picker(FirstRanked(rank));
        assert_eq!(seen(ranked.generate(inherited.clone(), 0).await).await, [rank]);
    }
    // A picker that says none means none, whatever hop led here.
    assert_eq!(seen(client.generate(inherited, 0).await).await, [u32::MAX]);
}

/// Picks the first instance, and a rank.
struct FirstRanked(u32);

impl Picker<u32> for FirstRanked {
    fn pick(&self, _: &Context, _: &u32, candidates: &[Instance]) -> Result<Pick> {
        Ok(Pick::new(candidates[0].id).with_rank(self.0))
    }
}

async fn a_drain_lets_work_finish_and_refuses_more(runtime: Runtime) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (stream, (_, sender)) = puppet.call().await;
    let client = puppet.client.clone();
    let instance = puppet.serving.instance().clone();
    let mut drain = Box::pin(puppet.serving.drain(SOON));
    assert!(futures::poll!(&mut drain).is_pending());
    // The instance has left discovery; who still has it from before is told that nothing started.
    let way = runtime.request_plane().dial(&instance).await.and_then(|way| way.engine());
    let refused = match way {
        Ok(engine) => {
            Engine::generate(&engine, Context::new(), 0u32).await.map(|_: ResponseStream<u32>| ())
        }
        Err(error) => Err(error),
    };
    let refused = refused.expect_err("draining");
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Unavailable, true));
    let refused = client.direct(instance.id, Context::new(), 0).await.expect_err("draining");
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Unavailable, true));
    sender.finish();
    assert_eq!(stream.collect().await.expect("completes"), [0; 0]);
    let report = soon(drain).await;
    assert_eq!((report.finished, report.killed), (1, 0));
}

async fn an_instance_out_of_patience_ends_the_rest_and_says_that_it_was_the_instance(
    runtime: Runtime,
) {
    let mut puppet = Puppet::new(&runtime, ServeOptions::default()).await;
    let (mut stream, (ctx, _sender)) = puppet.call().await;
    let report = puppet.serving.drain(Duration::from_millis(50)).await;
    assert_eq!((report.finished, report.killed), (0, 1));
    assert!(ctx.is_killed(), "the work is told");
    assert!(!stream.context().is_killed(), "the client did not hang up");
    assert_eq!(kind(soon(stream.next()).await.expect("an end")), ErrorKind::Unavailable);
    assert!(stream.next().await.is_none());
}

async fn clients_follow_instances_as_they_come_and_go(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let client = endpoint.client().await.expect("a client");
    let error = client.generate(Context::new(), 0).await.expect_err("nobody is there");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    assert!(error.message().contains("n/c/e"), "{error}");

    let serving = endpoint.serve(echo()).await.expect("serves");
    client.wait_ready(SOON).await.expect("an instance");
    let stream = client.generate(Context::new(), 5).await.expect("starts");
    assert_eq!(stream.collect().await.expect("completes"), [5]);
    drop(serving);
    // The list may lag behind; the plane itself refuses at once, and says that nothing started.
    let error = client.generate(Context::new(), 0).await.expect_err("gone");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    drop(client);
    runtime.shutdown(SOON).await.expect("ends");
}

async fn a_picker_counts_streams(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let first = endpoint.serve(hold()).await.expect("serves");
    let servings = [first, endpoint.serve(hold()).await.expect("serves")];
    let client = client(&endpoint).await;
    until(|| client.instances().len() == 2).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(client.generate(Context::new(), 0).await.expect("starts"));
    }
    assert_eq!(servings.each_ref().map(Serving::inflight), [2, 2], "in turns");
    streams.clear();

    let picker = LeastLoaded::default();
    let client = client.with_picker(picker.clone());
    let first = client.generate(Context::new(), 0).await.expect("starts");
    for _ in 0..3 {
        // Each of these ends before the next: only the first stream counts.
        drop(client.generate(Context::new(), 0).await.expect("starts"));
        let counts = servings.each_ref().map(|serving| picker.streams(serving.instance().id));
        assert_eq!(counts.iter().sum::<usize>(), 1);
    }
    let second = client.generate(Context::new(), 0).await.expect("starts");
    until(|| servings.each_ref().map(Serving::inflight) == [1, 1]).await;
    drop((first, second));
    assert!(servings.iter().all(|serving| picker.streams(serving.instance().id) == 0));
}

async fn one_id_serves_an_endpoint_once_and_can_come_back(runtime: Runtime) {
    let endpoint = endpoint(&runtime);
    let options = ServeOptions::default();
    let serving = endpoint.serve_with(echo(), options.clone()).await.expect("serves");
    let again = endpoint.serve_with(echo(), options.clone()).await;
    assert_eq!(kind(again), ErrorKind::Conflict);
    drop(serving);
    assert!(endpoint.serve_with(echo(), options).await.is_ok());
}
