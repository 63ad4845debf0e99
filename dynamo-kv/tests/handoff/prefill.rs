//! The process that stages, and is pulled from, is killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::random::Random;
use dynamo_core::time::{Clock, SystemClock};
use dynamo_transfer::BackendKind;

use crate::support::{Other, Worker, backend, kill_on_each_backend, report, say, ticket};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_from_a_process_that_is_killed_is_whole_or_an_error_and_nothing_is_shared() {
    kill_on_each_backend(10, kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; `cargo test -p dynamo-kv --test handoff -- --ignored --nocapture killed_200`"]
async fn a_pull_from_a_process_that_is_killed_200_times_is_whole_or_an_error() {
    kill_on_each_backend(100, kill).await;
}

const SEED: u64 = 1;

/// Kills the process that stages, each time at another moment of staging or of the pull.
async fn kill(backend: BackendKind, times: u32) {
    let puller = Worker::start(backend).await;
    let (calm, mut random) = (calm(backend, &puller).await, Random::new(SEED));
    let (mut outcomes, mut longest) = (BTreeMap::<_, u32>::new(), Duration::ZERO);
    for number in 1..=times {
        let (mut other, mut heard) = Other::start(ROLE, backend);
        other.say(&number.to_string());
        let after = calm.mul_f64((random.next_u64() % 1000) as f64 / 1000.0);
        let killing = tokio::task::spawn_blocking(move || {
            std::thread::sleep(after);
            other.kill();
            SystemClock.now()
        });
        let outcome = match heard.next() {
            None => "staged nothing",
            Some(ticket) => match puller.pull(&ticket, number).await {
                Ok(()) => "pulled before",
                Err(error) => match error.kind() {
                    ErrorKind::Unavailable => "unavailable",
                    ErrorKind::DeadlineExceeded => "deadline exceeded",
                    kind => unreachable!("{kind:?}: {error}"),
                },
            },
        };
        let ended = SystemClock.now();
        let killed = killing.await.unwrap();
        longest = longest.max(ended.saturating_duration_since(killed));
        *outcomes.entry(outcome).or_default() += 1;
        puller.at_rest().await;
    }
    report(&format!(
        "{times} prefill processes killed over {backend}: {outcomes:?}; staging and a pull take \
         {calm:?}, a pull has ended {longest:?} after a kill at the latest"
    ));
}

/// Returns how long staging and a pull take if nobody is killed.
async fn calm(backend: BackendKind, puller: &Worker) -> Duration {
    let (mut other, mut heard) = Other::start(ROLE, backend);
    let began = SystemClock.now();
    other.say("0");
    puller.pull(&heard.next().unwrap(), 0).await.unwrap();
    puller.at_rest().await;
    SystemClock.now() - began
}

const ROLE: &str = "prefill::stages_until_it_is_killed";

/// What the other process does: it stages what it is told, and other sequences all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test that kills it"]
async fn stages_until_it_is_killed() {
    let Some(backend) = backend() else { return };
    let worker = Arc::new(Worker::start(backend).await);
    let busy = Arc::clone(&worker);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        for number in (1000..2000).cycle() {
            drop(busy.stage(number));
            tokio::task::yield_now().await;
        }
    });
    say("begun");
    let mut staged = None;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let told = worker.stage(line.parse().unwrap()).unwrap();
        say(&ticket(&told));
        staged = Some(told);
    }
    drop(staged);
}
