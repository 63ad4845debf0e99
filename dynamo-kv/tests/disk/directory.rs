use std::fs;
use std::future::poll_fn;
use std::io::Write as _;
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;

use dynamo_kv::tier::disk::{DiskConfig, DiskError, DiskTier, Foreign, OnForeign};
use dynamo_transfer::file::{FileAct, FileFault, FileFaults};
use futures::poll;
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;

use crate::support::{
    FINGERPRINT, Scratch, Truth, faulty, key, open, read_at, record_at, shut, store, write_at,
};

async fn refused(config: DiskConfig) -> DiskError {
    DiskTier::open(config).await.unwrap_err()
}

/// A directory of four blocks, all of them there.
async fn filled() -> (Scratch, DiskConfig) {
    let scratch = Scratch::new();
    let truth = Truth::new(4, 4096);
    let config = scratch.config(4, 4096);
    let tier = DiskTier::open(config.clone()).await.unwrap();
    store(&tier, &truth, 0..4).await;
    shut(tier).await;
    (scratch, config)
}

#[tokio::test]
async fn a_directory_has_one_tier_at_a_time() {
    let scratch = Scratch::new();
    let first = DiskTier::open(scratch.config(4, 4096)).await.unwrap();
    let error = refused(scratch.config(4, 4096)).await;
    assert!(matches!(error, DiskError::Locked { ref dir } if dir == scratch.path()), "{error}");
    shut(first).await;
    let dropped = DiskTier::open(scratch.config(4, 4096)).await.unwrap();
    drop(dropped);
    shut(DiskTier::open(scratch.config(4, 4096)).await.unwrap()).await;
}

#[tokio::test]
async fn a_directory_of_something_else_is_refused_and_made_anew_only_if_the_config_says_so() {
    let (scratch, config) = filled().await;

    let of = |blocks, block_bytes, fingerprint| {
        DiskConfig::new(scratch.path(), blocks, block_bytes, fingerprint)
    };
    let is_foreign = |error: DiskError, expected: Foreign| {
        let DiskError::Foreign { foreign, .. } = error else { unreachable!("{error}") };
        assert_eq!(foreign, expected);
    };
    is_foreign(refused(of(4, 4096, 1)).await, Foreign::Fingerprint(FINGERPRINT));
    let geometry = Foreign::Geometry { blocks: 4, block_bytes: 4096 };
    is_foreign(refused(of(5, 4096, FINGERPRINT)).await, geometry);
    is_foreign(refused(of(4, 4095, FINGERPRINT)).await, geometry);
    // Nothing was touched.
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert_eq!(tier.keys().len(), 4);
    shut(tier).await;

    for superblock in [0, 4096] {
        write_at(&scratch.manifest(), superblock + 8, &2u32.to_le_bytes());
    }
    is_foreign(refused(config.clone()).await, Foreign::Version(2));
    fs::write(scratch.manifest(), b"something else").unwrap();
    is_foreign(refused(config.clone()).await, Foreign::Unknown);
    let anew = of(2, 5000, 1).with_on_foreign(OnForeign::Reinitialise);
    let tier = DiskTier::open(anew).await.unwrap();
    assert!(tier.recovery().is_new && tier.keys().is_empty());
    shut(tier).await;
    is_foreign(refused(config).await, Foreign::Fingerprint(1));
}

#[tokio::test]
async fn a_full_filesystem_and_a_bad_config_and_a_bad_place_are_typed() {
    let scratch = Scratch::new();
    let error = refused(scratch.config(1 << 30, 1 << 20)).await;
    assert!(matches!(error, DiskError::StorageFull(_)), "{error:?}");
    let left = fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 1, "the lock only");
    for config in [
        scratch.config(0, 4096),
        scratch.config(u32::MAX, 1),
        scratch.config(1, 0),
        scratch.config(1 << 31, usize::MAX),
        scratch.config(1, 1).with_in_flight(0),
        scratch.config(1, 1).with_in_flight(5000),
    ] {
        assert!(matches!(refused(config).await, DiskError::Config { .. }));
    }
    let file = scratch.path().join("file");
    fs::File::create(&file).unwrap().write_all(b"x").unwrap();
    let error = refused(DiskConfig::new(&file, 1, 1, 1)).await;
    assert!(matches!(error, DiskError::Io { .. }), "{error:?}");
}

#[tokio::test]
async fn a_device_that_fails_while_the_directory_is_opened_is_typed_and_leaves_what_was_there() {
    let scratch = Scratch::new();
    let truth = Truth::new(4, 4096);
    let config = scratch.config(4, 4096);
    // While it is made: the superblock cannot be written.
    let faults = FileFaults::new(|call| match call.act {
        FileAct::Write => FileFault::Fail(libc::ENOSPC),
        _ => FileFault::Pass,
    });
    let error = refused(config.clone().with_files(faulty(&faults))).await;
    assert!(matches!(error, DiskError::StorageFull(_)), "{error:?}");
    let tier = DiskTier::open(config.clone()).await.unwrap();
    assert!(tier.recovery().is_new);
    store(&tier, &truth, 0..4).await;
    shut(tier).await;
    // While it is read: nothing says whose it is.
    let faults = FileFaults::new(|call| match call.offset < record_at(0) {
        true => FileFault::Fail(libc::EIO),
        false => FileFault::Pass,
    });
    let error = refused(config.clone().with_files(faulty(&faults))).await;
    assert!(matches!(error, DiskError::File(_)), "{error:?}");
    let tier = DiskTier::open(config).await.unwrap();
    assert_eq!(tier.keys(), [0, 1, 2, 3].map(key));
    shut(tier).await;
}

/// Fails to read one page of the manifest, and to write it.
fn bad_page(page: u64) -> FileFaults {
    FileFaults::new(move |call| {
        let is_hit = call.offset <= page && page < call.offset + call.len as u64;
        // No block is as small as what is moved of a manifest.
        match is_hit && (call.act == FileAct::Read || call.len < 4096) {
            true => FileFault::Fail(libc::EIO),
            false => FileFault::Pass,
        }
    })
}

#[tokio::test]
async fn one_superblock_is_enough_and_makes_the_other_whole_again() {
    let (scratch, config) = filled().await;
    let is_whole = |tier: &DiskTier| {
        assert_eq!(tier.keys(), [0, 1, 2, 3].map(key));
        let superblock = |at| read_at(&scratch.manifest(), at, 512);
        assert_eq!(superblock(0), superblock(4096));
    };
    // A flipped bit, of the checksum or of the version; zeros; each of the one, then of the other.
    for (at, byte) in [(0, 500), (4096, 500), (0, 9), (4096, 9)] {
        let flipped = read_at(&scratch.manifest(), at + byte, 1)[0] ^ 4;
        write_at(&scratch.manifest(), at + byte, &[flipped]);
        let tier = DiskTier::open(config.clone()).await.unwrap();
        is_whole(&tier);
        shut(tier).await;
    }
    for page in [0, 4096] {
        write_at(&scratch.manifest(), page, &[0; 512]);
        let tier = DiskTier::open(config.clone()).await.unwrap();
        is_whole(&tier);
        shut(tier).await;
        // The device fails to read it, and to write it anew.
        let faults = bad_page(page);
        let tier = DiskTier::open(config.clone().with_files(faulty(&faults))).await.unwrap();
        is_whole(&tier);
        shut(tier).await;
    }
    // A clear reaches both.
    let tier = DiskTier::open(config.clone()).await.unwrap();
    tier.clear().await.unwrap();
    shut(tier).await;
    write_at(&scratch.manifest(), 0, &[0; 512]);
    let tier = DiskTier::open(config).await.unwrap();
    assert!(tier.keys().is_empty() && !tier.recovery().is_new);
    shut(tier).await;
}

#[tokio::test]
async fn records_that_cannot_be_read_are_misses_and_their_slots_are_not_used() {
    const SLOTS: u64 = 40;
    let scratch = Scratch::new();
    let truth = Truth::new(2 * SLOTS, 4096);
    let config = scratch.config(u32::try_from(SLOTS).unwrap(), 4096);
    let tier = DiskTier::open(config.clone()).await.unwrap();
    for number in 0..SLOTS {
        store(&tier, &truth, [number]).await.remove(0).unwrap();
    }
    shut(tier).await;
    // The second of three pages: the records of 16 to 31.
    let faults = bad_page(record_at(16));
    let tier = DiskTier::open(config.clone().with_files(faulty(&faults))).await.unwrap();
    let recovery = tier.recovery();
    assert_eq!((recovery.blocks, recovery.unreadable, recovery.is_new), (24, 16, false));
    let stats = tier.stats();
    assert_eq!((stats.blocks, stats.free, stats.held, stats.lost), (24, 0, 0, 16));
    let is_lost = |number| (16..32).contains(&number);
    assert!((0..SLOTS).all(|number| tier.contains(&key(number).identity) != is_lost(number)));
    // Whatever is stored goes where it can be found again.
    for number in SLOTS..2 * SLOTS {
        store(&tier, &truth, [number]).await.remove(0).unwrap();
    }
    assert_eq!((tier.stats().blocks, tier.stats().failed_total), (24, 0));
    shut(tier).await;
    let tier = DiskTier::open(config).await.unwrap();
    let recovery = tier.recovery();
    assert_eq!((recovery.blocks, recovery.unreadable, recovery.damaged), (40, 0, 0));
    assert!((16..32).all(|number| tier.contains(&key(number).identity)), "it was not overwritten");
    let all: Vec<_> = tier.keys().iter().map(|key| key.identity).collect();
    assert!(truth.load(&tier, &all).await.is_empty());
    shut(tier).await;
}

#[tokio::test]
async fn an_empty_manifest_is_nobodys() {
    let scratch = Scratch::new();
    fs::write(scratch.manifest(), b"").unwrap();
    let tier = DiskTier::open(scratch.config(4, 4096)).await.unwrap();
    assert!(tier.recovery().is_new);
    shut(tier).await;
}

/// Has the only thread for what takes long wait until this is dropped.
fn plug() -> mpsc::Sender<()> {
    let (plug, plugged) = mpsc::channel();
    drop(spawn_blocking(move || plugged.recv()));
    plug
}

/// Begins to open a directory, and gives up when so many of its steps have ended and the next one waits
/// for a thread; that comes when what this returns is dropped.
async fn give_up_after(steps: usize, config: DiskConfig) -> mpsc::Sender<()> {
    let mut waiting = plug();
    let mut opening = pin!(DiskTier::open(config));
    assert!(poll!(opening.as_mut()).is_pending(), "its first step waits");
    for _ in 0..steps {
        let next = plug();
        let mut earlier = Some(std::mem::replace(&mut waiting, next));
        poll_fn(|cx| {
            assert!(opening.as_mut().poll(cx).is_pending(), "its next step waits");
            // Then it is woken by the end of that.
            earlier.take().map_or(Poll::Ready(()), |_| Poll::Pending)
        })
        .await;
    }
    waiting
}

#[tokio::test]
async fn an_open_that_is_dropped_keeps_the_directory_until_what_it_began_has_ended() {
    let truth = Truth::new(1, 4096);
    // It locks the directory, looks for a manifest, and makes the files.
    for steps in 0..3 {
        let scratch = Scratch::new();
        let config = scratch.config(4, 4096);
        let mut threads = Builder::new_multi_thread();
        let threads = threads.worker_threads(1).max_blocking_threads(1).enable_all();
        let threads = threads.build().unwrap();
        let waiting = threads.spawn(give_up_after(steps, config.clone())).await.unwrap();
        let second = DiskTier::open(config.clone()).await;
        let is_locked = matches!(second, Err(DiskError::Locked { .. }));
        assert_eq!(is_locked, steps > 0, "after {steps} steps");
        // Now comes what was begun.
        drop(waiting);
        threads.spawn_blocking(|| ()).await.unwrap();
        threads.shutdown_background();
        let second = match is_locked {
            true => open(config.clone()).await,
            false => second,
        };
        let second = second.unwrap();
        store(&second, &truth, [0]).await.remove(0).unwrap();
        shut(second).await;
        let tier = DiskTier::open(config).await.unwrap();
        assert_eq!(tier.keys(), [key(0)], "after {steps} steps");
        shut(tier).await;
    }
}
