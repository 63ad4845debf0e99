use std::cmp::Ordering;
use std::num::NonZeroU64;
use std::time::Duration;

use dynamo_core::time::{Clock, SystemClock};
use proptest::prelude::*;

use super::*;
use crate::queue::QueuePolicy;

fn demand(priority: u8, tokens: usize, now: Instant) -> Demand {
    Demand {
        priority: Priority::new(priority).unwrap(),
        prompt_tokens: tokens,
        new_tokens: tokens,
        deadline: None,
        expires: now + Duration::from_secs(60),
        tenant: 0,
    }
}

fn fair(quantum: u64) -> QueuePolicy {
    QueuePolicy::Fair { quantum_tokens: NonZeroU64::new(quantum).unwrap() }
}

/// What the queue does, done plainly: a list, sorted when it is asked.
struct Naive {
    config: QueueConfig,
    waiting: Vec<(u64, Demand)>,
}

impl Naive {
    fn sort(&mut self) {
        let QueueConfig { policy, strict_priority, .. } = self.config;
        self.waiting.sort_by(|(arrival, of), (other, of_other)| {
            let tiers = match strict_priority {
                true => of_other.priority.cmp(&of.priority),
                false => Ordering::Equal,
            };
            tiers.then(by_policy(policy, of, of_other)).then(arrival.cmp(other))
        });
    }

    fn fits(&self, demand: &Demand) -> bool {
        let tokens: usize = self.waiting.iter().map(|(_, waits)| waits.prompt_tokens).sum();
        self.waiting.len() < self.config.entries_max
            && (self.waiting.is_empty()
                || tokens + demand.prompt_tokens <= self.config.prompt_tokens_max)
    }

    /// Returns whom the request displaces, if it is let in.
    fn push(&mut self, arrival: u64, demand: Demand) -> Option<Vec<u64>> {
        let of_tenant = self.waiting.iter().filter(|(_, waits)| waits.tenant == demand.tenant);
        if of_tenant.count() >= self.config.tenant_entries_max {
            return None;
        }
        self.sort();
        let mut left = Self { config: self.config.clone(), waiting: self.waiting.clone() };
        let mut displaced = Vec::new();
        while !left.fits(&demand) {
            let (last, waits) = left.waiting.pop()?;
            if !self.config.strict_priority || waits.priority >= demand.priority {
                return None;
            }
            displaced.push(last);
        }
        left.waiting.push((arrival, demand));
        self.waiting = left.waiting;
        Some(displaced)
    }

    fn pop_where(&mut self, may_go: impl Fn(&u64) -> bool) -> Option<u64> {
        self.sort();
        let at = self.waiting.iter().position(|(arrival, _)| may_go(arrival))?;
        Some(self.waiting.remove(at).0)
    }
}

fn by_policy(policy: QueuePolicy, of: &Demand, other: &Demand) -> Ordering {
    match policy {
        QueuePolicy::Wspt => {
            let product = |a: &Demand, b: &Demand| {
                (1 + u128::from(a.priority.level())) * b.new_tokens as u128
            };
            product(other, of).cmp(&product(of, other))
        }
        QueuePolicy::Edf => match (of.deadline, other.deadline) {
            (Some(of), Some(other)) => of.cmp(&other),
            (of, other) => other.is_some().cmp(&of.is_some()),
        },
        _ => Ordering::Equal,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        priority: u8,
        tokens: usize,
        cached: usize,
        deadline: Option<u64>,
        expires: u64,
        tenant: u64,
    },
    /// Takes the next out, of those whose arrival has none of these bits.
    Pop(u64),
    Cancel(prop::sample::Index),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (0..8u8, 0..60usize, 0..60usize, prop::option::of(0..30u64), 1..40u64, 0..3u64);
    let push = push.prop_map(|(priority, tokens, cached, deadline, expires, tenant)| Step::Push {
        priority,
        tokens,
        cached,
        deadline,
        expires,
        tenant,
    });
    let step = prop_oneof![
        5 => push,
        2 => prop_oneof![Just(0), 0..8u64].prop_map(Step::Pop),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => (0..10u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn the_queue_does_what_the_sorted_list_does(
        steps in steps(),
        policy in prop_oneof![
            Just(QueuePolicy::Fcfs), Just(QueuePolicy::Wspt), Just(QueuePolicy::Edf),
        ],
        strict in any::<bool>(),
        room in (0..12usize, 20..300usize, 1..8usize),
    ) {
        let config = QueueConfig::default().with_policy(policy).with_strict_priority(strict);
        let config = config.with_room(room.0, room.1).with_tenant_entries_max(room.2);
        let mut queue = RequestQueue::new(config.clone());
        let mut naive = Naive { config, waiting: Vec::new() };
        let start = SystemClock.now();
        let mut now = start;
        let mut arrival = 0;
        for step in steps {
            match step {
                Step::Push { priority, tokens, cached, deadline, expires, tenant } => {
                    let demand = Demand {
                        new_tokens: tokens.saturating_sub(cached),
                        deadline: deadline.map(|s| start + Duration::from_secs(s)),
                        expires: now + Duration::from_secs(expires),
                        tenant,
                        ..demand(priority, tokens, now)
                    };
                    let expected = naive.push(arrival, demand);
                    let entered = queue.push(arrival, demand, now);
                    if let Err(error) = &entered {
                        prop_assert_eq!(error.kind(), ErrorKind::Overloaded);
                        prop_assert!(error.is_retryable() && error.retry_after().is_some());
                    }
                    let entered = entered.ok();
                    prop_assert_eq!(entered.as_ref().map(|entered| &entered.displaced), expected.as_ref());
                    if let Some(entered) = entered {
                        prop_assert_eq!(entered.id, EntryId(arrival));
                        arrival += 1;
                    }
                }
                Step::Pop(held) => {
                    let may_go = |arrival: &u64| arrival & held == 0;
                    let any = naive.waiting.iter().any(|(arrival, _)| may_go(arrival));
                    prop_assert_eq!(queue.any(may_go), any);
                    prop_assert_eq!(queue.pop_where(now, may_go), naive.pop_where(may_go));
                }
                Step::Cancel(which) if !naive.waiting.is_empty() => {
                    let at = which.index(naive.waiting.len());
                    let (gone, _) = naive.waiting.remove(at);
                    prop_assert_eq!(queue.remove(EntryId(gone), Leave::Cancelled, now), Some(gone));
                    prop_assert_eq!(queue.remove(EntryId(gone), Leave::Cancelled, now), None);
                }
                Step::Cancel(_) => {}
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    let mut expired: Vec<_> = naive.waiting.clone();
                    expired.retain(|(_, waits)| waits.expires <= now);
                    expired.sort_by_key(|(arrival, waits)| (waits.expires, *arrival));
                    naive.waiting.retain(|(_, waits)| waits.expires > now);
                    for (arrival, _) in expired {
                        prop_assert_eq!(queue.pop_expired(now), Some(arrival));
                    }
                    prop_assert_eq!(queue.pop_expired(now), None);
                }
            }
            let stats = queue.stats();
            let tokens: usize = naive.waiting.iter().map(|(_, waits)| waits.prompt_tokens).sum();
            prop_assert_eq!((stats.waiting, stats.prompt_tokens), (naive.waiting.len(), tokens));
            let next = naive.waiting.iter().map(|(_, waits)| waits.expires).min();
            prop_assert_eq!(queue.next_expiry(), next);
            let gone = stats.popped_total + stats.expired_total + stats.cancelled_total;
            let gone = gone + stats.displaced_total + stats.waiting as u64;
            prop_assert_eq!(gone, stats.entered_total, "each has one outcome: {:?}", stats);
        }
        while queue.pop(now).is_some() {}
        prop_assert!(queue.orders.is_empty() && queue.tenants.is_empty());
        prop_assert!(queue.expiries.is_empty() && queue.stats.prompt_tokens == 0);
    }
}

#[test]
fn a_higher_priority_goes_first_whatever_the_policy_and_tenants_take_turns_below() {
    let now = SystemClock.now();
    let mut queue = RequestQueue::new(QueueConfig::default().with_policy(fair(10)));
    for (name, tenant, priority) in
        [("a1", 1, 4), ("a2", 1, 4), ("a3", 1, 4), ("b1", 2, 4), ("b2", 2, 4), ("b0", 2, 7)]
    {
        queue.push(name, Demand { tenant, ..demand(priority, 10, now) }, now).unwrap();
    }
    let order: Vec<_> = std::iter::from_fn(|| queue.pop(now)).collect();
    assert_eq!(order, ["b0", "a1", "b1", "a2", "b2", "a3"]);
    assert!(queue.is_empty() && queue.orders.is_empty(), "nothing is kept of who has left");
}

#[test]
fn priority_is_a_weight_where_it_is_not_strict() {
    let now = SystemClock.now();
    let config = QueueConfig::default().with_policy(QueuePolicy::Wspt).with_strict_priority(false);
    let mut queue = RequestQueue::new(config);
    // (1 + 7) / 900 is more than (1 + 0) / 200, and less than (1 + 0) / 100.
    for (name, priority, tokens) in [("long", 7, 900), ("middle", 0, 200), ("short", 0, 100)] {
        queue.push(name, demand(priority, tokens, now), now).unwrap();
    }
    let order: Vec<_> = std::iter::from_fn(|| queue.pop(now)).collect();
    assert_eq!(order, ["short", "long", "middle"]);
}

#[test]
fn a_full_queue_says_when_to_come_back_at_the_pace_it_empties() {
    let mut now = SystemClock.now();
    let mut queue = RequestQueue::new(QueueConfig::default().with_room(10, 100));
    let retry_after = |queue: &mut RequestQueue<()>, tokens, now| {
        let error = queue.push((), demand(4, tokens, now), now).unwrap_err();
        error.retry_after().unwrap().as_millis()
    };
    (0..10).for_each(|_| drop(queue.push((), demand(4, 10, now), now).unwrap()));
    for _ in 0..4 {
        now += Duration::from_millis(100);
        queue.pop(now).unwrap();
        queue.push((), demand(4, 10, now), now).unwrap();
    }
    assert_eq!(retry_after(&mut queue, 10, now), 100, "one has to leave");
    assert_eq!(retry_after(&mut queue, 50, now), 500, "50 tokens have to leave");
    assert_eq!(retry_after(&mut queue, 9_999, now), 1000, "all have to leave, and then it fits");
    assert_eq!(queue.stats().refused_total, 3);
    while queue.pop(now).is_some() {}
    queue.push((), demand(4, 9_999, now), now).unwrap();
}

#[test]
fn an_urgent_request_takes_the_places_it_needs_or_nobody_leaves() {
    let now = SystemClock.now();
    let mut queue = RequestQueue::new(QueueConfig::default().with_room(10, 100));
    for (name, priority) in [("a", 1), ("b", 3), ("c", 3), ("d", 5)] {
        queue.push(name, demand(priority, 25, now), now).unwrap();
    }
    queue.push("e", demand(4, 80, now), now).unwrap_err();
    let entered = queue.push("f", demand(4, 50, now), now).unwrap();
    assert_eq!(entered.displaced, ["a", "c"]);
    let order: Vec<_> = std::iter::from_fn(|| queue.pop(now)).collect();
    assert_eq!(order, ["d", "f", "b"]);
}

#[test]
fn one_tenant_does_not_take_all_the_room() {
    let now = SystemClock.now();
    let config = QueueConfig::default().with_room(10, 1000).with_tenant_entries_max(2);
    let mut queue = RequestQueue::new(config);
    let of = |tenant| Demand { tenant, ..demand(4, 1, now) };
    let first = queue.push((), of(1), now).unwrap().id;
    queue.push((), of(1), now).unwrap();
    assert_eq!(queue.push((), of(1), now).unwrap_err().kind(), ErrorKind::Overloaded);
    queue.push((), of(2), now).unwrap();
    queue.remove(first, Leave::Cancelled, now).unwrap();
    queue.push((), of(1), now).unwrap();
}
