//! What is there is found by few requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_kv::tier::object::ObjectTier;
use dynamo_kv::tier::object::object_store::ObjectStoreExt as _;
use dynamo_kv::tier::{Stored, Tier as _};

use crate::faulty::{Act, Fault, Faulty};
use crate::support::{Known, Shelf, config, keys, load, object, store};

/// A tier that has not asked yet, of a store that counts what it is asked whether it is there.
async fn counting(blocks: u32) -> (Shelf, ObjectTier, Arc<AtomicUsize>) {
    let shelf = Shelf::memory();
    let stored = store(&shelf.tier(config(8)), 0..blocks, 8).await;
    assert!(stored.iter().all(Result::is_ok));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let faulty = Faulty::new(&shelf.store, move |act, _| {
        if *act == Act::Head {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Fault::None
    });
    let tier = ObjectTier::new(faulty, config(8)).unwrap();
    (shelf, tier, asked)
}

#[tokio::test]
async fn a_prefix_of_any_length_is_found_by_few_questions_and_known_from_then_on() {
    for (there, most) in [(0, 1), (1, 26), (300, 26), (511, 26), (512, 2)] {
        let (_shelf, tier, asked) = counting(there).await;
        let chain = keys(0..512);
        assert_eq!(tier.match_prefix(&chain).await, there as usize);
        let first = asked.swap(0, Ordering::SeqCst);
        assert!(first <= most + 1, "{first} questions for {there}");
        assert_eq!(tier.match_prefix(&chain).await, there as usize);
        assert_eq!(asked.load(Ordering::SeqCst), 0, "known");
    }
}

#[tokio::test]
async fn what_a_listing_has_seen_costs_no_question() {
    let (_shelf, tier, asked) = counting(100).await;
    assert_eq!(tier.refresh().await.unwrap(), 100);
    assert_eq!(tier.match_prefix(&keys(0..100)).await, 100);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_wrong_guess_is_a_miss_when_it_is_loaded_and_made_once() {
    let (shelf, tier, _) = counting(100).await;
    shelf.store.delete(&object(50)).await.unwrap();
    let (chain, known) = (keys(0..100), Known::of(&tier));
    assert_eq!(tier.match_prefix(&chain).await, 100, "the last one is there");
    assert_eq!(known.numbers(), [0, 99], "the others were not asked for");
    assert_eq!(tier.stats().blocks, 2);
    assert_eq!(load(&tier, 0..100, 8).await.len(), 1);
    assert_eq!(known.numbers(), (0..50).chain(51..100).collect::<Vec<_>>());
    assert_eq!(tier.match_prefix(&chain).await, 50);
}

#[tokio::test]
async fn a_block_that_is_guessed_to_be_there_is_stored_if_it_is_not() {
    let (shelf, tier, _) = counting(100).await;
    shelf.store.delete(&object(50)).await.unwrap();
    let known = Known::of(&tier);
    assert_eq!(tier.match_prefix(&keys(0..100)).await, 100);
    let stored = store(&tier, [49, 50, 99], 8).await;
    assert!(
        matches!(stored[..], [Ok(Stored::Present), Ok(Stored::Written), Ok(Stored::Present)]),
        "{stored:?}"
    );
    assert_eq!(known.numbers(), [0, 49, 50, 99]);
    assert!(load(&tier, 0..100, 8).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_not_there_is_asked_for_again_after_a_while() {
    let (shelf, tier, asked) = counting(0).await;
    assert_eq!(tier.match_prefix(&keys([0])).await, 0);
    store(&shelf.tier(config(8)), [0], 8).await;
    assert_eq!(tier.match_prefix(&keys([0])).await, 0);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(tier.match_prefix(&keys([0])).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_has_nothing_and_holds_nobody_up() {
    let shelf = Shelf::memory();
    let faulty = Faulty::new(&shelf.store, |_, _| Fault::Hang);
    let tier = ObjectTier::new(faulty, config(8)).unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(tier.match_prefix(&keys(0..512)).await, 0);
    assert_eq!(begun.elapsed(), Duration::from_millis(250), "one round");
}
