use std::fmt;
use std::sync::{Arc, Weak};

use dynamo_core::protocol::Tier;
use dynamo_core::{Context, Engine, Error, ErrorKind, ResponseStream, Result};
use dynamo_transfer::{Agent, Grant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::OwnerConfig;
use super::feed::Feed;
use super::lease::{Held, Leases, Part, Room};
use super::message::{Answer, Ask, Digest, LeaseId, Lent, MATCH_MAX, Place, Request, Told, Wanted};
use super::stats::{Counters, OwnerStats};
use crate::block::{MutableBlock, RegisteredBlock};
use crate::identity::BlockKey;
use crate::manager::BlockManager;
use crate::tier::{Loaded, digest};

/// Lends the blocks of a manager, and of the tiers below it, to other processes; cheap to clone.
///
/// It is an [`Engine`]: serve it at an endpoint. It owns one task, which ends leases at their time;
/// [`shutdown`](Self::shutdown) joins it, and that, or dropping the last clone, ends every lease.
#[derive(Clone)]
pub struct Owner(Arc<Inner>);

pub(super) struct Inner {
    agent: Agent,
    pub(super) manager: BlockManager,
    pub(super) config: OwnerConfig,
    leases: Arc<Leases>,
    pub(super) feed: Arc<Feed>,
    counters: Counters,
    /// The task, and blocks that are hashed on threads.
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl Owner {
    /// Lends the blocks of `manager`, whose memory `agent` lets clients reach.
    ///
    /// What is asked for and not in memory comes up from the manager's tiers, if it has any; what
    /// clients store goes down to them as anything else does. Fails with
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if a limit is 0 or a time longer than a day, or the
    /// blocks are in device memory: lend those of the manager below.
    ///
    /// Clients are told what the manager has by the owner that was made of it last.
    ///
    /// Whoever may write a block sees what was there before, unless the manager is set up
    /// [`with_zero_on_allocate`](crate::ManagerConfig::with_zero_on_allocate).
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn new(agent: Agent, manager: BlockManager, config: OwnerConfig) -> Result<Self> {
        config.check()?;
        if manager.tier() == Tier::Device {
            return Err(Error::invalid("blocks in device memory, lent to peers"));
        }
        let leases = Arc::new(Leases::new(config.clone()));
        let feed = Arc::new(Feed::new(config.watchers_max)?);
        // The manager does not keep an owner that is gone.
        let told = Arc::downgrade(&feed);
        manager.pool().watch(Box::new(move |change, keys| {
            if let Some(feed) = told.upgrade() {
                feed.publish(change, keys);
            }
        }));
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let (expiring, stop) = (Arc::clone(&leases), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = expiring.expire() => {}
            }
            expiring.close();
        });
        let _shutdown_on_drop = shutdown.clone().drop_guard();
        Ok(Self(Arc::new(Inner {
            agent,
            manager,
            config,
            leases,
            feed,
            counters: Counters::default(),
            tasks,
            shutdown,
            _shutdown_on_drop,
        })))
    }

    /// Returns how many blocks are lent at this moment, those that are still moving after their lease
    /// among them.
    pub fn lent_blocks(&self) -> usize {
        self.0.leases.blocks()
    }

    /// Returns what is lent, and what leases have come to so far.
    pub fn stats(&self) -> OwnerStats {
        self.0.stats()
    }

    /// Returns whose leases are counted where.
    pub(crate) fn counted(&self) -> (&str, Counted) {
        (self.0.agent.name(), Counted(Arc::downgrade(&self.0)))
    }

    /// Ends every lease, refuses others, and joins the task.
    ///
    /// # Cancel safety
    /// Cancel safe; the leases end all the same.
    pub async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.leases.close();
        self.0.feed.close();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Engine for Owner {
    type Request = Request;
    type Response = Answer;

    async fn generate(&self, ctx: Context, request: Request) -> Result<ResponseStream<Answer>> {
        if let Ask::Watch { fingerprint, beat_ms } = request.0 {
            self.0.check_layout(fingerprint)?;
            return self.0.watch(&ctx, beat_ms);
        }
        let told = ctx.bound(self.0.answer(request.0)).await?;
        Ok(ResponseStream::from_items(&ctx, [Answer(told)]))
    }
}

/// What an owner has come to, as long as there is one.
pub(crate) struct Counted(Weak<Inner>);

impl Counted {
    pub(crate) fn stats(&self) -> Option<OwnerStats> {
        Some(self.0.upgrade()?.stats())
    }
}

impl Inner {
    fn stats(&self) -> OwnerStats {
        let leases = OwnerStats { watchers: self.feed.watchers(), ..self.leases.stats() };
        self.counters.read(leases)
    }

    async fn answer(&self, ask: Ask) -> Result<Told> {
        match ask {
            Ask::Match { fingerprint, mut keys } => {
                self.check_layout(fingerprint)?;
                keys.truncate(MATCH_MAX);
                let count = self.manager.probe(&keys).await;
                Ok(Told::Matched(u32::try_from(count).unwrap_or(u32::MAX)))
            }
            Ask::Borrow(wanted) => self.lend(wanted).await,
            Ask::Reserve(wanted) => self.reserve(&wanted).await,
            Ask::Commit { lease, digests } => self.commit(lease, digests).await,
            Ask::Release(lease) => {
                self.release(lease).await;
                Ok(Told::Released)
            }
            Ask::Remove { fingerprint, keys } => {
                self.check_layout(fingerprint)?;
                self.remove(&keys).await
            }
            Ask::Clear { fingerprint } => {
                self.check_layout(fingerprint)?;
                self.clear().await
            }
            Ask::Watch { .. } => Err(Error::internal("it is answered by a stream")),
        }
    }

    /// Holds what is there, for a client to read.
    async fn lend(&self, wanted: Wanted) -> Result<Told> {
        if let Some(too_many) = self.too_many(&wanted) {
            return Ok(too_many);
        }
        let room = self.admit(&wanted)?;
        // The first run may come up from below; behind it, what is in memory is there.
        let up = self.manager.acquire(&wanted.keys).await.blocks;
        let rest = self.held(&wanted.keys[up.len()..]);
        let mut room = room.into_iter();
        let hold = |block: Option<RegisteredBlock>| Some(room.next()?.hold(block?));
        let held = up.into_iter().map(Some).chain(rest).map(hold).collect();
        let (blocks, parts) = self.digests(held).await?;
        if parts.is_empty() {
            return Ok(Told::Lent { blocks, lent: None });
        }
        let region = self.agent.register(parts).map_err(refused)?;
        let grant = region.grant().read_only();
        let lent = self.begin(grant, Held::Read { region })?;
        Ok(Told::Lent { blocks, lent: Some(lent) })
    }

    /// Allocates what is not there, for a client to write.
    async fn reserve(&self, wanted: &Wanted) -> Result<Told> {
        if let Some(too_many) = self.too_many(wanted) {
            return Ok(too_many);
        }
        let room = self.admit(wanted)?;
        let held = self.held(&wanted.keys);
        let missing = held.iter().filter(|held| held.is_none()).count();
        let mut open = self.manager.pool().reserve_up_to(missing).await.into_iter().zip(room);
        let (mut parts, mut keys) = (Vec::new(), Vec::new());
        let mut place = |held: &Option<RegisteredBlock>, key: &BlockKey| {
            if held.is_some() {
                return Place::Present;
            }
            let Some((block, room)) = open.next() else { return Place::None };
            parts.push(room.hold(block));
            keys.push(*key);
            Place::Open
        };
        let blocks = held.iter().zip(&wanted.keys).map(|(held, key)| place(held, key)).collect();
        if parts.is_empty() {
            return Ok(Told::Reserved { blocks, lent: None });
        }
        let region = self.agent.register_peer_writable(parts).map_err(refused)?;
        let lent = self.begin(region.grant(), Held::Write { region, keys })?;
        Ok(Told::Reserved { blocks, lent: Some(lent) })
    }

    /// Takes back what a client has written, and shares what has its digest.
    async fn commit(&self, id: LeaseId, digests: Vec<Digest>) -> Result<Told> {
        let lease = self.leases.take(&id);
        let Some(Held::Write { region, keys }) = lease.map(|lease| lease.held) else {
            let message = format!("{id:?} of blocks to write has ended");
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        if digests.len() != keys.len() {
            let message = format!("{} digests of {} blocks", digests.len(), keys.len());
            return Err(Error::invalid(message));
        }
        // Revoked: nothing is written from here on, and what is being written ends first.
        let parts = tokio::time::timeout(self.config.ttl, region.close()).await.map_err(|_| {
            Error::new(ErrorKind::DeadlineExceeded, format!("{id:?} is still being written"))
        })?;
        // What holds them counts until they are shared, or free.
        let verify = move || -> Vec<_> {
            let blocks = parts.into_iter().zip(keys).zip(digests);
            let verify = |((part, key), digest): ((Part<MutableBlock>, _), _)| {
                let (block, room) = part.into_parts();
                (Loaded::verify(key, &digest, block).ok(), room)
            };
            blocks.map(verify).collect()
        };
        let (verified, _room): (Vec<_>, Vec<_>) = self.blocking(verify).await?.into_iter().unzip();
        let outcomes: Vec<_> = verified.iter().map(Option::is_some).collect();
        Counters::add(&self.counters.committed, 1);
        Counters::add(&self.counters.damaged, outcomes.iter().filter(|whole| !**whole).count());
        let complete = verified.into_iter().flatten().map(Loaded::complete).collect();
        drop(self.manager.register_all(complete));
        Ok(Told::Committed(outcomes))
    }

    /// Ends a lease; whoever is told so finds its room free.
    async fn release(&self, id: LeaseId) {
        let Some(lease) = self.leases.take(&id) else { return };
        Counters::add(&self.counters.released, 1);
        let closed = async {
            match lease.held {
                Held::Read { region } => drop(region.close().await),
                Held::Write { region, .. } => drop(region.close().await),
            }
        };
        // What moves for longer is free when it is quiet.
        let _ = tokio::time::timeout(self.config.ttl, closed).await;
    }

    fn check_layout(&self, theirs: u64) -> Result<()> {
        let fingerprint = self.manager.layout().fingerprint();
        if theirs == fingerprint {
            return Ok(());
        }
        let message = format!("blocks of layout {theirs:016x} of an owner of {fingerprint:016x}");
        Err(Error::invalid(message))
    }

    /// Tells how many blocks a lease may be about, if it is fewer.
    fn too_many(&self, wanted: &Wanted) -> Option<Told> {
        let limit = self.leases.lease_blocks_max();
        let limit = Some(limit).filter(|limit| wanted.keys.len() > *limit)?;
        Some(Told::TooMany(u32::try_from(limit).unwrap_or(u32::MAX)))
    }

    fn admit(&self, wanted: &Wanted) -> Result<Vec<Room>> {
        self.check_layout(wanted.fingerprint)?;
        self.leases.admit(wanted.client, wanted.keys.len())
    }

    fn begin(&self, grant: Grant, held: Held) -> Result<Lent> {
        let lease = LeaseId::random()?;
        let metadata = self.agent.metadata([grant.with_ttl(self.config.ttl)]).map_err(refused)?;
        self.leases.insert(lease, held)?;
        let ttl_ms = u64::try_from(self.config.ttl.as_millis()).unwrap_or(u64::MAX);
        Ok(Lent { lease, ttl_ms, metadata })
    }

    /// Returns each block that is in memory.
    fn held(&self, keys: &[BlockKey]) -> Vec<Option<RegisteredBlock>> {
        let mut held = Vec::with_capacity(keys.len());
        while held.len() < keys.len() {
            let run = self.manager.pool().find_prefix(&keys[held.len()..]);
            if run.is_empty() {
                held.push(None);
            }
            held.extend(run.into_iter().map(Some));
        }
        held
    }

    /// Computes what proves each block; returns those that are there.
    async fn digests(
        &self,
        held: Vec<Option<Part<RegisteredBlock>>>,
    ) -> Result<(Vec<Option<Digest>>, Vec<Part<RegisteredBlock>>)> {
        let work = move || {
            let digest = |part: &Part<RegisteredBlock>| digest(part.block.identity(), &part.block);
            let digests = held.iter().map(|part| part.as_ref().map(digest)).collect();
            (digests, held.into_iter().flatten().collect())
        };
        self.blocking(work).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let done = self.tasks.spawn_blocking(work).await;
        done.map_err(|error| Error::internal("hashing blocks").with_source(error))
    }
}

/// Says why the agent does not lend memory.
fn refused(error: dynamo_transfer::Error) -> Error {
    let kind = match error.kind() {
        dynamo_transfer::ErrorKind::Overloaded => ErrorKind::Overloaded,
        dynamo_transfer::ErrorKind::Closed => ErrorKind::Closed,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, "lending blocks").with_source(error)
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner")
            .field("agent", &self.0.agent)
            .field("lent_blocks", &self.lent_blocks())
            .finish_non_exhaustive()
    }
}
