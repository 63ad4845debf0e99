//! Device memory: allocating it, and copying between it and the host's.
//!
//! A [`DeviceCopier`] drives one device: a GPU ([`DeviceCopier::cuda`], feature `cuda`; the driver is
//! loaded when it is asked for, no build needs it), or a [`SoftwareDevice`], which is host memory and a
//! thread, keeps the same contract, and is there for every test that has no GPU.
//!
//! ```
//! use std::sync::Arc;
//! use dynamo_transfer::device::{BlockCopy, DeviceConfig, DeviceCopier, SoftwareDevice};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dynamo_transfer::Result<()> {
//! let device = SoftwareDevice::new(1 << 20)?;
//! let copier = DeviceCopier::software(&device, DeviceConfig::default())?;
//! let blocks = copier.allocate(64 << 10)?;
//! let mut staged = copier.allocate_pinned(32)?;
//! staged.copy_from_slice(b"sixteen bytes, and sixteen more.");
//! // Two blocks, to two places.
//! let to = |source, target| BlockCopy { source, target, len: 16 };
//! copier.upload(&Arc::new(staged), &blocks, &[to(0, 4096), to(16, 0)]).await?;
//! assert_eq!(blocks.copy_to(&copier, 4096, 16).await?, b"sixteen bytes, a");
//! copier.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # From many small blocks to full speed
//! Blocks of one submission are copied one by one, as one batch of the driver, or by a kernel,
//! whichever suits their size ([`Method`]).
//!
//! # What is in flight
//! No copy can be called back. Each holds its memory until the device has passed it, whether anyone
//! still waits or not; the memory of dropped futures is freed on a thread of its own, since the one
//! that tells of completed copies must not call the device. On a device that is lost nobody can tell
//! when that is: its memory is never given back.
//!
//! # Kernels of one's own
//! Copies run on streams of the copier. Whoever computes on the same memory waits for the one before
//! starting the other.

mod batch;
mod buffer;
mod copier;
mod copy;
mod device;
mod ipc;
mod ledger;
mod pieces;
mod pinned;
mod quarantine;
mod region;
mod software;

#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod kernel;
#[cfg(feature = "cuda")]
mod library;
#[cfg(feature = "cuda")]
mod stream;

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;

pub use batch::Method;
pub use buffer::{DeviceBuffer, PinnedBuffer};
pub use copier::DeviceCopier;
pub use copy::{BlockCopy, DeviceConfig, DeviceCopy};
pub use device::Direction;
pub use ipc::IpcHandle;
pub use software::SoftwareDevice;

pub(crate) use region::{DeviceId, DeviceMemory};
