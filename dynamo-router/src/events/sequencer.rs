use std::collections::BTreeMap;

use dynamo_core::protocol::{KvChange, KvCursor, KvEvent};

/// Puts the events of one worker in order; pure.
///
/// What it has let through is all that the worker said up to [`known`](Self::known), so a table that
/// follows its [`Step`]s is at every moment what the worker held when it said the last of them. Behind
/// a gap events are held, until what is missing arrives, a snapshot takes its place, or nobody waits
/// for either any more: then what was known is dropped, and what the worker stores from there on is
/// known, but not what it has stored before ([`is_partial`](Self::is_partial)).
#[derive(Debug, Default)]
pub(crate) struct Sequencer {
    /// How far events were let through; `None` before any was.
    pub(super) at: Option<KvCursor>,
    /// The number behind the last event of that epoch that is known to be.
    said: u64,
    /// Events of that epoch behind a gap, by number.
    held: BTreeMap<u64, KvChange>,
    /// Blocks that they name, and one for each.
    held_weight: usize,
    is_partial: bool,
}

/// What a table of the worker's blocks has to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step<'a> {
    /// Forget everything.
    Clear,
    /// Follow a change.
    Apply(&'a KvChange),
    /// Hold what these say, and nothing else.
    Replace(&'a [KvChange]),
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It was the next one.
    Applied,
    /// It was said before, or in an earlier life of the publisher.
    Ignored,
    /// It stands behind a gap, and waits.
    Held,
    /// It stood behind a gap; what was known was dropped.
    Lost,
}

/// Everything that a worker's caches held at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The moment: it stands for all events before.
    pub(crate) cursor: KvCursor,
    /// The blocks, as changes that store them.
    pub(crate) stored: Vec<KvChange>,
}

impl Sequencer {
    /// Takes in the next event that arrived; `waits` if what may be missing before it is waited for.
    pub(crate) fn hear(
        &mut self,
        event: &KvEvent,
        waits: bool,
        mut step: impl FnMut(Step<'_>),
    ) -> Heard {
        let first = KvCursor { epoch: event.epoch, next: 0 };
        let at = *self.at.get_or_insert(first);
        // The last number there is has no successor.
        let is_old = (event.epoch, event.seq) < (at.epoch, at.next) || event.seq == u64::MAX;
        if is_old || (event.epoch == at.epoch && self.held.contains_key(&event.seq)) {
            return Heard::Ignored;
        }
        if event.epoch > at.epoch {
            // With the life of the publisher ended that of its blocks.
            *self = Self { at: Some(first), ..Self::default() };
            step(Step::Clear);
        }
        self.said = self.said.max(event.seq + 1);
        if self.at.is_some_and(|at| at.next == event.seq) {
            step(Step::Apply(&event.change));
            self.advance(event.seq + 1, step);
            return Heard::Applied;
        }
        if waits {
            self.hold(event);
            return Heard::Held;
        }
        step(Step::Clear);
        step(Step::Apply(&event.change));
        self.is_partial = true;
        self.advance(event.seq + 1, step);
        Heard::Lost
    }

    /// Takes a snapshot in place of what was known, and goes on behind it; does nothing if it says
    /// nothing new.
    pub(crate) fn splice(&mut self, snapshot: &Snapshot, mut step: impl FnMut(Step<'_>)) {
        let Snapshot { cursor, stored } = snapshot;
        let is_news = match self.at {
            None => true,
            Some(at) => *cursor > at || (*cursor == at && self.is_partial),
        };
        if !is_news {
            return;
        }
        if self.at.is_some_and(|at| at.epoch != cursor.epoch) {
            *self = Self::default();
        }
        self.at = Some(*cursor);
        self.said = self.said.max(cursor.next);
        self.is_partial = false;
        step(Step::Replace(stored));
        self.advance(cursor.next, step);
    }

    /// Waits no longer for what is missing: drops what was known, and goes on behind the last gap.
    pub(crate) fn give_up(&mut self, mut step: impl FnMut(Step<'_>)) {
        if !self.is_behind() {
            return;
        }
        let mut from = self.said;
        while from.checked_sub(1).is_some_and(|before| self.held.contains_key(&before)) {
            from -= 1;
        }
        step(Step::Clear);
        self.is_partial = true;
        self.advance(from, step);
    }

    /// Returns the cursor up to which everything was let through, if that is what the worker held.
    pub(crate) fn known(&self) -> Option<KvCursor> {
        self.at.filter(|_| !self.is_partial)
    }

    /// Returns how many events are missing before the first that is known to be behind them.
    pub(crate) fn missing(&self) -> u64 {
        let at = self.at.map_or(0, |at| at.next);
        self.held.keys().next().copied().unwrap_or(self.said).saturating_sub(at)
    }

    /// Tells whether events are missing.
    pub(crate) fn is_behind(&self) -> bool {
        self.missing() > 0
    }

    /// Tells whether the worker may hold more than it has said since what was known was dropped.
    pub(crate) fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Lets through what is held from number `next` on, as far as nothing is missing.
    fn advance(&mut self, mut next: u64, mut step: impl FnMut(Step<'_>)) {
        while let Some(first) = self.held.first_entry()
            && *first.key() <= next
        {
            let (seq, change) = first.remove_entry();
            self.held_weight -= weight(&change);
            if seq == next {
                step(Step::Apply(&change));
                next += 1;
            }
        }
        if let Some(at) = &mut self.at {
            at.next = next;
        }
    }

    /// Holds an event; if that is too much the first ones go, and are missing like those before.
    fn hold(&mut self, event: &KvEvent) {
        self.held_weight += weight(&event.change);
        self.held.insert(event.seq, event.change.clone());
        while self.held_weight > HELD_MAX
            && let Some((_, change)) = self.held.pop_first()
        {
            self.held_weight -= weight(&change);
        }
    }
}

fn weight(change: &KvChange) -> usize {
    match change {
        KvChange::BlockStored { blocks, .. } => 1 + blocks.len(),
        KvChange::BlockRemoved { sequence_hashes, .. } => 1 + sequence_hashes.len(),
        _ => 1,
    }
}

/// A megabyte of a worker's events, of which a busy one says that much in some ten seconds.
const HELD_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests;
