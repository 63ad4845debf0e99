use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::RegisteredRegion;
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::OwnerConfig;
use super::message::LeaseId;
use super::stats::OwnerStats;
use crate::block::{MutableBlock, RegisteredBlock};
use crate::identity::BlockKey;
use crate::time::expiry_or_change;

/// All leases of an owner.
pub(super) struct Leases {
    config: OwnerConfig,
    table: Mutex<Table>,
    /// Wakes whoever ends them when one arrives.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<LeaseId, Lease>,
    /// Leases of each client that has any.
    by_client: HashMap<u64, usize>,
    /// Blocks of all of them, and of those that ended while something was still moving.
    blocks: usize,
    is_closed: bool,
    expired_total: u64,
    refused_total: u64,
}

/// Blocks that are lent until then.
pub(super) struct Lease {
    pub(super) expires: Instant,
    pub(super) held: Held,
}

/// Dropping it revokes the region; blocks are given up when nothing touches them any more.
pub(super) enum Held {
    Read { region: RegisteredRegion<Part<RegisteredBlock>> },
    Write { region: RegisteredRegion<Part<MutableBlock>>, keys: Vec<BlockKey> },
}

/// A block of a lease: it counts as lent for as long as its memory is.
pub(super) struct Part<B> {
    /// Dropped first.
    pub(super) block: B,
    room: Room,
}

/// Room for one block among those that are lent.
pub(super) struct Room {
    leases: Arc<Leases>,
    /// One for all blocks of a lease.
    _client: Arc<ClientLease>,
}

/// A lease among those of a client.
struct ClientLease {
    leases: Arc<Leases>,
    client: u64,
}

impl Leases {
    pub(super) fn new(config: OwnerConfig) -> Self {
        Self { config, table: Mutex::default(), changed: watch::Sender::default() }
    }

    /// Makes room for a lease of so many blocks.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if there are none, and with
    /// [`Overloaded`](ErrorKind::Overloaded) if the client, or all together, have too many.
    pub(super) fn admit(self: &Arc<Self>, client: u64, blocks: usize) -> Result<Vec<Room>> {
        let OwnerConfig { client_leases_max, blocks_max, .. } = self.config;
        if blocks == 0 {
            return Err(Error::invalid("a lease of 0 blocks"));
        }
        let mut table = self.lock();
        if table.is_closed {
            return Err(Error::new(ErrorKind::Closed, "owner of blocks has shut down"));
        }
        let of_client = table.by_client.get(&client).copied().unwrap_or(0);
        if of_client >= client_leases_max || table.blocks + blocks > blocks_max {
            let message = format!(
                "{} of {blocks_max} blocks lent, {of_client} of {client_leases_max} leases of the \
                 client, {blocks} blocks more wanted",
                table.blocks
            );
            table.refused_total += 1;
            return Err(Error::new(ErrorKind::Overloaded, message).unprocessed());
        }
        table.blocks += blocks;
        table.by_client.insert(client, of_client + 1);
        drop(table);
        let client = Arc::new(ClientLease { leases: Arc::clone(self), client });
        let room = || Room { leases: Arc::clone(self), _client: Arc::clone(&client) };
        Ok((0..blocks).map(|_| room()).collect())
    }

    /// Begins a lease; what is held is given up if the owner has shut down.
    pub(super) fn insert(&self, id: LeaseId, held: Held) -> Result<()> {
        let lease = Lease { expires: Instant::now() + self.config.ttl, held };
        {
            let mut table = self.lock();
            if !table.is_closed {
                table.by_id.insert(id, lease);
                drop(table);
                self.changed.send_replace(());
                return Ok(());
            }
        }
        drop(lease);
        Err(Error::new(ErrorKind::Closed, "owner of blocks has shut down"))
    }

    /// Ends a lease, if it has not ended.
    pub(super) fn take(&self, id: &LeaseId) -> Option<Lease> {
        // It is dropped outside: that takes the locks of table and pool.
        self.lock().by_id.remove(id)
    }

    /// Returns how many blocks one lease may be about.
    pub(super) fn lease_blocks_max(&self) -> usize {
        self.config.lease_blocks_max.min(self.config.blocks_max)
    }

    /// Returns how many blocks are lent, those that are still moving after their lease among them.
    pub(super) fn blocks(&self) -> usize {
        self.lock().blocks
    }

    /// Returns what is lent, and what leases have come to; the rest is counted elsewhere.
    pub(super) fn stats(&self) -> OwnerStats {
        let table = self.lock();
        OwnerStats {
            lent_blocks: table.blocks,
            leases: table.by_id.len(),
            expired_total: table.expired_total,
            refused_total: table.refused_total,
            ..OwnerStats::default()
        }
    }

    /// Ends leases at their time, until it is dropped.
    pub(super) async fn expire(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            let next = self.expire_at(Instant::now());
            expiry_or_change(next, &mut changed).await;
        }
    }

    /// Ends every lease whose time is over; returns when the next one's is.
    fn expire_at(&self, now: Instant) -> Option<Instant> {
        let mut table = self.lock();
        let overdue: Vec<_> = table.by_id.extract_if(|_, lease| lease.expires <= now).collect();
        let next = table.by_id.values().map(|lease| lease.expires).min();
        table.expired_total += overdue.len() as u64;
        drop(table);
        if !overdue.is_empty() {
            tracing::debug!(leases = overdue.len(), "leases of blocks have expired");
        }
        next
    }

    /// Ends every lease, and refuses others.
    pub(super) fn close(&self) {
        let mut table = self.lock();
        table.is_closed = true;
        let leases = std::mem::take(&mut table.by_id);
        drop(table);
        drop(leases);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Puts a block where there is room for it.
    pub(super) fn hold<B>(self, block: B) -> Part<B> {
        Part { block, room: self }
    }
}

impl<B> Part<B> {
    pub(super) fn into_parts(self) -> (B, Room) {
        (self.block, self.room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.leases.lock().blocks -= 1;
    }
}

impl Drop for ClientLease {
    fn drop(&mut self) {
        let mut table = self.leases.lock();
        if let Some(leases) = table.by_client.get_mut(&self.client) {
            *leases -= 1;
            if *leases == 0 {
                table.by_client.remove(&self.client);
            }
        }
    }
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Part<B> {
    fn as_ref(&self) -> &[u8] {
        self.block.as_ref()
    }
}

impl<B: AsMut<[u8]>> AsMut<[u8]> for Part<B> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.block.as_mut()
    }
}
