//! The index as its contract says it, computed the slow way.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::protocol::{SequenceHash, Tier};

use crate::workers::Slot;

#[derive(Debug, Default)]
pub(crate) struct Reference(BTreeMap<Slot, BTreeSet<(SequenceHash, Tier)>>);

impl Reference {
    pub(crate) fn store(&mut self, worker: Slot, tier: Tier, hashes: &[SequenceHash]) {
        let held = self.0.entry(worker).or_default();
        held.extend(hashes.iter().map(|hash| (*hash, tier)));
    }

    pub(crate) fn remove(&mut self, worker: Slot, tier: Tier, hashes: &[SequenceHash]) {
        let held = self.0.entry(worker).or_default();
        hashes.iter().for_each(|hash| {
            held.remove(&(*hash, tier));
        });
    }

    pub(crate) fn clear(&mut self, worker: Slot) {
        self.0.remove(&worker);
    }

    pub(crate) fn depth(&self, worker: Slot, hashes: &[SequenceHash]) -> usize {
        let held = self.distinct(worker);
        hashes.iter().take_while(|hash| held.contains(hash)).count()
    }

    /// Returns how many blocks of the prefix are in each tier, and in no faster one.
    pub(crate) fn tiers(&self, worker: Slot, hashes: &[SequenceHash]) -> [u32; 4] {
        let mut tiers = [0; 4];
        for hash in &hashes[..self.depth(worker, hashes)] {
            let held = self.0[&worker].range((*hash, Tier::Device)..);
            let fastest = held.map(|(_, tier)| *tier).next().unwrap();
            tiers[fastest as usize] += 1;
        }
        tiers
    }

    pub(crate) fn held(&self, worker: Slot) -> usize {
        self.distinct(worker).len()
    }

    pub(crate) fn len(&self) -> usize {
        let all = self.0.values().flatten().map(|(hash, _)| hash);
        all.collect::<BTreeSet<_>>().len()
    }

    /// Returns the blocks that a worker has in any tier.
    fn distinct(&self, worker: Slot) -> BTreeSet<SequenceHash> {
        self.0.get(&worker).into_iter().flatten().map(|(hash, _)| *hash).collect()
    }
}
