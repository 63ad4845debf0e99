/// Slots in the order in which they came; every step but `clear` takes constant time.
pub(super) struct Line {
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
}

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

impl Line {
    /// Returns a line that slots up to `slots` may stand in.
    pub(super) fn new(slots: u32) -> Self {
        let links = vec![Link { older: NONE, newer: NONE }; slots as usize];
        Self { links, oldest: NONE, newest: NONE }
    }

    /// Returns the slot that has been in the line for longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        Some(self.oldest).filter(|oldest| *oldest != NONE)
    }

    /// Adds a slot that is not in the line.
    pub(super) fn push(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.newest, slot);
        match older {
            NONE => self.oldest = slot,
            older => self.link(older).newer = slot,
        }
        *self.link(slot) = Link { older, newer: NONE };
    }

    /// Takes a slot out of the line that it is in.
    pub(super) fn remove(&mut self, slot: u32) {
        let Link { older, newer } = *self.link(slot);
        match older {
            NONE => self.oldest = newer,
            older => self.link(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.link(newer).older = older,
        }
    }

    /// Takes all slots out of the line.
    pub(super) fn clear(&mut self) {
        (self.oldest, self.newest) = (NONE, NONE);
    }

    /// Returns the slots, the one that has been there for longest first.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(self.oldest(), |slot| {
            Some(self.links[*slot as usize].newer).filter(|newer| *newer != NONE)
        })
    }

    fn link(&mut self, slot: u32) -> &mut Link {
        &mut self.links[slot as usize]
    }
}

/// No slot.
pub(super) const NONE: u32 = u32::MAX;
