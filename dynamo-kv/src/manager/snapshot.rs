//! What a manager holds, told to a router that lost events.

use std::sync::Arc;

use dynamo_core::protocol::{
    KvChange, KvCursor, SequenceHash, SnapshotPage, SnapshotRequest, StoredBlock, Tier,
};
use dynamo_core::{Context, Engine, Error, ErrorKind, ResponseStream, Result};
use futures::stream;
use tokio::sync::Semaphore;

use super::{BlockManager, Snapshot};

/// Answers with what the block managers of a process hold, page by page.
///
/// A worker serves it at an endpoint of its component, as the instance whose id its events carry, so
/// that a router that lost events, or has just started, learns what there is
/// (`EventFeed::start_with_snapshots` of `dynamo-router`). A page has at most 4,096 blocks. A snapshot is
/// taken under all locks of its manager, in tens of nanoseconds a block, and kept until it is read:
/// so at most four are under way, and further requests fail with
/// [`Overloaded`](ErrorKind::Overloaded). A request for another worker's blocks fails with
/// [`NotFound`](ErrorKind::NotFound).
#[derive(Debug)]
pub struct SnapshotEngine {
    managers: Vec<BlockManager>,
    turns: Arc<Semaphore>,
}

impl SnapshotEngine {
    /// Answers for `managers`: one for each rank of the instance.
    pub fn new(managers: impl IntoIterator<Item = BlockManager>) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { managers: managers.into_iter().collect(), turns }
    }
}

impl Engine for SnapshotEngine {
    type Request = SnapshotRequest;
    type Response = SnapshotPage;

    async fn generate(
        &self,
        ctx: Context,
        request: SnapshotRequest,
    ) -> Result<ResponseStream<SnapshotPage>> {
        let SnapshotRequest { worker, known } = request;
        let manager = self.managers.iter().find(|manager| manager.worker() == worker);
        let manager = manager.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("blocks of worker {worker} are not here"))
        })?;
        let cursor = manager.pool.cursor();
        if known == Some(cursor) {
            let nothing = SnapshotPage { worker, cursor, stored: Vec::new() };
            return Ok(ResponseStream::from_items(&ctx, [nothing]));
        }
        let turn = Arc::clone(&self.turns).try_acquire_owned().map_err(|_| {
            let message = format!("{AT_ONCE} snapshots of worker {worker} are under way");
            Error::new(ErrorKind::Overloaded, message)
        })?;
        let Snapshot { epoch, seq, stored } = manager.snapshot();
        let blocks = stored.into_iter().flat_map(one_by_one);
        let pages = SnapshotPage::cut(worker, KvCursor { epoch, next: seq }, blocks);
        Ok(ResponseStream::new(&ctx, stream::iter(pages.map(Ok))).with_guard(turn))
    }
}

/// Takes a run of stored blocks apart.
fn one_by_one(change: KvChange) -> impl Iterator<Item = (Option<SequenceHash>, StoredBlock, Tier)> {
    let (mut parent, blocks, tier) = match change {
        KvChange::BlockStored { parent, blocks, tier } => (parent, blocks, tier),
        _ => (None, Vec::new(), Tier::Host),
    };
    blocks.into_iter().map(move |block| (parent.replace(block.sequence), block, tier))
}

/// More routers than a fleet has, less the time that each takes to read.
const AT_ONCE: usize = 4;
