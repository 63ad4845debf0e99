use std::collections::{BTreeMap, HashMap};

use crate::identity::BlockIdentity;

/// Values by block, in the order of their last use; every step takes logarithmic time.
pub(super) struct Recent<V> {
    values: HashMap<BlockIdentity, (i64, V)>,
    by_use: BTreeMap<i64, BlockIdentity>,
    newest: i64,
    oldest: i64,
}

impl<V> Recent<V> {
    pub(super) fn new() -> Self {
        Self { values: HashMap::new(), by_use: BTreeMap::new(), newest: 0, oldest: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn get(&self, identity: &BlockIdentity) -> Option<&V> {
        self.values.get(identity).map(|(_, value)| value)
    }

    /// Returns the number of the next use.
    pub(super) fn next_use(&self) -> i64 {
        self.newest + 1
    }

    /// Puts a value in as the one used last; returns the one that it replaces.
    pub(super) fn insert(&mut self, identity: BlockIdentity, value: V) -> Option<V> {
        self.newest += 1;
        self.put(self.newest, identity, value)
    }

    /// Puts a value in as the one used longest ago, unless there is one.
    pub(super) fn insert_oldest(&mut self, identity: BlockIdentity, value: V) {
        if !self.values.contains_key(&identity) {
            self.oldest -= 1;
            self.put(self.oldest, identity, value);
        }
    }

    fn put(&mut self, at: i64, identity: BlockIdentity, value: V) -> Option<V> {
        self.by_use.insert(at, identity);
        let (before, value) = self.values.insert(identity, (at, value))?;
        self.by_use.remove(&before);
        Some(value)
    }

    pub(super) fn remove(&mut self, identity: &BlockIdentity) -> Option<V> {
        let (at, value) = self.values.remove(identity)?;
        self.by_use.remove(&at);
        Some(value)
    }

    /// Takes out what was used longest ago.
    pub(super) fn pop_oldest(&mut self) -> Option<(BlockIdentity, V)> {
        let (_, identity) = self.by_use.pop_first()?;
        self.values.remove(&identity).map(|(_, value)| (identity, value))
    }

    /// Takes out what was used longest ago until no more than `max` are left; returns the last of that.
    pub(super) fn keep_newest(&mut self, max: usize) -> Option<V> {
        let mut last = None;
        while self.len() > max
            && let Some((_, value)) = self.pop_oldest()
        {
            last = Some(value);
        }
        last
    }

    /// Returns the blocks that were not used since that use.
    pub(super) fn before(&self, at: i64) -> Vec<BlockIdentity> {
        self.by_use.range(..at).map(|(_, identity)| *identity).collect()
    }

    /// Returns all values, the one used longest ago first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        self.by_use.values().filter_map(|identity| self.get(identity))
    }

    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.by_use.clear();
    }
}
