use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use dynamo_core::random::Random;

use super::owner::Owner;
use super::puller::{Pull, Puller};
use crate::handoff::hold::{Terms, Time};
use crate::handoff::message::{Attempt, StageId};

/// How often what happened.
pub(super) type Tally = BTreeMap<&'static str, usize>;

/// Ok, or what is wrong.
pub(super) type Checked = Result<(), String>;

/// One block of one owner, as far as its bytes go.
pub(super) type Cells = [u64; 4];

/// All there is, and what it has to be true to.
pub(super) struct World {
    pub(super) random: Random,
    pub(super) now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    events: u64,
    pub(super) owners: Vec<Owner>,
    pub(super) pullers: Vec<Puller>,
    pub(super) jobs: Vec<Job>,
    pub(super) pulls: Vec<Pull>,
    pub(super) truth: BTreeMap<StageId, Truth>,
    network: Network,
    /// Whether reads are not refused where a region has ended: they see what is there now.
    pub(super) is_blind: bool,
    pub(super) tally: Tally,
}

/// A sequence, staged by one owner or, in shards, by two.
pub(super) struct Job {
    pub(super) blocks: usize,
    /// What each owner has staged, in which life; filled as it happens.
    pub(super) stages: Vec<Option<(StageId, u64)>>,
    pub(super) attempts_left: usize,
    pub(super) is_shared: bool,
}

/// What is known of a hold from outside.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) staged: Time,
    /// When an attempt was granted it, or had moved more than ever.
    pub(super) renewed: Time,
    pub(super) moved: BTreeMap<Attempt, u64>,
    /// Who was granted it last.
    pub(super) holder: Option<Attempt>,
    /// Whose release has come.
    pub(super) released: BTreeSet<Attempt>,
    pub(super) outcome: Option<&'static str>,
    pub(super) pulled_by: Option<Attempt>,
}

impl Truth {
    /// When it has to have ended.
    pub(super) fn ends(&self) -> Time {
        let renewed = self.renewed + TERMS.claim_ttl;
        renewed.max(self.staged + TERMS.ttl).min(self.staged + TERMS.max)
    }
}

#[derive(Clone)]
struct Network {
    lost_percent: usize,
    twice_percent: usize,
    slow_percent: usize,
    faults: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Owner(usize),
    Puller(usize),
}

/// Something that happens to one process; not if it is of an earlier life of it.
#[derive(Debug, Clone)]
struct Event {
    who: Who,
    life: Option<u64>,
    what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Notified(Bytes),
    Kill,
    Freeze(Duration),
    // Of an owner.
    Stage(usize),
    Drop(StageId),
    Expire,
    /// A pull asks for a block of a region.
    Read {
        pull: usize,
        region: u64,
        block: usize,
    },
    /// The second half of one is copied.
    Copied {
        pull: usize,
        slot: usize,
        block: usize,
        half: [u64; 2],
    },
    // Of a puller.
    Begin(usize),
    Wake(usize),
    Arrived {
        pull: usize,
        shard: usize,
        block: usize,
        cells: Option<Cells>,
    },
}

/// Whether a process runs.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) life: u64,
    frozen_until: Time,
}

pub(super) const TERMS: Terms =
    Terms { ttl: ms(3000), claim_ttl: ms(400), max: ms(3600), pull: ms(4500) };

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut percent = |count| random.below(count).unwrap();
        let network = Network {
            lost_percent: [0, 5, 30][percent(3)],
            twice_percent: [0, 20][percent(2)],
            slow_percent: [0, 10, 30][percent(3)],
            faults: percent(5),
        };
        Self::over(network, random)
    }

    /// Makes a world in which nothing goes wrong and nobody is in the way.
    pub(super) fn in_calm(seed: u64) -> Self {
        let network = Network { lost_percent: 0, twice_percent: 0, slow_percent: 0, faults: 0 };
        let mut world = Self::over(network, Random::new(seed));
        world.queue.retain(|_, event| !matches!(event.what, What::Begin(_)));
        for job in &mut world.jobs {
            job.attempts_left = 1;
        }
        for job in 0..world.jobs.len() {
            world.after(ms(300), Who::Puller(job), None, What::Begin(job));
        }
        world.queue.retain(|_, event| !matches!(event.what, What::Drop(_)));
        world
    }

    fn over(network: Network, random: Random) -> Self {
        let mut world = Self {
            random,
            now: Time::ZERO,
            queue: BTreeMap::new(),
            events: 0,
            owners: vec![Owner::new(0), Owner::new(1)],
            pullers: (0..3).map(|_| Puller::default()).collect(),
            jobs: Vec::new(),
            pulls: Vec::new(),
            truth: BTreeMap::new(),
            network,
            is_blind: false,
            tally: Tally::new(),
        };
        world.is_blind = world.chance(50);
        for job in 0..=world.below(3) {
            let (blocks, owners) = (1 + world.below(3), 1 + world.below(2));
            let stages = vec![None; owners];
            world.jobs.push(Job { blocks, stages, attempts_left: 4, is_shared: false });
            let at = world.between(0..200);
            for owner in 0..owners {
                world.after(at, Who::Owner(owner), None, What::Stage(job));
            }
            world.route(job, 210..2500);
            if world.chance(30) {
                world.route(job, 210..2500);
            }
        }
        for _ in 0..world.network.faults {
            world.fault();
        }
        world
    }

    fn fault(&mut self) {
        let at = self.between(0..4000);
        let who = match self.below(5) {
            at @ 0..2 => Who::Owner(at),
            at => Who::Puller(at - 2),
        };
        let frozen = self.between(1..3000);
        let what = if self.chance(40) { What::Kill } else { What::Freeze(frozen) };
        self.after(at, who, None, what);
    }

    /// Has a puller look for a sequence, once more.
    pub(super) fn route(&mut self, job: usize, within: Range<u64>) {
        let (at, puller) = (self.between(within), self.below(3));
        self.after(at, Who::Puller(puller), None, What::Begin(job));
    }

    /// Returns how many sequences and stages there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.jobs.len(), self.jobs.iter().map(|job| job.stages.len()).sum())
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        self.random.below(count).unwrap()
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn between(&mut self, range: Range<u64>) -> Duration {
        ms(range.start + self.random.next_u64() % (range.end - range.start))
    }

    pub(super) fn is_calm(&self) -> bool {
        self.network.slow_percent + self.network.lost_percent + self.network.faults == 0
    }

    pub(super) fn after(&mut self, delay: Duration, who: Who, life: Option<u64>, what: What) {
        self.events += 1;
        self.queue.insert((self.now + delay, self.events), Event { who, life, what });
    }

    /// Sends something to a life of a process, or not, or twice, or late.
    pub(super) fn send(&mut self, who: Who, life: u64, what: &What) {
        let copies = 1 + usize::from(self.chance(self.network.twice_percent));
        for _ in 0..copies {
            if !self.chance(self.network.lost_percent) {
                let is_slow = self.chance(self.network.slow_percent);
                let delay = self.between(if is_slow { 1..1500 } else { 1..20 });
                self.after(delay, who, Some(life), what.clone());
            }
        }
    }

    fn process(&mut self, who: Who) -> &mut Process {
        match who {
            Who::Owner(at) => &mut self.owners[at].process,
            Who::Puller(at) => &mut self.pullers[at].process,
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// Lets everything happen, and checks that it ends as it has to.
    pub(super) fn run(mut self) -> Result<Tally, String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            check(at < ms(60_000), "it does not end")?;
            let now = self.now;
            let process = self.process(event.who);
            if event.life.is_some_and(|life| life != process.life) {
                continue;
            }
            let frozen_until = process.frozen_until;
            if now < frozen_until && !matches!(event.what, What::Kill) {
                self.after(frozen_until - now, event.who, event.life, event.what);
                continue;
            }
            self.happen(event.who, event.what)
                .map_err(|wrong| format!("at {now:?}, {:?}: {wrong}", event.who))?;
        }
        self.check_end()?;
        Ok(self.tally)
    }

    fn happen(&mut self, who: Who, what: What) -> Checked {
        match (what, who) {
            (What::Freeze(time), _) => {
                let until = self.now + time;
                self.process(who).frozen_until = until;
                Ok(())
            }
            (What::Kill, _) => {
                *self.process(who) =
                    Process { life: self.process(who).life + 1, frozen_until: Time::ZERO };
                match who {
                    Who::Owner(at) => self.owner_killed(at),
                    Who::Puller(at) => self.puller_killed(at),
                }
            }
            (what, Who::Owner(at)) => self.owner(at, what),
            (what, Who::Puller(at)) => self.puller(at, what),
        }
    }

    fn check_end(&mut self) -> Checked {
        for (id, truth) in &self.truth {
            check(truth.outcome.is_some(), &format!("no outcome of {id:?}"))?;
        }
        for pull in &self.pulls {
            check(pull.outcome.is_some(), &format!("no outcome of a pull of {}", pull.job))?;
        }
        for owner in &self.owners {
            owner.check_at_rest()?;
        }
        let attempts: Vec<_> = self.pulls.iter().flat_map(|pull| &pull.attempts).collect();
        let each: BTreeSet<_> = attempts.iter().collect();
        check(each.len() == attempts.len(), "an attempt is there twice")
    }
}

pub(super) fn check(is_right: bool, wrong: &str) -> Checked {
    if is_right { Ok(()) } else { Err(wrong.to_owned()) }
}

/// What a block of a shard of a sequence has to be.
pub(super) fn right(job: usize, shard: usize, block: usize) -> Cells {
    let first = u64::try_from(job * 100 + shard * 10 + block).unwrap() << 8;
    [first | 1, first | 2, first | 3, first | 4]
}
