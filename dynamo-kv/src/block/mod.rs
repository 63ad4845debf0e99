//! The states of a block, as types.
//!
//! ```text
//!           allocate             complete                register
//!   free ────────────► Mutable ───────────► Complete ───────────► Registered ◄──┐
//!    ▲ ▲                 │                     │        (active)      │         │ match_prefix
//!    │ └──────drop───────┴────────drop─────────┘            last drop │         │
//!    │                                                                ▼         │
//!    └───────────────────────────── evict ────────────────────────  cached ─────┘
//! ```
//!
//! The memory itself moves from state to state, so a state that is left cannot be used any more. A
//! [`RegisteredBlock`] guards one block, a [`BlockRun`] many that follow each other. To pin a block is to
//! keep a guard of it: no other word is needed, and nothing evicts it or what stands before it meanwhile.
//! Which of those without a guard go first is a matter of their
//! [priority](crate::evict::RetentionPriority) and of the [policy](crate::evict). What may be done in a
//! state is a matter of its type:
//!
//! ```
//! # use dynamo_kv::{BlockKey, MutableBlock};
//! fn write(mut block: MutableBlock, key: BlockKey) {
//!     block[0] = 1;
//!     let complete = block.complete(key);
//!     drop(complete);
//! }
//! ```
//! A block that was moved into `complete` is gone:
//! ```compile_fail,E0382
//! # use dynamo_kv::{BlockKey, MutableBlock};
//! fn write(mut block: MutableBlock, key: BlockKey) {
//!     let complete = block.complete(key);
//!     block[0] = 1;
//!     drop(complete);
//! }
//! ```
//! A complete block is written no more, as it was before:
//! ```compile_fail,E0608
//! # use dynamo_kv::{BlockKey, MutableBlock};
//! fn write(mut block: MutableBlock, key: BlockKey) {
//!     block[0] = 1;
//!     let mut complete = block.complete(key);
//!     complete[0] = 1;
//!     drop(complete);
//! }
//! ```
//! One that is written has one owner:
//! ```compile_fail,E0599
//! # use dynamo_kv::{BlockKey, MutableBlock};
//! fn write(mut block: MutableBlock, key: BlockKey) {
//!     block[0] = 1;
//!     let complete = block.clone().complete(key);
//!     drop(complete);
//! }
//! ```
//! A registered block is read by many,
//! ```
//! # use dynamo_kv::{BlockManager, CompleteBlock};
//! fn share(manager: &BlockManager, block: CompleteBlock) -> u8 {
//!     let mut registered = manager.register(block);
//!     let other = registered.clone();
//!     registered = other;
//!     registered[0]
//! }
//! ```
//! and written by none:
//! ```compile_fail,E0594
//! # use dynamo_kv::{BlockManager, CompleteBlock};
//! fn share(manager: &BlockManager, block: CompleteBlock) -> u8 {
//!     let mut registered = manager.register(block);
//!     registered[0] = 1;
//!     registered[0]
//! }
//! ```
//! Nor is a block of a run:
//! ```compile_fail,E0594
//! # use dynamo_kv::{BlockManager, CompleteBlock};
//! fn share(manager: &BlockManager, blocks: Vec<CompleteBlock>) -> u8 {
//!     let mut registered = manager.register_all(blocks);
//!     registered[0][0] = 1;
//!     registered[0][0]
//! }
//! ```
//! Bytes are borrowed from the guard, and read no longer than it lives:
//! ```compile_fail,E0505
//! # use dynamo_kv::{BlockManager, CompleteBlock};
//! fn share(manager: &BlockManager, blocks: Vec<CompleteBlock>) -> u8 {
//!     let registered = manager.register_all(blocks);
//!     let bytes = &registered[0];
//!     drop(registered);
//!     bytes[0]
//! }
//! ```
//!
//! # In device memory
//! Of a pool in device memory ([`BlockMemory::Device`](crate::BlockMemory)) guards, states and names are
//! the same; bytes the processor does not reach, so that such a block has none here: its slice is empty,
//! and whatever wants so many bytes refuses it for its length. [`MutableBlock::device`] and its like say
//! where the block is on the device, [`MutableBlock::upload`] and [`RegisteredBlock::download`] copy it.

mod device;
mod registered;
mod run;
mod writable;

pub use device::DeviceBlock;
pub(crate) use device::copy_across;
pub use registered::{RegisteredBlock, WeakBlock};
pub use run::BlockRun;
pub use writable::{CompleteBlock, MutableBlock, PartialBlock};
