use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::backend::MemoryFabric;
#[cfg(feature = "ucx")]
use crate::backend::UcxConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::vocabulary::NAME_BYTES_MAX;

/// How an agent is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentConfig {
    /// The name that peers see; at most 255 bytes.
    pub name: String,
    /// The fabric that reaches agents of this process; none if `None`.
    pub fabric: Option<MemoryFabric>,
    /// Where to serve peers over TCP; nowhere if `None`. Port 0 takes a free one.
    pub tcp_listen: Option<SocketAddr>,
    /// Where peers find `tcp_listen`, if that is not the address they reach it by; port 0 stands
    /// for the port listened on. Has to be given when listening on a wildcard address.
    pub tcp_advertise: Option<SocketAddr>,
    /// Connections to each peer that transfers are spread over; at most 64.
    pub tcp_lanes: NonZeroUsize,
    /// Whether agents in other processes of this host may reach the memory that is registered, where
    /// they hold a grant: by mapping what is [shared](crate::HostBuffer::shared), else through the
    /// kernel, if it lets them. Linux only.
    pub shm: bool,
    /// How to use UCX; not at all if `None`.
    #[cfg(feature = "ucx")]
    pub ucx: Option<UcxConfig>,
    /// Notifications that wait for their reader; senders wait beyond.
    pub notifications_max: usize,
    /// Transfers posted and not settled, and notifications that are being sent; more are refused.
    pub transfers_max: usize,
    /// The most time a transfer takes unless it says otherwise.
    pub transfer_deadline: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: "agent".to_owned(),
            fabric: None,
            tcp_listen: None,
            tcp_advertise: None,
            // One fills a core; a second one still pays on a fast network, more seldom do.
            tcp_lanes: NonZeroUsize::MIN.saturating_add(1),
            // As with TCP, nobody is served who was not asked for.
            shm: false,
            #[cfg(feature = "ucx")]
            ucx: None,
            // Small messages of at most 64 KiB each: 64 MiB in the worst case.
            notifications_max: 1024,
            // Far above the sequences that one worker hands over at once.
            transfers_max: 4096,
            // A gigabyte over a slow network; a stalled peer is noticed earlier.
            transfer_deadline: Duration::from_secs(30),
        }
    }
}

impl AgentConfig {
    /// Names the agent.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Joins a fabric.
    #[must_use]
    pub fn with_fabric(mut self, fabric: MemoryFabric) -> Self {
        self.fabric = Some(fabric);
        self
    }

    /// Serves peers over TCP at `address`.
    #[must_use]
    pub fn with_tcp_listen(mut self, address: SocketAddr) -> Self {
        self.tcp_listen = Some(address);
        self
    }

    /// Tells peers to connect to `address`.
    #[must_use]
    pub fn with_tcp_advertise(mut self, address: SocketAddr) -> Self {
        self.tcp_advertise = Some(address);
        self
    }

    /// Spreads transfers over `lanes` connections to each peer.
    #[must_use]
    pub fn with_tcp_lanes(mut self, lanes: NonZeroUsize) -> Self {
        self.tcp_lanes = lanes;
        self
    }

    /// Serves peers in other processes of this host by sharing memory.
    #[must_use]
    pub fn with_shm(mut self, shm: bool) -> Self {
        self.shm = shm;
        self
    }

    /// Reaches peers, and lets them reach this agent, over UCX.
    #[cfg(feature = "ucx")]
    #[must_use]
    pub fn with_ucx(mut self, ucx: UcxConfig) -> Self {
        self.ucx = Some(ucx);
        self
    }

    /// Limits the notifications that wait for their reader.
    #[must_use]
    pub fn with_notifications_max(mut self, notifications_max: usize) -> Self {
        self.notifications_max = notifications_max;
        self
    }

    /// Limits the transfers that are posted and not settled, with the notifications that are being sent.
    #[must_use]
    pub fn with_transfers_max(mut self, transfers_max: usize) -> Self {
        self.transfers_max = transfers_max;
        self
    }

    /// Limits the time of transfers that do not say otherwise.
    #[must_use]
    pub fn with_transfer_deadline(mut self, deadline: Duration) -> Self {
        self.transfer_deadline = deadline;
        self
    }

    /// Returns where peers find what listens at `bound`, if anything does.
    pub(crate) fn advertised(&self, bound: Option<SocketAddr>) -> Option<SocketAddr> {
        let mut address = self.tcp_advertise.or(bound)?;
        if address.port() == 0 {
            address.set_port(bound.map_or(0, |bound| bound.port()));
        }
        Some(address)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message| Err(Error::new(ErrorKind::InvalidArgument, message));
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return invalid(format!("agent name of {} bytes", self.name.len()));
        }
        if self.notifications_max == 0 || self.transfers_max == 0 {
            return invalid("notifications_max or transfers_max is 0".to_owned());
        }
        if self.tcp_lanes > TCP_LANES_MAX {
            return invalid(format!("tcp_lanes is {}, at most {TCP_LANES_MAX}", self.tcp_lanes));
        }
        match (self.tcp_listen, self.tcp_advertise) {
            (Some(listen), None) if listen.ip().is_unspecified() => invalid(format!(
                "listening on {listen} needs tcp_advertise: no peer can connect there"
            )),
            (_, Some(advertise)) if advertise.ip().is_unspecified() => {
                invalid(format!("tcp_advertise is {advertise}: no peer can connect there"))
            }
            (None, Some(_)) => invalid("tcp_advertise without tcp_listen".to_owned()),
            _ => Ok(()),
        }
    }
}

/// A peer takes 1,024 connections, from all who call it.
const TCP_LANES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_lanes_than_an_agent_may_take_are_refused() {
        let with = |lanes| AgentConfig::default().with_tcp_lanes(lanes).validate();
        with(NonZeroUsize::MIN).unwrap();
        with(NonZeroUsize::new(64).unwrap()).unwrap();
        for lanes in [65, usize::MAX] {
            let error = with(NonZeroUsize::new(lanes).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().contains("at most 64"), "{error}");
        }
    }

    #[test]
    fn the_page_of_configuration_lists_what_there_is() {
        let page = include_str!("../../docs/configuration.md");
        let section = page.split("## Transfer agents").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let mut tables = section.split("Of `UcxConfig`:").map(|table| {
            let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
            rows.map(|row| row.split('`').next().unwrap()).collect::<Vec<_>>()
        });
        let mut listed = tables.next().unwrap();
        listed.retain(|field| cfg!(feature = "ucx") || *field != "ucx");
        assert_eq!(listed, fields(&format!("{:#?}", AgentConfig::default())));
        #[cfg(feature = "ucx")]
        assert_eq!(tables.next().unwrap(), fields(&format!("{:#?}", UcxConfig::default())));
    }

    fn fields(shown: &str) -> Vec<&str> {
        let outer = shown.lines().filter_map(|line| line.strip_prefix("    "));
        let names = outer.filter_map(|line| line.split_once(": "));
        names.map(|(name, _)| name).filter(|name| !name.starts_with(' ')).collect()
    }
}
