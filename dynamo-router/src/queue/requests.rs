use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use dynamo_core::{Error, ErrorKind, Priority, Result};

use super::config::QueueConfig;
use super::drain_rate::DrainRate;
use super::order::{Next, Order};

/// What the queue goes by, of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// How urgent it is.
    pub priority: Priority,
    /// Tokens in its prompt.
    pub prompt_tokens: usize,
    /// Those of them that no worker has cached.
    pub new_tokens: usize,
    /// When it must have ended, if ever.
    pub deadline: Option<Instant>,
    /// When it leaves the queue at the latest.
    pub expires: Instant,
    /// Whose it is: any number that stands for the tenant.
    pub tenant: u64,
}

/// Identifies one entry of one queue, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(u64);

/// An entry's place, and who had to leave for it.
#[derive(Debug)]
pub struct Entered<T> {
    /// The entry.
    pub id: EntryId,
    /// Entries of lower priority that made room for it: refused.
    pub displaced: Vec<T>,
}

/// Why an entry leaves by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Its time was over.
    Expired,
    /// Nobody wants it any more.
    Cancelled,
}

/// What became of those that came to a queue, so far. All of `entered_total` are in one of the
/// others, `displaced_total` included, or wait still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Entries that wait.
    pub waiting: usize,
    /// Prompt tokens of these, together.
    pub prompt_tokens: usize,
    /// Entries that were let in.
    pub entered_total: u64,
    /// Entries whose turn came.
    pub popped_total: u64,
    /// Entries whose time was over first.
    pub expired_total: u64,
    /// Entries that nobody wanted any more.
    pub cancelled_total: u64,
    /// Entries that left for a more urgent one.
    pub displaced_total: u64,
    /// Requests that were not let in.
    pub refused_total: u64,
}

/// The requests that wait for a worker: bounded, in the order of a policy; pure.
///
/// # Guarantees
/// - No more entries, prompt tokens and entries of one tenant than the config allows; only where
///   nobody else waits, one request may have more tokens than that by itself.
/// - With the queue full, a request takes the places of those of lower priority that go last, as
///   many as it needs, or is refused and nobody leaves. A tenant's own limit displaces nobody.
/// - What is popped is first by [`QueueConfig`]'s priority and policy, and by arrival among equals.
/// - An operation takes O(log n) steps; one that displaces, or passes over, as many for each.
#[derive(Debug)]
pub struct RequestQueue<T> {
    config: QueueConfig,
    waiting: HashMap<u64, (T, Demand)>,
    orders: BTreeMap<Reverse<Priority>, Order>,
    expiries: BTreeSet<(Instant, u64)>,
    tenants: HashMap<u64, usize>,
    arrivals: u64,
    drain_rate: DrainRate,
    stats: QueueStats,
}

impl<T> RequestQueue<T> {
    /// Creates an empty queue.
    pub fn new(config: QueueConfig) -> Self {
        Self {
            config,
            waiting: HashMap::new(),
            orders: BTreeMap::new(),
            expiries: BTreeSet::new(),
            tenants: HashMap::new(),
            arrivals: 0,
            drain_rate: DrainRate::default(),
            stats: QueueStats::default(),
        }
    }

    /// Lets `item` wait.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded), unprocessed and with the time in which
    /// there should be room, if there is none.
    pub fn push(&mut self, item: T, demand: Demand, now: Instant) -> Result<Entered<T>> {
        if let Err(error) = self.check_room(&demand, now) {
            self.stats.refused_total += 1;
            return Err(error);
        }
        let mut displaced = Vec::new();
        while self.lacks(&demand) != (0, 0) {
            let Some(item) = self.displace(now) else { break };
            displaced.push(item);
        }
        if self.waiting.is_empty() {
            self.drain_rate.begin(now);
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        let policy = self.config.policy;
        let tier = self.tier(&demand);
        self.orders.entry(tier).or_insert_with(|| Order::new(policy)).insert(arrival, &demand);
        self.expiries.insert((demand.expires, arrival));
        *self.tenants.entry(demand.tenant).or_default() += 1;
        self.stats.prompt_tokens += demand.prompt_tokens;
        self.stats.entered_total += 1;
        self.waiting.insert(arrival, (item, demand));
        Ok(Entered { id: EntryId(arrival), displaced })
    }

    /// Takes out the entry whose turn it is.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        self.pop_where(now, |_| true)
    }

    /// Takes out the entry whose turn it is of those that `may_go`; the others keep their places.
    ///
    /// Asks one entry after the other, in their order, until one may go.
    pub fn pop_where(&mut self, now: Instant, may_go: impl FnMut(&T) -> bool) -> Option<T> {
        let next = self.next(may_go)?;
        let item = self.take_out(next.arrival, Some(next), now)?;
        self.stats.popped_total += 1;
        Some(item)
    }

    /// Tells whether any entry `may_go`.
    pub fn any(&self, may_go: impl FnMut(&T) -> bool) -> bool {
        self.next(may_go).is_some()
    }

    /// Takes out an entry whose time is over, the one that has been so for longest.
    pub fn pop_expired(&mut self, now: Instant) -> Option<T> {
        let &(expires, arrival) = self.expiries.first()?;
        if expires > now { None } else { self.remove(EntryId(arrival), Leave::Expired, now) }
    }

    /// Takes out an entry that leaves by itself, if it is there still.
    pub fn remove(&mut self, id: EntryId, why: Leave, now: Instant) -> Option<T> {
        let item = self.take_out(id.0, None, now)?;
        match why {
            Leave::Expired => self.stats.expired_total += 1,
            Leave::Cancelled => self.stats.cancelled_total += 1,
        }
        Some(item)
    }

    /// Returns when the next entry expires.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(expires, _)| *expires)
    }

    /// Tells whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns who waits, and what became of the others.
    pub fn stats(&self) -> QueueStats {
        QueueStats { waiting: self.waiting.len(), ..self.stats }
    }

    /// Says that nobody is let in before so many entries and prompt tokens have left.
    pub(super) fn refusal(&self, entries: usize, prompt_tokens: usize, now: Instant) -> Error {
        let (waiting, tokens) = (self.waiting.len(), self.stats.prompt_tokens);
        let message =
            format!("all workers are busy, {waiting} requests of {tokens} prompt tokens wait");
        // No more than all can leave.
        let retry_after =
            self.drain_rate.until_left(entries.max(1), prompt_tokens.min(tokens), now);
        Error::new(ErrorKind::Overloaded, message).unprocessed().with_retry_after(retry_after)
    }

    /// Fails if `demand` has no room, even if all leave that are less urgent.
    fn check_room(&self, demand: &Demand, now: Instant) -> Result<()> {
        let of_tenant = self.tenants.get(&demand.tenant).copied().unwrap_or(0);
        if of_tenant >= self.config.tenant_entries_max {
            // Of those that leave, about that share is the tenant's.
            return Err(self.refusal(self.waiting.len().div_ceil(of_tenant.max(1)), 0, now));
        }
        let (entries, tokens) = self.lacks(demand);
        let tier = self.tier(demand);
        let lower = self.orders.range(tier..).filter(|(lower, _)| **lower > tier);
        let (their_entries, their_tokens) = lower.fold((0, 0), |(entries, tokens), (_, order)| {
            (entries + order.entries(), tokens + order.prompt_tokens())
        });
        // Whoever is alone may have as many tokens as it has.
        let is_alone = their_entries == self.waiting.len() && self.config.entries_max > 0;
        if entries <= their_entries && (tokens <= their_tokens || is_alone) {
            return Ok(());
        }
        Err(self.refusal(entries, tokens, now))
    }

    /// Returns how many entries and tokens would have to leave first.
    fn lacks(&self, demand: &Demand) -> (usize, usize) {
        let entries = (self.waiting.len() + 1).saturating_sub(self.config.entries_max);
        let tokens = self.stats.prompt_tokens + demand.prompt_tokens;
        let tokens = tokens.saturating_sub(self.config.prompt_tokens_max);
        if self.waiting.is_empty() { (entries, 0) } else { (entries, tokens) }
    }

    /// Takes out the least urgent entry that would go last.
    fn displace(&mut self, now: Instant) -> Option<T> {
        let (_, last) = self.orders.last_key_value()?;
        let item = self.take_out(last.last()?, None, now)?;
        self.stats.displaced_total += 1;
        Some(item)
    }

    fn next(&self, mut may_go: impl FnMut(&T) -> bool) -> Option<Next> {
        let mut may_go = |arrival| self.waiting.get(&arrival).is_some_and(|(item, _)| may_go(item));
        self.orders.values().find_map(|order| order.next(&mut may_go))
    }

    fn take_out(&mut self, arrival: u64, next: Option<Next>, now: Instant) -> Option<T> {
        let (item, demand) = self.waiting.remove(&arrival)?;
        let tier = self.tier(&demand);
        if let Some(order) = self.orders.get_mut(&tier) {
            order.remove(arrival, &demand, next);
            if order.entries() == 0 {
                self.orders.remove(&tier);
            }
        }
        self.left(arrival, &demand, now);
        Some(item)
    }

    /// Counts off an entry that is in no order any more.
    fn left(&mut self, arrival: u64, demand: &Demand, now: Instant) {
        self.expiries.remove(&(demand.expires, arrival));
        self.stats.prompt_tokens -= demand.prompt_tokens;
        self.drain_rate.left(demand.prompt_tokens, now);
        if let Some(count) = self.tenants.get_mut(&demand.tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(&demand.tenant);
            }
        }
    }

    fn tier(&self, demand: &Demand) -> Reverse<Priority> {
        Reverse(if self.config.strict_priority { demand.priority } else { Priority::NORMAL })
    }
}

#[cfg(test)]
mod tests;
