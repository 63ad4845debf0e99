//! One-sided transfers between registered memory of inference workers.
//!
//! An [`Agent`] registers memory, also that of a device, or a file, and gets a [`RegisteredRegion`]; its
//! metadata, carried to a peer over any channel, lets the peer read or write that memory without the
//! owner's code taking part. Remote addressing is (region, offset, length), never a pointer.
//!
//! ```
//! use dynamo_transfer::{Agent, AgentConfig, HostBuffer, MemoryFabric, TransferOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dynamo_transfer::Result<()> {
//! let fabric = MemoryFabric::new();
//! let owner = AgentConfig::default().with_name("owner").with_fabric(fabric.clone());
//! let owner = Agent::start(owner).await?;
//! let mut source = HostBuffer::new(8);
//! source.copy_from_slice(b"kv bytes");
//! let source = owner.register(vec![source])?;
//! let metadata = owner.metadata([source.grant()])?;
//!
//! let reader = AgentConfig::default().with_name("reader").with_fabric(fabric);
//! let reader = Agent::start(reader).await?;
//! let peer = reader.load_metadata(&metadata)?;
//! let target = reader.register_mut(vec![HostBuffer::new(8)])?;
//! let (local, remote) = (target.descriptor([(0, 8)])?, peer.regions()[0].descriptor([(0, 8)])?);
//! let report = reader.read(local, remote, TransferOptions::default()).await?;
//! assert_eq!(report.bytes, 8);
//! assert_eq!(&target.close().await[0][..], b"kv bytes");
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms, in the order a transfer passes them
//! | room | what happens there |
//! |---|---|
//! | [`memory`] | buffers and regions: registering, revoking, getting the memory back |
//! | [`descriptor`] | byte ranges of a region, checked once |
//! | [`peer`] | metadata bytes; what a peer offers |
//! | `plan` | ranges → chunks, peers → backend; pure |
//! | [`transfer`] | the future, its options and its report; notifications |
//! | `vocabulary` | words that all rooms share |
//! | `wire` | what the formats of metadata and backends are made of |
//! | `backend` | who moves the bytes: memcpy in one process, shared memory, UCX and TCP between processes; over bounce buffers what these do not reach |
//! | [`mod@file`] | files as memory, through io_uring or a few threads |
//! | [`device`] | memory of a GPU, and copies between it and the host's |
//!
//! # Promises
//! - Dropping or closing a region revokes it: later operations are refused, operations in flight
//!   keep the memory alive, and [`RegisteredRegion::close`] gives it back when they have ended.
//! - Files and memory of devices are regions too ([`MemoryKind`]); a transfer between any two goes
//!   directly where one engine reaches both ends, else over host memory.
//! - The owner checks incarnation, generation, token and rights before any byte moves, and bounds
//!   where it is told ranges: over shared memory it checks as a peer opens a region, and there and
//!   over one-sided UCX it is the peer that keeps to its ranges.
//! - Every transfer has a deadline; dropping a [`Transfer`] cancels it.

mod agent;
mod backend;
mod config;
pub mod descriptor;
mod error;
mod inbound;
pub mod memory;
mod notify;
pub mod peer;
mod plan;
pub mod transfer;
mod vocabulary;
mod wire;

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzz;

pub use agent::Agent;
pub use backend::MemoryFabric;
#[cfg(feature = "ucx")]
pub use backend::UcxConfig;
pub use backend::cuda as device;
#[cfg(unix)]
pub use backend::file;
pub use config::AgentConfig;
pub use descriptor::{BlockIndices, BlockLayout, LocalDescriptor, RemoteDescriptor};
pub use error::{Error, ErrorKind, RemoteMemory, Result};
pub use memory::{
    Grant, HostBuffer, MemoryKind, RegisteredRegion, Rights, SharedSlot, SharedSlots, Slot,
    SlotList, SlotRun,
};
pub use notify::{Notification, Notifications};
pub use peer::{RemoteAgent, RemoteRegion};
pub use transfer::{
    Progress, Transfer, TransferEstimate, TransferGroup, TransferOptions, TransferReport,
    TransferStats,
};
pub use vocabulary::{BackendKind, Priority};
