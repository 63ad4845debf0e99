use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::protocol::{self, InstanceId};
use dynamo_core::{Client, Context, Error, ErrorKind, Result};
use dynamo_transfer::Agent;
use futures::stream::{self, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::PeerConfig;
use super::follow::Follow;
use super::loan::RETURNS_MAX;
use super::message::{Answer, Ask, MATCH_MAX, Request, Told, Wanted};
use super::reach::Reach;
use crate::block::MutableBlock;
use crate::identity::BlockKey;
use crate::layout::RankLayout;
use crate::random::random;
use crate::tier::{Loaded, Miss, Outgoing, Pace, StoreError, Stored, Tier, TierSink, TierStats};

/// Has an [`Owner`](super::Owner)'s blocks as a tier; cheap to clone.
///
/// A batch that has begun goes on if nobody waits for it any more, for as long as its lease lasts, so
/// that the owner has its blocks back early; [`shutdown`](Self::shutdown) waits for that.
#[derive(Clone)]
pub struct PeerTier(Arc<Inner>);

pub(super) struct Inner {
    client: Client<Request, Answer>,
    pub(super) owner: InstanceId,
    pub(super) agent: Agent,
    pub(super) config: PeerConfig,
    id: u64,
    pub(super) fingerprint: u64,
    pub(super) block_bytes: usize,
    /// Places for batches that are under way.
    room: Arc<Semaphore>,
    /// Places for leases that go back by themselves.
    pub(super) returns: Arc<Semaphore>,
    /// Batches, leases that go back, and blocks that are hashed on threads.
    pub(super) tasks: TaskTracker,
    pace: Pace,
    stats: Mutex<TierStats>,
    /// Blocks that the owner lends at once, as far as it has said so.
    pub(super) lease_blocks: AtomicUsize,
    pub(super) reach: Arc<Reach>,
    follow: Arc<Follow>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl PeerTier {
    /// Creates the tier of the blocks of `layout` that instance `owner` of the client's endpoint has;
    /// `agent` moves them. It asks nothing of it yet.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if a limit is 0 or a time longer than
    /// a day.
    pub fn new(
        client: Client<Request, Answer>,
        owner: InstanceId,
        agent: Agent,
        layout: &RankLayout,
        config: PeerConfig,
    ) -> Result<Self> {
        config.check()?;
        let (stop, limit) = (CancellationToken::new(), config.request_timeout);
        let reach = Arc::new(Reach::new(config.match_timeout));
        let follow =
            Follow::new(client.clone(), owner, layout.fingerprint(), limit, Arc::clone(&reach));
        Ok(Self(Arc::new(Inner {
            client,
            owner,
            agent,
            id: u64::from_le_bytes(random()?),
            fingerprint: layout.fingerprint(),
            block_bytes: layout.block_bytes(),
            room: Arc::new(Semaphore::new(config.in_flight.min(Semaphore::MAX_PERMITS))),
            returns: Arc::new(Semaphore::new(RETURNS_MAX)),
            tasks: TaskTracker::new(),
            pace: Pace::new(config.load_time),
            stats: Mutex::default(),
            lease_blocks: AtomicUsize::new(usize::MAX),
            reach,
            follow: Arc::new(follow),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            config,
        })))
    }

    /// Returns how many of the first keys the owner can find without a gap; 0 if it does not say so in
    /// time, or its blocks are of another layout.
    ///
    /// An owner that did not answer in time is asked again after a second, and then less and less often,
    /// each 30 s in the end: it has nothing meanwhile, and nobody waits for it. Any sign of life ends
    /// that.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        self.0.match_prefix(keys).await
    }

    /// Stores blocks at the owner, as far as it has room; the outcomes are in their order.
    ///
    /// # Cancel safety
    /// If it is dropped, batches that have begun are stored, and the others are not.
    pub async fn store(
        &self,
        blocks: Vec<(BlockKey, Outgoing)>,
    ) -> Vec<Result<Stored, StoreError>> {
        self.in_batches(blocks, Inner::store_batch, |_| Err(StoreError::Closed)).await
    }

    /// Fills each target with its block; the outcomes are in their order.
    ///
    /// # Cancel safety
    /// If it is dropped, targets are freed as soon as nothing writes to them.
    pub async fn load(
        &self,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<Result<Loaded<MutableBlock>, Miss<MutableBlock>>> {
        let timing = self.0.pace.begin(targets.len());
        let closed = |(_, target)| {
            Err(Miss { reason: crate::tier::MissReason::Closed, target: Some(target) })
        };
        let outcomes = self.in_batches(targets, Inner::load_batch, closed).await;
        let hits = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        timing.end(hits);
        outcomes
    }

    /// Refuses what comes from now on, and waits until what is under way has ended.
    ///
    /// Fails with [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if that takes longer than `within`.
    ///
    /// # Cancel safety
    /// Cancel safe; what comes is refused all the same. It may be called again.
    pub async fn shutdown(&self, within: Duration) -> Result<()> {
        self.0.room.close();
        self.0.stop.cancel();
        self.0.tasks.close();
        tokio::time::timeout(within, self.0.tasks.wait()).await.map_err(|_| {
            Error::new(ErrorKind::DeadlineExceeded, "blocks on their way from or to a peer")
        })
    }

    /// Has the owner remove blocks; returns how many of them were there.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if the owner does not
    /// [let clients do so](super::OwnerConfig::with_removable), and with [`Conflict`](ErrorKind::Conflict)
    /// if some are in use there, once the others were removed; with [`Closed`](ErrorKind::Closed) after
    /// [`shutdown`](Self::shutdown).
    ///
    /// # Cancel safety
    /// If it is dropped, some may have been removed.
    pub async fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        self.check_open()?;
        let (mut removed, mut outcome) = (0, Ok(()));
        for keys in keys.chunks(MATCH_MAX) {
            let ask = Ask::Remove { fingerprint: self.0.fingerprint, keys: keys.to_vec() };
            match self.0.ask(ask, self.0.config.request_timeout).await {
                Ok(Told::Removed(count)) => removed += keys.len().min(count as usize),
                Ok(_) => outcome = outcome.and(Err(unexpected())),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| removed)
    }

    /// Has the owner remove all blocks that nobody holds there; it fails as [`remove`](Self::remove) does.
    ///
    /// # Cancel safety
    /// If it is dropped, the blocks may have been removed.
    pub async fn clear(&self) -> Result<()> {
        self.check_open()?;
        let ask = Ask::Clear { fingerprint: self.0.fingerprint };
        match self.0.ask(ask, self.0.config.request_timeout).await? {
            Told::Cleared => Ok(()),
            _ => Err(unexpected()),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.0.room.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "a tier of a peer that was shut down"));
        }
        Ok(())
    }

    /// Moves batches one after another, each in a task, a few of them at once.
    async fn in_batches<T, O, F>(
        &self,
        items: Vec<T>,
        work: impl Fn(Arc<Inner>, Vec<T>) -> F,
        closed: impl Fn(T) -> O,
    ) -> Vec<O>
    where
        F: Future<Output = Vec<O>> + Send + 'static,
        O: Send + 'static,
    {
        let size = self.0.config.batch_blocks.min(self.0.lease_blocks.load(Ordering::Relaxed));
        let mut rest = items.into_iter();
        let batches = std::iter::from_fn(|| {
            let batch: Vec<_> = rest.by_ref().take(size).collect();
            (!batch.is_empty()).then_some(batch)
        });
        let (work, closed) = (&work, &closed);
        let moved = stream::iter(batches).map(|batch| async move {
            let Ok(place) = Arc::clone(&self.0.room).acquire_owned().await else {
                return batch.into_iter().map(closed).collect();
            };
            let moving = work(Arc::clone(&self.0), batch);
            let moved = self.0.tasks.spawn(async move {
                let moved = moving.await;
                drop(place);
                moved
            });
            match moved.await {
                Ok(moved) => moved,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        });
        moved
            .buffered(self.0.config.in_flight)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

impl Inner {
    /// Asks the owner, once.
    pub(super) async fn ask(&self, ask: Ask, limit: Duration) -> Result<Told> {
        let ctx = Context::new().with_timeout(limit);
        let mut answers = self.client.direct(self.owner, ctx, Request(ask)).await?;
        match answers.next().await {
            Some(answer) => {
                let told = answer?.0;
                self.reach.heard();
                Ok(told)
            }
            None => Err(unexpected()),
        }
    }

    pub(super) fn wanted(&self, keys: Vec<BlockKey>) -> Wanted {
        Wanted { client: self.id, fingerprint: self.fingerprint, keys }
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, TierStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Tier for PeerTier {
    fn kind(&self) -> protocol::Tier {
        protocol::Tier::Remote
    }

    /// Follows the owner from the first call on, as a task within the runtime: what it has is told as it
    /// is known, and taken back when the owner is gone, restarted or silent.
    fn watch(&self, sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        let (there, is_first) = self.0.follow.watch(sink);
        if is_first {
            let (follow, stop) = (Arc::clone(&self.0.follow), self.0.stop.clone());
            self.0.tasks.spawn(async move {
                stop.run_until_cancelled(follow.run()).await;
                follow.forget();
            });
        }
        there
    }

    async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        Self::match_prefix(self, keys).await
    }

    async fn store(&self, blocks: Vec<(BlockKey, Outgoing)>) -> Vec<Result<Stored, StoreError>> {
        Self::store(self, blocks).await
    }

    async fn load(
        &self,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<Result<Loaded<MutableBlock>, Miss<MutableBlock>>> {
        Self::load(self, targets).await
    }

    async fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        Self::remove(self, keys).await
    }

    async fn clear(&self) -> Result<()> {
        Self::clear(self).await
    }

    fn estimate(&self, blocks: usize) -> Duration {
        self.0.pace.estimate(blocks)
    }

    fn stats(&self) -> TierStats {
        TierStats { blocks: self.0.follow.blocks(), ..*self.0.stats() }
    }

    async fn shutdown(&self, within: Duration) -> Result<()> {
        Self::shutdown(self, within).await
    }
}

impl fmt::Debug for PeerTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTier")
            .field("client", &self.0.client)
            .field("owner", &self.0.owner)
            .finish_non_exhaustive()
    }
}

/// An answer to another question, or none.
pub(super) fn unexpected() -> Error {
    Error::new(ErrorKind::Protocol, "an owner of blocks answers something else")
}
