use std::path::PathBuf;

use super::library::Library;
use super::worker::Setting;
use crate::error::Result;

/// How an agent uses UCX.
///
/// UCX itself reads the process's `UCX_` variables; what is set here goes before them. Without RDMA,
/// `UCX_MEM_MMAP_HOOK_MODE=none` spares it from rewriting the process's `mmap` and its like to keep
/// track of registered memory: from UCX 1.22 on, the first agent starts 0.4 s sooner.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UcxConfig {
    /// The library: a name that the loader looks for, or a path.
    pub library: PathBuf,
    /// The transports that messages may take, as in `UCX_TLS`; UCX's own choice if `None`.
    pub transports: Option<String>,
    /// The network devices that may be used, as in `UCX_NET_DEVICES`; all if `None`.
    pub devices: Option<String>,
    /// Whether peers access each other's memory by CMA or RDMA once the owner has granted it; from
    /// UCX 1.22 on. Otherwise messages carry all data.
    pub one_sided: bool,
}

impl Default for UcxConfig {
    fn default() -> Self {
        Self {
            library: PathBuf::from("libucp.so.0"),
            transports: None,
            devices: None,
            one_sided: true,
        }
    }
}

impl UcxConfig {
    /// Loads the library, as an agent does, and returns its version: major, minor, release.
    ///
    /// Fails with [`BackendUnavailable`](crate::ErrorKind::BackendUnavailable) if it cannot be loaded,
    /// or is older than 1.13.
    pub fn library_version(&self) -> Result<(u32, u32, u32)> {
        Library::open(&self.library).map(|library| library.version().parts())
    }

    /// Loads the library from `path`.
    #[must_use]
    pub fn with_library(mut self, path: impl Into<PathBuf>) -> Self {
        self.library = path.into();
        self
    }

    /// Limits the transports that messages may take.
    #[must_use]
    pub fn with_transports(mut self, transports: impl Into<String>) -> Self {
        self.transports = Some(transports.into());
        self
    }

    /// Limits the network devices that may be used.
    #[must_use]
    pub fn with_devices(mut self, devices: impl Into<String>) -> Self {
        self.devices = Some(devices.into());
        self
    }

    /// Lets peers access memory by CMA or RDMA, or not.
    #[must_use]
    pub fn with_one_sided(mut self, one_sided: bool) -> Self {
        self.one_sided = one_sided;
        self
    }

    /// Returns the settings of a context for one-sided access over `transports`.
    pub(super) fn one_sided(&self, transports: &str) -> Vec<Setting> {
        let mut settings = self.common();
        settings.push(("TLS".to_owned(), transports.to_owned()));
        settings
    }

    /// Returns the settings of the context for messages.
    pub(super) fn messages(&self, library: &Library) -> Vec<Setting> {
        let mut settings = self.common();
        if library.may_abort() {
            // Its assertion is of sends without a copy that end twice when a peer goes; copies make
            // messages slower by a quarter or more.
            settings.push(("ZCOPY_THRESH".to_owned(), "inf".to_owned()));
        }
        // Without the loopback within one worker: it would call back while a message is sent.
        let transports = self.transports.clone().unwrap_or_else(|| "^self".to_owned());
        settings.push(("TLS".to_owned(), transports));
        settings
    }

    fn common(&self) -> Vec<Setting> {
        let mut settings: Vec<Setting> = SETTINGS.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        if let Some(devices) = &self.devices {
            settings.push(("NET_DEVICES".to_owned(), devices.clone()));
        }
        settings
    }
}

/// What both contexts are set to.
const SETTINGS: [(&str, &str); 2] = [
    // Rendezvous makes puts over TCP three times slower, and keeps UCX from using CMA where
    // failures are handled.
    ("RNDV_THRESH", "inf"),
    // A peer that vanishes without a word is noticed within two of these.
    ("KEEPALIVE_INTERVAL", "5s"),
];
