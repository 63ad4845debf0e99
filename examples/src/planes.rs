//! What processes reach each other by: etcd, NATS and TCP.

use std::net::SocketAddr;

use dynamo_core::discovery::EtcdConfig;
use dynamo_core::event_plane::NatsEventPlaneConfig;
use dynamo_core::request_plane::TcpConfig;
use dynamo_core::{Result, Runtime, RuntimeConfig};

/// Returns a runtime that finds others in `etcd`, hears them over `nats`, and is asked at `listen`.
///
/// # Cancel safety
/// Cancel safe; nothing is left connected.
pub async fn runtime(etcd: &str, nats: &str, listen: SocketAddr) -> Result<Runtime> {
    RuntimeConfig::default()
        .with_discovery(EtcdConfig::new([etcd]))
        .with_request_plane(TcpConfig::default().with_listen(listen))
        .with_event_plane(NatsEventPlaneConfig::new(nats))
        .build()
        .await
}

/// Any port of this host, for others on it.
pub const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
