/// Remembers hashes of what was evicted, about as many as it has places; pure.
///
/// A table of one place per hash: a later hash takes the place of an earlier one, so a hash is
/// remembered for a random number of evictions, on average as many as there are places, which needs
/// neither a list nor a clock. Two hashes are taken for one once in 2^32 at most over the number of
/// places.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// 0 for none.
    places: Vec<u32>,
}

impl Ghosts {
    /// Makes at least half as many places as there are `entries`, at most as many.
    ///
    /// What is remembered is forgotten when there are more: a pool grows before it evicts.
    pub(super) fn reach(&mut self, entries: usize) {
        if entries >= 2 * self.places.len().max(1) {
            let places = 1 << entries.ilog2();
            self.places.clear();
            self.places.resize(places, 0);
        }
    }

    /// Remembers a hash.
    pub(super) fn add(&mut self, hash: u32) {
        if let Some(place) = self.place_of(hash) {
            *place = hash;
        }
    }

    /// Tells whether a hash is remembered, and forgets it.
    pub(super) fn take(&mut self, hash: u32) -> bool {
        match self.place_of(hash) {
            Some(place) if *place == hash && hash != 0 => {
                *place = 0;
                true
            }
            _ => false,
        }
    }

    fn place_of(&mut self, hash: u32) -> Option<&mut u32> {
        let mask = self.places.len().wrapping_sub(1);
        self.places.get_mut(hash as usize & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_remembered_once_and_until_another_takes_its_place() {
        let mut ghosts = Ghosts::default();
        ghosts.add(5);
        assert!(!ghosts.take(5), "there is no place yet");
        ghosts.reach(15);
        assert_eq!(ghosts.places.len(), 8);
        ghosts.add(5);
        assert!(ghosts.take(5));
        assert!(!ghosts.take(5));
        ghosts.add(5);
        ghosts.add(13);
        assert!(!ghosts.take(5));
        assert!(ghosts.take(13));
        assert!(!ghosts.take(0), "an empty place is no hash");
    }
}
