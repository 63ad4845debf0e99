//! What a peer is and offers, as its metadata says.

pub(crate) mod metadata;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::descriptor::{BlockIndices, BlockLayout, Ranges, RemoteDescriptor};
use crate::error::Result;
use crate::memory::{MemoryKind, Token};

/// A peer as loaded from its metadata; cheap to clone.
#[derive(Debug, Clone)]
pub struct RemoteAgent {
    pub(crate) address: Arc<PeerAddress>,
    pub(crate) regions: Arc<[RemoteRegion]>,
}

/// Who a peer is and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerAddress {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) fabric: Option<u64>,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) shm: Option<ShmAddress>,
    /// The address of its UCX worker.
    pub(crate) ucx: Option<Bytes>,
}

impl Hash for PeerAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // A random number: the rest tells hardly any two apart.
        state.write_u64(self.incarnation);
    }
}

/// Where processes of its host find a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShmAddress {
    /// The same for processes of one running kernel.
    pub(crate) host: u64,
    pub(crate) socket: u64,
}

/// A region of a peer.
#[derive(Clone)]
pub struct RemoteRegion {
    pub(crate) peer: Arc<PeerAddress>,
    pub(crate) id: u64,
    pub(crate) token: Token,
    pub(crate) len: u64,
    pub(crate) kind: MemoryKind,
}

impl RemoteAgent {
    /// Returns the peer's name.
    pub fn name(&self) -> &str {
        &self.address.name
    }

    /// Returns the peer's incarnation: another one is another process.
    pub fn incarnation(&self) -> u64 {
        self.address.incarnation
    }

    /// Returns the regions that the metadata names, in its order.
    pub fn regions(&self) -> &[RemoteRegion] {
        &self.regions
    }
}

impl RemoteRegion {
    /// Returns the number of the region, which is its own at its owner's agent.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the size of the region in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns what the region is made of, as its owner says.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Tells whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tells whether the owner grants writing, until the grant expires.
    pub fn is_writable(&self) -> bool {
        self.token.is_writable
    }

    /// Describes ranges of (offset, length) bytes, in the order they are to be used.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds) naming the first range that does
    /// not lie inside.
    pub fn descriptor(
        &self,
        ranges: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<RemoteDescriptor> {
        Ok(self.describe(Ranges::list(ranges, self.len)?))
    }

    /// Describes blocks of a layout: a run of them, as `0..1000`, or a `Vec` of indices in the order
    /// they are to be used, which takes 4 bytes for each.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds) naming a block that does not lie
    /// inside.
    pub fn blocks(
        &self,
        layout: BlockLayout,
        indices: impl Into<BlockIndices>,
    ) -> Result<RemoteDescriptor> {
        Ok(self.describe(Ranges::blocks(layout, indices.into(), self.len)?))
    }

    fn describe(&self, ranges: Ranges) -> RemoteDescriptor {
        let Self { id, token, kind, .. } = *self;
        RemoteDescriptor { peer: Arc::clone(&self.peer), id, token, kind, ranges }
    }
}

impl fmt::Debug for RemoteRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteRegion")
            .field("peer", &self.peer.name)
            .field("id", &self.id)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
