use std::collections::BTreeMap;
use std::time::Duration;

use super::message::{Attempt, StageId};
use super::pullers::Pullers;

/// Time since a moment that all calls of one machine count from.
pub(super) type Time = Duration;

/// How long an owner holds what it staged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// For a puller that does not come.
    pub(super) ttl: Duration,
    /// For the one that has reserved the blocks, since it last moved along.
    pub(super) claim_ttl: Duration,
    /// In all, whoever moves along.
    pub(super) max: Duration,
    /// How long a puller may ask whether it has pulled, and is told so.
    pub(super) pull: Duration,
}

/// Everything an owner has staged, each with a `T` that is given out once, when its hold ends: pure.
#[derive(Debug)]
pub(super) struct Holds<T> {
    terms: Terms,
    by_id: BTreeMap<StageId, (Hold, T)>,
    /// Who has ended those that were pulled: the answer to that may have been lost.
    pullers: Pullers,
}

/// What an owner says to a claim.
#[derive(Debug)]
pub(super) enum Verdict<'a, T> {
    /// The blocks are reserved for this attempt.
    Granted {
        held: &'a mut T,
        /// Whether they were not before: what other attempts were given is void.
        is_new: bool,
    },
    /// They are reserved for another one, for so long at least.
    Taken { left: Duration },
    /// This attempt has pulled them: the claim comes behind its last word.
    Pulled,
    /// There is nothing for this attempt, and never will be.
    Over,
}

/// One staged hand-off: open, or reserved for one attempt to pull it.
#[derive(Debug)]
struct Hold {
    /// When it ends if it is not reserved.
    until: Time,
    latest: Time,
    claim: Option<Reserved>,
    /// Attempts that had reserved it, or never will: they do not come back, however late their messages.
    past: Vec<Attempt>,
}

#[derive(Debug)]
struct Reserved {
    attempt: Attempt,
    moved: u64,
    /// From here on another attempt may take it over.
    lapses: Time,
}

impl Hold {
    fn ends(&self) -> Time {
        let claimed = self.claim.as_ref().map_or(self.until, |claim| claim.lapses);
        claimed.max(self.until).min(self.latest)
    }

    /// Tells whether the attempt may have the blocks, as far as the past goes.
    fn admits(&self, attempt: Attempt, now: Time) -> bool {
        now < self.ends() && self.past.len() < ATTEMPTS_MAX && !self.past.contains(&attempt)
    }

    fn reserve(&mut self, attempt: Attempt, moved: u64, lapses: Time) {
        if let Some(other) = self.claim.replace(Reserved { attempt, moved, lapses }) {
            self.past.push(other.attempt);
        }
    }
}

impl<T> Holds<T> {
    pub(super) fn new(terms: Terms) -> Self {
        Self { terms, by_id: BTreeMap::new(), pullers: Pullers::new(terms.pull) }
    }

    /// Holds `held`; `id` is new.
    pub(super) fn stage(&mut self, id: StageId, held: T, now: Time) {
        let (until, latest) = (now + self.terms.ttl, now + self.terms.max.max(self.terms.ttl));
        self.by_id.insert(id, (Hold { until, latest, claim: None, past: Vec::new() }, held));
    }

    /// Reserves a hand-off for an attempt, and keeps it reserved as long as that moves along.
    pub(super) fn claim(
        &mut self,
        id: StageId,
        attempt: Attempt,
        moved: u64,
        now: Time,
    ) -> Verdict<'_, T> {
        let lapses = now + self.terms.claim_ttl;
        let Some((hold, held)) = self.by_id.get_mut(&id) else {
            let is_theirs = self.pullers.is_by(id, attempt);
            return if is_theirs { Verdict::Pulled } else { Verdict::Over };
        };
        if !hold.admits(attempt, now) {
            return Verdict::Over;
        }
        match &mut hold.claim {
            Some(claim) if claim.attempt == attempt => {
                // Only what was not known yet is progress: copies and latecomers renew nothing.
                if moved > claim.moved {
                    (claim.moved, claim.lapses) = (moved, lapses);
                }
                Verdict::Granted { held, is_new: false }
            }
            Some(claim) if now < claim.lapses => Verdict::Taken { left: claim.lapses - now },
            _ => {
                hold.reserve(attempt, moved, lapses);
                Verdict::Granted { held, is_new: true }
            }
        }
    }

    /// Ends a hand-off that an attempt has pulled: the one it is reserved for, or, while it is open,
    /// one that needed none of its bytes. Tells whether it was this one that ended it, also when asked
    /// again.
    pub(super) fn done(&mut self, id: StageId, attempt: Attempt, now: Time) -> (bool, Option<T>) {
        let Some((hold, _)) = self.by_id.get(&id) else {
            return (self.pullers.is_by(id, attempt), None);
        };
        let is_theirs = match &hold.claim {
            Some(claim) => claim.attempt == attempt,
            None => !hold.past.contains(&attempt),
        };
        if !is_theirs {
            return (false, None);
        }
        self.pullers.insert(id, attempt, now);
        (true, self.end(id))
    }

    /// Opens a hand-off for others if it is reserved for this attempt, which will not claim it again.
    pub(super) fn release(&mut self, id: StageId, attempt: Attempt) -> Option<&mut T> {
        let (hold, held) = self.by_id.get_mut(&id)?;
        let is_theirs = hold.claim.as_ref().is_some_and(|claim| claim.attempt == attempt);
        if is_theirs {
            hold.claim = None;
        }
        // Its claim may come behind this.
        if hold.past.len() < ATTEMPTS_MAX && !hold.past.contains(&attempt) {
            hold.past.push(attempt);
        }
        is_theirs.then_some(held)
    }

    /// Returns what is held if it is reserved for this attempt.
    pub(super) fn reserved(&mut self, id: StageId, attempt: Attempt) -> Option<&mut T> {
        let (hold, held) = self.by_id.get_mut(&id)?;
        hold.claim.as_ref().is_some_and(|claim| claim.attempt == attempt).then_some(held)
    }

    /// Ends a hand-off whatever its state.
    pub(super) fn end(&mut self, id: StageId) -> Option<T> {
        self.by_id.remove(&id).map(|(_, held)| held)
    }

    /// Ends those whose time is over.
    pub(super) fn expire(&mut self, now: Time) -> Vec<T> {
        self.pullers.forget(now);
        let is_overdue =
            |(id, (hold, _)): (&StageId, &(Hold, T))| (hold.ends() <= now).then_some(*id);
        let overdue: Vec<_> = self.by_id.iter().filter_map(is_overdue).collect();
        overdue.into_iter().filter_map(|id| self.end(id)).collect()
    }

    /// Returns when the next one's time is over, unless it is renewed.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.by_id.values().map(|(hold, _)| hold.ends()).min()
    }

    /// Goes through what is held.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_id.values().map(|(_, held)| held)
    }
}

/// Attempts at one hand-off, far above those of a router; when so many have failed there are no others.
const ATTEMPTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: StageId = StageId::of_test(1);

    fn ms(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    fn attempt(number: u8) -> Attempt {
        Attempt([number; 16])
    }

    fn staged() -> Holds<()> {
        let terms = Terms { ttl: ms(30), claim_ttl: ms(5), max: ms(100), pull: ms(200) };
        let mut holds = Holds::new(terms);
        holds.stage(STAGE, (), ms(0));
        holds
    }

    impl Holds<()> {
        /// Claims, and says in a letter what came of it: new, again, taken, over.
        fn try_claim(&mut self, number: u8, moved: u64, at: u64) -> char {
            match self.claim(STAGE, attempt(number), moved, ms(at)) {
                Verdict::Granted { is_new: true, .. } => 'n',
                Verdict::Granted { is_new: false, .. } => 'a',
                Verdict::Taken { .. } => 't',
                Verdict::Pulled => 'p',
                Verdict::Over => 'o',
            }
        }
    }

    #[test]
    fn one_attempt_has_it_at_a_time_and_never_a_second_time() {
        let mut holds = staged();
        assert_eq!(holds.try_claim(1, 0, 10), 'n');
        assert_eq!(holds.try_claim(1, 0, 11), 'a');
        assert_eq!(holds.try_claim(2, 0, 14), 't');
        assert_eq!(holds.try_claim(2, 0, 15), 'n', "the first one has lapsed");
        assert_eq!(holds.try_claim(1, 9, 16), 'o');
        assert_eq!(holds.done(STAGE, attempt(1), ms(16)), (false, None));
        assert!(holds.release(STAGE, attempt(1)).is_none());
        assert!(holds.release(STAGE, attempt(2)).is_some());
        assert_eq!(holds.try_claim(2, 0, 17), 'o', "a copy behind the release");
        assert!(holds.release(STAGE, attempt(3)).is_none());
        assert_eq!(holds.try_claim(3, 0, 17), 'o', "released before the claim came");
        assert_eq!(holds.try_claim(4, 0, 17), 'n');
        assert_eq!(holds.done(STAGE, attempt(4), ms(17)), (true, Some(())));
        assert_eq!(holds.done(STAGE, attempt(4), ms(17)), (true, None), "asked again");
        assert_eq!(holds.done(STAGE, attempt(3), ms(17)), (false, None));
        assert_eq!(holds.try_claim(4, 9, 17), 'p', "a claim behind that");
        assert_eq!(holds.try_claim(5, 0, 17), 'o');
    }

    #[test]
    fn progress_renews_and_only_up_to_the_maximum() {
        let mut holds = staged();
        assert_eq!(holds.try_claim(1, 0, 28), 'n');
        assert_eq!(holds.next_end(), Some(ms(33)), "a reservation has its time");
        for (moved, at) in [(1, 32), (1, 33), (0, 34), (1, 36)] {
            assert_eq!(holds.try_claim(1, moved, at), 'a');
            assert_eq!(holds.next_end(), Some(ms(37)), "renewed once, by what was new");
        }
        assert!(holds.expire(ms(36)).is_empty());
        for at in (36..99).step_by(4) {
            assert_eq!(holds.try_claim(1, at, at), 'a');
        }
        assert_eq!(holds.next_end(), Some(ms(100)));
        assert_eq!(holds.try_claim(1, 200, 100), 'o');
        assert_eq!(holds.expire(ms(100)).len(), 1);
        assert_eq!(holds.next_end(), None);
    }

    #[test]
    fn attempts_that_fail_are_counted_and_at_their_limit_there_are_no_others() {
        let mut holds = staged();
        for number in 0..64 {
            assert_eq!(holds.try_claim(number, 0, 1), 'n');
            assert!(holds.release(STAGE, attempt(number)).is_some());
        }
        assert_eq!(holds.try_claim(99, 0, 1), 'o');
        assert_eq!(holds.expire(ms(30)).len(), 1);
    }

    #[test]
    fn who_has_pulled_is_told_so_as_long_as_it_may_ask_however_many_others_have_since() {
        let mut holds = staged();
        assert_eq!(holds.try_claim(1, 0, 1), 'n');
        // The answer is lost.
        assert_eq!(holds.done(STAGE, attempt(1), ms(2)), (true, Some(())));
        for number in 2..20_000 {
            let other = StageId::of_test(number);
            holds.stage(other, (), ms(3));
            assert_eq!(holds.done(other, attempt(2), ms(3)), (true, Some(())));
        }
        assert!(holds.expire(ms(201)).is_empty());
        assert_eq!(holds.done(STAGE, attempt(1), ms(201)), (true, None));
        assert_eq!(holds.try_claim(1, 9, 201), 'p');
        assert_eq!(holds.done(STAGE, attempt(2), ms(201)), (false, None));
        assert!(holds.expire(ms(202)).is_empty());
        assert_eq!(holds.done(STAGE, attempt(1), ms(202)), (false, None), "it has given up");
    }

    #[test]
    fn who_needs_nothing_of_it_may_end_what_is_open() {
        let mut holds = staged();
        assert_eq!(holds.try_claim(1, 0, 1), 'n');
        assert_eq!(holds.done(STAGE, attempt(2), ms(1)), (false, None));
        assert!(holds.release(STAGE, attempt(1)).is_some());
        assert_eq!(holds.done(STAGE, attempt(1), ms(1)), (false, None));
        assert_eq!(holds.done(STAGE, attempt(2), ms(1)), (true, Some(())));
    }
}
