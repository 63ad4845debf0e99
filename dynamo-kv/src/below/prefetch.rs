use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

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
        let Sources { disk, remote, .. } = pool.prefetch(&keys).await;
        loaded.fetch_add((disk + remote) as u64, Ordering::Relaxed);
    }
}
