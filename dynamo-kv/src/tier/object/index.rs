//! What a tier knows of its store; pure.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::config::{ObjectConfig, OnFull};
use super::recent::Recent;
use crate::identity::{BlockIdentity, BlockKey};
use crate::tier::{TierChange, TierSink, TierStats};

/// Which blocks are taken to be there, and which not to be.
pub(super) struct Index {
    /// A key is missing where only the name of an object was seen.
    there: Recent<Option<BlockKey>>,
    /// Until when.
    absent: Recent<Instant>,
    known_max: usize,
    on_full: OnFull,
    absent_for: Duration,
    /// Grows with each clear.
    era: u64,
    stats: TierStats,
    sink: Box<dyn TierSink>,
}

impl Index {
    pub(super) fn new(config: &ObjectConfig) -> Self {
        Self {
            there: Recent::new(),
            absent: Recent::new(),
            known_max: config.known_max,
            on_full: config.on_full,
            absent_for: config.absent_for,
            era: 0,
            stats: TierStats::default(),
            sink: Box::new(|_: TierChange| {}),
        }
    }

    /// Tells `sink` what changes from now on; returns what is known, parents first.
    pub(super) fn watch(&mut self, sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        self.sink = sink;
        let mut keys: Vec<_> = self.there.iter().copied().flatten().collect();
        keys.sort_by_key(|key| key.position);
        keys
    }

    pub(super) fn era(&self) -> u64 {
        self.era
    }

    pub(super) fn stats(&self) -> TierStats {
        let mut stats = self.stats;
        stats.blocks = self.there.len();
        stats
    }

    /// Counts what happened.
    pub(super) fn count(&mut self, count: impl FnOnce(&mut TierStats)) {
        count(&mut self.stats);
    }

    /// Returns how many of the first keys are known to be there, and up to which one the others may.
    pub(super) fn bounds(&self, keys: &[BlockKey], now: Instant) -> (usize, usize) {
        let is_there = |key: &&BlockKey| self.there.get(&key.identity).is_some();
        let known = keys.iter().take_while(is_there).count();
        let is_absent =
            |key: &BlockKey| self.absent.get(&key.identity).is_some_and(|until| now < *until);
        let end = keys[known..].iter().position(is_absent).map_or(keys.len(), |at| known + at);
        (known, end)
    }

    /// Tells whether a block is known to be there, which is a use of it.
    pub(super) fn touch(&mut self, key: &BlockKey) -> bool {
        let is_there = self.there.get(&key.identity).is_some();
        if is_there {
            self.learn(key);
        }
        is_there
    }

    /// Takes a block to be there, and to be the one used last.
    pub(super) fn learn(&mut self, key: &BlockKey) {
        self.absent.remove(&key.identity);
        if self.there.insert(key.identity, Some(*key)).flatten().is_none() {
            self.sink.publish(TierChange::Stored(*key));
        }
    }

    /// Takes what was written to be there; `None` if all blocks were removed meanwhile.
    pub(super) fn commit(&mut self, key: &BlockKey, era: u64) -> Option<()> {
        (era == self.era).then(|| self.learn(key))
    }

    /// Takes a block not to be there for a while.
    pub(super) fn lack(&mut self, identity: &BlockIdentity, now: Instant) {
        self.forget(identity);
        if let Some(until) = now.checked_add(self.absent_for) {
            self.absent.insert(*identity, until);
            if self.absent.len() > self.known_max {
                self.absent.pop_oldest();
            }
        }
    }

    /// Takes a block not to be there as far as is known; tells whether it was.
    pub(super) fn forget(&mut self, identity: &BlockIdentity) -> bool {
        let found = self.there.remove(identity);
        if let Some(Some(key)) = found {
            self.sink.publish(TierChange::Removed(key));
        }
        found.is_some()
    }

    /// Takes out what there is no room for; returns what is to be deleted.
    pub(super) fn overflow(&mut self) -> Vec<BlockIdentity> {
        let mut doomed = Vec::new();
        while self.there.len() > self.known_max
            && let Some((identity, key)) = self.there.pop_oldest()
        {
            if self.on_full == OnFull::Delete {
                self.stats.evicted_total += 1;
                doomed.push(identity);
            }
            if let Some(key) = key {
                self.sink.publish(TierChange::Removed(key));
            }
        }
        doomed
    }

    /// Begins to look at all objects: blocks used from here on are there whether they are seen or not.
    pub(super) fn begin_survey(&self) -> i64 {
        self.there.next_use()
    }

    /// Takes the blocks that were seen, oldest first, to be all that there were.
    pub(super) fn survey(&mut self, begun: i64, seen: &[BlockIdentity]) {
        let found: HashSet<_> = seen.iter().collect();
        for identity in self.there.before(begun) {
            if !found.contains(&identity) {
                self.forget(&identity);
            }
        }
        for identity in seen.iter().rev() {
            self.absent.remove(identity);
            self.there.insert_oldest(*identity, None);
        }
    }

    /// Takes nothing to be there.
    pub(super) fn clear(&mut self) {
        self.era += 1;
        self.there.clear();
        self.absent.clear();
        self.sink.publish(TierChange::Cleared);
    }
}

#[cfg(test)]
mod tests;
