use std::time::Duration;

use super::hold::Time;
use super::message::Message;

/// What one attempt to pull says to the owners of its blocks, and what it makes of their answers: pure.
///
/// ```text
/// asking ──Granted──► reading ──all bytes are here──► settling ──Settled──► may be shared
///   │ ▲ Taken, once      │ ▲ Claim, as bytes arrive      │ ▲ Done, again
///   │ └─┘                │ └─┘                           │ └─┘
///   └──Taken, Over───────┴──Over─────────────────────────┴──Over──► nothing is shared
/// ```
///
/// There is an owner for each shard of the model whose blocks are pulled. Reading begins when all have
/// granted, settling when all have been read, and what was read is shared when all have settled.
#[derive(Debug)]
pub(super) struct Claims(Vec<Claim>);

#[derive(Debug)]
struct Claim {
    claim_ttl: Duration,
    state: State,
    say_at: Time,
    /// What the owner was told that has moved.
    said: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// With `patience`, somebody else has the blocks: that one is gone by then, or lives.
    Asking {
        patience: Option<Time>,
    },
    Granted,
    Settling,
    Settled,
}

/// What there is to tell an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Say {
    /// The blocks are wanted, or so many bytes have moved.
    Claim(u64),
    /// All bytes are here.
    Done,
}

/// Why nothing is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Somebody else has the blocks, and moves along.
    Taken,
    /// Nothing is held for this attempt.
    Over,
}

impl Claims {
    /// Begins to ask owners, each of which keeps a reservation for its `claim_ttl`.
    pub(super) fn new(claim_ttls: impl IntoIterator<Item = Duration>, now: Time) -> Self {
        Self(claim_ttls.into_iter().map(|claim_ttl| Claim::new(claim_ttl, now)).collect())
    }

    /// Returns when something may have to be said next.
    pub(super) fn next(&self) -> Option<Time> {
        let unsettled = self.0.iter().filter(|claim| claim.state != State::Settled);
        unsettled.map(|claim| claim.say_at).min()
    }

    /// Returns which owners are to be told what, now that so many bytes of the pull have moved.
    pub(super) fn due(&mut self, moved: u64, now: Time) -> Vec<(usize, Say)> {
        let due = |(at, claim): (usize, &mut Claim)| Some((at, claim.due(moved, now)?));
        self.0.iter_mut().enumerate().filter_map(due).collect()
    }

    /// Takes an answer of owner `at`.
    pub(super) fn hear(&mut self, at: usize, answer: &Message, now: Time) -> Result<(), Refusal> {
        self.0.get_mut(at).map_or(Ok(()), |claim| claim.hear(answer, now))
    }

    /// Tells whether all blocks are reserved, so that they can be read.
    pub(super) fn are_granted(&self) -> bool {
        self.0.iter().all(|claim| claim.state == State::Granted)
    }

    /// All bytes are here.
    pub(super) fn settle(&mut self, now: Time) {
        for claim in &mut self.0 {
            (claim.state, claim.say_at) = (State::Settling, now);
        }
    }

    /// Tells whether the blocks are this attempt's, and nobody else's ever.
    pub(super) fn are_settled(&self) -> bool {
        self.0.iter().all(|claim| claim.state == State::Settled)
    }
}

impl Claim {
    fn new(claim_ttl: Duration, now: Time) -> Self {
        Self { claim_ttl, state: State::Asking { patience: None }, say_at: now, said: None }
    }

    fn due(&mut self, moved: u64, now: Time) -> Option<Say> {
        if now < self.say_at {
            return None;
        }
        self.say_at = now + (self.claim_ttl / 4).max(PACE_MIN);
        match self.state {
            State::Settled => None,
            State::Settling => Some(Say::Done),
            // Only what is news renews.
            State::Granted if self.said.is_some_and(|said| moved <= said) => None,
            State::Asking { .. } | State::Granted => {
                self.said = Some(moved);
                Some(Say::Claim(moved))
            }
        }
    }

    fn hear(&mut self, answer: &Message, now: Time) -> Result<(), Refusal> {
        match (answer, self.state) {
            (Message::Granted { .. }, State::Asking { .. }) => self.state = State::Granted,
            (Message::Settled { .. }, State::Settling) => self.state = State::Settled,
            (Message::Taken { left, .. }, State::Asking { patience: None }) => {
                let until = now + (*left).min(self.claim_ttl);
                self.state = State::Asking { patience: Some(until) };
                self.say_at = self.say_at.min(until);
            }
            (Message::Taken { .. }, State::Asking { patience: Some(until) }) if now >= until => {
                return Err(Refusal::Taken);
            }
            // A word that comes late: the owner has settled it with this attempt.
            (Message::Over { .. }, state) if state != State::Settled => return Err(Refusal::Over),
            _ => {}
        }
        Ok(())
    }
}

/// However short an owner's reservations are, it is not told more often.
const PACE_MIN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::message::Attempt;
    use super::*;

    const ATTEMPT: Attempt = Attempt([1; 16]);
    const SETTLED: Message = Message::Settled { attempt: ATTEMPT };
    const OVER: Message = Message::Over { attempt: ATTEMPT };

    fn ms(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    fn taken(left: u64) -> Message {
        Message::Taken { attempt: ATTEMPT, left: ms(left) }
    }

    fn granted() -> Message {
        Message::Granted { attempt: ATTEMPT, region: Bytes::new() }
    }

    fn claims() -> Claims {
        Claims::new([ms(400), ms(800)], ms(0))
    }

    #[test]
    fn all_owners_grant_before_any_is_read_and_settle_before_anything_is_shared() {
        let mut claims = claims();
        assert_eq!(claims.due(0, ms(0)), [(0, Say::Claim(0)), (1, Say::Claim(0))]);
        assert_eq!(claims.next(), Some(ms(100)));
        assert_eq!(claims.due(0, ms(100)), [(0, Say::Claim(0))], "no answer yet");
        claims.hear(0, &granted(), ms(110)).unwrap();
        assert!(!claims.are_granted());
        claims.hear(1, &granted(), ms(110)).unwrap();
        assert!(claims.are_granted());
        assert_eq!(claims.due(0, ms(200)), [], "nothing has moved");
        assert_eq!(claims.due(5, ms(400)), [(0, Say::Claim(5)), (1, Say::Claim(5))]);
        claims.settle(ms(410));
        let done = [(0, Say::Done), (1, Say::Done)];
        assert_eq!(claims.due(9, ms(410)), done);
        assert_eq!(claims.due(9, ms(610)), done, "no answer yet");
        claims.hear(1, &SETTLED, ms(620)).unwrap();
        claims.hear(1, &OVER, ms(630)).unwrap();
        assert!(!claims.are_settled());
        claims.hear(0, &SETTLED, ms(640)).unwrap();
        assert!(claims.are_settled());
        assert_eq!((claims.next(), claims.due(9, ms(9999))), (None, vec![]));
    }

    #[test]
    fn a_rival_is_waited_for_once() {
        let mut claims = claims();
        claims.due(0, ms(0));
        claims.hear(0, &taken(300), ms(10)).unwrap();
        claims.hear(0, &taken(300), ms(20)).unwrap();
        assert_eq!(claims.due(0, ms(100)), [(0, Say::Claim(0))], "it may be released meanwhile");
        claims.hear(0, &taken(300), ms(110)).unwrap();
        assert_eq!(claims.hear(0, &taken(300), ms(320)), Err(Refusal::Taken));

        let mut claims = self::claims();
        claims.hear(0, &taken(300), ms(10)).unwrap();
        claims.hear(0, &granted(), ms(320)).unwrap();
        claims.hear(0, &taken(300), ms(330)).unwrap();
        claims.hear(0, &taken(u64::MAX), ms(330)).unwrap();
        assert_eq!(claims.hear(0, &OVER, ms(340)), Err(Refusal::Over));
    }

    #[test]
    fn an_answer_that_was_not_asked_for_settles_nothing() {
        let mut claims = claims();
        for at in [0, 1, 2] {
            claims.hear(at, &SETTLED, ms(1)).unwrap();
        }
        assert!(!claims.are_settled() && !claims.are_granted());
    }
}
