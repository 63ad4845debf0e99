//! What is stored, loaded and given up.

use dynamo_core::protocol::BlockSize;

use super::layout;
use super::stage::{POLLS, Stage, keys, memory, outgoing, step, targets};
use crate::layout::{BlockLayout, DType};
use crate::tier::{MissReason, StoreError, Stored};

pub(super) async fn what_was_stored_is_loaded_byte_for_byte(stage: Stage) {
    let (there, other) = (keys(1, 16), keys(2, 16));
    stage.lacks(&there).await;
    stage.put(&there).await;
    assert_eq!(stage.tier.match_prefix(&there).await, 16);
    assert_eq!(stage.tier.match_prefix(&other).await, 0);
    assert_eq!(stage.tier.match_prefix(&[]).await, 0);
    // Each outcome is that of its block.
    let wanted: Vec<_> = there.iter().rev().zip(&other).flat_map(|(a, b)| [*a, *b]).collect();
    let missed = stage.load(&wanted).await;
    for (reason, number) in missed.iter().zip(0..) {
        let is_right = match reason {
            None => number % 2 == 0,
            Some(reason) => number % 2 == 1 && matches!(reason, MissReason::Absent),
        };
        assert!(is_right, "{number}: {reason:?}");
    }
    let (stats, bytes) = (stage.tier.stats(), 16 * layout().block_bytes() as u64);
    assert_eq!((stats.hits_total, stats.misses_total), (16, 32), "{stats:?}");
    assert_eq!((stats.stored_total, stats.failed_total), (16, 0), "{stats:?}");
    assert_eq!((stats.read_bytes_total, stats.written_bytes_total), (bytes, bytes), "{stats:?}");
    assert!(stage.tier.estimate(64) >= stage.tier.estimate(1));
    stage.shutdown().await;
}

pub(super) async fn what_is_there_is_not_stored_again(stage: Stage) {
    let keys = keys(1, 16);
    stage.put(&keys[..8]).await;
    let stored = stage.store(&keys).await;
    let written = |stored: &Result<_, _>| matches!(stored, Ok(Stored::Written));
    let present = |stored: &Result<_, _>| matches!(stored, Ok(Stored::Present));
    assert!(stored[..8].iter().all(present) && stored[8..].iter().all(written), "{stored:?}");
    assert_eq!(stage.tier.stats().stored_total, 16);
    stage.has(&keys).await;
    stage.shutdown().await;
}

pub(super) async fn of_two_who_store_a_block_at_once_both_have_it_stored(stage: Stage) {
    let keys = keys(1, 16);
    let (one, other) = futures::join!(stage.store(&keys), stage.store(&keys));
    for (one, other) in one.into_iter().zip(other) {
        let outcomes = [one, other].map(|stored| stored.expect("it is stored"));
        assert!(outcomes.contains(&Stored::Written), "{outcomes:?}");
    }
    stage.has(&keys).await;
    stage.shutdown().await;
}

pub(super) async fn memory_of_another_size_is_refused(stage: Stage) {
    let keys = keys(1, 4);
    let size = BlockSize::new(8).expect("more than none");
    let other = memory(BlockLayout::new(2, 1, 16, size, DType::F32).expect("a layout"));
    let (right, wrong) = (layout().block_bytes(), other.layout().block_bytes());
    for stored in stage.tier.store(outgoing(&other, &keys)).await {
        let is_told = matches!(stored,
            Err(StoreError::Length { expected, found }) if (expected, found) == (right, wrong));
        assert!(is_told, "{stored:?}");
    }
    stage.lacks(&keys).await;
    stage.put(&keys).await;
    for loaded in stage.tier.load(targets(&other, &keys)).await {
        let miss = loaded.expect_err("a miss");
        let is_told = matches!(miss.reason,
            MissReason::Length { expected, found } if (expected, found) == (right, wrong));
        assert!(is_told && miss.target.is_some(), "{miss:?}");
    }
    stage.has(&keys).await;
    stage.shutdown().await;
}

pub(super) async fn what_is_given_up_is_whole_or_not_there_and_holds_no_memory(stage: Stage) {
    let there = keys(0, 8);
    stage.put(&there).await;
    for polls in 0..POLLS {
        let keys = keys(1 + polls, 8);
        let mut storing = Box::pin(stage.tier.store(stage.outgoing(&keys)));
        drop(step(&mut storing, polls as usize).await);
        drop(storing);
        let mut loading = Box::pin(stage.tier.load(stage.targets(&there)));
        drop(step(&mut loading, polls as usize).await);
        drop(loading);
        stage.rests().await;
        // What is there is whole.
        stage.load(&keys).await;
        let stored = stage.store(&keys).await;
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
        stage.has(&keys).await;
    }
    stage.has(&there).await;
    stage.shutdown().await;
    stage.rests().await;
}

pub(super) async fn after_a_shutdown_all_is_refused_at_once(stage: Stage) {
    let keys = keys(1, 4);
    stage.put(&keys).await;
    stage.shutdown().await;
    stage.shutdown().await;
    let missed = stage.load(&keys).await;
    let is_closed = |reason: &Option<_>| matches!(reason, Some(MissReason::Closed));
    assert!(missed.iter().all(is_closed), "{missed:?}");
    let stored = stage.store(&super::stage::keys(2, 4)).await;
    assert!(stored.iter().all(|stored| matches!(stored, Err(StoreError::Closed))), "{stored:?}");
    stage.rests().await;
}
