//! What both engines do, and what they do when files fail.

mod conformance;
mod faults;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::operation::FileOperation;
use super::plan::FileChunk;
use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{HostBuffer, Span};

/// Runs each of the named claims on each engine, and on both together.
macro_rules! on_each_engine {
    ($($claim:ident)*) => {
        mod ring {
            $(#[tokio::test]
            async fn $claim() {
                if crate::backend::file::tests::has_ring() {
                    super::$claim(crate::backend::file::FileEngine::Ring).await;
                }
            })*
        }
        mod pool {
            $(#[tokio::test]
            async fn $claim() {
                super::$claim(crate::backend::file::FileEngine::Pool).await;
            })*
        }
        mod ring_and_pool {
            $(#[tokio::test]
            async fn $claim() {
                if crate::backend::file::tests::has_ring() {
                    super::$claim(crate::backend::file::FileEngine::RingAndPool).await;
                }
            })*
        }
    };
}
use on_each_engine;

fn has_ring() -> bool {
    use std::io::Write;

    let ring = FileStore::start(FileStoreConfig::default().with_engine(FileEngine::Ring));
    if let Err(error) = &ring {
        assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
        let skipped = format!("SKIPPED: needs a kernel that offers io_uring; {error}\n");
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    }
    ring.is_ok()
}

#[test]
fn without_a_ring_the_pool_does_it_all() {
    let engine = FileStore::start(FileStoreConfig::default()).unwrap().engine();
    assert_eq!(engine, if has_ring() { FileEngine::RingAndPool } else { FileEngine::Pool });
}

fn store(engine: FileEngine) -> FileStore {
    FileStore::start(FileStoreConfig::default().with_engine(engine)).unwrap()
}

fn faulty(engine: FileEngine, faults: &FileFaults) -> FileStore {
    let config = FileStoreConfig::default().with_engine(engine).with_faults(faults.clone());
    FileStore::start(config).unwrap()
}

async fn shut(store: FileStore) {
    store.shutdown(Duration::from_secs(20)).await.unwrap();
}

/// A folder that goes when the test ends.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        let name = format!("dynamo-transfer-file-{:016x}", u64::from_ne_bytes(bytes));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.join("region")
    }

    pub(super) fn region(&self, len: u64, options: FileOptions) -> FileRegion {
        FileRegion::create(self.path(), len, options).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pattern(seed: u8, len: usize) -> HostBuffer {
    let mut buffer = HostBuffer::new(len);
    buffer.copy_from_slice(&crate::conformance::pattern(seed, len));
    buffer
}

fn range(offset: u64, at: usize, len: usize) -> FileRange {
    FileRange { offset, at, len }
}

fn kind<B>((result, buffer): (Result<u64>, Option<B>)) -> ErrorKind {
    assert!(buffer.is_some(), "the buffer comes back");
    result.unwrap_err().kind()
}

fn code(error: &Error) -> Option<i32> {
    std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?.raw_os_error()
}
