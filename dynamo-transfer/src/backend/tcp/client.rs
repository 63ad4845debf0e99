use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::job::Job;
use super::lanes::Lanes;
use super::queue::{Notice, Work};
use crate::backend::{Backend, Done, Operation, Running};
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::peer::PeerAddress;
use crate::vocabulary::Priority;

/// Runs operations at their owners, over lanes to each.
pub(crate) struct TcpClient {
    own: Arc<Inbound>,
    lanes_max: usize,
    peers: Mutex<HashMap<Arc<PeerAddress>, Ways>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// The ways to one peer: notifications do not wait behind data.
#[derive(Clone)]
struct Ways {
    data: Arc<Lanes>,
    control: Arc<Lanes>,
}

impl TcpClient {
    pub(crate) fn new(
        own: &Arc<Inbound>,
        lanes_max: NonZeroUsize,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            own: Arc::clone(own),
            lanes_max: lanes_max.get(),
            peers: Mutex::default(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        })
    }

    fn ways(&self, peer: &Arc<PeerAddress>) -> Ways {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ways) = peers.get(peer) {
            return ways.clone();
        }
        peers.retain(|_, ways| !(ways.data.is_asleep() && ways.control.is_asleep()));
        let lanes = |count| Lanes::new(&self.own, peer, count, &self.tasks, &self.shutdown);
        let ways = Ways { data: lanes(self.lanes_max), control: lanes(1) };
        peers.insert(Arc::clone(peer), ways.clone());
        ways
    }
}

impl TcpClient {
    /// Tells whether a peer was not reached, a moment ago: whoever does not insist on TCP need not wait
    /// until it is looked for again.
    pub(crate) fn is_away(&self, peer: &Arc<PeerAddress>) -> bool {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer).is_some_and(|ways| ways.data.is_away() || ways.control.is_away())
    }

    /// Begins an operation; `done` is told its outcome. Dropping what is returned is as dropping the
    /// future of `run`.
    pub(crate) fn begin(&self, operation: &Arc<Operation>, done: Done) -> Running {
        let lanes = self.ways(&operation.peer).data;
        let job = Job::new(Arc::clone(operation), &lanes, done);
        lanes.push(Work::Move(Arc::downgrade(&job)), operation.priority);
        job
    }
}

#[async_trait]
impl Backend for TcpClient {
    async fn run(&self, operation: Arc<Operation>) -> Result<()> {
        let (done, outcome) = Done::channel();
        let _running = self.begin(&operation, done);
        outcome.await.map_err(|_| Error::shut_down())?
    }

    async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        let (settle, outcome) = oneshot::channel();
        self.ways(peer).control.push(Work::Notify(Notice { payload, settle }), Priority::Normal);
        outcome.await.map_err(broken)?
    }
}

fn broken(_: oneshot::error::RecvError) -> Error {
    Error::new(ErrorKind::Disconnected, "the connection broke before the peer answered")
}
