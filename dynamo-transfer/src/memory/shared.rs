//! Memory that is mapped: in files without a name, which other processes can map, and of this process
//! alone.
#![expect(unsafe_code, reason = "mapping memory and making slices of it")]

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::ptr::{self, NonNull};
use std::slice;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::span::Span;

/// A file in memory that keeps its size for ever.
pub(crate) struct SharedFile {
    file: File,
    /// The same, for whoever may only read.
    readable: File,
    len: usize,
}

/// A mapping of a whole sealed file, or of memory of this process alone; unmapped when dropped.
pub(crate) struct Mapping {
    span: Span,
}

impl SharedFile {
    pub(crate) fn create(len: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("dynamo-transfer", flags)?);
        file.set_len(len as u64)?;
        // Whoever may only read does not open it again for more, unless it is the same user.
        file.set_permissions(Permissions::from_mode(0o600))?;
        fcntl_add_seals(&file, SEALS)?;
        let readable = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Self { file, readable, len })
    }

    /// Maps it, to be written; fails if there is no room for all of it.
    pub(crate) fn map(&self) -> io::Result<Mapping> {
        let mapping = Mapping::new(&self.file, self.len, true)?;
        mapping.populate()?;
        Ok(mapping)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the file as it is given to a peer.
    pub(crate) fn as_fd(&self, is_writable: bool) -> BorrowedFd<'_> {
        if is_writable { self.file.as_fd() } else { self.readable.as_fd() }
    }
}

impl Mapping {
    /// Maps a file that a peer has given; fails unless it has that length and keeps it.
    pub(crate) fn of(file: OwnedFd, len: usize, is_writable: bool) -> io::Result<Self> {
        let file = File::from(file);
        if !fcntl_get_seals(&file)?.contains(SEALS) || file.metadata()?.size() != len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file may change its size"));
        }
        Self::new(&file, len, is_writable)
    }

    /// Maps zeros of this process alone, in huge pages where the system has them; fails if there is no
    /// room for all of it.
    pub(super) fn of_zeros(len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as below.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { span: Span::raw(at, len) };
        mapping.populate()?;
        Ok(mapping)
    }

    /// Takes all pages now, large ones if possible: a page that cannot be had later is a signal.
    fn populate(&self) -> io::Result<()> {
        let (at, len) = (self.span.as_ptr().cast(), self.span.len());
        // SAFETY: it changes nothing but the size of pages. Not every kernel has them.
        let _ = unsafe { madvise(at, len, Advice::LinuxHugepage) };
        // SAFETY: the mapping is one that is written, and its bytes stay as they are.
        match unsafe { madvise(at, len, Advice::LinuxPopulateWrite) } {
            // Kernels before 5.14 do not know it.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn new(file: &File, len: usize, is_writable: bool) -> io::Result<Self> {
        let read = ProtFlags::READ;
        let access = if is_writable { read | ProtFlags::WRITE } else { read };
        // SAFETY: a new mapping where the kernel likes aliases nothing.
        let at = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }?;
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { span: Span::raw(at, len) })
    }

    pub(crate) fn span(&self) -> Span {
        self.span
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, as long as self lives, and cannot shrink; as a buffer it
        // is written by its owner alone, save by peers through a region, which borrows it.
        unsafe { slice::from_raw_parts(self.span.as_ptr(), self.span.len()) }
    }

    /// Only for mappings to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and self is borrowed exclusively; buffers map their file to be written.
        unsafe { slice::from_raw_parts_mut(self.span.as_ptr(), self.span.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody uses the span any more: users keep the mapping alive.
        let unmapped = unsafe { munmap(self.span.as_ptr().cast(), self.span.len()) };
        debug_assert!(unmapped.is_ok(), "a mapping is unmapped once");
    }
}

/// It never shrinks, so that who has mapped it can touch all of it, and that stays so.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "asks the kernel for memory")]
    fn what_is_given_for_reading_cannot_be_mapped_for_writing_and_none_can_shrink() {
        let file = SharedFile::create(5000).unwrap();
        let mut own = file.map().unwrap();
        own.bytes_mut()[4999] = 7;
        let given = |is_writable| file.as_fd(is_writable).try_clone_to_owned().unwrap();
        let reader = Mapping::of(given(false), 5000, false).unwrap();
        assert_eq!(reader.bytes()[4999], 7);
        assert!(Mapping::of(given(false), 5000, true).is_err());
        assert!(Mapping::of(given(true), 4096, true).is_err());
        assert!(File::from(given(true)).set_len(1).is_err());
        let unsealed = memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap();
        File::from(unsealed.try_clone().unwrap()).set_len(10).unwrap();
        assert!(Mapping::of(unsealed, 10, true).is_err());
    }
}
