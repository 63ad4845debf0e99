use std::collections::BTreeMap;

use dynamo_core::protocol::{KvChange, KvCursor, KvEvent};

/// Puts the events of one worker in order; pure.
///
/// What it has let through is all that the worker said up to [`known`](Self::known), so a table that
/// follows its [`Step`]s is at every moment what the worker held when it said the last of them. Behind
/// a gap events are held, until what is missing arrives, a snapshot takes its place, or nobody waits
/// for either any more: then what was known is dropped, and what the worker stores from there on is
/// known, but not what it has stored before. A snapshot of such a
/// worker may be older than what was let through of it meanwhile: that is kept from the moment on that
/// the snapshot is [asked for](Self::asked), and follows it.
#[derive(Debug, Default)]
pub(crate) struct Sequencer {
    /// How far events were let through; `None` before any was.
    pub(super) at: Option<KvCursor>,
    /// The number behind the last event of that epoch that is known to be.
    said: u64,
    /// Events of that epoch by number: behind a gap, and before it those that are kept.
    held: BTreeMap<u64, KvChange>,
    /// Blocks that they name, and one for each.
    held_weight: usize,
    /// What was known was dropped: the worker may hold more than it has said since.
    is_partial: bool,
    /// What is let through is kept until [`answered`](Self::answered).
    is_keeping: bool,
}

/// How far the events of a worker were let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Behind the last of them.
    pub(crate) cursor: KvCursor,
    /// The worker may have held more then than is known.
    pub(crate) is_partial: bool,
}

/// What a table of the worker's blocks has to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step<'a> {
    /// Forget everything.
    Clear,
    /// Follow a change.
    Apply(&'a KvChange),
    /// Hold what these say and nothing else, all of it at once to whoever reads the table.
    Replace {
        /// What the worker held at one moment.
        stored: &'a [KvChange],
        /// What it has said since then.
        since: &'a [KvChange],
    },
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
    /// Goes on where another one was, with what its table said.
    pub(crate) fn resumed(Reached { cursor, is_partial }: Reached) -> Self {
        Self { at: Some(cursor), said: cursor.next, is_partial, ..Self::default() }
    }

    /// Returns how far events were let through; `None` before any was.
    pub(crate) fn reached(&self) -> Option<Reached> {
        self.at.map(|cursor| Reached { cursor, is_partial: self.is_partial })
    }

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
            if self.is_keeping {
                self.hold(event);
            }
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

    /// A snapshot is asked for: it will stand for no event before those that are heard from here on.
    pub(crate) fn asked(&mut self) {
        self.is_keeping = self.is_partial;
    }

    /// The snapshot that was asked for was taken, or will not come.
    pub(crate) fn answered(&mut self) {
        self.is_keeping = false;
        self.drop_before(self.at.map_or(0, |at| at.next));
    }

    /// Takes a snapshot in place of what was known, and goes on behind it; does nothing if it says
    /// nothing new.
    pub(crate) fn splice(&mut self, snapshot: &Snapshot, mut step: impl FnMut(Step<'_>)) {
        let Snapshot { cursor, stored } = snapshot;
        if !self.is_news(*cursor) {
            return;
        }
        if self.at.is_some_and(|at| at.epoch != cursor.epoch) {
            *self = Self::default();
        }
        self.said = self.said.max(cursor.next);
        self.is_partial = false;
        let (mut since, mut next) = (Vec::new(), cursor.next);
        while let Some(change) = self.take(next) {
            since.push(change);
            next += 1;
        }
        self.at = Some(KvCursor { next, ..*cursor });
        self.answered();
        step(Step::Replace { stored, since: &since });
    }

    /// Tells whether more is known with a snapshot of that moment than without.
    fn is_news(&self, cursor: KvCursor) -> bool {
        let Some(at) = self.at.filter(|at| cursor <= *at) else { return true };
        self.is_partial && cursor.epoch == at.epoch && {
            let kept = self.held.range(cursor.next..at.next).count();
            kept as u64 == at.next - cursor.next
        }
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
        let held = self.held.range(at..).next().map(|(seq, _)| *seq);
        held.unwrap_or(self.said).saturating_sub(at)
    }

    /// Tells whether what was let through is all that the worker has said and holds.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_behind() && !self.is_partial
    }

    /// Tells whether events are missing.
    pub(crate) fn is_behind(&self) -> bool {
        self.missing() > 0
    }

    /// Lets through what is held from number `next` on, as far as nothing is missing.
    fn advance(&mut self, mut next: u64, mut step: impl FnMut(Step<'_>)) {
        while let Some(change) = self.held.get(&next) {
            step(Step::Apply(change));
            next += 1;
        }
        if let Some(at) = &mut self.at {
            at.next = next;
        }
        if !self.is_keeping {
            self.drop_before(next);
        }
    }

    /// Holds an event; if that is too much the first ones go, and are missing like those before.
    fn hold(&mut self, event: &KvEvent) {
        self.held_weight += weight(&event.change);
        self.held.insert(event.seq, event.change.clone());
        while self.held_weight > HELD_MAX
            && let Some(first) = self.held.keys().next().copied()
        {
            self.take(first);
        }
    }

    /// Holds what has a smaller number no longer.
    fn drop_before(&mut self, next: u64) {
        while let Some(first) = self.held.keys().next().copied().filter(|first| *first < next) {
            self.take(first);
        }
    }

    fn take(&mut self, seq: u64) -> Option<KvChange> {
        let change = self.held.remove(&seq)?;
        self.held_weight -= weight(&change);
        Some(change)
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
