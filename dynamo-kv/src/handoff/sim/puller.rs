use std::collections::BTreeMap;

use bytes::Bytes;

use super::owner::READ_TIMEOUT;
use super::world::{Cells, Checked, Process, TERMS, What, Who, World, check, ms, right};
use crate::handoff::claim::{Claims, Refusal, Say};
use crate::handoff::hold::Time;
use crate::handoff::message::{Attempt, Message};

/// A decode worker, and what others may read there: by sequence, shard and block.
#[derive(Default)]
pub(super) struct Puller {
    pub(super) process: Process,
    readable: BTreeMap<(usize, usize, usize), Cells>,
}

/// One pull of one sequence.
pub(super) struct Pull {
    pub(super) job: usize,
    pub(super) puller: usize,
    pub(super) attempts: Vec<Attempt>,
    claims: Claims,
    regions: Vec<Option<u64>>,
    /// Of each shard, each block that has arrived; the first ones were here, or came up from below.
    got: Vec<Vec<Option<Cells>>>,
    /// How many those are.
    first: usize,
    phase: Phase,
    pub(super) deadline: Time,
    pub(super) outcome: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It looks for what is below, and waits for room, until then.
    Preparing(Time),
    Asking,
    Reading,
    Settling,
}

impl Pull {
    /// Tells whether all its bytes have arrived.
    pub(super) fn is_here(&self) -> bool {
        self.got.iter().flatten().all(Option::is_some)
    }

    fn moved(&self) -> u64 {
        let pulled = self.got.iter().flat_map(|blocks| &blocks[self.first..]);
        pulled.flatten().count() as u64
    }
}

impl World {
    pub(super) fn puller(&mut self, at: usize, what: What) -> Checked {
        match what {
            What::Begin(job) => self.begin(at, job),
            What::Wake(pull) => self.drive(pull),
            What::Notified(bytes) => self.puller_notified(at, &bytes),
            What::Arrived { pull, shard, block, cells } => self.arrived(pull, shard, block, cells),
            other => Err(format!("{other:?} is not for a puller")),
        }
    }

    fn begin(&mut self, at: usize, job: usize) -> Checked {
        // The router has tickets for what was staged, and tries so often.
        let Some(left) = self.jobs[job].attempts_left.checked_sub(1) else { return Ok(()) };
        let Some(stages) = self.jobs[job].stages.iter().copied().collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        self.jobs[job].attempts_left = left;
        let needs_nothing = !self.is_calm() && self.chance(5);
        let attempts = stages.iter().map(|_| {
            let mut attempt = [0; 16];
            attempt[..8].copy_from_slice(&self.random.next_u64().to_le_bytes());
            Attempt(attempt)
        });
        let attempts: Vec<_> = attempts.collect();
        let deadline = self.now + self.between(1500..4500);
        // What moves nothing yet may take longer than a claim lasts.
        let takes = if !self.is_calm() && self.chance(30) { self.between(1..1000) } else { ms(0) };
        let blocks = self.jobs[job].blocks;
        let first = if !self.is_calm() && self.chance(20) { self.below(blocks) } else { 0 };
        let here = |shard| (0..blocks).map(move |at| (at < first).then(|| right(job, shard, at)));
        self.pulls.push(Pull {
            job,
            puller: at,
            claims: Claims::new(attempts.iter().map(|_| TERMS.claim_ttl), self.now),
            regions: vec![None; attempts.len()],
            got: (0..attempts.len()).map(|shard| here(shard).collect()).collect(),
            first,
            attempts,
            phase: Phase::Preparing(self.now + takes),
            deadline,
            outcome: None,
        });
        let at = self.pulls.len() - 1;
        if !needs_nothing && takes > TERMS.claim_ttl {
            self.count("prepared longer than a claim lasts");
        }
        if !needs_nothing && first > 0 {
            self.count("needed not all");
        }
        if needs_nothing { self.decline(at) } else { self.drive(at) }
    }

    /// All blocks are there already: the owners may go, and are not waited for.
    fn decline(&mut self, at: usize) -> Checked {
        for shard in 0..self.pulls[at].attempts.len() {
            let (stage, life) = self.jobs[self.pulls[at].job].stages[shard].unwrap();
            let attempt = self.pulls[at].attempts[shard];
            let done = Message::Done { stage, attempt, from: Bytes::new() };
            self.send(Who::Owner(shard), life, &What::Notified(done.encode()));
        }
        self.pull_ended(at, "declined")
    }

    /// Does what a pull does next.
    fn drive(&mut self, at: usize) -> Checked {
        let (now, pull) = (self.now, &mut self.pulls[at]);
        if pull.outcome.is_some() {
            return Ok(());
        }
        if now >= pull.deadline {
            return self.failed(at, "late");
        }
        if let Phase::Preparing(until) = pull.phase {
            if now < until {
                self.wake(at, until);
                return Ok(());
            }
            pull.phase = Phase::Asking;
            if !self.is_calm() && self.chance(2) {
                return self.failed(at, "no room");
            }
        }
        let pull = &mut self.pulls[at];
        if pull.phase == Phase::Asking && pull.claims.are_granted() {
            pull.phase = Phase::Reading;
            let first = pull.first;
            (0..pull.regions.len()).for_each(|shard| self.request(at, shard, first));
        }
        let pull = &mut self.pulls[at];
        if pull.phase == Phase::Reading && pull.is_here() {
            pull.phase = Phase::Settling;
            pull.claims.settle(now);
        }
        if pull.phase == Phase::Settling && pull.claims.are_settled() {
            return self.share(at);
        }
        let moved = pull.moved();
        for (shard, say) in pull.claims.due(moved, now) {
            self.say(at, shard, Some(say));
        }
        let pull = &self.pulls[at];
        self.wake(at, pull.claims.next().unwrap_or(pull.deadline));
        Ok(())
    }

    /// Has a pull go on then, or at its deadline.
    fn wake(&mut self, at: usize, next: Time) {
        let pull = &self.pulls[at];
        let (puller, life) = (pull.puller, self.pullers[pull.puller].process.life);
        let delay = next.min(pull.deadline) - self.now;
        self.after(delay, Who::Puller(puller), Some(life), What::Wake(at));
    }

    /// Says something to the owner of a shard; that it is given up, if nothing.
    fn say(&mut self, at: usize, shard: usize, say: Option<Say>) {
        let pull = &self.pulls[at];
        let (attempt, from) = (pull.attempts[shard], u8::try_from(pull.puller).unwrap());
        let from = Bytes::copy_from_slice(&[from]);
        let (stage, life) = self.jobs[pull.job].stages[shard].unwrap();
        let message = match say {
            Some(Say::Claim(moved)) => Message::Claim { stage, attempt, moved, from },
            Some(Say::Done) => Message::Done { stage, attempt, from },
            None => Message::Release { stage, attempt },
        };
        self.send(Who::Owner(shard), life, &What::Notified(message.encode()));
    }

    fn request(&mut self, at: usize, shard: usize, block: usize) {
        let pull = &self.pulls[at];
        let (puller, life) = (pull.puller, self.pullers[pull.puller].process.life);
        let region = pull.regions[shard].unwrap();
        let (_, owner) = self.jobs[pull.job].stages[shard].unwrap();
        self.send(Who::Owner(shard), owner, &What::Read { pull: at, region, block });
        let late = What::Arrived { pull: at, shard, block, cells: None };
        self.after(READ_TIMEOUT, Who::Puller(puller), Some(life), late);
    }

    fn puller_notified(&mut self, at: usize, bytes: &[u8]) -> Checked {
        let message = Message::decode(bytes).unwrap();
        let attempt = *message.attempt();
        let find = |pull: &Pull| {
            let shard = pull.attempts.iter().position(|its| *its == attempt)?;
            (pull.puller == at && pull.outcome.is_none()).then_some(shard)
        };
        let found = self.pulls.iter().enumerate().find_map(|(at, pull)| Some((at, find(pull)?)));
        let Some((at, shard)) = found else { return Ok(()) };
        let pull = &mut self.pulls[at];
        if let Message::Granted { region, .. } = &message {
            let region = u64::from_le_bytes(region[..].try_into().unwrap());
            pull.regions[shard].get_or_insert(region);
        }
        match pull.claims.hear(shard, &message, self.now) {
            Ok(()) => self.drive(at),
            Err(Refusal::Taken) => self.failed(at, "taken"),
            Err(Refusal::Over) => self.failed(at, "over"),
        }
    }

    fn arrived(&mut self, at: usize, shard: usize, block: usize, cells: Option<Cells>) -> Checked {
        let pull = &mut self.pulls[at];
        if pull.outcome.is_some() || pull.got[shard][block].is_some() {
            return Ok(());
        }
        if cells.is_none() {
            return self.failed(at, "failed read");
        }
        pull.got[shard][block] = cells;
        if block + 1 < pull.got[shard].len() {
            self.request(at, shard, block + 1);
        }
        self.drive(at)
    }

    fn failed(&mut self, at: usize, outcome: &'static str) -> Checked {
        (0..self.pulls[at].attempts.len()).for_each(|shard| self.say(at, shard, None));
        let job = self.pulls[at].job;
        self.route(job, 1..400);
        self.pull_ended(at, outcome)
    }

    /// The one place where bytes become readable.
    fn share(&mut self, at: usize) -> Checked {
        let pull = &self.pulls[at];
        let (job, puller) = (pull.job, pull.puller);
        for (shard, attempt) in pull.attempts.iter().enumerate() {
            let truth = &self.truth[&self.jobs[job].stages[shard].unwrap().0];
            check(truth.pulled_by == Some(*attempt), "shared what its owner did not settle")?;
            for (block, cells) in pull.got[shard].iter().enumerate() {
                let Some(cells) = cells else { return Err("shared before it came".into()) };
                check(*cells == right(job, shard, block), &format!("wrong bytes: {cells:x?}"))?;
                self.pullers[puller].readable.insert((job, shard, block), *cells);
            }
        }
        check(!std::mem::replace(&mut self.jobs[job].is_shared, true), "shared twice")?;
        self.pull_ended(at, "shared")
    }

    fn pull_ended(&mut self, at: usize, outcome: &'static str) -> Checked {
        let before = self.pulls[at].outcome.replace(outcome);
        self.count(outcome);
        check(before.is_none(), &format!("{before:?}, and then {outcome}"))
    }

    pub(super) fn puller_killed(&mut self, at: usize) -> Checked {
        self.pullers[at].readable.clear();
        for pull in 0..self.pulls.len() {
            if self.pulls[pull].puller == at && self.pulls[pull].outcome.is_none() {
                let job = self.pulls[pull].job;
                self.route(job, 1..1000);
                self.pull_ended(pull, "killed puller")?;
            }
        }
        Ok(())
    }
}
