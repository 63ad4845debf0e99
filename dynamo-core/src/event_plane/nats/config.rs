use crate::error::{Error, Result};
use crate::nats::{self, NatsAccess};
use crate::protocol::InstanceId;

/// How NATS is used.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsEventPlaneConfig {
    /// How NATS is reached.
    pub access: NatsAccess,
    /// What all subjects start with: `[a-z0-9_-]+`.
    #[serde(default = "nats::default_root")]
    pub root: String,
    /// Events that wait for the connection, and per listener for their reader; more are lost.
    #[serde(default = "backlog_max")]
    pub backlog_max: usize,
    /// Who publishes. A name that outlives a restart lets listeners see the restart as a gap; no
    /// two processes may have it at once. Without one, each start is another publisher.
    #[serde(default)]
    pub publisher: Option<InstanceId>,
}

impl NatsEventPlaneConfig {
    /// Uses NATS as `access` says, or at a URL.
    pub fn new(access: impl Into<NatsAccess>) -> Self {
        let (root, backlog_max) = (nats::default_root(), backlog_max());
        Self { access: access.into(), root, backlog_max, publisher: None }
    }

    /// Starts all subjects with `root`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = root.into();
        self
    }

    /// Limits the events that wait.
    #[must_use]
    pub fn with_backlog_max(mut self, backlog_max: usize) -> Self {
        self.backlog_max = backlog_max;
        self
    }

    /// Publishes as `publisher`, after a restart again.
    #[must_use]
    pub fn with_publisher(mut self, publisher: InstanceId) -> Self {
        self.publisher = Some(publisher);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        nats::check_root(&self.root)?;
        if self.backlog_max == 0 {
            return Err(Error::invalid("NATS backlog_max is 0"));
        }
        Ok(())
    }
}

/// What the memory plane allows.
const fn backlog_max() -> usize {
    4096
}
