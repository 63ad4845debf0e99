//! Where blocks are kept that memory has no room for.
//!
//! A tier holds copies of full blocks, found by [`BlockIdentity`](crate::BlockIdentity), slower and
//! larger than the tier above it. All tiers promise the same:
//!
//! - What is loaded is what was stored, byte for byte, or it is a miss that says why: a failed, late,
//!   torn or damaged load is never a hit. A [`Loaded`](disk::Loaded) block exists only after its
//!   digest was verified.
//! - A tier is a cache: it may lose any block at any time. What it drops it tells its [`TierSink`].
//! - A block is kept once: storing what is there does nothing, and of two that store the same block
//!   at once one writes.
//! - A block's place is not used anew while something reads or writes there.
//!
//! | tier | what is there |
//! |---|---|
//! | [`disk`] | slots of preallocated files, found again after a restart |

#[cfg(unix)]
pub mod disk;

use crate::identity::BlockKey;

/// What changed in a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierChange {
    /// A block can be found.
    Stored(BlockKey),
    /// A block cannot be found any more: it was evicted or removed, or is damaged.
    Removed(BlockKey),
    /// No block can be found any more.
    Cleared,
}

/// Where a tier says what changed in it.
///
/// It is called in the order of the changes, under the tier's lock: it must neither block, nor
/// panic, nor call the tier.
pub trait TierSink: Send + 'static {
    /// Takes the next change.
    fn publish(&self, change: TierChange);
}

impl<F: Fn(TierChange) + Send + 'static> TierSink for F {
    fn publish(&self, change: TierChange) {
        self(change);
    }
}
