use dynamo_core::protocol::InstanceId;
use dynamo_core::random::Random;
use dynamo_core::time::{Clock, SystemClock};
use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(3);

fn worker(id: u64) -> WorkerId {
    WorkerId::new(InstanceId(id))
}

fn load(requests: usize) -> Load {
    let prefill_tokens = requests * 64;
    Load { requests, decoding: requests / 2, prefill_tokens, blocks: requests, blocks_total: 0 }
}

fn said(router: u64, epoch: u64, seq: u64, loads: &[(u64, usize)]) -> Statement {
    let loads = loads.iter().map(|&(id, requests)| (worker(id), load(requests))).collect();
    Statement { router, epoch, seq, loads }
}

#[test]
fn the_last_word_of_each_router_counts_and_ones_own_does_not() {
    let now = SystemClock.now();
    let mut shares = Shares::new(7, TTL);
    assert_eq!(shares.hear(said(1, 0, 5, &[(1, 3), (2, 1)]), now), [worker(1), worker(2)]);
    assert_eq!(shares.hear(said(2, 0, 0, &[(1, 2)]), now), [worker(1)]);
    assert_eq!(shares.sum(worker(1)), load(3).plus(load(2)));
    assert_eq!(shares.hear(said(7, 0, 0, &[(1, 9)]), now), []);
    assert_eq!(shares.hear(said(1, 0, 5, &[(1, 9)]), now), [], "told twice");
    assert_eq!(shares.hear(said(1, 0, 4, &[(1, 9)]), now), [], "overtaken");
    assert_eq!(shares.hear(said(1, 0, 6, &[(2, 1)]), now), [worker(1)], "the rest is the same");
    assert_eq!(shares.sum(worker(1)), load(2));
    assert_eq!(shares.hear(said(1, 1, 0, &[]), now), [worker(2)], "it has started anew");
    assert_eq!(shares.sum(worker(2)), Load::default());
}

#[test]
fn who_is_silent_is_forgotten_and_may_come_back() {
    let start = SystemClock.now();
    let mut shares = Shares::new(7, TTL);
    shares.hear(said(1, 4, 9, &[(1, 3)]), start);
    shares.hear(said(2, 0, 0, &[(1, 1)]), start + TTL / 2);
    assert_eq!(shares.next_silent(), Some(start + TTL));
    assert_eq!(shares.forget_silent(start + TTL / 2), []);
    // What is not news is no sign of life either: it may be a late one of a router that died.
    shares.hear(said(1, 4, 9, &[(1, 3)]), start + TTL / 2);
    assert_eq!(shares.forget_silent(start + TTL), [worker(1)]);
    assert_eq!(shares.sum(worker(1)), load(1));
    assert_eq!(shares.hear(said(1, 0, 0, &[(1, 3)]), start + TTL), [worker(1)]);
    shares.forget_silent(start + 3 * TTL);
    assert!(shares.sums.is_empty() && shares.next_silent().is_none());
}

#[test]
fn who_is_never_too_old_is_never_forgotten() {
    let start = SystemClock.now();
    let mut shares = Shares::new(7, Duration::MAX);
    shares.hear(said(1, 4, 9, &[(1, 3)]), start);
    assert_eq!(shares.next_silent(), None);
    assert_eq!(shares.forget_silent(start + TTL), []);
}

#[test]
fn counts_no_fleet_has_add_up_all_the_same() {
    let now = SystemClock.now();
    let mut shares = Shares::new(7, TTL);
    for router in 100..100 + 2 * ROUTERS_MAX as u64 {
        let wire = (router, 0, 0, vec![(worker(1), [u64::MAX; 4]); 2]);
        shares.hear(Statement::from_wire(wire), now);
    }
    assert_eq!(shares.routers.len(), ROUTERS_MAX);
    assert_eq!(shares.sum(worker(1)).requests, COUNT_MAX * ROUTERS_MAX);
    shares.forget_silent(now + TTL);
    assert!(shares.sums.is_empty());
}

/// A router as the others see it: what it says, what it has heard, and what it has booked.
struct Replica {
    config: ExchangeConfig,
    teller: Teller,
    shares: Shares,
    booked: BTreeMap<WorkerId, Load>,
}

impl Replica {
    fn new(router: u64, epoch: u64, now: Instant) -> Self {
        let config = ExchangeConfig::default().with_router(router, epoch).with_ttl(SHORT_TTL);
        let (teller, shares) = (Teller::new(&config, now), Shares::new(router, SHORT_TTL));
        Self { config, teller, shares, booked: BTreeMap::new() }
    }
}

/// Routers, and a plane between them that loses, repeats, delays and reorders what they say.
struct World {
    now: Instant,
    random: Random,
    is_faulty: bool,
    replicas: Vec<Replica>,
    /// When it arrives where.
    on_the_way: Vec<(Instant, usize, Wire)>,
    /// Those that are no more, and since when.
    dead: BTreeMap<u64, Instant>,
}

impl World {
    fn new(replicas: u64, seed: u64) -> Self {
        let now = SystemClock.now();
        Self {
            now,
            random: Random::new(seed),
            is_faulty: true,
            replicas: (0..replicas).map(|router| Replica::new(router, 0, now)).collect(),
            on_the_way: Vec::new(),
            dead: BTreeMap::new(),
        }
    }

    /// Has a router die without a word; another one takes its place, or itself once more.
    fn replace(&mut self, at: usize, is_other: bool) {
        let ExchangeConfig { router, epoch, .. } = self.replicas[at].config;
        let next = if is_other { (router + 100, 0) } else { (router, epoch + 1) };
        if is_other {
            self.dead.insert(router, self.now);
        }
        self.replicas[at] = Replica::new(next.0, next.1, self.now);
    }

    fn book(&mut self, at: usize, worker: WorkerId, load: Load) {
        let Replica { booked, teller, .. } = &mut self.replicas[at];
        booked.insert(worker, load);
        booked.retain(|_, load| load.requests > 0);
        teller.changed();
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += TICK;
            self.deliver();
            for at in 0..self.replicas.len() {
                let Replica { teller, shares, booked, .. } = &mut self.replicas[at];
                let said = teller.tell(self.now, || booked.clone().into_iter().collect());
                shares.forget_silent(self.now);
                said.into_iter().for_each(|said| self.send(at, &said));
            }
            self.check();
        }
    }

    fn send(&mut self, from: usize, said: &Wire) {
        for to in (0..self.replicas.len()).filter(|to| *to != from) {
            let copies = if self.is_faulty { self.random.below(3).unwrap() } else { 1 };
            for _ in 0..copies {
                let ms = if self.is_faulty { self.random.below(DELAY_MAX_MS).unwrap() } else { 0 };
                let arrives = self.now + Duration::from_millis(ms as u64);
                self.on_the_way.push((arrives, to, said.clone()));
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let arrived: Vec<_> =
            self.on_the_way.extract_if(.., |(arrives, ..)| *arrives <= now).collect();
        for (_, to, said) in arrived {
            let (router, shares) = (said.0, &mut self.replicas[to].shares);
            let last = |shares: &Shares| shares.routers.get(&router).map(|it| (it.epoch, it.seq));
            let before = last(shares);
            shares.hear(Statement::from_wire(said), now);
            assert!(last(shares) >= before, "{router} is taken at an older word");
        }
    }

    /// The sums are those of what counts, and of a router that is dead nothing counts for long.
    fn check(&self) {
        for Replica { shares, .. } in &self.replicas {
            let mut sums: BTreeMap<WorkerId, Load> = BTreeMap::new();
            for (router, share) in &shares.routers {
                let died = self.dead.get(router).copied().unwrap_or(self.now);
                let since = self.now.saturating_duration_since(died);
                assert!(since < SHORT_TTL + DELAY_MAX + 2 * TICK, "{router} latches: {since:?}");
                for (worker, load) in &share.loads {
                    let sum = sums.entry(*worker).or_default();
                    *sum = sum.plus(*load);
                }
            }
            assert_eq!(shares.sums, sums);
        }
    }
}

const SHORT_TTL: Duration = Duration::from_millis(400);
const TICK: Duration = Duration::from_millis(10);
/// Longer than the TTL: what is late may be of a router that was forgotten before.
const DELAY_MAX_MS: usize = 500;
const DELAY_MAX: Duration = Duration::from_millis(DELAY_MAX_MS as u64);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is lost, late, told twice or overtaken, and whoever dies or starts anew: once the
    /// plane is well again, each router sees what all the others have booked and nothing else.
    #[test]
    fn each_router_comes_to_see_what_the_others_have_booked(
        steps in prop::collection::vec((0..4usize, 0..4u64, 0..9usize, 0..12u8, 0..30u32), 1..40),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(4, seed);
        for (at, id, requests, fault, ticks) in steps {
            match fault {
                0 | 1 => world.replace(at, fault == 0),
                _ => world.book(at, worker(id), load(requests)),
            }
            world.pass(TICK * ticks);
        }
        world.is_faulty = false;
        world.pass(DELAY_MAX + SHORT_TTL + 2 * TICK);
        for (at, replica) in world.replicas.iter().enumerate() {
            let mut truth: BTreeMap<WorkerId, Load> = BTreeMap::new();
            let others = world.replicas.iter().enumerate().filter(|(other, _)| *other != at);
            for (worker, load) in others.flat_map(|(_, other)| &other.booked) {
                let sum = truth.entry(*worker).or_default();
                *sum = sum.plus(*load);
            }
            prop_assert_eq!(&replica.shares.sums, &truth);
        }
    }
}
