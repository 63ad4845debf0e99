use std::sync::Arc;
use std::time::Duration;

use dynamo_core::time::{Clock, SystemClock};
use dynamo_transfer::ErrorKind;
use futures::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::format::Record;
use super::hold::{Held, Hold};
use super::index::{Begun, Start};
use super::{DiskTier, Inner};
use crate::identity::BlockKey;
use crate::tier::{StoreError, Stored, digest};

impl DiskTier {
    /// Writes blocks, evicting those that were used longest ago; the outcomes are in their order.
    ///
    /// Blocks that follow each other get slots in the order of the file. Each block is held, in
    /// memory, until it was written. A block that fails cannot be found, nor can the one that it
    /// replaced; others are not concerned. No more than [`in_flight`](super::DiskConfig::in_flight)
    /// blocks are moved at once, and the call waits, in order, while others have the places.
    ///
    /// # Cancel safety
    /// If it is dropped, blocks that were not written by then are not stored; their slots are free,
    /// and they themselves are dropped, when the kernel is done with them.
    pub async fn store<B>(&self, blocks: Vec<(BlockKey, B)>) -> Vec<Result<Stored, StoreError>>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let (inner, finishing) = (Arc::clone(&self.0), Arc::clone(&self.0));
        // While one half is written, the other gets its slots.
        let wave = inner.in_flight.div_ceil(2);
        let mut rest = blocks.into_iter().enumerate();
        let waves = std::iter::from_fn(move || {
            let wave: Vec<_> = rest.by_ref().take(wave).collect();
            (!wave.is_empty()).then_some(wave)
        });
        let mut outcomes: Vec<_> = stream::iter(waves)
            .then(move |wave| admit(Arc::clone(&inner), wave))
            .flat_map(stream::iter)
            .map(move |(number, admitted)| {
                let inner = Arc::clone(&finishing);
                async move {
                    let started = SystemClock.now();
                    let outcome = inner.store_admitted(admitted).await;
                    inner.count_stored(&outcome, SystemClock.now() - started);
                    (number, outcome)
                }
            })
            .buffer_unordered(self.0.in_flight)
            .collect()
            .await;
        outcomes.sort_unstable_by_key(|(number, _)| *number);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

/// A block that has its place among what is in flight.
enum Admitted<B> {
    Done(Result<Stored, StoreError>),
    Wait { ended: watch::Receiver<()>, permit: OwnedSemaphorePermit, key: BlockKey, block: B },
    Write { writing: Writing, key: BlockKey, block: B },
}

/// A block that has its slot.
struct Writing {
    hold: Hold,
    generation: u64,
    era: u64,
}

/// Waits for places for some blocks, and begins to store those.
async fn admit<B: AsRef<[u8]>>(
    inner: Arc<Inner>,
    wave: Vec<(usize, (BlockKey, B))>,
) -> Vec<(usize, Admitted<B>)> {
    let count = u32::try_from(wave.len()).unwrap_or(u32::MAX);
    let Ok(mut permits) = Arc::clone(&inner.room).acquire_many_owned(count).await else {
        let closed = |(number, _)| (number, Admitted::Done(Err(StoreError::Closed)));
        return wave.into_iter().map(closed).collect();
    };
    let expected = inner.geometry.block_bytes;
    let (mut admitted, mut sound) = (Vec::with_capacity(wave.len()), Vec::new());
    for (number, (key, block)) in wave {
        match block.as_ref().len() {
            found if found == expected => sound.push((number, key, block)),
            found => {
                let error = StoreError::Length { expected, found };
                admitted.push((number, Admitted::Done(Err(error))));
            }
        }
    }
    let identities: Vec<_> = sound.iter().map(|(_, key, _)| key.identity).collect();
    let begun = inner.shared.index().begin(&identities);
    for ((number, key, block), begun) in sound.into_iter().zip(begun) {
        let permit = permits.split(1);
        admitted.push((number, inner.admitted(begun, permit, (key, block))));
    }
    admitted
}

impl Inner {
    fn admitted<B>(
        &self,
        begun: Begun,
        permit: Option<OwnedSemaphorePermit>,
        (key, block): (BlockKey, B),
    ) -> Admitted<B> {
        match (begun, permit) {
            (Begun::Writing(ended), Some(permit)) => Admitted::Wait { ended, permit, key, block },
            (Begun::Slot(start), Some(permit)) => {
                Admitted::Write { writing: self.writing(start, permit, &key), key, block }
            }
            (Begun::Present, _) => Admitted::Done(Ok(Stored::Present)),
            (_, _) => Admitted::Done(Err(StoreError::Busy)),
        }
    }

    fn writing(&self, start: Start, permit: OwnedSemaphorePermit, key: &BlockKey) -> Writing {
        let Start { slot, generation, era, ended } = start;
        let hold = self.hold(slot, permit).writing(key.identity, generation, ended);
        Writing { hold, generation, era }
    }

    async fn store_admitted<B>(&self, admitted: Admitted<B>) -> Result<Stored, StoreError>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        match admitted {
            Admitted::Done(outcome) => outcome,
            Admitted::Write { writing, key, block } => self.write(writing, key, block).await,
            Admitted::Wait { ended, permit, key, block } => {
                self.wait_or_write(ended, permit, (key, block)).await
            }
        }
    }

    /// Waits for another store of the block, and stores it if that did not.
    async fn wait_or_write<B>(
        &self,
        mut ended: watch::Receiver<()>,
        permit: OwnedSemaphorePermit,
        (key, block): (BlockKey, B),
    ) -> Result<Stored, StoreError>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        loop {
            // Nothing is ever sent: it fails when the other one has ended.
            while ended.changed().await.is_ok() {}
            let begun = self.shared.index().begin(&[key.identity]).pop();
            match begun {
                Some(Begun::Writing(next)) => ended = next,
                Some(Begun::Present) => return Ok(Stored::Present),
                Some(Begun::Slot(start)) => {
                    let writing = self.writing(start, permit, &key);
                    return self.write(writing, key, block).await;
                }
                Some(Begun::Busy) | None => return Err(StoreError::Busy),
            }
        }
    }

    /// Writes the block, then its record, then makes it findable.
    async fn write<B>(
        &self,
        Writing { hold, generation, era }: Writing,
        key: BlockKey,
        block: B,
    ) -> Result<Stored, StoreError>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let hashed = self.hash(move || (digest(&key.identity, block.as_ref()), block)).await;
        let Some((digest, block)) = hashed else { return Err(StoreError::Closed) };
        let (slot, place) = (hold.slot(), self.place(hold.slot()));
        let held = Held { bytes: block, hold };
        let (written, held) = self.files.write(&self.blocks, &[place], held).await;
        written?;
        let Some(Held { bytes, hold }) = held else { return Err(StoreError::Closed) };
        let record = Record { key, generation, digest };
        let hold = self.write_record(hold, record.encode(slot, era, &self.geometry)).await?;
        let Some(hold) = hold else { return Err(StoreError::Closed) };
        let is_there = self.shared.index().commit(slot, record);
        // Whoever looks for the block finds it here or there.
        drop(bytes);
        if is_there {
            return Ok(Stored::Written);
        }
        // It was removed, and so must be what is on the disk; a clear has seen to that already.
        match self.erase(hold).await {
            Err(error) if error.kind() != ErrorKind::Closed => Err(error.into()),
            _ => Err(StoreError::Removed),
        }
    }

    fn count_stored(&self, outcome: &Result<Stored, StoreError>, elapsed: Duration) {
        let bytes = self.geometry.block_bytes as u64;
        self.shared.index().count(|stats| match outcome {
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
