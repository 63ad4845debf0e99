//! How a directory is opened, made, and read.

use std::io;
use std::sync::{Arc, Mutex};

use dynamo_transfer::file::{FileRange, FileRegion, FileStore};
use dynamo_transfer::{ErrorKind, HostBuffer};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::config::{DiskConfig, OnForeign};
use super::directory::{Directory, Kept};
use super::error::{DiskError, Foreign};
use super::format::{
    Flaw, Geometry, PAGE_BYTES, RECORD_BYTES, Record, SUPERBLOCK_BYTES, Superblock, record_offset,
};
use super::index::Index;
use super::stats::Recovery;
use super::{Inner, Shared, blocking};
use crate::tier::Pace;

pub(super) async fn open(config: DiskConfig) -> Result<Inner, DiskError> {
    let geometry = config.geometry()?;
    let tasks = TaskTracker::new();
    let files = FileStore::start(config.files.clone())?;
    let locked = blocking(&tasks, move || Directory::lock(config.dir, geometry, config.direct));
    let dir = Arc::new(locked.await.unwrap_or(Err(DiskError::Closed))?);

    let found = read_era(&dir, &tasks, &files).await?;
    let found = match (found, config.on_foreign) {
        (Found::Era(era), _) => {
            dir.run(&tasks, Directory::open_files).await?.map(|files| (files, era))
        }
        (Found::Nothing, _) | (Found::Foreign(_), OnForeign::Reinitialise) => None,
        (Found::Foreign(foreign), OnForeign::Refuse) => {
            return Err(DiskError::Foreign { dir: dir.path.clone(), foreign });
        }
    };
    let mut recovery = Recovery { is_new: found.is_none(), ..Recovery::default() };
    let ((blocks, manifest), era) = match found {
        Some(found) => found,
        None => make(&dir, &tasks, &files).await?,
    };
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

/// What a directory begins with.
enum Found {
    Nothing,
    Foreign(Foreign),
    Era(u64),
}

/// Reads the superblock, if there is one.
async fn read_era(
    dir: &Arc<Directory>,
    tasks: &TaskTracker,
    files: &FileStore,
) -> Result<Found, DiskError> {
    let manifest = match dir.run(tasks, |dir| Ok(dir.open_superblock())).await? {
        Ok(manifest) => manifest,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {
            return Ok(Found::Foreign(Foreign::Unknown));
        }
        Err(error) => return Err(error.into()),
    };
    let place = FileRange { offset: 0, at: 0, len: SUPERBLOCK_BYTES };
    let (read, bytes) = files.read(&manifest, &[place], [0u8; SUPERBLOCK_BYTES]).await;
    read?;
    let bytes = bytes.unwrap_or([0; SUPERBLOCK_BYTES]);
    Ok(Superblock::decode(&bytes, &dir.geometry).map_or_else(Found::Foreign, Found::Era))
}

/// Makes the files anew; the manifest gets its name when all is there.
async fn make(
    dir: &Arc<Directory>,
    tasks: &TaskTracker,
    files: &FileStore,
) -> Result<((FileRegion, FileRegion), u64), DiskError> {
    let mut era = [0; 8];
    getrandom::fill(&mut era)
        .map_err(|error| dir.fail("choosing an era for", io::Error::other(error.to_string())))?;
    let era = u64::from_le_bytes(era);
    let (blocks, manifest) = dir.run(tasks, Directory::make_files).await?;
    write_superblock(files, &manifest, dir, era).await?;
    drop(manifest);
    let manifest = dir.run(tasks, Directory::name_manifest).await?;
    Ok(((blocks, manifest), era))
}

/// Begins an era.
pub(super) async fn write_superblock(
    files: &FileStore,
    manifest: &FileRegion,
    dir: &Arc<Directory>,
    era: u64,
) -> dynamo_transfer::Result<()> {
    let bytes = Superblock { geometry: dir.geometry, era }.encode();
    let place = FileRange { offset: 0, at: 0, len: bytes.len() };
    files.write(manifest, &[place], Kept { bytes, _dir: Arc::clone(dir) }).await.0.map(drop)
}

/// Reads all records, a part of the manifest at a time.
async fn recover(
    files: &FileStore,
    manifest: &FileRegion,
    (geometry, era): (Geometry, u64),
    index: &mut Index,
    recovery: &mut Recovery,
) -> Result<(), DiskError> {
    let mut buffer = HostBuffer::new(READ_RECORDS as usize * RECORD_BYTES);
    for first in (0..geometry.blocks).step_by(READ_RECORDS as usize) {
        let count = READ_RECORDS.min(geometry.blocks - first);
        let len = count as usize * RECORD_BYTES;
        let place = FileRange { offset: record_offset(first), at: 0, len };
        let (read, back) = files.read(manifest, &[place], buffer).await;
        read?;
        let Some(back) = back else { return Err(DiskError::Closed) };
        let (records, _) = back[..len].as_chunks::<RECORD_BYTES>();
        for (slot, bytes) in (first..).zip(records) {
            match Record::decode(bytes, slot, era, &geometry) {
                Ok(record) => index.recover(slot, record),
                Err(Flaw::Empty) => {}
                Err(Flaw::Damaged) => recovery.damaged += 1,
                Err(Flaw::Stale) => recovery.stale += 1,
            }
        }
        buffer = back;
    }
    index.recovered(recovery);
    Ok(())
}

/// What is read of a manifest at once: 1 MiB.
const READ_RECORDS: u32 = 4096;

const _: () = assert!(SUPERBLOCK_BYTES <= PAGE_BYTES);

/// What neighbours are moved at once: a device is as fast as it gets with calls of that size, and a few
/// of them make up what is in flight.
const RUN_BYTES: usize = 512 << 10;
