//! How a client deals with instances that refuse, die, or are no longer listed.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::discovery::{Change, Discovery, Registration};
use dynamo_core::engine::layers::RetryPolicy;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::name::EndpointPath;
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{RequestPlane, TcpConfig, TcpRequestPlane};
use dynamo_core::{
    Canary, Client, Context, Endpoint, Engine, Error, ErrorKind, Instance, ResponseStream, Result,
    Runtime, ServeOptions, Serving, engine_fn,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast;

/// A directory whose every word the test says.
#[derive(Debug)]
struct Script {
    registered: Mutex<HashMap<InstanceId, Instance>>,
    changes: broadcast::Sender<Change>,
}

impl Script {
    fn new() -> Arc<Self> {
        let changes = broadcast::Sender::new(64);
        Arc::new(Self { registered: Mutex::default(), changes })
    }

    fn say(&self, change: Change) {
        self.changes.send(change).unwrap();
    }

    fn instance(&self, id: u64) -> Instance {
        self.registered.lock().unwrap()[&InstanceId(id)].clone()
    }
}

#[async_trait]
impl Discovery for Script {
    async fn register(&self, instance: Instance) -> Result<Registration> {
        self.registered.lock().unwrap().insert(instance.id, instance);
        Ok(Registration::new(|| {}))
    }

    async fn watch(&self, _: &EndpointPath) -> Result<BoxStream<'static, Change>> {
        let listed = self.registered.lock().unwrap().values().cloned().collect();
        let first = stream::iter([Change::Snapshot(listed)]);
        let next = stream::unfold(self.changes.subscribe(), |mut changes| async move {
            changes.recv().await.ok().map(|change| (change, changes))
        });
        Ok(first.chain(next).boxed())
    }
}

/// A process of its own, as far as requests are concerned: the threads of its sockets are its own.
struct Process {
    threads: Threads,
    plane: Arc<TcpRequestPlane>,
    runtime: Runtime,
    requests: Arc<AtomicUsize>,
    serving: Option<Serving>,
}

impl Process {
    async fn start(directory: &Arc<Script>) -> Self {
        let config = TcpConfig::default().with_listen("127.0.0.1:0".parse().unwrap());
        let threads = Threads::start();
        let plane = threads.run(TcpRequestPlane::start(config)).await.unwrap();
        let plane = Arc::new(plane);
        let (discovery, requests) = (Arc::<Script>::clone(directory), plane.clone());
        let runtime = Runtime::new(discovery, requests, Arc::new(MemoryEventPlane::default()));
        Self { threads, plane, runtime, requests: Arc::default(), serving: None }
    }

    async fn serving(directory: &Arc<Script>, id: u64) -> Self {
        let mut process = Self::start(directory).await;
        let requests = Arc::clone(&process.requests);
        let engine = engine_fn(move |ctx: Context, count: u32| {
            requests.fetch_add(1, Ordering::Relaxed);
            async move { Ok(ResponseStream::from_items(&ctx, 0..count)) }
        });
        process.serve(engine, options(id)).await;
        process
    }

    async fn serve(
        &mut self,
        engine: impl Engine<Request = u32, Response = u32>,
        options: ServeOptions,
    ) {
        self.serving = Some(endpoint(&self.runtime).serve_with(engine, options).await.unwrap());
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ends as a process does that is killed: in the midst of whatever it does, its sockets are
    /// closed, and nobody is told anything.
    async fn die(mut self) -> usize {
        self.threads.end().await;
        self.requests()
    }
}

/// A tokio runtime that can be dropped anywhere, with every task on it.
struct Threads(Option<tokio::runtime::Runtime>);

impl Threads {
    fn start() -> Self {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        Self(Some(threads.worker_threads(1).enable_all().build().unwrap()))
    }

    /// Runs `work` there: what it spawns is of there too.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.0.as_ref().unwrap().spawn(work).await.unwrap()
    }

    /// Returns once no task is left.
    async fn end(&mut self) {
        let threads = self.0.take();
        tokio::task::spawn_blocking(move || drop(threads)).await.unwrap();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            threads.shutdown_background();
        }
    }
}

/// Waits until `caller` has seen that the process of an instance is not there any more. What is
/// asked of it until then may have been started, for all that anyone knows.
async fn noticed(caller: &Process, dead: &Instance) {
    let notices = async {
        while caller.plane.dial(dead).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), notices).await.expect("happens soon");
}

fn options(id: u64) -> ServeOptions {
    ServeOptions::default().with_instance(InstanceId(id))
}

fn endpoint(runtime: &Runtime) -> Endpoint<u32, u32> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

async fn ask(client: &Client<u32, u32>) -> Result<usize> {
    Ok(client.generate(Context::new(), 3).await?.collect().await?.len())
}

async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("happens soon");
}

fn candidates(client: &Client<u32, u32>) -> Vec<u64> {
    client.candidates().iter().map(|instance| instance.id.0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_to_an_instance_that_died_and_no_second_one_goes_there() {
    let directory = Script::new();
    let mut others = Vec::new();
    for id in 1..4 {
        others.push(Process::serving(&directory, id).await);
    }
    let dead = Process::serving(&directory, 4).await;
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    for _ in 0..8 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    assert_eq!(dead.die().await, 2, "requests go in turn");
    noticed(&caller, &directory.instance(4)).await;
    let dials = caller.plane.stats().connections_total;
    for _ in 0..40 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    assert_eq!(client.instances().len(), 4, "discovery has not noticed");
    assert_eq!(candidates(&client), [1, 2, 3]);
    let served: Vec<_> = others.iter().map(Process::requests).collect();
    assert_eq!(served.iter().sum::<usize>(), 6 + 40);
    // One request found it dead; from there on only probes go there.
    assert!(caller.plane.stats().connections_total <= dials + 4);
}

/// What was under way may have done something: it fails, at once, and is not tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_mid_stream_is_an_error_that_is_not_safe_to_repeat_and_no_short_answer() {
    let directory = Script::new();
    let mut dies = Process::start(&directory).await;
    let engine = engine_fn(|ctx: Context, count: u32| async move {
        let items = stream::iter(0..count).map(Ok).chain(stream::pending());
        Ok(ResponseStream::new(&ctx, items))
    });
    dies.serve(engine, options(1)).await;
    let other = Process::serving(&directory, 2).await;
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    let mut answer = client.direct(InstanceId(1), Context::new(), 1).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), 0);
    dies.die().await;
    let end = tokio::time::timeout(Duration::from_secs(20), answer.next()).await.unwrap();
    let error = end.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
    assert_eq!((other.requests(), ask(&client).await.unwrap()), (0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_answers_again_is_called_again() {
    let directory = Script::new();
    let (_one, _two) =
        (Process::serving(&directory, 1).await, Process::serving(&directory, 2).await);
    let mut third = Process::start(&directory).await;
    let is_down = Arc::<AtomicUsize>::new(1.into());
    let answers = Arc::clone(&is_down);
    let engine = engine_fn(move |ctx: Context, count: u32| {
        let is_down = answers.load(Ordering::Relaxed) == 1;
        async move {
            if is_down {
                return Err(Error::new(ErrorKind::Unavailable, "model unloaded").unprocessed());
            }
            Ok(ResponseStream::from_items(&ctx, 0..count))
        }
    });
    third.serve(engine, options(3)).await;
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    // The process is there: a probe brings the instance back, and a request finds it wanting again.
    is_down.store(0, Ordering::Relaxed);
    until(|| candidates(&client) == [1, 2, 3]).await;
    let before = third.serving.as_ref().unwrap().inflight();
    assert_eq!(before, 0);
    for _ in 0..3 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    assert_eq!(candidates(&client), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_lost_everything_removes_nobody_who_answers() {
    let directory = Script::new();
    let alive = [Process::serving(&directory, 1).await, Process::serving(&directory, 2).await];
    let (dead, left) =
        (Process::serving(&directory, 3).await, Process::serving(&directory, 4).await);
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    assert_eq!(client.instances().len(), 4);

    dead.die().await;
    directory.say(Change::Snapshot(Vec::new()));
    let known = |client: &Client<u32, u32>| -> Vec<_> {
        client.instances().iter().map(|instance| instance.id.0).collect()
    };
    until(|| known(&client) == [1, 2, 4]).await;
    for _ in 0..20 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    // Who says that it leaves is believed.
    directory.say(Change::Remove(InstanceId(4)));
    until(|| known(&client) == [1, 2]).await;
    left.die().await;
    // Back from its loss the directory lists them again: nobody is in doubt any more.
    directory.say(Change::Snapshot(vec![directory.instance(1), directory.instance(2)]));
    for _ in 0..20 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    assert_eq!(known(&client), [1, 2]);
    drop(alive);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_without_room_is_passed_over_and_the_request_is_served() {
    let directory = Script::new();
    let mut full = Process::start(&directory).await;
    full.serve(
        engine_fn(|ctx: Context, _: u32| async move {
            Ok(ResponseStream::new(&ctx, stream::pending()))
        }),
        options(1).with_inflight_max(1),
    )
    .await;
    let other = Process::serving(&directory, 2).await;
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    let held = client.direct(InstanceId(1), Context::new(), 1).await.unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&client).await.unwrap(), 3);
    }
    assert_eq!(other.requests(), 10);
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_started_is_not_tried_again_unless_that_does_no_harm() {
    let directory = Script::new();
    let mut served = Vec::new();
    let starts = Arc::<AtomicUsize>::default();
    for id in 1..3 {
        let mut process = Process::start(&directory).await;
        let starts = Arc::clone(&starts);
        let engine = engine_fn(move |ctx: Context, count: u32| {
            let is_first = starts.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if is_first {
                    return Err(Error::new(ErrorKind::Unavailable, "lost half-way"));
                }
                Ok(ResponseStream::from_items(&ctx, 0..count))
            }
        });
        process.serve(engine, options(id)).await;
        served.push(process);
    }
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    assert_eq!(ask(&client).await.unwrap_err().message(), "lost half-way");
    assert_eq!(starts.swap(0, Ordering::Relaxed), 1);
    let client = client.with_retry(RetryPolicy::default().with_idempotent());
    assert_eq!(ask(&client).await.unwrap(), 3);
    assert_eq!(starts.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_know_of_each_other_go_to_different_instances() {
    let directory = Script::new();
    let processes = [Process::serving(&directory, 1).await, Process::serving(&directory, 2).await];
    let caller = Process::start(&directory).await;
    let client = endpoint(&caller.runtime).client().await.unwrap();
    // Always the same one, if it is a candidate.
    let client = client.with_picker(First);
    for _ in 0..5 {
        let ctx = Context::new().with_attempts();
        for _ in 0..2 {
            client.generate(ctx.child(), 1).await.unwrap().collect().await.unwrap();
        }
        assert_eq!(ctx.tried(), [InstanceId(1), InstanceId(2)]);
    }
    assert_eq!(processes.each_ref().map(Process::requests), [5, 5]);
}

struct First;

impl dynamo_core::Picker<u32> for First {
    fn pick(&self, _: &Context, _: &u32, candidates: &[Instance]) -> Result<dynamo_core::Pick> {
        Ok(dynamo_core::Pick::new(candidates[0].id))
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_fails_its_canary_is_off_the_list_until_it_answers_again() {
    let runtime = Runtime::in_process();
    let (is_stuck, asked) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (stuck, count) = (Arc::clone(&is_stuck), Arc::clone(&asked));
    let engine = engine_fn(move |ctx: Context, n: u32| {
        count.fetch_add(1, Ordering::Relaxed);
        let is_stuck = stuck.load(Ordering::Relaxed) == 1;
        async move {
            Ok(match is_stuck {
                true => ResponseStream::new(&ctx, stream::pending()),
                false => ResponseStream::from_items(&ctx, 0..n),
            })
        }
    });
    let canary = Canary::new(1).with_after(Duration::from_secs(10));
    let serving = endpoint(&runtime).serve_watched(engine, options(1), canary).await.unwrap();
    let client = endpoint(&runtime).client().await.unwrap();
    let listed = |count: usize| {
        let client = &client;
        async move {
            while client.instances().len() != count {
                tokio::time::sleep(STEP).await
            }
        }
    };
    // Requests that are served are canaries enough.
    for _ in 0..10 {
        assert_eq!(ask(&client).await.unwrap(), 3);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), 10);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!((11..=14).contains(&asked.load(Ordering::Relaxed)) && serving.is_healthy());

    is_stuck.store(1, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(20), listed(0)).await.unwrap();
    assert!(!serving.is_healthy());
    is_stuck.store(0, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(20), listed(1)).await.unwrap();
    assert!(serving.is_healthy());
    assert_eq!(client.instances()[0].incarnation, 1);
    assert_eq!(ask(&client).await.unwrap(), 3);
    // An instance that has left is not listed again.
    serving.drain(Duration::ZERO).await;
    tokio::time::timeout(Duration::from_secs(5), listed(0)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(client.instances().len(), 0);
    runtime.shutdown(Duration::from_secs(5)).await.unwrap();
}

const STEP: Duration = Duration::from_millis(100);
