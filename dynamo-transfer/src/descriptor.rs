//! Byte ranges of a region, checked once.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{RegionKey, RegionTable};

/// Ranges of a region of this agent.
#[derive(Clone)]
pub struct LocalDescriptor {
    pub(crate) table: Arc<RegionTable>,
    pub(crate) id: u64,
    pub(crate) ranges: Ranges,
}

/// Ranges of a region of a peer.
#[derive(Clone)]
pub struct RemoteDescriptor {
    pub(crate) peer: Arc<crate::peer::PeerAddress>,
    pub(crate) id: u64,
    pub(crate) key: RegionKey,
    pub(crate) ranges: Ranges,
}

/// (offset, length) pairs that lie inside their region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges {
    ranges: Vec<(u64, u64)>,
    total: u64,
}

impl Ranges {
    pub(crate) fn new(
        ranges: impl IntoIterator<Item = (u64, u64)>,
        region_len: u64,
    ) -> Result<Self> {
        let mut total = 0u64;
        let mut kept = Vec::new();
        for (offset, len) in ranges {
            if offset.checked_add(len).is_none_or(|end| end > region_len) {
                let message =
                    format!("range {offset}+{len} lies outside a region of {region_len} bytes");
                return Err(Error::new(ErrorKind::OutOfBounds, message));
            }
            total = total.checked_add(len).ok_or_else(|| {
                Error::new(ErrorKind::InvalidArgument, "ranges of more than 2^64 bytes")
            })?;
            if len > 0 {
                kept.push((offset, len));
            }
        }
        Ok(Self { ranges: kept, total })
    }

    pub(crate) fn as_slice(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

impl fmt::Debug for LocalDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalDescriptor")
            .field("region", &self.id)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RemoteDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key grants access: it stays out of logs.
        f.debug_struct("RemoteDescriptor")
            .field("peer", &self.peer.name)
            .field("region", &self.id)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}
