//! How a directory is opened, made, and read.

use std::io;
use std::sync::{Arc, Mutex};

use dynamo_transfer::file::{FileRange, FileRegion, FileStore};
use dynamo_transfer::{ErrorKind, HostBuffer};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::config::{DiskConfig, OnForeign};
use super::directory::Directory;
use super::error::DiskError;
use super::format::{Flaw, Geometry, PAGE_BYTES, RECORD_BYTES, Record, record_offset};
use super::index::Index;
use super::stats::Recovery;
use super::superblock::{self, Found};
use super::{Inner, Shared, blocking};
use crate::tier::Pace;

pub(super) async fn open(config: DiskConfig) -> Result<Inner, DiskError> {
    let geometry = config.geometry()?;
    let tasks = TaskTracker::new();
    let files = FileStore::start(config.files.clone())?;
    let locked = blocking(&tasks, move || Directory::lock(config.dir, geometry, config.direct));
    let dir = Arc::new(locked.await.unwrap_or(Err(DiskError::Closed))?);

    let found = match (superblock::read(&dir, &tasks, &files).await?, config.on_foreign) {
        (Found::Ours { era, is_whole }, _) => {
            let opened = dir.run(&tasks, Directory::open_files).await?;
            opened.map(|files| (files, era, is_whole))
        }
        (Found::Nothing, _) | (_, OnForeign::Reinitialise) => None,
        (Found::Foreign(foreign), OnForeign::Refuse) => {
            return Err(DiskError::Foreign { dir: dir.path.clone(), foreign });
        }
        (Found::Unreadable(error), OnForeign::Refuse) => return Err(error.into()),
    };
    let mut recovery = Recovery { is_new: found.is_none(), ..Recovery::default() };
    let ((blocks, manifest), era, is_whole) = match found {
        Some(found) => found,
        None => make(&dir, &tasks, &files).await?,
    };
    if !is_whole && let Err(error) = superblock::write(&files, &manifest, &dir, era).await {
        tracing::warn!(%error, dir = %dir.path.display(), "a superblock stays damaged");
    }
    let mut index = Index::new(geometry.blocks, era, config.eviction.make());
    if !recovery.is_new {
        recover(&files, &manifest, (geometry, era), &mut index, &mut recovery).await?;
    }
    Ok(Inner {
        shared: Arc::new(Shared { index: Mutex::new(index), dir }),
        files,
        blocks,
        manifest,
        geometry,
        room: Arc::new(Semaphore::new(config.in_flight)),
        in_flight: config.in_flight,
        run_blocks: (RUN_BYTES / config.block_bytes).clamp(1, config.in_flight),
        tasks,
        pace: Pace::new(config.load_time),
        next_era: tokio::sync::Mutex::new(era.wrapping_add(1)),
        recovery,
    })
}

/// Makes the files anew; the manifest gets its name when all is there.
async fn make(
    dir: &Arc<Directory>,
    tasks: &TaskTracker,
    files: &FileStore,
) -> Result<((FileRegion, FileRegion), u64, bool), DiskError> {
    let mut era = [0; 8];
    getrandom::fill(&mut era)
        .map_err(|error| dir.fail("choosing an era for", io::Error::other(error.to_string())))?;
    let era = u64::from_le_bytes(era);
    let (blocks, manifest) = dir.run(tasks, Directory::make_files).await?;
    superblock::write(files, &manifest, dir, era).await?;
    drop(manifest);
    let manifest = dir.run(tasks, Directory::name_manifest).await?;
    Ok(((blocks, manifest), era, true))
}

/// Reads all records, a part of the manifest at a time; what cannot be read is lost, a page at a time.
async fn recover(
    files: &FileStore,
    manifest: &FileRegion,
    (geometry, era): (Geometry, u64),
    index: &mut Index,
    recovery: &mut Recovery,
) -> Result<(), DiskError> {
    let mut buffer = HostBuffer::new(READ_RECORDS as usize * RECORD_BYTES);
    let parts = (0..geometry.blocks).step_by(READ_RECORDS as usize);
    let mut parts: Vec<_> = parts.map(|first| (first, READ_RECORDS)).rev().collect();
    while let Some((first, count)) = parts.pop() {
        let count = count.min(geometry.blocks - first);
        let len = count as usize * RECORD_BYTES;
        let place = FileRange { offset: record_offset(first), at: 0, len };
        let (read, back) = files.read(manifest, &[place], buffer).await;
        let Some(back) = back else { return Err(DiskError::Closed) };
        buffer = back;
        match read {
            Ok(_) => take(&buffer[..len], first, era, &geometry, index, recovery),
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error.into()),
            Err(_) if count > PAGE_RECORDS => {
                let pages = (first..first + count).step_by(PAGE_RECORDS as usize).rev();
                parts.extend(pages.map(|first| (first, PAGE_RECORDS)));
            }
            Err(error) => {
                tracing::warn!(%error, first, count, "records of a disk tier cannot be read");
                (first..first + count).for_each(|slot| index.lose(slot));
                recovery.unreadable += count as usize;
            }
        }
    }
    index.recovered(recovery);
    Ok(())
}

fn take(
    bytes: &[u8],
    first: u32,
    era: u64,
    geometry: &Geometry,
    index: &mut Index,
    recovery: &mut Recovery,
) {
    let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
    for (slot, bytes) in (first..).zip(records) {
        match Record::decode(bytes, slot, era, geometry) {
            Ok(record) => index.recover(slot, record),
            Err(Flaw::Empty) => {}
            Err(Flaw::Damaged) => recovery.damaged += 1,
            Err(Flaw::Stale) => recovery.stale += 1,
        }
    }
}

/// What is read of a manifest at once: 1 MiB.
const READ_RECORDS: u32 = 4096;

/// What is lost at once.
const PAGE_RECORDS: u32 = 16;

const _: () = assert!(PAGE_RECORDS as usize * RECORD_BYTES == PAGE_BYTES);

/// What neighbours are moved at once: a device is as fast as it gets with calls of that size, and a few
/// of them make up what is in flight.
const RUN_BYTES: usize = 512 << 10;
