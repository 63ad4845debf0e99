use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::{Backend, BackendKind, MemoryFabric, Operation};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Lease, Right};
use crate::peer::PeerAddress;

/// Copies between regions of agents in one process, on blocking threads.
pub(crate) struct Memcpy {
    pub(crate) fabric: MemoryFabric,
    pub(crate) own: Arc<Endpoint>,
    pub(crate) tasks: TaskTracker,
}

#[async_trait]
impl Backend for Memcpy {
    fn kind(&self) -> BackendKind {
        BackendKind::Memcpy
    }

    async fn run(&self, operation: Operation) -> Result<()> {
        let owner = self.fabric.find(&operation.peer)?;
        let ranges: Vec<_> = operation.chunks.iter().map(|c| (c.remote, c.len)).collect();
        let Operation { right, remote_id, remote_key, .. } = operation;
        let remote = owner.regions.lease_remote(remote_id, remote_key, right, &ranges)?;
        if remote.is_same_region(&operation.local) {
            let message = "source and destination are the same region";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        // The thread looks at `cancel` between chunks, and its leases keep both memories alive.
        let copy = self.tasks.spawn_blocking(move || copy(&operation, &remote));
        copy.await.map_err(|e| Error::new(ErrorKind::Internal, "copying").with_source(e))?
    }

    async fn notify(&self, peer: &PeerAddress, payload: Bytes) -> Result<()> {
        let owner = self.fabric.find(peer)?;
        owner.deliver(self.own.name.clone(), self.own.incarnation, payload).await
    }
}

fn copy(operation: &Operation, remote: &Lease) -> Result<()> {
    for chunk in &operation.chunks {
        if operation.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::DeadlineExceeded, "transfer was cancelled"));
        }
        let (from, to) = match operation.right {
            Right::Read => ((remote, chunk.remote), (&operation.local, chunk.local)),
            Right::Write => ((&operation.local, chunk.local), (remote, chunk.remote)),
        };
        copy_chunk(from, to, chunk.len)?;
    }
    Ok(())
}

/// Copies `len` bytes, piece by piece: a piece lies in one segment on both sides.
fn copy_chunk(from: (&Lease, u64), to: (&Lease, u64), len: u64) -> Result<()> {
    let mut done = 0;
    while done < len {
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        let copied = copy_piece((from.0, from.1 + done), (to.0, to.1 + done), left);
        if copied == 0 {
            return Err(Error::new(ErrorKind::Internal, "a checked range lies outside its region"));
        }
        done += copied as u64;
    }
    Ok(())
}

/// Copies up to `len` bytes and returns how many.
///
/// Both regions may be writable, hence locked while they are touched, and another transfer may go
/// the other way between the same two: the locks are taken in the order of the regions.
fn copy_piece(from: (&Lease, u64), to: (&Lease, u64), len: usize) -> usize {
    let (source, target) = (from.0.memory(), to.0.memory());
    let mut copied = 0;
    let mut copy = |source: &[u8], target: &mut [u8]| {
        copied = source.len().min(target.len());
        target[..copied].copy_from_slice(&source[..copied]);
    };
    if from.0.order() < to.0.order() {
        source.with_bytes(from.1, len, &mut |source| {
            target.with_bytes_mut(to.1, len, &mut |target| copy(source, target));
        });
    } else {
        target.with_bytes_mut(to.1, len, &mut |target| {
            source.with_bytes(from.1, len, &mut |source| copy(source, target));
        });
    }
    copied
}
