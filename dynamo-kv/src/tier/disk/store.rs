use std::sync::Arc;
use std::time::Duration;

use dynamo_core::time::{Clock, SystemClock};
use dynamo_transfer::ErrorKind;
use futures::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::format::{Record, record_offset};
use super::hold::{Held, Hold};
use super::index::{Begun, Start};
use super::run::{runs, together};
use super::{DiskTier, Inner};
use crate::identity::BlockKey;
use crate::tier::{StoreError, Stored, digest};

impl DiskTier {
    /// Writes blocks, evicting those that were used longest ago; the outcomes are in their order.
    ///
    /// A block goes before what it needs, and none goes for one that follows it: with no room but what
    /// others need, a block fails with [`StoreError::Busy`].
    ///
    /// Blocks that follow each other get slots in the order of the file, and neighbours are written at
    /// once, while they are hashed. Each block is held, in memory, until it was written. A block that
    /// fails cannot be found, nor can the one that it replaced; others are not concerned. No more than [`in_flight`](super::DiskConfig::in_flight)
    /// blocks are moved at once, and the call waits, in order, while others have the places.
    ///
    /// # Cancel safety
    /// If it is dropped, blocks that were not written by then are not stored; their slots are free,
    /// and they themselves are dropped, when the kernel is done with them.
    pub async fn store<B>(&self, blocks: Vec<(BlockKey, B)>) -> Vec<Result<Stored, StoreError>>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let (inner, finishing) = (Arc::clone(&self.0), Arc::clone(&self.0));
        // While one half is written, the other gets its slots.
        let waves = runs(blocks.into_iter().enumerate().collect(), inner.in_flight.div_ceil(2));
        let mut outcomes: Vec<_> = stream::iter(waves)
            .then(move |wave| admit(Arc::clone(&inner), wave))
            .flat_map(stream::iter)
            .map(move |part| {
                let inner = Arc::clone(&finishing);
                async move {
                    let started = SystemClock.now();
                    let outcomes = inner.store_part(part).await;
                    inner.count_stored(&outcomes, SystemClock.now() - started);
                    stream::iter(outcomes)
                }
            })
            .buffer_unordered(self.0.in_flight)
            .flatten()
            .collect()
            .await;
        outcomes.sort_unstable_by_key(|(number, _)| *number);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

type Outcome = (usize, Result<Stored, StoreError>);

/// Blocks that have their places among what is in flight.
enum Part<B> {
    Done(Outcome),
    Wait { ended: watch::Receiver<()>, permit: OwnedSemaphorePermit, block: Block<B> },
    Write(Vec<Writing<B>>),
}

struct Block<B> {
    /// Its place among those of a call.
    number: usize,
    key: BlockKey,
    bytes: B,
}

/// A block that has its slot.
struct Writing<B> {
    block: Block<B>,
    hold: Hold,
    generation: u64,
    era: u64,
}

/// Waits for places for some blocks, and begins to store those.
async fn admit<B: AsRef<[u8]>>(
    inner: Arc<Inner>,
    wave: Vec<(usize, (BlockKey, B))>,
) -> Vec<Part<B>> {
    let count = u32::try_from(wave.len()).unwrap_or(u32::MAX);
    let Ok(mut permits) = Arc::clone(&inner.room).acquire_many_owned(count).await else {
        let closed = |(number, _)| Part::Done((number, Err(StoreError::Closed)));
        return wave.into_iter().map(closed).collect();
    };
    let expected = inner.geometry.block_bytes;
    let (mut parts, mut sound, mut writing) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (key, bytes)) in wave {
        match bytes.as_ref().len() {
            found if found == expected => sound.push(Block { number, key, bytes }),
            found => parts.push(Part::Done((number, Err(StoreError::Length { expected, found })))),
        }
    }
    let keys: Vec<_> = sound.iter().map(|block| block.key).collect();
    let begun = inner.shared.index().begin(&keys);
    for (block, begun) in sound.into_iter().zip(begun) {
        match (begun, permits.split(1)) {
            (Begun::Slot(start), Some(permit)) => writing.push(inner.writing(start, permit, block)),
            (Begun::Writing(ended), Some(permit)) => {
                parts.push(Part::Wait { ended, permit, block })
            }
            (Begun::Present, _) => parts.push(Part::Done((block.number, Ok(Stored::Present)))),
            (_, _) => parts.push(Part::Done((block.number, Err(StoreError::Busy)))),
        }
    }
    let written = runs(writing, inner.run_blocks).map(Part::Write);
    // Those that wait may wait for one of them.
    written.chain(parts).collect()
}

impl Inner {
    fn writing<B>(
        &self,
        start: Start,
        permit: OwnedSemaphorePermit,
        block: Block<B>,
    ) -> Writing<B> {
        let Start { slot, generation, era, ended } = start;
        let hold = self.hold(slot, permit).writing(block.key.identity, generation, ended);
        Writing { block, hold, generation, era }
    }

    async fn store_part<B>(&self, part: Part<B>) -> Vec<Outcome>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        match part {
            Part::Done(outcome) => vec![outcome],
            Part::Write(run) => self.write(run).await,
            Part::Wait { ended, permit, block } => self.wait_or_write(ended, permit, block).await,
        }
    }

    /// Waits for another store of the block, and stores it if that did not.
    async fn wait_or_write<B>(
        &self,
        mut ended: watch::Receiver<()>,
        permit: OwnedSemaphorePermit,
        block: Block<B>,
    ) -> Vec<Outcome>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let outcome = loop {
            // Nothing is ever sent: it fails when the other one has ended.
            while ended.changed().await.is_ok() {}
            let begun = self.shared.index().begin(&[block.key]).pop();
            match begun {
                Some(Begun::Writing(next)) => ended = next,
                Some(Begun::Present) => break Ok(Stored::Present),
                Some(Begun::Slot(start)) => {
                    return self.write(vec![self.writing(start, permit, block)]).await;
                }
                Some(Begun::Busy) | None => break Err(StoreError::Busy),
            }
        };
        vec![(block.number, outcome)]
    }

    /// Writes blocks while they are hashed, then their records, then makes them findable.
    async fn write<B>(&self, run: Vec<Writing<B>>) -> Vec<Outcome>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let (mut blocks, mut parts) =
            (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
        for Writing { block: Block { number, key, bytes }, hold, generation, era } in run {
            let bytes = Arc::new(bytes);
            blocks.push((number, key, generation, era, Arc::clone(&bytes)));
            parts.push((self.place(hold.slot()), Held { bytes: Whole(bytes), hold }));
        }
        let hashed: Vec<_> = blocks.iter().map(|block| (block.1, Arc::clone(&block.4))).collect();
        let digests = move || -> Vec<_> {
            hashed.iter().map(|(key, bytes)| digest(&key.identity, (**bytes).as_ref())).collect()
        };
        let (written, digests) = tokio::join!(
            together(parts, |parts| self.files.write_all(&self.blocks, parts)),
            self.hash(blocks.len(), digests)
        );
        let digests = digests.into_iter().flatten().map(Some).chain(std::iter::repeat(None));
        let (mut outcomes, mut stored, mut records) = (Vec::new(), Vec::new(), Vec::new());
        for ((block, digest), written) in blocks.into_iter().zip(digests).zip(written) {
            let (number, key, generation, era, bytes) = block;
            match (written, digest) {
                (Some((Ok(()), Held { hold, .. })), Some(digest)) => {
                    let record = Record { key, generation, digest };
                    let encoded = record.encode(hold.slot(), era, &self.geometry);
                    records.push((record_offset(hold.slot()), Held { bytes: encoded, hold }));
                    stored.push((number, record, bytes));
                }
                (Some((Err(error), _)), _) => outcomes.push((number, Err(error.into()))),
                (_, _) => outcomes.push((number, Err(StoreError::Closed))),
            }
        }
        let written = together(records, |parts| self.files.write_all(&self.manifest, parts)).await;
        // Whoever looks for a block finds it here until it is there.
        for ((number, record, _bytes), written) in stored.into_iter().zip(written) {
            let outcome = match written {
                Some((Ok(()), Held { hold, .. })) => self.commit(hold, record).await,
                Some((Err(error), _)) => Err(error.into()),
                None => Err(StoreError::Closed),
            };
            outcomes.push((number, outcome));
        }
        outcomes
    }

    /// Makes a block findable that is on the disk with its record.
    async fn commit(&self, hold: Hold, record: Record) -> Result<Stored, StoreError> {
        if self.shared.index().commit(hold.slot(), record) {
            return Ok(Stored::Written);
        }
        // It was removed, and so must be what is on the disk; a clear has seen to that already.
        match self.erase(hold).await {
            Err(error) if error.kind() != ErrorKind::Closed => Err(error.into()),
            _ => Err(StoreError::Removed),
        }
    }

    fn count_stored(&self, outcomes: &[Outcome], elapsed: Duration) {
        let bytes = self.geometry.block_bytes as u64;
        let mut index = self.shared.index();
        for (_, outcome) in outcomes {
            index.count(|stats| match outcome {
                Ok(Stored::Written) => {
                    stats.stored_total += 1;
                    stats.written_bytes_total += bytes;
                    stats.store_time_total += elapsed;
                }
                Ok(Stored::Present) => stats.present_total += 1,
                Err(_) => stats.failed_total += 1,
            });
        }
    }
}

/// A block that is written while it is hashed.
struct Whole<B>(Arc<B>);

impl<B: AsRef<[u8]>> AsRef<[u8]> for Whole<B> {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}
