//! Indexes behind channels, told and asked over them: `KvIndexer`, a `RadixTree` in a thread of its
//! own, and `BranchShardedIndexer`.

use std::sync::Arc;

use dynamo_kv_router::indexer::{KvIndexer, KvIndexerInterface, KvIndexerMetrics};
use dynamo_kv_router::protocols::RouterEvent;
use dynamo_kv_router::{BranchShardedIndexer, ConcurrentRadixTreeCompressed, ThreadPoolIndexer};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{Asked, BLOCK_TOKENS, THREADS};
use crate::index::{Index, Reader};
use crate::workload::{Event, Prompt, Workload};

struct Actor<I: KvIndexerInterface> {
    indexer: Arc<I>,
    /// Ends it, and waits until nothing of it runs: that would disturb who is next.
    end: fn(&I, &Runtime),
    runtime: Runtime,
    prepared: Vec<RouterEvent>,
}

pub fn tree() -> Box<dyn Index> {
    let metrics = Arc::new(KvIndexerMetrics::new_unregistered());
    let indexer = KvIndexer::new(CancellationToken::new(), BLOCK_TOKENS, metrics);
    actor(indexer, |indexer, runtime| {
        let events = indexer.event_sender();
        indexer.shutdown();
        runtime.block_on(events.closed());
    })
}

pub fn sharded() -> Box<dyn Index> {
    let shard =
        |_| ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), THREADS, BLOCK_TOKENS);
    let shards = (0..SHARDS).map(shard).collect();
    actor(BranchShardedIndexer::new(shards, DEPTH, BLOCK_TOKENS), |shards, _| shards.shutdown())
}

fn actor<I>(indexer: I, end: fn(&I, &Runtime)) -> Box<dyn Index>
where
    I: KvIndexerInterface + Send + Sync + 'static,
{
    let (indexer, runtime) = (Arc::new(indexer), super::runtime());
    Box::new(Actor { indexer, end, runtime, prepared: Vec::new() })
}

impl<I: KvIndexerInterface + Send + Sync + 'static> Index for Actor<I> {
    fn prepare(&mut self, workload: &Workload, events: &[Event]) {
        self.prepared = super::events(workload, events);
    }

    fn apply(&mut self) {
        let events = std::mem::take(&mut self.prepared);
        self.runtime.block_on(async {
            for event in events {
                self.indexer.apply_event(event).await;
            }
            self.indexer.flush().await;
        });
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(Asking::new(&self.indexer))
    }

    fn reader_elsewhere(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(Asking::new(&self.indexer)))
    }
}

impl<I: KvIndexerInterface> Drop for Actor<I> {
    fn drop(&mut self) {
        (self.end)(&self.indexer, &self.runtime);
    }
}

struct Asking<I> {
    indexer: Arc<I>,
    asked: Asked,
}

impl<I> Asking<I> {
    fn new(indexer: &Arc<I>) -> Self {
        Self { indexer: Arc::clone(indexer), asked: Asked::default() }
    }
}

impl<I: KvIndexerInterface> Reader for Asking<I> {
    fn ask(&mut self, prompt: &Prompt) {
        self.asked.ask(prompt);
    }

    fn find(&mut self) {
        let hashes = std::mem::take(&mut self.asked.hashes);
        let found = super::spin(self.indexer.find_matches(hashes));
        self.asked.scores = found.expect("its threads are there");
    }

    fn found(&self, each: &mut dyn FnMut(usize, usize)) {
        self.asked.found(each);
    }
}

const SHARDS: usize = 2;
const DEPTH: usize = 4;
