//! The KV block manager: who holds which block, in which state, and how it gets to a peer.
//!
//! A block's states are types: a [`MutableBlock`] is written, a [`CompleteBlock`] is full, a
//! [`RegisteredBlock`] is shared and immutable. Bytes become readable by others in one way only,
//! through [`BlockManager::register`], so a failed or late load is a miss, never a hit.
//!
//! ```
//! use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
//! use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
//! let worker = WorkerId::new(InstanceId(1));
//! let manager = BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))?;
//!
//! let prompt: Vec<u32> = (0..16).collect();
//! let sequence = TokenSequence::new(&CacheNamespace::default(), BlockSize::DEFAULT, &prompt);
//! let mut block = manager.allocate(1)?.remove(0);
//! block[0] = 42;
//! drop(manager.register(block.complete(sequence.keys()[0].clone())));
//!
//! let found = manager.match_prefix(sequence.keys());
//! assert_eq!(found[0][0], 42);
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms
//! | room | what is there |
//! |---|---|
//! | [`manager`] | the front door: allocate, match, register |
//! | [`block`] | the states of a block |
//! | [`sequence`], [`identity`] | tokens → keys of blocks |
//! | [`layout`] | shape → byte ranges |
//! | [`group`] | models whose layers attend differently: a manager for each group of layers |
//! | `pool`, [`evict`] | the state, in shards behind short locks; which cached block goes first |
//! | [`tier`] | blocks below memory: on a disk, in an object store, in another process |
//! | `below` | how a manager's blocks go down to tiers and come up; from device memory to host memory too |
//! | [`handoff`] | stage for a peer under a hold; reserve; pull; settle |
//! | [`metrics`] | a worker's blocks, transfers and hand-offs on the page of its runtime |
#![forbid(unsafe_code)]

mod below;
pub mod block;
pub mod evict;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzz;
pub mod group;
pub mod handoff;
pub mod identity;
pub mod layout;
pub mod manager;
pub mod metrics;
mod pool;
mod random;
pub mod sequence;
pub mod tier;
mod time;

pub use below::{Acquired, Offload, Sources, TierConfig, TierReport, TiersConfig, TiersStats};
pub use block::{
    BlockRun, CompleteBlock, DeviceBlock, MutableBlock, PartialBlock, RegisteredBlock, WeakBlock,
};
pub use group::{Attention, BlockGroups};
pub use handoff::{Handoff, HandoffConfig, HandoffStats, Pulled, Settlement, Staged};
pub use identity::{BlockIdentity, BlockKey};
pub use layout::{BlockLayout, DType, LayoutError};
pub use manager::{
    AllocateError, BlockManager, EventSink, Limit, ManagerConfig, PoolStats, SnapshotEngine,
};
pub use pool::BlockMemory;
pub use sequence::TokenSequence;
