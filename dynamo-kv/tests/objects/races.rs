//! What is known stays true whatever happens at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_kv::tier::object::object_store::ObjectStoreExt as _;
use dynamo_kv::tier::object::{ObjectConfig, ObjectTier, OnFull};
use dynamo_kv::tier::{Damage, MissReason, StoreError, Stored, Tier as _};
use futures::FutureExt as _;

use crate::faulty::{Act, Fault, Faulty, vandalise};
use crate::support::{Known, PATIENCE, Shelf, config, keys, load, object, store};

/// A tier whose next request of a kind meets a fault, once it is told which.
struct Trap {
    shelf: Shelf,
    tier: ObjectTier,
    known: Known,
    next: Arc<Mutex<Option<(Act, u32, Fault)>>>,
}

impl Trap {
    fn new(config: ObjectConfig) -> Self {
        let shelf = Shelf::memory();
        let next = Arc::new(Mutex::new(None::<(Act, u32, Fault)>));
        let set = Arc::clone(&next);
        let faulty = Faulty::new(&shelf.store, move |act, path| {
            let mut set = set.lock().unwrap();
            let is_it = |(wanted, number, _): &mut (Act, u32, Fault)| {
                wanted == act && (*act == Act::Delete || object(*number) == *path)
            };
            set.take_if(is_it).map_or(Fault::None, |(.., fault)| fault)
        });
        let tier = ObjectTier::new(faulty, config).unwrap();
        let known = Known::of(&tier);
        Self { shelf, tier, known, next }
    }

    /// Has the next request of this kind for this block (deletions: for any) meet a fault.
    fn set(&self, act: Act, number: u32, fault: Fault) {
        *self.next.lock().unwrap() = Some((act, number, fault));
    }

    fn is_sprung(&self) -> bool {
        self.next.lock().unwrap().is_none()
    }

    /// Tells whether all that is said to be there is, and what is not there is not said to be.
    async fn holds(&self, numbers: &[u32]) {
        let mut there = Vec::new();
        for number in 0..8 {
            if self.shelf.store.head(&object(number)).await.is_ok() {
                there.push(number);
            }
        }
        assert_eq!(there, numbers, "in the store");
        assert_eq!(self.known.numbers(), numbers, "said");
        assert_eq!(self.tier.stats().blocks, numbers.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_was_stored_and_cleared_is_not_said_to_be_there_once_its_batch_ends() {
    let trap = Trap::new(config(64));
    trap.set(Act::Put, 1, Fault::Hang);
    let mut storing = Box::pin(store(&trap.tier, [0, 1], 64));
    assert!((&mut storing).now_or_never().is_none() && trap.is_sprung());
    trap.holds(&[0]).await;
    trap.tier.clear().await.unwrap();
    assert!(matches!(storing.await[..], [Ok(Stored::Written), Err(StoreError::Removed)]));
    trap.holds(&[]).await;
    assert!(matches!(store(&trap.tier, [0], 64).await[..], [Ok(Stored::Written)]));
    trap.holds(&[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_loaded_while_all_are_deleted_is_not_said_to_be_there() {
    // It is read while the clear is at it, and answered before.
    let trap = Trap::new(config(64));
    store(&trap.tier, [0], 64).await.remove(0).unwrap();
    trap.set(Act::Delete, 0, Fault::Hang);
    let mut clearing = Box::pin(trap.tier.clear());
    assert!((&mut clearing).now_or_never().is_none() && trap.is_sprung());
    assert!(load(&trap.tier, [0], 64).await.is_empty());
    clearing.await.unwrap();
    trap.holds(&[]).await;

    // It was read before, and is answered behind.
    store(&trap.tier, [0], 64).await.remove(0).unwrap();
    trap.set(Act::Get, 0, Fault::Late);
    let mut loading = Box::pin(load(&trap.tier, [0], 64));
    assert!((&mut loading).now_or_never().is_none() && trap.is_sprung());
    trap.tier.clear().await.unwrap();
    assert!(loading.await.is_empty(), "it was there");
    trap.holds(&[]).await;

    // Nobody waits for the clear any more.
    store(&trap.tier, [0], 64).await.remove(0).unwrap();
    trap.set(Act::Delete, 0, Fault::Hang);
    let mut clearing = Box::pin(trap.tier.clear());
    assert!((&mut clearing).now_or_never().is_none());
    assert!(load(&trap.tier, [0], 64).await.is_empty());
    drop(clearing);
    assert_eq!(trap.known.numbers(), [0; 0], "who knows");
    assert!(load(&trap.tier, [0], 64).await.is_empty());
    trap.holds(&[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_removed_while_it_is_stored_or_loaded_is_not_there() {
    let trap = Trap::new(config(64));
    trap.set(Act::Put, 0, Fault::Late);
    let mut storing = Box::pin(store(&trap.tier, [0, 1], 64));
    assert!((&mut storing).now_or_never().is_none() && trap.is_sprung());
    assert_eq!(trap.tier.remove(&keys([0])).await.unwrap(), 1);
    assert!(matches!(storing.await[..], [Err(StoreError::Removed), Ok(Stored::Written)]));
    trap.holds(&[1]).await;

    trap.set(Act::Get, 1, Fault::Late);
    let mut loading = Box::pin(load(&trap.tier, [1], 64));
    assert!((&mut loading).now_or_never().is_none() && trap.is_sprung());
    assert_eq!(trap.tier.remove(&keys([1])).await.unwrap(), 1);
    assert!(loading.await.is_empty(), "it was there");
    trap.holds(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_loaded_while_it_makes_room_is_not_said_to_be_there() {
    let trap = Trap::new(config(64).with_known_max(1, OnFull::Delete));
    store(&trap.tier, [0], 64).await.remove(0).unwrap();
    trap.set(Act::Get, 0, Fault::Late);
    let mut loading = Box::pin(load(&trap.tier, [0], 64));
    assert!((&mut loading).now_or_never().is_none() && trap.is_sprung());
    store(&trap.tier, [1], 64).await.remove(0).unwrap();
    assert!(loading.await.is_empty(), "it was there");
    trap.holds(&[1]).await;
}

#[tokio::test(start_paused = true)]
async fn what_makes_room_has_a_place_and_is_waited_for() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let shelf = Shelf::memory();
    let faulty = Faulty::new(&shelf.store, move |act, _| {
        count.fetch_add(1, Ordering::SeqCst);
        if *act == Act::Delete { Fault::Hang } else { Fault::None }
    });
    let config = config(64).with_in_flight(2).with_known_max(1, OnFull::Delete);
    let tier = ObjectTier::new(faulty, config).unwrap();
    store(&tier, [0], 64).await.remove(0).unwrap();
    let mut storing = Box::pin(store(&tier, [1, 2, 3, 4], 64));
    assert!((&mut storing).now_or_never().is_none());
    assert_eq!(asked.swap(0, Ordering::SeqCst), 5 + 2, "two of four deletions have begun");
    let mut loading = Box::pin(load(&tier, [4], 64));
    assert!((&mut loading).now_or_never().is_none());
    assert_eq!(asked.load(Ordering::SeqCst), 0, "all places are taken");
    assert!(tier.shutdown(Duration::ZERO).await.is_err(), "two deletions are under way");
    let closed = load(&tier, [4], 64).await.remove(0);
    assert!(matches!(closed.reason, MissReason::Closed));
    drop((storing, loading));
    tier.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_load_found_damaged_and_could_not_delete_is_written_over_by_the_next_store() {
    let shelf = Shelf::memory();
    let faulty =
        Faulty::new(
            &shelf.store,
            |act, _| {
                if *act == Act::Delete { Fault::Fail } else { Fault::None }
            },
        );
    let tier = ObjectTier::new(faulty, config(64)).unwrap();
    store(&tier, [0], 64).await.remove(0).unwrap();
    vandalise(&*shelf.store, &object(0), Fault::Flip(100 * 8)).await;
    // Nobody has looked: it is of the right size.
    let other = shelf.tier(config(64));
    assert!(matches!(store(&other, [0], 64).await[..], [Ok(Stored::Present)]));
    let miss = load(&tier, [0], 64).await.remove(0);
    assert!(matches!(miss.reason, MissReason::Damaged(Damage::Digest)));
    assert!(shelf.store.head(&object(0)).await.is_ok(), "it could not be deleted");
    assert_eq!(tier.match_prefix(&keys([0])).await, 0);
    assert!(matches!(store(&tier, [0], 64).await[..], [Ok(Stored::Written)]));
    assert!(load(&tier, [0], 64).await.is_empty());
    assert!(matches!(store(&tier, [0], 64).await[..], [Ok(Stored::Present)]));
}
