use std::path::PathBuf;

use super::library::Library;
use super::protocol::RailKind;
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

    /// Returns the settings of a context for one-sided access.
    pub(super) fn one_sided(&self, rail: RailKind) -> Vec<Setting> {
        let mut settings = self.common();
        settings.push(unreleased_max());
        match rail {
            RailKind::Cma => settings.push(Setting::new("TLS", "cma,posix,sysv")),
            RailKind::Rdma => {
                settings.push(Setting::new("TLS", "ib"));
                // A host with several network cards has each piece go over two of them, where UCX
                // by itself takes one.
                settings.push(Setting::wish("MAX_RMA_RAILS", "2"));
            }
        }
        settings
    }

    /// Returns the settings of the context for messages.
    pub(super) fn messages(&self, library: &Library) -> Vec<Setting> {
        let mut settings = self.common();
        // Otherwise the thread waits until a peer has taken its connection, and UCX keeps the socket of
        // each that is refused at once, as of a peer of this host that is gone.
        settings.push(Setting::new(&library.tcp_setting("CONN_NB"), "y"));
        if library.may_abort() {
            // Its assertion is of sends without a copy that end twice when a peer goes; copies make
            // messages slower by a quarter or more.
            settings.push(Setting::new("ZCOPY_THRESH", "inf"));
        } else {
            settings.push(unreleased_max());
        }
        // Without the loopback within one worker: it would call back while a message is sent.
        let transports = self.transports.as_deref().unwrap_or("^self");
        settings.push(Setting::new("TLS", transports));
        settings
    }

    fn common(&self) -> Vec<Setting> {
        let mut settings = vec![
            // Rendezvous makes puts over TCP three times slower, and keeps UCX from using CMA where
            // failures are handled.
            Setting::new("RNDV_THRESH", "inf"),
            // A peer that vanishes without a word is noticed within two of these.
            Setting::new("KEEPALIVE_INTERVAL", "5s"),
        ];
        settings
            .extend(self.devices.as_deref().map(|devices| Setting::new("NET_DEVICES", devices)));
        settings
    }
}

/// Bounds the bytes of memory that was freed and that UCX still holds registered: without, they grow
/// for as long as regions come and go. Versions that send copies register none, and complain of it on
/// the process's output.
fn unreleased_max() -> Setting {
    Setting::wish("RCACHE_MAX_UNRELEASED", "1024")
}

#[cfg(test)]
mod tests {
    use super::super::inbox::Inbox;
    use super::super::sys;
    use super::super::worker::Worker;
    use super::*;
    use crate::ErrorKind;
    use crate::conformance::unless_ucx_is_missing;

    #[test]
    fn a_setting_that_this_ucx_does_not_know_is_no_failure_unless_it_is_needed() {
        let opened = Library::open(&UcxConfig::default().library);
        let Some(library) = unless_ucx_is_missing("settings of UCX", opened) else { return };
        let start = |settings: &[Setting]| {
            let inbox = Inbox::new(library.functions().ucp_request_free);
            Worker::new(&library, sys::FEATURE_AM, settings, &inbox).map(drop)
        };
        // Nor is a value that it does not know.
        start(&[Setting::wish("KEEPALIVE_INTERVAL", "soon")]).unwrap();
        let error = start(&[Setting::new("KEEPALIVE_INTERVAL", "soon")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        start(&[Setting::wish("OF_NO_VERSION", "1")]).unwrap();
    }

    #[test]
    fn every_context_that_registers_memory_lets_go_of_what_was_freed() {
        let opened = Library::open(&UcxConfig::default().library);
        let Some(library) = unless_ucx_is_missing("settings of UCX", opened) else { return };
        let config = UcxConfig::default();
        let rails = [RailKind::Cma, RailKind::Rdma].map(|rail| config.one_sided(rail));
        assert!(rails.iter().all(|settings| settings.contains(&unreleased_max())));
        let messages = config.messages(&library);
        assert_ne!(messages.contains(&unreleased_max()), library.may_abort());
    }
}
