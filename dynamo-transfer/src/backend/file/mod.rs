//! Files as memory: ranges of a [`FileRegion`] are read into host memory and written from it.
//!
//! A [`FileStore`] owns the engine: where the kernel offers it an io_uring, fed by one thread, for what
//! goes past the page cache; a few threads in `preadv` and `pwritev` for the rest.
//!
//! ```
//! use dynamo_transfer::HostBuffer;
//! use dynamo_transfer::file::{FileOptions, FileRange, FileRegion, FileStore, FileStoreConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dynamo_transfer::Result<()> {
//! # let path = std::env::temp_dir().join(format!("dynamo-file-{}", std::process::id()));
//! let store = FileStore::start(FileStoreConfig::default())?;
//! let file = FileRegion::create(&path, 1 << 20, FileOptions::default())?;
//! let mut blocks = HostBuffer::new(8192);
//! blocks.fill(7);
//! // Two blocks that lie next to each other in memory go to two places.
//! let places = [
//!     FileRange { offset: 65_536, at: 0, len: 4096 },
//!     FileRange { offset: 0, at: 4096, len: 4096 },
//! ];
//! let (written, _) = store.write(&file, &places, blocks).await;
//! assert_eq!(written?, 8192);
//! let (read, blocks) = store.read(&file, &places, HostBuffer::new(8192)).await;
//! assert_eq!((read?, blocks.unwrap()[8191]), (8192, 7));
//! # std::fs::remove_file(path).ok();
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//! - Posting does no IO. An operation resolves when nothing touches file and memory any more;
//!   dropping it lets what has started end, with its memory alive.
//! - Short reads and writes are resumed; a range is moved as a whole, or the operation fails with
//!   the file, the offset and the error of the system.
//! - Operations that overlap have no order among each other: one that reads may see another half
//!   written. Nor have the ranges of one operation.
//! - Nothing polls: an idle engine sleeps in the kernel.

mod error;
#[cfg(any(test, feature = "test-util"))]
mod fault;
mod io;
mod memory;
mod operation;
mod owned;
mod plan;
mod pool;
mod region;
#[cfg(target_os = "linux")]
mod ring;
mod store;
mod sys;
#[cfg(test)]
mod tests;
mod threads;

#[cfg(any(test, feature = "test-util"))]
pub use fault::{FileCall, FileFault, FileFaults};
#[cfg(any(test, feature = "test-util"))]
pub use io::FileAct;
pub use owned::FileRange;
pub use region::{FileOptions, FileRegion};
pub use store::{FileEngine, FileStore, FileStoreConfig};

pub(crate) use memory::FileMemory;
