use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynamo_core::ErrorKind;
use tokio::time::Instant;

use super::client::Inner;
use super::message::{Ask, MATCH_MAX, Told};
use crate::identity::BlockKey;

/// Whether an owner is worth a question that a first token waits for.
///
/// One that did not answer in time is asked once in a while, less and less often, until it gives a sign of
/// life; one whose blocks are of another layout is asked as seldom as that gets.
pub(super) struct Reach {
    /// The first pause.
    pause_min: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    silence: Option<Silence>,
    is_refused: bool,
}

struct Silence {
    /// When that was known.
    since: Instant,
    /// No question before then, and one then.
    until: Instant,
    pause: Duration,
}

impl Inner {
    /// Asks how many of the first keys are there, if there is a point in that.
    pub(super) async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        let begun = Instant::now();
        if !self.reach.admits(begun) {
            return 0;
        }
        let asked = keys.len().min(MATCH_MAX);
        let ask = Ask::Match { fingerprint: self.fingerprint, keys: keys[..asked].to_vec() };
        let error = match self.ask(ask, self.config.match_timeout).await {
            Ok(Told::Matched(count)) => return asked.min(count as usize),
            Ok(_) => return 0,
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::DeadlineExceeded => self.reach.timed_out(begun, Instant::now()),
            ErrorKind::InvalidArgument if self.reach.refused(Instant::now()) => {
                tracing::warn!(owner = %self.owner, %error, "a tier of a peer has nothing");
            }
            _ => {}
        }
        0
    }
}

impl Reach {
    /// Begins with an owner that answers; a question to it lasts for `limit` at most.
    pub(super) fn new(limit: Duration) -> Self {
        // No more than a fifth of the time is spent waiting.
        Self { pause_min: limit.saturating_mul(4).min(PAUSE_MAX), state: Mutex::default() }
    }

    /// Tells whether there is a point in asking at this moment; if the owner is silent, then only for one.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match &mut self.lock().silence {
            Some(silence) if now < silence.until => false,
            Some(silence) => {
                silence.until = now + silence.pause;
                true
            }
            None => true,
        }
    }

    /// Takes note that a question asked then was not answered in time.
    pub(super) fn timed_out(&self, asked: Instant, now: Instant) {
        let mut state = self.lock();
        let pause = match &state.silence {
            // One of several that waited at once.
            Some(silence) if asked < silence.since => return,
            Some(silence) => (silence.pause * 2).min(PAUSE_MAX),
            None => self.pause_min,
        };
        state.silence = Some(Silence { since: now, until: now + pause, pause });
    }

    /// Takes note that the owner's blocks are of another layout; tells whether that is news.
    pub(super) fn refused(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let (since, until, pause) = (now, now + PAUSE_MAX, PAUSE_MAX);
        state.silence = Some(Silence { since, until, pause });
        !std::mem::replace(&mut state.is_refused, true)
    }

    /// Takes note of a sign of life.
    pub(super) fn heard(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between questions to an owner that stays silent: a hundredth of the time is spent waiting then.
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_end_with_a_sign_of_life() {
        let ms = Duration::from_millis;
        let (reach, mut now) = (Reach::new(ms(250)), Instant::now());
        for _ in 0..2 {
            assert!(reach.admits(now) && reach.admits(now), "it answers, as far as is known");
            for pause in [1, 2, 4, 8, 16, 30, 30] {
                let asked = now;
                now += ms(250);
                reach.timed_out(asked, now);
                reach.timed_out(asked, now);
                now += Duration::from_secs(pause) - ms(1);
                assert!(!reach.admits(now), "{pause} s");
                now += ms(1);
                assert!(reach.admits(now) && !reach.admits(now), "for one");
            }
            // What became of the last question is not known.
            now += PAUSE_MAX;
            assert!(reach.admits(now) && !reach.admits(now));
            reach.heard();
        }
    }

    #[test]
    fn another_layout_is_news_once() {
        let (reach, mut now) = (Reach::new(Duration::from_millis(250)), Instant::now());
        assert!(reach.refused(now));
        for _ in 0..3 {
            assert!(!reach.admits(now));
            now += PAUSE_MAX;
            assert!(reach.admits(now));
            assert!(!reach.refused(now));
        }
        reach.heard();
        assert!(reach.admits(now));
        assert!(reach.refused(now), "his successor's");
    }
}
