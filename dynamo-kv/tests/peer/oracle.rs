//! Random loads and stores by two workers of an owner that has little room; every hit is compared with the
//! truth, and nothing stays lent.

use std::time::Duration;

use dynamo_core::random::Random;
use dynamo_kv::BlockManager;
use dynamo_kv::tier::Tier as _;
use dynamo_kv::tier::peer::{OwnerConfig, PeerConfig, PeerTier};

use crate::support::{Ground, PATIENCE, at_rest, fill, keys, load, manager, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_hits_in_one_process_none_is_wrong() {
    run(10_000, Ground::memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_thousand_hits_over_tcp_none_is_wrong() {
    run(5_000, Ground::tcp).await;
}

const NUMBERS: usize = 48;

#[derive(Debug, Default)]
struct Total {
    hits: u64,
    misses: u64,
    stored: u64,
    failed: u64,
    evicted: u64,
}

async fn run(hits: u64, ground: fn() -> Ground) {
    let (mut total, mut seed) = (Total::default(), 0);
    while total.hits < hits {
        live(seed, &ground(), &mut total).await;
        seed += 1;
    }
    let said = format!("{seed} seeds: {total:?}\n");
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
    let kinds = [total.misses, total.stored, total.failed, total.evicted];
    assert!(kinds.iter().all(|count| *count > 0), "{total:?}");
}

async fn live(seed: u64, ground: &Ground, total: &mut Total) {
    let mut random = Random::new(seed);
    let (leader, shared) = (ground.process("leader").await, manager(48));
    // Leases end while blocks move, now and then.
    let ttl = [Duration::from_millis(1), Duration::from_millis(20), PATIENCE];
    let config = OwnerConfig::new(24 + random.below(24).unwrap())
        .with_ttl(ttl[random.below(3).unwrap()])
        .with_client_limits(8, 1 + random.below(4).unwrap());
    let (owner, serving) = leader.serve(&shared, config, 0).await;
    let mut lives = tokio::task::JoinSet::new();
    let mut processes = Vec::new();
    for name in ["1", "2"] {
        let process = ground.process(name).await;
        let config = PeerConfig::default()
            .with_batches(1 + random.below(8).unwrap(), 1 + random.below(4).unwrap());
        let tier = process.tier(config).await;
        let worker =
            Worker { random: Random::new(random.next_u64()), tier, shared: shared.clone() };
        lives.spawn(worker.live());
        processes.push(process);
    }
    while let Some(tier) = lives.join_next().await {
        let tier = tier.unwrap();
        tier.shutdown(PATIENCE).await.unwrap();
        let stats = tier.stats();
        total.hits += stats.hits_total;
        total.misses += stats.misses_total;
        total.stored += stats.stored_total;
        total.failed += stats.failed_total;
    }
    at_rest(&owner, &shared).await;
    total.evicted += shared.stats().evicted_total;
    drop(serving);
    owner.shutdown().await;
    for process in processes.into_iter().chain([leader]) {
        process.agent.shutdown().await;
    }
}

struct Worker {
    random: Random,
    tier: PeerTier,
    shared: BlockManager,
}

impl Worker {
    async fn live(mut self) -> PeerTier {
        for _ in 0..100 {
            let (from, into) = (manager(20), manager(20));
            let first = u32::try_from(self.random.below(NUMBERS).unwrap()).unwrap();
            let run = first..first + 1 + u32::try_from(self.random.below(12).unwrap()).unwrap();
            match self.random.below(20).unwrap() {
                // The owner's own use of its blocks.
                0 => drop(fill(&self.shared, &keys(run))),
                1 => self.shared.clear(),
                2 => {
                    // Given up somewhere on its way.
                    let mut store = Box::pin(store(&self.tier, &from, run));
                    for _ in 0..self.random.below(6).unwrap() {
                        if futures::poll!(&mut store).is_ready() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                3..7 => drop(store(&self.tier, &from, run).await),
                7..10 => {
                    let (loaded, stored) = tokio::join!(
                        load(&self.tier, &into, run.clone()),
                        store(&self.tier, &from, run)
                    );
                    drop((loaded, stored));
                }
                _ => drop(load(&self.tier, &into, run).await),
            }
        }
        self.tier
    }
}
