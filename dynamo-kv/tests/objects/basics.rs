use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_kv::tier::object::object_store::{ObjectStore, ObjectStoreExt as _};
use dynamo_kv::tier::object::{ObjectConfig, ObjectTier, OnFull};
use dynamo_kv::tier::{Damage, MissReason, StoreError, Stored, Tier as _, TierChange};
use futures::FutureExt as _;
use futures::TryStreamExt as _;

use crate::faulty::{Act, Fault, Faulty, vandalise};
use crate::support::{PATIENCE, Shelf, config, key, keys, load, object, store, truth};

/// In pages and not; hashed here and on a thread; in memory and in files.
#[tokio::test]
async fn what_one_process_stores_every_other_loads() {
    for shelf in [Shelf::memory(), Shelf::directory()] {
        for block_bytes in [1, 4096, 5000, 200_000] {
            let config = ObjectConfig::new("a/b", block_bytes, block_bytes as u64);
            let one = shelf.tier(config.clone());
            let stored = store(&one, 0..20, block_bytes).await;
            assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))));
            assert!(load(&one, 0..20, block_bytes).await.is_empty());
            // Later, or elsewhere.
            let two = shelf.tier(config);
            assert_eq!(two.match_prefix(&keys(0..30)).await, 20);
            assert!(load(&two, (0..20).rev(), block_bytes).await.is_empty());
            let stored = store(&two, 0..20, block_bytes).await;
            assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Present))));
            let stats = two.stats();
            assert_eq!((stats.hits_total, stats.stored_total, stats.blocks), (20, 0, 20));
            assert_eq!(stats.read_bytes_total, 20 * block_bytes as u64);
        }
    }
}

#[tokio::test]
async fn of_two_who_store_a_block_at_once_one_writes() {
    for shelf in [Shelf::memory(), Shelf::directory()] {
        let (one, two) = (shelf.tier(config(900)), shelf.tier(config(900)));
        let (first, second) = tokio::join!(store(&one, 0..50, 900), store(&two, 0..50, 900));
        for (first, second) in first.into_iter().zip(second) {
            let outcomes = [first.unwrap(), second.unwrap()];
            assert!(outcomes.contains(&Stored::Written) && outcomes.contains(&Stored::Present));
        }
    }
}

#[tokio::test]
async fn blocks_of_another_fingerprint_or_size_are_not_there() {
    let shelf = Shelf::memory();
    store(&shelf.tier(config(64)), [0], 64).await.remove(0).unwrap();
    let other = shelf.tier(ObjectConfig::new("tests/kv", 64, 0xd15d));
    assert_eq!(other.match_prefix(&keys([0])).await, 0);
    assert!(matches!(load(&other, [0], 64).await[0].reason, MissReason::Absent));
    // One who says so although they are of another size: no damage is done to either.
    let other = shelf.tier(config(65));
    assert!(matches!(
        load(&other, [0], 65).await[0].reason,
        MissReason::Damaged(Damage::Truncated)
    ));
    let tier = shelf.tier(config(64));
    let wrong = tier.load(vec![(key(0), vec![0; 63])]).await.remove(0).unwrap_err();
    assert!(matches!(wrong.reason, MissReason::Length { expected: 64, found: 63 }));
    let wrong = tier.store(vec![(key(0), vec![0; 65])]).await.remove(0);
    assert!(matches!(wrong, Err(StoreError::Length { expected: 64, found: 65 })));
}

#[tokio::test]
async fn a_damaged_object_is_a_miss_that_says_why_and_is_stored_anew() {
    for shelf in [Shelf::memory(), Shelf::directory()] {
        let tier = shelf.tier(config(1000));
        store(&tier, 0..2, 1000).await;
        let kinds = [
            (Fault::Flip(3), Damage::Foreign),
            (Fault::Flip(40 * 8), Damage::Foreign),
            (Fault::Flip(70 * 8), Damage::Digest),
            (Fault::Flip(500 * 8), Damage::Digest),
            (Fault::Cut(0), Damage::Truncated),
            (Fault::Cut(95), Damage::Truncated),
            (Fault::Cut(1095), Damage::Truncated),
            (Fault::Other(object(1)), Damage::Foreign),
        ];
        for (fault, damage) in kinds {
            vandalise(&*shelf.store, &object(0), fault.clone()).await;
            let miss = load(&tier, [0], 1000).await.remove(0);
            let MissReason::Damaged(found) = miss.reason else { panic!("{fault:?}: {miss:?}") };
            assert_eq!(found, damage, "{fault:?}");
            assert_eq!(miss.target.unwrap().len(), 1000);
            assert_eq!(tier.match_prefix(&keys([0])).await, 0);
            store(&tier, [0], 1000).await.remove(0).unwrap();
            assert!(load(&tier, [0], 1000).await.is_empty());
        }
        // Cut where nobody loads it: whoever stores it next finds out.
        vandalise(&*shelf.store, &object(0), Fault::Cut(50)).await;
        let other = shelf.tier(config(1000));
        assert!(matches!(store(&other, [0], 1000).await[..], [Ok(Stored::Written)]));
        assert!(load(&other, [0], 1000).await.is_empty());
    }
}

#[tokio::test]
async fn what_was_used_longest_ago_makes_room_leaves_first_and_whoever_listens_knows() {
    let shelf = Shelf::memory();
    let tier = shelf.tier(config(64).with_known_max(4, OnFull::Delete));
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&changes);
    assert!(tier.watch(Box::new(move |change| seen.lock().unwrap().push(change))).is_empty());
    store(&tier, 0..4, 64).await;
    assert_eq!(tier.match_prefix(&keys(0..2)).await, 2);
    store(&tier, [7], 64).await;
    store(&tier, [8], 64).await;
    let mut names: Vec<_> =
        shelf.store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
    names.sort();
    let mut expected = [0, 1, 7, 8].map(object);
    expected.sort();
    assert_eq!(names, expected);
    let stored = [0, 1, 2, 3].map(|number| TierChange::Stored(key(number)));
    let later = [(7, 3), (8, 2)]
        .map(|(new, old)| [TierChange::Stored(key(new)), TierChange::Removed(key(old))]);
    assert_eq!(*changes.lock().unwrap(), [&stored[..], &later.concat()[..]].concat());
    assert_eq!((tier.stats().evicted_total, tier.stats().blocks), (2, 4));
    assert_eq!(tier.watch(Box::new(|_| {})), keys([0, 1, 7, 8]));
}

#[tokio::test]
async fn after_a_restart_the_bound_holds_for_what_was_there_before() {
    let shelf = Shelf::directory();
    let before = shelf.tier(config(64));
    for number in 0..10 {
        store(&before, [number], 64).await.remove(0).unwrap();
        // Files tell when they were written by the millisecond.
        let written = shelf.store.head(&object(number)).await.unwrap().last_modified;
        while now_of(&shelf).await <= written.timestamp_millis() {}
    }
    let tier = shelf.tier(config(64).with_known_max(4, OnFull::Delete));
    assert_eq!(tier.refresh().await.unwrap(), 4);
    let left: Vec<_> =
        shelf.store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
    assert_eq!(left.len(), 4);
    assert!((6..10).all(|number| left.contains(&object(number))));
    // The oldest of them goes first.
    store(&tier, [20], 64).await.remove(0).unwrap();
    assert!(shelf.store.head(&object(6)).await.is_err());
    // What another process deletes is no longer known once the store is listed.
    shelf.store.delete(&object(7)).await.unwrap();
    assert_eq!(tier.refresh().await.unwrap(), 3);
}

/// Returns what the store's clock says now, in milliseconds.
async fn now_of(shelf: &Shelf) -> i64 {
    let path = "clock".into();
    shelf.store.put(&path, "".into()).await.unwrap();
    let now = shelf.store.head(&path).await.unwrap().last_modified.timestamp_millis();
    shelf.store.delete(&path).await.unwrap();
    now
}

#[tokio::test]
async fn what_is_removed_or_cleared_is_gone_and_nothing_else_is() {
    for shelf in [Shelf::memory(), Shelf::directory()] {
        let tier = shelf.tier(config(64));
        let foreign = "tests/kv/notes".into();
        shelf.store.put(&foreign, "mine".into()).await.unwrap();
        store(&tier, 0..6, 64).await;
        let other = shelf.tier(config(64));
        assert_eq!(other.remove(&keys([1, 3, 9])).await.unwrap(), 2);
        assert_eq!(load(&tier, 0..6, 64).await.len(), 2);
        other.clear().await.unwrap();
        let left: Vec<_> = shelf.store.list(None).try_collect().await.unwrap();
        assert_eq!(left.len(), 1, "only what is not of the tier");
        assert_eq!(load(&tier, 0..6, 64).await.len(), 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_stored_while_all_are_removed_is_removed() {
    let shelf = Shelf::memory();
    let first = AtomicUsize::new(0);
    let faulty = Faulty::new(&shelf.store, move |act, _| {
        let is_first = *act == Act::Put && first.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { Fault::Hang } else { Fault::None }
    });
    let tier = ObjectTier::new(faulty, config(64)).unwrap();
    let mut storing = Box::pin(store(&tier, [0], 64));
    assert!((&mut storing).now_or_never().is_none());
    tier.clear().await.unwrap();
    assert!(matches!(storing.await[..], [Err(StoreError::Removed)]));
    assert!(shelf.store.head(&object(0)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_again_a_few_times_and_one_that_hangs_too() {
    for (fault, is_answered) in [(Fault::Fail, true), (Fault::Hang, false)] {
        let shelf = Shelf::memory();
        store(&shelf.tier(config(64)), [0], 64).await;
        let (asked, failing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, left) = (Arc::clone(&asked), Arc::clone(&failing));
        let faulty = Faulty::new(&shelf.store, move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            let less = |left: usize| left.checked_sub(1);
            match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
                Ok(_) => fault.clone(),
                Err(_) => Fault::None,
            }
        });
        let config = config(64).with_attempts(3, Duration::from_millis(50));
        let tier = ObjectTier::new(faulty, config).unwrap();
        failing.store(2, Ordering::SeqCst);
        assert!(load(&tier, [0], 64).await.is_empty());
        failing.store(2, Ordering::SeqCst);
        assert!(matches!(store(&tier, [1], 64).await[..], [Ok(Stored::Written)]));
        assert_eq!(asked.swap(0, Ordering::SeqCst), 6);
        failing.store(3, Ordering::SeqCst);
        let begun = tokio::time::Instant::now();
        assert!(matches!(load(&tier, [0], 64).await[0].reason, MissReason::Io(_)));
        failing.store(3, Ordering::SeqCst);
        assert!(matches!(store(&tier, [2], 64).await[..], [Err(StoreError::Io(_))]));
        assert_eq!(asked.load(Ordering::SeqCst), 6);
        // Six attempts of five seconds, if it hangs, and four pauses of 75 and 150 ms at most.
        let bound =
            Duration::from_millis(450) + if is_answered { Duration::ZERO } else { PATIENCE * 2 };
        assert!(begun.elapsed() <= bound);
    }
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_the_config_says() {
    let shelf = Shelf::memory();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let faulty = Faulty::new(&shelf.store, move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Fault::Hang
    });
    let tier = ObjectTier::new(faulty, config(64).with_in_flight(4)).unwrap();
    let mut calls: Vec<_> =
        (0..4).map(|number| Box::pin(store(&tier, number * 10..number * 10 + 10, 64))).collect();
    assert!(calls.iter_mut().all(|call| call.now_or_never().is_none()));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    // What is dropped has its place no more, and who shuts down waits for the others.
    calls.truncate(2);
    assert!(tier.shutdown(Duration::ZERO).await.is_err());
    calls.clear();
    tier.shutdown(PATIENCE).await.unwrap();
    assert!(matches!(store(&tier, [0], 64).await[..], [Err(StoreError::Closed)]));
    assert!(matches!(load(&tier, [0], 64).await[0].reason, MissReason::Closed));
    assert_eq!(tier.remove(&keys([0])).await.unwrap_err().kind(), dynamo_core::ErrorKind::Closed);
}

#[tokio::test]
async fn the_memory_of_a_block_is_what_the_store_gets() {
    struct Block {
        _held: Arc<()>,
        bytes: Vec<u8>,
    }
    impl AsRef<[u8]> for Block {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let shelf = Shelf::memory();
    let held = Arc::new(());
    let seen = Arc::clone(&held);
    let faulty = Faulty::new(&shelf.store, move |_, _| {
        assert_eq!(Arc::strong_count(&seen), 3, "it is held while it is sent");
        Fault::None
    });
    let tier = ObjectTier::new(faulty, config(64)).unwrap();
    let block = Block { _held: Arc::clone(&held), bytes: truth(0, 64) };
    tier.store(vec![(key(0), block)]).await.remove(0).unwrap();
    drop(tier);
    assert_eq!(Arc::strong_count(&held), 1, "and given up then");
}

#[test]
fn numbers_and_prefixes_that_make_no_tier_are_refused() {
    let shelf = Shelf::memory();
    let new = |config| ObjectTier::new(Arc::clone(&shelf.store), config).unwrap_err().kind();
    for config in [
        config(0),
        config(1).with_in_flight(0),
        config(1).with_in_flight(usize::MAX),
        config(1).with_attempts(0, Duration::ZERO),
        config(1).with_known_max(0, OnFull::Forget),
        ObjectConfig::new("a//b", 1, 1),
    ] {
        assert_eq!(new(config), dynamo_core::ErrorKind::InvalidArgument);
    }
}
