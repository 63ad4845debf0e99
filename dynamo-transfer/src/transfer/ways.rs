use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(feature = "ucx")]
use crate::backend::Ucx;
#[cfg(target_os = "linux")]
use crate::backend::shm;
use crate::backend::tcp::TcpClient;
use crate::backend::{Backend, Copies, Memcpy, MemoryFabric, Operation};
use crate::config::AgentConfig;
use crate::descriptor::Load;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::MemoryKind;
use crate::peer::PeerAddress;
use crate::plan::{Place, Route};
use crate::vocabulary::BackendKind;

/// The backends of an agent: how it reaches itself and its peers.
pub(crate) struct Ways {
    pub(super) place: Place,
    pub(super) memcpy: Memcpy,
    shm: Option<Arc<dyn Backend>>,
    pub(super) tcp: Arc<TcpClient>,
    #[cfg(feature = "ucx")]
    ucx: Option<Ucx>,
}

impl Ways {
    /// Starts what an agent that has joined `fabric` reaches its peers by.
    #[cfg_attr(
        not(feature = "ucx"),
        expect(clippy::unused_async, reason = "with the feature there is something to wait for")
    )]
    pub(crate) async fn start(
        config: &AgentConfig,
        fabric: &MemoryFabric,
        own: &Arc<Inbound>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Self> {
        #[cfg(feature = "ucx")]
        let ucx = match &config.ucx {
            Some(ucx) => Some(Ucx::start(ucx, own, tasks, shutdown).await?),
            None => None,
        };
        // Each has its own: what another process keeps from ending holds up no copy within this one.
        let copies = Copies::new(tasks);
        let (fabric, fabric_id) = (fabric.clone(), config.fabric.as_ref().map(MemoryFabric::id));
        let memcpy = Memcpy { fabric, own: Arc::clone(own), copies };
        let (host, shm) = reach_shared(own, Copies::new(tasks), tasks, shutdown);
        let mut ways = Self {
            place: Place { incarnation: own.incarnation, fabric: fabric_id, host, has_ucx: false },
            memcpy,
            shm,
            tcp: TcpClient::new(own, config.tcp_lanes, tasks, shutdown),
            #[cfg(feature = "ucx")]
            ucx,
        };
        ways.place.has_ucx = ways.ucx().is_some();
        Ok(ways)
    }

    /// Ends what the agent's tasks do not.
    #[cfg_attr(
        not(feature = "ucx"),
        expect(clippy::unused_async, reason = "with the feature there is something to wait for")
    )]
    pub(crate) async fn shutdown(&self) {
        #[cfg(feature = "ucx")]
        if let Some(ucx) = &self.ucx {
            ucx.shutdown().await;
        }
    }

    /// Returns where peers reach this agent over UCX, if they do.
    pub(crate) fn ucx_address(&self) -> Option<Bytes> {
        #[cfg(feature = "ucx")]
        let address = self.ucx.as_ref().map(Ucx::address);
        #[cfg(not(feature = "ucx"))]
        let address = None;
        address
    }

    /// Returns which backends reach memory of a peer.
    pub(super) fn route(
        &self,
        peer: &Arc<PeerAddress>,
        memory: MemoryKind,
        load: Load,
    ) -> Result<Route> {
        let mut route = self.place.route((peer, memory), load)?;
        // The others remember by themselves who is out of their reach; lanes wait for him.
        if route.first() == BackendKind::Tcp && route.has_others() && self.tcp.is_away(peer) {
            route.leave();
        }
        Ok(route)
    }

    pub(super) fn backend(&self, kind: BackendKind) -> Option<&dyn Backend> {
        match kind {
            BackendKind::Memcpy => Some(&self.memcpy as &dyn Backend),
            BackendKind::Shm => self.shm.as_deref(),
            BackendKind::Ucx => self.ucx(),
            BackendKind::Tcp => Some(&*self.tcp as &dyn Backend),
            BackendKind::File | BackendKind::Device => None,
        }
    }

    /// Runs an operation by the first backend of `route` that leads to the peer, which is its first then.
    pub(super) async fn run(&self, route: &mut Route, operation: Arc<Operation>) -> Result<()> {
        if operation.total() == 0 {
            return Ok(());
        }
        while let Err(error) = self.first(route)?.run(Arc::clone(&operation)).await {
            if operation.progress.has_begun() {
                return Err(error);
            }
            leave(route, &operation.peer, error)?;
        }
        Ok(())
    }

    /// Delivers a notification, likewise.
    pub(super) async fn notify(
        &self,
        route: &mut Route,
        peer: &Arc<PeerAddress>,
        payload: Bytes,
    ) -> Result<()> {
        while let Err(error) = self.first(route)?.notify(peer, payload.clone()).await {
            leave(route, peer, error)?;
        }
        Ok(())
    }

    fn first(&self, route: &Route) -> Result<&dyn Backend> {
        let missing = || Error::new(ErrorKind::Internal, "a route has its backend");
        self.backend(route.first()).ok_or_else(missing)
    }

    #[cfg(feature = "ucx")]
    fn ucx(&self) -> Option<&dyn Backend> {
        self.ucx.as_ref().map(|ucx| ucx as &dyn Backend)
    }

    #[cfg(not(feature = "ucx"))]
    #[expect(clippy::unused_self, reason = "with the feature there is something to return")]
    fn ucx(&self) -> Option<&dyn Backend> {
        None
    }
}

/// Returns what tells this host apart, and who reaches its processes.
#[cfg(target_os = "linux")]
fn reach_shared(
    own: &Arc<Inbound>,
    copies: Copies,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> (Option<u64>, Option<Arc<dyn Backend>>) {
    (shm::host(), Some(shm::ShmClient::new(own, copies, tasks, shutdown)))
}

#[cfg(not(target_os = "linux"))]
fn reach_shared(
    _: &Arc<Inbound>,
    _: Copies,
    _: &TaskTracker,
    _: &CancellationToken,
) -> (Option<u64>, Option<Arc<dyn Backend>>) {
    (None, None)
}

/// Leaves out the first way of a route if the peer is out of its reach and there is another; else fails.
pub(super) fn leave(route: &mut Route, peer: &PeerAddress, error: Error) -> Result<()> {
    if !is_out_of_reach(&error) || !route.has_others() {
        return Err(error);
    }
    let (kind, by) = (route.first(), route.leave());
    tracing::debug!(%error, peer = peer.name, ?by, "peer is out of reach for {kind}");
    Ok(())
}

/// Tells whether another backend may run what this one has failed at, if it has not begun.
pub(super) fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::BackendUnavailable)
}
