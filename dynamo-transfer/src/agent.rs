use std::borrow::Borrow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::backend::MemoryFabric;
use crate::backend::cuda::{DeviceBuffer, DeviceCopier};
#[cfg(unix)]
use crate::backend::file::{FileRegion, FileStore};
#[cfg(target_os = "linux")]
use crate::backend::shm;
use crate::backend::stage::Bounces;
use crate::backend::tcp::TcpServer;
use crate::config::AgentConfig;
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::{Grant, RegionTable, RegisteredRegion, Right, Rights, random};
use crate::peer::metadata::{self, GrantedRegion};
use crate::peer::{PeerAddress, RemoteAgent, ShmAddress};
use crate::transfer::{
    Initiator, Keeper, Notifications, Request, Transfer, TransferEstimate, TransferOptions,
    TransferStats, Ways,
};

/// One process's end of the transfer engine; cheap to clone.
///
/// It owns its tasks: [`shutdown`](Self::shutdown) ends and joins them, dropping the last clone
/// ends them.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    inbound: Arc<Inbound>,
    address: PeerAddress,
    notifications: Mutex<Option<Notifications>>,
    initiator: Arc<Initiator>,
    fabric: MemoryFabric,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl Agent {
    /// Starts an agent, with a fresh incarnation.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a bad config and
    /// [`BackendUnavailable`](ErrorKind::BackendUnavailable) if it cannot listen.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(config: AgentConfig) -> Result<Self> {
        config.validate()?;
        let (sender, receiver) = mpsc::channel(config.notifications_max);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let inbound = Arc::new(Inbound {
            name: config.name.clone(),
            incarnation: random()?,
            regions: Arc::new(RegionTable::new()?),
            bounces: Bounces::new(SERVED_BYTES, BOUNCES, &tasks),
            notifications: sender,
        });
        let shutdown_on_drop = shutdown.clone().drop_guard();
        let bound = match config.tcp_listen {
            None => None,
            Some(address) => Some(TcpServer::start(address, &inbound, &tasks, &shutdown).await?),
        };
        // An agent reaches itself, whether it has joined a fabric or not.
        let fabric = config.fabric.clone().unwrap_or_default();
        fabric.join(&inbound);
        let ways = Ways::start(&config, &fabric, &inbound, &tasks, &shutdown).await?;
        let address = PeerAddress {
            incarnation: inbound.incarnation,
            fabric: config.fabric.as_ref().map(MemoryFabric::id),
            tcp: config.advertised(bound),
            shm: if config.shm { Some(share(&inbound, &tasks, &shutdown)?) } else { None },
            ucx: ways.ucx_address(),
            name: config.name,
        };
        let initiator = Initiator {
            regions: Arc::clone(&inbound.regions),
            ways,
            bounces: Bounces::new(BOUNCE_BYTES, BOUNCES, &tasks),
            transfer_deadline: config.transfer_deadline,
            room: Arc::new(Semaphore::new(config.transfers_max.min(Semaphore::MAX_PERMITS))),
            counters: Arc::default(),
            keeper: Keeper::start(&tasks, &shutdown),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        Ok(Self(Arc::new(Inner {
            initiator: Arc::new(initiator),
            inbound,
            address,
            notifications: Mutex::new(Some(Notifications::new(receiver, shutdown.clone()))),
            fabric,
            tasks,
            shutdown,
            _shutdown_on_drop: shutdown_on_drop,
        })))
    }

    /// Returns the agent's name.
    pub fn name(&self) -> &str {
        &self.0.address.name
    }

    /// Returns the agent's incarnation: a random number per start.
    pub fn incarnation(&self) -> u64 {
        self.0.address.incarnation
    }

    /// Returns what this agent's transfers have come to so far, and how many regions it has.
    pub fn stats(&self) -> TransferStats {
        self.0.initiator.counters.read(self.0.inbound.regions.count())
    }

    /// Registers memory that this agent and its peers may read: the concatenation of `segments`.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded) at the limit of regions.
    pub fn register<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        RegisteredRegion::read_only(&self.0.inbound.regions, segments)
    }

    /// Registers memory that this agent may read and write, and its peers may read.
    ///
    /// Fails like [`register`](Self::register).
    pub fn register_mut<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsMut<[u8]> + Send + Sync + 'static,
    {
        RegisteredRegion::writable(&self.0.inbound.regions, segments, Rights::OwnerWrites)
    }

    /// Registers memory that this agent and its peers may read and write.
    ///
    /// Fails like [`register`](Self::register).
    pub fn register_peer_writable<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsMut<[u8]> + Send + Sync + 'static,
    {
        RegisteredRegion::writable(&self.0.inbound.regions, segments, Rights::PeersWrite)
    }

    /// Registers a file, which `store` reads and writes: it stays its giver's to shut down, after the
    /// region is closed.
    ///
    /// Fails with [`PermissionDenied`](ErrorKind::PermissionDenied) if somebody is to write a file that is
    /// opened for reading, and like [`register`](Self::register).
    ///
    /// ```
    /// use dynamo_transfer::file::{FileOptions, FileRegion, FileStore, FileStoreConfig};
    /// use dynamo_transfer::{Agent, AgentConfig, BackendKind, Rights, TransferOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> dynamo_transfer::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("dynamo-region-{}", std::process::id()));
    /// let agent = Agent::start(AgentConfig::default()).await?;
    /// let store = FileStore::start(FileStoreConfig::default())?;
    /// let file = FileRegion::create(&path, 1 << 20, FileOptions::default())?;
    /// let blocks = agent.register_file(&store, file, Rights::PeersWrite)?;
    /// let memory = agent.register(vec![vec![7u8; 4096]])?;
    /// // To itself, as to any peer.
    /// let own = agent.load_metadata(&agent.metadata([blocks.grant()])?)?;
    /// let (from, to) = (memory.descriptor([(0, 4096)])?, own.regions()[0].descriptor([(8192, 4096)])?);
    /// let report = agent.write(from, to, TransferOptions::default()).await?;
    /// assert_eq!((report.bytes, report.backend), (4096, BackendKind::File));
    /// # std::fs::remove_file(path).ok();
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(unix)]
    pub fn register_file(
        &self,
        store: &FileStore,
        file: FileRegion,
        rights: Rights,
    ) -> Result<RegisteredRegion<FileRegion>> {
        RegisteredRegion::file(&self.0.inbound.regions, store, file, rights)
    }

    /// Registers memory of a device, which `copier` drives: the concatenation of `buffers`. The copier
    /// stays its giver's to shut down, after the region is closed and this agent has shut down.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if a buffer is of another device, and
    /// like [`register`](Self::register).
    pub fn register_device<B>(
        &self,
        copier: &DeviceCopier,
        buffers: Vec<B>,
        rights: Rights,
    ) -> Result<RegisteredRegion<B>>
    where
        B: Borrow<DeviceBuffer> + Send + Sync + 'static,
    {
        RegisteredRegion::device(&self.0.inbound.regions, copier, buffers, rights)
    }

    /// Returns this agent's metadata with grants of regions, in this order: whoever holds it may use them.
    ///
    /// [`read_only`](Grant::read_only) and [`with_ttl`](Grant::with_ttl) grant less than what a region
    /// was registered for. Fails with [`StaleRegion`](ErrorKind::StaleRegion) if one is revoked, or not
    /// of this agent.
    pub fn metadata(&self, grants: impl IntoIterator<Item = Grant>) -> Result<Bytes> {
        let granted = |grant: Grant| {
            let (token, len, kind) = self.0.inbound.regions.grant(grant)?;
            Ok(GrantedRegion { id: grant.id, token, len, kind })
        };
        let grants = grants.into_iter().map(granted).collect::<Result<Vec<_>>>()?;
        Ok(metadata::encode(&self.0.address, &grants))
    }

    /// Decodes a peer's metadata; fails with [`Protocol`](ErrorKind::Protocol) on bad bytes.
    ///
    /// The agent keeps nothing of it: what is returned is forgotten by dropping it, and what leads to
    /// the peer ends when it has been idle for half a minute. The peer takes back what it granted by
    /// closing the region, by the grant's time to live, or by ending: from then on it refuses as
    /// [`StaleRegion`](ErrorKind::StaleRegion) or [`PermissionDenied`](ErrorKind::PermissionDenied).
    pub fn load_metadata(&self, bytes: &[u8]) -> Result<RemoteAgent> {
        metadata::decode(bytes)
    }

    /// Posts a read: fills `local` with the bytes of `remote`, range after range.
    ///
    /// Ranges of `local` must not overlap each other. The transfer fails with
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if the two sides differ in size or `local` is of
    /// another agent, with [`Overloaded`](ErrorKind::Overloaded) at the limit of transfers, and with the
    /// kinds that tell why this agent, the owner or the way between them refused it.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn read(
        &self,
        local: LocalDescriptor,
        remote: RemoteDescriptor,
        options: TransferOptions,
    ) -> Transfer {
        self.post(Right::Read, local, remote, options)
    }

    /// Posts a write: fills `remote` with the bytes of `local`, range after range.
    ///
    /// Fails like [`read`](Self::read).
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn write(
        &self,
        local: LocalDescriptor,
        remote: RemoteDescriptor,
        options: TransferOptions,
    ) -> Transfer {
        self.post(Right::Write, local, remote, options)
    }

    /// Estimates what a transfer between `local` and `remote` would take, in either direction: by a model
    /// of the backend it would go by (so much for a transfer, a range, a byte), scaled by how this
    /// agent's latest transfers by that backend compared to it.
    ///
    /// Fails with [`BackendUnavailable`](ErrorKind::BackendUnavailable) if nothing reaches the peer, and
    /// with [`StaleRegion`](ErrorKind::StaleRegion) if `local` is of a region that is closed.
    pub fn estimate(
        &self,
        local: &LocalDescriptor,
        remote: &RemoteDescriptor,
    ) -> Result<TransferEstimate> {
        self.0.initiator.estimate(local, remote)
    }

    /// Sends a notification that goes with no transfer; at most 64 KiB.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded) at the limit of transfers, of which it is one
    /// meanwhile, or if its receiver does not read, with [`Closed`](ErrorKind::Closed) once this agent has
    /// shut down, and with the kinds that tell why the peer or the way there refused it.
    ///
    /// # Cancel safety
    /// If the future is dropped the notification may or may not arrive.
    pub async fn notify(&self, peer: &RemoteAgent, payload: Bytes) -> Result<()> {
        let notified = self.0.initiator.notify(&peer.address, payload);
        match tokio::time::timeout(self.0.initiator.transfer_deadline, notified).await {
            Ok(result) => result,
            Err(_) => Err(overdue(peer.name())),
        }
    }

    /// Takes the stream of notifications; fails with [`InvalidArgument`](ErrorKind::InvalidArgument)
    /// the second time.
    pub fn notifications(&self) -> Result<Notifications> {
        let mut slot = self.0.notifications.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take().ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "notifications are taken already")
        })
    }

    /// Ends transfers and connections, and waits for the agent's tasks.
    ///
    /// # Cancel safety
    /// Cancel safe; the tasks end all the same.
    pub async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        self.0.fabric.leave(self.incarnation());
        self.0.inbound.bounces.close();
        self.0.initiator.bounces.close();
        self.0.tasks.wait().await;
        self.0.initiator.ways.shutdown().await;
    }

    fn post(
        &self,
        right: Right,
        local: LocalDescriptor,
        remote: RemoteDescriptor,
        options: TransferOptions,
    ) -> Transfer {
        self.0.initiator.post(Request { right, local, remote, options })
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("address", &self.0.address).finish_non_exhaustive()
    }
}

/// Lets processes of this host reach the agent.
#[cfg(target_os = "linux")]
fn share(
    inbound: &Arc<Inbound>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<ShmAddress> {
    shm::ShmServer::start(inbound, tasks, shutdown)
}

#[cfg(not(target_os = "linux"))]
fn share(_: &Arc<Inbound>, _: &TaskTracker, _: &CancellationToken) -> Result<ShmAddress> {
    Err(Error::new(ErrorKind::BackendUnavailable, "this system does not share memory"))
}

/// What passes through host memory goes in pieces of this: a device or a disk is at its full speed.
const BOUNCE_BYTES: usize = 4 << 20;

/// As much as a peer asks for at once.
const SERVED_BYTES: usize = 1 << 20;

/// Transfers that move at once over bounce buffers have two each; more of them wait.
const BOUNCES: usize = 16;

fn overdue(peer: &str) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the peer did not answer in time").with_peer(peer)
}
