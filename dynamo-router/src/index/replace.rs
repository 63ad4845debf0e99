//! What a worker holds, replaced as a whole.

use super::PrefixIndex;
use super::lanes::LaneBook;
use crate::workers::Slot;

impl PrefixIndex {
    /// Has `worker` hold what `fill` records of it, and nothing else.
    ///
    /// To readers it holds what it held before until `fill` is done, and what that has recorded from
    /// then on: never less than both. `fill` may store, remove and clear.
    pub(crate) fn replace(&mut self, worker: Slot, fill: impl FnOnce(&mut Self)) {
        self.lanes.hide(worker);
        fill(self);
        self.change_lanes(LaneBook::show);
        self.sweep_some();
        self.tidy();
    }

    /// Gives back some of the memory of what was cleared or replaced, in a millisecond or so; tells
    /// whether there is more to do.
    pub(crate) fn sweep_more(&mut self) -> bool {
        (0..SWEEPS).for_each(|_| self.sweep_some());
        let is_more = self.lanes.doom();
        if !is_more {
            self.tidy();
        }
        is_more
    }
}

/// A few thousand segments.
const SWEEPS: usize = 64;

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::Tier;
    use dynamo_core::random::Random;

    use super::super::find::find;
    use super::super::reference::Reference;
    use super::super::tests::{BLOCKS, PATHS, path, worker};
    use super::*;
    use crate::index::Matches;

    /// Blocks that paths 0 and 5 have in common.
    const COMMON: usize = 100;

    #[test]
    fn readers_see_what_a_worker_held_until_they_see_all_that_it_holds() {
        let mut index = PrefixIndex::default();
        let (reader, mut matches) = (index.reader(), Matches::default());
        let [id, other] = [worker(1), worker(70)];
        index.store(other, Tier::Host, None, &path(1)[..150]);
        for round in 0..20 {
            let hashes = path(if round % 2 == 0 { 0 } else { 5 });
            let before = path(if round % 2 == 0 { 5 } else { 0 });
            let held = if round == 0 { 0 } else { BLOCKS };
            let mut assert_before = |hashes: &[_], depth: usize| {
                reader.find(hashes, &mut matches);
                assert_eq!(matches.depth(id), depth);
                assert_eq!(matches.iter().filter(|(slot, _)| *slot == id).count(), depth.min(1));
            };
            index.replace(id, |index| {
                index.store(id, Tier::Disk, None, &before);
                assert_before(&before, held);
                index.clear(id);
                for (at, run) in hashes.chunks(7).enumerate() {
                    let parent = (at * 7).checked_sub(1).map(|at| hashes[at]);
                    index.store(id, Tier::Device, parent, run);
                    assert_before(&before, held);
                    assert_before(&hashes, held.min(COMMON));
                }
                index.remove(id, Tier::Device, &hashes[190..]);
                index.store(id, Tier::Device, Some(hashes[189]), &hashes[190..]);
            });
            assert_before(&hashes, BLOCKS);
            assert_before(&before, COMMON);
            assert_eq!(index.held(id), BLOCKS);
        }
        while index.sweep_more() {}
        assert_eq!(index.len(), BLOCKS + 150);
        index.replace(id, |_| {});
        assert_eq!((index.held(id), index.held(other)), (0, 150));
        index.replace(other, |_| {});
        assert!(index.is_empty() && index.view.bytes() < 4096);
    }

    #[test]
    fn a_query_that_began_before_sees_what_was_held_until_its_end() {
        let mut index = PrefixIndex::default();
        let id = worker(1);
        index.store(id, Tier::Device, None, &path(0));
        index.store(worker(2), Tier::Device, None, &path(5));
        let (view, mut matches) = (index.shared.load(), Matches::default());
        index.replace(id, |index| index.store(id, Tier::Device, None, &path(5)));
        while index.sweep_more() {}
        find(&view, &path(0), &mut matches);
        assert_eq!(matches.depth(id), BLOCKS);
        drop(view);
        while index.sweep_more() {}
        assert_eq!(index.len(), BLOCKS, "nobody holds any more what was replaced");
    }

    #[test]
    fn whatever_is_replaced_and_swept_the_index_agrees_with_the_naive_model() {
        let (mut index, mut reference) = (PrefixIndex::default(), Reference::default());
        let (reader, mut matches) = (index.reader(), Matches::default());
        let mut random = Random::new(11);
        let mut below = |count| random.below(count).unwrap();
        for step in 0..600 {
            let (id, path) = (worker([0, 1, 70][below(3)]), path(below(PATHS)));
            let (a, b) = (below(BLOCKS), below(BLOCKS));
            let run = &path[a.min(b)..a.max(b)];
            match below(4) {
                0 => {
                    index.replace(id, |index| index.store(id, Tier::Host, None, run));
                    reference.clear(id);
                    reference.store(id, Tier::Host, run);
                }
                1 => {
                    index.remove(id, Tier::Host, run);
                    reference.remove(id, Tier::Host, run);
                }
                _ => {
                    index.store(id, Tier::Host, None, run);
                    reference.store(id, Tier::Host, run);
                }
            }
            for id in [0, 1, 70].map(worker) {
                reader.find(&path, &mut matches);
                assert_eq!(matches.tiers(id), reference.tiers(id, &path), "step {step}");
                assert_eq!(index.held(id), reference.held(id), "step {step}");
            }
        }
        while index.sweep_more() {}
        assert_eq!(index.len(), reference.len());
    }
}
