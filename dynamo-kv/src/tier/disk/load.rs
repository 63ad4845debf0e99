use std::error::Error as _;
use std::io;
use std::sync::Arc;

use dynamo_core::time::{Clock, SystemClock};
use dynamo_transfer::{Error, ErrorKind};
use futures::stream::{self, StreamExt};

use super::format::Record;
use super::hold::{Held, Hold};
use super::{DiskTier, Inner};
use crate::identity::BlockIdentity;
use crate::tier::{Damage, Loaded, Miss, MissReason};

impl DiskTier {
    /// Fills each target with its block; the outcomes are in their order.
    ///
    /// A block is a hit only if its bytes have the digest that it was stored with. They are read in
    /// the order of the file, no more than [`in_flight`](super::DiskConfig::in_flight) at once, and
    /// the call waits, in order, while others have the places. A block that is damaged, or that the
    /// device fails to read, is removed.
    ///
    /// # Cancel safety
    /// If it is dropped, targets are freed, and slots released, when the kernel is done with them.
    pub async fn load<B>(&self, targets: Vec<(BlockIdentity, B)>) -> Vec<Result<Loaded<B>, Miss<B>>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let mut wanted: Vec<_> = {
            let index = self.0.shared.index();
            let wanted = targets.into_iter().enumerate().map(|(number, (identity, target))| {
                (index.slot_of(&identity), number, identity, target)
            });
            wanted.collect()
        };
        wanted.sort_unstable_by_key(|(slot, number, ..)| (*slot, *number));
        let (inner, started) = (Arc::clone(&self.0), SystemClock.now());
        let mut outcomes: Vec<_> = stream::iter(wanted)
            .map(move |(_, number, identity, target)| {
                let inner = Arc::clone(&inner);
                async move { (number, inner.load_one(identity, target).await) }
            })
            .buffer_unordered(self.0.in_flight)
            .collect()
            .await;
        let hits = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
        self.0.pace.observe(hits, SystemClock.now() - started);
        outcomes.sort_unstable_by_key(|(number, _)| *number);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

impl Inner {
    async fn load_one<B>(&self, identity: BlockIdentity, target: B) -> Result<Loaded<B>, Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let started = SystemClock.now();
        let outcome = self.read(identity, target).await;
        let elapsed = SystemClock.now() - started;
        let bytes = self.geometry.block_bytes as u64;
        self.shared.index().count(|stats| match outcome.as_ref().map_err(|miss| &miss.reason) {
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
        outcome
    }

    async fn read<B>(&self, identity: BlockIdentity, mut target: B) -> Result<Loaded<B>, Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let miss = |reason, target| Err(Miss { reason, target });
        let (expected, found) = (self.geometry.block_bytes, target.as_mut().len());
        if found != expected {
            return miss(MissReason::Length { expected, found }, Some(target));
        }
        let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
            return miss(MissReason::Closed, Some(target));
        };
        let found = self.shared.index().read(&identity);
        let Some((slot, record)) = found else { return miss(MissReason::Absent, Some(target)) };
        let held = Held { bytes: target, hold: self.hold(slot, permit) };
        let (read, held) = self.files.read(&self.blocks, &[self.place(slot)], held).await;
        let Some(Held { bytes: target, hold }) = held else {
            return miss(read.err().map_or(MissReason::Closed, reason_of), None);
        };
        if let Err(error) = read {
            // It is no use to read the block again.
            let is_lost = error.kind() == ErrorKind::Io;
            let reason = reason_of(error);
            if is_lost || matches!(reason, MissReason::Damaged(_)) {
                self.give_up(hold, &record).await;
            }
            return miss(reason, Some(target));
        }
        let verify = move || Loaded::verify(record.key, &record.digest, target);
        let verified = self.hash(verify).await;
        let Some(verified) = verified else { return miss(MissReason::Closed, None) };
        if verified.is_err() {
            self.give_up(hold, &record).await;
        }
        verified
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
