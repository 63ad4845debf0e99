//! Which host memory a copier has pinned, so that memory tells by its address what it is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory::Span;

/// The pinned memory of one copier.
#[derive(Default)]
pub(super) struct PinnedSpans(Mutex<BTreeMap<usize, usize>>);

impl PinnedSpans {
    pub(super) fn add(&self, span: Span) {
        if span.len() > 0 {
            self.lock().insert(span.as_ptr().addr(), span.len());
        }
    }

    pub(super) fn remove(&self, span: Span) {
        if span.len() > 0 {
            self.lock().remove(&span.as_ptr().addr());
        }
    }

    /// Tells whether all of a span lies in one allocation.
    pub(super) fn has(&self, span: Span) -> bool {
        let start = span.as_ptr().addr();
        let known = self.lock();
        let below = known.range(..=start).next_back();
        below.is_some_and(|(address, len)| start - address + span.len() <= *len)
    }

    /// Returns the length of each allocation, by address.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_pinned_if_all_of_it_is_and_as_long_as_it_is() {
        let memory = [0u8; 64];
        let part = |at: usize, len: usize| Span::of(&memory[at..at + len]);
        let pinned = PinnedSpans::default();
        assert!(!pinned.has(part(0, 1)));
        pinned.add(part(16, 16));
        pinned.add(part(40, 8));
        let has = |at, len| pinned.has(part(at, len));
        assert!(has(16, 16) && has(31, 1) && has(20, 4) && has(40, 8));
        assert!(!has(15, 2) && !has(16, 17) && !has(32, 1) && !has(24, 24) && !has(48, 1));
        pinned.remove(part(16, 16));
        assert!(!pinned.has(part(20, 4)) && pinned.has(part(41, 7)));
    }
}
