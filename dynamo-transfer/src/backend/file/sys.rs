//! The calls that take addresses.
#![expect(unsafe_code, reason = "the kernel reads and writes raw memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::io::{FileAct, Io};
use super::plan::Alignment;

/// Runs one IO, waiting for it on this thread; `iovecs` is scratch.
pub(super) fn run(io: &Io, iovecs: &mut Vec<libc::iovec>) -> io::Result<usize> {
    if io.act == FileAct::Sync {
        return io.file().sync_data().map(|()| 0);
    }
    fill(io, iovecs);
    let count = libc::c_int::try_from(iovecs.len()).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(io.offset).map_err(io::Error::other)?;
    let fd = io.file().as_raw_fd();
    let result = match io.act {
        // SAFETY: `fd` is open as long as the IO's operation, and so is the memory of its spans,
        // by the operation's lease; nobody holds references to it (see `Span`).
        FileAct::Read => unsafe { libc::preadv(fd, iovecs.as_ptr(), count, offset) },
        // SAFETY: as above; memory is only read.
        _ => unsafe { libc::pwritev(fd, iovecs.as_ptr(), count, offset) },
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Lists the memory of an IO as the kernel wants it.
pub(super) fn fill(io: &Io, iovecs: &mut Vec<libc::iovec>) {
    iovecs.clear();
    let mut left = io.limit;
    for span in &io.spans {
        let len = span.len().min(left);
        if len == 0 {
            break;
        }
        iovecs.push(libc::iovec { iov_base: span.as_ptr().cast(), iov_len: len });
        left -= len;
    }
}

/// Gives the file its blocks, or only its size where the filesystem cannot give blocks.
pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    loop {
        let size = libc::off_t::try_from(len).map_err(io::Error::other)?;
        // SAFETY: takes no address; the descriptor is open.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, size) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => break,
            error => return Err(error),
        }
    }
    file.set_len(len)
}

/// Returns what direct IO on `file` wants aligned; `None` if it has no direct IO.
#[cfg(target_os = "linux")]
pub(super) fn alignment(file: &File) -> Option<Alignment> {
    let unsaid = Alignment { offset: PAGE_BYTES, memory: 4096 };
    // SAFETY: a struct of integers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, mask) = (file.as_raw_fd(), libc::STATX_DIOALIGN);
    // SAFETY: `found` is writable and lives through the call, the path is a C string.
    let result =
        unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut found) };
    // A kernel before 6.1, or a filesystem that does not say: what suits every device.
    if result != 0 || found.stx_mask & mask == 0 {
        return Some(unsaid);
    }
    let memory = usize::try_from(found.stx_dio_mem_align).ok()?;
    let offset = u64::from(found.stx_dio_offset_align).max(PAGE_BYTES);
    let is_sound = memory.is_power_of_two() && offset.is_power_of_two();
    (is_sound && offset <= OFFSET_ALIGN_MAX).then_some(Alignment { offset, memory })
}

/// Makes a descriptor that a thread sleeps on until eight bytes are written to it.
#[cfg(target_os = "linux")]
pub(super) fn wake_file() -> io::Result<File> {
    // SAFETY: takes no address.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A page of the page cache.
const PAGE_BYTES: u64 = 4096;

/// Steps are multiples of this.
const OFFSET_ALIGN_MAX: u64 = 64 << 10;
