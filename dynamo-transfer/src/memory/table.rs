use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
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

/// What peers may do with a region; its own agent may always read, and write unless read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) peer_write: bool,
}

/// What an operation does with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Write,
}

/// A region in use: keeps the memory alive. The memory is given up before it counts as quiet.
pub(crate) struct Lease {
    memory: Arc<dyn RegionMemory>,
    _operation: Operation,
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
        let mut regions = self.lock();
        if regions.entries.len() >= REGIONS_MAX {
            let message = format!("{REGIONS_MAX} regions are registered, the limit");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let id = regions.next_id;
        regions.next_id += 1;
        let token = u128::from(random()) << 64 | u128::from(random());
        let key = RegionKey { generation: random(), token };
        let operations = Arc::default();
        regions.entries.insert(id, Entry { memory, key, len, rights, operations });
        Ok(id)
    }

    /// Refuses further operations on the region.
    pub(super) fn remove(&self, id: u64) -> Option<Quiet> {
        self.lock().entries.remove(&id).map(|entry| Quiet(entry.operations))
    }

    /// Leases a region to this agent itself.
    pub(crate) fn lease_local(&self, id: u64) -> Result<Lease> {
        let regions = self.lock();
        let entry = regions.entries.get(&id).ok_or_else(|| stale(id))?;
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
        if right == Right::Write && !entry.rights.peer_write {
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

    /// Returns what a peer must present, the size, and whether the peer may write.
    pub(crate) fn grant(&self, id: u64) -> Option<(RegionKey, u64, bool)> {
        let regions = self.lock();
        regions.entries.get(&id).map(|entry| (entry.key, entry.len, entry.rights.peer_write))
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
            _operation: Operation(Arc::clone(&entry.operations)),
        }
    }

    pub(crate) fn memory(&self) -> &dyn RegionMemory {
        &*self.memory
    }

    pub(crate) fn is_same_region(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self._operation.0, &other._operation.0)
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

/// Returns an unguessable number: std keys each state from the system's entropy (SipHash).
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn stale(id: u64) -> Error {
    Error::new(ErrorKind::StaleRegion, format!("region {id} is revoked"))
}

/// A limit on metadata and memory: far above one region per staged sequence.
const REGIONS_MAX: usize = 65_536;
