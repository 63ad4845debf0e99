//! Workers and owners are killed in the middle of what they do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dynamo_core::discovery::{FileConfig, FileDiscovery};
use dynamo_core::random::Random;
use dynamo_kv::tier::disk::{DiskConfig, DiskError, DiskTier};
use dynamo_kv::tier::peer::{OwnerConfig, PeerConfig};
use dynamo_kv::tier::{MissReason, Stored, Tier as _, TierChange};
use dynamo_kv::{BlockKey, TierConfig, TiersConfig};

use crate::other::{self, Other};
use crate::support::{
    Ground, PATIENCE, at_rest, hear, keys, layout, listen, load, manager, manager_above, store,
    truth,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_worker_had_is_back_and_whole() {
    let scratch = Scratch::new();
    let ground = scratch.ground().await;
    let leader = ground.process("leader").await;
    // Room for all that the worker has, and for what it stores once more while that is given up.
    let blocks = NUMBERS as usize + 20;
    let shared = manager(blocks);
    let config = OwnerConfig::new(blocks).with_ttl(Duration::from_millis(300));
    let (owner, _serving) = leader.serve(&shared, config, 0).await;
    for life in 0..8 {
        let mut worker = Other::start("killed::works_until_it_is_killed", &scratch.0);
        // That it has begun, and what some of its stores have come to.
        let mut told = worker.hear(2 + life % 3);
        let lent = async {
            while owner.lent_blocks() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, lent).await.unwrap();
        told.extend(worker.kill());
        at_rest(&owner, &shared).await;
        let numbers = told.iter().flat_map(|told| told.split_whitespace());
        let committed: BTreeSet<u32> = numbers.map(|number| number.parse().unwrap()).collect();
        assert!(!committed.is_empty(), "{told:?}");
        for key in keys(0..NUMBERS) {
            match shared.match_prefix(&[key]).into_iter().next() {
                Some(block) => assert!(block[..] == truth(&key)[..], "wrong bytes"),
                None => assert!(!committed.contains(&number(&key)), "{key:?} is lost"),
            }
        }
        shared.clear();
        assert_eq!(shared.stats().free, blocks);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_a_killed_owner_are_misses_and_its_successor_has_them_from_the_disk() {
    let scratch = Scratch::new();
    let here = manager(64);
    for life in 0..3 {
        let mut owner = Other::start("killed::owns_until_it_is_killed", &scratch.0);
        owner.hear(1);
        let ground = scratch.ground().await;
        let worker = ground.process("worker").await;
        let config = PeerConfig::default().with_batches(5, 2);
        let tier = worker.tier(config).await;
        // What had no room in the memory of the one before had gone to the disk.
        let left = 30 - load(&tier, &manager(30), 0..30).await.len();
        assert!(if life == 0 { left == 0 } else { left >= 10 }, "{left} blocks in life {life}");
        let stored = store(&tier, &here, 0..30).await;
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
        for chain in [0, 10, 20] {
            assert_eq!(tier.match_prefix(&keys(chain..chain + 10)).await, 10);
            assert!(load(&tier, &manager(10), chain..chain + 10).await.is_empty());
        }
        // In the middle of many loads.
        let (loading, wanted) = (tier.clone(), manager(30));
        let mut loads = tokio::task::JoinSet::new();
        loads.spawn(async move {
            loop {
                let misses = load(&loading, &wanted, 0..30).await;
                if misses.iter().any(|miss| !matches!(miss.reason, MissReason::Absent)) {
                    return misses.len();
                }
            }
        });
        let moving = async {
            while tier.stats().hits_total < 60 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, moving).await.unwrap();
        owner.kill();
        tokio::time::timeout(PATIENCE, loads.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(tier.match_prefix(&keys(0..10)).await, 0);
        assert!(store(&tier, &here, 40..45).await.iter().all(Result::is_err));
        tier.shutdown(PATIENCE).await.unwrap();
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_share_a_disk_outlive_its_owner_and_find_it_again_with_his_successor() {
    let scratch = Scratch::new();
    let mut owner = Other::start("killed::owns_until_it_is_killed", &scratch.0);
    owner.hear(1);
    let ground = scratch.ground().await;
    let limit = Duration::from_secs(2);
    let config = PeerConfig::default().with_batches(5, 1).with_request_timeout(limit);
    let (one, two) = (ground.process("1").await, ground.process("2").await);
    let (first, second) = (one.tier(config.clone()).await, two.tier(config).await);
    let (from, mut heard) = (manager(90), [listen(&first), listen(&second)]);
    for life in 0..3 {
        if life > 0 {
            owner = Other::start("killed::owns_until_it_is_killed", &scratch.0);
            owner.hear(1);
            // What is on the disk.
            for heard in &mut heard {
                hear(heard, |change| matches!(change, TierChange::Stored(_))).await;
            }
            let misses = load(&second, &manager(30), 0..30).await;
            assert!(misses.len() <= 20, "{} misses in life {life}", misses.len());
        }
        assert!(store(&first, &from, 0..30).await.iter().all(Result::is_ok));
        for chain in [0, 10, 20] {
            assert!(load(&second, &manager(10), chain..chain + 10).await.is_empty());
        }
        // Killed while one stores and the other loads.
        let (stored, hits) = (first.stats().stored_total, second.stats().hits_total);
        let (storing, loading) = (first.clone(), second.clone());
        let is_killed = Arc::new(AtomicBool::new(false));
        let (one_is_killed, killed) = (Arc::clone(&is_killed), Arc::clone(&is_killed));
        let more = from.clone();
        let stores = async move {
            let mut block = 30;
            while !one_is_killed.load(Ordering::SeqCst) {
                drop(store(&storing, &more, block..block + 10).await);
                block = 30 + (block - 20) % 30;
            }
        };
        let into = manager(30);
        let loads = async move {
            while !is_killed.load(Ordering::SeqCst) {
                drop(load(&loading, &into, 0..30).await);
            }
        };
        let mut moving = tokio::task::JoinSet::new();
        moving.spawn(stores);
        moving.spawn(loads);
        let is_moving = async {
            while first.stats().stored_total < stored + 20 || second.stats().hits_total < hits + 20
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, is_moving).await.unwrap();
        owner.kill();
        killed.store(true, Ordering::SeqCst);
        tokio::time::timeout(PATIENCE, moving.join_all()).await.unwrap();
        for heard in &mut heard {
            hear(heard, |change| matches!(change, TierChange::Cleared)).await;
        }
        assert_eq!(second.match_prefix(&keys(0..10)).await, 0);
        assert!(store(&first, &from, 0..5).await.iter().all(Result::is_err));
        assert_eq!((first.stats().blocks, second.stats().blocks), (0, 0));
    }
    for (tier, process) in [(first, one), (second, two)] {
        tier.shutdown(PATIENCE).await.unwrap();
        process.end().await;
    }
}

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("peer-{:016x}", Random::unseeded().next_u64());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(dir.join("instances")).unwrap();
        Self(dir)
    }

    async fn ground(&self) -> Ground {
        ground(&self.0).await
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Processes that find each other by a folder.
async fn ground(dir: &Path) -> Ground {
    let config = FileConfig::new(dir.join("instances")).with_poll(Duration::from_millis(10));
    Ground::Tcp(Arc::new(FileDiscovery::start(config).await.unwrap()))
}

/// Blocks that a worker has any of.
const NUMBERS: u32 = 60;

fn number(key: &BlockKey) -> u32 {
    u32::try_from(key.sequence.0).unwrap()
}

/// What a worker does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test that kills it"]
async fn works_until_it_is_killed() {
    let Some(dir) = other::directory() else { return };
    let worker = ground(&dir).await.process("worker").await;
    let tier = worker.tier(PeerConfig::default().with_batches(4, 4)).await;
    let (from, into, mut random) = (manager(30), manager(30), Random::unseeded());
    other::tell("");
    loop {
        let first = u32::try_from(random.below(NUMBERS as usize - 20).unwrap()).unwrap();
        let (stored, _) = tokio::join!(
            store(&tier, &from, first..first + 20),
            load(&tier, &into, first..first + 20)
        );
        let written = stored.iter().zip(first..);
        let written = written.filter(|(stored, _)| matches!(stored, Ok(Stored::Written)));
        let written: Vec<_> = written.map(|(_, number)| number.to_string()).collect();
        other::tell(format_args!("{} ", written.join(" ")));
    }
}

/// What an owner does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test that kills it"]
async fn owns_until_it_is_killed() {
    let Some(dir) = other::directory() else { return };
    let config = DiskConfig::new(dir.join("disk"), 64, layout().block_bytes(), 1);
    let disk = async {
        loop {
            match DiskTier::open(config.clone()).await {
                // The kernel has not closed the files of who was killed.
                Err(DiskError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                opened => break opened.unwrap(),
            }
        }
    };
    let disk = Arc::new(tokio::time::timeout(PATIENCE, disk).await.unwrap());
    let below = TiersConfig::default().with_tier(TierConfig::new(disk));
    // Two chains of what it lends at once: a block keeps those before it.
    let (leader, shared) = (ground(&dir).await.process("leader").await, manager_above(20, below));
    let config = OwnerConfig::new(10).with_client_limits(10, 16);
    let (_owner, _serving) = leader.serve(&shared, config, 0).await;
    other::tell("");
    std::future::pending().await
}
