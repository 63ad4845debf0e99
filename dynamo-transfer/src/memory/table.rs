use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[cfg(target_os = "linux")]
use tokio::time::Instant;

use super::lease::{Backing, Lease, Leased, Uses};
use super::token::{Mint, Token};
use super::{Grant, MemoryKind};
use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};

/// An agent's regions: what may be reached, by whom, and what is being reached.
pub(crate) struct RegionTable {
    regions: Mutex<Regions>,
    mint: Mint,
}

#[derive(Default)]
struct Regions {
    entries: HashMap<u64, Entry>,
    next_id: u64,
}

struct Entry {
    backing: Backing,
    generation: u64,
    rights: Rights,
    uses: Arc<Uses>,
    standing: Vec<Weak<dyn Standing>>,
}

/// Who may use a region again and again without asking, until told otherwise.
pub(crate) trait Standing: Send + Sync {
    /// Ends that at once: the region is revoked. A use that has begun may last.
    fn revoke(&self);
}

/// Who may write a region; its own agent, and peers with a grant, may always read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rights {
    /// Nobody.
    ReadOnly,
    /// The agent that registered it.
    OwnerWrites,
    /// That agent, and peers with a grant.
    PeersWrite,
}

/// What an operation does with the remote region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Right {
    Read,
    Write,
}

impl RegionTable {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { regions: Mutex::default(), mint: Mint::new()? })
    }

    /// Registers memory; returns its id and its generation.
    pub(super) fn insert(&self, backing: Backing, rights: Rights) -> Result<(u64, u64)> {
        let generation = random()?;
        let mut regions = self.lock();
        if regions.entries.len() >= REGIONS_MAX {
            let message = format!("{REGIONS_MAX} regions are registered, the limit");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let id = regions.next_id;
        regions.next_id += 1;
        let (uses, standing) = (Arc::default(), Vec::new());
        regions.entries.insert(id, Entry { backing, generation, rights, uses, standing });
        Ok((id, generation))
    }

    /// Refuses further operations on the region; returns those in flight.
    pub(super) fn remove(&self, id: u64) -> Option<Arc<Uses>> {
        let entry = self.lock().entries.remove(&id)?;
        for standing in entry.standing.iter().filter_map(Weak::upgrade) {
            standing.revoke();
        }
        Some(entry.uses)
    }

    /// Returns how many regions are registered.
    pub(crate) fn count(&self) -> usize {
        self.lock().entries.len()
    }

    /// Has `standing` told when the region of that generation is revoked; fails if it is.
    #[cfg(target_os = "linux")]
    pub(crate) fn stand(
        &self,
        id: u64,
        generation: u64,
        standing: Weak<dyn Standing>,
    ) -> Result<()> {
        let mut regions = self.lock();
        let entry = regions.entries.get_mut(&id).filter(|entry| entry.generation == generation);
        let entry = entry.ok_or_else(|| stale(id))?;
        entry.standing.retain(|other| other.strong_count() > 0);
        entry.standing.push(standing);
        Ok(())
    }

    /// Returns when a token expires, if it does.
    #[cfg(target_os = "linux")]
    pub(crate) fn expiry(&self, token: &Token) -> Option<Instant> {
        self.mint.expiry(token)
    }

    /// Returns what memory a region of this agent is.
    pub(crate) fn kind(&self, id: u64) -> Result<MemoryKind> {
        let regions = self.lock();
        regions.entries.get(&id).map(|entry| entry.backing.kind()).ok_or_else(|| stale(id))
    }

    /// Leases a region to this agent itself, which counts its own as `user`; reading from a peer writes
    /// it.
    pub(crate) fn lease_local(&self, id: u64, right: Right, user: &Arc<Uses>) -> Result<Leased> {
        let regions = self.lock();
        let entry = regions.entries.get(&id).ok_or_else(|| stale(id))?;
        if right == Right::Read && entry.rights == Rights::ReadOnly {
            let message = format!("local region {id} is read-only");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        Ok(Leased::new(&entry.backing, &entry.uses, Some(user)))
    }

    /// Leases a region of host memory to a peer, checking everything it claims.
    pub(crate) fn lease_remote(
        &self,
        id: u64,
        token: &Token,
        right: Right,
        ranges: &Ranges,
    ) -> Result<Lease> {
        match self.lease_any(id, token, right, ranges)? {
            Leased::Host(lease) => Ok(lease),
            Leased::Far(lease) => {
                let message = format!("region {id} is {:?} memory", lease.memory().kind());
                Err(Error::new(ErrorKind::BackendUnavailable, message))
            }
        }
    }

    /// Leases a region of any memory to a peer, checking everything it claims.
    pub(crate) fn lease_any(
        &self,
        id: u64,
        token: &Token,
        right: Right,
        ranges: &Ranges,
    ) -> Result<Leased> {
        let lease = {
            let regions = self.lock();
            let entry = regions.entries.get(&id).ok_or_else(|| stale(id))?;
            if entry.generation != token.generation {
                return Err(stale(id));
            }
            if right == Right::Write && entry.rights != Rights::PeersWrite {
                let message = format!("region {id} is not writable by peers");
                return Err(Error::new(ErrorKind::PermissionDenied, message));
            }
            Leased::new(&entry.backing, &entry.uses, None)
        };
        self.mint.check(id, token, right)?;
        ranges.check(lease.len()).map_err(|error| error.in_region(id))?;
        Ok(lease)
    }

    /// Returns a token for a region, its size and its kind: it may be written as far as its rights and
    /// the grant go.
    pub(crate) fn grant(&self, grant: Grant) -> Result<(Token, u64, MemoryKind)> {
        let Grant { id, generation, is_writable, ttl } = grant;
        let regions = self.lock();
        let entry = regions.entries.get(&id).filter(|entry| entry.generation == generation);
        let entry = entry.ok_or_else(|| stale(id))?;
        let is_writable = is_writable && entry.rights == Rights::PeersWrite;
        let token = self.mint.issue((id, generation), is_writable, ttl);
        Ok((token, entry.backing.len(), entry.backing.kind()))
    }

    fn lock(&self) -> MutexGuard<'_, Regions> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an unguessable number from the operating system.
pub(crate) fn random() -> Result<u64> {
    getrandom::u64().map_err(|error| {
        Error::new(ErrorKind::Internal, "the system gives no random numbers").with_source(error)
    })
}

fn stale(id: u64) -> Error {
    Error::new(ErrorKind::StaleRegion, format!("region {id} is revoked, or of another agent"))
}

/// A limit on metadata and memory: far above one region per staged sequence.
const REGIONS_MAX: usize = 65_536;
