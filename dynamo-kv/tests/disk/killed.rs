//! The process is killed while it stores; what is found then is what was stored.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dynamo_core::random::Random;
use dynamo_kv::tier::MissReason;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_transfer::file::{FileAct, FileFault, FileFaults};

use crate::other::{self, Other};
use crate::support::{Scratch, Truth, faulty, key, open, shut, store};

#[tokio::test]
async fn a_tier_whose_process_is_killed_serves_no_wrong_byte() {
    kill(6).await;
}

#[tokio::test]
#[ignore = "a minute; `cargo test -p dynamo-kv --test disk -- --ignored --nocapture killed_200`"]
async fn a_tier_whose_process_is_killed_200_times_serves_no_wrong_byte() {
    kill(200).await;
}

const SLOTS: u32 = 64;
const NUMBERS: usize = 200;
const BLOCK: usize = 16 << 10;
const IN_FLIGHT: usize = 8;

/// Kills the process that stores as often, and each time loads all that is found.
///
/// Every other time it is killed in the middle of a write, of which a part has been made; else wherever
/// it is, with the engine that a tier has by default.
async fn kill(times: u32) {
    let scratch = Scratch::new();
    let truth = Truth::new(NUMBERS as u64, BLOCK);
    let mut random = Random::unseeded();
    let (mut hits, mut damaged) = (0, 0);
    for number in 0..times {
        let is_torn = number % 2 == 1;
        let role =
            if is_torn { "stores_until_a_write_is_torn" } else { "stores_until_it_is_killed" };
        let mut other = Other::start(&format!("killed::{role}"), scratch.path());
        if is_torn {
            other.hear(1);
        } else {
            other.hear(1 + random.below(40).unwrap());
            // Anywhere within the next few stores.
            std::thread::sleep(Duration::from_micros(random.next_u64() % 3000));
        }
        other.kill();

        let tier = open(config(scratch.path())).await.unwrap();
        let recovery = tier.recovery();
        assert!(!recovery.is_new);
        let keys = tier.keys();
        assert!(keys.iter().all(|found| (0..NUMBERS as u64).any(|number| key(number) == *found)));
        let identities: Vec<_> = keys.iter().map(|key| key.identity).collect();
        let misses = truth.load(&tier, &identities).await;
        assert!(misses.iter().all(|miss| matches!(miss.reason, MissReason::Damaged(_))));
        // What was overwritten when it ended, and nothing else.
        assert!(misses.len() <= IN_FLIGHT, "{} of {} are damaged", misses.len(), keys.len());
        assert_eq!(recovery.damaged + recovery.stale, 0, "records are not torn");
        assert!(!is_torn || !misses.is_empty(), "what was there is overwritten in part");
        hits += keys.len() - misses.len();
        damaged += misses.len();
        // It goes on from there.
        assert!(store(&tier, &truth, [0]).await.iter().all(Result::is_ok));
        shut(tier).await;
    }
    let said = format!("{times} kills: {hits} hits, all right; {damaged} damaged\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert!(hits > times as usize * SLOTS as usize / 4 && damaged >= times as usize / 2);
}

fn config(dir: &std::path::Path) -> DiskConfig {
    DiskConfig::new(dir, SLOTS, BLOCK, 1).with_in_flight(IN_FLIGHT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test that kills it"]
async fn stores_until_it_is_killed() {
    let Some(dir) = other::directory() else { return };
    let tier = open(config(dir.as_ref())).await.unwrap();
    store_for_ever(&tier, |_| (), || other::tell("")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test that kills it"]
async fn stores_until_a_write_is_torn() {
    let Some(dir) = other::directory() else { return };
    let is_full = Arc::new(AtomicBool::new(false));
    let torn = config(dir.as_ref()).with_files(faulty(&tear(Arc::clone(&is_full))));
    let tier = open(torn).await.unwrap();
    store_for_ever(&tier, |full| is_full.store(full, Ordering::SeqCst), || ()).await;
}

/// Stores batch after batch, and says before each whether every slot has a block, and when it is there.
async fn store_for_ever(tier: &DiskTier, before: impl Fn(bool), behind: impl Fn()) {
    let truth = Truth::new(NUMBERS as u64, BLOCK);
    let mut random = Random::unseeded();
    loop {
        before(tier.stats().free == 0);
        let numbers: Vec<_> = (0..12).map(|_| random.below(NUMBERS).unwrap() as u64).collect();
        assert!(store(tier, &truth, numbers).await.iter().all(Result::is_ok));
        behind();
    }
}

/// Once every slot has a block, makes a part of a write, says so, and makes nothing any more.
fn tear(is_full: Arc<AtomicBool>) -> FileFaults {
    let mut random = Random::unseeded();
    // Where the rest of the write begins.
    let mut rest = None;
    FileFaults::new(move |call| match rest {
        None if call.act == FileAct::Write && is_full.load(Ordering::SeqCst) => {
            let part = 512 * (1 + random.below(call.len / 512 - 1).unwrap());
            rest = Some(call.offset + part as u64);
            FileFault::Cut(part)
        }
        None => FileFault::Pass,
        Some(rest) => {
            if call.offset == rest {
                other::tell("");
            }
            FileFault::Hold
        }
    })
}
