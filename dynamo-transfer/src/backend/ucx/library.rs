//! Loading libucp at run time, by name or by path.

#![expect(unsafe_code, reason = "loading a C library")]

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use super::sys::{self, Functions, Status};
use crate::error::{Error, ErrorKind, Result};

/// A loaded libucp. It is never unloaded: its constructors hook into the process for good.
pub(super) struct Library {
    functions: Functions,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) c_uint, pub(super) c_uint, pub(super) c_uint);

impl Version {
    pub(super) fn parts(self) -> (u32, u32, u32) {
        (self.0, self.1, self.2)
    }
}

impl Library {
    /// Loads libucp and checks its version.
    ///
    /// Fails with [`BackendUnavailable`](ErrorKind::BackendUnavailable), in the loader's own words.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>> {
        let unavailable = |error: libloading::Error| {
            let message = format!("cannot load {}: {}", path.display(), in_full(&error));
            Error::new(ErrorKind::BackendUnavailable, message)
        };
        let signals = Signals::save();
        // SAFETY: the constructors of UCX may run in any process; whoever names another library by
        // its path vouches for that one.
        let loaded = unsafe { libloading::Library::new(path) }.map_err(unavailable)?;
        signals.restore();
        let find = |name: &str| {
            // SAFETY: the address is only looked up; `Functions::load` gives it its type.
            unsafe { loaded.get::<*mut c_void>(name.as_bytes()) }.map(|symbol| *symbol)
        };
        // SAFETY: the symbols are of libucp and of the libucs it has loaded, and the handle is
        // given away below, so that they stay.
        let functions = unsafe { Functions::load(find) }.map_err(unavailable)?;
        // The handle is a number; without its guard nobody closes it.
        let _ = libloading::os::unix::Library::from(loaded).into_raw();
        let library = Self { version: version(&functions), functions };
        if library.version < OLDEST {
            let message =
                format!("{} is UCX {}, {OLDEST} is needed", path.display(), library.version);
            return Err(Error::new(ErrorKind::BackendUnavailable, message));
        }
        Ok(Arc::new(library))
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.functions
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Tells whether it is too old for one-sided access: with the handling of failures, a worker of
    /// such a version uses none of the transports of shared memory, and without it, one waits for
    /// ever for a peer that is gone.
    pub(super) fn is_degraded(&self) -> bool {
        self.version < SOUND
    }

    /// Tells whether an assertion of its own may end the process when a peer is killed.
    pub(super) fn may_abort(&self) -> bool {
        self.version < SOUND
    }

    /// Returns the name by which a context takes a setting of TCP.
    pub(super) fn tcp_setting(&self, name: &str) -> String {
        let prefix = if self.version < PREFIXED { "" } else { "TCP_" };
        format!("{prefix}{name}")
    }

    /// Makes an error of a status that is one.
    pub(super) fn error(&self, status: Status, what: &str) -> Error {
        Error::new(kind(status), format!("{what}: {}", self.words(status)))
    }

    /// Returns what the library says of a status.
    pub(super) fn words(&self, status: Status) -> String {
        // SAFETY: takes any number and returns a string that is constant or of this thread.
        let words = unsafe { (self.functions.ucs_status_string)(status) };
        if words.is_null() {
            return format!("status {status}");
        }
        // SAFETY: the string ends with a zero and is copied before the thread calls again.
        unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
    }

    /// Returns the error of a status that is one.
    pub(super) fn check(&self, status: Status, what: &str) -> Result<()> {
        if status == sys::OK { Ok(()) } else { Err(self.error(status, what)) }
    }
}

fn kind(status: Status) -> ErrorKind {
    match status {
        sys::ERR_UNREACHABLE => ErrorKind::Unreachable,
        sys::ERR_NO_MEMORY => ErrorKind::Overloaded,
        sys::ERR_CANCELED
        | sys::ERR_TIMED_OUT
        | sys::ERR_REJECTED
        | sys::ERR_NOT_CONNECTED
        | sys::ERR_CONNECTION_RESET
        // Failures of links and of endpoints.
        | sys::ERR_ENDPOINT_LAST..=sys::ERR_LINK_FIRST
        // A connection of TCP that breaks while it is written.
        | sys::ERR_IO_ERROR => ErrorKind::Disconnected,
        _ => ErrorKind::Internal,
    }
}

fn version(functions: &Functions) -> Version {
    let mut version = Version(0, 0, 0);
    let Version(major, minor, release) = &mut version;
    // SAFETY: writes three numbers.
    unsafe { (functions.ucp_get_version)(major, minor, release) };
    version
}

/// The signals of crashes, which UCX takes for itself while it is loaded: they are the process's.
struct Signals([(c_int, Option<libc::sigaction>); 4]);

impl Signals {
    fn save() -> Self {
        let signals = [libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE];
        Self(signals.map(|signal| (signal, handler(signal))))
    }

    fn restore(self) {
        for (signal, before) in self.0 {
            let (Some(before), Some(after)) = (before, handler(signal)) else { continue };
            if before.sa_sigaction != after.sa_sigaction {
                // SAFETY: sets what the process had set before.
                unsafe { libc::sigaction(signal, &raw const before, ptr::null_mut()) };
            }
        }
    }
}

/// Returns what the process does on a signal.
fn handler(signal: c_int) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: asks only; writes the action if it returns 0.
    let outcome = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: as above.
    (outcome == 0).then(|| unsafe { action.assume_init() })
}

/// Returns an error in its own words and those of what caused it.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    words
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The first with all functions of the table.
const OLDEST: Version = Version(1, 13, 0);

/// The oldest that was tried and found without the faults of 1.13: what lies between was not tried,
/// and is taken for no better.
const SOUND: Version = Version(1, 22, 0);

/// The first that takes settings of a transport by the names that they have in the environment.
const PREFIXED: Version = Version(1, 17, 0);
