use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use dynamo_transfer::HostBuffer;

use crate::identity::BlockKey;
use crate::pool::Pool;

/// A shared block: findable, immutable, and kept while any guard lives.
///
/// When the last guard goes the block is cached: still findable, and evicted when room is needed.
pub struct RegisteredBlock {
    pool: Arc<Pool>,
    key: BlockKey,
    /// `None` only while being dropped.
    buffer: Option<Arc<HostBuffer>>,
}

impl RegisteredBlock {
    pub(crate) fn new(pool: &Arc<Pool>, key: BlockKey, buffer: Arc<HostBuffer>) -> Self {
        Self { pool: Arc::clone(pool), key, buffer: Some(buffer) }
    }

    /// Returns which block it is.
    pub fn key(&self) -> &BlockKey {
        &self.key
    }
}

impl Clone for RegisteredBlock {
    fn clone(&self) -> Self {
        self.pool.pin(&self.key);
        Self { pool: Arc::clone(&self.pool), key: self.key, buffer: self.buffer.clone() }
    }
}

impl Drop for RegisteredBlock {
    fn drop(&mut self) {
        // The memory is given up first: whoever evicts the block must find itself its only owner.
        self.buffer = None;
        self.pool.unpin(&self.key);
    }
}

impl Deref for RegisteredBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().expect("the memory is given up only in drop")
    }
}

impl AsRef<[u8]> for RegisteredBlock {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for RegisteredBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredBlock").field("key", &self.key).finish_non_exhaustive()
    }
}
