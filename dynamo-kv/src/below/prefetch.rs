use std::sync::Weak;

use tokio::sync::mpsc;

use crate::identity::BlockKey;
use crate::pool::Pool;

/// Blocks, and whose they are to be.
pub(super) type Wanted = (Weak<Pool>, Vec<BlockKey>);

/// Loads what is asked for, one after the other, and leaves it cached.
pub(super) async fn run(mut queue: mpsc::Receiver<Wanted>) {
    while let Some((pool, keys)) = queue.recv().await {
        let Some(pool) = pool.upgrade() else { continue };
        drop(pool.acquire(&keys).await);
    }
}
