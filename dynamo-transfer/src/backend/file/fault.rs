//! Files that fail when they are told to.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::CLOSED;
use super::io::{Engine, FileAct, Io};

/// One call to the kernel, before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileCall {
    /// How many calls came before it.
    pub index: u64,
    /// What it does.
    pub act: FileAct,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileFault {
    /// It is made as it is.
    Pass,
    /// It moves this many bytes at most, one at least.
    Cut(usize),
    /// It is not made, and fails with this error of the system (`errno`).
    Fail(i32),
    /// It is made when [`FileFaults::release`] says so.
    Hold,
}

type Judge = dyn FnMut(&FileCall) -> FileFault + Send;

/// Decides what becomes of the calls of a store's engine; cheap to clone.
#[derive(Clone)]
pub struct FileFaults(Arc<Mutex<State>>);

struct State {
    judge: Box<Judge>,
    calls: u64,
    /// Each with the engine that would make it.
    held: Vec<(Arc<dyn Engine>, Io)>,
}

impl FileFaults {
    /// Asks `judge`, which must not call back, about each call; what a cut left out is asked about
    /// again.
    pub fn new(judge: impl FnMut(&FileCall) -> FileFault + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(State { judge: Box::new(judge), calls: 0, held: Vec::new() })))
    }

    /// Returns how many calls came so far.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Returns how many calls are held.
    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Makes the calls that are held.
    pub fn release(&self) {
        let held = std::mem::take(&mut self.lock().held);
        held.into_iter().for_each(|(engine, io)| engine.submit(vec![io]));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands before an engine and does what [`FileFaults`] say.
pub(super) struct Faulty {
    pub(super) inner: Arc<dyn Engine>,
    pub(super) faults: FileFaults,
    pub(super) is_closing: AtomicBool,
}

impl Faulty {
    /// Returns the IO if it is to be made, and what it fails with at once.
    fn judge(&self, mut io: Io) -> Option<(Io, Option<i32>)> {
        let mut state = self.faults.lock();
        let call = FileCall { index: state.calls, act: io.act, offset: io.offset, len: io.len() };
        state.calls += 1;
        match (state.judge)(&call) {
            FileFault::Cut(len) if io.act != FileAct::Sync => io.cut(len.max(1)),
            FileFault::Fail(code) => return Some((io, Some(code))),
            FileFault::Hold if !self.is_closing.load(Ordering::Relaxed) => {
                state.held.push((Arc::clone(&self.inner), io));
                return None;
            }
            _ => {}
        }
        Some((io, None))
    }
}

impl Engine for Faulty {
    fn submit(&self, batch: Vec<Io>) {
        for io in batch {
            match self.judge(io) {
                Some((io, Some(code))) => io.refuse(code),
                Some((io, None)) => self.inner.submit(vec![io]),
                None => {}
            }
        }
    }

    fn close(&self) {
        let mut state = self.faults.lock();
        self.is_closing.store(true, Ordering::Relaxed);
        let own = state.held.extract_if(.., |(engine, _)| Arc::ptr_eq(engine, &self.inner));
        let own: Vec<_> = own.collect();
        drop(state);
        own.into_iter().for_each(|(_, io)| io.refuse(CLOSED));
        self.inner.close();
    }
}

impl fmt::Debug for FileFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileFaults").field("calls", &self.calls()).finish_non_exhaustive()
    }
}
