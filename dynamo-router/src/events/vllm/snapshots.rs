//! What engines hold, told to routers that lost events or have just started.

use std::iter;
use std::sync::Arc;

use dynamo_core::protocol::{
    KvChange, KvCursor, SequenceHash, SnapshotPage, SnapshotRequest, StoredBlock, Tier, WorkerId,
};
use dynamo_core::{Context, Engine, Error, ErrorKind, ResponseStream, Result};
use futures::stream;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::held::Held;
use super::intake::SharedTranslator;

/// Answers with what the engines behind [bridges](super::EventBridge) hold, page by page.
///
/// It is served at an endpoint of the component on whose event plane the bridges publish, as the
/// instance that their events name; routers ask it by
/// [`EventFeed::start_with_snapshots`](crate::EventFeed::start_with_snapshots). A page has at most
/// 4,096 blocks, and all pages of an answer are of one moment between two events. No event is taken
/// in while the blocks are copied; behind that they are put in order, on a thread for what blocks.
/// An answer is kept until it is read: at most four are under way, and further requests fail with
/// [`Overloaded`](ErrorKind::Overloaded). A request for a worker that no bridge speaks for fails
/// with [`NotFound`](ErrorKind::NotFound): the rank of a bridge's configuration is spoken for from
/// its start, others once the engine has named them.
#[derive(Debug, Clone)]
pub struct BridgeSnapshots {
    sources: Vec<Source>,
    turns: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
struct Source {
    translator: Arc<SharedTranslator>,
    /// The bridge's, which joins them.
    tasks: TaskTracker,
}

impl BridgeSnapshots {
    pub(super) fn new(translator: Arc<SharedTranslator>, tasks: TaskTracker) -> Self {
        let sources = vec![Source { translator, tasks }];
        Self { sources, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Answers for the engines of `other` too: an instance whose ranks have publishers of their own
    /// has a bridge for each, and serves one engine.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.sources.extend(other.sources);
        self
    }

    /// Finds who speaks for `worker`, and how far.
    fn find(&self, worker: WorkerId) -> Result<(&Source, KvCursor)> {
        let cursor = |source: &Source| source.translator.lock().cursor(worker);
        let mut found = self.sources.iter().filter_map(|source| Some((source, cursor(source)?)));
        found.next().ok_or_else(|| not_here(worker))
    }
}

impl Engine for BridgeSnapshots {
    type Request = SnapshotRequest;
    type Response = SnapshotPage;

    async fn generate(
        &self,
        ctx: Context,
        request: SnapshotRequest,
    ) -> Result<ResponseStream<SnapshotPage>> {
        let SnapshotRequest { worker, known } = request;
        let (source, cursor) = self.find(worker)?;
        if known == Some(cursor) {
            let nothing = SnapshotPage { worker, cursor, stored: Vec::new() };
            return Ok(ResponseStream::from_items(&ctx, [nothing]));
        }
        let turn = Arc::clone(&self.turns).try_acquire_owned().map_err(|_| {
            let message = format!(
                "{AT_ONCE} snapshots are under way, and one of worker {worker} would be too many"
            );
            Error::new(ErrorKind::Overloaded, message)
        })?;
        let translator = Arc::clone(&source.translator);
        let copy = source.tasks.spawn_blocking(move || {
            let held = translator.lock().held(worker);
            // The turn ends with the work, whether or not anybody waits for it.
            held.map(|(cursor, held)| (cursor, Held::in_order(held), turn))
        });
        let (cursor, blocks, turn) = copy
            .await
            .map_err(|source| {
                let message = format!("snapshot of worker {worker}");
                Error::new(ErrorKind::Internal, message).with_source(source)
            })?
            .ok_or_else(|| not_here(worker))?;
        let pages = pages(worker, cursor, blocks, PAGE_BLOCKS);
        Ok(ResponseStream::new(&ctx, stream::iter(pages.map(Ok))).with_guard(turn))
    }
}

/// Cuts a snapshot into pages as they are taken.
fn pages(
    worker: WorkerId,
    cursor: KvCursor,
    blocks: Vec<(Option<SequenceHash>, StoredBlock, Tier)>,
    page_blocks: usize,
) -> impl Iterator<Item = SnapshotPage> + Send {
    let (mut blocks, mut is_first) = (blocks.into_iter(), true);
    iter::from_fn(move || {
        // One that holds nothing has a page too, which says of what moment that is true.
        if !std::mem::take(&mut is_first) && blocks.len() == 0 {
            return None;
        }
        let mut stored = Vec::new();
        for (before, block, tier) in blocks.by_ref().take(page_blocks) {
            KvChange::push_stored(&mut stored, before, &[block], tier);
        }
        Some(SnapshotPage { worker, cursor, stored })
    })
}

fn not_here(worker: WorkerId) -> Error {
    Error::new(ErrorKind::NotFound, format!("blocks of worker {worker} are not here"))
}

/// Some 100 KiB of a page that is encoded.
const PAGE_BLOCKS: usize = 4096;

/// More routers than a fleet has, less the time that each takes to read.
const AT_ONCE: usize = 4;

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::InstanceId;

    use super::*;
    use crate::fixtures::block;

    #[test]
    fn pages_are_bounded_whatever_the_tier_and_a_snapshot_of_nothing_is_one() {
        let worker = WorkerId::new(InstanceId(1));
        let cursor = KvCursor { epoch: 3, next: 7 };
        let mut held = Held::default();
        // Children before their parents, as a table of hashes has them.
        held.add(Some(SequenceHash(2)), &[block(3), block(4)], Tier::Device);
        held.add(None, &[block(1), block(2)], Tier::Device);
        held.add(Some(SequenceHash(4)), &[block(5)], Tier::Disk);
        let run = |before: Option<u64>, hashes: &[u64], tier| KvChange::BlockStored {
            parent: before.map(SequenceHash),
            blocks: hashes.iter().map(|hash| block(*hash)).collect(),
            tier,
        };
        let cut: Vec<_> = pages(worker, cursor, held.in_order(), 3).collect();
        assert!(cut.iter().all(|page| (page.worker, page.cursor) == (worker, cursor)));
        let stored: Vec<_> = cut.into_iter().map(|page| page.stored).collect();
        let second = vec![run(Some(3), &[4], Tier::Device), run(Some(4), &[5], Tier::Disk)];
        assert_eq!(stored, [vec![run(None, &[1, 2, 3], Tier::Device)], second]);
        let nothing: Vec<_> = pages(worker, cursor, Vec::new(), 3).collect();
        assert_eq!(nothing, [SnapshotPage { worker, cursor, stored: Vec::new() }]);
    }
}
