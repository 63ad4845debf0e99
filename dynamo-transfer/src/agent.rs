use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::backend::tcp::{TcpClient, TcpServer};
use crate::backend::{Backend, Memcpy, MemoryFabric, Operation};
use crate::descriptor::{LocalDescriptor, RemoteDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{RegionHandle, RegionTable, RegisteredRegion, Right, Rights, Segment, random};
use crate::peer::metadata::{self, RegionGrant};
use crate::peer::{PeerAddress, RemoteAgent};
use crate::plan::{self, Route};
use crate::transfer::{Notification, Notifications, Transfer, TransferOptions, TransferReport};

/// How an agent is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentConfig {
    /// The name that peers see; at most 255 bytes.
    pub name: String,
    /// The fabric that reaches agents of this process; none if `None`.
    pub fabric: Option<MemoryFabric>,
    /// Where to serve peers over TCP; nowhere if `None`. Port 0 takes a free one.
    pub tcp_listen: Option<SocketAddr>,
    /// Notifications that wait for their reader; senders wait beyond.
    pub notifications_max: usize,
    /// The most time a transfer takes unless it says otherwise.
    pub transfer_deadline: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: "agent".to_owned(),
            fabric: None,
            tcp_listen: None,
            // Small messages of at most 64 KiB each: 64 MiB in the worst case.
            notifications_max: 1024,
            // A gigabyte over a slow network; a stalled peer is noticed earlier.
            transfer_deadline: Duration::from_secs(30),
        }
    }
}

impl AgentConfig {
    /// Names the agent.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Joins a fabric.
    #[must_use]
    pub fn with_fabric(mut self, fabric: MemoryFabric) -> Self {
        self.fabric = Some(fabric);
        self
    }

    /// Serves peers over TCP at `address`.
    #[must_use]
    pub fn with_tcp_listen(mut self, address: SocketAddr) -> Self {
        self.tcp_listen = Some(address);
        self
    }

    /// Limits the notifications that wait for their reader.
    #[must_use]
    pub fn with_notifications_max(mut self, notifications_max: usize) -> Self {
        self.notifications_max = notifications_max;
        self
    }
}

/// One process's end of the transfer engine; cheap to clone.
///
/// It owns its tasks: [`shutdown`](Self::shutdown) ends and joins them, dropping the last clone
/// ends them.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    endpoint: Arc<Endpoint>,
    address: PeerAddress,
    notifications: Mutex<Option<mpsc::Receiver<Notification>>>,
    memcpy: Option<Arc<dyn Backend>>,
    tcp: Arc<dyn Backend>,
    fabric: Option<MemoryFabric>,
    transfer_deadline: Duration,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What backends reach of an agent on behalf of its peers.
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) regions: Arc<RegionTable>,
    notifications: mpsc::Sender<Notification>,
}

impl Endpoint {
    /// Queues a notification, waiting a while if the queue is full.
    pub(crate) async fn deliver(
        &self,
        from: String,
        incarnation: u64,
        payload: Bytes,
    ) -> Result<()> {
        let notification = Notification { from, incarnation, payload };
        match self.notifications.send_timeout(notification, DELIVERY_MAX).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                let message = format!("notifications of agent {} are not read", self.name);
                Err(Error::new(ErrorKind::Overloaded, message))
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                let message = format!("agent {} takes no notifications", self.name);
                Err(Error::new(ErrorKind::Closed, message))
            }
        }
    }
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
        if config.name.is_empty() || config.name.len() > NAME_BYTES_MAX {
            let message = format!("agent name of {} bytes", config.name.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let (sender, receiver) = mpsc::channel(config.notifications_max.max(1));
        let endpoint = Arc::new(Endpoint {
            name: config.name.clone(),
            incarnation: random(),
            regions: Arc::default(),
            notifications: sender,
        });
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let tcp_address = match config.tcp_listen {
            None => None,
            Some(address) => Some(TcpServer::start(address, &endpoint, &tasks, &shutdown).await?),
        };
        let memcpy = config.fabric.clone().map(|fabric| {
            fabric.join(&endpoint);
            let (own, tasks) = (Arc::clone(&endpoint), tasks.clone());
            Arc::new(Memcpy { fabric, own, tasks }) as Arc<dyn Backend>
        });
        let address = PeerAddress {
            name: config.name,
            incarnation: endpoint.incarnation,
            fabric: config.fabric.as_ref().map(MemoryFabric::id),
            tcp: tcp_address,
        };
        Ok(Self(Arc::new(Inner {
            tcp: Arc::new(TcpClient::new(Arc::clone(&endpoint))),
            endpoint,
            address,
            notifications: Mutex::new(Some(receiver)),
            memcpy,
            fabric: config.fabric,
            transfer_deadline: config.transfer_deadline,
            tasks,
            _shutdown_on_drop: shutdown.clone().drop_guard(),
            shutdown,
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
        RegisteredRegion::new(&self.0.endpoint.regions, segments, Rights { peer_write: false })
    }

    /// Registers memory that this agent may read and write, and its peers may read.
    ///
    /// Fails like [`register`](Self::register).
    pub fn register_mut<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static,
    {
        self.register_exclusive(segments, Rights { peer_write: false })
    }

    /// Registers memory that this agent and its peers may read and write.
    ///
    /// Fails like [`register`](Self::register).
    pub fn register_peer_writable<B>(&self, segments: Vec<B>) -> Result<RegisteredRegion<B>>
    where
        B: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static,
    {
        self.register_exclusive(segments, Rights { peer_write: true })
    }

    /// Returns this agent's metadata with the given regions: whoever holds it may use them.
    ///
    /// Regions that are revoked, or not of this agent, are left out.
    pub fn metadata(&self, regions: &[&RegionHandle]) -> Bytes {
        let grant = |region: &&RegionHandle| {
            let (key, len, writable) = self.0.endpoint.regions.grant(region.id)?;
            Some(RegionGrant { id: region.id, key, len, writable })
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
        let notified = self.0.notify(&peer.address, payload);
        match tokio::time::timeout(self.0.transfer_deadline, notified).await {
            Ok(result) => result,
            Err(_) => Err(overdue(peer.name())),
        }
    }

    /// Takes the stream of notifications; fails with [`InvalidArgument`](ErrorKind::InvalidArgument)
    /// the second time.
    pub fn notifications(&self) -> Result<Notifications> {
        let mut slot = self.0.notifications.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take().map(Notifications).ok_or_else(|| {
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
        // The task must not keep the agent alive: what it needs of it is taken along.
        let inner = Arc::downgrade(&self.0);
        let tasks = self.0.tasks.clone();
        let deadline = options.deadline.unwrap_or(self.0.transfer_deadline);
        tasks.spawn(async move {
            let Some(inner) = inner.upgrade() else { return };
            let name = remote.peer.name.clone();
            let run = inner.run(right, local, remote, options.notification, &cancel);
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

impl Inner {
    async fn run(
        &self,
        right: Right,
        local: LocalDescriptor,
        remote: RemoteDescriptor,
        notification: Option<Bytes>,
        cancel: &CancellationToken,
    ) -> Result<TransferReport> {
        let posted = tokio::time::Instant::now();
        check_notification(notification.as_ref())?;
        let backend = self.backend(&remote.peer)?;
        let chunks = plan::chunks(&local.ranges, &remote.ranges, CHUNK_BYTES)?;
        if chunks.len() > CHUNKS_MAX {
            let message = format!("{} chunks in one transfer, at most {CHUNKS_MAX}", chunks.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let (bytes, count) = (local.ranges.total(), chunks.len());
        let operation = Operation {
            peer: Arc::clone(&remote.peer),
            right,
            local: local.table.lease_local(local.id)?,
            remote_id: remote.id,
            remote_key: remote.key,
            chunks,
            cancel: cancel.clone(),
        };
        backend.run(operation).await?;
        if let Some(payload) = notification {
            backend.notify(&remote.peer, payload).await?;
        }
        let (backend, elapsed) = (backend.kind(), posted.elapsed());
        Ok(TransferReport { bytes, chunks: count, backend, elapsed })
    }

    async fn notify(&self, peer: &PeerAddress, payload: Bytes) -> Result<()> {
        check_notification(Some(&payload))?;
        self.backend(peer)?.notify(peer, payload).await.map_err(|e| e.with_peer(&peer.name))
    }

    fn backend(&self, peer: &PeerAddress) -> Result<&dyn Backend> {
        match plan::route(self.address.fabric, peer)? {
            Route::Tcp(_) => Ok(&*self.tcp),
            Route::Memcpy => self.memcpy.as_deref().ok_or_else(|| {
                Error::new(ErrorKind::Internal, "an agent with a fabric has the memcpy backend")
            }),
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("address", &self.0.address).finish_non_exhaustive()
    }
}

fn check_notification(payload: Option<&Bytes>) -> Result<()> {
    match payload.map(Bytes::len) {
        Some(len) if len > NOTIFICATION_BYTES_MAX => {
            let message = format!("notification of {len} bytes, at most {NOTIFICATION_BYTES_MAX}");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
        _ => Ok(()),
    }
}

fn overdue(peer: &str) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the peer did not answer in time").with_peer(peer)
}

const NAME_BYTES_MAX: usize = 255;

/// The largest notification: a message, not a transfer.
pub(crate) const NOTIFICATION_BYTES_MAX: usize = 64 << 10;

/// Long enough to run at memory speed, short enough to notice a cancellation.
const CHUNK_BYTES: u64 = 256 << 10;

/// What one request frame of the TCP backend holds; 8 GiB in full chunks.
pub(crate) const CHUNKS_MAX: usize = 32_768;

/// A reader that is alive takes its notifications well within this.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
