use std::sync::Weak;

use tokio::sync::mpsc;

use crate::identity::BlockKey;
use crate::pool::Pool;

/// Loads what is asked for, one after the other, and leaves it cached.
pub(super) async fn run(mut queue: mpsc::Receiver<Vec<BlockKey>>, pool: Weak<Pool>) {
    while let Some(keys) = queue.recv().await {
        let Some(pool) = pool.upgrade() else { return };
        drop(pool.acquire(&keys).await);
    }
}
