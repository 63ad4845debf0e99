use std::time::{Duration, Instant};

use dynamo_core::random::Random;

use super::config::ResyncConfig;

/// Whom one feed asks; pure.
#[derive(Debug)]
pub(super) struct Resync {
    pub(super) config: ResyncConfig,
    pub(super) random: Random,
    /// Asked so far: the number of the last question.
    asked: u64,
    pub(super) under_way: usize,
    /// Nobody is to be asked before.
    next_due: Option<Instant>,
}

impl Resync {
    pub(super) fn new(config: ResyncConfig) -> Self {
        let random = Random::new(config.seed);
        Self { config, random, asked: 0, under_way: 0, next_due: None }
    }

    /// Meets a worker that is to be asked now and then.
    pub(super) fn check(&mut self, now: Instant) -> Check {
        let check = Check::new(self.random.around(self.config.audit_every), now);
        check.due().into_iter().for_each(|at| self.plan(at));
        check
    }

    /// Somebody is to be asked at `at`.
    pub(super) fn plan(&mut self, at: Instant) {
        self.next_due = Some(self.next_due.map_or(at, |earlier| earlier.min(at)));
    }

    /// Tells whether it is time to look at every worker, which plans those anew that are left.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.next_due.take_if(|at| *at <= now).is_some()
    }

    /// Returns the number of a question, if `check` is due and there is a place.
    pub(super) fn ask(&mut self, check: &mut Check, now: Instant) -> Option<u64> {
        let at = check.due()?;
        if at > now || self.is_full() {
            self.plan(at);
            return None;
        }
        self.under_way += 1;
        self.asked += 1;
        check.ask(self.asked);
        Some(self.asked)
    }

    /// A question was answered, or failed.
    pub(super) fn settled(&mut self) {
        self.under_way -= 1;
    }

    /// Returns when there is more to ask. Whom there is no place for is asked when another one has
    /// answered.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next_due.filter(|_| !self.is_full())
    }

    fn is_full(&self) -> bool {
        self.under_way >= self.config.at_once
    }
}

/// When a worker is asked for a snapshot next; pure.
#[derive(Debug)]
pub(super) struct Check {
    /// Something is wrong, or may be: it is asked then.
    wrong_at: Option<Instant>,
    /// When it was last known that nothing is.
    right_at: Instant,
    /// How long that is believed.
    audit_every: Duration,
    /// Questions in a row that were in vain.
    failed: u32,
    /// The number of the question under way.
    asked: Option<u64>,
}

impl Check {
    pub(super) fn new(audit_every: Duration, now: Instant) -> Self {
        Self { wrong_at: None, right_at: now, audit_every, failed: 0, asked: None }
    }

    /// Nothing is wrong at this moment.
    pub(super) fn right(&mut self, now: Instant) {
        (self.wrong_at, self.right_at, self.failed) = (None, now, 0);
    }

    /// Something may be wrong: it is asked at `at`, or earlier if that was so already.
    pub(super) fn wrong(&mut self, at: Instant) {
        self.wrong_at = Some(self.wrong_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Returns when the worker is to be asked; `None` while it is, or if that is never.
    pub(super) fn due(&self) -> Option<Instant> {
        let audit = || self.right_at.checked_add(self.audit_every);
        if self.asked.is_some() { None } else { self.wrong_at.or_else(audit) }
    }

    /// It is asked. What is wrong from now on the answer may not know.
    pub(super) fn ask(&mut self, number: u64) {
        (self.asked, self.wrong_at) = (Some(number), None);
    }

    /// Tells whether question `number` is the one under way, which then is over.
    pub(super) fn is_answered(&mut self, number: u64) -> bool {
        self.asked.take_if(|asked| *asked == number).is_some()
    }

    /// The answer said that nothing was wrong when the worker was asked.
    pub(super) fn was_right(&mut self, now: Instant) {
        (self.right_at, self.failed) = (now, 0);
    }

    /// The question was in vain: it is asked again. `false` if that was the last attempt.
    pub(super) fn failed(
        &mut self,
        config: &ResyncConfig,
        random: &mut Random,
        now: Instant,
    ) -> bool {
        self.failed += 1;
        let is_last = self.failed >= config.attempts;
        if is_last {
            self.right(now);
        } else {
            let wait = random.back_off(config.back_off, self.failed - 1, BACK_OFF_MAX);
            self.wrong_at = Some(now + wait);
        }
        !is_last
    }
}

const BACK_OFF_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use dynamo_core::time::{Clock, ManualClock};

    use super::*;

    #[test]
    fn attempts_are_further_and_further_apart_and_bounded_and_audits_go_on_behind_them() {
        let (clock, mut random) = (ManualClock::new(), Random::new(7));
        let config = ResyncConfig::default().with_attempts(20);
        let now = clock.now();
        let mut check = Check::new(config.audit_every, now);
        assert_eq!(check.due(), Some(now + config.audit_every));
        let waits: Vec<_> = (1..20u32)
            .map(|attempt| {
                assert!(check.failed(&config, &mut random, now));
                let about = config.back_off.saturating_mul(1 << (attempt - 1)).min(BACK_OFF_MAX);
                let wait = check.due().unwrap() - now;
                assert!(wait >= about / 2 && wait <= about * 3 / 2, "{attempt}: {wait:?}");
                wait
            })
            .collect();
        assert!(waits[10..].windows(2).any(|pair| pair[0] != pair[1]), "there is chance in it");
        assert!(!check.failed(&config, &mut random, now));
        assert_eq!(check.due(), Some(now + config.audit_every));
    }

    #[test]
    fn what_is_wrong_while_a_worker_is_asked_is_asked_for_behind_the_answer() {
        let clock = ManualClock::new();
        let (now, later) = (clock.now(), clock.now() + Duration::from_secs(1));
        let mut check = Check::new(Duration::from_secs(30), now);
        check.wrong(later);
        check.wrong(now);
        assert_eq!(check.due(), Some(now));
        check.ask(1);
        assert_eq!(check.due(), None);
        check.wrong(later);
        assert!(!check.is_answered(2) && check.is_answered(1) && !check.is_answered(1));
        check.was_right(now);
        assert_eq!(check.due(), Some(later));
    }
}
