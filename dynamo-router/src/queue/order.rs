use std::collections::BTreeSet;
use std::time::Instant;

use super::config::QueuePolicy;
use super::fair::{Fair, Visit};
use super::requests::Demand;

/// The order of one priority: who waits, and who of them is next.
#[derive(Debug)]
pub(super) struct Order {
    kind: Kind,
    entries: usize,
    prompt_tokens: usize,
}

#[derive(Debug)]
enum Kind {
    Ranked(QueuePolicy, BTreeSet<Rank>),
    Fair(Fair),
}

/// The entry that goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) arrival: u64,
    /// Where tenants are visited in turn, the visit that it goes in.
    pub(super) visit: Visit,
}

/// Where an entry stands under a policy that compares any two: the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    weight: u64,
    /// No deadline is later than any.
    deadline: (bool, Option<Instant>),
    arrival: u64,
}

impl Order {
    pub(super) fn new(policy: QueuePolicy) -> Self {
        let kind = match policy {
            QueuePolicy::Fair { quantum_tokens } => Kind::Fair(Fair::new(quantum_tokens)),
            policy => Kind::Ranked(policy, BTreeSet::new()),
        };
        Self { kind, entries: 0, prompt_tokens: 0 }
    }

    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    pub(super) fn insert(&mut self, arrival: u64, demand: &Demand) {
        self.entries += 1;
        self.prompt_tokens += demand.prompt_tokens;
        match &mut self.kind {
            Kind::Ranked(policy, ranks) => {
                ranks.insert(rank(*policy, arrival, demand));
            }
            Kind::Fair(fair) => fair.insert(demand.tenant, arrival, demand.prompt_tokens as u64),
        }
    }

    /// Returns which entry is next of those that may go.
    pub(super) fn next(&self, may_go: &mut dyn FnMut(u64) -> bool) -> Option<Next> {
        match &self.kind {
            Kind::Ranked(_, ranks) => {
                let rank = ranks.iter().find(|rank| may_go(rank.arrival))?;
                Some(Next { arrival: rank.arrival, visit: Visit::default() })
            }
            Kind::Fair(fair) => fair.next(may_go),
        }
    }

    /// Takes out an entry: to be routed, if it is the `next`, or else without that.
    pub(super) fn remove(&mut self, arrival: u64, demand: &Demand, next: Option<Next>) {
        self.entries -= 1;
        self.prompt_tokens -= demand.prompt_tokens;
        match (&mut self.kind, next) {
            (Kind::Ranked(policy, ranks), _) => {
                ranks.remove(&rank(*policy, arrival, demand));
            }
            (Kind::Fair(fair), Some(next)) => fair.take(demand.tenant, next),
            (Kind::Fair(fair), None) => fair.remove(demand.tenant, arrival),
        }
    }

    /// Returns the entry that would go last.
    pub(super) fn last(&self) -> Option<u64> {
        match &self.kind {
            Kind::Ranked(_, ranks) => ranks.last().map(|rank| rank.arrival),
            Kind::Fair(fair) => fair.last(),
        }
    }
}

fn rank(policy: QueuePolicy, arrival: u64, demand: &Demand) -> Rank {
    let (mut weight, mut deadline) = (0, (false, None));
    match policy {
        QueuePolicy::Wspt => {
            // 840 is divided by each of 1 to 8, so that no two quotients round to one.
            let per_token = 840 / (1 + u64::from(demand.priority.level()));
            weight = (demand.new_tokens as u64).saturating_mul(per_token);
        }
        QueuePolicy::Edf => deadline = (demand.deadline.is_none(), demand.deadline),
        QueuePolicy::Fcfs | QueuePolicy::Fair { .. } => {}
    }
    Rank { weight, deadline, arrival }
}
