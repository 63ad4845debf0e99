//! How a directory is opened, made, and read.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dynamo_transfer::file::{FileOptions, FileRange, FileRegion, FileStore};
use dynamo_transfer::{ErrorKind, HostBuffer};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::config::{DiskConfig, OnForeign};
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
    let dir = Arc::new(Directory { geometry, path: config.dir, direct: config.direct });
    let lock = dir.run(&tasks, Directory::lock).await?;

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
        shared: Arc::new(Shared { index: Mutex::new(index), lock }),
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
    let manifest = dir.run(tasks, |dir| {
        let options = FileOptions::default().with_direct(false);
        Ok(FileRegion::open(dir.manifest(), SUPERBLOCK_BYTES as u64, options))
    });
    let manifest = match manifest.await? {
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
    let superblock = Superblock { geometry: dir.geometry, era }.encode();
    let place = FileRange { offset: 0, at: 0, len: superblock.len() };
    files.write(&manifest, &[place], superblock).await.0?;
    drop(manifest);
    let manifest = dir.run(tasks, Directory::name_manifest).await?;
    Ok(((blocks, manifest), era))
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

/// A directory that is opened; its methods wait for the filesystem.
struct Directory {
    path: PathBuf,
    geometry: Geometry,
    direct: bool,
}

impl Directory {
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        work: impl FnOnce(&Self) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let dir = Arc::clone(self);
        blocking(tasks, move || work(&dir)).await.unwrap_or(Err(DiskError::Closed))
    }

    /// Makes the directory if there is none, and locks it.
    fn lock(&self) -> Result<File, DiskError> {
        fs::create_dir_all(&self.path).map_err(|error| self.fail("making", error))?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true);
        let lock = lock.open(self.path.join("dynamo-kv.lock"));
        let lock = lock.map_err(|error| self.fail("locking", error))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(DiskError::Locked { dir: self.path.clone() }),
            Err(TryLockError::Error(error)) => Err(self.fail("locking", error)),
        }
    }

    /// Opens the blocks and the manifest; `None` if there are not as many blocks as there should.
    fn open_files(&self) -> Result<Option<(FileRegion, FileRegion)>, DiskError> {
        let blocks = FileRegion::open(self.blocks(), self.geometry.blocks_len(), self.options());
        let blocks = match blocks {
            Ok(blocks) => blocks,
            Err(error) if is_lost(error.kind()) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some((blocks, self.open_manifest()?)))
    }

    /// Opens the manifest; records that are missing at its end are empty.
    fn open_manifest(&self) -> Result<FileRegion, DiskError> {
        let (path, len) = (self.manifest(), self.geometry.manifest_len());
        let grow = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            if file.metadata()?.len() < len { file.set_len(len) } else { Ok(()) }
        };
        grow().map_err(|error| self.fail("growing the manifest of", error))?;
        Ok(FileRegion::open(&path, len, FileOptions::default().with_direct(false))?)
    }

    /// Makes the blocks, unless there are as many as there should, and a manifest under another name.
    fn make_files(&self) -> Result<(FileRegion, FileRegion), DiskError> {
        let len = self.geometry.blocks_len();
        let blocks = match FileRegion::open(self.blocks(), len, self.options()) {
            Ok(blocks) if fs::metadata(self.blocks()).is_ok_and(|found| found.len() == len) => {
                blocks
            }
            _ => {
                self.remove(&self.blocks())?;
                FileRegion::create(self.blocks(), len, self.options())?
            }
        };
        self.remove(&self.unnamed())?;
        let options = FileOptions::default().with_direct(false);
        let len = self.geometry.manifest_len();
        Ok((blocks, FileRegion::create(self.unnamed(), len, options)?))
    }

    /// Gives the manifest its name, once it is on the device.
    fn name_manifest(&self) -> Result<FileRegion, DiskError> {
        sync(&self.unnamed())?;
        fs::rename(self.unnamed(), self.manifest())
            .map_err(|error| self.fail("naming the manifest of", error))?;
        sync(&self.path)?;
        self.open_manifest()
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.fail("removing a file of", error))
            }
            _ => Ok(()),
        }
    }

    fn options(&self) -> FileOptions {
        FileOptions::default().with_direct(self.direct)
    }

    fn blocks(&self) -> PathBuf {
        self.path.join("dynamo-kv.blocks")
    }

    fn manifest(&self) -> PathBuf {
        self.path.join("dynamo-kv.manifest")
    }

    fn unnamed(&self) -> PathBuf {
        self.path.join("dynamo-kv.manifest.new")
    }

    fn fail(&self, doing: &'static str, source: io::Error) -> DiskError {
        DiskError::Io { doing, path: self.path.clone(), source }
    }
}

/// Waits until a file is on the device.
pub(super) fn sync(path: &Path) -> Result<(), DiskError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| DiskError::Io { doing: "syncing", path: path.to_owned(), source })
}

/// Tells whether a file is not there, or shorter than it was.
fn is_lost(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::InvalidArgument)
}

/// What is read of a manifest at once: 1 MiB.
const READ_RECORDS: u32 = 4096;

const _: () = assert!(SUPERBLOCK_BYTES <= PAGE_BYTES);

/// What neighbours are moved at once: a device is as fast as it gets with calls of that size, and a few
/// of them make up what is in flight.
const RUN_BYTES: usize = 512 << 10;
