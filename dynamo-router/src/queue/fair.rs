use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;

use super::order::Next;

/// Deficit round robin over tenants, in O(log n) whatever the sizes.
///
/// Going round tenant by tenant would take as many steps as a large request has quanta. Instead it
/// is computed at which visit a tenant's first request will be affordable, and the schedule is
/// ordered by that: the choices are those of going round.
///
/// A round visits tenants in the order in which they joined; who joins is visited from the next
/// round on, so leaving and joining again gains nothing. A visit adds the quantum to the tenant's
/// credit, and what is routed is taken off. A tenant with nothing waiting is forgotten, and its
/// credit with it.
///
/// Where a tenant's first request may not go, the first that may goes in its place, once both are
/// affordable. Credit that cannot be spent meanwhile does not pile up: a quantum is kept of it.
#[derive(Debug)]
pub(super) struct Fair {
    quantum: NonZeroU64,
    /// The visit that something was last routed in.
    at: Visit,
    joined: u64,
    tenants: HashMap<u64, Tenant>,
    /// The visit in which each tenant's first request is affordable.
    schedule: BTreeSet<(Visit, u64)>,
}

/// A round and, in it, the turn of a tenant.
pub(super) type Visit = (u64, u64);

#[derive(Debug)]
struct Tenant {
    turn: u64,
    /// What it may spend, with the quanta up to round `counted`.
    credit: u64,
    counted: u64,
    due: Visit,
    /// What waits, by arrival, and what each costs.
    waiting: BTreeMap<u64, u64>,
}

impl Fair {
    pub(super) fn new(quantum: NonZeroU64) -> Self {
        let (tenants, schedule) = (HashMap::new(), BTreeSet::new());
        Self { quantum, at: (0, 0), joined: 0, tenants, schedule }
    }

    /// Lets a request wait that costs `tokens`.
    pub(super) fn insert(&mut self, name: u64, arrival: u64, tokens: u64) {
        let round = self.at.0;
        let joined = &mut self.joined;
        let tenant = self.tenants.entry(name).or_insert_with(|| {
            *joined += 1;
            let due = (round, *joined);
            Tenant { turn: *joined, credit: 0, counted: round, due, waiting: BTreeMap::new() }
        });
        tenant.waiting.insert(arrival, tokens.max(1));
        self.reschedule(name);
    }

    /// Takes out a request that is not routed.
    pub(super) fn remove(&mut self, name: u64, arrival: u64) {
        if let Some(tenant) = self.tenants.get_mut(&name) {
            tenant.waiting.remove(&arrival);
            self.reschedule(name);
        }
    }

    /// Returns which request is next of those that may go.
    pub(super) fn next(&self, may_go: &mut dyn FnMut(u64) -> bool) -> Option<Next> {
        let mut next: Option<Next> = None;
        for &(due, name) in &self.schedule {
            if next.is_some_and(|next| next.visit <= due) {
                break;
            }
            let Some(tenant) = self.tenants.get(&name) else { continue };
            let first = tenant.waiting.iter().find(|(arrival, _)| may_go(**arrival));
            let Some((&arrival, &tokens)) = first else { continue };
            let visit = self.visit(tenant, tokens).max(due);
            if next.is_none_or(|next| visit < next.visit) {
                next = Some(Next { arrival, visit });
            }
        }
        next
    }

    /// Takes out the request that is `next`, of tenant `name`.
    pub(super) fn take(&mut self, name: u64, next: Next) {
        let Next { arrival, visit } = next;
        let Some(tenant) = self.tenants.get_mut(&name) else { return };
        let of_first = tenant.waiting.first_key_value().map_or(0, |(_, tokens)| *tokens);
        let Some(tokens) = tenant.waiting.remove(&arrival) else { return };
        let quantum = self.quantum.get();
        let quanta = visit.0.saturating_sub(tenant.counted);
        let credit = tenant.credit.saturating_add(quanta.saturating_mul(quantum));
        let spendable = of_first.max(tokens).saturating_add(quantum);
        tenant.credit = credit.min(spendable).saturating_sub(tokens);
        tenant.counted = visit.0;
        self.at = visit;
        self.reschedule(name);
    }

    /// Returns the latest arrival of the tenant whose turn is last.
    pub(super) fn last(&self) -> Option<u64> {
        let (_, name) = self.schedule.last()?;
        self.tenants.get(name)?.waiting.last_key_value().map(|(arrival, _)| *arrival)
    }

    /// Returns the visit in which a tenant can afford `tokens`.
    fn visit(&self, tenant: &Tenant, tokens: u64) -> Visit {
        let affordable =
            tenant.counted + tokens.saturating_sub(tenant.credit).div_ceil(self.quantum.get());
        // Not before its next visit, also if a request that was larger is gone.
        let (round, turn) = self.at;
        let next = if tenant.turn >= turn { round } else { round + 1 };
        (affordable.max(next), tenant.turn)
    }

    fn reschedule(&mut self, name: u64) {
        let Some(tenant) = self.tenants.get(&name) else { return };
        self.schedule.remove(&(tenant.due, name));
        let Some((_, &tokens)) = tenant.waiting.first_key_value() else {
            self.tenants.remove(&name);
            return;
        };
        let due = self.visit(tenant, tokens);
        self.schedule.insert((due, name));
        if let Some(tenant) = self.tenants.get_mut(&name) {
            tenant.due = due;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// Takes out the next of those that may go.
    fn pop(fair: &mut Fair, may_go: impl Fn(u64) -> bool) -> Option<u64> {
        let next = fair.next(&mut |arrival| may_go(arrival))?;
        let is_its = |tenant: &Tenant| tenant.waiting.contains_key(&next.arrival);
        let (&name, _) = fair.tenants.iter().find(|(_, tenant)| is_its(tenant)).unwrap();
        fair.take(name, next);
        Some(next.arrival)
    }

    /// The same, by going round.
    #[derive(Default)]
    struct Going {
        round: u64,
        /// The tenant whose visit it is; before it the quantum has been added.
        visited: u64,
        joined: u64,
        tenants: Vec<GoingTenant>,
    }

    struct GoingTenant {
        name: u64,
        turn: u64,
        first_round: u64,
        credit: u64,
        waiting: VecDeque<(u64, u64)>,
    }

    impl Going {
        fn insert(&mut self, name: u64, arrival: u64, tokens: u64) {
            let known = self.tenants.iter_mut().find(|tenant| tenant.name == name);
            match known {
                Some(tenant) => tenant.waiting.push_back((arrival, tokens)),
                None => {
                    self.joined += 1;
                    let waiting = [(arrival, tokens)].into();
                    let (turn, first_round) = (self.joined, self.round + 1);
                    self.tenants.push(GoingTenant { name, turn, first_round, credit: 0, waiting });
                }
            }
        }

        fn remove(&mut self, name: u64, arrival: u64) {
            for tenant in self.tenants.iter_mut().filter(|tenant| tenant.name == name) {
                tenant.waiting.retain(|(known, _)| *known != arrival);
            }
            self.tenants.retain(|tenant| !tenant.waiting.is_empty());
        }

        fn pop(&mut self, quantum: u64, may_go: impl Fn(u64) -> bool) -> Option<u64> {
            let mut all = self.tenants.iter().flat_map(|tenant| &tenant.waiting);
            all.find(|(arrival, _)| may_go(*arrival))?;
            loop {
                let (round, visited) = (self.round, self.visited);
                // Whose visit it is still.
                let here = self.tenants.iter_mut().find(|tenant| tenant.turn == visited);
                if let Some(tenant) = here {
                    let first = tenant.waiting[0].1;
                    let next = tenant.waiting.iter().find(|(arrival, _)| may_go(*arrival));
                    if let Some(&(arrival, tokens)) = next
                        && tokens.max(first) <= tenant.credit
                    {
                        tenant.credit = tenant.credit.min(tokens.max(first) + quantum) - tokens;
                        let name = tenant.name;
                        self.remove(name, arrival);
                        return Some(arrival);
                    }
                }
                let is_next = |t: &&mut GoingTenant| t.turn > visited && t.first_round <= round;
                match self.tenants.iter_mut().find(is_next) {
                    Some(tenant) => {
                        tenant.credit += quantum;
                        self.visited = tenant.turn;
                    }
                    None => (self.round, self.visited) = (round + 1, 0),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_choices_are_those_of_going_round(
            steps in prop::collection::vec((0..10u8, 0..4u64, 1..60u64), 1..200),
            quantum in 1..50u64,
        ) {
            let mut fair = Fair::new(NonZeroU64::new(quantum).unwrap());
            let mut going = Going::default();
            let mut waiting: Vec<(u64, u64)> = Vec::new();
            for (arrival, (kind, tenant, tokens)) in steps.into_iter().enumerate() {
                let arrival = arrival as u64;
                match kind {
                    0..4 => {
                        fair.insert(tenant, arrival, tokens);
                        going.insert(tenant, arrival, tokens);
                        waiting.push((tenant, arrival));
                    }
                    4 if !waiting.is_empty() => {
                        let at = usize::try_from(tokens).unwrap() % waiting.len();
                        let (tenant, arrival) = waiting.swap_remove(at);
                        fair.remove(tenant, arrival);
                        going.remove(tenant, arrival);
                    }
                    _ => {
                        // Some of them only, now and then.
                        let may_go = |arrival| kind < 8 || (arrival + tokens) % 3 == 0;
                        let popped = pop(&mut fair, may_go);
                        prop_assert_eq!(popped, going.pop(quantum, may_go));
                        waiting.retain(|(_, arrival)| Some(*arrival) != popped);
                    }
                }
                prop_assert_eq!(fair.schedule.len(), fair.tenants.len());
                prop_assert_eq!(fair.last().is_none(), waiting.is_empty());
            }
            while let Some(popped) = pop(&mut fair, |_| true) {
                prop_assert_eq!(Some(popped), going.pop(quantum, |_| true));
            }
            prop_assert!(going.tenants.is_empty() && fair.tenants.is_empty());
        }

        /// Tenants that always have something waiting never differ by more than a quantum and a
        /// request.
        #[test]
        fn no_tenant_lags_another(
            costs in prop::collection::vec((1..500u64, 1..500u64, 1..500u64), 20..60),
            quantum in 1..1000u64,
        ) {
            let mut fair = Fair::new(NonZeroU64::new(quantum).unwrap());
            let mut cost_of = Vec::new();
            for costs in &costs {
                for (tenant, tokens) in [costs.0, costs.1, costs.2].into_iter().enumerate() {
                    fair.insert(tenant as u64, cost_of.len() as u64, tokens);
                    cost_of.push((tenant, tokens));
                }
            }
            let (mut routed, mut left) = ([0u64; 3], [costs.len(); 3]);
            while left.iter().all(|left| *left > 0) {
                let arrival = pop(&mut fair, |_| true).unwrap();
                let (tenant, tokens) = cost_of[usize::try_from(arrival).unwrap()];
                routed[tenant] += tokens;
                left[tenant] -= 1;
                let (most, least) = (routed.iter().max().unwrap(), routed.iter().min().unwrap());
                prop_assert!(most - least <= quantum + 500, "{routed:?}");
            }
        }
    }

    #[test]
    fn a_large_request_takes_no_steps_and_who_comes_back_gains_nothing() {
        let mut fair = Fair::new(NonZeroU64::MIN);
        fair.insert(1, 0, u64::MAX / 4);
        assert_eq!(pop(&mut fair, |_| true), Some(0));
        // One tenant has many small ones waiting, the other comes back again and again.
        let mut fair = Fair::new(NonZeroU64::new(10).unwrap());
        (0..100).for_each(|arrival| fair.insert(1, arrival, 10));
        let mut of_other = 0;
        for arrival in 100..120 {
            fair.insert(2, arrival, 10);
            while pop(&mut fair, |_| true) != Some(arrival) {
                of_other += 1;
            }
        }
        assert!((19..=21).contains(&of_other), "{of_other}");
    }
}
