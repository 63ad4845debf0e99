//! Who moves the bytes.

mod fabric;
mod memcpy;
pub(crate) mod tcp;
#[cfg(feature = "ucx")]
mod ucx;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

pub use fabric::MemoryFabric;
#[cfg(feature = "ucx")]
pub use ucx::UcxConfig;

pub(crate) use memcpy::Memcpy;
#[cfg(feature = "ucx")]
pub(crate) use ucx::Ucx;

use crate::error::Result;
use crate::memory::{Lease, RegionKey, Right};
use crate::peer::PeerAddress;
use crate::plan::Chunk;

/// Names a backend in reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// A copy inside the process.
    Memcpy,
    /// A connection to the owner.
    Tcp,
    /// UCX.
    Ucx,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memcpy => "memcpy",
            Self::Tcp => "tcp",
            Self::Ucx => "ucx",
        })
    }
}

/// A planned transfer as a backend runs it.
pub(crate) struct Operation {
    pub(crate) peer: Arc<PeerAddress>,
    /// What is done to the *remote* region: `Read` fills the local one from it.
    pub(crate) right: Right,
    pub(crate) local: Lease,
    pub(crate) remote_id: u64,
    pub(crate) remote_key: RegionKey,
    pub(crate) chunks: Vec<Chunk>,
    /// Fires when the transfer is dropped or its deadline passes.
    pub(crate) cancel: CancellationToken,
}

/// Moves bytes between this agent and its peers.
///
/// # Contract
/// - The owner of the remote region checks incarnation, generation, token, rights and bounds before
///   the first byte moves.
/// - When the future completes, nothing touches either memory on behalf of the operation any more.
/// - Dropping the future, or `cancel`, ends the operation within one chunk.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    fn kind(&self) -> BackendKind;

    /// Runs the operation to its end.
    async fn run(&self, operation: Operation) -> Result<()>;

    /// Delivers a notification; completes when the peer's queue has it.
    async fn notify(&self, peer: &PeerAddress, payload: Bytes) -> Result<()>;
}
