use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind};

/// Says what failed, where, and what a caller can do about it.
pub(super) fn of(error: io::Error, doing: &str, path: &Path) -> Error {
    Error::new(kind(&error), format!("{doing} {}", path.display())).with_source(error)
}

fn kind(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::StorageFull,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        Io::NotFound | Io::StaleNetworkFileHandle => ErrorKind::NotFound,
        Io::AlreadyExists
        | Io::IsADirectory
        | Io::NotADirectory
        | Io::InvalidInput
        | Io::InvalidFilename => ErrorKind::InvalidArgument,
        Io::OutOfMemory => ErrorKind::Overloaded,
        _ => match error.raw_os_error() {
            Some(CLOSED) => ErrorKind::Closed,
            Some(libc::EMFILE | libc::ENFILE) => ErrorKind::Overloaded,
            // Opened for reading only.
            Some(libc::EBADF) => ErrorKind::PermissionDenied,
            // The device is gone.
            Some(libc::ENODEV | libc::ENXIO) => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        },
    }
}

/// What an IO ends with that was not started because its operation was cancelled.
pub(super) const CANCELLED: i32 = libc::ECANCELED;

/// What an IO ends with that was not started because its engine has shut down.
pub(super) const CLOSED: i32 = libc::ESHUTDOWN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_has_its_kind_and_names_the_file() {
        for (code, kind) in [
            (libc::ENOSPC, ErrorKind::StorageFull),
            (libc::EDQUOT, ErrorKind::StorageFull),
            (libc::EFBIG, ErrorKind::StorageFull),
            (libc::EIO, ErrorKind::Io),
            (libc::EROFS, ErrorKind::PermissionDenied),
            (libc::EACCES, ErrorKind::PermissionDenied),
            (libc::EPERM, ErrorKind::PermissionDenied),
            (libc::EBADF, ErrorKind::PermissionDenied),
            (libc::ENOENT, ErrorKind::NotFound),
            (libc::ESTALE, ErrorKind::NotFound),
            (libc::ENXIO, ErrorKind::NotFound),
            (libc::EMFILE, ErrorKind::Overloaded),
            (libc::ENOMEM, ErrorKind::Overloaded),
            (libc::EISDIR, ErrorKind::InvalidArgument),
            (CLOSED, ErrorKind::Closed),
            // Of the system's own doing.
            (CANCELLED, ErrorKind::Io),
        ] {
            let error =
                of(io::Error::from_raw_os_error(code), "writing 8 bytes at 16 of", Path::new("/x"));
            assert_eq!(
                (error.kind(), error.message()),
                (kind, "writing 8 bytes at 16 of /x"),
                "{code}"
            );
            assert!(std::error::Error::source(&error).is_some());
        }
    }
}
