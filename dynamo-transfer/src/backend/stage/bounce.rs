use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::end::End;
use crate::backend::cuda::{DeviceCopier, DeviceId};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Backed, HostBuffer, Lease, Memory, Owned};

/// Host memory that bytes pass through: at most so many buffers of one size, made when they are first
/// wanted and kept.
///
/// Those that devices reach are apart: what a lost device has had is never free again.
pub(crate) struct Bounces {
    host: Arc<Pool>,
    pinned: Arc<Pool>,
}

struct Pool {
    bytes: usize,
    room: Arc<Semaphore>,
    free: Mutex<Vec<Arc<dyn Backed>>>,
    tasks: TaskTracker,
}

/// A buffer in use: it is free again when nobody touches it any more.
pub(crate) struct Bounce {
    buffer: Arc<dyn Backed>,
    pool: Arc<Pool>,
    /// Shared by those that were taken together.
    _room: Arc<OwnedSemaphorePermit>,
}

impl Bounces {
    /// Makes room for `count` buffers of `bytes` bytes, and as many pinned ones.
    pub(crate) fn new(bytes: usize, count: usize, tasks: &TaskTracker) -> Self {
        let pool = || {
            let (room, tasks) = (Arc::new(Semaphore::new(count)), tasks.clone());
            Arc::new(Pool { bytes, room, free: Mutex::default(), tasks })
        };
        Self { host: pool(), pinned: pool() }
    }

    /// Returns the size of each buffer.
    pub(crate) fn bytes(&self) -> u64 {
        self.host.bytes as u64
    }

    /// Waits for a buffer that `end` can use; fails like [`take`](Self::take).
    pub(crate) async fn one(&self, end: &dyn End) -> Result<Arc<Bounce>> {
        let taken = self.take(1, end.copier()).await?.pop();
        taken.ok_or_else(|| Error::new(ErrorKind::Internal, "no bounce buffer was taken"))
    }

    /// Waits for `count` buffers; they are pinned if there is a copier.
    ///
    /// Fails with what the copier says if it has no memory, and once they are closed.
    pub(crate) async fn take(
        &self,
        count: u32,
        copier: Option<&DeviceCopier>,
    ) -> Result<Vec<Arc<Bounce>>> {
        let pool = if copier.is_some() { &self.pinned } else { &self.host };
        // All at once: two that each have one of two would wait for each other.
        let room = Arc::clone(&pool.room).acquire_many_owned(count).await;
        let room = Arc::new(room.map_err(|_| closed())?);
        copier.map_or(Ok(()), DeviceCopier::status)?;
        let mut taken = Vec::new();
        for _ in 0..count {
            let buffer = match pool.reuse(copier.map(DeviceCopier::device_id)) {
                Ok(buffer) => buffer,
                Err(unfit) => pool.make(copier.cloned(), unfit).await?,
            };
            let (pool, _room) = (Arc::clone(pool), Arc::clone(&room));
            taken.push(Arc::new(Bounce { buffer, pool, _room }));
        }
        Ok(taken)
    }

    /// Frees what is not in use; what is in use is freed when it is no longer.
    pub(crate) fn close(&self) {
        self.host.close();
        self.pinned.close();
    }
}

impl Pool {
    /// Makes a buffer in place of another; a driver takes its time.
    async fn make(
        &self,
        copier: Option<DeviceCopier>,
        unfit: Option<Arc<dyn Backed>>,
    ) -> Result<Arc<dyn Backed>> {
        let bytes = self.bytes;
        let made = self.tasks.spawn_blocking(move || {
            drop(unfit);
            let buffer: Arc<dyn Backed> = match copier {
                Some(copier) => Arc::new(Owned::exclusive(vec![copier.allocate_pinned(bytes)?])),
                None => Arc::new(Owned::exclusive(vec![HostBuffer::new(bytes)])),
            };
            Ok(buffer)
        });
        made.await.map_err(|e| Error::new(ErrorKind::Internal, "allocating").with_source(e))?
    }

    fn close(&self) {
        self.room.close();
        let free = std::mem::take(&mut *self.lock());
        // Not under the lock: the driver takes its time.
        drop(free);
    }

    /// Returns a buffer that is pinned by `device`, or by none; else one that makes room, if any is
    /// free.
    fn reuse(&self, device: Option<DeviceId>) -> Result<Arc<dyn Backed>, Option<Arc<dyn Backed>>> {
        let mut free = self.lock();
        match free.iter().position(|buffer| buffer.memory().pinned() == device) {
            Some(index) => Ok(free.swap_remove(index)),
            None => Err(free.pop()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<dyn Backed>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bounce {
    /// Leases the buffer; nobody else has it.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        Lease::over(Arc::<Self>::clone(self))
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.pool.tasks
    }
}

impl Backed for Bounce {
    fn memory(&self) -> &Memory {
        self.buffer.memory()
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        let mut free = self.pool.lock();
        // Closing looks at what is free after it has closed the room.
        if !self.pool.room.is_closed() {
            free.push(Arc::clone(&self.buffer));
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "agent has shut down")
}
