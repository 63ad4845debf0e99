use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio_util::task::TaskTracker;

use super::{Backend, MemoryFabric, Operation};
use crate::descriptor::RemoteDescriptor;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Lease, Leased, Right, copy};
use crate::peer::PeerAddress;
use crate::plan::{Stripe, behind};

/// Copies between regions of agents in one process: small ones at once, large ones on a few
/// blocking threads.
pub(crate) struct Memcpy {
    pub(crate) fabric: MemoryFabric,
    pub(crate) own: Arc<Endpoint>,
    pub(crate) tasks: TaskTracker,
}

impl Memcpy {
    /// Leases a region of any memory of a peer in this process.
    pub(crate) fn lease(&self, remote: &RemoteDescriptor, right: Right) -> Result<Leased> {
        let owner = self.fabric.find(&remote.peer)?;
        owner.regions.lease_any(remote.id, &remote.token, right, &remote.ranges)
    }

    /// Leases what the operation means at the peer.
    fn remote(&self, operation: &Operation) -> Result<Lease> {
        let owner = self.fabric.find(&operation.peer)?;
        let Operation { right, remote_id, token, remote_ranges, .. } = operation;
        let remote = owner.regions.lease_remote(*remote_id, token, *right, remote_ranges)?;
        if remote.is_same_region(&operation.local) {
            let message = "source and destination are the same region";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(remote)
    }
}

#[async_trait]
impl Backend for Memcpy {
    fn brief_bytes_max(&self) -> u64 {
        BRIEF_BYTES_MAX
    }

    fn run_brief(&self, operation: &Operation) -> Option<Result<()>> {
        Some(self.remote(operation).and_then(|remote| run(operation, &remote)))
    }

    async fn run(&self, operation: Arc<Operation>) -> Result<()> {
        let remote = Arc::new(self.remote(&operation)?);
        // A thread looks at `cancel` between stripes, and its leases keep both memories alive.
        let copy = move |operation: &Operation| run(operation, &remote);
        on_threads(&self.tasks, &operation, copy).await.into_iter().collect()
    }

    async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        let owner = self.fabric.find(peer)?;
        owner.deliver(self.own.name.clone(), self.own.incarnation, payload).await
    }
}

/// Copies an operation on a few blocking threads; returns what each of them has come to.
pub(super) async fn on_threads<T: Send + 'static>(
    tasks: &TaskTracker,
    operation: &Arc<Operation>,
    copy: impl Fn(&Operation) -> Result<T> + Clone + Send + 'static,
) -> Vec<Result<T>> {
    let threads = operation.total().div_ceil(THREAD_BYTES_MIN).min(THREADS_MAX);
    let copies = (0..threads).map(|_| {
        let (operation, copy) = (Arc::clone(operation), copy.clone());
        tasks.spawn_blocking(move || copy(&operation))
    });
    let copied = join_all(copies).await.into_iter();
    let internal = |e| Err(Error::new(ErrorKind::Internal, "copying").with_source(e));
    copied.map(|copied| copied.unwrap_or_else(internal)).collect()
}

/// Copies stripes until none is left.
fn run(operation: &Operation, remote: &Lease) -> Result<()> {
    while let Some(stripe) = operation.next(STRIPE_BYTES, usize::MAX) {
        operation.begin();
        copy_stripe(operation, remote, &stripe)?;
        operation.advance(&stripe);
    }
    operation.check()
}

fn copy_stripe(operation: &Operation, remote: &Lease, stripe: &Stripe) -> Result<()> {
    let (local, bytes) = (&operation.local, stripe.bytes);
    match operation.right {
        Right::Read => copy_ranges((remote, stripe.remote()), (local, stripe.local()), bytes),
        Right::Write => copy_ranges((local, stripe.local()), (remote, stripe.remote()), bytes),
    }
}

/// Copies `bytes` from ranges to ranges.
///
/// Both regions may be writable, hence held while they are touched, and another transfer may go the
/// other way between the same two: they are held in the order of the regions.
pub(super) fn copy_ranges(
    (source, from): (&Lease, impl Iterator<Item = (u64, u64)> + Clone),
    (target, to): (&Lease, impl Iterator<Item = (u64, u64)> + Clone),
    bytes: u64,
) -> Result<()> {
    let mut done = 0;
    while done < bytes {
        let (from, to) = (behind(from.clone(), done), behind(to.clone(), done));
        let (source_memory, target_memory) = (source.memory(), target.memory());
        let copied = if source.order() < target.order() {
            source_memory.gather(from, |from| target_memory.scatter(to, |to| copy(from, to)))
        } else {
            target_memory.scatter(to, |to| source_memory.gather(from, |from| copy(from, to)))
        };
        match copied {
            Some(copied) if copied > 0 => done += copied as u64,
            _ => return Err(Error::new(ErrorKind::Internal, "a checked range cannot be copied")),
        }
    }
    Ok(())
}

/// Long enough to run at memory speed, short enough to notice a cancellation.
const STRIPE_BYTES: u64 = 256 << 10;

/// Copied by whoever waits for the transfer: waking a thread takes as long.
pub(super) const BRIEF_BYTES_MAX: u64 = 64 << 10;

/// What is worth a further thread.
const THREAD_BYTES_MIN: u64 = 8 << 20;

/// Two fill the memory of most machines.
const THREADS_MAX: u64 = 2;
