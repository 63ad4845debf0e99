//! Which cached block goes first when room is needed.

mod lru;

use std::fmt;

pub use lru::Lru;

use crate::identity::BlockIdentity;

/// Orders the blocks that may be evicted; pure.
///
/// # Contract
/// - The pool offers a block only while nobody uses it and no cached block follows it, so whatever
///   is chosen is a leaf: a prefix never goes before what depends on it.
/// - `insert` and `remove` come in pairs per block; `victim` removes what it returns.
pub trait Eviction: Send + fmt::Debug + 'static {
    /// Adds a block that may be evicted; `last_use` grows with each use of any block.
    fn insert(&mut self, block: BlockIdentity, last_use: u64);

    /// Takes back a block: it is in use again, or something follows it.
    fn remove(&mut self, block: BlockIdentity, last_use: u64);

    /// Chooses the block to evict; `None` if there is none.
    fn victim(&mut self) -> Option<BlockIdentity>;
}
