//! The process that pulls is killed.

use std::collections::BTreeMap;
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::random::Random;
use dynamo_core::time::{Clock, SystemClock};
use dynamo_kv::Settlement;
use dynamo_transfer::BackendKind;

use crate::support::{Other, PATIENCE, Worker, backend, kill_on_each_backend, report, say, ticket};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decode_process_that_is_killed_leaves_nothing_staged() {
    kill_on_each_backend(10, kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; `cargo test -p dynamo-kv --test handoff -- --ignored --nocapture killed_200`"]
async fn a_decode_process_that_is_killed_200_times_leaves_nothing_staged() {
    kill_on_each_backend(100, kill).await;
}

const SEED: u64 = 1;

/// Kills the process that pulls, each time at another moment of a pull.
async fn kill(backend: BackendKind, times: u32) {
    let (owner, rival) = (Worker::start(backend).await, Worker::start(backend).await);
    let (calm, mut random) = (calm(backend, &owner).await, Random::new(SEED));
    let (mut outcomes, mut longest) = (BTreeMap::<_, u32>::new(), Duration::ZERO);
    for number in 1..=times {
        let (mut other, _heard) = Other::start(ROLE, backend);
        let mut staged = owner.stage(number).unwrap();
        let ticket = ticket(&staged);
        other.say(&format!("{number} {ticket}"));
        std::thread::sleep(calm.mul_f64((random.next_u64() % 1000) as f64 / 1000.0));
        other.kill();
        let killed = SystemClock.now();
        let has_rival = random.next_u64().is_multiple_of(2);
        let pulled = if has_rival { rival.pull(&ticket, number).await } else { Ok(()) };
        let settled = tokio::time::timeout(PATIENCE, staged.settled()).await.unwrap();
        assert_eq!(owner.handoff.staged_blocks(), 0);
        longest = longest.max(SystemClock.now() - killed);
        let outcome = match (has_rival, pulled.map_err(|error| error.kind()), settled) {
            (true, Ok(()), Settlement::Pulled) => "taken over by another",
            (true, Err(ErrorKind::NotFound), Settlement::Pulled) => "pulled before",
            (false, _, Settlement::Pulled) => "pulled before",
            (false, _, Settlement::Expired) => "expired",
            // It was killed while it moved along, and so shortly before the TTL.
            (true, Err(ErrorKind::NotFound | ErrorKind::Conflict), Settlement::Expired) => {
                "expired"
            }
            other => unreachable!("{other:?}"),
        };
        *outcomes.entry(outcome).or_default() += 1;
        owner.at_rest().await;
        rival.at_rest().await;
    }
    report(&format!(
        "{times} decode processes killed over {backend}: {outcomes:?}; a pull takes {calm:?}, \
         nothing is staged {longest:?} after a kill at the latest"
    ));
}

/// Returns how long a pull takes if nobody is killed.
async fn calm(backend: BackendKind, owner: &Worker) -> Duration {
    let (mut other, mut heard) = Other::start(ROLE, backend);
    let mut staged = owner.stage(0).unwrap();
    let began = SystemClock.now();
    other.say(&format!("0 {}", ticket(&staged)));
    assert_eq!(heard.next().unwrap(), "pulled");
    let took = SystemClock.now() - began;
    assert_eq!(staged.settled().await, Settlement::Pulled);
    owner.at_rest().await;
    took
}

const ROLE: &str = "decode::pulls_until_it_is_killed";

/// What the other process does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test that kills it"]
async fn pulls_until_it_is_killed() {
    let Some(backend) = backend() else { return };
    let worker = Worker::start(backend).await;
    say("begun");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (number, ticket) = line.split_once(' ').unwrap();
        worker.pull(ticket, number.parse().unwrap()).await.unwrap();
        say("pulled");
    }
}
