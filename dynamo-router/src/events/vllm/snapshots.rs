//! What engines hold, told to routers that lost events or have just started.

use std::sync::Arc;

use dynamo_core::protocol::{KvCursor, SnapshotPage, SnapshotRequest, WorkerId};
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
        let pages = SnapshotPage::cut(worker, cursor, blocks);
        Ok(ResponseStream::new(&ctx, stream::iter(pages.map(Ok))).with_guard(turn))
    }
}

fn not_here(worker: WorkerId) -> Error {
    Error::new(ErrorKind::NotFound, format!("blocks of worker {worker} are not here"))
}

/// More routers than a fleet has, less the time that each takes to read.
const AT_ONCE: usize = 4;
