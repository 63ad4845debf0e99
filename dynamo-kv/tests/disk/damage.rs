use std::fs::{self, OpenOptions};
use std::path::Path;

use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::tier::{Damage, MissReason, StoreError};
use dynamo_transfer::HostBuffer;
use dynamo_transfer::file::{FileAct, FileFault, FileFaults};

use crate::support::{
    Scratch, Truth, faulty, key, read_at, record_at, shut, store, stride, write_at,
};

const BLOCK: usize = 8192;
const SLOTS: u64 = 4;

/// Makes a directory whose slots hold the blocks of their numbers.
async fn made(scratch: &Scratch, truth: &Truth) -> DiskConfig {
    let config = scratch.config(u32::try_from(SLOTS).unwrap(), BLOCK);
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert!(store(&tier, truth, 0..SLOTS).await.iter().all(Result::is_ok));
    shut(tier).await;
    config
}

/// Opens the directory; returns which of the blocks are hits, and how many are damaged.
async fn hits(config: &DiskConfig, truth: &Truth, count: u64) -> (Vec<u64>, u64) {
    let tier = DiskTier::open(config.clone()).await.unwrap();
    let mut found = Vec::new();
    for number in 0..count {
        if truth.load(&tier, &[key(number).identity]).await.is_empty() {
            found.push(number);
        }
    }
    let stats = tier.stats();
    assert_eq!((stats.blocks, stats.held), (found.len(), 0));
    shut(tier).await;
    (found, stats.damaged_total)
}

fn cut(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[tokio::test]
async fn a_block_torn_at_any_sector_is_a_miss_once_and_then_absent_and_can_be_stored_again() {
    let scratch = Scratch::new();
    let truth = Truth::new(SLOTS, BLOCK);
    let config = made(&scratch, &truth).await;
    let (_, other) = truth.block(1);
    for torn in (512..BLOCK).step_by(512) {
        // The slot that the block is in differs each time: all are overwritten but for its own.
        let tier = DiskTier::open(config.clone()).await.unwrap();
        for slot in 0..SLOTS {
            write_at(&scratch.blocks(), slot * stride(BLOCK), &other[..torn]);
        }
        let identity = key(0).identity;
        let miss = truth.load(&tier, &[identity]).await.remove(0);
        assert!(matches!(miss.reason, MissReason::Damaged(Damage::Digest)), "{torn}: {miss:?}");
        let miss = truth.load(&tier, &[identity]).await.remove(0);
        assert!(matches!(miss.reason, MissReason::Absent));
        shut(tier).await;

        let tier = DiskTier::open(config.clone()).await.unwrap();
        assert!(!tier.contains(&identity), "its record is gone");
        tier.clear().await.unwrap();
        store(&tier, &truth, 0..SLOTS).await;
        shut(tier).await;
        assert_eq!(hits(&config, &truth, SLOTS).await, (vec![0, 1, 2, 3], 0));
    }
}

#[tokio::test]
async fn records_that_changed_places_are_none_and_blocks_that_did_are_damaged() {
    let scratch = Scratch::new();
    let truth = Truth::new(SLOTS, BLOCK);
    let config = made(&scratch, &truth).await;
    let records = [0, 1].map(|slot| read_at(&scratch.manifest(), record_at(slot), 256));
    write_at(&scratch.manifest(), record_at(0), &records[1]);
    write_at(&scratch.manifest(), record_at(1), &records[0]);
    let blocks = [2, 3].map(|slot| read_at(&scratch.blocks(), slot * stride(BLOCK), BLOCK));
    write_at(&scratch.blocks(), 2 * stride(BLOCK), &blocks[1]);
    write_at(&scratch.blocks(), 3 * stride(BLOCK), &blocks[0]);
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert_eq!((tier.recovery().blocks, tier.recovery().damaged), (2, 2));
    shut(tier).await;
    assert_eq!(hits(&config, &truth, SLOTS).await, (vec![], 2));
}

#[tokio::test]
async fn old_records_of_new_blocks_and_new_records_of_old_blocks_are_misses() {
    for is_manifest_old in [true, false] {
        let scratch = Scratch::new();
        let truth = Truth::new(8, BLOCK);
        let config = made(&scratch, &truth).await;
        let file = if is_manifest_old { scratch.manifest() } else { scratch.blocks() };
        let old = fs::read(&file).unwrap();
        let tier = DiskTier::open(config.clone()).await.unwrap();
        // The blocks 3 and 2 make room for 4 and 5.
        store(&tier, &truth, [4, 5]).await;
        shut(tier).await;
        fs::write(&file, old).unwrap();
        assert_eq!(hits(&config, &truth, 8).await, (vec![0, 1], 2));
    }
}

#[tokio::test]
async fn records_and_blocks_of_another_directory_are_stale() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let truth = Truth::new(SLOTS, BLOCK);
    let config = made(&scratch, &truth).await;
    made(&other, &truth).await;
    let len = 256 * usize::try_from(SLOTS).unwrap();
    let records = read_at(&other.manifest(), record_at(0), len);
    write_at(&scratch.manifest(), record_at(0), &records);
    let tier = DiskTier::open(config).await.unwrap();
    assert_eq!((tier.recovery().stale, tier.recovery().blocks), (4, 0));
    shut(tier).await;
}

#[tokio::test]
async fn truncated_and_deleted_files_are_misses_and_the_tier_goes_on() {
    let scratch = Scratch::new();
    let truth = Truth::new(SLOTS, BLOCK);
    let config = made(&scratch, &truth).await;
    // The blocks are cut while they are used, in the middle of one.
    let tier = DiskTier::open(config.clone()).await.unwrap();
    cut(&scratch.blocks(), 2 * stride(BLOCK) + 512);
    for (number, is_hit) in [(0, true), (1, true), (2, false), (3, false)] {
        let miss = truth.load(&tier, &[key(number).identity]).await.pop();
        let reason = miss.map(|miss| miss.reason);
        match is_hit {
            true => assert!(reason.is_none(), "{reason:?}"),
            false => assert!(
                matches!(reason, Some(MissReason::Damaged(Damage::Truncated))),
                "{reason:?}"
            ),
        }
    }
    shut(tier).await;
    // Then they are short, and made anew.
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert!(tier.recovery().is_new);
    store(&tier, &truth, 0..SLOTS).await;
    shut(tier).await;

    cut(&scratch.manifest(), record_at(2) + 100);
    assert_eq!(hits(&config, &truth, SLOTS).await, (vec![0, 1], 0));
    fs::remove_file(scratch.blocks()).unwrap();
    assert_eq!(hits(&config, &truth, SLOTS).await, (vec![], 0));

    // The files go while they are used: what is stored is lost, and that is said.
    let tier = DiskTier::open(config.clone()).await.unwrap();
    fs::remove_file(scratch.manifest()).unwrap();
    assert!(matches!(store(&tier, &truth, [0]).await[..], [Err(StoreError::Io(_))]));
    fs::remove_file(scratch.blocks()).unwrap();
    assert!(matches!(store(&tier, &truth, [0]).await[..], [Err(StoreError::Io(_))]));
    assert_eq!((tier.stats().free, tier.stats().blocks), (4, 0));
    drop(tier);
    assert_eq!(hits(&config, &truth, SLOTS).await, (vec![], 0));
}

#[tokio::test]
async fn a_device_that_fails_makes_typed_misses_and_leaves_slots_free_and_others_alone() {
    let scratch = Scratch::new();
    let truth = Truth::new(8, BLOCK);
    let config = made(&scratch, &truth).await;
    let bad = stride(BLOCK);
    // Alone or with its neighbours; records are not as long as what is before the block.
    let faults = FileFaults::new(move |call| {
        let touches = |at| (call.offset..call.offset + call.len as u64).contains(&at);
        match call.act {
            FileAct::Read if touches(bad) && call.len >= BLOCK => FileFault::Fail(libc::EIO),
            FileAct::Write if touches(bad) && call.len >= BLOCK => FileFault::Fail(libc::ENOSPC),
            FileAct::Write if touches(record_at(3)) && call.len < BLOCK => {
                FileFault::Fail(libc::EIO)
            }
            _ => FileFault::Pass,
        }
    });
    let tier = DiskTier::open(config.clone().with_files(faulty(&faults))).await.unwrap();
    let all: Vec<_> = (0..SLOTS).map(|number| key(number).identity).collect();
    let misses = truth.load(&tier, &all).await;
    assert!(matches!(&misses[..], [miss] if matches!(miss.reason, MissReason::Io(_))));
    assert_eq!(tier.stats().free, 1, "what cannot be read is removed");
    // Into the slot that is free, and in place of the oldest, whose record cannot be written.
    truth.load(&tier, &[all[0], all[2]]).await;
    let stored = store(&tier, &truth, [4, 5]).await;
    assert!(matches!(stored[0], Err(StoreError::StorageFull(_))), "{stored:?}");
    assert!(matches!(stored[1], Err(StoreError::Io(_))), "{stored:?}");
    let stats = tier.stats();
    assert_eq!((stats.blocks, stats.free, stats.failed_total), (2, 2, 2));
    assert!(truth.load(&tier, &[all[0], all[2]]).await.is_empty());
    shut(tier).await;
    // The record of 3 stayed, but not its block.
    assert_eq!(hits(&config, &truth, 8).await, (vec![0, 2], 1));
}

#[tokio::test]
async fn calls_that_move_less_than_they_should_lose_no_byte() {
    let scratch = Scratch::new();
    let truth = Truth::new(SLOTS, BLOCK);
    let mut lengths = [1, 4096, 511, 512, 100, 8192].into_iter().cycle();
    let faults = FileFaults::new(move |_| FileFault::Cut(lengths.next().unwrap()));
    let config = scratch.config(4, BLOCK).with_files(faulty(&faults));
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert!(store(&tier, &truth, 0..SLOTS).await.iter().all(Result::is_ok));
    shut(tier).await;
    assert_eq!(hits(&config, &truth, SLOTS).await, (vec![0, 1, 2, 3], 0));
}

/// Garbage in place of every record costs each its slot's turn, and nothing else.
#[tokio::test]
async fn a_manifest_full_of_garbage_is_an_empty_tier() {
    let scratch = Scratch::new();
    let truth = Truth::new(SLOTS, BLOCK);
    let config = made(&scratch, &truth).await;
    let mut garbage = HostBuffer::new(256 * 4);
    blake3::Hasher::new().finalize_xof().fill(&mut garbage);
    write_at(&scratch.manifest(), record_at(0), &garbage);
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert_eq!((tier.recovery().damaged, tier.recovery().blocks), (4, 0));
    store(&tier, &truth, 0..SLOTS).await;
    shut(tier).await;
    assert_eq!(hits(&config, &truth, SLOTS).await, (vec![0, 1, 2, 3], 0));
}
