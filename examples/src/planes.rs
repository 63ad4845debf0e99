//! What processes reach each other by: etcd, NATS and TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dynamo_core::discovery::EtcdConfig;
use dynamo_core::event_plane::NatsEventPlaneConfig;
use dynamo_core::request_plane::TcpConfig;
use dynamo_core::{Result, Runtime, RuntimeConfig};

/// Returns a runtime that finds others in `etcd`, hears them over `nats`, and is asked as `tcp` says.
///
/// # Cancel safety
/// Cancel safe; nothing is left connected.
pub async fn runtime(etcd: &str, nats: &str, tcp: TcpConfig) -> Result<Runtime> {
    RuntimeConfig::default()
        .with_discovery(EtcdConfig::new([etcd]))
        .with_request_plane(tcp)
        .with_event_plane(NatsEventPlaneConfig::new(nats))
        .build()
        .await
}

/// Returns how to be asked by others on this host.
pub fn on_loopback() -> TcpConfig {
    TcpConfig::default().with_listen(LOOPBACK)
}

/// Any port of this host, for others on it.
pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
