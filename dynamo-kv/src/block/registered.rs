use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use dynamo_transfer::{SharedSlot, SlotRun};

use crate::identity::BlockIdentity;
use crate::pool::{Home, Place, Pool};

/// A shared block: findable, immutable, and kept while any guard lives.
///
/// When the last guard goes the block is cached: still findable, and evicted when room is needed.
pub struct RegisteredBlock {
    pool: Arc<Pool>,
    place: Place,
    /// `None` only while being dropped.
    slot: Option<SharedSlot<Home>>,
    identity: BlockIdentity,
}

/// A block that is not kept by this: it may be evicted at any time.
#[derive(Clone)]
pub struct WeakBlock {
    pool: Weak<Pool>,
    place: Place,
    identity: BlockIdentity,
}

impl RegisteredBlock {
    pub(crate) fn new(
        pool: &Arc<Pool>,
        place: Place,
        slot: SharedSlot<Home>,
        identity: BlockIdentity,
    ) -> Self {
        Self { pool: Arc::clone(pool), place, slot: Some(slot), identity }
    }

    /// Returns a hold of the block as a run.
    pub(super) fn as_run(&self) -> (&Arc<Pool>, Place, SlotRun<Home>) {
        (&self.pool, self.place, self.held().clone().into_run(1))
    }

    pub(super) fn held(&self) -> &SharedSlot<Home> {
        self.slot.as_ref().expect("the memory is given up only in drop")
    }

    /// Returns which block it is.
    pub fn identity(&self) -> &BlockIdentity {
        &self.identity
    }

    /// Returns a handle that finds the block again without a search, and does not keep it.
    pub fn downgrade(&self) -> WeakBlock {
        let Self { pool, place, identity, .. } = self;
        WeakBlock { pool: Arc::downgrade(pool), place: *place, identity: *identity }
    }
}

impl WeakBlock {
    /// Returns which block it is.
    pub fn identity(&self) -> &BlockIdentity {
        &self.identity
    }

    /// Returns the block if it was not evicted.
    pub fn upgrade(&self) -> Option<RegisteredBlock> {
        let pool = self.pool.upgrade()?;
        let slot = pool.hold(self.place, &self.identity)?;
        Some(RegisteredBlock::new(&pool, self.place, slot, self.identity))
    }
}

impl Clone for RegisteredBlock {
    fn clone(&self) -> Self {
        // It is held already: only the slot counts who holds it.
        let Self { pool, place, slot, identity } = self;
        let (pool, slot) = (Arc::clone(pool), slot.clone());
        Self { pool, place: *place, slot, identity: *identity }
    }
}

impl Drop for RegisteredBlock {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            drop(slot);
            self.pool.settle(self.place);
        }
    }
}

impl Deref for RegisteredBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.held()
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
