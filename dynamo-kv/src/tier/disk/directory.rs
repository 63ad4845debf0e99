use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynamo_transfer::ErrorKind;
use dynamo_transfer::file::{FileOptions, FileRegion};
use tokio_util::task::TaskTracker;

use super::blocking;
use super::error::DiskError;
use super::format::{Geometry, record_offset};

/// A directory that is locked until this is dropped; its methods wait for the filesystem.
///
/// Whatever changes a file of the directory keeps this until it has: so nobody else has the directory
/// before the last change has come to its end, though nobody waits for that any more.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) geometry: Geometry,
    direct: bool,
    lock: File,
}

impl Directory {
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        work: impl FnOnce(&Self) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let dir = Arc::clone(self);
        blocking(tasks, move || work(&dir)).await.unwrap_or(Err(DiskError::Closed))
    }

    /// Makes the directory if there is none, and locks it.
    pub(super) fn lock(path: PathBuf, geometry: Geometry, direct: bool) -> Result<Self, DiskError> {
        let fail = |doing, source| DiskError::Io { doing, path: path.clone(), source };
        fs::create_dir_all(&path).map_err(|error| fail("making", error))?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true);
        let lock =
            lock.open(path.join("dynamo-kv.lock")).map_err(|error| fail("locking", error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, geometry, direct, lock }),
            Err(TryLockError::WouldBlock) => Err(DiskError::Locked { dir: path }),
            Err(TryLockError::Error(error)) => Err(fail("locking", error)),
        }
    }

    /// Unlocks it, once nothing changes it any more.
    pub(super) fn unlock(&self) {
        // It may have been unlocked before.
        let _ = self.lock.unlock();
    }

    /// Opens what the manifest begins with, as far as it is there; `None` if there is nothing.
    pub(super) fn open_superblocks(&self) -> Result<Option<FileRegion>, DiskError> {
        let len = match fs::metadata(self.manifest()) {
            Ok(found) => found.len().min(record_offset(0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(self.fail("looking into", error)),
        };
        if len == 0 {
            return Ok(None);
        }
        let options = FileOptions::default().with_direct(false);
        Ok(Some(FileRegion::open(self.manifest(), len, options)?))
    }

    /// Opens the blocks and the manifest; `None` if there are not as many blocks as there should.
    pub(super) fn open_files(&self) -> Result<Option<(FileRegion, FileRegion)>, DiskError> {
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
    pub(super) fn make_files(&self) -> Result<(FileRegion, FileRegion), DiskError> {
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
    pub(super) fn name_manifest(&self) -> Result<FileRegion, DiskError> {
        sync(&self.unnamed())?;
        fs::rename(self.unnamed(), self.manifest())
            .map_err(|error| self.fail("naming the manifest of", error))?;
        sync(&self.path)?;
        self.open_manifest()
    }

    /// Waits until what was written is on the device.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        sync(&self.blocks())?;
        sync(&self.manifest())
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

    pub(super) fn fail(&self, doing: &'static str, source: io::Error) -> DiskError {
        DiskError::Io { doing, path: self.path.clone(), source }
    }
}

/// Memory that is written to a file of a directory, which it keeps until it was.
pub(super) struct Kept<B> {
    pub(super) bytes: B,
    pub(super) _dir: Arc<Directory>,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Kept<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Waits until a file is on the device.
fn sync(path: &Path) -> Result<(), DiskError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| DiskError::Io { doing: "syncing", path: path.to_owned(), source })
}

/// Tells whether a file is not there, or shorter than it was.
fn is_lost(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::InvalidArgument)
}
