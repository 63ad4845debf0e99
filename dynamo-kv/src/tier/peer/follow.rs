//! What an owner has, as it tells.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynamo_core::protocol::{InstanceId, SequenceHash, Tier};
use dynamo_core::{Client, Context, Error, ErrorKind, ResponseStream, Result};
use tokio::time::Instant;

use super::client::unexpected;
use super::message::{Answer, Ask, Change, Request, Told};
use super::reach::Reach;
use crate::identity::BlockKey;
use crate::tier::{TierChange, TierSink};

/// Follows one owner, and tells a sink.
pub(super) struct Follow {
    client: Client<Request, Answer>,
    owner: InstanceId,
    fingerprint: u64,
    /// How long it may be silent.
    limit: Duration,
    /// What it says is a sign of life.
    reach: Arc<Reach>,
    known: Mutex<Known>,
}

struct Known {
    sink: Box<dyn TierSink>,
    is_followed: bool,
    /// The owner's life that this is of.
    epoch: u64,
    /// Blocks, and a bit for each kind of tier where the owner has them.
    blocks: HashMap<SequenceHash, (BlockKey, u8)>,
}

/// Changes from a number on.
struct Following {
    answers: ResponseStream<Answer>,
    next: u64,
}

impl Follow {
    pub(super) fn new(
        client: Client<Request, Answer>,
        owner: InstanceId,
        fingerprint: u64,
        limit: Duration,
        reach: Arc<Reach>,
    ) -> Self {
        let sink = Box::new(|_: TierChange| {});
        let known = Known { sink, is_followed: false, epoch: 0, blocks: HashMap::new() };
        Self { client, owner, fingerprint, limit, reach, known: Mutex::new(known) }
    }

    /// Tells `sink` from now on; returns what is there, and whether nobody follows the owner yet.
    pub(super) fn watch(&self, sink: Box<dyn TierSink>) -> (Vec<BlockKey>, bool) {
        let mut known = self.lock();
        known.sink = sink;
        let is_first = !std::mem::replace(&mut known.is_followed, true);
        let mut keys: Vec<_> = known.blocks.values().map(|(key, _)| *key).collect();
        keys.sort_unstable_by_key(|key| (key.chain, key.position));
        (keys, is_first)
    }

    /// Returns how many blocks are there.
    pub(super) fn blocks(&self) -> usize {
        self.lock().blocks.len()
    }

    /// Follows the owner, and looks for it when it is lost; what it had is gone if it is not found again
    /// in time.
    pub(super) async fn run(&self) {
        loop {
            let (lost, mut pause) = (Instant::now(), PAUSE_MIN);
            let following = loop {
                match self.begin().await {
                    Ok(following) => break following,
                    Err(error) => tracing::debug!(%error, "an owner of blocks is not followed"),
                }
                if lost.elapsed() >= self.limit {
                    self.lock().clear();
                }
                tokio::time::sleep(pause.min(self.limit)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            };
            if let Err(error) = self.listen(following).await {
                tracing::debug!(%error, "an owner of blocks is lost");
            }
        }
    }

    /// Asks for everything, and tells the sink what is new.
    async fn begin(&self) -> Result<Following> {
        let third = self.limit.as_millis() / 3;
        let beat_ms = u64::try_from(third).unwrap_or(u64::MAX).max(1);
        let ask = Ask::Watch { fingerprint: self.fingerprint, beat_ms };
        let asked = self.client.direct(self.owner, Context::new(), Request(ask));
        let mut answers = self.in_time(asked).await??;
        let mut there = Vec::new();
        loop {
            match self.next(&mut answers).await? {
                Told::There { epoch, seq, blocks, is_last } => {
                    there.extend(blocks);
                    if is_last {
                        self.lock().replace(epoch, there);
                        return Ok(Following { answers, next: seq });
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Tells the sink what changes, until the owner is silent, or something is missing.
    async fn listen(&self, mut following: Following) -> Result<()> {
        loop {
            match self.next(&mut following.answers).await? {
                Told::Quiet => {}
                Told::Changed { seq, change } if seq == following.next => {
                    following.next += 1;
                    self.lock().apply(change);
                }
                _ => return Err(unexpected()),
            }
        }
    }

    async fn next(&self, answers: &mut ResponseStream<Answer>) -> Result<Told> {
        let answer = self.in_time(answers.next()).await?;
        let told = answer.ok_or_else(unexpected)??.0;
        self.reach.heard();
        Ok(told)
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T> {
        let answer = tokio::time::timeout(self.limit, answer).await;
        answer.map_err(|_| Error::new(ErrorKind::DeadlineExceeded, "an owner of blocks is silent"))
    }

    /// Takes note that nobody follows the owner any more.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes what is there in place of what was; what another life of the owner had is gone first.
    fn replace(&mut self, epoch: u64, there: Vec<(BlockKey, Tier)>) {
        if self.epoch != epoch {
            self.clear();
            self.epoch = epoch;
        }
        let still: HashSet<_> = there.iter().map(|(key, _)| key.sequence).collect();
        for (_, (key, _)) in self.blocks.extract_if(|sequence, _| !still.contains(sequence)) {
            self.sink.publish(TierChange::Removed(key));
        }
        // Those that stay have their tiers told anew.
        self.blocks.values_mut().for_each(|(_, tiers)| *tiers = 0);
        for (key, tier) in there {
            let is_new = !self.blocks.contains_key(&key.sequence);
            self.blocks.entry(key.sequence).or_insert((key, 0)).1 |= bit(tier);
            if is_new {
                self.sink.publish(TierChange::Stored(key));
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Stored(keys, tier) => {
                for key in keys {
                    let (_, tiers) = self.blocks.entry(key.sequence).or_insert((key, 0));
                    let is_new = *tiers == 0;
                    *tiers |= bit(tier);
                    if is_new {
                        self.sink.publish(TierChange::Stored(key));
                    }
                }
            }
            Change::Removed(sequences, tier) => {
                for sequence in sequences {
                    let Some((key, tiers)) = self.blocks.get_mut(&sequence) else { continue };
                    *tiers &= !bit(tier);
                    if *tiers == 0 {
                        let key = *key;
                        self.blocks.remove(&sequence);
                        self.sink.publish(TierChange::Removed(key));
                    }
                }
            }
            Change::Cleared => self.clear(),
        }
    }

    fn clear(&mut self) {
        if !self.blocks.is_empty() {
            self.blocks.clear();
            self.sink.publish(TierChange::Cleared);
        }
    }
}

fn bit(tier: Tier) -> u8 {
    1 << match tier {
        Tier::Device => 0,
        Tier::Host => 1,
        Tier::Disk => 2,
        Tier::Remote => 3,
        _ => 4,
    }
}

/// Between questions to an owner that does not answer.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
