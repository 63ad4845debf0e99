//! Where blocks are kept that memory has no room for.
//!
//! A [`Tier`] holds copies of full blocks, found by [`BlockIdentity`], slower and larger than the
//! tier above it.
//!
//! | tier | what is there |
//! |---|---|
//! | [`disk`] | slots of preallocated files, found again after a restart |
//! | `object` | objects of a store that many processes share (feature `object-store`) |
//! | [`peer`] | memory of another process, and the tiers that it has below |
//!
//! Below a pool of device memory it is a pool of host memory, and those are below that one:
//! [`TierConfig::host`](crate::TierConfig::host).

mod block;
#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
#[cfg(unix)]
pub mod disk;
mod error;
mod host;
#[cfg(feature = "object-store")]
pub mod object;
mod pace;
pub mod peer;
mod stats;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::protocol;

pub use block::{Loaded, Outgoing, Stored, digest};
pub use error::{Damage, Miss, MissReason, StoreError};
pub(crate) use host::HostTier;
pub use pace::{Pace, Timing};
pub use stats::TierStats;

use crate::block::MutableBlock;
#[cfg(doc)]
use crate::identity::BlockIdentity;
use crate::identity::BlockKey;

/// Keeps copies of blocks below memory.
///
/// # Contract
/// - What is loaded is what was stored, byte for byte, or it is a [`Miss`] that says why: a failed,
///   late, torn or damaged load is never a hit. A [`Loaded`] block exists only after its digest was
///   verified, or as a copy of one that a manager of host memory shares.
/// - A tier is a cache: it may lose any block at any time. What it drops it tells its [`TierSink`].
/// - A block is kept once: storing what is there does nothing. Of two that store the same block at once
///   both succeed; both may have written it, where the tier cannot tell before.
/// - What is removed, or cleared, is not there when that has ended, nor said to be, unless it was in use.
///   A store of it that is under way either ends with [`Removed`](StoreError::Removed) or comes behind;
///   a load of it that is under way may be a hit, and does not make it known again.
/// - A block's place is not used anew while something reads or writes there.
/// - Outcomes are in the order of what they are of, one each. A tier bounds by itself how much it
///   has in flight, and orders a batch as suits its device; whoever calls bounds how much waits.
/// - Futures may be dropped. A block whose store had begun by then is there, whole, or is not; one whose
///   store had not begun is not. Memory is freed as soon as nothing reads or writes it any more, which
///   [`shutdown`](Self::shutdown) waits for.
/// - After [`shutdown`](Self::shutdown) loads are misses and stores fail, at once.
///
/// With the feature `test-util`, `tier::conformance` checks it.
#[async_trait]
pub trait Tier: fmt::Debug + Send + Sync + 'static {
    /// Returns what events call this tier.
    fn kind(&self) -> protocol::Tier;

    /// Tells `sink` what changes from now on, instead of any sink before, and returns the keys of
    /// the blocks that are there, parents before what follows them as far as that is known.
    ///
    /// A tier that cannot list its blocks returns those that it knows of.
    fn watch(&self, sink: Box<dyn TierSink>) -> Vec<BlockKey>;

    /// Returns how many of the first keys can be found without a gap.
    ///
    /// It may be wrong: only a load tells.
    async fn match_prefix(&self, keys: &[BlockKey]) -> usize;

    /// Stores blocks, each of which is held until it is there or has failed.
    async fn store(&self, blocks: Vec<(BlockKey, Outgoing)>) -> Vec<Result<Stored, StoreError>>;

    /// Fills each target with its block.
    async fn load(
        &self,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<Result<Loaded<MutableBlock>, Miss<MutableBlock>>>;

    /// Removes blocks; returns how many of them were there.
    ///
    /// One that cannot be removed fails the call once the others were tried.
    async fn remove(&self, keys: &[BlockKey]) -> dynamo_core::Result<usize>;

    /// Removes all blocks.
    async fn clear(&self) -> dynamo_core::Result<()>;

    /// Returns how long a load of so many blocks is likely to take, as far as loads were measured.
    ///
    /// Nobody loads what seems to take too long, so a tier must not keep to a figure that no load
    /// confirms: [`Pace`] is such an average.
    fn estimate(&self, blocks: usize) -> Duration;

    /// Returns what is there and what happened so far.
    fn stats(&self) -> TierStats;

    /// Refuses what comes from now on and waits until what is under way has ended.
    ///
    /// Fails with [`DeadlineExceeded`](dynamo_core::ErrorKind::DeadlineExceeded) if that takes longer
    /// than `within`.
    async fn shutdown(&self, within: Duration) -> dynamo_core::Result<()>;
}

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
