//! The peer's indexes, each in the way that costs it least: a tree that is called in this thread,
//! two that a thread of theirs fills and that are read in this one, and two that are only to be had
//! behind channels.

mod actor;
mod pool;
pub mod selection;
mod tree;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dynamo_kv_router::LocalBlockHash;
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, OverlapScores, RouterEvent,
};

use crate::index::Contender;
use crate::workload::{Change, Event, Prompt, Workload};

pub const CONTENDERS: [Contender; 6] = [
    Contender { name: "RadixTree", make: tree::make, is_in_place: false, is_slow: false },
    Contender { name: "CRTC", make: pool::compressed, is_in_place: true, is_slow: false },
    Contender { name: "Positional", make: pool::strided, is_in_place: true, is_slow: true },
    Contender { name: "Positional, binary", make: pool::binary, is_in_place: true, is_slow: true },
    Contender { name: "BranchSharded", make: actor::sharded, is_in_place: false, is_slow: true },
    Contender { name: "KvIndexer", make: actor::tree, is_in_place: false, is_slow: false },
];

fn events(workload: &Workload, events: &[Event]) -> Vec<RouterEvent> {
    let event = |event: &Event| {
        let data = match event.change {
            Change::Stored { prompt, from, to } => stored(&workload.prompts[prompt], from, to),
            Change::Removed { from, to } => {
                let block_hashes = workload.removed[from..to].iter();
                let block_hashes =
                    block_hashes.map(|hash| ExternalSequenceBlockHash(hash.0)).collect();
                KvCacheEventData::Removed(KvCacheRemoveData { block_hashes })
            }
        };
        RouterEvent::new(event.worker as u64, KvCacheEvent { event_id: 0, data, dp_rank: 0 })
    };
    events.iter().map(event).collect()
}

/// Says that blocks `from..to` of a prompt were stored.
pub fn stored(prompt: &Prompt, from: usize, to: usize) -> KvCacheEventData {
    let hash = |at: usize| ExternalSequenceBlockHash(prompt.sequence[at].0);
    let block = |at: usize| KvCacheStoredBlockData {
        block_hash: hash(at),
        tokens_hash: LocalBlockHash(prompt.local[at].0),
        mm_extra_info: None,
    };
    KvCacheEventData::Stored(KvCacheStoreData {
        parent_hash: from.checked_sub(1).map(hash),
        start_position: None,
        blocks: (from..to).map(block).collect(),
    })
}

/// A prompt in their words, and the answer.
#[derive(Default)]
struct Asked {
    hashes: Vec<LocalBlockHash>,
    scores: OverlapScores,
}

impl Asked {
    fn ask(&mut self, prompt: &Prompt) {
        self.hashes = prompt.local.iter().map(|local| LocalBlockHash(local.0)).collect();
        // What an answer takes to free is not timed.
        self.scores = OverlapScores::default();
    }

    fn found(&self, each: &mut dyn FnMut(usize, usize)) {
        for (worker, blocks) in &self.scores.scores {
            each(worker.worker_id as usize, *blocks as usize);
        }
    }
}

/// Asks again and again until there is an answer: no wait is as short.
fn spin<T>(answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(answer) = answer.as_mut().poll(&mut context) {
            return answer;
        }
        std::hint::spin_loop();
    }
}

/// Runs what needs a runtime to wait in.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime without IO")
}

/// One writes where one of ours does.
const THREADS: usize = 1;

/// Hashes come from outside: it is not used.
const BLOCK_TOKENS: u32 = 16;
