use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId};
use dynamo_core::{Error, Result};

/// Where a publisher is, and whose events it publishes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VllmConfig {
    /// The instance whose caches the events are of: the one that requests are routed to.
    pub instance: InstanceId,
    /// Where the publisher is, or where it finds us, as vLLM writes it: `tcp://10.0.0.7:5557`,
    /// `tcp://*:5557` to be found at any address of this machine, or `ipc:///path`.
    pub endpoint: String,
    /// Where the publisher repeats what was lost (vLLM's `replay_endpoint`); `None` if it does not.
    pub replay_endpoint: Option<String>,
    /// What the topic of messages has to begin with; all do with the empty one.
    pub topic: String,
    /// The tenant and the model that the engine serves, as requests name them.
    pub namespace: CacheNamespace,
    /// Tokens per block of the requests' hashes; the engine's own may be larger or smaller.
    pub block_size: BlockSize,
    /// The rank of messages that say none.
    pub rank: u32,
    /// The first epoch of the events that come out. Who follows an instance anew, over a router
    /// that has heard of it already, as a [restored](crate::KvRouter::restore) one has, takes a
    /// larger one.
    pub epoch: u64,
    /// Bytes that a message may have.
    pub message_bytes_max: usize,
    /// Blocks of the engine that are remembered per rank; what is more is left out.
    pub blocks_max: usize,
    /// Silence after which the publisher is asked for a sign of life. The connection is given up
    /// after three times as long, if the publisher knows such signs.
    pub heartbeat: Duration,
    /// How long the publisher may take to greet, and for all of a replay.
    pub answer_max: Duration,
}

impl VllmConfig {
    /// Follows the publisher of `instance` at `endpoint`, which has the whole cache of `namespace`.
    pub fn new(
        instance: InstanceId,
        endpoint: impl Into<String>,
        namespace: CacheNamespace,
        block_size: BlockSize,
    ) -> Self {
        Self {
            instance,
            endpoint: endpoint.into(),
            replay_endpoint: None,
            topic: String::new(),
            namespace,
            block_size,
            rank: 0,
            epoch: 0,
            message_bytes_max: 16 << 20,
            blocks_max: 4 << 20,
            heartbeat: Duration::from_secs(10),
            answer_max: Duration::from_secs(10),
        }
    }

    /// Asks for what was lost at `endpoint`.
    #[must_use]
    pub fn with_replay(mut self, endpoint: impl Into<String>) -> Self {
        self.replay_endpoint = Some(endpoint.into());
        self
    }

    /// Takes only messages whose topic begins with `topic`.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = topic.into();
        self
    }

    /// Takes messages that say no rank for those of `rank`.
    #[must_use]
    pub fn with_rank(mut self, rank: u32) -> Self {
        self.rank = rank;
        self
    }

    /// Begins with `epoch`.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Takes messages of at most so many bytes.
    #[must_use]
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Remembers at most so many of the engine's blocks per rank.
    #[must_use]
    pub fn with_blocks_max(mut self, blocks: usize) -> Self {
        self.blocks_max = blocks;
        self
    }

    /// Asks for a sign of life after such silence.
    #[must_use]
    pub fn with_heartbeat(mut self, silence: Duration) -> Self {
        self.heartbeat = silence;
        self
    }

    /// Waits so long for a greeting, and for a replay.
    #[must_use]
    pub fn with_answer_max(mut self, time: Duration) -> Self {
        self.answer_max = time;
        self
    }
}

/// A place of ZeroMQ's, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Host and port.
    Tcp(String),
    /// The path of a socket.
    Ipc(String),
}

impl Place {
    pub(super) fn parse(endpoint: &str) -> Result<Self> {
        if let Some(address) = endpoint.strip_prefix("tcp://") {
            let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if matches!(port, Some(Ok(_))) {
                return Ok(Self::Tcp(address.to_owned()));
            }
        }
        if let Some(path) = endpoint.strip_prefix("ipc://").filter(|path| !path.is_empty()) {
            return Ok(Self::Ipc(path.to_owned()));
        }
        Err(Error::invalid(format!("endpoint {endpoint} is no tcp://host:port and no ipc://path")))
    }

    /// Returns the address to listen at.
    pub(super) fn to_listen(&self) -> Result<String> {
        match self {
            Self::Tcp(address) => Ok(address
                .strip_prefix("*:")
                .map_or_else(|| address.clone(), |port| format!("0.0.0.0:{port}"))),
            // Who publishes at a path binds it.
            Self::Ipc(path) => Err(Error::invalid(format!("ipc://{path} is not listened at"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_those_of_zeromq_and_all_else_is_refused() {
        let tcp = |address: &str| Some(Place::Tcp(address.to_owned()));
        for (endpoint, expected) in [
            ("tcp://10.0.0.7:5557", tcp("10.0.0.7:5557")),
            ("tcp://*:5557", tcp("*:5557")),
            ("tcp://[::1]:5557", tcp("[::1]:5557")),
            ("ipc:///run/kv", Some(Place::Ipc("/run/kv".into()))),
            ("ipc://", None),
            ("tcp://host", None),
            ("tcp://host:70000", None),
            ("inproc://kv", None),
            ("", None),
        ] {
            assert_eq!(Place::parse(endpoint).ok(), expected, "{endpoint}");
        }
        assert_eq!(Place::Tcp("*:7".into()).to_listen().unwrap(), "0.0.0.0:7");
    }
}
