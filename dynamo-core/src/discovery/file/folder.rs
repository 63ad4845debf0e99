//! The folder, by blocking calls: put a file in, take one out, look at one.
//!
//! A file is locked (`flock`) by its process before it gets its name, and never unlocked while its
//! instance lives; so a named file that nobody has locked is of a dead process. Whoever changes
//! the folder holds the lock of [`LOCK`]; whoever only looks needs none.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::PathBuf;

use super::entry;
use crate::discovery::Instance;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::InstanceId;

#[derive(Debug, Clone)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
}

/// Device and number: which file it is, whatever its name.
pub(super) type Inode = (u64, u64);

pub(super) type Stamp = (Inode, i64, i64);

/// An open file of an instance, its lock held by this process.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) file: File,
    pub(super) inode: Inode,
}

/// A file that was looked at.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) inode: Inode,
    pub(super) is_live: bool,
    pub(super) instance: Result<Instance>,
}

/// The right to change the folder.
pub(super) struct Locked<'a> {
    folder: &'a Folder,
    _lock: File,
}

impl Folder {
    /// Lists what has a name, by name and number; of a crowded folder, a part.
    pub(super) fn list(&self) -> Result<Vec<(String, u64)>> {
        let listed = fs::read_dir(&self.path).map_err(|error| self.failed(error))?;
        let listed = listed.take(FILES_MAX).map(|found| {
            let found = found?;
            // What is no text is a foreign name like another.
            Ok((found.file_name().to_string_lossy().into_owned(), found.ino()))
        });
        listed.collect::<io::Result<_>>().map_err(|error| self.failed(error))
    }

    /// Looks at a file; `None` if it is not there (any more).
    pub(super) fn look_at(&self, name: &str) -> io::Result<Option<Found>> {
        let path = self.path.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        // Opening a pipe would wait for its other end.
        if !found.is_file() {
            return Err(io::Error::other("no regular file"));
        }
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let metadata = file.metadata()?;
        // Its process writes before it locks the file, and gives it a name only then.
        let is_live = !is_free(&file)?;
        let instance = read(&file, metadata.len()).and_then(|bytes| entry::decode(name, &bytes));
        Ok(Some(Found { file, inode: inode(&metadata), is_live, instance }))
    }

    /// Tells what a name stands for and since when: differs whenever either has changed.
    pub(super) fn stamp(&self, name: &str) -> Option<Stamp> {
        let found = fs::symlink_metadata(self.path.join(name)).ok()?;
        Some((inode(&found), found.ctime(), found.ctime_nsec()))
    }

    /// Tells which file has the name.
    pub(super) fn inode(&self, name: &str) -> Option<Inode> {
        fs::symlink_metadata(self.path.join(name)).ok().as_ref().map(inode)
    }

    /// Takes the right to change the folder, unless another has it.
    pub(super) fn try_lock(&self) -> Result<Option<Locked<'_>>> {
        let path = self.path.join(LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = open.map_err(|error| self.failed(error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(self.failed(error)),
        }
        // The folder may have been emptied meanwhile, and another have locked another file.
        let is_it = lock.metadata().ok().as_ref().map(inode) == self.inode(LOCK);
        Ok(is_it.then_some(Locked { folder: self, _lock: lock }))
    }

    /// Makes an error of the system one that names the folder.
    pub(super) fn failed(&self, error: io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => {
                ErrorKind::InvalidArgument
            }
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("folder {}", self.path.display())).with_source(error)
    }
}

impl Locked<'_> {
    /// Puts an instance in, unless the same or a higher incarnation of it lives.
    pub(super) fn publish(&self, name: &str, instance: &Instance) -> Result<Held> {
        let failed = |error| self.folder.failed(error);
        if let Some(found) = self.folder.look_at(name).map_err(failed)?
            && found.is_live
        {
            // What lives and cannot be read is of a later version.
            let known = found.instance.map_or(u64::MAX, |known| known.incarnation);
            if known >= instance.incarnation {
                let message = format!("{instance} is registered already");
                return Err(Error::new(ErrorKind::Conflict, message));
            }
        }
        let bytes = entry::encode(instance)?;
        let partial = self.folder.path.join(format!(".{:016x}{PARTIAL}", InstanceId::random().0));
        let held = write(&partial, &bytes).and_then(|held| {
            fs::rename(&partial, self.folder.path.join(name))?;
            Ok(held)
        });
        held.map_err(|error| {
            // Who comes next removes it too.
            let _ = fs::remove_file(&partial);
            failed(error)
        })
    }

    /// Removes a file that nobody has locked, unless the name is another one's by now.
    pub(super) fn remove(&self, name: &str, expected: Inode) -> Result<()> {
        let path = self.folder.path.join(name);
        let failed = |error| self.folder.failed(error);
        if self.folder.inode(name) == Some(expected)
            && is_free(&File::open(&path).map_err(failed)?).map_err(failed)?
        {
            fs::remove_file(&path).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what processes have left behind that died while they put an instance in.
    pub(super) fn sweep(&self) -> Result<()> {
        for (name, _) in self.folder.list()?.iter().filter(|(name, _)| is_partial(name)) {
            // Whoever writes one has the lock that is held here.
            let removed = fs::remove_file(self.folder.path.join(name));
            removed.map_err(|error| self.folder.failed(error))?;
        }
        Ok(())
    }
}

/// Tells whether a name is of what is written or held here besides instances.
pub(super) fn is_own(name: &str) -> bool {
    name == LOCK || is_partial(name)
}

fn is_partial(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(PARTIAL)
}

/// Tells whether no process holds the file: then the one that wrote it is dead.
pub(super) fn is_free(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn write(partial: &PathBuf, bytes: &[u8]) -> io::Result<Held> {
    let mut file = OpenOptions::new().create_new(true).write(true).open(partial)?;
    file.write_all(bytes)?;
    // A name that survives a crash of the system has its value, or none.
    file.sync_all()?;
    file.try_lock()?;
    let inode = inode(&file.metadata()?);
    Ok(Held { file, inode })
}

fn read(file: &File, len: u64) -> Result<Vec<u8>> {
    let too_long = || Error::new(ErrorKind::Protocol, "file is too long");
    if len > entry::LEN_MAX as u64 {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let read = file.take(entry::LEN_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::new(ErrorKind::Unavailable, "unreadable file").with_source(error))?;
    if bytes.len() > entry::LEN_MAX { Err(too_long()) } else { Ok(bytes) }
}

fn inode(metadata: &fs::Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

/// Locked by whoever changes the folder.
const LOCK: &str = ".lock";

/// How names of files end that are still being written.
const PARTIAL: &str = ".partial";

/// Far above the instances of one host.
pub(super) const FILES_MAX: usize = 4096;
