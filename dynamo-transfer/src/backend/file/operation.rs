//! An operation on a file: its steps, a few of them at once, and its one end.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::error::{self, CANCELLED};
use super::io::{Engine, FileAct, Io};
use super::plan::Step;
use super::region::Opened;
use crate::error::{Error, ErrorKind, Result};

/// What an operation keeps until the kernel is done with it.
pub(super) struct Kept {
    /// Keeps the memory alive.
    pub(super) lease: Box<dyn Send>,
    /// The operation's place in its store.
    pub(super) permit: OwnedSemaphorePermit,
}

pub(crate) struct Operation {
    pub(super) file: Arc<Opened>,
    pub(super) act: FileAct,
    engine: Arc<dyn Engine>,
    is_cancelled: AtomicBool,
    moved: AtomicU64,
    state: Mutex<State>,
}

struct State {
    steps: std::vec::IntoIter<Step>,
    /// IOs that the engine has, and their bytes when they set out.
    flying: usize,
    flying_bytes: usize,
    failure: Option<Error>,
    /// A sync is still due.
    unsynced: bool,
    kept: Option<Kept>,
    outcome: Option<oneshot::Sender<Result<u64>>>,
}

/// An IO that is over.
struct Landed {
    result: Result<()>,
    size: usize,
}

impl State {
    /// Takes what is to fly next: a batch each time half of what may fly has landed.
    fn fill(&mut self, operation: &Arc<Operation>) -> Vec<Io> {
        let mut batch = Vec::new();
        if self.failure.is_some() {
            return batch;
        }
        if self.flying <= WINDOW / 2 && self.flying_bytes <= WINDOW_BYTES / 2 {
            while self.flying < WINDOW && self.flying_bytes < WINDOW_BYTES {
                let Some(step) = self.steps.next() else { break };
                self.flying += 1;
                self.flying_bytes += step.len;
                batch.push(Io::new(operation, step));
            }
        }
        if self.flying == 0 && self.unsynced {
            (self.unsynced, self.flying) = (false, 1);
            batch.push(Io::sync(operation));
        }
        batch
    }
}

impl Operation {
    /// Starts an operation.
    pub(super) fn post(
        engine: &Arc<dyn Engine>,
        file: &Arc<Opened>,
        act: FileAct,
        steps: Vec<Step>,
        kept: Kept,
    ) -> FileOperation {
        let (sender, outcome) = oneshot::channel();
        let operation = Arc::new(Self {
            file: Arc::clone(file),
            act,
            engine: Arc::clone(engine),
            is_cancelled: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            state: Mutex::new(State {
                unsynced: act == FileAct::Write && file.is_durable() && !steps.is_empty(),
                steps: steps.into_iter(),
                flying: 0,
                flying_bytes: 0,
                failure: None,
                kept: Some(kept),
                outcome: Some(sender),
            }),
        });
        operation.go_on(None);
        FileOperation { outcome, operation }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Takes what an IO came to: asks for what is missing, else goes on to the next step.
    pub(super) fn finish(mut io: Io, result: io::Result<usize>) {
        let operation = Arc::clone(&io.operation);
        let landed = match (result, io.act) {
            (Ok(_), FileAct::Sync) => Ok(()),
            (Ok(0), act) => Err(match act {
                FileAct::Read => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends there")
                }
                _ => io::ErrorKind::WriteZero.into(),
            }),
            (Ok(moved), _) => {
                operation.moved.fetch_add(moved as u64, Ordering::Relaxed);
                io.advance(moved);
                if !io.spans.is_empty() {
                    return operation.again(io);
                }
                Ok(())
            }
            (Err(error), _) if is_passing(&error) && io.tries < TRIES_MAX => {
                io.tries += 1;
                return operation.again(io);
            }
            // The filesystem opens files for direct IO but does not do it, or not so aligned.
            (Err(error), _) if io.direct && error.raw_os_error() == Some(libc::EINVAL) => {
                operation.file.refuse_direct();
                io.direct = false;
                return operation.again(io);
            }
            (Err(error), _) => Err(error),
        };
        let landed = landed.map_err(|error| operation.name(&io, error));
        let landed = Landed { result: landed, size: io.size };
        drop(io);
        operation.go_on(Some(landed));
    }

    fn again(&self, io: Io) {
        if self.is_cancelled() { io.refuse(CANCELLED) } else { self.engine.submit(vec![io]) }
    }

    /// Says what was done, and where.
    fn name(&self, io: &Io, error: io::Error) -> Error {
        if self.is_cancelled() && error.raw_os_error() == Some(CANCELLED) {
            return Error::cancelled();
        }
        let doing = match io.act {
            FileAct::Read => format!("reading {} bytes at {} of", io.len(), io.offset),
            FileAct::Write => format!("writing {} bytes at {} of", io.len(), io.offset),
            FileAct::Sync => "syncing".to_owned(),
        };
        error::of(error, &doing, self.file.path())
    }

    /// Starts further steps if enough have landed, and ends the operation if there is nothing left.
    fn go_on(self: &Arc<Self>, landed: Option<Landed>) {
        let mut state = self.lock();
        if let Some(Landed { result, size }) = landed {
            state.flying -= 1;
            state.flying_bytes -= size;
            state.failure = state.failure.take().or_else(|| result.err());
        }
        let is_unfinished = state.steps.len() > 0 || state.unsynced;
        if self.is_cancelled() && is_unfinished && state.failure.is_none() {
            state.failure = Some(Error::cancelled());
        }
        let batch = state.fill(self);
        let end = (state.flying == 0).then(|| (state.kept.take(), state.failure.take()));
        drop(state);
        match end {
            Some((Some(kept), failure)) => self.end(kept, failure),
            _ if batch.is_empty() => {}
            _ => self.engine.submit(batch),
        }
    }

    /// Gives everything back, and then says so.
    fn end(&self, kept: Kept, failure: Option<Error>) {
        let failure = failure.map_or_else(|| self.check_name(), Err);
        let Kept { lease, permit } = kept;
        // What a caller gave as a lease may not take the engine's thread with it.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(lease)));
        drop(permit);
        let result = match dropped {
            Err(_) => Err(Error::new(ErrorKind::Internal, "a lease panicked when it was dropped")),
            Ok(()) => failure.map(|()| self.moved.load(Ordering::Relaxed)),
        };
        self.report(result);
    }

    /// What was written to a file that has lost its name is lost.
    fn check_name(&self) -> Result<()> {
        if self.act == FileAct::Read {
            return Ok(());
        }
        self.file.check_name()
    }

    /// Reports that nobody knows when the memory will be quiet; the lease stays where it is.
    pub(super) fn abandon(&self) {
        self.report(Err(Error::new(ErrorKind::Internal, "the file engine has failed")));
    }

    fn report(&self, result: Result<u64>) {
        let outcome = self.lock().outcome.take();
        if let Some(outcome) = outcome {
            // Nobody waits for an operation that was dropped.
            let _ = outcome.send(result);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells whether the same call may succeed at once.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// A posted operation: resolves to the bytes moved when nothing touches file and memory any more.
///
/// Dropping it cancels it: steps that have not started never do; the lease is dropped when those
/// that have started are over.
#[must_use = "dropping the operation cancels it"]
pub(crate) struct FileOperation {
    outcome: oneshot::Receiver<Result<u64>>,
    operation: Arc<Operation>,
}

impl FileOperation {
    /// Ends the operation early; it resolves once it is quiet.
    pub(crate) fn cancel(&self) {
        self.operation.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns the bytes moved so far.
    pub(crate) fn progress(&self) -> u64 {
        self.operation.moved.load(Ordering::Relaxed)
    }
}

impl Future for FileOperation {
    type Output = Result<u64>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| {
            outcome.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Internal, "a file operation was lost"))
            })
        })
    }
}

impl Drop for FileOperation {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for FileOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileOperation").field("moved", &self.progress()).finish_non_exhaustive()
    }
}

/// Steps of one operation that fly at once, and their bytes: short ones keep a device busy by their
/// number, long ones by their length; others get in between.
const WINDOW: usize = 32;
const WINDOW_BYTES: usize = 8 << 20;

/// Restarts without progress before an IO fails.
const TRIES_MAX: u32 = 64;
