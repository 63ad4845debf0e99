//! What an owner has reaches the workers, and what it has no more is taken back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::protocol::{self, InstanceId, KvChange, KvEvent, WorkerId};
use dynamo_kv::tier::TierChange;
use dynamo_kv::tier::peer::{OwnerConfig, PeerConfig};
use dynamo_kv::{BlockManager, ManagerConfig, TierConfig, TiersConfig};

use crate::support::{
    Ground, PATIENCE, at_rest, fill, hear, keys, layout, listen, load, manager, manager_above,
    store,
};

use Said::{Cleared, Removed, Stored};

/// A change, by the number of its block: what places it among others is the owner's.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Stored(u64),
    Removed(u64),
    Cleared,
}

fn said(change: &TierChange) -> Said {
    match change {
        TierChange::Stored(key) => Stored(key.sequence.0),
        TierChange::Removed(key) => Removed(key.sequence.0),
        _ => Cleared,
    }
}

fn all_said(changes: &[TierChange]) -> Vec<Said> {
    changes.iter().map(said).collect()
}

#[tokio::test]
async fn what_an_owner_has_is_told_and_taken_back_and_so_is_what_his_successor_has() {
    for ground in [Ground::memory(), Ground::tcp()] {
        let (leader, one, two) =
            (ground.process("leader").await, ground.process("1").await, ground.process("2").await);
        let shared = manager(40);
        drop(fill(&shared, &keys(0..5)));
        let (owner, serving) = leader.serve(&shared, OwnerConfig::new(40), 0).await;
        let (first, second) =
            (one.tier(PeerConfig::default()).await, two.tier(PeerConfig::default()).await);
        let mut heard = listen(&first);
        let told = hear(&mut heard, |change| said(change) == Stored(4)).await;
        assert_eq!(all_said(&told), [0, 1, 2, 3, 4].map(Stored));
        assert_eq!((dynamo_kv::tier::Tier::stats(&first).blocks, owner.stats().watchers), (5, 1));

        assert!(store(&second, &manager(3), 10..13).await.iter().all(Result::is_ok));
        let told = hear(&mut heard, |change| said(change) == Stored(12)).await;
        assert_eq!(all_said(&told), [10, 11, 12].map(Stored));
        // The owner needs the room: what goes is no more than what was there.
        let (mut gone, held) = (Vec::new(), shared.allocate(34).unwrap());
        while gone.len() < 2 {
            gone.extend(hear(&mut heard, |_| true).await);
        }
        assert!(all_said(&gone).iter().all(|said| matches!(said, Removed(_))), "{gone:?}");
        drop(held);
        shared.clear();
        assert_eq!(hear(&mut heard, |change| said(change) == Cleared).await.len(), 1);

        drop(fill(&shared, &keys([20])));
        hear(&mut heard, |change| said(change) == Stored(20)).await;
        drop(serving);
        owner.shutdown().await;
        let successor = manager(40);
        drop(fill(&successor, &keys([20, 21])));
        let (owner, _serving) = leader.serve(&successor, OwnerConfig::new(40), 1).await;
        let told = hear(&mut heard, |change| said(change) == Stored(21)).await;
        assert_eq!(all_said(&told), [Cleared, Stored(20), Stored(21)]);
        first.shutdown(PATIENCE).await.unwrap();
        assert_eq!(all_said(&hear(&mut heard, |_| true).await), [Cleared]);
        assert_eq!(owner.stats().lent_blocks, 0);
    }
}

#[tokio::test]
async fn blocks_of_an_owner_are_removed_for_all_if_he_lets_that_be_done() {
    for ground in [Ground::memory(), Ground::tcp()] {
        let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
        let shared = manager(40);
        let held = fill(&shared, &keys(0..3));
        drop(fill(&shared, &keys(10..15)));
        let config = OwnerConfig::new(40);
        let (owner, serving) = leader.serve(&shared, config.clone(), 0).await;
        let tier = worker.tier(PeerConfig::default()).await;
        let refused = [tier.remove(&keys([10])).await.map(drop), tier.clear().await];
        let kinds = refused.map(|refused| refused.unwrap_err().kind());
        assert_eq!(kinds, [ErrorKind::InvalidArgument; 2]);
        assert_eq!(tier.match_prefix(&keys(10..15)).await, 5, "nothing was removed");
        drop(serving);
        owner.shutdown().await;

        let (owner, _serving) = leader.serve(&shared, config.with_removable(true), 1).await;
        let removed = async {
            loop {
                // The worker may not know of him yet.
                match tier.remove(&keys(13..17)).await {
                    Err(error) if error.kind() == ErrorKind::Unavailable => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    removed => break removed,
                }
            }
        };
        let removed = tokio::time::timeout(PATIENCE, removed).await.unwrap();
        assert_eq!(removed.unwrap(), 2, "two of them were there");
        assert_eq!(tier.match_prefix(&keys(10..15)).await, 3);
        // What is in use stays; what is not goes all the same.
        let in_use = tier.remove(&keys([0, 1, 2, 12])).await.unwrap_err();
        assert_eq!(in_use.kind(), ErrorKind::Conflict);
        assert_eq!((tier.match_prefix(&keys(10..15)).await, shared.stats().cached), (2, 2));
        drop(held);
        tier.clear().await.unwrap();
        at_rest(&owner, &shared).await;
        assert_eq!(shared.stats().free, 40);
    }
}

#[tokio::test]
async fn a_batch_is_cut_to_what_the_owner_lends_at_once() {
    let ground = Ground::memory();
    let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
    let shared = manager(40);
    let config = OwnerConfig::new(40).with_client_limits(4, 1);
    let (owner, _serving) = leader.serve(&shared, config, 0).await;
    let tier = worker.tier(PeerConfig::default().with_batches(32, 1)).await;
    let stored = store(&tier, &manager(30), 0..30).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let tier = worker.tier(PeerConfig::default().with_batches(32, 1)).await;
    assert!(load(&tier, &manager(30), 0..30).await.is_empty());
    at_rest(&owner, &shared).await;
    let stats = owner.stats();
    assert_eq!((stats.committed_total, stats.released_total, stats.refused_total), (8, 8, 0));
}

#[tokio::test]
async fn a_manager_above_a_shared_tier_says_that_its_worker_reaches_what_others_have_stored() {
    let ground = Ground::memory();
    let (leader, one, two) =
        (ground.process("leader").await, ground.process("1").await, ground.process("2").await);
    let shared = manager(40);
    let (_owner, _serving) = leader.serve(&shared, OwnerConfig::new(40), 0).await;
    let events: Arc<Mutex<Vec<KvEvent>>> = Arc::default();
    let (heard, peer) = (Arc::clone(&events), one.tier(PeerConfig::default()).await);
    let tiers = TiersConfig::default().with_tier(TierConfig::new(Arc::new(peer)));
    let config = ManagerConfig::new(layout(), 20).with_tiers(tiers);
    let worker = WorkerId::new(InstanceId(9));
    let sink = Box::new(move |event| heard.lock().unwrap().push(event));
    let worker = BlockManager::new(config, worker, sink).unwrap();
    let tier = two.tier(PeerConfig::default()).await;
    assert!(store(&tier, &manager(10), 0..10).await.iter().all(Result::is_ok));

    let is_told = async {
        while worker.snapshot().stored.len() < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_told).await.unwrap();
    let remote = |change: &KvChange| match change {
        KvChange::BlockStored { blocks, tier: protocol::Tier::Remote, .. } => blocks.len(),
        _ => 0,
    };
    assert_eq!(worker.snapshot().stored.iter().map(remote).sum::<usize>(), 10);
    let told = events.lock().unwrap().iter().map(|event| remote(&event.change)).sum::<usize>();
    assert_eq!(told, 10);
    let acquired = worker.acquire(&keys(0..10)).await;
    assert_eq!((acquired.sources.remote, acquired.compute), (10, 10..10));
    // What the owner has is not sent to it again.
    drop(acquired.blocks);
    drop(worker.reserve(20).await.unwrap());
    let below = worker.tiers().unwrap().tiers.remove(0);
    assert_eq!((below.stats.blocks, below.queued, below.stats.stored_total), (10, 0, 0));
    worker.shutdown(PATIENCE).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_removed_is_removed_from_the_disk_of_the_owner_too() {
    use dynamo_kv::tier::disk::{DiskConfig, DiskTier};

    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = dir.join(format!("peer-{:016x}", dynamo_core::random::Random::unseeded().next_u64()));
    let config = DiskConfig::new(&dir, 64, layout().block_bytes(), 1);
    let disk = DiskTier::open(config).await.unwrap();
    let below = TiersConfig::default().with_tier(TierConfig::new(Arc::new(disk.clone())));
    let ground = Ground::memory();
    let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
    let shared = manager_above(10, below);
    let config = OwnerConfig::new(10).with_removable(true);
    let (_owner, _serving) = leader.serve(&shared, config, 0).await;
    let tier = worker.tier(PeerConfig::default().with_batches(10, 1)).await;
    let mut heard = listen(&tier);
    assert!(store(&tier, &manager(30), 0..30).await.iter().all(Result::is_ok));
    let on_disk = async {
        while disk.stats().blocks < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, on_disk).await.unwrap();
    // On the disk, in memory, and nowhere.
    assert_eq!(tier.remove(&keys([0, 1, 2, 28, 29, 30])).await.unwrap(), 5);
    assert_eq!((disk.stats().blocks, tier.match_prefix(&keys(20..30)).await), (17, 8));
    hear(&mut heard, |change| said(change) == Removed(29)).await;
    tier.clear().await.unwrap();
    assert_eq!((disk.stats().blocks, shared.stats().free), (0, 10));
    shared.shutdown(PATIENCE).await.unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}
