use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use dynamo_core::protocol::Tier;
use tokio::sync::mpsc;

use super::Sources;
use crate::identity::BlockKey;
use crate::pool::Pool;

/// Blocks, and whose they are to be.
pub(super) type Wanted = (Weak<Pool>, Vec<BlockKey>);

/// Loads what is asked for, one after the other, and leaves it cached.
pub(super) async fn run(mut queue: mpsc::Receiver<Wanted>, loaded: Arc<AtomicU64>) {
    while let Some((pool, keys)) = queue.recv().await {
        let Some(pool) = pool.upgrade() else { continue };
        let Sources { host, disk, remote, .. } = pool.prefetch(&keys).await;
        // What was in host memory was loaded if the pool is above that.
        let host = if pool.tier() == Tier::Device { host } else { 0 };
        loaded.fetch_add((host + disk + remote) as u64, Ordering::Relaxed);
    }
}
