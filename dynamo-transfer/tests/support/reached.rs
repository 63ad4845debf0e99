//! Agents of tests, by backend.

#[cfg(feature = "ucx")]
use dynamo_transfer::UcxConfig;
use dynamo_transfer::{AgentConfig, BackendKind, MemoryFabric};

/// Configures agents that reach each other over one backend alone.
pub(crate) fn reached_over(backend: BackendKind) -> AgentConfig {
    let config = AgentConfig::default();
    match backend {
        BackendKind::Memcpy => config.with_fabric(MemoryFabric::new()),
        BackendKind::Shm => config.with_shm(true),
        #[cfg(feature = "ucx")]
        BackendKind::Ucx => config.with_ucx(UcxConfig::default()),
        BackendKind::Tcp => config.with_tcp_listen(([127, 0, 0, 1], 0).into()),
        other => unreachable!("{other} joins no agents here"),
    }
}
