//! A part of a pool behind a lock of its own.

use std::sync::{PoisonError, TryLockError};

use dynamo_transfer::SlotList;

use super::Home;
use super::registry::Registry;
use super::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::evict::Levels;
use crate::manager::PoolStats;

/// The blocks of some sequences, and some of the free ones; on cache lines of its own.
#[repr(align(128))]
pub(super) struct Shard {
    state: Mutex<State>,
    pub(super) counts: Counts,
}

pub(super) struct State {
    /// The next one to be taken is the last.
    pub(super) free: SlotList<Home>,
    pub(super) registry: Registry,
    pub(super) evicted_total: u64,
    pub(super) hits_total: u64,
    pub(super) misses_total: u64,
}

/// What others see without the lock, as it was when the lock was last let go.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) free: AtomicUsize,
    pub(super) cached: AtomicUsize,
    /// [`Registry::rank`]; `u64::MAX` if there is no victim.
    pub(super) rank: AtomicU64,
}

/// The state of a shard, locked; what others see of it is told when it is let go.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    counts: &'a Counts,
}

impl Shard {
    pub(super) fn new(free: SlotList<Home>, eviction: Levels, is_named: bool) -> Self {
        let registry = Registry::new(eviction, is_named);
        let state = State { free, registry, evicted_total: 0, hits_total: 0, misses_total: 0 };
        let shard = Self { state: Mutex::new(state), counts: Counts::default() };
        drop(shard.lock());
        shard
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        // Nothing panics between two writes under this lock, so a poisoned state is still whole.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, counts: &self.counts }
    }

    /// Locks it unless somebody else has.
    pub(super) fn try_lock(&self) -> Option<Locked<'_>> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Locked { state, counts: &self.counts })
    }

    /// Returns [`Registry::rank`] as it was when the lock was last let go.
    pub(super) fn rank(&self) -> u64 {
        self.counts.rank.load(Ordering::Relaxed)
    }
}

impl State {
    /// Adds what is registered, and what happened so far.
    pub(super) fn add_to(&self, stats: &mut PoolStats) {
        stats.active += self.registry.active();
        stats.cached += self.registry.cached();
        self.add_totals(stats);
    }

    /// Adds what happened so far.
    pub(super) fn add_totals(&self, stats: &mut PoolStats) {
        stats.evicted_total += self.evicted_total;
        stats.hits_total += self.hits_total;
        stats.misses_total += self.misses_total;
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Counts { free, cached, rank } = self.counts;
        free.store(self.state.free.len(), Ordering::Relaxed);
        cached.store(self.state.registry.cached(), Ordering::Relaxed);
        rank.store(self.state.registry.rank().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
