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
    /// Blocks that others make likely: they are worth a load, and nothing else is made of them.
    guessed: Recent<()>,
    /// Blocks whose objects are no good, and may be there still.
    damaged: Recent<()>,
    /// By which number a block was deleted last.
    deleted: Recent<u64>,
    deletions: u64,
    /// What was seen before so many deletions is not believed.
    believed_from: u64,
    known_max: usize,
    on_full: OnFull,
    absent_for: Duration,
    stats: TierStats,
    sink: Box<dyn TierSink>,
}

/// When the store began to be looked at, or to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    deletions: u64,
    uses: i64,
}

impl Index {
    pub(super) fn new(config: &ObjectConfig) -> Self {
        Self {
            there: Recent::new(),
            absent: Recent::new(),
            guessed: Recent::new(),
            damaged: Recent::new(),
            deleted: Recent::new(),
            deletions: 0,
            believed_from: 0,
            known_max: config.known_max,
            on_full: config.on_full,
            absent_for: config.absent_for,
            stats: TierStats::default(),
            sink: Box::new(|_: TierChange| {}),
        }
    }

    /// Tells `sink` what changes from now on; returns what is known, parents first.
    pub(super) fn watch(&mut self, sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        self.sink = sink;
        let mut keys: Vec<_> = self.there.iter().copied().flatten().collect();
        keys.sort_by_key(|key| (key.chain, key.position));
        keys
    }

    /// Returns what to [`learn`](Self::learn) by of what is seen from here on.
    pub(super) fn now(&self) -> Moment {
        Moment { deletions: self.deletions, uses: self.there.next_use() }
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

    /// Returns how many of the first keys are taken to be there, and up to which one the others may.
    pub(super) fn bounds(&self, keys: &[BlockKey], now: Instant) -> (usize, usize) {
        let is_there = |key: &&BlockKey| {
            let identity = &key.identity;
            self.there.get(identity).is_some() || self.guessed.get(identity).is_some()
        };
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
            self.insert(key);
        }
        is_there
    }

    /// Takes a block that was seen or written to be there, and to be the one used last; tells whether
    /// that is believed: not if it may have been deleted since.
    pub(super) fn learn(&mut self, key: &BlockKey, since: Moment) -> bool {
        let is_believed = self.believes(&key.identity, since);
        if is_believed {
            self.insert(key);
        }
        is_believed
    }

    fn insert(&mut self, key: &BlockKey) {
        self.absent.remove(&key.identity);
        self.guessed.remove(&key.identity);
        self.damaged.remove(&key.identity);
        if self.there.insert(key.identity, Some(*key)).flatten().is_none() {
            self.sink.publish(TierChange::Stored(*key));
        }
    }

    fn believes(&self, identity: &BlockIdentity, since: Moment) -> bool {
        let deleted = self.deleted.get(identity).copied().unwrap_or(0);
        since.deletions >= deleted.max(self.believed_from)
    }

    /// Takes a block that is not known, and that nobody has looked for, to be likely there.
    pub(super) fn guess(&mut self, identity: &BlockIdentity) {
        if self.there.get(identity).is_none() {
            self.guessed.insert(*identity, ());
            self.guessed.keep_newest(self.known_max);
        }
    }

    /// Takes a block to be deleted; whoever deletes it says so before and behind.
    pub(super) fn delete(&mut self, identity: &BlockIdentity) {
        self.forget(identity);
        self.deletions += 1;
        self.deleted.insert(*identity, self.deletions);
        if let Some(oldest) = self.deleted.keep_newest(DELETED_MAX) {
            self.believed_from = self.believed_from.max(oldest);
        }
    }

    /// Takes a block's object to be no good.
    pub(super) fn spoil(&mut self, identity: &BlockIdentity) {
        self.forget(identity);
        self.damaged.insert(*identity, ());
        self.damaged.keep_newest(self.known_max);
    }

    /// Tells whether a block's object is to be written over, whatever it looks like.
    pub(super) fn is_damaged(&self, identity: &BlockIdentity) -> bool {
        self.damaged.get(identity).is_some()
    }

    /// Takes a block not to be there for a while.
    pub(super) fn lack(&mut self, identity: &BlockIdentity, now: Instant) {
        self.forget(identity);
        if let Some(until) = now.checked_add(self.absent_for) {
            self.absent.insert(*identity, until);
            self.absent.keep_newest(self.known_max);
        }
    }

    /// Takes a block not to be there as far as is known.
    fn forget(&mut self, identity: &BlockIdentity) {
        self.guessed.remove(identity);
        if let Some(Some(key)) = self.there.remove(identity) {
            self.sink.publish(TierChange::Removed(key));
        }
    }

    /// Takes out what there is no room for, up to and with a block that is to be deleted: that one.
    pub(super) fn overflow(&mut self) -> Option<BlockIdentity> {
        while self.there.len() > self.known_max
            && let Some((identity, key)) = self.there.pop_oldest()
        {
            if let Some(key) = key {
                self.sink.publish(TierChange::Removed(key));
            }
            if self.on_full == OnFull::Delete {
                self.stats.evicted_total += 1;
                return Some(identity);
            }
        }
        None
    }

    /// Takes the blocks that were seen since, oldest first, to be all that there were, but for those
    /// that were used meanwhile.
    pub(super) fn survey(&mut self, since: Moment, seen: &[BlockIdentity]) {
        let found: HashSet<_> = seen.iter().collect();
        for identity in self.there.before(since.uses) {
            if !found.contains(&identity) {
                self.forget(&identity);
            }
        }
        self.guessed.clear();
        for identity in seen.iter().rev() {
            if !self.believes(identity, since) || self.is_damaged(identity) {
                continue;
            }
            self.absent.remove(identity);
            self.there.insert_oldest(*identity, None);
        }
    }

    /// Takes all blocks to be deleted; whoever deletes them says so before and behind.
    pub(super) fn clear(&mut self) {
        self.deletions += 1;
        self.believed_from = self.deletions;
        self.absent.clear();
        self.guessed.clear();
        self.damaged.clear();
        self.deleted.clear();
        if self.there.len() > 0 {
            self.there.clear();
            self.sink.publish(TierChange::Cleared);
        }
    }
}

/// Blocks that are known to have been deleted, about 150 bytes each: enough for all that are deleted
/// while something is looked at.
const DELETED_MAX: usize = 1 << 14;

#[cfg(test)]
mod tests;
