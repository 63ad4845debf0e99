//! One batch of blocks, from or to the owner.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{RegisteredRegion, TransferOptions};
use tokio::time::Instant;

use super::client::{Inner, unexpected};
use super::loan::Loan;
use super::message::{Ask, Digest, Place, Told};
use crate::block::MutableBlock;
use crate::identity::BlockKey;
use crate::tier::{Loaded, Miss, MissReason, Outgoing, StoreError, Stored, digest};

type LoadedBlock = Result<Loaded<MutableBlock>, Miss<MutableBlock>>;
type StoredBlock = Result<Stored, StoreError>;

/// Why a batch failed: the same for all of its blocks.
type Cause = Arc<dyn StdError + Send + Sync>;

impl Inner {
    pub(super) async fn load_batch(
        self: Arc<Self>,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<LoadedBlock> {
        let begun = Instant::now();
        let (mut outcomes, mut rest) = (Vec::with_capacity(targets.len()), targets);
        while !rest.is_empty() {
            let later = rest.split_off(self.lease_of(rest.len()));
            match self.borrow_and_read(rest).await {
                Ok(read) => (outcomes, rest) = (extended(outcomes, read), later),
                Err(all) => rest = extended(all, later),
            }
        }
        let hits = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        let mut stats = self.stats();
        stats.hits_total += hits;
        stats.misses_total += outcomes.len() as u64 - hits;
        stats.read_bytes_total += hits * self.block_bytes as u64;
        // All of them took as long as the batch did.
        stats.load_time_total += begun.elapsed() * u32::try_from(hits).unwrap_or(u32::MAX);
        outcomes
    }

    /// Returns how many of so many blocks one lease can be about.
    fn lease_of(&self, blocks: usize) -> usize {
        self.lease_blocks.load(Ordering::Relaxed).min(blocks)
    }

    /// Takes note of how many blocks the owner lends at once, if it makes sense.
    fn learn(&self, limit: u32, asked: usize) -> bool {
        let limit = limit as usize;
        let is_sound = (1..asked).contains(&limit);
        if is_sound {
            self.lease_blocks.fetch_min(limit, Ordering::Relaxed);
        }
        is_sound
    }

    /// Loads blocks under one lease; fails with them if the owner lends fewer at once.
    async fn borrow_and_read(
        self: &Arc<Self>,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Result<Vec<LoadedBlock>, Vec<(BlockKey, MutableBlock)>> {
        let expected = self.block_bytes;
        if let Some(found) =
            targets.iter().map(|(_, target)| target.len()).find(|len| *len != expected)
        {
            return Ok(missed(targets, || MissReason::Length { expected, found }));
        }
        let begun = Instant::now();
        let keys = targets.iter().map(|(key, _)| *key).collect();
        let told = self.ask(Ask::Borrow(self.wanted(keys)), self.config.request_timeout).await;
        let (digests, loan) = match told {
            Ok(Told::Lent { blocks, lent }) => {
                (blocks, lent.map(|lent| Loan::new(self, lent, begun)))
            }
            Ok(Told::TooMany(limit)) if self.learn(limit, targets.len()) => return Err(targets),
            Ok(_) => return Ok(failed(targets, unexpected())),
            Err(error) => return Ok(failed(targets, error)),
        };
        let loan = match loan {
            _ if digests.len() != targets.len() => return Ok(failed(targets, unexpected())),
            Some(loan) => loan,
            None if digests.iter().all(Option::is_none) => {
                return Ok(missed(targets, || MissReason::Absent));
            }
            None => return Ok(failed(targets, unexpected())),
        };
        let mut here = Vec::new();
        let mut wanted = Vec::new();
        let absent: Vec<_> = targets
            .into_iter()
            .zip(digests)
            .map(|((key, target), digest)| match digest {
                Some(digest) => {
                    here.push(target);
                    wanted.push((key, digest));
                    None
                }
                None => Some(Miss { reason: MissReason::Absent, target: Some(target) }),
            })
            .collect();
        let read = self.read(loan, wanted, here).await;
        let mut read = read.into_iter();
        let next = |absent: Option<_>| absent.map_or_else(|| read.next(), |miss| Some(Err(miss)));
        Ok(absent.into_iter().filter_map(next).collect())
    }

    /// Fills targets with the blocks of a lease, all of them, and proves each.
    async fn read(
        &self,
        loan: Loan,
        wanted: Vec<(BlockKey, Digest)>,
        targets: Vec<MutableBlock>,
    ) -> Vec<LoadedBlock> {
        let bytes = (targets.len() * self.block_bytes) as u64;
        let target = match self.agent.register_mut(targets) {
            Ok(target) => target,
            Err(error) => return gone(wanted.len(), error),
        };
        let moved = async {
            let remote = loan.region()?.descriptor([(0, bytes)])?;
            let options = TransferOptions::default().with_deadline(loan.left());
            self.agent.read(target.descriptor([(0, bytes)])?, remote, options).await?;
            Ok::<_, Box<dyn StdError + Send + Sync>>(())
        };
        let moved = moved.await;
        let (targets, ()) = tokio::join!(self.reclaim(target), loan.end());
        let Some(targets) = targets else {
            return gone(wanted.len(), io::Error::from(io::ErrorKind::TimedOut));
        };
        if let Err(error) = moved {
            let keys = wanted.into_iter().map(|(key, _)| key);
            return failed(keys.zip(targets).collect(), error);
        }
        let count = targets.len();
        let verify = move || {
            let blocks = wanted.into_iter().zip(targets);
            blocks.map(|((key, digest), target)| Loaded::verify(key, &digest, target)).collect()
        };
        self.tasks.spawn_blocking(verify).await.unwrap_or_else(|error| gone(count, error))
    }

    /// Takes targets back from the transfer engine, in the time that an answer may take.
    async fn reclaim(&self, region: RegisteredRegion<MutableBlock>) -> Option<Vec<MutableBlock>> {
        tokio::time::timeout(self.config.request_timeout, region.close()).await.ok()
    }

    pub(super) async fn store_batch(
        self: Arc<Self>,
        blocks: Vec<(BlockKey, Outgoing)>,
    ) -> Vec<StoredBlock> {
        let begun = Instant::now();
        let (mut outcomes, mut rest) = (Vec::with_capacity(blocks.len()), blocks);
        while !rest.is_empty() {
            let later = rest.split_off(self.lease_of(rest.len()));
            let count = rest.len();
            let stored = self.reserve_and_write(rest).await.unwrap_or_else(|error| {
                let cause: Cause = Arc::new(error);
                let failed = || Err(StoreError::Io(Box::new(Arc::clone(&cause))));
                Ok((0..count).map(|_| failed()).collect())
            });
            match stored {
                Ok(stored) => (outcomes, rest) = (extended(outcomes, stored), later),
                Err(all) => rest = extended(all, later),
            }
        }
        let elapsed = begun.elapsed();
        let mut stats = self.stats();
        for outcome in &outcomes {
            match outcome {
                Ok(Stored::Written) => {
                    stats.stored_total += 1;
                    // All of them took as long as the batch did.
                    stats.store_time_total += elapsed;
                    stats.written_bytes_total += self.block_bytes as u64;
                }
                Ok(_) => {}
                Err(_) => stats.failed_total += 1,
            }
        }
        outcomes
    }

    /// Stores blocks under one lease; gives them back if the owner lends fewer at once.
    async fn reserve_and_write(
        self: &Arc<Self>,
        blocks: Vec<(BlockKey, Outgoing)>,
    ) -> Result<Result<Vec<StoredBlock>, Vec<(BlockKey, Outgoing)>>> {
        let expected = self.block_bytes;
        let lens = blocks.iter().map(|(_, block)| block.as_ref().len());
        if let Some(found) = lens.clone().find(|len| *len != expected) {
            return Ok(Ok(lens.map(|_| Err(StoreError::Length { expected, found })).collect()));
        }
        let begun = Instant::now();
        let keys = blocks.iter().map(|(key, _)| *key).collect();
        let told = self.ask(Ask::Reserve(self.wanted(keys)), self.config.request_timeout).await?;
        let (places, loan) = match told {
            Told::Reserved { blocks: places, lent } => {
                (places, lent.map(|lent| Loan::new(self, lent, begun)))
            }
            Told::TooMany(limit) if self.learn(limit, blocks.len()) => return Ok(Err(blocks)),
            _ => return Err(unexpected()),
        };
        if places.len() != blocks.len() {
            return Err(unexpected());
        }
        let open = blocks.into_iter().zip(&places).filter(|(_, place)| **place == Place::Open);
        let open: Vec<_> = open.map(|(block, _)| block).collect();
        let written = match loan {
            Some(loan) => self.write(loan, open).await?,
            None if open.is_empty() => Vec::new(),
            None => return Err(unexpected()),
        };
        let mut written = written.into_iter();
        let outcome = |place| match place {
            Place::Present => Ok(Stored::Present),
            Place::None => Err(StoreError::Busy),
            Place::Open if written.next() == Some(true) => Ok(Stored::Written),
            Place::Open => {
                let error = Error::new(ErrorKind::Unavailable, "a block changed on its way");
                Err(StoreError::Io(Box::new(error)))
            }
        };
        Ok(Ok(places.into_iter().map(outcome).collect()))
    }

    /// Writes blocks into the region of a lease, and commits them; tells which the owner has taken.
    async fn write(&self, loan: Loan, blocks: Vec<(BlockKey, Outgoing)>) -> Result<Vec<bool>> {
        let count = blocks.len();
        let bytes = (count * self.block_bytes) as u64;
        let hashed = blocks.clone();
        let digests = move || -> Vec<Digest> {
            hashed.iter().map(|(key, block)| digest(&key.identity, block.as_ref())).collect()
        };
        let digests = self.tasks.spawn_blocking(digests);
        let moved = async {
            let blocks = blocks.into_iter().map(|(_, block)| block).collect();
            let source = self.agent.register(blocks).map_err(moving)?;
            let remote = loan.region()?.descriptor([(0, bytes)]).map_err(moving)?;
            let local = source.descriptor([(0, bytes)]).map_err(moving)?;
            let options = TransferOptions::default().with_deadline(loan.left());
            self.agent.write(local, remote, options).await.map_err(moving)
        };
        let (moved, digests) = tokio::join!(moved, digests);
        if let Err(error) = moved {
            loan.end().await;
            return Err(error);
        }
        let digests =
            digests.map_err(|error| Error::internal("hashing blocks").with_source(error))?;
        let taken = loan.commit(digests).await?;
        if taken.len() == count { Ok(taken) } else { Err(unexpected()) }
    }
}

pub(super) fn moving(error: dynamo_transfer::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "moving blocks to a peer").with_source(error)
}

/// Misses of one cause, with their targets.
fn failed(
    targets: Vec<(BlockKey, MutableBlock)>,
    error: impl Into<Box<dyn StdError + Send + Sync>>,
) -> Vec<LoadedBlock> {
    let cause: Cause = error.into().into();
    missed(targets, || MissReason::Io(Box::new(Arc::clone(&cause))))
}

fn missed(
    targets: Vec<(BlockKey, MutableBlock)>,
    reason: impl Fn() -> MissReason,
) -> Vec<LoadedBlock> {
    let miss = |(_, target)| Err(Miss { reason: reason(), target: Some(target) });
    targets.into_iter().map(miss).collect()
}

/// Misses of one cause whose targets are lost, or not free yet.
fn gone(count: usize, error: impl StdError + Send + Sync + 'static) -> Vec<LoadedBlock> {
    let cause: Cause = Arc::new(error);
    let miss = || Err(Miss { reason: MissReason::Io(Box::new(Arc::clone(&cause))), target: None });
    (0..count).map(|_| miss()).collect()
}

fn extended<T>(mut list: Vec<T>, more: Vec<T>) -> Vec<T> {
    list.extend(more);
    list
}
