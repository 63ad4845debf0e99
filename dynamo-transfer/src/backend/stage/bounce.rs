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
        let room = Arc::new(room.map_err(|_| Error::shut_down())?);
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
                Some(copier) => Arc::new(Owned::writable(vec![copier.allocate_pinned(bytes)?])),
                None => Arc::new(Owned::writable(vec![HostBuffer::new(bytes)])),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{DeviceConfig, SoftwareDevice};

    fn copier(memory_bytes: u64) -> (SoftwareDevice, DeviceCopier) {
        let device = SoftwareDevice::new(memory_bytes).unwrap();
        let copier = DeviceCopier::software(&device, DeviceConfig::default()).unwrap();
        (device, copier)
    }

    #[tokio::test]
    async fn buffers_are_made_once_and_wanted_ones_are_waited_for() {
        let bounces = Bounces::new(4096, 2, &TaskTracker::new());
        let address = |bounce: &Arc<Bounce>| bounce.memory().spans(0, 1).next().unwrap();
        let first = bounces.take(2, None).await.unwrap();
        let mut places: Vec<_> = first.iter().map(|bounce| address(bounce).as_ptr()).collect();
        let mut waiting = Box::pin(bounces.take(1, None));
        assert!(futures::poll!(&mut waiting).is_pending());
        // Whoever touches a buffer keeps it, though the one that took it is gone.
        let leases: Vec<_> = first.iter().map(Bounce::lease).collect();
        drop(first);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(leases);
        let again = address(&waiting.await.unwrap()[0]).as_ptr();
        places.retain(|place| *place != again);
        assert_eq!(places.len(), 1);
    }

    #[tokio::test]
    async fn one_device_after_the_other_has_the_room_and_closing_frees_it() {
        let ((first, one), (second, other)) = (copier(1 << 20), copier(1 << 20));
        let bounces = Bounces::new(4096, 2, &TaskTracker::new());
        drop(bounces.take(2, Some(&one)).await.unwrap());
        assert_eq!(first.in_use_bytes(), 8192);
        let taken = bounces.take(2, Some(&other)).await.unwrap();
        assert_eq!((first.in_use_bytes(), second.in_use_bytes()), (0, 8192));
        assert!(taken.iter().all(|bounce| bounce.memory().pinned() == Some(other.device_id())));
        // What is not pinned has a room of its own.
        drop(bounces.take(2, None).await.unwrap());
        bounces.close();
        assert_eq!(second.in_use_bytes(), 8192, "in use");
        drop(taken);
        assert_eq!(second.in_use_bytes(), 0);
        assert_eq!(bounces.take(1, None).await.err().unwrap().kind(), ErrorKind::Closed);
    }

    #[tokio::test]
    async fn a_device_without_memory_or_that_is_lost_takes_no_room() {
        let (device, copier) = copier(4096);
        let bounces = Bounces::new(4096, 2, &TaskTracker::new());
        for _ in 0..3 {
            let error = bounces.take(2, Some(&copier)).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Overloaded);
        }
        device.lose("gone");
        for _ in 0..3 {
            let error = bounces.take(1, Some(&copier)).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
        }
    }
}
