use std::error::Error as _;
use std::io;
use std::sync::Arc;

use dynamo_core::time::{Clock, SystemClock};
use dynamo_transfer::{Error, ErrorKind};
use futures::stream::{self, StreamExt};

use super::format::Record;
use super::hold::{Held, Hold};
use super::run::{runs, together};
use super::{DiskTier, Inner};
use crate::identity::BlockIdentity;
use crate::tier::{Damage, Loaded, Miss, MissReason};

/// A block that is wanted.
struct Target<B> {
    /// Its place among those of a call.
    number: usize,
    identity: BlockIdentity,
    bytes: B,
}

/// A block that is there, whose slot is held.
struct Found {
    number: usize,
    record: Record,
}

type Outcome<B> = (usize, Result<Loaded<B>, Miss<B>>);

impl DiskTier {
    /// Fills each target with its block; the outcomes are in their order.
    ///
    /// A block is a hit only if its bytes have the digest that it was stored with. They are read in
    /// the order of the file, neighbours at once, no more than
    /// [`in_flight`](super::DiskConfig::in_flight) at a time, and the call waits, in order, while
    /// others have the places. A block that is damaged, or that the device fails to read, is removed.
    ///
    /// # Cancel safety
    /// If it is dropped, targets are freed, and slots released, when the kernel is done with them.
    pub async fn load<B>(&self, targets: Vec<(BlockIdentity, B)>) -> Vec<Result<Loaded<B>, Miss<B>>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let mut wanted: Vec<_> = {
            let index = self.0.shared.index();
            let wanted = targets.into_iter().enumerate().map(|(number, (identity, bytes))| {
                (index.slot_of(&identity), Target { number, identity, bytes })
            });
            wanted.collect()
        };
        wanted.sort_unstable_by_key(|(slot, target)| (*slot, target.number));
        let count = wanted.len();
        let wanted = wanted.into_iter().map(|(_, target)| target).collect();
        let (inner, timing) = (Arc::clone(&self.0), self.0.pace.begin(count));
        let mut outcomes: Vec<_> = stream::iter(runs(wanted, self.0.run_blocks))
            .map(move |run| {
                let inner = Arc::clone(&inner);
                async move { stream::iter(inner.load_run(run).await) }
            })
            .buffer_unordered(self.0.in_flight.div_ceil(self.0.run_blocks))
            .flatten()
            .collect()
            .await;
        let hits = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
        timing.end(hits);
        outcomes.sort_unstable_by_key(|(number, _)| *number);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

impl Inner {
    async fn load_run<B>(&self, run: Vec<Target<B>>) -> Vec<Outcome<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let started = SystemClock.now();
        let (mut outcomes, found) = self.find(run).await;
        outcomes.extend(self.read(found).await);
        let (elapsed, bytes) = (SystemClock.now() - started, self.geometry.block_bytes as u64);
        let mut index = self.shared.index();
        for (_, outcome) in &outcomes {
            index.count(|stats| match outcome.as_ref().map_err(|miss| &miss.reason) {
                Ok(_) => {
                    stats.hits_total += 1;
                    stats.read_bytes_total += bytes;
                    stats.load_time_total += elapsed;
                }
                Err(MissReason::Absent) => stats.absent_total += 1,
                Err(MissReason::Damaged(_)) => stats.damaged_total += 1,
                Err(MissReason::Io(_)) => stats.unreadable_total += 1,
                Err(_) => {}
            });
        }
        drop(index);
        outcomes
    }

    /// Waits for places, and holds the slots of the blocks that are there.
    async fn find<B: AsMut<[u8]>>(
        &self,
        run: Vec<Target<B>>,
    ) -> (Vec<Outcome<B>>, Vec<(Found, Held<B>)>) {
        let mut missed = Vec::new();
        let mut miss = |number, reason, bytes| {
            missed.push((number, Err(Miss { reason, target: Some(bytes) })));
        };
        let (expected, mut sound) = (self.geometry.block_bytes, Vec::with_capacity(run.len()));
        for mut target in run {
            match target.bytes.as_mut().len() {
                found if found == expected => sound.push(target),
                found => {
                    miss(target.number, MissReason::Length { expected, found }, target.bytes);
                }
            }
        }
        let count = u32::try_from(sound.len()).unwrap_or(u32::MAX);
        let mut permits = Arc::clone(&self.room).acquire_many_owned(count).await.ok();
        let mut there = Vec::with_capacity(sound.len());
        let mut index = self.shared.index();
        for Target { number, identity, bytes } in sound {
            let Some(permit) = permits.as_mut().and_then(|permits| permits.split(1)) else {
                miss(number, MissReason::Closed, bytes);
                continue;
            };
            let Some((slot, record)) = index.read(&identity) else {
                miss(number, MissReason::Absent, bytes);
                continue;
            };
            there.push((Found { number, record }, Held { bytes, hold: self.hold(slot, permit) }));
        }
        drop(index);
        (missed, there)
    }

    async fn read<B>(&self, there: Vec<(Found, Held<B>)>) -> Vec<Outcome<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let place = |(found, held): (Found, Held<B>)| (found, (self.place(held.hold.slot()), held));
        let (found, parts): (Vec<_>, Vec<_>) = there.into_iter().map(place).unzip();
        let read = together(parts, |parts| self.files.read_all(&self.blocks, parts)).await;
        let (mut outcomes, mut filled, mut holds) = (Vec::new(), Vec::new(), Vec::new());
        for (found, read) in found.into_iter().zip(read) {
            let Some((read, Held { bytes, hold })) = read else {
                let miss = Miss { reason: MissReason::Closed, target: None };
                outcomes.push((found.number, Err(miss)));
                continue;
            };
            if let Err(error) = read {
                // It is no use to read the block again.
                let is_lost = error.kind() == ErrorKind::Io;
                let reason = reason_of(error);
                if is_lost || matches!(reason, MissReason::Damaged(_)) {
                    self.give_up(hold, &found.record).await;
                }
                outcomes.push((found.number, Err(Miss { reason, target: Some(bytes) })));
                continue;
            }
            filled.push((found.record, bytes));
            holds.push((found, hold));
        }
        outcomes.extend(self.verify(filled, holds).await);
        outcomes
    }

    /// Proves blocks, and removes those that are not what was stored.
    async fn verify<B>(
        &self,
        filled: Vec<(Record, B)>,
        holds: Vec<(Found, Hold)>,
    ) -> Vec<Outcome<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let verify =
            |(record, target): (Record, B)| Loaded::verify(record.key, &record.digest, target);
        let blocks = filled.len();
        let work = move || filled.into_iter().map(verify).collect::<Vec<_>>();
        let verified = self.hash(blocks, work).await;
        let mut verified = verified.into_iter().flatten();
        let mut outcomes = Vec::with_capacity(blocks);
        for (Found { number, record }, hold) in holds {
            let closed = || Err(Miss { reason: MissReason::Closed, target: None });
            let verified = verified.next().unwrap_or_else(closed);
            if verified.as_ref().is_err_and(|miss| miss.target.is_some()) {
                self.give_up(hold, &record).await;
            }
            outcomes.push((number, verified));
        }
        outcomes
    }

    /// Removes a block that cannot be read, and its record if that can be written: nothing relies
    /// on it.
    async fn give_up(&self, hold: Hold, record: &Record) {
        let is_there = self.shared.index().forget(hold.slot(), record.generation);
        if is_there && let Err(error) = self.erase(hold).await {
            tracing::debug!(%error, "the record of a lost block stays");
        }
    }
}

fn reason_of(error: Error) -> MissReason {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match (error.kind(), source.map(io::Error::kind)) {
        (ErrorKind::Closed, _) => MissReason::Closed,
        (_, Some(io::ErrorKind::UnexpectedEof)) => MissReason::Damaged(Damage::Truncated),
        _ => MissReason::Io(Box::new(error)),
    }
}
