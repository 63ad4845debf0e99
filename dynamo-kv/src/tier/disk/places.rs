use std::collections::HashMap;

use crate::identity::BlockIdentity;

/// In which slots blocks are, and how many blocks follow them; every step takes constant time.
///
/// A block that is not there has a place too while something follows it, so that it is known to be
/// needed as soon as it comes.
#[derive(Default)]
pub(super) struct Places {
    places: HashMap<BlockIdentity, Place>,
    stored: usize,
}

struct Place {
    /// Or [`NONE`].
    slot: u32,
    followers: u32,
}

impl Places {
    /// Returns how many blocks have slots.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }

    /// Returns the slot of a block.
    pub(super) fn slot_of(&self, identity: &BlockIdentity) -> Option<u32> {
        self.places.get(identity).map(|place| place.slot).filter(|slot| *slot != NONE)
    }

    /// Tells whether nothing follows a block.
    pub(super) fn is_leaf(&self, identity: &BlockIdentity) -> bool {
        self.places.get(identity).is_none_or(|place| place.followers == 0)
    }

    /// Says in which slot a block is; returns the one where it was.
    pub(super) fn insert(&mut self, identity: BlockIdentity, slot: u32) -> Option<u32> {
        let earlier = std::mem::replace(&mut self.place(identity).slot, slot);
        if earlier == NONE {
            self.stored += 1;
        }
        Some(earlier).filter(|earlier| *earlier != NONE)
    }

    /// Says that a block that had a slot has none any more.
    pub(super) fn remove(&mut self, identity: &BlockIdentity) {
        self.place(*identity).slot = NONE;
        self.stored -= 1;
        self.tidy(identity);
    }

    /// Counts a block that follows another one, which need not be there.
    pub(super) fn follow(&mut self, parent: &BlockIdentity) {
        self.place(*parent).followers += 1;
    }

    /// Counts a block no more that followed another one.
    pub(super) fn unfollow(&mut self, parent: &BlockIdentity) {
        self.place(*parent).followers -= 1;
        self.tidy(parent);
    }

    /// Forgets all blocks.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn place(&mut self, identity: BlockIdentity) -> &mut Place {
        self.places.entry(identity).or_insert(Place { slot: NONE, followers: 0 })
    }

    /// Forgets a block that is not there and that nothing follows.
    fn tidy(&mut self, identity: &BlockIdentity) {
        if self.slot_of(identity).is_none() && self.is_leaf(identity) {
            self.places.remove(identity);
        }
    }

    /// Returns how many blocks are there or followed.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_takes_8_bytes_beside_its_identity() {
        assert_eq!(size_of::<(BlockIdentity, Place)>(), 40);
    }
}
