use std::fmt;
use std::sync::Arc;
#[cfg(any(test, feature = "test-util"))]
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Semaphore;

#[cfg(any(test, feature = "test-util"))]
use super::fault::{Faulty, FileFaults};
#[cfg(target_os = "linux")]
use super::io::Io;
use super::io::{Engine, FileAct};
use super::operation::{FileOperation, Kept, Operation};
use super::plan::{self, FileChunk};
use super::pool::Pool;
use super::region::FileRegion;
#[cfg(target_os = "linux")]
use super::ring::Ring;
use super::threads::Threads;
use crate::error::{Error, ErrorKind, Result};

/// Who makes the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileEngine {
    /// One io_uring and one thread; Linux only.
    Ring,
    /// A few threads, each in one call.
    Pool,
    /// The ring past the page cache, where the device does the work, and the pool through it, where
    /// copying does.
    RingAndPool,
}

/// How a store is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FileStoreConfig {
    /// The engine; ring and pool where the kernel offers a ring, else the pool, if `None`.
    pub engine: Option<FileEngine>,
    /// Calls that the kernel has at once from a ring.
    pub depth: usize,
    /// Threads of a pool, or threads that the kernel may keep for a ring's buffered calls.
    pub threads: usize,
    /// Operations posted and not settled; more are refused.
    pub operations_max: usize,
    /// What goes wrong.
    #[cfg(any(test, feature = "test-util"))]
    pub faults: Option<FileFaults>,
}

impl Default for FileStoreConfig {
    fn default() -> Self {
        Self {
            engine: None,
            // What an NVMe device needs to be busy; 64 MiB in the longest steps.
            depth: 64,
            // Buffered calls copy, which a few cores do as fast as memory allows.
            threads: 4,
            // As many as an agent's transfers.
            operations_max: 4096,
            #[cfg(any(test, feature = "test-util"))]
            faults: None,
        }
    }
}

impl FileStoreConfig {
    /// Chooses the engine.
    #[must_use]
    pub fn with_engine(mut self, engine: FileEngine) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Limits the calls that the kernel has at once from a ring.
    #[must_use]
    pub fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Sets how many threads there are at most.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Limits the operations that are posted and not settled.
    #[must_use]
    pub fn with_operations_max(mut self, operations_max: usize) -> Self {
        self.operations_max = operations_max;
        self
    }

    /// Makes calls fail.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn with_faults(mut self, faults: FileFaults) -> Self {
        self.faults = Some(faults);
        self
    }

    fn validate(&self) -> Result<()> {
        let is_sound = (1..=DEPTH_MAX).contains(&self.depth)
            && (1..=THREADS_MAX).contains(&self.threads)
            && (1..=Semaphore::MAX_PERMITS).contains(&self.operations_max);
        if is_sound {
            return Ok(());
        }
        let message = format!(
            "depth {} (1 to {DEPTH_MAX}), threads {} (1 to {THREADS_MAX}), operations_max {}",
            self.depth, self.threads, self.operations_max
        );
        Err(Error::new(ErrorKind::InvalidArgument, message))
    }
}

/// Moves bytes between files and memory; cheap to clone.
///
/// It owns its threads: [`shutdown`](Self::shutdown) ends and joins them, dropping the last clone
/// ends them.
#[derive(Clone)]
pub struct FileStore(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    kind: FileEngine,
    /// Room for operations that are posted and not settled.
    room: Arc<Semaphore>,
    threads: Threads,
}

impl FileStore {
    /// Starts the engine.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a bad config, with
    /// [`BackendUnavailable`](ErrorKind::BackendUnavailable) if the ring is asked for and the kernel
    /// does not offer it, and with [`Overloaded`](ErrorKind::Overloaded) if there is no thread.
    pub fn start(config: FileStoreConfig) -> Result<Self> {
        config.validate()?;
        let threads = Threads::default();
        let (engine, kind) = start_engine(&config, &threads)?;
        #[cfg(any(test, feature = "test-util"))]
        let engine = match config.faults {
            Some(faults) => {
                Arc::new(Faulty { inner: engine, faults, is_closing: AtomicBool::new(false) })
            }
            None => engine,
        };
        let room = Arc::new(Semaphore::new(config.operations_max));
        Ok(Self(Arc::new(Inner { engine, kind, room, threads })))
    }

    /// Returns the engine it runs on.
    pub fn engine(&self) -> FileEngine {
        self.0.kind
    }

    /// Posts an operation: `act` is [`FileAct::Read`] to fill the chunks' memory from the file,
    /// [`FileAct::Write`] for the other way.
    ///
    /// The lease keeps the memory alive, and alone for a read; it is dropped before the operation
    /// resolves, when the kernel is done. No chunk may be shorter or longer than its memory's span.
    ///
    /// Fails with [`OutOfBounds`](ErrorKind::OutOfBounds), with
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) for a write to a file opened for reading,
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a write that writes a byte twice, and
    /// [`Overloaded`](ErrorKind::Overloaded) at the limit of operations.
    pub(crate) fn post(
        &self,
        file: &FileRegion,
        act: FileAct,
        chunks: impl IntoIterator<Item = FileChunk>,
        lease: Box<dyn Send>,
    ) -> Result<FileOperation> {
        let permit = Arc::clone(&self.0.room).try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::Overloaded, "too many file operations are posted")
        })?;
        let is_write = act == FileAct::Write;
        let mut refused = None;
        let chunks = chunks.into_iter().map_while(|chunk| {
            let checked = file.0.check(chunk.offset, chunk.span.len() as u64, is_write);
            checked.map_err(|error| refused = Some(error)).ok().map(|()| chunk)
        });
        let steps = plan::steps(chunks, file.0.alignment(), is_write);
        refused.map_or(Ok(()), Err)?;
        let kept = Kept { lease, permit };
        Ok(Operation::post(&self.0.engine, &file.0, act, steps?, kept))
    }

    /// Ends the engine: what waits fails with [`Closed`](ErrorKind::Closed), what the kernel has
    /// ends. Fails with [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if that takes longer than
    /// `within`: then the memory stays alive until it has.
    ///
    /// # Cancel safety
    /// Cancel safe; the engine ends all the same.
    pub async fn shutdown(&self, within: Duration) -> Result<()> {
        self.0.engine.close();
        self.0.threads.join(within).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.engine.close();
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("engine", &self.0.kind).finish_non_exhaustive()
    }
}

fn start_engine(
    config: &FileStoreConfig,
    threads: &Threads,
) -> Result<(Arc<dyn Engine>, FileEngine)> {
    #[cfg(target_os = "linux")]
    if config.engine != Some(FileEngine::Pool) {
        let workers = u32::try_from(config.threads).unwrap_or(u32::MAX);
        match Ring::start(config.depth, workers, threads) {
            Ok(ring) if config.engine == Some(FileEngine::Ring) => {
                return Ok((ring, FileEngine::Ring));
            }
            Ok(ring) => {
                let pool = Pool::start(config.threads, threads).inspect_err(|_| ring.close())?;
                return Ok((Arc::new(Both { ring, pool }), FileEngine::RingAndPool));
            }
            Err(error) if config.engine.is_some() => return Err(error),
            Err(error) => tracing::debug!(%error, "files go through threads"),
        }
    }
    #[cfg(not(target_os = "linux"))]
    if !matches!(config.engine, None | Some(FileEngine::Pool)) {
        return Err(Error::new(ErrorKind::BackendUnavailable, "io_uring is of Linux"));
    }
    Ok((Pool::start(config.threads, threads)?, FileEngine::Pool))
}

/// Gives each IO to the engine that is better at it.
#[cfg(target_os = "linux")]
struct Both {
    ring: Arc<Ring>,
    pool: Arc<Pool>,
}

#[cfg(target_os = "linux")]
impl Engine for Both {
    fn submit(&self, batch: Vec<Io>) {
        let (direct, buffered): (Vec<_>, Vec<_>) = batch.into_iter().partition(|io| io.direct);
        for (batch, engine) in [(direct, &*self.ring as &dyn Engine), (buffered, &*self.pool)] {
            if !batch.is_empty() {
                engine.submit(batch);
            }
        }
    }

    fn close(&self) {
        self.ring.close();
        self.pool.close();
    }
}

/// The kernel takes no larger ring without being asked to.
const DEPTH_MAX: usize = 4096;

const THREADS_MAX: usize = 256;
