//! The numbers of a publisher's messages: what is missing, repeated, or of another life; pure.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Watches the numbers of one publisher over all its connections.
///
/// A publisher numbers its messages 0, 1, 2, … and starts anew when it restarts, without saying so.
/// Along one connection numbers grow, so one that does not is of another life. A new connection
/// proves nothing: who came back with the next number may have lost everything in between. Only a
/// replay proves it, by the last message that was taken in, which it must still know.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The number that comes next; `None` if any may, because nothing is known.
    next: Option<u64>,
    /// A digest of the message before it.
    last: Option<u64>,
    /// The last number that came along the connection.
    live: Option<u64>,
    /// Up to here messages came by replay since the connection is there.
    replayed: Option<u64>,
}

/// What a number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// It is the next.
    Next,
    /// Some before it are missing, from this one on.
    Missing(u64),
    /// It was taken in already.
    Repeat,
    /// The publisher has restarted.
    Restart,
}

/// What the first answer of a replay says of the messages taken in so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// There were none, or the publisher still knows the last of them.
    Same,
    /// It is too long ago.
    Unknown,
    /// They are of another life of the publisher.
    Other,
}

impl Order {
    /// Takes note of a new connection.
    pub(super) fn connected(&mut self) {
        (self.live, self.replayed) = (None, None);
    }

    /// Judges a message that came along the connection.
    pub(super) fn judge(&self, number: u64) -> Judged {
        match self.next {
            None => Judged::Next,
            Some(next) if number == next => Judged::Next,
            Some(next) if number > next => Judged::Missing(next),
            Some(_) if self.live.is_some_and(|live| number <= live) => Judged::Restart,
            Some(_) if self.replayed.is_some_and(|replayed| number <= replayed) => Judged::Repeat,
            Some(_) => Judged::Restart,
        }
    }

    /// Takes note of a message that came along the connection.
    pub(super) fn heard(&mut self, number: u64) {
        self.live = Some(number);
    }

    /// Takes note of a message that was taken in.
    pub(super) fn took(&mut self, number: u64, payload: &[u8]) {
        self.next = number.checked_add(1);
        self.last = Some(digest(payload));
    }

    /// Takes note of a message that a replay brought back.
    pub(super) fn took_replayed(&mut self, number: u64, payload: &[u8]) {
        self.took(number, payload);
        self.replayed = Some(number);
    }

    /// Returns the number to ask a replay from: that of the last message taken in, as the proof.
    pub(super) fn ask_from(&self) -> u64 {
        self.next.unwrap_or(0).saturating_sub(1)
    }

    /// Tells whether messages were taken in that a new connection may not follow.
    pub(super) fn is_known(&self) -> bool {
        self.next.is_some() && self.last.is_some()
    }

    /// Returns the number that comes next, if there is one that has to.
    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    /// Judges the first answer to a replay; `None` if there was none.
    pub(super) fn proof(&self, first: Option<(u64, &[u8])>) -> Proof {
        let (Some(next), Some(last)) = (self.next, self.last) else { return Proof::Same };
        match first {
            Some((number, payload)) if number.checked_add(1) == Some(next) => {
                if digest(payload) == last { Proof::Same } else { Proof::Other }
            }
            Some((number, _)) if number >= next => Proof::Unknown,
            _ => Proof::Other,
        }
    }

    /// Starts anew with `next`, or with any number.
    pub(super) fn restart(&mut self, next: Option<u64>) {
        *self = Self { next, ..Self::default() };
    }
}

fn digest(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(numbers: impl IntoIterator<Item = u64>) -> Order {
        let mut order = Order::default();
        for number in numbers {
            assert_eq!(order.judge(number), Judged::Next);
            order.heard(number);
            order.took(number, b"x");
        }
        order
    }

    #[test]
    fn the_first_number_may_be_any_and_the_others_follow_it() {
        let order = taken([5, 6]);
        assert_eq!(order.judge(7), Judged::Next);
        assert_eq!(order.judge(9), Judged::Missing(7));
        assert_eq!(order.judge(6), Judged::Restart);
        assert_eq!(order.judge(0), Judged::Restart);
    }

    #[test]
    fn what_a_replay_brought_comes_again_along_the_connection() {
        let mut order = taken([0]);
        (1..4).for_each(|number| order.took_replayed(number, b"x"));
        assert_eq!(order.judge(2), Judged::Repeat);
        order.heard(2);
        assert_eq!(order.judge(3), Judged::Repeat);
        assert_eq!(order.judge(2), Judged::Restart, "numbers of one life grow");
        assert_eq!(order.judge(4), Judged::Next);
    }

    #[test]
    fn a_smaller_number_on_a_new_connection_is_of_another_life() {
        let mut order = taken([0, 1, 2]);
        order.connected();
        assert_eq!(order.judge(1), Judged::Restart);
        assert_eq!(order.judge(3), Judged::Next);
    }

    #[test]
    fn only_the_last_message_itself_proves_that_it_is_the_same_life() {
        let order = taken([0, 1, 2]);
        assert_eq!(order.ask_from(), 2);
        assert_eq!(order.proof(Some((2, b"x"))), Proof::Same);
        assert_eq!(order.proof(Some((2, b"y"))), Proof::Other);
        assert_eq!(order.proof(Some((1, b"x"))), Proof::Other);
        assert_eq!(order.proof(Some((3, b"x"))), Proof::Unknown);
        assert_eq!(order.proof(None), Proof::Other);
        assert_eq!(Order::default().proof(None), Proof::Same);
    }
}
