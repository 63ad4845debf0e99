use std::error::Error as _;
use std::io;
use std::sync::Arc;

use dynamo_transfer::{Error, ErrorKind};
use futures::stream::{self, StreamExt};

use super::error::{Damage, Miss, MissReason};
use super::format::Record;
use super::hold::{Held, Hold};
use super::{DiskTier, Inner};
use crate::identity::{BlockIdentity, BlockKey};

/// A block that was read and has its digest: only a load makes one.
#[derive(Debug)]
pub struct Loaded<B> {
    key: BlockKey,
    target: B,
}

impl<B> Loaded<B> {
    /// Returns which block it is.
    pub fn key(&self) -> BlockKey {
        self.key
    }

    /// Returns the memory that was filled.
    pub fn into_target(self) -> B {
        self.target
    }
}

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
        let inner = Arc::clone(&self.0);
        let mut outcomes: Vec<_> = stream::iter(wanted)
            .map(move |(_, number, identity, target)| {
                let inner = Arc::clone(&inner);
                async move { (number, inner.load_one(identity, target).await) }
            })
            .buffer_unordered(self.0.in_flight)
            .collect()
            .await;
        outcomes.sort_unstable_by_key(|(number, _)| *number);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

impl Inner {
    async fn load_one<B>(&self, identity: BlockIdentity, target: B) -> Result<Loaded<B>, Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let outcome = self.read(identity, target).await;
        let bytes = self.geometry.block_bytes as u64;
        self.shared.index().count(|stats| match outcome.as_ref().map_err(|miss| &miss.reason) {
            Ok(_) => {
                stats.hits_total += 1;
                stats.read_bytes_total += bytes;
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
            let reason = reason_of(error);
            if is_lost(&reason) {
                self.give_up(hold, &record).await;
            }
            return miss(reason, Some(target));
        }
        let digested = self.digest(identity, target, |target| &*target.as_mut()).await;
        let Some((digest, target)) = digested else { return miss(MissReason::Closed, None) };
        if digest != record.digest {
            self.give_up(hold, &record).await;
            return miss(MissReason::Damaged(Damage::Digest), Some(target));
        }
        Ok(Loaded { key: record.key, target })
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
        _ => MissReason::Io(error),
    }
}

/// Tells whether reading the block again is no use.
fn is_lost(reason: &MissReason) -> bool {
    match reason {
        MissReason::Damaged(_) => true,
        MissReason::Io(error) => error.kind() == ErrorKind::Io,
        _ => false,
    }
}
