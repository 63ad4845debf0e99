use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::{Backend, BackendKind, MemoryFabric, Operation};
use crate::agent::Endpoint;
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

/// Copies `len` bytes, segment by segment on both sides.
fn copy_chunk(from: (&Lease, u64), to: (&Lease, u64), len: u64) -> Result<()> {
    let mut done = 0;
    while done < len {
        let before = done;
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        from.0.memory().with_bytes(from.1 + done, left, &mut |source| {
            let mut at = 0;
            while at < source.len() {
                let start = at;
                let offset = to.1 + done + at as u64;
                to.0.memory().with_bytes_mut(offset, source.len() - at, &mut |target| {
                    target.copy_from_slice(&source[at..at + target.len()]);
                    at += target.len();
                });
                if at == start {
                    return;
                }
            }
            done += at as u64;
        });
        if done == before {
            return Err(Error::new(ErrorKind::PermissionDenied, "local region is read-only"));
        }
    }
    Ok(())
}
