use super::end::pieces;
use crate::backend::cuda::DeviceMemory;
use crate::error::Result;
use crate::memory::{FarLease, Lease, Leased, Right};
use crate::plan::Stripe;
use crate::vocabulary::BackendKind;

/// Two ends between which one engine moves bytes at once.
pub(super) enum Direct<'a> {
    /// Host memory, and what the engine reaches.
    Host { host: &'a Lease, far: &'a FarLease, is_far_local: bool },
    /// Memory of one device: the local end and the remote one.
    Device { ends: [&'a DeviceMemory; 2], leases: [&'a FarLease; 2] },
}

impl<'a> Direct<'a> {
    /// Returns the engine, if one reaches both ends.
    pub(super) fn between(local: &'a Leased, remote: &'a Leased) -> Option<Self> {
        let (host, far, is_far_local) = match (local, remote) {
            (Leased::Host(host), Leased::Far(far)) => (host, far, false),
            (Leased::Far(far), Leased::Host(host)) => (host, far, true),
            (Leased::Far(local), Leased::Far(remote)) => {
                let ends = [local.memory().device()?, remote.memory().device()?];
                let is_one = ends[0].id() == ends[1].id();
                return is_one.then_some(Self::Device { ends, leases: [local, remote] });
            }
            (Leased::Host(_), Leased::Host(_)) => return None,
        };
        let device = far.memory().device().map(DeviceMemory::id);
        let is_reached = device.is_none() || device == host.memory().pinned();
        is_reached.then_some(Self::Host { host, far, is_far_local })
    }

    fn is_file(&self) -> bool {
        matches!(self, Self::Host { far, .. } if far.memory().device().is_none())
    }

    /// Returns how much to move at once: between stripes is when progress is told.
    pub(super) fn stripe_bytes(&self) -> u64 {
        // One submission of many blocks is what a device is fast at.
        if self.is_file() { FILE_STRIPE_BYTES } else { u64::MAX }
    }

    pub(super) fn kind(&self) -> BackendKind {
        if self.is_file() { BackendKind::File } else { BackendKind::Device }
    }

    /// Moves a stripe; `right` is what is done to the remote end.
    pub(super) async fn run(&self, right: Right, stripe: &Stripe) -> Result<()> {
        match self {
            Self::Host { host, far, is_far_local } => {
                let right = match (right, is_far_local) {
                    (right, false) => right,
                    (Right::Read, true) => Right::Write,
                    (Right::Write, true) => Right::Read,
                };
                let pieces = stripe.chunks.iter().flat_map(|chunk| {
                    let (at, offset) = match is_far_local {
                        true => (chunk.remote, chunk.local),
                        false => (chunk.local, chunk.remote),
                    };
                    pieces(offset, host.memory().spans(at, chunk.len))
                });
                let (pieces, pinned) = (pieces.collect(), host.memory().pinned());
                let keep = Box::new(((*host).clone(), (*far).clone()));
                far.memory().pass(right, pieces, pinned, keep).await
            }
            Self::Device { ends: [local, remote], leases } => {
                let keep = Box::new(leases.map(Clone::clone));
                let chunks = stripe.chunks.iter();
                match right {
                    Right::Read => {
                        let ranges = chunks.map(|chunk| (chunk.remote, chunk.local, chunk.len));
                        local.copy_from(remote, ranges, keep).await
                    }
                    Right::Write => {
                        let ranges = chunks.map(|chunk| (chunk.local, chunk.remote, chunk.len));
                        remote.copy_from(local, ranges, keep).await
                    }
                }
            }
        }
    }
}

/// Far more than a store has under way at once.
const FILE_STRIPE_BYTES: u64 = 256 << 20;
