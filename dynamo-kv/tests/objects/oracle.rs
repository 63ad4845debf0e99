//! Random requests to stores that fail and lie; every hit is compared with the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dynamo_core::random::Random;
use dynamo_kv::tier::Tier as _;
use dynamo_kv::tier::object::{ObjectConfig, ObjectTier, OnFull};

use crate::faulty::{Act, Fault, Faulty, vandalise};
use crate::support::{Shelf, config, keys, load, object, store};

#[tokio::test(start_paused = true)]
async fn of_twenty_thousand_hits_over_a_store_in_memory_that_fails_none_is_wrong() {
    run(20_000, Shelf::memory).await;
}

#[tokio::test(start_paused = true)]
async fn of_five_thousand_hits_over_a_directory_that_fails_none_is_wrong() {
    run(5_000, Shelf::directory).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "minutes; `cargo test -p dynamo-kv --features object-store --test objects -- --ignored --nocapture million`"]
async fn of_a_million_hits_over_a_store_in_memory_that_fails_none_is_wrong() {
    run(1_000_000, Shelf::memory).await;
}

const NUMBERS: usize = 32;

#[derive(Debug, Default)]
struct Total {
    hits: u64,
    misses: u64,
    failed: u64,
    evicted: u64,
    injected: u64,
}

async fn run(hits: u64, shelf: fn() -> Shelf) {
    let mut total = Total::default();
    let mut seed = 0;
    while total.hits < hits {
        World::new(seed, shelf()).live(&mut total).await;
        seed += 1;
    }
    let said = format!("{seed} seeds: {total:?}\n");
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
    let kinds = [total.misses, total.failed, total.evicted, total.injected];
    assert!(kinds.iter().all(|count| *count > 0), "{total:?}");
}

/// A store, and all that may happen to it.
struct World {
    random: Random,
    shelf: Shelf,
    faulty: Arc<Faulty>,
    config: ObjectConfig,
    block_bytes: usize,
    is_failing: Arc<AtomicBool>,
    injected: Arc<AtomicU64>,
}

impl World {
    fn new(seed: u64, shelf: Shelf) -> Self {
        let mut random = Random::new(seed);
        let block_bytes = [1, 512, 1536, 5000][random.below(4).unwrap()];
        let is_failing = Arc::new(AtomicBool::new(false));
        let injected = Arc::new(AtomicU64::new(0));
        let (failing, count) = (Arc::clone(&is_failing), Arc::clone(&injected));
        let mut faults = Random::new(random.next_u64());
        let faulty = Faulty::new(&shelf.store, move |act, _| {
            if !failing.load(Ordering::SeqCst) {
                return Fault::None;
            }
            let fault = fault(&mut faults, act);
            count.fetch_add(u64::from(fault != Fault::None), Ordering::Relaxed);
            fault
        });
        let on_full = if random.below(2) == Some(0) { OnFull::Forget } else { OnFull::Delete };
        let config = config(block_bytes)
            .with_in_flight(1 + random.below(16).unwrap())
            .with_known_max(8 + random.below(30).unwrap(), on_full);
        Self { random, shelf, faulty, config, block_bytes, is_failing, injected }
    }

    /// Opens tiers a few times; in between, objects are damaged.
    async fn live(mut self, total: &mut Total) {
        for _ in 0..4 {
            // Two who share it.
            let tiers = [(); 2]
                .map(|()| ObjectTier::new(self.faulty.clone(), self.config.clone()).unwrap());
            if self.chance(2) {
                let _ = tiers[0].refresh().await;
            }
            for _ in 0..20 {
                let tier = &tiers[self.random.below(2).unwrap()];
                self.step(tier).await;
            }
            for tier in tiers {
                let stats = tier.stats();
                total.hits += stats.hits_total;
                total.misses += stats.misses_total;
                total.failed += stats.failed_total;
                total.evicted += stats.evicted_total;
                tier.shutdown(crate::support::PATIENCE).await.unwrap();
            }
        }
        total.injected += self.injected.load(Ordering::Relaxed);
    }

    async fn step(&mut self, tier: &ObjectTier) {
        let is_failing = self.chance(3);
        self.is_failing.store(is_failing, Ordering::SeqCst);
        let numbers: Vec<_> = (0..8).map(|_| self.number()).collect();
        match self.random.below(16).unwrap() {
            0..3 => {
                let (path, other) = (object(numbers[0]), object(numbers[1]));
                let fault = match self.random.below(4).unwrap() {
                    0 => Fault::Flip(self.bit()),
                    1 => Fault::Cut(self.bit() / 8),
                    2 => Fault::Other(other),
                    _ => Fault::Deny,
                };
                vandalise(&*self.shelf.store, &path, fault).await;
            }
            3 => drop(tier.remove(&keys(numbers)).await),
            4 if self.chance(4) => drop(tier.clear().await),
            5 => {
                // Given up somewhere on its way.
                let mut store = Box::pin(store(tier, numbers, self.block_bytes));
                for _ in 0..self.random.below(4).unwrap() {
                    if futures::poll!(&mut store).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            6 => drop(tier.match_prefix(&keys(0..40)).await),
            7..11 => drop(store(tier, numbers, self.block_bytes).await),
            _ => {
                let wanted: Vec<_> = (0..40).map(|_| self.number()).collect();
                let loads = load(tier, wanted, self.block_bytes);
                let stores = store(tier, numbers.into_iter().take(2), self.block_bytes);
                tokio::join!(loads, stores);
            }
        }
    }

    fn number(&mut self) -> u32 {
        u32::try_from(self.random.below(NUMBERS).unwrap()).unwrap()
    }

    /// A bit of an object.
    fn bit(&mut self) -> usize {
        self.random.below((self.block_bytes + 96) * 8).unwrap()
    }

    fn chance(&mut self, of: usize) -> bool {
        self.random.below(of) == Some(0)
    }
}

fn fault(random: &mut Random, act: &Act) -> Fault {
    let bit = random.below(5096 * 8).unwrap();
    let number = u32::try_from(random.below(NUMBERS).unwrap()).unwrap();
    match (random.below(20).unwrap(), act) {
        (0, _) => Fault::Fail,
        (1, _) => Fault::FailAfter,
        (2, _) => Fault::Hang,
        (3, _) => Fault::HangAfter,
        (4, _) => Fault::Cut(bit / 8),
        (5, _) => Fault::Shorten(bit / 8),
        (6 | 7, _) => Fault::Flip(bit),
        (8, Act::Get) => Fault::Other(object(number)),
        (9, Act::Get | Act::Head) => Fault::Deny,
        _ => Fault::None,
    }
}
