//! What a rank of an engine holds at one moment; pure.

use std::collections::{HashMap, HashSet};

use dynamo_core::protocol::{SequenceHash, StoredBlock, Tier};

use super::entry::TIERS;

/// A copy of the router's blocks that are there, tier by tier: made while nothing changes, and put in
/// order when that matters to nobody else.
#[derive(Debug, Default)]
pub(super) struct Held {
    tiers: [Vec<Placed>; TIERS],
}

/// A block, behind the one before it.
type Placed = (Option<SequenceHash>, StoredBlock);

impl Held {
    /// Adds blocks that follow each other, the first one behind `before`.
    pub(super) fn add(
        &mut self,
        mut before: Option<SequenceHash>,
        blocks: &[StoredBlock],
        tier: Tier,
    ) {
        let placed = blocks.iter().map(|block| (before.replace(block.sequence), *block));
        self.tiers[tier as usize].extend(placed);
    }

    /// Returns the blocks of one tier after the other, parents before what follows them.
    pub(super) fn in_order(self) -> Vec<(Option<SequenceHash>, StoredBlock, Tier)> {
        let mut ordered = Vec::with_capacity(self.tiers.iter().map(Vec::len).sum());
        for (tier, blocks) in Tier::ALL.into_iter().zip(self.tiers) {
            parents_first(&blocks, |(before, block)| ordered.push((before, block, tier)));
        }
        ordered
    }
}

fn parents_first(blocks: &[Placed], mut visit: impl FnMut(Placed)) {
    let there: HashSet<_> = blocks.iter().map(|(_, block)| block.sequence).collect();
    // What follows the same block is a list: the last of it, and of each the one before.
    let mut last = HashMap::with_capacity(blocks.len());
    let mut siblings = Vec::with_capacity(blocks.len());
    for (at, (before, _)) in blocks.iter().enumerate() {
        // What follows a block that is not there begins a run, as what follows none.
        siblings.push(last.insert(before.filter(|before| there.contains(before)), at));
    }
    let mut next: Vec<usize> = last.remove(&None).into_iter().collect();
    while let Some(at) = next.pop() {
        let (_, block) = blocks[at];
        visit(blocks[at]);
        next.extend(siblings[at]);
        // On top: a run goes on as long as it can.
        next.extend(last.remove(&Some(block.sequence)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::block;

    #[test]
    fn parents_come_first_tier_by_tier() {
        let mut held = Held::default();
        // Children before their parents, as a table of hashes has them.
        held.add(Some(SequenceHash(2)), &[block(3), block(4)], Tier::Device);
        held.add(None, &[block(1), block(2)], Tier::Device);
        held.add(Some(SequenceHash(4)), &[block(5)], Tier::Disk);
        let order: Vec<_> = held.in_order().iter().map(|(_, block, _)| block.sequence.0).collect();
        assert_eq!(order, [1, 2, 3, 4, 5]);
    }
}
