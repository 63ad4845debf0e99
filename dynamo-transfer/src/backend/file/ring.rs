#![expect(unsafe_code, reason = "the kernel reads and writes raw memory")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use super::error::{CANCELLED, CLOSED};
use super::io::{Engine, FileAct, Io};
use super::sys;
use super::threads::Threads;
use crate::error::{Error, ErrorKind, Result};

/// Reads and writes through one io_uring, which one thread feeds; the thread sleeps in the kernel
/// until something is done or there is something to do.
pub(super) struct Ring {
    queue: Mutex<Queue>,
    /// An eventfd; the thread always has a read of it in the ring.
    wake: File,
}

#[derive(Default)]
struct Queue {
    ios: VecDeque<Io>,
    /// The thread looks at the queue again only if it is woken.
    is_asleep: bool,
    is_closing: bool,
}

impl Ring {
    /// Fails with `BackendUnavailable` if the kernel offers no io_uring, or not to this process.
    pub(super) fn start(depth: usize, workers: u32, threads: &Threads) -> Result<Arc<Self>> {
        let unavailable = |error: io::Error| {
            let message = format!("io_uring: {error}");
            Error::new(ErrorKind::BackendUnavailable, message).with_source(error)
        };
        let wake = sys::wake_file().map_err(unavailable)?;
        let ring = Arc::new(Self { queue: Mutex::default(), wake });
        // A ring that one thread feeds is made by that thread.
        let (sender, made) = sync_channel(1);
        let shared = Arc::clone(&ring);
        threads.spawn(move || match Feeder::new(shared, depth, workers) {
            Ok(mut feeder) => {
                // The one who waits for it is right below.
                let _ = sender.send(Ok(()));
                feeder.feed();
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        })?;
        let made = made.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        made.map_err(unavailable)?;
        Ok(ring)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // An eventfd takes 2^64-2 of them before it would fail.
        let _ = (&self.wake).write(&1u64.to_ne_bytes());
    }
}

impl Engine for Ring {
    fn submit(&self, batch: Vec<Io>) {
        let mut queue = self.lock();
        if queue.is_closing {
            drop(queue);
            return batch.into_iter().for_each(|io| io.refuse(CLOSED));
        }
        queue.ios.extend(batch);
        let is_asleep = std::mem::take(&mut queue.is_asleep);
        drop(queue);
        if is_asleep {
            self.wake();
        }
    }

    fn close(&self) {
        self.lock().is_closing = true;
        self.wake();
    }
}

/// What the kernel has: its memory stays as it is until the completion.
struct Flight {
    io: Io,
    iovecs: Vec<libc::iovec>,
}

/// The thread's side.
struct Feeder {
    shared: Arc<Ring>,
    ring: IoUring,
    /// By the number that the kernel hands back.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// What the kernel reads from the eventfd.
    woken: Box<[u8; 8]>,
    is_waking_armed: bool,
    completed: Vec<(u64, i32)>,
}

impl Feeder {
    fn new(shared: Arc<Ring>, depth: usize, workers: u32) -> io::Result<Self> {
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let mut builder = IoUring::builder();
        // Linux 6.1: completions are handed over when this thread asks for them, not by interrupt.
        let quiet = builder.setup_single_issuer().setup_defer_taskrun();
        let ring = quiet.build(entries).or_else(|_| IoUring::new(entries))?;
        // Before 5.15 the kernel bounds the threads it keeps for buffered IO by itself.
        let _ = ring.submitter().register_iowq_max_workers(&mut [workers, workers]);
        Ok(Self {
            shared,
            ring,
            flights: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            woken: Box::new([0; 8]),
            is_waking_armed: false,
            completed: Vec::with_capacity(depth + 1),
        })
    }

    /// Runs until the ring is closed and nothing flies any more.
    fn feed(&mut self) {
        let mut failures = 0;
        loop {
            let is_closing = self.take();
            if is_closing && self.is_empty() {
                return;
            }
            if !is_closing && !self.is_waking_armed {
                self.arm();
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => failures = 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory for the moment.
                Err(error) if is_shortage(&error) && failures < SHORTAGES_MAX => {
                    failures += 1;
                    std::thread::sleep(SHORTAGE_PAUSE);
                }
                Err(error) => {
                    tracing::error!(%error, "io_uring has failed");
                    return;
                }
            }
            self.reap();
        }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.flights.len() && !self.is_waking_armed
    }

    /// Starts what waits and has room; tells whether the ring is closing.
    fn take(&mut self) -> bool {
        loop {
            let mut queue = self.shared.lock();
            let is_closing = queue.is_closing;
            let room = if is_closing { usize::MAX } else { self.free.len() };
            let count = room.min(queue.ios.len());
            let batch: Vec<_> = queue.ios.drain(..count).collect();
            queue.is_asleep = queue.ios.is_empty() && batch.is_empty();
            drop(queue);
            if batch.is_empty() {
                return is_closing;
            }
            for io in batch {
                match (is_closing, io.is_cancelled()) {
                    (true, _) => io.refuse(CLOSED),
                    (_, true) => io.refuse(CANCELLED),
                    _ => self.start(io),
                }
            }
        }
    }

    /// Puts an IO into the ring; the next call to the kernel submits it.
    fn start(&mut self, io: Io) {
        let Some(number) = self.free.pop() else {
            return io.refuse(libc::EAGAIN);
        };
        let mut iovecs = Vec::with_capacity(io.spans.len());
        sys::fill(&io, &mut iovecs);
        let flight = self.flights[number].insert(Flight { io, iovecs });
        let entry = entry(flight).user_data(number as u64);
        if !self.push(&entry) {
            self.free.push(number);
            let refused = self.flights[number].take();
            refused.into_iter().for_each(|flight| flight.io.refuse(libc::EAGAIN));
        }
    }

    /// Has the kernel end the thread's sleep when the eventfd is written to.
    fn arm(&mut self) {
        let fd = types::Fd(self.shared.wake.as_raw_fd());
        let entry = opcode::Read::new(fd, self.woken.as_mut_ptr(), 8).build();
        self.is_waking_armed = self.push(&entry.user_data(WAKE));
    }

    /// Returns false if there is no room, which there is: one entry per flight and one to wake.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        let mut queue = self.ring.submission();
        // SAFETY: the memory behind the entry lives until its completion: that of the spans by the
        // lease of the operation that the flight holds, the list of them in the flight, which stays
        // in `flights`, and `woken` in this feeder; `drop` leaks all three if they still fly.
        unsafe { queue.push(entry) }.is_ok()
    }

    /// Takes what the kernel has done.
    fn reap(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (number, result) in completed.drain(..) {
            if number == WAKE {
                self.is_waking_armed = false;
                continue;
            }
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(flight) = self.flights.get_mut(number).and_then(Option::take) else {
                continue;
            };
            self.free.push(number);
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            flight.io.finish(result);
        }
        self.completed = completed;
    }
}

impl Drop for Feeder {
    /// Whatever the reason that the thread ends, nobody waits for it in vain, and the memory that
    /// the kernel may still touch is never freed.
    #[expect(clippy::mem_forget, reason = "memory that the kernel may still touch is never freed")]
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.is_closing = true;
        let waiting = std::mem::take(&mut queue.ios);
        drop(queue);
        for flight in self.flights.drain(..).flatten() {
            std::mem::forget(flight.iovecs);
            flight.io.abandon();
        }
        waiting.into_iter().for_each(|io| io.refuse(CLOSED));
        if self.is_waking_armed {
            std::mem::forget(std::mem::take(&mut self.woken));
        }
    }
}

fn entry(flight: &Flight) -> squeue::Entry {
    let Flight { io, iovecs } = flight;
    let (fd, offset) = (types::Fd(io.file().as_raw_fd()), io.offset);
    // A list of one is an address and a length.
    let one = match &iovecs[..] {
        [iovec] => u32::try_from(iovec.iov_len).ok().map(|len| (iovec.iov_base.cast(), len)),
        _ => None,
    };
    let count = u32::try_from(iovecs.len()).unwrap_or(u32::MAX);
    match (io.act, one) {
        (FileAct::Read, Some((at, len))) => opcode::Read::new(fd, at, len).offset(offset).build(),
        (FileAct::Write, Some((at, len))) => opcode::Write::new(fd, at, len).offset(offset).build(),
        (FileAct::Read, None) => {
            opcode::Readv::new(fd, iovecs.as_ptr(), count).offset(offset).build()
        }
        (FileAct::Write, None) => {
            opcode::Writev::new(fd, iovecs.as_ptr(), count).offset(offset).build()
        }
        (FileAct::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// The number of the read of the eventfd.
const WAKE: u64 = u64::MAX;

/// How long, and how often in a row, the kernel may be short of memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(1);
const SHORTAGES_MAX: u32 = 1000;
