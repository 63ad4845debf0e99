use std::fmt;

use bytes::Bytes;
use dynamo_core::Result;
use dynamo_core::protocol::{SequenceHash, Tier};
use serde::{Deserialize, Serialize};

use crate::identity::BlockKey;
use crate::random::random;

/// What a [`PeerTier`](super::PeerTier) asks an [`Owner`](super::Owner).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request(pub(super) Ask);

/// What an [`Owner`](super::Owner) answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer(pub(super) Told);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Ask {
    /// How many of the first blocks are there?
    Match { fingerprint: u64, keys: Vec<BlockKey> },
    /// To read blocks.
    Borrow(Wanted),
    /// To write blocks that are not there.
    Reserve(Wanted),
    /// What was to be written has been; these are the digests.
    Commit { lease: LeaseId, digests: Vec<Digest> },
    /// What was to be read has been, or nothing will be written after all.
    Release(LeaseId),
    /// Removes blocks.
    Remove { fingerprint: u64, keys: Vec<BlockKey> },
    /// Removes all blocks.
    Clear { fingerprint: u64 },
    /// What is there, and what changes; something is said so often at least.
    Watch { fingerprint: u64, beat_ms: u64 },
}

/// Blocks of one layout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// Who asks: a random number.
    pub(super) client: u64,
    pub(super) fingerprint: u64,
    pub(super) keys: Vec<BlockKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Told {
    Matched(u32),
    /// The digest of each block that is lent.
    Lent {
        blocks: Vec<Option<Digest>>,
        lent: Option<Lent>,
    },
    /// What becomes of each block.
    Reserved {
        blocks: Vec<Place>,
        lent: Option<Lent>,
    },
    /// Whether each block had its digest.
    Committed(Vec<bool>),
    Released,
    /// No lease is about more blocks.
    TooMany(u32),
    /// So many were there.
    Removed(u32),
    Cleared,
    /// What is there, in parts, and the number of the change that comes next; `epoch` is the owner's life.
    There {
        epoch: u64,
        seq: u64,
        blocks: Vec<(BlockKey, Tier)>,
        is_last: bool,
    },
    Changed {
        seq: u64,
        change: Change,
    },
    /// Nothing has changed.
    Quiet,
}

/// What changed at the owner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Change {
    Stored(Vec<BlockKey>, Tier),
    Removed(Vec<SequenceHash>, Tier),
    Cleared,
}

/// A region of the owner, for a while: the blocks that are lent, one after another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Lent {
    pub(super) lease: LeaseId,
    pub(super) ttl_ms: u64,
    pub(super) metadata: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// The block is there.
    Present,
    /// It is to be written.
    Open,
    /// There is no room for it.
    None,
}

pub(super) type Digest = [u8; 32];

/// Names one lease; unguessable, so that nobody else can end it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct LeaseId([u8; 16]);

impl LeaseId {
    pub(super) fn random() -> Result<Self> {
        random().map(Self)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As much as tells leases apart, and ends none.
        write!(f, "LeaseId({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// Blocks in one part of what is there, and in one change.
pub(super) const PART_BLOCKS: usize = 256;

/// Keys in one question: within a second of a network's time, and beyond any prompt.
pub(super) const MATCH_MAX: usize = 8192;
