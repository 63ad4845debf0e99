//! The blocks of another process: of its memory, and of the tiers that it has below.
//!
//! ```text
//! worker (PeerTier)                             owner (Owner, an engine at an endpoint)
//! load:   Borrow(keys) ───────────────────────► holds the blocks, registers them as a region
//!                      ◄── digests, region ──── for as long as the lease lasts
//!         reads the region, verifies
//!         Release(lease) ─────────────────────► gives them up
//! store:  Reserve(keys) ──────────────────────► allocates, registers a region to be written
//!                      ◄─── places, region ────
//!         writes the region
//!         Commit(lease, digests) ─────────────► revokes, verifies, and only then shares
//! watch:  Watch ──────────────────────────────► lists what it has in memory and in its tiers
//!         tells a sink  ◄──── list, changes ─── and says what changes, numbered
//! ```
//!
//! So that the workers of one host share a host or disk tier: one process is the owner, and the others
//! have a [`PeerTier`] behind their managers as they would have a disk.
//!
//! ```
//! use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
//! use dynamo_core::{Runtime, ServeOptions};
//! use dynamo_kv::tier::peer::{Owner, OwnerConfig, PeerConfig, PeerTier};
//! use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};
//! use dynamo_transfer::{Agent, AgentConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
//! let manager = |id| {
//!     let worker = WorkerId::new(InstanceId(id));
//!     BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))
//! };
//! let runtime = Runtime::in_process();
//! let endpoint = runtime.namespace("demo")?.component("cache")?.endpoint("blocks")?;
//!
//! // The owner; over TCP or shared memory, it is another process.
//! let agent = Agent::start(AgentConfig::default()).await?;
//! let owner = Owner::new(agent.clone(), manager(1)?, OwnerConfig::new(4))?;
//! let served = ServeOptions::default().with_instance(InstanceId(1));
//! let _serving = endpoint.serve_with(owner.clone(), served).await?;
//!
//! // A worker.
//! let here = manager(2)?;
//! let client = endpoint.client().await?;
//! let tier = PeerTier::new(client, InstanceId(1), agent, here.layout(), PeerConfig::default())?;
//! let tokens: Vec<u32> = (0..16).collect();
//! let keys = TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens);
//! let key = keys.keys()[0];
//! let mut block = here.allocate(1)?.remove(0);
//! block.fill(42);
//! let block = here.register(block.complete(key));
//! tier.store(vec![(key, block.into())]).await.remove(0)?;
//!
//! assert_eq!(tier.match_prefix(keys.keys()).await, 1);
//! let target = here.allocate(1)?.remove(0);
//! let loaded = tier.load(vec![(key, target)]).await.remove(0).ok().expect("a hit");
//! assert_eq!(loaded.into_target()[0], 42);
//! # Ok(())
//! # }
//! ```
//!
//! # What a lease is
//! The owner holds what it lends until it is released or committed, or until the lease's time is over,
//! whichever is first: what a client that has died had is back then. A region that is revoked refuses
//! whoever comes late; what is moving at that moment ends by itself, and its memory counts as lent
//! until then ([`Owner::lent_blocks`]). A block that a client writes can be found once it is committed
//! with its digest, and not before.
//!
//! # Who knows what is there
//! A manager above a [`PeerTier`] publishes what the owner has as its worker's blocks of the remote tier,
//! and sends it nothing that it has. The tier asks for a list, then follows the changes; whoever has
//! missed one, fallen behind or heard nothing for too long asks for a list again. An owner that has
//! restarted has a number of its own: what the one before had is cleared first. One that is not found
//! again is cleared too.
//!
//! # Why it is never wrong
//! A digest, keyed with the block's identity, goes with each block by the request plane, and the bytes
//! by the transfer engine: whoever receives them computes it anew. It finds damage and mistakes, not
//! malice: whoever may call the endpoint can store what it likes.
//!
//! # Bounds
//! Blocks lent in all, blocks of a lease, leases of a client and clients that follow ([`OwnerConfig`]);
//! batches under way and times ([`PeerConfig`]). A batch that is too large for a lease is cut; what else
//! is beyond is a miss, or fails. Blocks are there for all: a client may have them removed only if the
//! owner is [set up so](OwnerConfig::with_removable).

mod client;
mod config;
mod feed;
mod follow;
mod holdings;
mod lease;
mod loan;
mod message;
mod moving;
mod owner;
mod reach;
mod stats;

pub use client::PeerTier;
pub use config::{OwnerConfig, PeerConfig};
pub use message::{Answer, Request};
pub(crate) use owner::Counted;
pub use owner::Owner;
pub use stats::OwnerStats;

#[cfg(test)]
mod tests;
