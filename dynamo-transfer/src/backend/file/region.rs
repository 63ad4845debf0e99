use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::plan::Alignment;
use super::{error, sys};
use crate::error::{Error, ErrorKind, Result};

/// How a file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileOptions {
    /// It may be written to.
    pub writable: bool,
    /// Aligned ranges go past the page cache, if the filesystem can.
    pub direct: bool,
    /// An operation that writes ends when the bytes have reached the device.
    pub durable: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        // The pages of a cache larger than memory only push out others'; what it loses in a crash
        // is computed again.
        Self { writable: true, direct: true, durable: false }
    }
}

impl FileOptions {
    /// Sets whether the file may be written to.
    #[must_use]
    pub fn with_writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Sets whether aligned ranges go past the page cache.
    #[must_use]
    pub fn with_direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Sets whether written bytes have reached the device when an operation ends.
    #[must_use]
    pub fn with_durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }
}

/// The first so many bytes of a file, addressed by offset; cheap to clone.
#[derive(Clone)]
pub struct FileRegion(pub(super) Arc<Opened>);

pub(super) struct Opened {
    path: PathBuf,
    buffered: File,
    direct: Option<(File, Alignment)>,
    is_direct_refused: AtomicBool,
    len: u64,
    options: FileOptions,
    /// It had a name when it was opened: scratch files may have none.
    is_named: bool,
}

impl FileRegion {
    /// Creates a file of `len` bytes, all of them allocated; blocks while the filesystem does it.
    ///
    /// Fails with [`StorageFull`](ErrorKind::StorageFull), leaving no file behind, with
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if the file exists or `len` is 0, and with
    /// the kinds of [`open`](Self::open).
    pub fn create(path: impl AsRef<Path>, len: u64, options: FileOptions) -> Result<Self> {
        let path = path.as_ref();
        check_len(path, len)?;
        let mut new = OpenOptions::new();
        let file = new.read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|e| error::of(e, "creating", path))?;
        let allocated = sys::allocate(&file, len)
            .map_err(|e| error::of(e, &format!("allocating {len} bytes for"), path));
        let region = allocated.and_then(|()| Self::open(path, len, options));
        if region.is_err() {
            // Best effort: the error says what matters.
            let _ = fs::remove_file(path);
        }
        region
    }

    /// Opens the first `len` bytes of a file or block device; blocks while the filesystem does it.
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound), [`PermissionDenied`](ErrorKind::PermissionDenied),
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if the file is shorter, or
    /// [`Io`](ErrorKind::Io).
    pub fn open(path: impl AsRef<Path>, len: u64, options: FileOptions) -> Result<Self> {
        let path = path.as_ref();
        check_len(path, len)?;
        let fail = |e| error::of(e, "opening", path);
        let buffered = OpenOptions::new().read(true).write(options.writable).open(path);
        let buffered = buffered.map_err(fail)?;
        let metadata = buffered.metadata().map_err(fail)?;
        if metadata.is_dir() || metadata.file_type().is_fifo() || metadata.file_type().is_socket() {
            let message = format!("{} is no file", path.display());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if metadata.is_file() && metadata.len() < len {
            let size = metadata.len();
            let message = format!("{} has {size} bytes, not {len}", path.display());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let direct = if options.direct { open_direct(path, &metadata, options) } else { None };
        Ok(Self(Arc::new(Opened {
            path: path.to_owned(),
            buffered,
            direct,
            is_direct_refused: AtomicBool::new(false),
            len,
            options,
            is_named: metadata.nlink() > 0,
        })))
    }

    /// Returns the size of the region in bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Tells whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Returns where the file was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns how the file is used.
    pub fn options(&self) -> FileOptions {
        self.0.options
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        self.0.check_writable()
    }

    /// Tells whether aligned ranges go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.0.alignment().is_some()
    }
}

impl Opened {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_durable(&self) -> bool {
        self.options.durable
    }

    pub(super) fn alignment(&self) -> Option<Alignment> {
        let direct =
            self.direct.as_ref().filter(|_| !self.is_direct_refused.load(Ordering::Relaxed));
        direct.map(|direct| direct.1)
    }

    pub(super) fn refuse_direct(&self) {
        if !self.is_direct_refused.swap(true, Ordering::Relaxed) {
            tracing::debug!(path = %self.path.display(), "no direct io: goes through the page cache");
        }
    }

    pub(super) fn descriptor(&self, is_direct: bool) -> &File {
        match &self.direct {
            Some((direct, _)) if is_direct => direct,
            _ => &self.buffered,
        }
    }

    /// Checks a range, and that the file may be written to if it is to be.
    pub(super) fn check(&self, offset: u64, len: u64, is_write: bool) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let (path, size) = (self.path.display(), self.len);
            let message = format!("range {offset}+{len} lies outside {path} of {size} bytes");
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        if is_write { self.check_writable() } else { Ok(()) }
    }

    /// Fails with `PermissionDenied` if the file is opened for reading only.
    fn check_writable(&self) -> Result<()> {
        if self.options.writable {
            return Ok(());
        }
        let message = format!("{} is opened for reading only", self.path.display());
        Err(Error::new(ErrorKind::PermissionDenied, message))
    }

    /// Fails with `NotFound` if the file was deleted since it was opened.
    pub(super) fn check_name(&self) -> Result<()> {
        let links = self.buffered.metadata().map(|metadata| metadata.nlink());
        match links.map_err(|e| error::of(e, "looking at", &self.path))? {
            0 if self.is_named => {
                let message = format!("{} was deleted", self.path.display());
                Err(Error::new(ErrorKind::NotFound, message))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for FileRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileRegion")
            .field("path", &self.0.path)
            .field("len", &self.0.len)
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

fn check_len(path: &Path, len: u64) -> Result<()> {
    if len == 0 || i64::try_from(len).is_err() {
        let message = format!("a region of {len} bytes of {}", path.display());
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}

/// Opens the same file again, past the page cache; `None` if that cannot be had.
#[cfg(target_os = "linux")]
fn open_direct(
    path: &Path,
    first: &fs::Metadata,
    options: FileOptions,
) -> Option<(File, Alignment)> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut again = OpenOptions::new();
    again.read(true).write(options.writable).custom_flags(libc::O_DIRECT);
    let refused = |e: &std::io::Error| tracing::debug!(path = %path.display(), %e, "no direct io");
    let file = again.open(path).inspect_err(refused).ok()?;
    let second = file.metadata().inspect_err(refused).ok()?;
    // Another file may have taken the name in between.
    let is_same = (first.dev(), first.ino()) == (second.dev(), second.ino());
    let alignment = sys::alignment(&file).filter(|_| is_same)?;
    Some((file, alignment))
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path, _: &fs::Metadata, _: FileOptions) -> Option<(File, Alignment)> {
    None
}
