//! What a runtime stands on, as data: the same graph runs in one process or on many machines by
//! configuration alone.
//!
//! A [`RuntimeConfig`] is filled in by code, read from a file ([`from_file`](RuntimeConfig::from_file))
//! or from the environment ([`from_env`](RuntimeConfig::from_env), the one place of this library
//! that looks at it); all keys are in `docs/configuration.md`. What is wrong is named by its key
//! or variable, and no value is ever shown: it may be a password.
//!
//! ```
//! use dynamo_core::config::RuntimeConfig;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dynamo_core::Result<()> {
//! let variables = [("DYNAMO_RUNTIME_REQUEST_PLANE__TCP__LISTEN", "127.0.0.1:0")];
//! let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
//! # #[cfg(feature = "tcp")]
//! let runtime = RuntimeConfig::from_vars(variables)?.build().await?;
//!
//! let error = RuntimeConfig::from_vars([("DYNAMO_RUNTIME_PLANE".into(), "tcp".into())]);
//! assert!(error.unwrap_err().message().contains("DYNAMO_RUNTIME_PLANE is not known"));
//! # Ok(())
//! # }
//! ```

mod read;
mod source;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::Arc;

use serde::Deserialize;

use crate::discovery::{Discovery, MemoryDiscovery, StaticDiscovery};
#[cfg(feature = "etcd")]
use crate::discovery::{EtcdConfig, EtcdDiscovery};
#[cfg(all(feature = "file", unix))]
use crate::discovery::{FileConfig, FileDiscovery};
use crate::error::{Error, Result};
#[cfg(feature = "nats")]
use crate::event_plane;
use crate::event_plane::{EventPlane, MemoryEventPlane};
#[cfg(any(feature = "tcp", feature = "nats"))]
use crate::request_plane;
use crate::request_plane::{MemoryRequestPlane, RequestPlane};
use crate::runtime::Runtime;

/// What a [`Runtime`] stands on; by default all of it is in the memory of the process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RuntimeConfig {
    /// How instances are found.
    pub discovery: DiscoveryConfig,
    /// What carries requests.
    pub request_plane: RequestPlaneConfig,
    /// What carries events.
    pub event_plane: EventPlaneConfig,
}

/// How instances are found.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiscoveryConfig {
    /// In this process only.
    #[default]
    Memory,
    /// By a fixed list.
    Static(StaticDiscovery),
    /// In a folder that the processes of one host share.
    #[cfg(all(feature = "file", unix))]
    File(FileConfig),
    /// In etcd.
    #[cfg(feature = "etcd")]
    Etcd(EtcdConfig),
}

/// What carries requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RequestPlaneConfig {
    /// Calls inside this process.
    #[default]
    Memory,
    /// Connections between processes.
    #[cfg(feature = "tcp")]
    Tcp(Box<request_plane::TcpConfig>),
    /// NATS between processes.
    #[cfg(feature = "nats")]
    Nats(Box<request_plane::NatsRequestPlaneConfig>),
}

/// What carries events.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventPlaneConfig {
    /// Inside this process.
    #[default]
    Memory,
    /// NATS between processes.
    #[cfg(feature = "nats")]
    Nats(Box<event_plane::NatsEventPlaneConfig>),
}

impl RuntimeConfig {
    /// Finds instances by `discovery`.
    #[must_use]
    pub fn with_discovery(mut self, discovery: impl Into<DiscoveryConfig>) -> Self {
        self.discovery = discovery.into();
        self
    }

    /// Carries requests by `request_plane`.
    #[must_use]
    pub fn with_request_plane(mut self, request_plane: impl Into<RequestPlaneConfig>) -> Self {
        self.request_plane = request_plane.into();
        self
    }

    /// Carries events by `event_plane`.
    #[must_use]
    pub fn with_event_plane(mut self, event_plane: impl Into<EventPlaneConfig>) -> Self {
        self.event_plane = event_plane.into();
        self
    }

    /// Starts what is configured.
    ///
    /// Fails like the part that does not start; the message says which.
    ///
    /// # Cancel safety
    /// Dropping the future ends what has been started.
    pub async fn build(self) -> Result<Runtime> {
        let discovery = Box::pin(self.discovery.start()).await;
        let discovery = discovery.map_err(|error| in_part("discovery", error))?;
        let requests = Box::pin(self.request_plane.start()).await;
        let requests = requests.map_err(|error| in_part("request plane", error))?;
        let events = Box::pin(self.event_plane.start()).await;
        let events = events.map_err(|error| in_part("event plane", error))?;
        Ok(Runtime::new(discovery, requests, events))
    }
}

impl DiscoveryConfig {
    #[cfg_attr(
        not(all(feature = "file", unix)),
        expect(clippy::unused_async, reason = "others take their time to start")
    )]
    async fn start(self) -> Result<Arc<dyn Discovery>> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryDiscovery::default()),
            Self::Static(discovery) => Arc::new(discovery),
            #[cfg(all(feature = "file", unix))]
            Self::File(config) => Arc::new(FileDiscovery::start(config).await?),
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => Arc::new(EtcdDiscovery::start(config)?),
        })
    }
}

impl RequestPlaneConfig {
    #[cfg_attr(
        not(any(feature = "tcp", feature = "nats")),
        expect(clippy::unused_async, reason = "others take their time to start")
    )]
    async fn start(self) -> Result<Arc<dyn RequestPlane>> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryRequestPlane::default()),
            #[cfg(feature = "tcp")]
            Self::Tcp(config) => Arc::new(request_plane::TcpRequestPlane::start(*config).await?),
            #[cfg(feature = "nats")]
            Self::Nats(config) => Arc::new(request_plane::NatsRequestPlane::start(*config).await?),
        })
    }
}

impl EventPlaneConfig {
    #[cfg_attr(
        not(feature = "nats"),
        expect(clippy::unused_async, reason = "others take their time to start")
    )]
    async fn start(self) -> Result<Arc<dyn EventPlane>> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryEventPlane::default()),
            #[cfg(feature = "nats")]
            Self::Nats(config) => Arc::new(event_plane::NatsEventPlane::start(*config).await?),
        })
    }
}

/// Says which part of the runtime failed, and why.
fn in_part(part: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("{part}: {}", error.message())).with_source(error)
}

impl From<StaticDiscovery> for DiscoveryConfig {
    fn from(discovery: StaticDiscovery) -> Self {
        Self::Static(discovery)
    }
}

#[cfg(all(feature = "file", unix))]
impl From<FileConfig> for DiscoveryConfig {
    fn from(config: FileConfig) -> Self {
        Self::File(config)
    }
}

#[cfg(feature = "etcd")]
impl From<EtcdConfig> for DiscoveryConfig {
    fn from(config: EtcdConfig) -> Self {
        Self::Etcd(config)
    }
}

#[cfg(feature = "tcp")]
impl From<request_plane::TcpConfig> for RequestPlaneConfig {
    fn from(config: request_plane::TcpConfig) -> Self {
        Self::Tcp(Box::new(config))
    }
}

#[cfg(feature = "nats")]
impl From<request_plane::NatsRequestPlaneConfig> for RequestPlaneConfig {
    fn from(config: request_plane::NatsRequestPlaneConfig) -> Self {
        Self::Nats(Box::new(config))
    }
}

#[cfg(feature = "nats")]
impl From<event_plane::NatsEventPlaneConfig> for EventPlaneConfig {
    fn from(config: event_plane::NatsEventPlaneConfig) -> Self {
        Self::Nats(Box::new(config))
    }
}
