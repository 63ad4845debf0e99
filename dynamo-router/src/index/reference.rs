//! The index as its contract says it, computed the slow way.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::protocol::{SequenceHash, WorkerId};

#[derive(Debug, Default)]
pub(crate) struct Reference(BTreeMap<WorkerId, BTreeSet<SequenceHash>>);

impl Reference {
    pub(crate) fn store(&mut self, worker: WorkerId, hashes: &[SequenceHash]) {
        self.0.entry(worker).or_default().extend(hashes);
    }

    pub(crate) fn remove(&mut self, worker: WorkerId, hashes: &[SequenceHash]) {
        let held = self.0.entry(worker).or_default();
        hashes.iter().for_each(|hash| {
            held.remove(hash);
        });
    }

    pub(crate) fn clear(&mut self, worker: WorkerId) {
        self.0.remove(&worker);
    }

    pub(crate) fn depth(&self, worker: WorkerId, hashes: &[SequenceHash]) -> usize {
        let held = self.0.get(&worker);
        hashes.iter().take_while(|hash| held.is_some_and(|held| held.contains(hash))).count()
    }

    pub(crate) fn held(&self, worker: WorkerId) -> usize {
        self.0.get(&worker).map_or(0, BTreeSet::len)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().flatten().collect::<BTreeSet<_>>().len()
    }
}
