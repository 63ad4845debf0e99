use std::collections::BTreeMap;

use bytes::Bytes;

use super::world::{Cells, Checked, Process, TERMS, Truth, What, Who, World, check, ms, right};
use crate::handoff::hold::{Holds, Verdict};
use crate::handoff::message::{Attempt, Message, StageId};

/// A prefill worker: what it holds, its memory, and its regions.
pub(super) struct Owner {
    at: usize,
    pub(super) process: Process,
    holds: Holds<Held>,
    slots: Vec<Slot>,
    /// What peers may read, or could once: by a number that is never used again.
    regions: BTreeMap<u64, Region>,
    numbers: u64,
}

#[derive(Debug)]
struct Held {
    id: StageId,
    slots: Vec<usize>,
    region: Option<u64>,
}

struct Region {
    id: StageId,
    slots: Vec<usize>,
    is_registered: bool,
}

/// Memory: a copy that is in progress does not keep it, which is less than a real one does.
#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    cells: Cells,
    is_held: bool,
}

impl Owner {
    pub(super) fn new(at: usize) -> Self {
        let (process, slots) = (Process::default(), vec![Slot::default(); 9]);
        let (holds, regions) = (Holds::new(TERMS), BTreeMap::new());
        Self { at, process, holds, slots, regions, numbers: 0 }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        (u64::try_from(self.at).unwrap() << 32) | self.numbers
    }

    /// Gives up what is held: nobody may read it any more, and its memory is written anew at once.
    fn let_go(&mut self, held: &Held) {
        if let Some(region) = held.region {
            self.revoke(region);
        }
        for &slot in &held.slots {
            let garbage = self.number() | 1 << 63;
            self.slots[slot] = Slot { cells: [garbage; 4], is_held: false };
        }
    }

    fn revoke(&mut self, region: u64) {
        self.regions.get_mut(&region).unwrap().is_registered = false;
    }

    pub(super) fn check_at_rest(&self) -> Checked {
        check(self.holds.iter().next().is_none(), "blocks are staged for ever")?;
        let is_registered = self.regions.values().any(|region| region.is_registered);
        check(!is_registered, "a region is registered for ever")?;
        check(!self.slots.iter().any(|slot| slot.is_held), "a slot is held for ever")
    }
}

impl World {
    pub(super) fn owner(&mut self, at: usize, what: What) -> Checked {
        match what {
            What::Stage(job) => self.stage(at, job),
            What::Drop(id) => {
                let held = self.owners[at].holds.end(id);
                self.ended(at, held, "dropped")?;
            }
            What::Notified(bytes) => self.owner_notified(at, &bytes)?,
            What::Read { pull, region, block } => self.read(at, pull, region, block),
            What::Copied { pull, slot, block, half } => self.copied(at, pull, slot, block, half),
            What::Expire => {}
            other => return Err(format!("{other:?} is not for an owner")),
        }
        let now = self.now;
        for held in self.owners[at].holds.expire(now) {
            self.ended(at, Some(held), "expired")?;
        }
        if let Some(next) = self.owners[at].holds.next_end() {
            let life = Some(self.owners[at].process.life);
            self.after(next - now, Who::Owner(at), life, What::Expire);
        }
        self.check_holds(at)
    }

    /// Nothing is held for longer than it may be, and read by more than one.
    fn check_holds(&self, at: usize) -> Checked {
        let owner = &self.owners[at];
        for held in owner.holds.iter() {
            let (truth, now) = (&self.truth[&held.id], self.now);
            check(now < truth.ends(), "held beyond its end")?;
            let is_its = |region: &&Region| region.id == held.id && region.is_registered;
            let regions = owner.regions.values().filter(is_its).count();
            check(regions <= 1, "more than one may read")?;
        }
        Ok(())
    }

    fn stage(&mut self, at: usize, job: usize) {
        let now = self.now;
        let id = StageId::new(&[7; 32], self.owners[at].number());
        let (owner, blocks) = (&mut self.owners[at], self.jobs[job].blocks);
        let free = |slot: &usize| !owner.slots[*slot].is_held;
        let slots: Vec<_> = (0..owner.slots.len()).filter(free).take(blocks).collect();
        if slots.len() < blocks {
            return;
        }
        for (block, &slot) in slots.iter().enumerate() {
            owner.slots[slot] = Slot { cells: right(job, at, block), is_held: true };
        }
        owner.holds.stage(id, Held { id, slots, region: None }, now);
        self.truth.insert(id, Truth { staged: now, ..Truth::default() });
        self.jobs[job].stages[at] = Some((id, self.owners[at].process.life));
        if !self.is_calm() && self.chance(15) {
            let (delay, life) = (self.between(0..3000), Some(self.owners[at].process.life));
            self.after(delay, Who::Owner(at), life, What::Drop(id));
        }
    }

    fn owner_notified(&mut self, at: usize, bytes: &[u8]) -> Checked {
        match Message::decode(bytes).unwrap() {
            Message::Claim { stage, attempt, moved, from } => {
                let answer = self.claimed(at, stage, attempt, moved)?;
                self.answer(&from, &answer);
            }
            Message::Done { stage, attempt, from } => {
                let answer = self.done(at, stage, attempt)?;
                self.answer(&from, &answer);
            }
            Message::Release { stage, attempt } => {
                let owner = &mut self.owners[at];
                let released = owner.holds.release(stage, attempt);
                if let Some(region) = released.and_then(|held| held.region.take()) {
                    owner.revoke(region);
                }
                if let Some(truth) = self.truth.get_mut(&stage) {
                    truth.released.insert(attempt);
                }
            }
            other => return Err(format!("{other:?} is not for an owner")),
        }
        Ok(())
    }

    fn claimed(
        &mut self,
        at: usize,
        stage: StageId,
        attempt: Attempt,
        moved: u64,
    ) -> Result<Message, String> {
        let now = self.now;
        let owner = &mut self.owners[at];
        let number = owner.number();
        let truth = self.truth.get_mut(&stage).unwrap();
        let region = match owner.holds.claim(stage, attempt, moved, now) {
            Verdict::Taken { left } => return Ok(Message::Taken { attempt, left }),
            Verdict::Over => return Ok(Message::Over { attempt }),
            Verdict::Pulled => {
                check(truth.pulled_by == Some(attempt), "settled with one that did not pull it")?;
                return Ok(Message::Settled { attempt });
            }
            Verdict::Granted { held, is_new: true } => {
                let slots = held.slots.clone();
                let other = held.region.replace(number);
                other.into_iter().for_each(|other| owner.revoke(other));
                owner.regions.insert(number, Region { id: stage, slots, is_registered: true });
                let is_free = now >= truth.renewed + TERMS.claim_ttl;
                let is_free =
                    is_free || truth.holder.is_none_or(|its| truth.released.contains(&its));
                check(is_free, "taken from one that moves along")?;
                truth.holder = Some(attempt);
                number
            }
            Verdict::Granted { held, is_new: false } => held.region.unwrap(),
        };
        check(now < truth.ends(), "granted behind its end")?;
        check(!truth.released.contains(&attempt), "granted to one that had released it")?;
        check(truth.holder == Some(attempt), "granted to one that does not have it")?;
        if truth.moved.get(&attempt).is_none_or(|known| moved > *known) {
            truth.moved.insert(attempt, moved);
            truth.renewed = now;
        }
        Ok(Message::Granted { attempt, region: Bytes::copy_from_slice(&region.to_le_bytes()) })
    }

    fn done(&mut self, at: usize, stage: StageId, attempt: Attempt) -> Result<Message, String> {
        let now = self.now;
        let (is_theirs, held) = self.owners[at].holds.done(stage, attempt, now);
        let pull = self.pulls.iter().find(|pull| pull.attempts.contains(&attempt)).unwrap();
        let truth = self.truth.get_mut(&stage).unwrap();
        if held.is_some() {
            truth.pulled_by = Some(attempt);
            check(!truth.released.contains(&attempt), "pulled by one that had released it")?;
            if pull.outcome == Some("declined") {
                let is_open = truth.holder.is_none_or(|holder| truth.released.contains(&holder));
                check(is_open, "taken from one that has it")?;
            } else {
                check(truth.holder == Some(attempt), "pulled by one that did not have it")?;
                check(pull.is_here(), "pulled by one that has not all of it")?;
            }
        }
        // Whoever asks so late hears no answer.
        let is_late = now >= pull.deadline;
        let is_right = is_theirs == (truth.pulled_by == Some(attempt));
        check(is_right || (is_late && !is_theirs), "not what was said before")?;
        self.ended(at, held, "pulled")?;
        Ok(if is_theirs { Message::Settled { attempt } } else { Message::Over { attempt } })
    }

    fn answer(&mut self, from: &[u8], answer: &Message) {
        let Some(&at) = from.first() else { return };
        let at = usize::from(at);
        let life = self.pullers[at].process.life;
        self.send(Who::Puller(at), life, &What::Notified(answer.encode()));
    }

    /// The transfer engine: it refuses what is not registered, unless it is blind. Copies take time.
    fn read(&mut self, at: usize, pull: usize, region: u64, block: usize) {
        let may_read = |region: &&Region| region.is_registered || self.is_blind;
        let Some(region) = self.owners[at].regions.get(&region).filter(may_read) else {
            self.arrive(at, pull, block, None);
            return;
        };
        let slot = region.slots[block];
        let [first, second, ..] = self.owners[at].slots[slot].cells;
        let (delay, life) = (self.between(1..60), Some(self.owners[at].process.life));
        let what = What::Copied { pull, slot, block, half: [first, second] };
        self.after(delay, Who::Owner(at), life, what);
    }

    fn copied(&mut self, at: usize, pull: usize, slot: usize, block: usize, half: [u64; 2]) {
        let [.., third, fourth] = self.owners[at].slots[slot].cells;
        self.arrive(at, pull, block, Some([half[0], half[1], third, fourth]));
    }

    fn arrive(&mut self, at: usize, pull: usize, block: usize, cells: Option<Cells>) {
        let puller = self.pulls[pull].puller;
        let life = self.pullers[puller].process.life;
        self.send(Who::Puller(puller), life, &What::Arrived { pull, shard: at, block, cells });
    }

    fn ended(&mut self, at: usize, held: Option<Held>, outcome: &'static str) -> Checked {
        let Some(held) = held else { return Ok(()) };
        self.owners[at].let_go(&held);
        let before = self.truth.get_mut(&held.id).unwrap().outcome.replace(outcome);
        self.count(outcome);
        check(before.is_none(), &format!("{before:?}, and then {outcome}"))
    }

    /// Everything that a process had is gone; what others know of its regions leads nowhere.
    pub(super) fn owner_killed(&mut self, at: usize) -> Checked {
        let (process, numbers) =
            (std::mem::take(&mut self.owners[at].process), self.owners[at].numbers);
        let dead = std::mem::replace(&mut self.owners[at], Owner::new(at));
        (self.owners[at].process, self.owners[at].numbers) = (process, numbers + 1);
        for held in dead.holds.iter() {
            self.truth.get_mut(&held.id).unwrap().outcome = Some("killed owner");
            self.count("killed owner");
        }
        Ok(())
    }
}

/// Transfers do not wait for ever for an owner that is gone or silent.
pub(super) const READ_TIMEOUT: std::time::Duration = ms(1200);
