//! What is removed, and what is told of it.

use dynamo_core::ErrorKind;

use super::stage::{POLLS, Stage, keys, step};
use crate::identity::BlockKey;

pub(super) async fn what_is_there_is_told_and_listed_parents_first(stage: Stage) {
    let keys = keys(1, 16);
    // The last ones first.
    stage.put(&keys[8..]).await;
    stage.put(&keys[..8]).await;
    stage.says(&keys, &keys).await;
    let mut listed = stage.tier.watch(Box::new(|_| {}));
    for (number, key) in listed.iter().enumerate() {
        let behind = &listed[number..];
        let is_parent = |other: &BlockKey| Some(other.identity) == key.parent;
        assert!(!behind.iter().any(is_parent), "{key:?} before its parent");
    }
    listed.sort_unstable_by_key(|key| key.position);
    assert_eq!(listed, keys);
    stage.shutdown().await;
}

pub(super) async fn what_is_removed_is_gone_and_the_rest_is_not(stage: Stage) {
    let (there, other) = (keys(1, 16), keys(2, 4));
    stage.put(&there).await;
    // Nothing follows them: a tier may refuse to remove what is followed.
    let removed = [&there[12..], &other[..]].concat();
    assert_eq!(stage.tier.remove(&removed).await.expect("removes"), 4);
    assert_eq!(stage.tier.remove(&removed).await.expect("removes"), 0);
    stage.lacks(&removed).await;
    stage.has(&there[..12]).await;
    stage.says(&there, &there[..12]).await;
    assert_eq!(stage.tier.match_prefix(&there).await, 12);
    stage.put(&there[12..]).await;
    stage.has(&there).await;
    stage.shutdown().await;
}

pub(super) async fn what_is_cleared_is_gone_and_can_be_stored_again(stage: Stage) {
    let keys = keys(1, 16);
    for _ in 0..2 {
        stage.put(&keys).await;
        stage.tier.clear().await.expect("clears");
        stage.says(&keys, &[]).await;
        assert_eq!(stage.tier.match_prefix(&keys).await, 0);
        stage.lacks(&keys).await;
    }
    stage.tier.clear().await.expect("clears nothing");
    stage.shutdown().await;
}

pub(super) async fn what_is_stored_while_all_is_cleared_is_there_if_it_is_said_to_be(stage: Stage) {
    for polls in 0..POLLS {
        let keys = keys(polls, 16);
        let mut storing = Box::pin(stage.tier.store(stage.outgoing(&keys)));
        let ended = step(&mut storing, polls as usize).await;
        let is_before = ended.is_some();
        let (stored, cleared) = futures::join!(
            async {
                match ended {
                    Some(stored) => stored,
                    None => storing.await,
                }
            },
            stage.tier.clear()
        );
        cleared.expect("clears");
        if is_before {
            stage.says(&keys, &[]).await;
        }
        stage.has_what_it_says(&keys).await;
        let failed = keys.iter().zip(stored).filter(|(_, stored)| stored.is_err());
        let failed: Vec<_> = failed.map(|(key, _)| *key).collect();
        stage.lacks(&failed).await;
        stage.tier.clear().await.expect("clears");
        stage.lacks(&keys).await;
    }
    stage.shutdown().await;
}

pub(super) async fn what_is_loaded_while_all_is_cleared_is_there_if_it_is_said_to_be(stage: Stage) {
    let keys = keys(1, 16);
    for polls in 0..POLLS {
        stage.put(&keys).await;
        let mut loading = Box::pin(stage.load(&keys));
        let ended = step(&mut loading, polls as usize).await;
        let rest = async {
            if ended.is_none() {
                loading.await;
            }
        };
        let ((), cleared) = futures::join!(rest, stage.tier.clear());
        cleared.expect("clears");
        stage.has_what_it_says(&keys).await;
        // A tier may keep what was in use.
        stage.tier.clear().await.expect("clears");
        stage.lacks(&keys).await;
    }
    stage.shutdown().await;
}

pub(super) async fn what_is_stored_while_it_is_removed_is_there_if_it_is_said_to_be(stage: Stage) {
    for polls in 0..POLLS {
        let keys = keys(polls, 8);
        let mut storing = Box::pin(stage.tier.store(stage.outgoing(&keys)));
        let ended = step(&mut storing, polls as usize).await;
        let rest = async {
            if ended.is_none() {
                storing.await;
            }
        };
        let ((), removed) = futures::join!(rest, stage.tier.remove(&keys));
        // It may be refused: they are in use.
        assert!(removed.unwrap_or(0) <= keys.len());
        stage.has_what_it_says(&keys).await;
    }
    stage.shutdown().await;
}

pub(super) async fn nothing_is_removed_after_a_shutdown(stage: Stage) {
    let keys = keys(1, 4);
    stage.put(&keys).await;
    stage.shutdown().await;
    let removed = stage.tier.remove(&keys).await.expect_err("it has shut down");
    let cleared = stage.tier.clear().await.expect_err("it has shut down");
    assert_eq!([removed.kind(), cleared.kind()], [ErrorKind::Closed; 2]);
}
