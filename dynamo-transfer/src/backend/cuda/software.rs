#![expect(unsafe_code, reason = "it hands out and copies raw memory as a real device does")]

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};

use super::batch::{Offers, assign};
use super::device::{Completion, Copies, Device, Direction, Home};
use super::ipc::IpcHandle;
use super::ledger::Ledger;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// A device made of host memory, and of a thread that is its stream; cheap to clone.
///
/// It stands in for a GPU where there is none, keeps the contract of one, and looks closer: copies that
/// touch what is not allocated, and calls that a GPU would not forgive, are counted as
/// [`violations`](Self::violations). For tests it can be paused, and lost.
#[derive(Clone)]
pub struct SoftwareDevice(Arc<Software>);

struct Software {
    ledger: Arc<Ledger>,
    /// Which of the processes that share the memory this one stands for.
    process: u64,
    stream: Arc<Stream>,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    description: String,
}

#[derive(Default)]
struct Stream {
    state: Mutex<State>,
    changed: Condvar,
    violations: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Bounded by the copies that copiers let in.
    queue: VecDeque<(Copies, Completion)>,
    is_paused: bool,
    is_closed: bool,
    lost: Option<String>,
}

impl SoftwareDevice {
    /// Creates a device of `memory_bytes` bytes, from which pinned memory is taken too.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded) if there is no room for its thread.
    pub fn new(memory_bytes: u64) -> Result<Self> {
        Self::start(Arc::new(Ledger::new(memory_bytes)))
    }

    /// Returns the same device as another process would see it: what one exports the other can open.
    ///
    /// Fails like [`new`](Self::new).
    pub fn sibling(&self) -> Result<Self> {
        Self::start(Arc::clone(&self.0.ledger))
    }

    fn start(ledger: Arc<Ledger>) -> Result<Self> {
        let stream = Arc::new(Stream::default());
        let process = ledger.join();
        let (its, of) = (Arc::clone(&stream), Arc::clone(&ledger));
        let thread = std::thread::Builder::new().name("software-device".to_owned());
        let thread = thread.spawn(move || run(&its, &of)).map_err(|error| {
            Error::new(ErrorKind::Overloaded, "no thread for a device").with_source(error)
        })?;
        Ok(Self(Arc::new(Software {
            description: format!("software device of {} bytes", ledger.bytes_max()),
            ledger,
            process,
            stream,
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Stops before the next copy; what is posted waits.
    pub fn pause(&self) {
        self.0.stream.lock().is_paused = true;
    }

    /// Goes on.
    pub fn resume(&self) {
        self.0.stream.lock().is_paused = false;
        self.0.stream.changed.notify_all();
    }

    /// Returns how many submissions wait for a copy before them, or for the device to go on.
    pub fn waiting(&self) -> usize {
        self.0.stream.lock().queue.len()
    }

    /// Fails as a GPU does that has fallen off its bus: what is in flight never passes, and nobody is
    /// told; every later call fails with these words.
    pub fn lose(&self, words: impl Into<String>) {
        let mut state = self.0.stream.lock();
        state.lost = Some(words.into());
        // Nobody can tell whether a real device still touches their memory.
        #[expect(clippy::mem_forget, reason = "as it is with a device that is gone")]
        std::mem::forget(std::mem::take(&mut state.queue));
    }

    /// Returns how many bytes are allocated, pinned ones included.
    pub fn in_use_bytes(&self) -> u64 {
        self.0.ledger.in_use()
    }

    /// Returns how often the contract was broken: by a copy of what is not there or is freed, or by a
    /// call from the thread that tells of completed copies.
    pub fn violations(&self) -> usize {
        self.0.stream.violations.load(Ordering::Relaxed) + self.0.ledger.violations()
    }

    pub(super) fn as_device(&self) -> Arc<dyn Device> {
        Arc::<Software>::clone(&self.0)
    }
}

impl fmt::Debug for SoftwareDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Software {
    /// Checks what comes before every call.
    fn enter(&self) -> Result<()> {
        if std::thread::current().id() == self.thread_id {
            self.stream.violations.fetch_add(1, Ordering::Relaxed);
        }
        self.stream.lock().check()
    }
}

impl Device for Software {
    fn ordinal(&self) -> u32 {
        0
    }

    fn describe(&self) -> &str {
        &self.description
    }

    fn allocate(&self, home: Home, len: usize) -> Result<Span> {
        self.enter()?;
        self.ledger.allocate(home, len)
    }

    unsafe fn free(&self, home: Home, span: Span) {
        // Memory of a lost device is freed all the same: it is the host's.
        let _ = self.enter();
        self.ledger.free(home, span);
    }

    unsafe fn submit(&self, copies: &Copies, done: Completion) {
        let _ = self.enter();
        let copies = Copies { list: copies.list.clone(), ..*copies };
        let mut state = self.stream.lock();
        if state.lost.is_some() {
            drop(state);
            return done.abandon();
        }
        if let Err(error) = state.check() {
            drop(state);
            return done.complete(Err(error));
        }
        state.queue.push_back((copies, done));
        self.stream.changed.notify_all();
    }

    fn status(&self) -> Result<()> {
        self.enter()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        Ok(self.ledger.bytes_max() - self.ledger.in_use())
    }

    fn export(&self, span: Span) -> Result<IpcHandle> {
        self.enter()?;
        self.ledger.export(self.process, span)
    }

    fn open(&self, handle: &IpcHandle) -> Result<Span> {
        self.enter()?;
        self.ledger.open(self.process, handle)
    }

    unsafe fn close_opened(&self, span: Span) {
        let _ = self.enter();
        self.ledger.close(span);
    }

    fn close(&self) {
        self.stream.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A wake-up that panics has told so itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        self.stream.close();
    }
}

impl fmt::Debug for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftwareDevice").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.is_paused = false;
        self.changed.notify_all();
    }

    /// Waits for the next submission; none after the last of a closed stream.
    fn next(&self) -> Option<(Copies, Completion)> {
        let mut state = self.lock();
        loop {
            match state.queue.pop_front() {
                Some(next) if !state.is_paused => return Some(next),
                Some(next) => state.queue.push_front(next),
                None if state.is_closed => return None,
                None => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn check(&self) -> Result<()> {
        if let Some(words) = &self.lost {
            return Err(Error::new(ErrorKind::BackendUnavailable, words.as_str()));
        }
        if self.is_closed {
            return Err(Error::new(ErrorKind::Closed, "the device is closed"));
        }
        Ok(())
    }
}

fn run(stream: &Stream, ledger: &Ledger) {
    while let Some((copies, done)) = stream.next() {
        let outcome = perform(&copies, ledger);
        if outcome.is_err() {
            stream.violations.fetch_add(1, Ordering::Relaxed);
        }
        done.complete(outcome);
    }
}

fn perform(copies: &Copies, ledger: &Ledger) -> Result<()> {
    let host = copies.is_pinned.then_some(Home::Pinned);
    let (from, to) = match copies.direction {
        Direction::HostToDevice => (host, Some(Home::Device)),
        Direction::DeviceToHost => (Some(Home::Device), host),
        Direction::DeviceToDevice => (Some(Home::Device), Some(Home::Device)),
    };
    let all = Offers { batch: true, kernel: true };
    for copy in assign(copies, all).iter().flat_map(|share| &share.copies) {
        for (home, span) in [(from, copy.source), (to, copy.target)] {
            if home.is_some_and(|home| !ledger.has(home, span)) {
                let message = format!("{} bytes of a copy are not allocated there", span.len());
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
        }
        // SAFETY: whoever submitted promised that both are valid while the completion lives, and it
        // does; that they lie in memory of this device was just checked again. They may overlap.
        unsafe {
            std::ptr::copy(copy.source.as_ptr(), copy.target.as_ptr(), copy.source.len());
        }
    }
    Ok(())
}
