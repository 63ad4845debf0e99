use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use dynamo_transfer::SharedSlot;

use crate::evict::EntryId;
use crate::identity::BlockIdentity;
use crate::pool::Shard;

/// A shared block: findable, immutable, and kept while any guard lives.
///
/// When the last guard goes the block is cached: still findable, and evicted when room is needed.
pub struct RegisteredBlock {
    shard: Arc<Shard>,
    entry: EntryId,
    /// `None` only while being dropped.
    slot: Option<SharedSlot>,
    identity: BlockIdentity,
}

/// A block that is not kept by this: it may be evicted at any time.
#[derive(Clone)]
pub struct WeakBlock {
    shard: Weak<Shard>,
    entry: EntryId,
    identity: BlockIdentity,
}

impl RegisteredBlock {
    pub(crate) fn new(
        shard: &Arc<Shard>,
        entry: EntryId,
        slot: SharedSlot,
        identity: BlockIdentity,
    ) -> Self {
        Self { shard: Arc::clone(shard), entry, slot: Some(slot), identity }
    }

    /// Returns which block it is.
    pub fn identity(&self) -> &BlockIdentity {
        &self.identity
    }

    /// Returns a handle that finds the block again without a search, and does not keep it.
    pub fn downgrade(&self) -> WeakBlock {
        let Self { shard, entry, identity, .. } = self;
        WeakBlock { shard: Arc::downgrade(shard), entry: *entry, identity: *identity }
    }
}

impl WeakBlock {
    /// Returns which block it is.
    pub fn identity(&self) -> &BlockIdentity {
        &self.identity
    }

    /// Returns the block if it was not evicted.
    pub fn upgrade(&self) -> Option<RegisteredBlock> {
        let shard = self.shard.upgrade()?;
        let slot = shard.hold(self.entry, &self.identity)?;
        Some(RegisteredBlock::new(&shard, self.entry, slot, self.identity))
    }
}

impl Clone for RegisteredBlock {
    fn clone(&self) -> Self {
        // It is held already: only the slot counts who holds it.
        let Self { shard, entry, slot, identity } = self;
        let (shard, slot) = (Arc::clone(shard), slot.clone());
        Self { shard, entry: *entry, slot, identity: *identity }
    }
}

impl Drop for RegisteredBlock {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.shard.release(self.entry, slot);
        }
    }
}

impl Deref for RegisteredBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slot.as_deref().expect("the memory is given up only in drop")
    }
}

impl AsRef<[u8]> for RegisteredBlock {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for RegisteredBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegisteredBlock").field(&self.identity).finish()
    }
}

impl fmt::Debug for WeakBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WeakBlock").field(&self.identity).finish()
    }
}
