use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::{CANCELLED, CLOSED};
use super::io::{Engine, Io};
use super::sys;
use super::threads::Threads;
use crate::error::Result;

/// Reads and writes on a few threads, each of which waits for one IO at a time.
pub(super) struct Pool {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    ios: VecDeque<Io>,
    /// Threads that wait for work.
    idle: usize,
    is_closing: bool,
}

impl Pool {
    pub(super) fn start(count: usize, threads: &Threads) -> Result<Arc<Self>> {
        let pool = Arc::new(Self { queue: Mutex::default(), filled: Condvar::new() });
        for _ in 0..count {
            let worker = Arc::clone(&pool);
            threads.spawn(move || worker.work()).inspect_err(|_| pool.close())?;
        }
        Ok(pool)
    }

    fn work(&self) {
        let mut iovecs = Vec::new();
        while let Some((io, is_closing)) = self.next() {
            if is_closing {
                io.refuse(CLOSED);
            } else if io.is_cancelled() {
                io.refuse(CANCELLED);
            } else {
                let result = sys::run(&io, &mut iovecs);
                io.finish(result);
            }
        }
    }

    /// Waits for an IO; `None` when there will be no more.
    fn next(&self) -> Option<(Io, bool)> {
        let mut queue = self.lock();
        loop {
            if let Some(io) = queue.ios.pop_front() {
                return Some((io, queue.is_closing));
            }
            if queue.is_closing {
                return None;
            }
            queue.idle += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Pool {
    fn submit(&self, batch: Vec<Io>) {
        let mut queue = self.lock();
        if queue.is_closing {
            drop(queue);
            return batch.into_iter().for_each(|io| io.refuse(CLOSED));
        }
        let wanted = batch.len().min(queue.idle);
        queue.ios.extend(batch);
        drop(queue);
        (0..wanted).for_each(|_| self.filled.notify_one());
    }

    fn close(&self) {
        self.lock().is_closing = true;
        self.filled.notify_all();
    }
}
