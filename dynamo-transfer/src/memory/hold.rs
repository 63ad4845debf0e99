use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Which bytes of a writable region are being touched in this process right now.
///
/// Two operations may overlap; what they leave is then a mix, but never a data race: whoever writes
/// bytes has them alone, for one copy or one call of the kernel at a time, never across a wait.
#[derive(Debug, Default)]
pub(super) struct Holds {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<Held>,
    /// Those who wait for others: telling nobody is a call of the kernel, too.
    waiting: usize,
}

#[derive(Debug)]
struct Held {
    range: Range<u64>,
    is_write: bool,
}

/// The right to touch a range until it is dropped.
pub(super) struct Hold<'a> {
    holds: &'a Holds,
    range: Range<u64>,
    is_write: bool,
}

impl Holds {
    /// Waits until nobody touches `range` in a way that excludes this one.
    pub(super) fn hold(&self, range: Range<u64>, is_write: bool) -> Hold<'_> {
        let mut state = self.lock();
        while state.excludes(&range, is_write) {
            state.waiting += 1;
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.held.push(Held { range: range.clone(), is_write });
        Hold { holds: self, range, is_write }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn excludes(&self, range: &Range<u64>, is_write: bool) -> bool {
        self.held.iter().any(|other| {
            (is_write || other.is_write)
                && range.start < other.range.end
                && other.range.start < range.end
        })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = self.holds.lock();
        let own = |other: &Held| other.range == self.range && other.is_write == self.is_write;
        if let Some(index) = state.held.iter().position(own) {
            state.held.swap_remove(index);
        }
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.holds.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Waits, ten seconds at most, until somebody waits for others.
    fn somebody_waits(holds: &Holds) -> bool {
        (0..10_000).any(|_| {
            let waits = holds.lock().waiting > 0;
            if !waits {
                std::thread::sleep(Duration::from_millis(1));
            }
            waits
        })
    }

    #[test]
    fn readers_share_what_a_writer_has_alone() {
        let holds = Holds::default();
        let first = holds.hold(0..10, false);
        let second = holds.hold(5..15, false);
        let beside = holds.hold(15..20, true);
        let writers = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _writer = holds.hold(9..11, true);
                writers.fetch_add(1, Ordering::Relaxed);
            });
            scope
                .spawn(|| {
                    let _apart = holds.hold(30..40, true);
                })
                .join()
                .unwrap();
            assert!(somebody_waits(&holds), "two readers are there");
            assert_eq!(writers.load(Ordering::Relaxed), 0);
            drop(first);
            assert!(somebody_waits(&holds), "the other one still is");
            assert!(holds.lock().excludes(&(9..11), true));
            assert_eq!(writers.load(Ordering::Relaxed), 0);
            drop(second);
        });
        assert_eq!(writers.load(Ordering::Relaxed), 1);
        drop(beside);
        assert!(holds.lock().held.is_empty());
    }
}
