//! Which cached block goes first when room is needed.
//!
//! | policy | first goes | a call costs | memory per block |
//! |---|---|---|---|
//! | [`Lru`] | what was used longest ago | O(1), O(log n) where a block comes late | 16 B |
//! | [`S3Fifo`] | what was never found again, then what was found least | O(1) amortised | 23 to 25 B |
//! | [`CostAware`] | what saves the least time, and was used long ago | O(log n) | 20 B |
//!
//! Memory is counted per entry of the largest number seen, and grows with it; a policy that has seen
//! all its entries allocates nothing. `cargo xtask bench eviction` replays a trace through each.
//!
//! Before any policy comes the [`RetentionPriority`] of a block: a policy orders blocks of one.

mod ages;
mod cost_aware;
mod ghosts;
mod lru;
mod priority;
mod queue;
mod s3_fifo;

use std::fmt;

pub use cost_aware::{BlockCost, CostAware, ModelSize};
pub use lru::Lru;
pub use priority::RetentionPriority;
pub(crate) use priority::{EvictionFactory, Levels};
pub use s3_fifo::S3Fifo;

/// Orders the blocks that may be evicted; pure.
///
/// # Contract
/// - A pool, or a disk tier, offers a block only while nobody uses it and no block there follows it,
///   so whatever is chosen is a leaf: a prefix never goes before what depends on it.
/// - `insert` and `remove` come in pairs per block; `victim` removes what it returns.
/// - An entry names the block it was inserted for until it is removed or chosen; then it may name
///   another.
pub trait Eviction: Send + fmt::Debug + 'static {
    /// Adds a block that may be evicted from now on.
    fn insert(&mut self, block: EntryId, usage: Use);

    /// Takes back a block: it is in use again, or something follows it.
    fn remove(&mut self, block: EntryId);

    /// Chooses the block to evict, and removes it; `None` if there is none.
    fn victim(&mut self) -> Option<EntryId>;

    /// Returns what compares the next victims of several instances of one policy, of which the
    /// smallest goes first; `None` if there is none.
    ///
    /// It is below 2^62: larger ones count as that.
    fn rank(&self) -> Option<u64>;
}

/// Names a block to its policy: small, dense, and used again once the block is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub(crate) u32);

impl EntryId {
    /// Returns the entry of that number, which is below [`EntryId::COUNT_MAX`].
    ///
    /// A policy keeps memory for all numbers up to the largest it has seen.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Returns its number.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// How many entries a policy can tell apart.
    pub const COUNT_MAX: u32 = u32::MAX - 2;
}

/// What a policy may know of a block that has just become evictable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Use {
    /// The first 8 bytes of its identity: it is known again after it was evicted.
    pub hash: u64,
    /// How many blocks stand before it in its sequence.
    pub depth: u32,
    /// How often it was found since it was registered, or a block behind it that kept it.
    pub uses: u32,
    /// When it was used last: a count of uses, which blocks of one batch may share.
    pub last_use: u64,
}

impl Use {
    /// Describes a block by its fields, in their order.
    pub const fn new(hash: u64, depth: u32, uses: u32, last_use: u64) -> Self {
        Self { hash, depth, uses, last_use }
    }
}

#[cfg(test)]
mod tests;
