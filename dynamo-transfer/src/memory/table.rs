use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::region::RegionMemory;
use crate::error::{Error, ErrorKind, Result};

/// An agent's regions: what may be reached, by whom, and what is being reached.
#[derive(Default)]
pub(crate) struct RegionTable(Mutex<Regions>);

#[derive(Default)]
struct Regions {
    entries: HashMap<u64, Entry>,
    next_id: u64,
}

struct Entry {
    memory: Arc<dyn RegionMemory>,
    key: RegionKey,
    len: u64,
    rights: Rights,
    operations: Arc<watch::Sender<usize>>,
}

/// What a peer must present besides the id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionKey {
    /// Differs each time memory is registered.
    pub(crate) generation: u64,
    /// Unguessable.
    pub(crate) token: u128,
}

/// Who may write a region; its own agent and peers may always read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    ReadOnly,
    OwnerWrites,
    /// Peers and the owner.
    PeersWrite,
}

/// What an operation does with the remote region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Write,
}

/// A region in use: keeps the memory alive. The memory is given up before it counts as quiet.
pub(crate) struct Lease {
    memory: Arc<dyn RegionMemory>,
    operation: Operation,
}

struct Operation(Arc<watch::Sender<usize>>);

/// Lets the owner of a revoked region wait for its last operation.
pub(super) struct Quiet(Arc<watch::Sender<usize>>);

impl RegionTable {
    pub(super) fn insert(
        &self,
        memory: Arc<dyn RegionMemory>,
        len: u64,
        rights: Rights,
    ) -> Result<u64> {
        let token = u128::from(random()?) << 64 | u128::from(random()?);
        let key = RegionKey { generation: random()?, token };
        let mut regions = self.lock();
        if regions.entries.len() >= REGIONS_MAX {
            let message = format!("{REGIONS_MAX} regions are registered, the limit");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let id = regions.next_id;
        regions.next_id += 1;
        let operations = Arc::default();
        regions.entries.insert(id, Entry { memory, key, len, rights, operations });
        Ok(id)
    }

    /// Refuses further operations on the region.
    pub(super) fn remove(&self, id: u64) -> Option<Quiet> {
        self.lock().entries.remove(&id).map(|entry| Quiet(entry.operations))
    }

    /// Leases a region to this agent itself; reading from a peer writes it.
    pub(crate) fn lease_local(&self, id: u64, right: Right) -> Result<Lease> {
        let regions = self.lock();
        let entry = regions.entries.get(&id).ok_or_else(|| stale(id))?;
        if right == Right::Read && entry.rights == Rights::ReadOnly {
            let message = format!("local region {id} is read-only");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        Ok(Lease::new(entry))
    }

    /// Leases a region to a peer, checking everything it claims.
    pub(crate) fn lease_remote(
        &self,
        id: u64,
        key: RegionKey,
        right: Right,
        ranges: &[(u64, u64)],
    ) -> Result<Lease> {
        let regions = self.lock();
        let entry = regions.entries.get(&id).ok_or_else(|| stale(id))?;
        if entry.key.generation != key.generation {
            return Err(stale(id));
        }
        if entry.key.token != key.token {
            let message = format!("token of region {id} is wrong");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        if right == Right::Write && entry.rights != Rights::PeersWrite {
            let message = format!("region {id} is not writable by peers");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        for &(offset, len) in ranges {
            if offset.checked_add(len).is_none_or(|end| end > entry.len) {
                let message =
                    format!("range {offset}+{len} lies outside region {id} of {} bytes", entry.len);
                return Err(Error::new(ErrorKind::OutOfBounds, message));
            }
        }
        Ok(Lease::new(entry))
    }

    /// Returns what a peer must present, the size, and who may write.
    pub(crate) fn grant(&self, id: u64) -> Option<(RegionKey, u64, Rights)> {
        let regions = self.lock();
        regions.entries.get(&id).map(|entry| (entry.key, entry.len, entry.rights))
    }

    fn lock(&self) -> MutexGuard<'_, Regions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    fn new(entry: &Entry) -> Self {
        entry.operations.send_modify(|count| *count += 1);
        Self {
            memory: Arc::clone(&entry.memory),
            operation: Operation(Arc::clone(&entry.operations)),
        }
    }

    pub(crate) fn memory(&self) -> &dyn RegionMemory {
        &*self.memory
    }

    /// Returns where `len` bytes from `offset` on are; whoever uses the spans keeps the lease.
    #[cfg(feature = "ucx")]
    pub(crate) fn spans(&self, mut offset: u64, len: u64) -> Vec<super::Span> {
        let mut spans = Vec::new();
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 {
            let mut span = None;
            self.memory.with_bytes_mut(offset, left, &mut |b| span = Some(super::Span::of_mut(b)));
            if span.is_none() {
                self.memory.with_bytes(offset, left, &mut |b| span = Some(super::Span::of(b)));
            }
            let Some(span) = span.filter(|span| span.len() > 0) else { break };
            spans.push(span);
            offset += span.len() as u64;
            left -= span.len();
        }
        spans
    }

    pub(crate) fn is_same_region(&self, other: &Self) -> bool {
        self.order() == other.order()
    }

    /// Returns a number by which the regions of a process are ordered: whoever holds the locks of
    /// two takes them in this order.
    pub(crate) fn order(&self) -> usize {
        Arc::as_ptr(&self.operation.0).addr()
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Quiet {
    pub(super) async fn wait(self) {
        // The sender is held here, so the channel stays open.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Returns an unguessable number from the operating system.
pub(crate) fn random() -> Result<u64> {
    getrandom::u64().map_err(|error| {
        Error::new(ErrorKind::Internal, "the system gives no random numbers").with_source(error)
    })
}

fn stale(id: u64) -> Error {
    Error::new(ErrorKind::StaleRegion, format!("region {id} is revoked"))
}

/// A limit on metadata and memory: far above one region per staged sequence.
const REGIONS_MAX: usize = 65_536;
