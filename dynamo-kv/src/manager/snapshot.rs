//! What a manager holds, told to a router that lost events.

use std::iter::Peekable;
use std::sync::Arc;

use dynamo_core::protocol::{
    KvChange, KvCursor, SequenceHash, SnapshotPage, SnapshotRequest, StoredBlock, Tier, WorkerId,
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
        let pages = Pages::new(worker, manager.snapshot(), PAGE_BLOCKS);
        Ok(ResponseStream::new(&ctx, stream::iter(pages.map(Ok))).with_guard(turn))
    }
}

/// A snapshot, cut into pages as they are taken.
struct Pages {
    worker: WorkerId,
    cursor: KvCursor,
    /// What is not in a page yet, each with its parent.
    blocks: Peekable<Box<dyn Iterator<Item = Placed> + Send>>,
    page_blocks: usize,
    is_first: bool,
}

/// A block, behind its parent, in a tier.
type Placed = (Option<SequenceHash>, StoredBlock, Tier);

impl Pages {
    fn new(worker: WorkerId, snapshot: Snapshot, page_blocks: usize) -> Self {
        let Snapshot { epoch, seq, stored } = snapshot;
        let cursor = KvCursor { epoch, next: seq };
        let blocks: Box<dyn Iterator<Item = Placed> + Send> =
            Box::new(stored.into_iter().flat_map(one_by_one));
        Self { worker, cursor, blocks: blocks.peekable(), page_blocks, is_first: true }
    }
}

impl Iterator for Pages {
    type Item = SnapshotPage;

    fn next(&mut self) -> Option<SnapshotPage> {
        // One that holds nothing has a page too, which says of what moment that is true.
        if !std::mem::take(&mut self.is_first) {
            self.blocks.peek()?;
        }
        let mut stored: Vec<KvChange> = Vec::new();
        for (parent, block, tier) in self.blocks.by_ref().take(self.page_blocks) {
            KvChange::push_stored(&mut stored, parent, &[block], tier);
        }
        Some(SnapshotPage { worker: self.worker, cursor: self.cursor, stored })
    }
}

/// Takes a run of stored blocks apart.
fn one_by_one(change: KvChange) -> impl Iterator<Item = Placed> {
    let (mut parent, blocks, tier) = match change {
        KvChange::BlockStored { parent, blocks, tier } => (parent, blocks, tier),
        _ => (None, Vec::new(), Tier::Host),
    };
    blocks.into_iter().map(move |block| (parent.replace(block.sequence), block, tier))
}

/// Some 100 KiB of a page that is encoded.
const PAGE_BLOCKS: usize = 4096;

/// More routers than a fleet has, less the time that each takes to read.
const AT_ONCE: usize = 4;

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::{InstanceId, LocalHash};

    use super::*;

    fn stored(parent: Option<u64>, hashes: impl IntoIterator<Item = u64>, tier: Tier) -> KvChange {
        let block = |hash| StoredBlock { sequence: SequenceHash(hash), local: LocalHash(hash) };
        let blocks = hashes.into_iter().map(block).collect();
        KvChange::BlockStored { parent: parent.map(SequenceHash), blocks, tier }
    }

    fn pages(stored: Vec<KvChange>) -> Vec<Vec<KvChange>> {
        let snapshot = Snapshot { epoch: 3, seq: 7, stored };
        let pages = Pages::new(WorkerId::new(InstanceId(1)), snapshot, 3);
        let cursor = KvCursor { epoch: 3, next: 7 };
        pages.inspect(|page| assert_eq!(page.cursor, cursor)).map(|page| page.stored).collect()
    }

    #[test]
    fn pages_are_bounded_and_blocks_that_follow_each_other_are_one_run() {
        use Tier::{Disk, Host};
        let one = |parent, hash, tier| stored(parent, [hash], tier);
        let blocks = vec![
            one(None, 1, Host),
            one(Some(1), 2, Host),
            one(Some(2), 3, Host),
            one(Some(3), 4, Host),
            stored(Some(4), [5, 6], Disk),
            one(None, 7, Disk),
        ];
        let cut = vec![
            vec![stored(None, [1, 2, 3], Host)],
            vec![one(Some(3), 4, Host), stored(Some(4), [5, 6], Disk)],
            vec![one(None, 7, Disk)],
        ];
        assert_eq!(pages(blocks), cut);
        assert_eq!(pages(vec![stored(None, 1..4, Host)]), [vec![stored(None, 1..4, Host)]]);
    }

    #[test]
    fn a_snapshot_of_nothing_is_one_page() {
        assert_eq!(pages(Vec::new()), [vec![]]);
    }
}
