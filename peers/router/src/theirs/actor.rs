//! `KvIndexer`: a `RadixTree` in a thread of its own, told and asked over channels.

use std::sync::Arc;

use dynamo_kv_router::indexer::{KvIndexer, KvIndexerInterface, KvIndexerMetrics};
use dynamo_kv_router::protocols::RouterEvent;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::Asked;
use crate::index::{Index, Reader};
use crate::workload::{Event, Prompt, Workload};

struct Actor {
    indexer: KvIndexer,
    runtime: Runtime,
    prepared: Vec<RouterEvent>,
}

pub fn make() -> Box<dyn Index> {
    let metrics = Arc::new(KvIndexerMetrics::new_unregistered());
    let indexer = KvIndexer::new(CancellationToken::new(), BLOCK_TOKENS, metrics);
    Box::new(Actor { indexer, runtime: super::runtime(), prepared: Vec::new() })
}

impl Index for Actor {
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

impl Drop for Actor {
    /// Returns once its thread has freed the tree: what it does then would disturb who is next.
    fn drop(&mut self) {
        let events = self.indexer.event_sender();
        self.indexer.shutdown();
        self.runtime.block_on(events.closed());
    }
}

struct Asking {
    indexer: KvIndexer,
    asked: Asked,
}

impl Asking {
    fn new(indexer: &KvIndexer) -> Self {
        Self { indexer: indexer.clone(), asked: Asked::default() }
    }
}

impl Reader for Asking {
    fn ask(&mut self, prompt: &Prompt) {
        self.asked.ask(prompt);
    }

    fn find(&mut self) {
        let hashes = std::mem::take(&mut self.asked.hashes);
        let found = super::spin(self.indexer.find_matches(hashes));
        self.asked.scores = found.expect("its thread is there");
    }

    fn found(&self, each: &mut dyn FnMut(usize, usize)) {
        self.asked.found(each);
    }
}

/// Hashes come from outside: it is not used.
const BLOCK_TOKENS: u32 = 16;
