use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::copies::{BRIEF_BYTES_MAX, Copies};
use super::{Backend, MemoryFabric, Operation};
use crate::descriptor::RemoteDescriptor;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::{Lease, Leased, Right, copy};
use crate::peer::PeerAddress;
use crate::plan::{Stripe, behind};

/// Copies between regions of agents in one process.
pub(crate) struct Memcpy {
    pub(crate) fabric: MemoryFabric,
    pub(crate) own: Arc<Inbound>,
    pub(crate) copies: Copies,
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
        remote.check_apart(&operation.local)?;
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
        let (remote, total) = (Arc::new(self.remote(&operation)?), operation.total());
        // A thread looks at `cancel` between stripes, and its leases keep both memories alive.
        let priority = operation.priority;
        let copy = move || run(&operation, &remote);
        self.copies.run(total, priority, copy).await.into_iter().collect()
    }

    async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        let owner = self.fabric.find(peer)?;
        owner.deliver(self.own.name.clone(), self.own.incarnation, payload).await
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{RegionTable, RegisteredRegion, Rights};

    #[test]
    fn copies_that_cross_end_and_each_is_whole() {
        let table = Arc::new(RegionTable::new().unwrap());
        let regions = [1, 2].map(|byte| {
            let segments = vec![[byte; 8], [byte; 8]];
            RegisteredRegion::writable(&table, segments, Rights::PeersWrite).unwrap()
        });
        let lease = |region: &RegisteredRegion<[u8; 8]>| match table
            .lease_local(region.id(), Right::Read, &Arc::default())
            .unwrap()
        {
            Leased::Host(lease) => lease,
            Leased::Far(_) => unreachable!("it is host memory"),
        };
        let cross = |from, to| {
            // The first piece crosses from segment to segment.
            let ranges = || [(5, 11), (0, 5)].into_iter();
            for _ in 0..20 {
                copy_ranges((&lease(from), ranges()), (&lease(to), ranges()), 16).unwrap();
            }
        };
        let [one, two] = &regions;
        std::thread::scope(|scope| {
            scope.spawn(|| cross(one, two));
            scope.spawn(|| cross(two, one));
        });
        let mut held = [[0; 16]; 2];
        regions.iter().zip(&mut held).for_each(|(region, held)| region.read_at(0, held).unwrap());
        // From the first on both are the same.
        assert!([[[1; 16]; 2], [[2; 16]; 2]].contains(&held), "{held:?}");
    }
}
