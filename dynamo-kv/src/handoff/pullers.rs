use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::hold::Time;
use super::message::{Attempt, StageId};

/// Who has pulled what, for as long as a puller may ask whether it has: pure.
#[derive(Debug)]
pub(super) struct Pullers {
    kept: Duration,
    by_stage: BTreeMap<StageId, Attempt>,
    /// Until when each of them is kept, the first ones first.
    ends: VecDeque<(Time, StageId)>,
}

impl Pullers {
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, by_stage: BTreeMap::new(), ends: VecDeque::new() }
    }

    /// Keeps in mind that this attempt has pulled it, which nobody has before.
    pub(super) fn insert(&mut self, id: StageId, attempt: Attempt, now: Time) {
        self.forget(now);
        if self.ends.len() == PULLERS_MAX
            && let Some((_, oldest)) = self.ends.pop_front()
        {
            self.by_stage.remove(&oldest);
        }
        self.by_stage.insert(id, attempt);
        self.ends.push_back((now + self.kept, id));
    }

    pub(super) fn is_by(&self, id: StageId, attempt: Attempt) -> bool {
        self.by_stage.get(&id) == Some(&attempt)
    }

    /// Forgets those that nobody asks for any more.
    pub(super) fn forget(&mut self, now: Time) {
        while let Some((end, id)) = self.ends.front()
            && *end <= now
        {
            self.by_stage.remove(id);
            self.ends.pop_front();
        }
    }
}

/// Two thousand pulls a second for as long as one of them is kept by default, and some 30 MB. Beyond it the
/// oldest are forgotten: one whose last answer was lost that long ago would fail as if it had come too late.
const PULLERS_MAX: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT: Attempt = Attempt([1; 16]);

    #[test]
    fn what_is_kept_is_bounded_in_time_and_in_number() {
        let mut pullers = Pullers::new(Time::from_secs(10));
        let stage = |number: usize| StageId::of_test(number.try_into().unwrap());
        for number in 0..=PULLERS_MAX {
            pullers.insert(stage(number), ATTEMPT, Time::from_secs(1));
        }
        assert_eq!((pullers.by_stage.len(), pullers.ends.len()), (PULLERS_MAX, PULLERS_MAX));
        assert!(!pullers.is_by(stage(0), ATTEMPT), "the oldest one");
        for number in [1, PULLERS_MAX] {
            assert!(pullers.is_by(stage(number), ATTEMPT));
            assert!(!pullers.is_by(stage(number), Attempt([2; 16])));
        }
        pullers.forget(Time::from_millis(10_999));
        assert_eq!(pullers.by_stage.len(), PULLERS_MAX);
        pullers.forget(Time::from_secs(11));
        assert_eq!((pullers.by_stage.len(), pullers.ends.len()), (0, 0));
    }
}
