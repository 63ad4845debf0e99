//! The state behind one short lock: slots, entries, pins, events.

mod registry;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dynamo_core::protocol::{KvChange, KvEvent, StoredBlock, Tier, WorkerId};
use dynamo_transfer::HostBuffer;

use crate::evict::Eviction;
use crate::identity::BlockKey;
use crate::manager::{AllocateError, EventSink, PoolStats, Snapshot};
use registry::Registry;

/// The slots of one manager.
pub(crate) struct Pool {
    state: Mutex<State>,
    capacity: usize,
    zero_on_allocate: bool,
}

/// A slot that belongs to one owner.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unshared {
    Mutable,
    Complete,
}

struct State {
    free: Vec<HostBuffer>,
    mutable: usize,
    complete: usize,
    registry: Registry,
    evicted_total: u64,
    hits_total: u64,
    misses_total: u64,
    publisher: Publisher,
}

impl Pool {
    pub(crate) fn new(
        free: Vec<HostBuffer>,
        worker: WorkerId,
        epoch: u64,
        events: Box<dyn EventSink>,
        eviction: Box<dyn Eviction>,
    ) -> Self {
        let capacity = free.len();
        let state = State {
            free,
            mutable: 0,
            complete: 0,
            registry: Registry::new(eviction),
            evicted_total: 0,
            hits_total: 0,
            misses_total: 0,
            publisher: Publisher { worker, epoch, seq: 0, events },
        };
        Self { state: Mutex::new(state), capacity, zero_on_allocate: false }
    }

    pub(crate) fn with_zero_on_allocate(mut self, zero: bool) -> Self {
        self.zero_on_allocate = zero;
        self
    }

    pub(crate) fn allocate(&self, count: usize) -> Result<Vec<HostBuffer>, AllocateError> {
        let mut state = self.lock();
        let available = state.free.len() + state.registry.cached();
        if count > available {
            let capacity = self.capacity;
            return Err(AllocateError { requested: count, available, capacity });
        }
        let missing = count.saturating_sub(state.free.len());
        state.evict(missing);
        let at = state.free.len() - count;
        let mut buffers = state.free.split_off(at);
        state.mutable += count;
        drop(state);
        if self.zero_on_allocate {
            buffers.iter_mut().for_each(|buffer| buffer.fill(0));
        }
        Ok(buffers)
    }

    pub(crate) fn completed(&self) {
        let mut state = self.lock();
        state.mutable -= 1;
        state.complete += 1;
    }

    pub(crate) fn free(&self, buffer: HostBuffer, from: Unshared) {
        let mut state = self.lock();
        match from {
            Unshared::Mutable => state.mutable -= 1,
            Unshared::Complete => state.complete -= 1,
        }
        state.free.push(buffer);
    }

    pub(crate) fn match_prefix(&self, keys: &[BlockKey]) -> Vec<(BlockKey, Arc<HostBuffer>)> {
        let mut state = self.lock();
        let found: Vec<_> = keys
            .iter()
            .map_while(|key| state.registry.pin(&key.identity).map(|buffer| (*key, buffer)))
            .collect();
        state.hits_total += found.len() as u64;
        state.misses_total += (keys.len() - found.len()) as u64;
        found
    }

    /// Shares the blocks, each pinned once; a block that is held already frees the new slot.
    pub(crate) fn register(
        &self,
        blocks: Vec<(BlockKey, HostBuffer)>,
    ) -> Vec<(BlockKey, Arc<HostBuffer>)> {
        let mut state = self.lock();
        let mut run: Vec<BlockKey> = Vec::new();
        let mut registered = Vec::with_capacity(blocks.len());
        for (key, buffer) in blocks {
            state.complete -= 1;
            if let Some(held) = state.registry.pin(&key.identity) {
                state.free.push(buffer);
                registered.push((key, held));
                continue;
            }
            let buffer = Arc::new(buffer);
            state.registry.insert(key, Arc::clone(&buffer));
            if run.last().is_some_and(|last| Some(last.identity) != key.parent) {
                state.publisher.stored(&std::mem::take(&mut run));
            }
            run.push(key);
            registered.push((key, buffer));
        }
        state.publisher.stored(&run);
        registered
    }

    pub(crate) fn pin(&self, key: &BlockKey) {
        self.lock().registry.pin(&key.identity).expect("a guarded block is registered");
    }

    pub(crate) fn unpin(&self, key: &BlockKey) {
        self.lock().registry.unpin(&key.identity);
    }

    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        let cached = state.registry.cached();
        if cached > 0 && cached == state.registry.len() {
            // Nothing stays: one word says it all.
            state.drop_cached(cached);
            state.publisher.publish(KvChange::AllBlocksCleared);
        } else {
            state.evict(cached);
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.lock();
        let cached = state.registry.cached();
        PoolStats {
            capacity: self.capacity,
            free: state.free.len(),
            mutable: state.mutable,
            complete: state.complete,
            active: state.registry.len() - cached,
            cached,
            evicted_total: state.evicted_total,
            hits_total: state.hits_total,
            misses_total: state.misses_total,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let Publisher { epoch, seq, .. } = state.publisher;
        let stored = state.registry.parents_first().iter().map(|key| stored(&[*key])).collect();
        Snapshot { epoch, seq, stored }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two writes under this lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Frees `count` cached blocks and says which.
    fn evict(&mut self, count: usize) {
        let evicted = self.drop_cached(count);
        if !evicted.is_empty() {
            let sequence_hashes = evicted.iter().map(|key| key.sequence).collect();
            let tier = Tier::Host;
            self.publisher.publish(KvChange::BlockRemoved { sequence_hashes, tier });
        }
    }

    fn drop_cached(&mut self, count: usize) -> Vec<BlockKey> {
        let mut dropped = Vec::with_capacity(count);
        for _ in 0..count {
            let (key, buffer) = self.registry.evict().expect("as many were counted as cached");
            self.free.push(buffer);
            dropped.push(key);
        }
        self.evicted_total += dropped.len() as u64;
        dropped
    }
}

struct Publisher {
    worker: WorkerId,
    epoch: u64,
    seq: u64,
    events: Box<dyn EventSink>,
}

impl Publisher {
    fn stored(&mut self, run: &[BlockKey]) {
        if !run.is_empty() {
            self.publish(stored(run));
        }
    }

    fn publish(&mut self, change: KvChange) {
        let Self { worker, epoch, seq, .. } = *self;
        self.seq += 1;
        self.events.publish(KvEvent { worker, epoch, seq, change });
    }
}

fn stored(run: &[BlockKey]) -> KvChange {
    let block = |key: &BlockKey| StoredBlock { sequence: key.sequence, local: key.local };
    KvChange::BlockStored {
        parent: run.first().and_then(|first| first.parent_sequence),
        blocks: run.iter().map(block).collect(),
        tier: Tier::Host,
    }
}
