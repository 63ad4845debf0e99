use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dynamo_kv::evict::{BlockCost, CostAware};
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::tier::{MissReason, StoreError, Stored, Tier, TierChange};
use dynamo_transfer::HostBuffer;
use dynamo_transfer::file::{FileAct, FileFault, FileFaults};
use futures::FutureExt as _;

use crate::support::{PATIENCE, Scratch, Truth, faulty, key, quiet, shut, store};

/// Directly and through the page cache; in whole pages and not; hashed here and on a thread.
#[tokio::test]
async fn what_is_stored_is_loaded_and_after_a_restart_all_of_it() {
    for (block_bytes, direct) in [(4096, true), (5000, true), (512, false), (200_000, true)] {
        let scratch = Scratch::new();
        let truth = Truth::new(40, block_bytes);
        let config = scratch.config(40, block_bytes).with_direct(direct).with_in_flight(7);
        let tier = DiskTier::open(config.clone()).await.unwrap();
        assert!(tier.recovery().is_new);
        let stored = store(&tier, &truth, 0..40).await;
        assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))));
        let all: Vec<_> = (0..40).map(|number| key(number).identity).collect();
        assert!(truth.load(&tier, &all).await.is_empty());
        let keys = tier.keys();
        shut(tier).await;

        let tier = DiskTier::open(config).await.unwrap();
        let recovery = tier.recovery();
        assert_eq!((recovery.blocks, recovery.is_new), (40, false));
        assert_eq!((recovery.damaged, recovery.stale, recovery.repeated), (0, 0, 0));
        assert_eq!(tier.keys(), keys);
        assert_eq!(tier.match_prefix(&keys), 40);
        assert!(truth.load(&tier, &all).await.is_empty());
        let stats = tier.stats();
        assert_eq!((stats.hits_total, stats.blocks, stats.held), (40, 40, 0));
        assert_eq!(stats.read_bytes_total, 40 * block_bytes as u64);
        shut(tier).await;
    }
}

#[tokio::test]
async fn what_was_used_longest_ago_makes_room_its_end_first_and_whoever_listens_knows() {
    let scratch = Scratch::new();
    let truth = Truth::new(12, 4096);
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&changes);
    let sink = move |change| seen.lock().unwrap().push(change);
    let tier = DiskTier::open(scratch.config(8, 4096)).await.unwrap();
    assert!(tier.watch(Box::new(sink)).is_empty());
    // One at a time, so that their ages differ.
    for number in 0..8 {
        store(&tier, &truth, [number]).await.remove(0).unwrap();
    }
    assert!(truth.load(&tier, &[key(0).identity]).await.is_empty());
    store(&tier, &truth, [8]).await.remove(0).unwrap();
    store(&tier, &truth, [9]).await.remove(0).unwrap();
    let there: Vec<_> = (0..12).filter(|number| tier.contains(&key(*number).identity)).collect();
    assert_eq!(there, [0, 1, 4, 5, 6, 7, 8, 9]);
    assert_eq!(tier.match_prefix(&[0, 1, 4, 2, 5].map(key)), 3);
    assert_eq!(tier.stats().evicted_total, 2);
    let last = changes.lock().unwrap().split_off(8);
    let [one, two] = [(3, 8), (2, 9)]
        .map(|(old, new)| [TierChange::Removed(key(old)), TierChange::Stored(key(new))]);
    assert_eq!(last, [one, two].concat());
    shut(tier).await;
}

#[tokio::test]
async fn a_sequence_loses_its_end_first_though_its_beginning_was_used_before_also_after_a_restart()
{
    let scratch = Scratch::new();
    let truth = Truth::new(12, 4096);
    let sequence = [0, 1, 2, 3].map(key);
    let config = scratch.config(4, 4096).with_in_flight(1);
    let tier = DiskTier::open(config.clone()).await.unwrap();
    store(&tier, &truth, 0..4).await;
    assert!(truth.load(&tier, &sequence.map(|key| key.identity)).await.is_empty());
    store(&tier, &truth, [4]).await.remove(0).unwrap();
    assert_eq!(tier.match_prefix(&sequence), 3);
    shut(tier).await;

    let tier = DiskTier::open(config).await.unwrap();
    store(&tier, &truth, [8]).await.remove(0).unwrap();
    assert_eq!(tier.match_prefix(&sequence), 2);
    assert_eq!(tier.stats().blocks, 4);
    shut(tier).await;
}

#[tokio::test]
async fn a_block_does_not_take_the_place_of_what_it_follows() {
    let scratch = Scratch::new();
    let truth = Truth::new(5, 4096);
    let tier = DiskTier::open(scratch.config(3, 4096)).await.unwrap();
    for _ in 0..2 {
        let stored = store(&tier, &truth, 0..4).await;
        assert!(matches!(stored[3], Err(StoreError::Busy)), "{stored:?}");
        assert_eq!(tier.match_prefix(&[0, 1, 2, 3].map(key)), 3);
    }
    store(&tier, &truth, [4]).await.remove(0).unwrap();
    assert_eq!(tier.match_prefix(&[0, 1, 2, 3].map(key)), 2);
    shut(tier).await;
}

#[tokio::test]
async fn the_policy_of_the_config_chooses_what_makes_room() {
    let scratch = Scratch::new();
    let truth = Truth::new(20, 4096);
    let cost = BlockCost::new(1.0, 0.0);
    let config = scratch.config(4, 4096).with_eviction(move || CostAware::new(cost));
    let tier = DiskTier::open(config).await.unwrap();
    store(&tier, &truth, [0, 4, 8, 12]).await;
    for number in [0, 0, 0, 4, 8, 12] {
        assert!(truth.load(&tier, &[key(number).identity]).await.is_empty());
    }
    store(&tier, &truth, [16]).await.remove(0).unwrap();
    let there: Vec<_> = (0..20).filter(|number| tier.contains(&key(*number).identity)).collect();
    assert_eq!(there, [0, 8, 12, 16], "0 was used longest ago, but most often");
    shut(tier).await;
}

/// Opens a tier whose calls of one kind wait while it is told so.
async fn holding(config: DiskConfig, act: FileAct) -> (DiskTier, FileFaults, Arc<AtomicBool>) {
    let is_holding = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_holding);
    let faults =
        FileFaults::new(move |call| match call.act == act && told.load(Ordering::SeqCst) {
            true => FileFault::Hold,
            false => FileFault::Pass,
        });
    let tier = DiskTier::open(config.with_files(faulty(&faults))).await.unwrap();
    is_holding.store(true, Ordering::SeqCst);
    (tier, faults, is_holding)
}

#[tokio::test]
async fn a_block_that_is_stored_twice_at_once_is_written_once() {
    let scratch = Scratch::new();
    let truth = Truth::new(2, 4096);
    let config = scratch.config(8, 4096);
    let (tier, faults, is_holding) = holding(config, FileAct::Write).await;
    let mut first = Box::pin(store(&tier, &truth, [0, 1, 0]));
    let mut second = Box::pin(store(&tier, &truth, [1, 0]));
    assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
    assert_eq!((faults.held(), tier.stats().held), (1, 2), "neighbours are written at once");
    is_holding.store(false, Ordering::SeqCst);
    faults.release();
    let (first, second) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(first, second) }).await.unwrap();
    assert!(matches!(first[..], [Ok(Stored::Written), Ok(Stored::Written), Ok(Stored::Present)]));
    assert!(matches!(second[..], [Ok(Stored::Present), Ok(Stored::Present)]));
    let stats = tier.stats();
    assert_eq!((stats.stored_total, stats.present_total, stats.blocks), (2, 3, 2));
    let calls = faults.calls();
    assert!(matches!(store(&tier, &truth, [1]).await[..], [Ok(Stored::Present)]));
    assert_eq!(faults.calls(), calls, "what is there costs no io");
    shut(tier).await;
}

#[tokio::test]
async fn who_waits_for_a_store_that_is_dropped_stores_the_block() {
    let scratch = Scratch::new();
    let truth = Truth::new(1, 4096);
    let (tier, faults, is_holding) = holding(scratch.config(2, 4096), FileAct::Write).await;
    let mut first = Box::pin(store(&tier, &truth, [0]));
    let mut second = Box::pin(store(&tier, &truth, [0]));
    assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
    drop(first);
    is_holding.store(false, Ordering::SeqCst);
    faults.release();
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap();
    assert!(matches!(second[..], [Ok(Stored::Written)]));
    assert!(truth.load(&tier, &[key(0).identity]).await.is_empty());
    shut(tier).await;
}

/// A block that counts those that were dropped.
struct Counted(HostBuffer, Arc<AtomicBool>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_dropped_store_keeps_block_and_slot_until_the_kernel_is_done_and_leaves_nothing() {
    let scratch = Scratch::new();
    let truth = Truth::new(2, 4096);
    let (tier, faults, is_holding) = holding(scratch.config(1, 4096), FileAct::Write).await;
    let (key, block) = truth.block(0);
    let is_dropped = Arc::new(AtomicBool::new(false));
    let block = Counted(block, Arc::clone(&is_dropped));
    let mut writing = Box::pin(tier.store(vec![(key, block)]));
    assert!((&mut writing).now_or_never().is_none());
    drop(writing);
    assert!(!is_dropped.load(Ordering::SeqCst), "the kernel may still read it");
    let stats = tier.stats();
    assert_eq!((stats.blocks, stats.free, stats.held), (0, 0, 1));
    assert!(matches!(store(&tier, &truth, [1]).await[..], [Err(StoreError::Busy)]));
    is_holding.store(false, Ordering::SeqCst);
    faults.release();
    quiet(&tier).await;
    assert!(is_dropped.load(Ordering::SeqCst) && !tier.contains(&key.identity));
    store(&tier, &truth, [1]).await.remove(0).unwrap();
    shut(tier).await;
}

#[tokio::test]
async fn a_slot_that_is_read_is_not_written_though_its_reader_is_gone() {
    let scratch = Scratch::new();
    let truth = Truth::new(3, 4096);
    let (tier, faults, is_holding) = holding(scratch.config(1, 4096), FileAct::Read).await;
    store(&tier, &truth, [0]).await.remove(0).unwrap();
    let identity = [key(0).identity];
    let mut reading = Box::pin(truth.load(&tier, &identity));
    assert!((&mut reading).now_or_never().is_none());
    assert!(matches!(store(&tier, &truth, [1]).await[..], [Err(StoreError::Busy)]));
    // Removed: it cannot be found, and its slot is still not free.
    assert!(tier.remove(&identity[0]).await.unwrap());
    assert!(!tier.contains(&identity[0]));
    drop(reading);
    assert!(matches!(store(&tier, &truth, [2]).await[..], [Err(StoreError::Busy)]));
    is_holding.store(false, Ordering::SeqCst);
    faults.release();
    quiet(&tier).await;
    shut(tier).await;
}

#[tokio::test]
async fn no_more_blocks_are_in_flight_than_the_config_says() {
    let scratch = Scratch::new();
    let truth = Truth::new(20, 4096);
    let config = scratch.config(20, 4096).with_in_flight(4);
    let (tier, faults, is_holding) = holding(config, FileAct::Write).await;
    let mut first = Box::pin(store(&tier, &truth, 0..10));
    let mut second = Box::pin(store(&tier, &truth, 10..20));
    for _ in 0..3 {
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
    }
    assert_eq!(faults.held(), 2, "two blocks each");
    assert_eq!(tier.stats().held, 4, "the others have no slots yet");
    is_holding.store(false, Ordering::SeqCst);
    faults.release();
    let both = async { tokio::join!(first, second) };
    let (first, second) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert_eq!(first.iter().chain(&second).filter(|stored| stored.is_ok()).count(), 20);
    shut(tier).await;
}

#[tokio::test]
async fn what_is_removed_or_cleared_stays_so_after_a_restart_also_what_is_being_stored() {
    let scratch = Scratch::new();
    let truth = Truth::new(6, 4096);
    let config = scratch.config(8, 4096);
    let (tier, faults, is_holding) = holding(config.clone(), FileAct::Write).await;
    is_holding.store(false, Ordering::SeqCst);
    store(&tier, &truth, 0..4).await;
    assert!(tier.remove(&key(1).identity).await.unwrap());
    assert!(!tier.remove(&key(1).identity).await.unwrap());
    is_holding.store(true, Ordering::SeqCst);
    let mut removed = Box::pin(store(&tier, &truth, [4]));
    assert!((&mut removed).now_or_never().is_none());
    is_holding.store(false, Ordering::SeqCst);
    assert!(!tier.remove(&key(4).identity).await.unwrap(), "it was not there yet");
    faults.release();
    let removed = tokio::time::timeout(PATIENCE, removed).await.unwrap();
    assert!(matches!(removed[..], [Err(StoreError::Removed)]));
    shut(tier).await;

    let (tier, faults, is_holding) = holding(config.clone(), FileAct::Write).await;
    assert_eq!(tier.keys(), [0, 2, 3].map(key));
    let mut cleared = Box::pin(store(&tier, &truth, [5]));
    assert!((&mut cleared).now_or_never().is_none());
    is_holding.store(false, Ordering::SeqCst);
    tier.clear().await.unwrap();
    assert!(tier.keys().is_empty());
    faults.release();
    let cleared = tokio::time::timeout(PATIENCE, cleared).await.unwrap();
    assert!(matches!(cleared[..], [Err(StoreError::Removed)]));
    store(&tier, &truth, [2]).await.remove(0).unwrap();
    shut(tier).await;

    let tier = DiskTier::open(config).await.unwrap();
    assert_eq!(tier.keys(), [key(2)]);
    assert!(truth.load(&tier, &[key(2).identity]).await.is_empty());
    shut(tier).await;
}

#[tokio::test]
async fn a_block_of_another_size_is_refused_and_so_is_everything_after_a_shutdown() {
    let scratch = Scratch::new();
    let truth = Truth::new(2, 4096);
    let tier = DiskTier::open(scratch.config(2, 4096)).await.unwrap();
    let outcomes = tier.store(vec![(key(0), vec![0u8; 4095]), (key(1), vec![1u8; 4096])]).await;
    let [Err(StoreError::Length { expected: 4096, found: 4095 }), Ok(Stored::Written)] =
        outcomes[..]
    else {
        unreachable!("{outcomes:?}")
    };
    let miss = tier.load(vec![(key(1).identity, vec![0u8; 9])]).await.remove(0).unwrap_err();
    assert!(matches!(miss.reason, MissReason::Length { expected: 4096, found: 9 }));
    assert_eq!(miss.target.unwrap().len(), 9, "the target comes back");
    let miss = tier.load(vec![(key(0).identity, vec![0u8; 4096])]).await.remove(0).unwrap_err();
    assert!(matches!(miss.reason, MissReason::Absent));

    assert_eq!(tier.match_prefix(&[key(1)]), 1);
    tier.shutdown(PATIENCE).await.unwrap();
    assert!(!tier.contains(&key(1).identity));
    assert_eq!(tier.match_prefix(&[key(1)]), 0, "nobody makes room for what he cannot load");
    assert!(matches!(store(&tier, &truth, [0]).await[..], [Err(StoreError::Closed)]));
    let miss = truth.load(&tier, &[key(1).identity]).await.remove(0);
    assert!(matches!(miss.reason, MissReason::Closed) && miss.target.is_some());
    assert!(tier.remove(&key(1).identity).await.is_err() && tier.clear().await.is_err());
    // It is unlocked, though this handle lives.
    shut(DiskTier::open(scratch.config(2, 4096)).await.unwrap()).await;
    tier.shutdown(PATIENCE).await.unwrap();
}
