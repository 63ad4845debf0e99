use super::Index;
use crate::tier::disk::format::Record;
use crate::tier::disk::stats::Recovery;

impl Index {
    /// Puts a record that was found into its slot; [`recovered`](Self::recovered) comes after all.
    pub(in crate::tier::disk) fn recover(&mut self, slot: u32, record: Record) {
        self.slot(slot).record = Some(record);
    }

    /// Has a slot that nothing is known of used by nobody: what is there may be found again.
    pub(in crate::tier::disk) fn lose(&mut self, slot: u32) {
        self.slot(slot).holds = 1;
        self.stats.lost += 1;
    }

    /// Takes the blocks to have been used in the order in which they were stored, which takes the time
    /// to sort them.
    pub(in crate::tier::disk) fn recovered(&mut self, recovery: &mut Recovery) {
        let found = (0u32..).zip(&self.slots);
        let found =
            found.filter_map(|(slot, state)| Some((state.record.as_ref()?.generation, slot)));
        let mut found: Vec<_> = found.collect();
        found.sort_unstable();
        for (generation, slot) in &found {
            (self.generation, self.clock) = (*generation, *generation);
            self.slot(*slot).last_use = *generation;
            let Some(record) = &self.slots[*slot as usize].record else { continue };
            if let Some(earlier) = self.places.insert(record.key.identity, *slot) {
                self.slot(earlier).record = None;
                recovery.repeated += 1;
            }
        }
        let records = self.slots.iter().filter_map(|slot| slot.record.as_ref());
        records.filter_map(|record| record.key.parent).for_each(|key| self.places.follow(&key));
        found.into_iter().for_each(|(_, slot)| self.offer(slot));
        self.free = (0u32..)
            .zip(&self.slots)
            .filter_map(|(slot, state)| {
                (state.holds == 0 && state.record.is_none()).then_some(slot)
            })
            .collect();
        recovery.blocks = self.places.stored();
    }
}
