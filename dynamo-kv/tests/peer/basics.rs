use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol;
use dynamo_kv::tier::peer::{OwnerConfig, PeerConfig};
use dynamo_kv::tier::{MissReason, StoreError, Stored, Tier};

use crate::support::{Ground, PATIENCE, at_rest, fill, keys, load, manager, manager_above, store};

#[tokio::test]
async fn what_one_worker_stores_another_loads() {
    for ground in [Ground::memory(), Ground::tcp()] {
        let (leader, one, two) =
            (ground.process("leader").await, ground.process("1").await, ground.process("2").await);
        let shared = manager(40);
        let (owner, serving) = leader.serve(&shared, OwnerConfig::new(40), 0).await;
        // In batches, a few at once, and not a whole number of them.
        let config = PeerConfig::default().with_batches(4, 3);
        let (first, second) = (one.tier(config.clone()).await, two.tier(config).await);
        let here = manager(40);
        let stored = store(&first, &here, 0..30).await;
        assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))), "{stored:?}");
        assert_eq!(second.match_prefix(&keys(20..35)).await, 10);
        assert_eq!(second.match_prefix(&keys(30..35)).await, 0);
        let misses = load(&second, &manager(40), (0..35).rev()).await;
        assert!(misses.iter().all(|miss| matches!(miss.reason, MissReason::Absent)), "{misses:?}");
        assert!(misses.iter().all(|miss| miss.target.is_some()));
        assert_eq!(misses.len(), 5);
        let stored = store(&second, &manager(40), 25..35).await;
        let written = stored.iter().filter(|stored| matches!(stored, Ok(Stored::Written))).count();
        assert_eq!((written, stored.iter().flatten().count()), (5, 10));
        at_rest(&owner, &shared).await;

        let stats = Tier::stats(&second);
        assert_eq!((stats.hits_total, stats.misses_total, stats.stored_total), (30, 5, 5));
        assert!(second.estimate(1) > Duration::ZERO && second.kind() == protocol::Tier::Remote);
        for tier in [first, second] {
            tier.shutdown(PATIENCE).await.unwrap();
            assert!(matches!(load(&tier, &here, [0]).await[0].reason, MissReason::Closed));
        }
        drop(serving);
        owner.shutdown().await;
        for process in [one, two, leader] {
            process.end().await;
        }
    }
}

#[tokio::test]
async fn a_full_owner_takes_what_it_has_room_for_and_evicts_what_nobody_holds() {
    let ground = Ground::memory();
    let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
    let shared = manager(4);
    let (owner, _serving) = leader.serve(&shared, OwnerConfig::new(8), 0).await;
    let (tier, here) = (worker.tier(PeerConfig::default()).await, manager(20));
    let held = fill(&shared, &keys([0, 1]));
    let stored = store(&tier, &here, 10..14).await;
    assert!(matches!(
        stored[..],
        [Ok(Stored::Written), Ok(Stored::Written), Err(StoreError::Busy), Err(StoreError::Busy)]
    ));
    drop(held);
    assert!(store(&tier, &here, 20..22).await.iter().all(Result::is_ok));
    at_rest(&owner, &shared).await;
    assert_eq!(shared.stats().evicted_total, 2);
}

#[tokio::test]
async fn a_client_that_gives_up_leaves_nothing_lent() {
    for ground in [Ground::memory(), Ground::tcp()] {
        let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
        let shared = manager(40);
        // Nothing comes back by its time.
        let config = OwnerConfig::new(40).with_ttl(Duration::from_secs(3600));
        let (owner, _serving) = leader.serve(&shared, config, 0).await;
        let tier = worker.tier(PeerConfig::default().with_batches(2, 2)).await;
        let (here, there) = (manager(20), manager(20));
        for polls in 0..8 {
            let moving =
                async { tokio::join!(store(&tier, &here, 0..10), load(&tier, &there, 0..10)) };
            let mut moving = Box::pin(moving);
            for _ in 0..polls {
                if futures::poll!(&mut moving).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        tier.shutdown(PATIENCE).await.unwrap();
        at_rest(&owner, &shared).await;
        assert_eq!(there.stats().free, 20);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn workers_share_the_disk_that_their_owner_has_and_it_survives_him() {
    use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
    use dynamo_kv::{TierConfig, TiersConfig};

    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = dir.join(format!("peer-{:016x}", dynamo_core::random::Random::unseeded().next_u64()));
    let config = DiskConfig::new(&dir, 64, crate::support::layout().block_bytes(), 1);
    for life in 0..2 {
        let ground = Ground::tcp();
        let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
        // Memory for one chain; the disk has all.
        let disk = DiskTier::open(config.clone()).await.unwrap();
        let below = TierConfig::new(Arc::new(disk.clone()));
        let shared = manager_above(10, TiersConfig::default().with_tier(below));
        let (owner, serving) = leader.serve(&shared, OwnerConfig::new(10), life).await;
        let (tier, here) =
            (worker.tier(PeerConfig::default().with_batches(10, 1)).await, manager(40));
        if life == 0 {
            let stored = store(&tier, &here, 0..30).await;
            assert!(
                stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))),
                "{stored:?}"
            );
        }
        for chain in 0..3 {
            let chain = chain * 10..chain * 10 + 10;
            assert_eq!(tier.match_prefix(&keys(chain.clone())).await, 10);
            assert!(load(&tier, &manager(10), chain).await.is_empty());
        }
        if life == 1 {
            assert_eq!(disk.stats().hits_total, 30);
        }
        at_rest(&owner, &shared).await;
        drop(serving);
        owner.shutdown().await;
        for process in [worker, leader] {
            process.end().await;
        }
        shared.shutdown(PATIENCE).await.unwrap();
    }
    std::fs::remove_dir_all(dir).unwrap();
}
