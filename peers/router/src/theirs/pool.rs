//! Indexes that a thread fills from a channel and that whoever asks reads in his own.

use std::sync::Arc;

use dynamo_kv_router::indexer::positional::SearchMode;
use dynamo_kv_router::indexer::{KvIndexerInterface, SyncIndexer};
use dynamo_kv_router::protocols::RouterEvent;
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, PositionalIndexer, ThreadPoolIndexer};
use tokio::runtime::Runtime;

use super::{Asked, BLOCK_TOKENS, THREADS};
use crate::index::{Index, Reader};
use crate::workload::{Event, Prompt, Workload};

struct Pool<T: SyncIndexer> {
    pool: ThreadPoolIndexer<T>,
    runtime: Runtime,
    prepared: Vec<RouterEvent>,
}

pub fn compressed() -> Box<dyn Index> {
    pool(ConcurrentRadixTreeCompressed::new())
}

pub fn strided() -> Box<dyn Index> {
    pool(PositionalIndexer::new_with_mode(JUMP_BLOCKS, SearchMode::Strided))
}

pub fn binary() -> Box<dyn Index> {
    pool(PositionalIndexer::new_with_mode(JUMP_BLOCKS, SearchMode::Binary))
}

fn pool<T: SyncIndexer>(backend: T) -> Box<dyn Index> {
    let pool = ThreadPoolIndexer::new(backend, THREADS, BLOCK_TOKENS);
    Box::new(Pool { pool, runtime: super::runtime(), prepared: Vec::new() })
}

impl<T: SyncIndexer> Index for Pool<T> {
    fn prepare(&mut self, workload: &Workload, events: &[Event]) {
        self.prepared = super::events(workload, events);
    }

    fn apply(&mut self) {
        for event in std::mem::take(&mut self.prepared) {
            self.pool.enqueue_event(event).expect("its thread is there");
        }
        self.runtime.block_on(self.pool.flush());
    }

    fn tidy(&mut self) {
        self.pool.backend().run_cleanup_task();
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(InPlace { index: self.pool.backend_arc(), asked: Asked::default() })
    }

    fn reader_elsewhere(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(InPlace { index: self.pool.backend_arc(), asked: Asked::default() }))
    }
}

impl<T: SyncIndexer> Drop for Pool<T> {
    fn drop(&mut self) {
        self.pool.shutdown();
    }
}

struct InPlace<T> {
    index: Arc<T>,
    asked: Asked,
}

impl<T: SyncIndexer> Reader for InPlace<T> {
    fn ask(&mut self, prompt: &Prompt) {
        self.asked.ask(prompt);
    }

    fn find(&mut self) {
        self.asked.scores = self.index.find_matches(&self.asked.hashes, false);
    }

    fn found(&self, each: &mut dyn FnMut(usize, usize)) {
        self.asked.found(each);
    }
}

/// As its docs have it.
const JUMP_BLOCKS: usize = 32;
