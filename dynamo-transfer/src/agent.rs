use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

#[cfg(feature = "ucx")]
use crate::backend::Ucx;
use crate::backend::tcp::{TcpClient, TcpServer};
use crate::backend::{Memcpy, MemoryFabric};
use crate::config::AgentConfig;
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{RegionHandle, RegisteredRegion, Right, Rights, Segment, random};
use crate::peer::metadata::{self, RegionGrant};
use crate::peer::{PeerAddress, RemoteAgent};
use crate::transfer::{Initiator, Notifications, Transfer, TransferOptions};

/// One process's end of the transfer engine; cheap to clone.
///
/// It owns its tasks: [`shutdown`](Self::shutdown) ends and joins them, dropping the last clone
/// ends them.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    endpoint: Arc<Endpoint>,
    address: PeerAddress,
    notifications: Mutex<Option<Notifications>>,
    initiator: Arc<Initiator>,
    fabric: Option<MemoryFabric>,
    transfer_deadline: Duration,
    /// Room for transfers that are posted and not settled.
    room: Arc<Semaphore>,
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
        let endpoint = Arc::new(Endpoint {
            name: config.name.clone(),
            incarnation: random()?,
            regions: Arc::default(),
            notifications: sender,
        });
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let shutdown_on_drop = shutdown.clone().drop_guard();
        let bound = match config.tcp_listen {
            None => None,
            Some(address) => Some(TcpServer::start(address, &endpoint, &tasks, &shutdown).await?),
        };
        let tcp = config.tcp_advertise.or(bound).map(|mut address| {
            let port = bound.map_or(0, |bound| bound.port());
            address.set_port(if address.port() == 0 { port } else { address.port() });
            address
        });
        let memcpy = config.fabric.clone().map(|fabric| {
            fabric.join(&endpoint);
            Memcpy { fabric, own: Arc::clone(&endpoint), tasks: tasks.clone() }
        });
        #[cfg(feature = "ucx")]
        let ucx = match &config.ucx {
            Some(ucx) => Some(Ucx::start(ucx, &endpoint, &tasks, &shutdown).await?),
            None => None,
        };
        let address = PeerAddress {
            name: config.name,
            incarnation: endpoint.incarnation,
            fabric: config.fabric.as_ref().map(MemoryFabric::id),
            tcp,
            #[cfg(feature = "ucx")]
            ucx: ucx.as_ref().map(Ucx::address),
            #[cfg(not(feature = "ucx"))]
            ucx: None,
        };
        let tcp = TcpClient::new(Arc::clone(&endpoint));
        Ok(Self(Arc::new(Inner {
            initiator: Arc::new(Initiator {
                fabric: address.fabric,
                memcpy,
                tcp,
                #[cfg(feature = "ucx")]
                ucx,
            }),
            endpoint,
            address,
            notifications: Mutex::new(Some(Notifications::new(receiver, shutdown.clone()))),
            fabric: config.fabric,
            transfer_deadline: config.transfer_deadline,
            room: Arc::new(Semaphore::new(config.transfers_max.min(Semaphore::MAX_PERMITS))),
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

    /// Registers memory that this agent and its peers may read: the concatenation of `segments`.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded) at the limit of regions.
    pub fn register<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let segments = segments.into_iter().map(Segment::Shared).collect();
        RegisteredRegion::new(&self.0.endpoint.regions, segments, Rights::ReadOnly)
    }

    /// Registers memory that this agent may read and write, and its peers may read.
    ///
    /// Fails like [`register`](Self::register).
    pub fn register_mut<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static,
    {
        self.register_exclusive(segments, Rights::OwnerWrites)
    }

    /// Registers memory that this agent and its peers may read and write.
    ///
    /// Fails like [`register`](Self::register).
    pub fn register_peer_writable<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static,
    {
        self.register_exclusive(segments, Rights::PeersWrite)
    }

    /// Returns this agent's metadata with the given regions: whoever holds it may use them.
    ///
    /// Regions that are revoked, or not of this agent, are left out.
    pub fn metadata(&self, regions: &[&RegionHandle]) -> Bytes {
        let grant = |region: &&RegionHandle| {
            let (key, len, rights) = self.0.endpoint.regions.grant(region.id)?;
            Some(RegionGrant { id: region.id, key, len, writable: rights == Rights::PeersWrite })
        };
        let grants: Vec<_> = regions.iter().filter_map(grant).collect();
        metadata::encode(&self.0.address, &grants)
    }

    /// Decodes a peer's metadata; fails with [`Protocol`](ErrorKind::Protocol) on bad bytes.
    pub fn load_metadata(&self, bytes: &[u8]) -> Result<RemoteAgent> {
        metadata::decode(bytes)
    }

    /// Posts a read: fills `local` with the bytes of `remote`, range after range.
    ///
    /// The transfer fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if the two sides
    /// differ in size or make more than 32,768 chunks (contiguous on both sides, at most 256 KiB
    /// each), with [`Overloaded`](ErrorKind::Overloaded) at the limit of transfers, and with the
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

    /// Sends a notification that goes with no transfer; at most 64 KiB.
    ///
    /// # Cancel safety
    /// If the future is dropped the notification may or may not arrive.
    pub async fn notify(&self, peer: &RemoteAgent, payload: Bytes) -> Result<()> {
        let notified = self.0.initiator.notify(&peer.address, payload);
        match tokio::time::timeout(self.0.transfer_deadline, notified).await {
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
        if let Some(fabric) = &self.0.fabric {
            fabric.leave(self.incarnation());
        }
        self.0.tasks.wait().await;
        self.0.initiator.tcp.close_idle();
        #[cfg(feature = "ucx")]
        if let Some(ucx) = &self.0.initiator.ucx {
            ucx.shutdown().await;
        }
    }

    fn register_exclusive<B>(&self, segments: Vec<B>, rights: Rights) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static,
    {
        let exclusive = |bytes| Segment::Exclusive(RwLock::new(bytes), B::as_mut);
        let segments = segments.into_iter().map(exclusive).collect();
        RegisteredRegion::new(&self.0.endpoint.regions, segments, rights)
    }

    fn post(
        &self,
        right: Right,
        local: LocalDescriptor,
        remote: RemoteDescriptor,
        options: TransferOptions,
    ) -> Transfer {
        let (settle, outcome) = oneshot::channel();
        let cancel = self.0.shutdown.child_token();
        let transfer = Transfer::new(outcome, cancel.clone());
        let Ok(permit) = Arc::clone(&self.0.room).try_acquire_owned() else {
            // The transfer is at hand, so its outcome is received.
            let _ = settle
                .send(Err(Error::new(ErrorKind::Overloaded, "too many transfers are posted")));
            return transfer;
        };
        // The task does not keep the agent alive: dropping the last clone ends it.
        let initiator = Arc::clone(&self.0.initiator);
        let deadline = options.deadline.unwrap_or(self.0.transfer_deadline);
        self.0.tasks.spawn(async move {
            let _permit = permit;
            let name = remote.peer.name.clone();
            let run = initiator.run(right, local, remote, options.notification, &cancel);
            let result = tokio::select! {
                result = tokio::time::timeout(deadline, run) => {
                    result.unwrap_or_else(|_| Err(overdue(&name)))
                }
                () = cancel.cancelled() => Err(Error::new(ErrorKind::Closed, "transfer was cancelled")),
            };
            cancel.cancel();
            // Nobody waits for a transfer that was dropped.
            let _ = settle.send(result.map_err(|error| error.with_peer(&name)));
        });
        transfer
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("address", &self.0.address).finish_non_exhaustive()
    }
}

fn overdue(peer: &str) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the peer did not answer in time").with_peer(peer)
}
