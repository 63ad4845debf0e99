use std::time::Duration;

use super::super::remote::REQUESTS_MAX;
use crate::nats::{self, NatsAccess};
use crate::wire::codec::Codec;
use crate::wire::link;
use crate::wire::session::Limits;

/// How the plane is set up.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsRequestPlaneConfig {
    /// How NATS is reached.
    pub access: NatsAccess,
    /// What all subjects start with: `[a-z0-9_-]+`; the same for all who call each other.
    #[serde(default = "nats::default_root")]
    pub root: String,
    /// What a process allows each peer. By default a peer may be silent for ten seconds, so that
    /// streams outlive a server of NATS that restarts.
    #[serde(default = "limits", deserialize_with = "LimitsOverNats::deserialize")]
    pub limits: Limits,
    /// Requests of others that run at once, over all links: they share it equally, and each has
    /// one at least.
    #[serde(default = "requests_max")]
    pub requests_max: u32,
    /// How the requests of this plane and their answers are encoded; whoever serves follows.
    #[serde(default)]
    pub codec: Codec,
}

impl NatsRequestPlaneConfig {
    /// Uses NATS as `access` says, or at a URL.
    pub fn new(access: impl Into<NatsAccess>) -> Self {
        let (root, limits, codec) = (nats::default_root(), limits(), Codec::default());
        let requests_max = requests_max();
        Self { access: access.into(), root, limits, requests_max, codec }
    }

    /// Starts all subjects with `root`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = root.into();
        self
    }

    /// Encodes requests and their answers by `codec`.
    #[must_use]
    pub fn with_codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Allows a peer as much as `limits` say.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs about so many requests of others at once.
    #[must_use]
    pub fn with_requests_max(mut self, requests_max: u32) -> Self {
        self.requests_max = requests_max;
        self
    }
}

fn requests_max() -> u32 {
    REQUESTS_MAX
}

/// What is not said of [`Limits`] is as usual over NATS, not as over TCP.
#[derive(serde::Deserialize)]
#[serde(remote = "Limits", default = "limits", deny_unknown_fields)]
struct LimitsOverNats {
    stream_window: u32,
    connection_window: u32,
    streams_max: u32,
    assembly_bytes_max: usize,
    #[serde(deserialize_with = "crate::time::duration")]
    ping_after: Duration,
    #[serde(deserialize_with = "crate::time::duration")]
    dead_after: Duration,
    #[serde(deserialize_with = "crate::time::duration")]
    idle_after: Duration,
}

fn limits() -> Limits {
    let dead_after = link::Limits::default().dead_after;
    Limits { ping_after: PING_AFTER, dead_after, ..Limits::default() }
}

/// As over TCP: a peer that died is asked for after a second of silence, and NATS says then that
/// nobody listens.
const PING_AFTER: Duration = Duration::from_secs(1);
