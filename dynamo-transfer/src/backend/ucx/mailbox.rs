//! What the thread is told by the rest of the agent.

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::backend::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::peer::PeerAddress;

pub(super) enum Command {
    /// Move the next stripe of an operation.
    Run {
        op: u64,
        operation: Arc<Operation>,
        done: oneshot::Sender<Result<()>>,
    },
    Notify {
        op: u64,
        peer: Arc<PeerAddress>,
        payload: Bytes,
        done: oneshot::Sender<Result<()>>,
    },
    /// A peer's notification was queued or refused.
    Delivered {
        link: u64,
        op: u64,
        status: Result<()>,
    },
}

/// The side of those who tell.
pub(super) struct Mailbox {
    commands: mpsc::Sender<Command>,
    /// Operations that nobody waits for any more: each is in here once at most.
    cancelled: Mutex<Vec<u64>>,
    is_stopped: AtomicBool,
    is_asleep: AtomicBool,
    bell: UnixStream,
    ops: AtomicU64,
}

/// The side of the thread.
pub(super) struct Letters {
    commands: mpsc::Receiver<Command>,
    bell: UnixStream,
}

impl Mailbox {
    pub(super) fn new() -> Result<(Self, Letters)> {
        let failed = |error| {
            Error::new(ErrorKind::Internal, "cannot make a pair of sockets").with_source(error)
        };
        let (ring, hear) = UnixStream::pair().map_err(failed)?;
        ring.set_nonblocking(true).map_err(failed)?;
        hear.set_nonblocking(true).map_err(failed)?;
        let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
        let mailbox = Self {
            commands: sender,
            cancelled: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            is_asleep: AtomicBool::new(false),
            bell: ring,
            ops: AtomicU64::new(1),
        };
        Ok((mailbox, Letters { commands: receiver, bell: hear }))
    }

    /// Returns the number of another operation.
    pub(super) fn op(&self) -> u64 {
        self.ops.fetch_add(1, Ordering::Relaxed)
    }

    /// Posts a command, waiting for room.
    pub(super) async fn post(&self, command: Command) -> Result<()> {
        let ended = |_| Error::new(ErrorKind::Closed, "the agent's UCX thread has ended");
        self.commands.send(command).await.map_err(ended)?;
        self.ring();
        Ok(())
    }

    pub(super) fn cancel(&self, op: u64) {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).push(op);
        self.ring();
    }

    pub(super) fn take_cancelled(&self) -> Vec<u64> {
        std::mem::take(&mut self.cancelled.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    /// Says that the thread is about to sleep: who posts from now on rings. It looks once more
    /// whether anything is there before it does sleep.
    pub(super) fn fall_asleep(&self, letters: &Letters) -> bool {
        // Both sides swap: whoever comes second sees what the first did before.
        self.is_asleep.swap(true, Ordering::SeqCst);
        let idle = letters.commands.is_empty()
            && !self.is_stopped()
            && self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !idle {
            self.is_asleep.store(false, Ordering::SeqCst);
        }
        idle
    }

    /// Says that the thread is awake, and empties the bell.
    pub(super) fn wake_up(&self, letters: &Letters) {
        self.is_asleep.store(false, Ordering::SeqCst);
        let mut bytes = [0; 64];
        while matches!((&letters.bell).read(&mut bytes), Ok(count) if count == bytes.len()) {}
    }

    fn ring(&self) {
        if !self.is_asleep.swap(false, Ordering::SeqCst) {
            return;
        }
        // A bell that is full rings; one whose other end is gone has nobody to wake.
        if let Err(error) = (&self.bell).write(&[1])
            && error.kind() != IoErrorKind::WouldBlock
        {
            tracing::debug!(%error, "the UCX thread has ended");
        }
    }
}

impl Letters {
    pub(super) fn next(&mut self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    pub(super) fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

/// Commands that wait for the thread; who posts waits beyond.
const COMMANDS_MAX: usize = 1024;
