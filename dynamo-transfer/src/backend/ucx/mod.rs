//! UCX, loaded at run time: messages that the owner checks, and one-sided access it has granted.
//!
//! One thread per agent owns everything of UCX and sleeps on the workers' event descriptors. All
//! requests are active messages, one for each stripe of an operation: the owner leases the region
//! (token, expiry, rights, generation, bounds) before a byte gets there. Their context is made without
//! UCX's remote memory access, so no peer can have the library itself touch memory here over TCP or
//! shared memory.
//!
//! From UCX 1.22 on, large operations are answered with remote keys where [`rails`] join the two
//! agents: CMA on one host, RDMA between hosts. The owner keeps the lease, and the memory mapped,
//! until the initiator says that nothing is under way any more, or until it is gone for a second.
//! Within that time, hardware and kernel check the key and the process, not the ranges. Before
//! 1.22, and where no rail joins, messages carry the data.
//!
//! UCX 1.13 may abort the process when a peer is killed in the middle of transfers, by an assertion of
//! its own (`comp->count > 0`); docs/performance.md has how often. 1.22 was not seen to, and between
//! them none was tried: before 1.22, messages are sent as copies. Without, 13 of 71 peers that went in
//! mid-write ended a test so, and with them none of 71. An agent warns of it all the same when it
//! starts.
//!
//! UCX's own wire formats are not hardened: whoever can reach a worker's port and speaks them
//! wrongly may end the process. Use it between machines that trust each other's network.

mod absences;
mod access;
mod config;
mod engine;
mod grants;
mod header;
mod inbox;
mod initiator;
mod landing;
mod library;
mod link;
mod links;
mod mailbox;
mod memory;
mod net;
mod owner;
mod port;
mod protocol;
mod rails;
mod served;
mod sources;
mod stream;
mod sys;
mod worker;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::UcxConfig;
#[cfg(any(test, feature = "test-util"))]
pub(crate) use protocol::fuzz;

use engine::Engine;
use mailbox::{Command, Mailbox};
use owner::Delivery;
use protocol::STRIPE_BYTES_MAX;

use super::{Backend, Operation};
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::peer::PeerAddress;

/// An agent's end of UCX: the thread that runs it, and what others tell it.
///
/// Dropping it ends the thread and waits for that: UCX has to be gone before the process is.
pub(crate) struct Ucx {
    mailbox: Arc<Mailbox>,
    address: Bytes,
    thread: Mutex<Option<Thread>>,
}

struct Thread {
    handle: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl Ucx {
    /// Loads the library and starts the thread.
    pub(crate) async fn start(
        config: &UcxConfig,
        inbound: &Arc<Inbound>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Self> {
        let (mailbox, letters) = Mailbox::new()?;
        let mailbox = Arc::new(mailbox);
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let (started, start) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let (config, own) = (config.clone(), Arc::clone(inbound));
        let boxes = (Arc::clone(&mailbox), letters);
        let run = move || {
            // Dropped when the thread is about to end.
            let _end = end;
            match Engine::new(&config, &own, deliveries, boxes) {
                Ok((engine, address)) => {
                    // Nobody waits for a start that was dropped: the mailbox says stop then.
                    let _ = started.send(Ok(address));
                    engine.run();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let handle = Builder::new().name("dynamo-ucx".to_owned()).spawn(run).map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot start the UCX thread").with_source(error)
        })?;
        let thread = Mutex::new(Some(Thread { handle, ended }));
        let mut ucx = Self { mailbox, address: Bytes::new(), thread };
        let ended = |_| Error::new(ErrorKind::Internal, "the UCX thread has ended");
        ucx.address = start.await.map_err(ended)??.into();
        tasks.spawn(deliver(
            Arc::clone(inbound),
            Arc::clone(&ucx.mailbox),
            delivered,
            shutdown.clone(),
        ));
        Ok(ucx)
    }

    /// Returns where peers find this agent.
    pub(crate) fn address(&self) -> Bytes {
        self.address.clone()
    }

    /// Ends the thread and waits for it, within a bound.
    pub(crate) async fn shutdown(&self) {
        self.mailbox.stop();
        let Some(Thread { handle, ended }) = self.take_thread() else { return };
        // An error is what is waited for: the other end is gone.
        if tokio::time::timeout(SHUTDOWN_MAX, ended).await.is_ok() {
            joined(handle);
        }
    }

    /// Moves one stripe after the other.
    async fn stripes(&self, operation: &Arc<Operation>, has_failed: &AtomicBool) -> Result<()> {
        while !operation.is_planned() && !has_failed.load(Ordering::Relaxed) {
            let (done, outcome) = oneshot::channel();
            let (op, operation) = (self.mailbox.op(), Arc::clone(operation));
            let moved = self.settle(op, Command::Run { op, operation, done }, outcome).await;
            moved.inspect_err(|_| has_failed.store(true, Ordering::Relaxed))?;
        }
        operation.check()
    }

    async fn settle(
        &self,
        op: u64,
        command: Command,
        outcome: oneshot::Receiver<Result<()>>,
    ) -> Result<()> {
        let mut cancel = CancelOnDrop { mailbox: &self.mailbox, op: Some(op) };
        self.mailbox.post(command).await?;
        let outcome = outcome.await;
        cancel.op = None;
        outcome.unwrap_or_else(|_| Err(Error::shut_down()))
    }

    fn take_thread(&self) -> Option<Thread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait]
impl Backend for Ucx {
    async fn run(&self, operation: Arc<Operation>) -> Result<()> {
        let has_failed = AtomicBool::new(false);
        let stripes = operation.total().div_ceil(STRIPE_BYTES_MAX).clamp(1, STRIPES_AT_ONCE);
        // Each goes on until it has failed or there is nothing left, and all are waited for: none
        // touches the memory then.
        let stripes = (0..stripes).map(|_| self.stripes(&operation, &has_failed));
        join_all(stripes).await.into_iter().collect()
    }

    async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        let (op, peer) = (self.mailbox.op(), Arc::clone(peer));
        self.settle(op, Command::Notify { op, peer, payload, done }, outcome).await
    }
}

impl Drop for Ucx {
    fn drop(&mut self) {
        self.mailbox.stop();
        if let Some(thread) = self.take_thread() {
            joined(thread.handle);
        }
    }
}

impl fmt::Debug for Ucx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ucx").finish_non_exhaustive()
    }
}

/// Tells the thread that nobody waits for an operation any more.
struct CancelOnDrop<'a> {
    mailbox: &'a Mailbox,
    op: Option<u64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(op) = self.op {
            self.mailbox.cancel(op);
        }
    }
}

/// Queues notifications of peers, one after the other, and has them answered.
async fn deliver(
    inbound: Arc<Inbound>,
    mailbox: Arc<Mailbox>,
    mut deliveries: mpsc::Receiver<Delivery>,
    shutdown: CancellationToken,
) {
    let deliver = async {
        while let Some(delivery) = deliveries.recv().await {
            let Delivery { link, op, from, incarnation, payload } = delivery;
            let status = inbound.deliver(from, incarnation, payload).await;
            if mailbox.post(Command::Delivered { link, op, status }).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = deliver => {}
    }
}

fn joined(handle: JoinHandle<()>) {
    if handle.join().is_err() {
        tracing::error!("the UCX thread panicked");
    }
}

/// Stripes of one operation under way: the next are asked for while one arrives.
const STRIPES_AT_ONCE: u64 = 4;

/// Notifications of all peers that wait to be queued; more are refused.
const DELIVERIES_MAX: usize = 1024;

/// Longer than the thread takes to close endpoints of peers that do not answer.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
