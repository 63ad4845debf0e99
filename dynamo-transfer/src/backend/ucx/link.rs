//! An initiator's link to an owner, and what runs over it: the most urgent first.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::initiator::Settle;
use super::net::Net;
use super::port::EndpointId;
use super::protocol::{HERE_BYTES_MAX, RailKind, Request, STRIPE_BYTES_MAX, Way};
use super::rails::Joined;
use super::stream::{Holder, Stream};
use crate::backend::Operation;
use crate::descriptor::Ranges;
use crate::memory::Right;
use crate::peer::PeerAddress;
use crate::plan::Stripe;
use crate::vocabulary::Priority;

pub(super) struct Link {
    pub(super) endpoint: EndpointId,
    pub(super) peer: Arc<PeerAddress>,
    pub(super) connecting: Option<Connecting>,
    /// How the owner's memory is accessed, and whether that has not failed.
    pub(super) joined: Option<Joined>,
    pub(super) is_joined_well: bool,
    pub(super) ops: BTreeSet<u64>,
    /// When an operation has ended last, or it was made.
    pub(super) used_at: Instant,
    turns: Turns,
}

/// The owner has not answered yet.
#[derive(Clone, Copy)]
pub(super) struct Connecting {
    /// It has until then.
    pub(super) until: Instant,
    /// Operations wait for it until then: others reach it, too, or nobody does.
    pub(super) patience_until: Instant,
}

/// Which operations have begun, by priority, and which are to.
#[derive(Default)]
struct Turns {
    begun: [usize; 3],
    /// In the order they were posted.
    waiting: [BTreeSet<u64>; 3],
}

pub(super) struct Op {
    pub(super) link: u64,
    pub(super) task: Task,
    pub(super) settle: Settle,
}

pub(super) enum Task {
    /// Some stripe of it, once the peer is known to be there.
    Next(Arc<Operation>),
    Stripe(Moving),
    Notify(Bytes),
}

/// A stripe of an operation, on its way.
pub(super) struct Moving {
    pub(super) operation: Arc<Operation>,
    pub(super) stripe: Stripe,
    pub(super) stream: Rc<Stream>,
    /// The data of a write went with the request: the owner takes all of it, or refuses it.
    pub(super) has_data_along: bool,
    /// It did, or the owner has said that it waits for it.
    pub(super) is_accepted: bool,
}

impl Link {
    pub(super) fn new(
        endpoint: EndpointId,
        peer: &Arc<PeerAddress>,
        connecting: Connecting,
        now: Instant,
    ) -> Self {
        Self {
            endpoint,
            peer: Arc::clone(peer),
            connecting: Some(connecting),
            joined: None,
            is_joined_well: false,
            ops: BTreeSet::new(),
            used_at: now,
            turns: Turns::default(),
        }
    }

    /// Queues an operation.
    pub(super) fn push(&mut self, op: u64, priority: Priority) {
        self.ops.insert(op);
        self.turns.waiting[priority as usize].insert(op);
    }

    /// Lets the next operation begin, if one may.
    pub(super) fn next(&mut self) -> Option<u64> {
        self.turns.next()
    }

    /// Takes note of the end of an operation; tells whether it had begun.
    pub(super) fn ended(&mut self, op: u64, priority: Priority) -> bool {
        self.ops.remove(&op);
        self.used_at = Instant::now();
        self.turns.ended(op, priority)
    }

    /// Closes its endpoints.
    pub(super) fn close(&self, net: &mut Net) {
        net.port.close(self.endpoint);
        if let Some(joined) = self.joined
            && let Some(port) = net.rails.get(joined.rail)
        {
            port.close(joined.endpoint);
        }
    }

    /// Tells whether an operation has begun.
    pub(super) fn has_begun(&self, op: u64) -> bool {
        !self.turns.waiting.iter().any(|waiting| waiting.contains(&op))
    }
}

impl Turns {
    /// Returns what is most urgent, unless something more urgent is under way, or enough.
    fn next(&mut self) -> Option<u64> {
        for (waiting, begun) in self.waiting.iter_mut().zip(&mut self.begun).rev() {
            if *begun >= BEGUN_MAX {
                return None;
            }
            if let Some(op) = waiting.pop_first() {
                *begun += 1;
                return Some(op);
            }
            if *begun > 0 {
                return None;
            }
        }
        None
    }

    fn ended(&mut self, op: u64, priority: Priority) -> bool {
        let had_begun = !self.waiting[priority as usize].remove(&op);
        self.begun[priority as usize] -= usize::from(had_begun);
        had_begun
    }
}

impl Task {
    pub(super) fn priority(&self) -> Priority {
        match self {
            Self::Next(operation) | Self::Stripe(Moving { operation, .. }) => operation.priority,
            // A message, and what it tells has been moved.
            Self::Notify(_) => Priority::High,
        }
    }
}

impl Moving {
    /// Takes the next stripe, of `chunks_max` pieces at most.
    pub(super) fn next(operation: &Arc<Operation>, chunks_max: usize) -> Option<Self> {
        let stripe = operation.next(STRIPE_BYTES_MAX, chunks_max)?;
        let operation = Arc::clone(operation);
        let holder = Holder::Operation(Arc::clone(&operation));
        let stream = Stream::new(holder, stripe.local()).checked(operation.is_checked);
        let stream = Rc::new(stream);
        Some(Self { operation, stripe, stream, has_data_along: false, is_accepted: false })
    }

    /// Asks for it over that rail, if there is one and it is worth it; the data of a small write goes
    /// with the request if it `has_room`.
    pub(super) fn request(&mut self, rail: Option<RailKind>, has_room: bool) -> Request {
        let Operation { right, remote_id: region, token, is_checked, .. } = *self.operation;
        let bytes = self.stripe.bytes;
        let is_few = bytes <= HERE_BYTES_MAX as u64;
        self.has_data_along = has_room && right == Right::Write && is_few && !is_checked;
        self.is_accepted = self.has_data_along;
        let way = match rail {
            // Nobody sends, or compares, what is accessed.
            _ if is_checked => Way::Checked,
            _ if self.is_accepted => Way::Here(self.stream.gather(0, bytes)),
            Some(rail) if bytes >= ONE_SIDED_BYTES_MIN => Way::Rail(rail),
            _ => Way::Messages,
        };
        Request { right, way, region, token, ranges: Ranges::unchecked(self.stripe.remote()) }
    }
}

/// Below, an answer that carries the data is as fast as one that says where it is.
const ONE_SIDED_BYTES_MIN: u64 = 256 << 10;

/// Of one priority and link: what is asked for ahead costs no time, and more urgent things little.
const BEGUN_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: Priority = Priority::High;
    const LOW: Priority = Priority::Low;

    #[test]
    fn what_is_urgent_begins_first_and_what_is_not_waits_for_its_end() {
        let mut turns = Turns::default();
        let mut push = |op, priority| turns.waiting[priority as usize].insert(op);
        for (op, priority) in [(1, LOW), (2, HIGH), (3, Priority::Normal), (4, HIGH), (5, LOW)] {
            push(op, priority);
        }
        assert_eq!([turns.next(), turns.next(), turns.next()], [Some(2), Some(4), None]);
        assert!(turns.ended(2, HIGH));
        assert_eq!(turns.next(), None);
        assert!(turns.ended(4, HIGH));
        assert_eq!([turns.next(), turns.next()], [Some(3), None]);
        // Given up before its turn.
        assert!(!turns.ended(1, LOW));
        assert!(turns.ended(3, Priority::Normal));
        assert_eq!([turns.next(), turns.next()], [Some(5), None]);
    }

    #[test]
    fn only_so_many_begin_at_once_and_urgent_ones_beside_them() {
        let mut turns = Turns::default();
        turns.waiting[LOW as usize].extend(0..1000);
        let begun = std::iter::from_fn(|| turns.next()).count();
        assert_eq!(begun, BEGUN_MAX);
        turns.waiting[HIGH as usize].insert(1000);
        assert_eq!([turns.next(), turns.next()], [Some(1000), None]);
    }
}
